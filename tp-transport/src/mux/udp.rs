//! The UDP socket of path U.

use std::{
    io::{self, IoSliceMut},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6},
    task::{Context, Poll},
};

use quinn::udp::{RecvMeta, Transmit, UdpSocketState};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{io::Interest, net::UdpSocket};

/// What is asked of the kernel, in each direction.
const BUFFER_SIZE: usize = 4 << 20;
/// Most bytes in one send of several datagrams.
const MAX_BATCH: usize = 65_000;

#[derive(Debug)]
pub(crate) struct Udp {
    socket: UdpSocket,
    state: UdpSocketState,
    /// Whether the socket is an IPv6 one and takes IPv4 addresses mapped only.
    is_ipv6: bool,
    port: u16,
    receive_buffer: u64,
    send_buffer: u64,
}

impl Udp {
    /// A socket on any port, for both families where the machine has IPv6.
    pub(crate) fn unbound() -> io::Result<Self> {
        Self::from_socket(
            dual_stack().or_else(|_| std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))?,
        )
    }

    pub(crate) fn from_socket(socket: std::net::UdpSocket) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let state = UdpSocketState::new((&socket).into())?;
        let (receive_buffer, send_buffer) = enlarge_buffers(&socket)?;
        let address = socket.local_addr()?;

        Ok(Self {
            socket: UdpSocket::from_std(socket)?,
            state,
            is_ipv6: address.is_ipv6(),
            port: address.port(),
            receive_buffer,
            send_buffer,
        })
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn receive_buffer(&self) -> u64 {
        self.receive_buffer
    }

    pub(crate) fn send_buffer(&self) -> u64 {
        self.send_buffer
    }

    pub(crate) fn try_send(&self, transmit: &Transmit<'_>, remote: SocketAddr) -> io::Result<()> {
        let destination = self.native(remote);
        let size = transmit.segment_size.unwrap_or(transmit.contents.len());
        let per_send = (MAX_BATCH / size.max(1)).max(1) * size.max(1);
        for contents in transmit.contents.chunks(per_send.max(1)) {
            let part = Transmit {
                destination,
                ecn: transmit.ecn,
                contents,
                segment_size: Some(size).filter(|size| contents.len() > *size),
                src_ip: None,
            };
            self.socket.try_io(Interest::WRITABLE, || {
                self.state.send((&self.socket).into(), &part)
            })?;
        }

        Ok(())
    }

    /// Sends a probe at once or not at all: a lost probe is what probes are for.
    pub(crate) fn send_probe(&self, probe: &[u8], remote: SocketAddr) {
        if let Err(error) = self.socket.try_send_to(probe, self.native(remote)) {
            tracing::trace!(%error, "Probe was not sent");
        }
    }

    pub(crate) async fn writable(&self) -> io::Result<()> {
        self.socket.writable().await
    }

    pub(crate) fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        loop {
            std::task::ready!(self.socket.poll_recv_ready(cx))?;
            let received = self.socket.try_io(Interest::READABLE, || {
                self.state.recv((&self.socket).into(), bufs, meta)
            });
            match received {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                received => return Poll::Ready(received),
            }
        }
    }

    pub(crate) fn max_transmit_segments(&self) -> usize {
        self.state.max_gso_segments()
    }

    pub(crate) fn may_fragment(&self) -> bool {
        self.state.may_fragment()
    }

    fn native(&self, remote: SocketAddr) -> SocketAddr {
        match remote {
            SocketAddr::V4(v4) if self.is_ipv6 => {
                SocketAddrV6::new(v4.ip().to_ipv6_mapped(), v4.port(), 0, 0).into()
            }
            other => other,
        }
    }
}

/// An address as people write it: IPv4 where it is one.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn dual_stack() -> io::Result<std::net::UdpSocket> {
    let socket = Socket::new(Domain::IPV6, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_only_v6(false)?;
    socket.bind(&SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, 0, 0, 0).into())?;

    Ok(socket.into())
}

/// Asks for large buffers, past the system's limit where that is allowed, and returns what was
/// granted, in bytes of payload (the kernel counts its own overhead as much again).
fn enlarge_buffers(socket: &std::net::UdpSocket) -> io::Result<(u64, u64)> {
    use rustix::net::sockopt;

    if sockopt::set_socket_recv_buffer_size_force(socket, BUFFER_SIZE).is_err() {
        sockopt::set_socket_recv_buffer_size(socket, BUFFER_SIZE)?;
    }
    if sockopt::set_socket_send_buffer_size_force(socket, BUFFER_SIZE).is_err() {
        sockopt::set_socket_send_buffer_size(socket, BUFFER_SIZE)?;
    }
    let receive = sockopt::socket_recv_buffer_size(socket)? / 2;
    let send = sockopt::socket_send_buffer_size(socket)? / 2;

    Ok((receive as u64, send as u64))
}
