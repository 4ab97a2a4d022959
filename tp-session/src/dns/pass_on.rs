//! Queries that are none of our business: sent on and answered byte for byte.

use std::{
    io,
    net::{Ipv4Addr, SocketAddrV4},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    time::timeout,
};
use tp_core::dns::Limit;

/// Longer than any resolver waits for one attempt (5 s, resolv.conf(5)), so that its own time-out
/// decides.
const LIMIT: Duration = Duration::from_secs(10);
const MAX_MESSAGE: usize = 65_535;
const ID: usize = 2;

/// How the server that was meant took it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reply {
    Message(Vec<u8>),
    /// Nobody listens there.
    Refused,
    Silence,
}

pub(super) async fn ask(server: SocketAddrV4, query: &[u8], limit: Limit) -> Reply {
    let asked = async {
        match limit {
            Limit::Datagram => by_datagram(server, query).await,
            Limit::Stream => by_stream(server, query).await,
        }
    };
    match timeout(LIMIT, asked).await {
        Ok(Ok(reply)) => Reply::Message(reply),
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => Reply::Refused,
        Ok(Err(error)) => {
            tracing::debug!(%error, "Name server did not answer");
            Reply::Silence
        }
        Err(_) => Reply::Silence,
    }
}

/// A socket per query: the kernel's choice of port is what guards against forged replies.
async fn by_datagram(server: SocketAddrV4, query: &[u8]) -> io::Result<Vec<u8>> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
    socket.connect(server).await?;
    socket.send(query).await?;
    let mut reply = vec![0; MAX_MESSAGE];
    loop {
        let length = socket.recv(&mut reply).await?;
        if reply[..length].get(..ID) == query.get(..ID) {
            reply.truncate(length);
            return Ok(reply);
        }
    }
}

async fn by_stream(server: SocketAddrV4, query: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(query.len()).map_err(io::Error::other)?;
    stream
        .write_all(&[&length.to_be_bytes(), query].concat())
        .await?;
    let length = stream.read_u16().await?;
    let mut reply = vec![0; usize::from(length)];
    stream.read_exact(&mut reply).await?;

    Ok(reply)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn odd_bytes_pass_unchanged_both_ways() {
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let std::net::SocketAddr::V4(address) = server.local_addr().unwrap() else {
            panic!()
        };
        let query = [0xff, 0x01, 0x00, 0x13, 0x37];
        let served = async {
            let mut buffer = [0; 64];
            let (length, from) = server.recv_from(&mut buffer).await.unwrap();
            assert_eq!(buffer[..length], query);
            server.send_to(&[0x00, 0x00, 0x99], from).await.unwrap();
            server
                .send_to(&[0xff, 0x01, 0xaa, 0xbb], from)
                .await
                .unwrap();
        };

        let (reply, ()) = tokio::join!(ask(address, &query, Limit::Datagram), served);

        assert_eq!(reply, Reply::Message(vec![0xff, 0x01, 0xaa, 0xbb]));
    }

    #[tokio::test]
    async fn a_server_that_does_not_run_is_told_from_a_silent_one() {
        let free = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let std::net::SocketAddr::V4(address) = free.local_addr().unwrap() else {
            panic!()
        };
        drop(free);

        let reply = ask(address, &[0, 1, 2], Limit::Datagram).await;

        assert_eq!(reply, Reply::Refused);
    }
}
