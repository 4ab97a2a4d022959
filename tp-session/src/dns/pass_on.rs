//! Queries for other names, forwarded and answered byte for byte.

use std::{
    io::{self, IoSliceMut},
    net::{Ipv4Addr, SocketAddrV4},
    os::fd::AsRawFd,
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::socket::{
        ControlMessageOwned, MsgFlags, SockaddrIn, recv, recvmsg, setsockopt, sockopt::Ipv4RecvErr,
    },
};
use tokio::{io::Interest, net::UdpSocket, time::timeout};
use tp_core::verdict;

/// Longer than any resolver waits for one attempt (5 s, resolv.conf(5)), so that its own time-out
/// decides.
const TIMEOUT: Duration = Duration::from_secs(10);
const MAX_MESSAGE: usize = 65_535;
const ID_SIZE: usize = 2;
const ICMP_DESTINATION_UNREACHABLE: u8 = 3;

/// The original server's reply to a query.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ServerReply {
    Message(Vec<u8>),
    /// An ICMP error, with its code for "destination unreachable".
    Unreachable(u8),
    /// This machine could not send it: the application would have seen an error at once. The ICMP code
    /// is one that any socket reports.
    Unsent(u8),
    Silence,
}

/// A socket per query: the kernel's choice of port is what guards against forged replies.
pub(crate) async fn ask(server: SocketAddrV4, query: &[u8]) -> ServerReply {
    let socket = match socket().await {
        Ok(socket) => socket,
        Err(error) => {
            tracing::debug!(%error, "No socket to pass a query on");
            return ServerReply::Silence;
        }
    };
    match timeout(TIMEOUT, exchange(&socket, server, query)).await {
        Ok(Ok(reply)) => ServerReply::Message(reply),
        Ok(Err(error)) => {
            tracing::debug!(%error, "Name server did not answer");
            icmp_code(&socket).map_or_else(|| unsent(&error), ServerReply::Unreachable)
        }
        Err(_) => ServerReply::Silence,
    }
}

/// A socket that reports all errors, even transient ones, as the application may want them.
async fn socket() -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
    setsockopt(&socket, Ipv4RecvErr, &true)?;

    Ok(socket)
}

async fn exchange(socket: &UdpSocket, server: SocketAddrV4, query: &[u8]) -> io::Result<Vec<u8>> {
    socket.connect(server).await?;
    socket.send(query).await?;
    let mut reply = vec![0; MAX_MESSAGE];
    loop {
        let length = socket
            .async_io(Interest::READABLE | Interest::ERROR, || {
                Ok(recv(
                    socket.as_raw_fd(),
                    &mut reply,
                    MsgFlags::MSG_DONTWAIT,
                )?)
            })
            .await?;
        if reply[..length].get(..ID_SIZE) == query.get(..ID_SIZE) {
            reply.truncate(length);
            return Ok(reply);
        }
    }
}

/// The code of the ICMP error in the socket's error queue.
fn icmp_code(socket: &UdpSocket) -> Option<u8> {
    let mut control = nix::cmsg_space!(libc::sock_extended_err, libc::sockaddr_in);
    let mut quoted = [0; 1];
    let mut slices = [IoSliceMut::new(&mut quoted)];
    let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
    let message =
        recvmsg::<SockaddrIn>(socket.as_raw_fd(), &mut slices, Some(&mut control), flags).ok()?;
    message.cmsgs().ok()?.find_map(|control| match control {
        ControlMessageOwned::Ipv4RecvErr(error, _)
            if error.ee_origin == libc::SO_EE_ORIGIN_ICMP =>
        {
            let is_unreachable = error.ee_type == ICMP_DESTINATION_UNREACHABLE;
            // Others, such as "time exceeded", are the same to a resolver.
            Some(if is_unreachable {
                error.ee_code
            } else {
                verdict::HOST_UNREACHABLE
            })
        }
        _ => None,
    })
}

/// The reply for a local error: no route, a route that prohibits, a firewall.
fn unsent(error: &io::Error) -> ServerReply {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENETUNREACH | Errno::ENETDOWN) => ServerReply::Unsent(verdict::NET_UNKNOWN),
        Some(
            Errno::EHOSTUNREACH | Errno::EHOSTDOWN | Errno::EPERM | Errno::EACCES | Errno::EINVAL,
        ) => ServerReply::Unsent(verdict::PROHIBITED),
        _ => ServerReply::Silence,
    }
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

        let (reply, ()) = tokio::join!(ask(address, &query), served);

        assert_eq!(reply, ServerReply::Message(vec![0xff, 0x01, 0xaa, 0xbb]));
    }

    #[tokio::test]
    async fn a_server_that_does_not_run_is_told_from_a_silent_one() {
        let free = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let std::net::SocketAddr::V4(address) = free.local_addr().unwrap() else {
            panic!()
        };
        drop(free);

        let reply = ask(address, &[0, 1, 2]).await;

        assert_eq!(reply, ServerReply::Unreachable(verdict::PORT_UNREACHABLE));
    }

    #[tokio::test]
    async fn a_query_that_this_machine_cannot_send_is_told_from_a_silent_server() {
        // A datagram to a broadcast address is refused: EACCES, or ENETUNREACH without a route.
        let reply = ask("255.255.255.255:53".parse().unwrap(), &[0, 1, 2]).await;

        assert!(matches!(reply, ServerReply::Unsent(_)), "{reply:?}");
    }
}
