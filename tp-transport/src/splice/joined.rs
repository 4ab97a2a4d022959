//! Ties two TCP connections together: both directions, every way to end.

use std::{io, net::Shutdown, time::Duration};

use bytes::{BufMut as _, BytesMut};
use socket2::SockRef;
use tokio::{net::TcpStream, task::coop::consume_budget};

use super::{closed, failed};

/// Bytes read at once: of a direction that is quiet so far, and at most.
const FIRST_READ_SIZE: usize = 8 << 10;
const READ_SIZE: usize = 64 << 10;

/// Copies both directions until both have ended. A reset of one becomes a reset of the other, as does
/// dropping this future.
///
/// # Errors
///
/// Those of whichever connection fails first.
pub async fn join_tcp(one: TcpStream, other: TcpStream) -> io::Result<()> {
    for tcp in [&one, &other] {
        // A socket closed before both FINs are acknowledged is reset.
        SockRef::from(tcp).set_linger(Some(Duration::ZERO))?;
        SockRef::from(tcp).set_out_of_band_inline(true)?;
        tcp.set_nodelay(true)?;
    }
    let both = async { tokio::try_join!(copy(&one, &other), copy(&other, &one)) };
    tokio::select! {
        copied = both => drop(copied?),
        // After the end of a direction no read shows it.
        error = failed(&one) => return Err(error),
        error = failed(&other) => return Err(error),
    }
    closed(&one).await;
    closed(&other).await;

    Ok(())
}

async fn copy(from: &TcpStream, to: &TcpStream) -> io::Result<()> {
    let mut size = FIRST_READ_SIZE;
    let mut buffer = BytesMut::new();
    loop {
        // What is tried takes none: a fast stream would hold up all others of the thread.
        consume_budget().await;
        buffer.clear();
        buffer.reserve(size);
        match from.try_read_buf(&mut (&mut buffer).limit(size)) {
            Ok(0) => break,
            Ok(read) => {
                if read >= size / 2 {
                    size = (size * 2).min(READ_SIZE);
                }
                write_all(to, &buffer).await?;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                // A quiet direction holds no buffer.
                (buffer, size) = (BytesMut::new(), FIRST_READ_SIZE);
                from.readable().await?;
            }
            Err(error) => return Err(error),
        }
    }

    SockRef::from(to).shutdown(Shutdown::Write)
}

pub(crate) async fn write_all(tcp: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match tcp.try_write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => tcp.writable().await?,
            Err(error) => return Err(error),
        }
    }

    Ok(())
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Waker};

    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
        task::{JoinHandle, coop::has_budget_remaining},
        time::timeout,
    };

    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let connecting = TcpStream::connect(listener.local_addr().unwrap());
        let (connected, accepted) = tokio::join!(connecting, listener.accept());

        (connected.unwrap(), accepted.unwrap().0)
    }

    /// The far ends of two connections that are joined.
    async fn joined() -> (TcpStream, TcpStream, JoinHandle<io::Result<()>>) {
        let ((one, near), (other, far)) = (pair().await, pair().await);

        (one, other, tokio::spawn(join_tcp(near, far)))
    }

    #[tokio::test]
    async fn bytes_and_ends_pass_in_both_directions() {
        let (mut one, mut other, task) = joined().await;
        let question = vec![7; 3 << 20];
        let asked = async {
            one.write_all(&question).await.unwrap();
            one.shutdown().await.unwrap();
            let mut answer = String::new();
            one.read_to_string(&mut answer).await.unwrap();
            answer
        };
        let answered = async {
            let mut got = Vec::new();
            other.read_to_end(&mut got).await.unwrap();
            other.write_all(b"answer").await.unwrap();
            other.shutdown().await.unwrap();
            got
        };

        let both = async { tokio::join!(asked, answered) };
        let (answer, got) = timeout(LIMIT, both).await.unwrap();

        assert_eq!(answer, "answer");
        assert!(got == question);
        timeout(LIMIT, task).await.unwrap().unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_reset_passes_also_after_the_end_of_a_direction() {
        let (mut one, mut other, task) = joined().await;
        one.shutdown().await.unwrap();
        let mut rest = Vec::new();
        timeout(LIMIT, other.read_to_end(&mut rest))
            .await
            .unwrap()
            .unwrap();

        SockRef::from(&one)
            .set_linger(Some(Duration::ZERO))
            .unwrap();
        drop(one);

        let error = timeout(LIMIT, failed(&other)).await.unwrap();
        // As the kernel names it to who has read the end.
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        timeout(LIMIT, task).await.unwrap().unwrap().unwrap_err();
    }

    #[tokio::test]
    async fn a_fast_stream_leaves_its_thread_to_others_in_between() {
        let ((mut one, near), (_other, far)) = (pair().await, pair().await);
        one.write_all(&[7; 1000]).await.unwrap();
        near.readable().await.unwrap();
        let mut copying = Box::pin(copy(&near, &far));

        // As after as many reads as a task may do at once.
        while has_budget_remaining() {
            consume_budget().await;
        }

        let mut context = Context::from_waker(Waker::noop());
        assert!(copying.as_mut().poll(&mut context).is_pending());
        assert_eq!(near.try_read(&mut [0; 2000]).unwrap(), 1000, "all there");
    }
}
