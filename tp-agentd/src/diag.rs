//! The established TCP connections of this thread's network namespace.

use std::{io, net::IpAddr};

use tp_sock_diag::{
    AF_INET, AF_INET6, ANY_SOCKET, Condition, DiagMessage, End, INET_DIAG_MARK, IPPROTO_TCP,
    SockDiag, SocketFilter, SocketId, SocketQuery, TCP_ESTABLISHED, is_unknown,
};

/// A connection of a socket that is here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Established {
    family: u8,
    id: SocketId,
    pub(crate) port: u16,
    pub(crate) peer: IpAddr,
    /// Of its socket.
    pub(crate) mark: u32,
}

/// A socket to ask by.
pub(crate) struct Diag(SockDiag);

impl Diag {
    pub(crate) fn open() -> io::Result<Self> {
        SockDiag::open().map(Self)
    }

    /// Shows `each` the connections to these local ports.
    pub(crate) fn list(&self, ports: &[u16], mut each: impl FnMut(Established)) -> io::Result<()> {
        if ports.is_empty() {
            return Ok(());
        }
        for family in [AF_INET, AF_INET6] {
            let query = SocketQuery {
                family,
                protocol: IPPROTO_TCP,
                states: 1 << TCP_ESTABLISHED,
                id: ANY_SOCKET,
                filter: SocketFilter::any_of(End::Own, ports.iter().copied().map(Condition::Port)),
            };
            let listed = self.0.list(&query, |socket| {
                established(&socket).into_iter().for_each(&mut each);
            });
            match listed {
                // A kernel without IPv6.
                Err(error) if family == AF_INET6 && is_unknown(&error) => {}
                listed => listed?,
            }
        }

        Ok(())
    }

    /// Resets a connection; returns whether it was still there.
    pub(crate) fn destroy(&self, connection: &Established) -> io::Result<bool> {
        let Established { family, id, .. } = connection;
        match self.0.destroy(*family, IPPROTO_TCP, id) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// `None` also without a mark, which the kernel tells to whoever may end the connection.
fn established(socket: &DiagMessage<'_>) -> Option<Established> {
    let mark = socket.attribute(INET_DIAG_MARK)?;

    Some(Established {
        family: socket.family(),
        id: socket.id(),
        port: socket.end(End::Own)?.port(),
        peer: socket.end(End::Peer)?.ip(),
        mark: u32::from_ne_bytes(mark.try_into().ok()?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(family: u8, peer: &[u8], mark: Option<u32>) -> Vec<u8> {
        let mut body = vec![0; 72];
        body[0] = family;
        body[4..6].copy_from_slice(&8080_u16.to_be_bytes());
        body[24..24 + peer.len()].copy_from_slice(peer);
        // An attribute of one byte, and what pads it.
        body.extend(5_u16.to_ne_bytes());
        body.extend([8, 0, 3, 0, 0, 0]);
        if let Some(mark) = mark {
            body.extend(8_u16.to_ne_bytes());
            body.extend(INET_DIAG_MARK.to_ne_bytes());
            body.extend(mark.to_ne_bytes());
        }

        body
    }

    fn read(body: &[u8]) -> Option<Established> {
        established(&DiagMessage::new(body)?)
    }

    #[test]
    fn an_answer_tells_port_peer_and_mark() {
        let found = read(&answer(AF_INET, &[10, 0, 0, 1], Some(7))).unwrap();
        assert_eq!((found.port, found.mark), (8080, 7));
        assert_eq!(found.peer.to_string(), "10.0.0.1");

        let mapped = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 2];
        let found = read(&answer(AF_INET6, &mapped, Some(0))).unwrap();
        assert_eq!(found.peer.to_string(), "10.0.0.2");
        assert_eq!(read(&answer(AF_INET, &[10, 0, 0, 1], None)), None);
    }

    #[test]
    fn what_is_cut_off_is_ignored() {
        let whole = answer(AF_INET, &[10, 0, 0, 1], Some(7));

        for len in 0..whole.len() {
            assert_eq!(read(&whole[..len]), None, "{len}");
        }
    }
}
