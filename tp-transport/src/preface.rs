//! The first bytes of the stream path, before any QUIC: the client's session, and the manager's answer.
//!
//! Client: magic, version, then namespace, name and UID of the `Session`, each with its length in
//! one byte. Server: version, an answer, a reason with its length in two bytes. The client does
//! not wait for the answer before it sends QUIC datagrams.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::keys::SessionRef;

const MAGIC: [u8; 4] = *b"tp-T";
const VERSION: u8 = 1;
const KNOWN: u8 = 0;
const REFUSED: u8 = 1;
const MAX_REASON: usize = 1024;

#[derive(Debug, thiserror::Error)]
pub(crate) enum PrefaceError {
    #[error("not the preface of this protocol")]
    Malformed,
    #[error("version {0} of the preface is not spoken")]
    Version(u8),
    #[error(transparent)]
    Io(#[from] io::Error),
}

pub(crate) async fn write(
    link: &mut (impl AsyncWrite + Unpin),
    session: &SessionRef,
) -> io::Result<()> {
    let mut preface = Vec::from(MAGIC);
    preface.push(VERSION);
    for part in [&session.namespace, &session.name, &session.uid] {
        let length = u8::try_from(part.len()).map_err(io::Error::other)?;
        preface.push(length);
        preface.extend_from_slice(part.as_bytes());
    }
    link.write_all(&preface).await?;

    link.flush().await
}

pub(crate) async fn read(link: &mut (impl AsyncRead + Unpin)) -> Result<SessionRef, PrefaceError> {
    let mut head = [0; MAGIC.len() + 1];
    link.read_exact(&mut head).await?;
    let (magic, version) = (&head[..MAGIC.len()], head[MAGIC.len()]);
    if magic != MAGIC {
        return Err(PrefaceError::Malformed);
    }
    if version != VERSION {
        return Err(PrefaceError::Version(version));
    }
    let session = SessionRef {
        namespace: read_part(link).await?,
        name: read_part(link).await?,
        uid: read_part(link).await?,
    };
    if !session.is_well_formed() {
        return Err(PrefaceError::Malformed);
    }

    Ok(session)
}

async fn read_part(link: &mut (impl AsyncRead + Unpin)) -> Result<String, PrefaceError> {
    let mut part = vec![0; usize::from(link.read_u8().await?)];
    link.read_exact(&mut part).await?;

    String::from_utf8(part).map_err(|_| PrefaceError::Malformed)
}

/// The server's answer: `Err` carries the reason of a refusal.
pub(crate) async fn write_answer(
    link: &mut (impl AsyncWrite + Unpin),
    answer: Result<(), &str>,
) -> io::Result<()> {
    let (verdict, reason) = match answer {
        Ok(()) => (KNOWN, ""),
        Err(reason) => (REFUSED, &reason[..reason.floor_char_boundary(MAX_REASON)]),
    };
    let length = u16::try_from(reason.len()).expect("bounded above");
    let mut bytes = vec![VERSION, verdict];
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(reason.as_bytes());
    link.write_all(&bytes).await?;

    link.flush().await
}

pub(crate) async fn read_answer(
    link: &mut (impl AsyncRead + Unpin),
) -> Result<Result<(), String>, PrefaceError> {
    let mut head = [0; 4];
    link.read_exact(&mut head).await?;
    let [version, verdict, high, low] = head;
    let length = usize::from(u16::from_be_bytes([high, low]));
    if version != VERSION {
        return Err(PrefaceError::Version(version));
    }
    if length > MAX_REASON {
        return Err(PrefaceError::Malformed);
    }
    let mut reason = vec![0; length];
    link.read_exact(&mut reason).await?;

    match verdict {
        KNOWN => Ok(Ok(())),
        _ => Ok(Err(String::from_utf8_lossy(&reason).into_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_preface_names_the_session() {
        let session = session("shop", "alice-laptop", "0b1c");
        let mut wire = Vec::new();

        write(&mut wire, &session).await.unwrap();

        assert_eq!(read(&mut wire.as_slice()).await.unwrap(), session);
    }

    #[tokio::test]
    async fn anything_else_is_refused_without_reading_on() {
        for wire in [
            &b"GET / HTTP/1.1\r\n\r\n"[..],
            b"tp-T\x02\x01a\x01b\x01c",
            b"tp-T\x01\x00\x01b\x01c",
            b"tp-T\x01\x01/\x01b\x01c",
            b"tp-T\x01\x01a\x01b",
            b"",
        ] {
            assert!(read(&mut &*wire).await.is_err(), "{wire:?}");
        }
    }

    #[tokio::test]
    async fn a_refusal_carries_its_reason() {
        let mut wire = Vec::new();

        write_answer(&mut wire, Err("no such session"))
            .await
            .unwrap();

        let answer = read_answer(&mut wire.as_slice()).await.unwrap();
        assert_eq!(answer, Err("no such session".into()));
    }

    fn session(namespace: &str, name: &str, uid: &str) -> SessionRef {
        SessionRef {
            namespace: namespace.into(),
            name: name.into(),
            uid: uid.into(),
        }
    }
}
