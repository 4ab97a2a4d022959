//! Asks the kernel for TCP sockets of this network namespace (sock_diag(7)).

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};
use tp_core::packet::FlowKey;

const NETLINK_SOCK_DIAG: i32 = 4;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_DUMP: u16 = 0x300;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IPPROTO_TCP: u8 = 6;
const TCP_LISTEN: u8 = 10;
/// `INET_DIAG_NOCOOKIE`, twice.
const NO_COOKIE: [u8; 8] = [0xff; 8];

const HEADER_LEN: usize = 16;
const REQUEST_LEN: usize = 56;
/// Of `struct inet_diag_msg`.
const ANSWER_LEN: usize = 72;
const INET_DIAG_SKV6ONLY: u16 = 11;
const READ_TIMEOUT: Duration = Duration::from_secs(1);
/// Messages of one dump; sockets beyond are as if they did not listen.
const MAX_READS: usize = 1024;

/// A socket, as the kernel describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TcpSocketInfo {
    state: u8,
    local: SocketAddr,
    /// Known of those that listen.
    is_v6_only: bool,
    pub(super) uid: u32,
    pub(super) inode: u32,
}

impl TcpSocketInfo {
    fn of(body: &[u8]) -> Option<Self> {
        let (body, attributes) = body.split_at_checked(ANSWER_LEN)?;
        let word = |at: usize| Some(u32::from_ne_bytes(body.get(at..at + 4)?.try_into().ok()?));
        let port = u16::from_be_bytes(body.get(4..6)?.try_into().ok()?);
        let ip: IpAddr = match body[0] {
            AF_INET => <[u8; 4]>::try_from(&body[8..12]).ok()?.into(),
            AF_INET6 => <[u8; 16]>::try_from(&body[8..24]).ok()?.into(),
            _ => return None,
        };

        Some(Self {
            state: body[1],
            local: SocketAddr::new(ip.to_canonical(), port),
            is_v6_only: attribute(attributes, INET_DIAG_SKV6ONLY).is_some_and(|it| it != [0]),
            uid: word(64)?,
            inode: word(68)?,
        })
    }

    /// Returns whether a connection to `address` may find this socket.
    fn takes(&self, address: SocketAddr) -> bool {
        let takes_ip = match self.local.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => address.is_ipv4(),
            IpAddr::V6(ip) if ip.is_unspecified() => address.is_ipv6() || !self.is_v6_only,
            ip => ip == address.ip(),
        };

        takes_ip && self.local.port() == address.port()
    }
}

/// The application's socket of a steered connection.
pub(super) fn socket_of(flow: FlowKey) -> io::Result<TcpSocketInfo> {
    let mut id = Vec::with_capacity(48);
    id.extend(flow.source.port().to_be_bytes());
    id.extend(flow.destination.port().to_be_bytes());
    for ip in [flow.source.ip(), flow.destination.ip()] {
        id.extend(ip.octets());
        id.extend([0; 12]);
    }
    id.extend([0; 4]);
    id.extend(NO_COOKIE);
    let mut found = None;
    ask(NLM_F_REQUEST, AF_INET, u32::MAX, &id, |socket| {
        found = Some(socket)
    })?;

    // Without such a connection, the kernel looks for whoever listens.
    found
        .filter(|socket| socket.state != TCP_LISTEN)
        .ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// The inodes of the sockets that listen at this address; none if it is another machine's.
pub(super) fn listening(address: SocketAddr) -> io::Result<Vec<u32>> {
    let address = SocketAddr::new(address.ip().to_canonical(), address.port());
    let address = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => (Ipv4Addr::LOCALHOST, address.port()).into(),
        IpAddr::V6(ip) if ip.is_unspecified() => (Ipv6Addr::LOCALHOST, address.port()).into(),
        _ => address,
    };
    // Only an address of this machine can be bound.
    if !address.ip().is_loopback() && UdpSocket::bind((address.ip(), 0)).is_err() {
        return Ok(Vec::new());
    }
    let mut id = vec![0; 48];
    id[..2].copy_from_slice(&address.port().to_be_bytes());
    let mut inodes = Vec::new();
    for family in [AF_INET, AF_INET6] {
        let flags = NLM_F_REQUEST | NLM_F_DUMP;
        ask(flags, family, 1 << TCP_LISTEN, &id, |socket| {
            if socket.takes(address) {
                inodes.push(socket.inode);
            }
        })?;
    }

    Ok(inodes)
}

fn ask(
    flags: u16,
    family: u8,
    states: u32,
    id: &[u8],
    mut each: impl FnMut(TcpSocketInfo),
) -> io::Result<()> {
    let mut request = Vec::with_capacity(HEADER_LEN + REQUEST_LEN);
    request.extend(((HEADER_LEN + REQUEST_LEN) as u32).to_ne_bytes());
    request.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    request.extend(flags.to_ne_bytes());
    request.extend([0; 8]);
    request.extend([family, IPPROTO_TCP, 0, 0]);
    request.extend(states.to_ne_bytes());
    request.extend(id);
    let protocol = Protocol::from(NETLINK_SOCK_DIAG);
    let mut netlink = Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, Some(protocol))?;
    netlink.set_read_timeout(Some(READ_TIMEOUT))?;
    netlink.write_all(&request)?;

    let mut buffer = vec![0; 32 << 10];
    for _ in 0..MAX_READS {
        let len = netlink.read(&mut buffer)?;
        let mut rest = &buffer[..len];
        while let Some((kind, body, next)) = message(rest) {
            match kind {
                NLMSG_DONE => return Ok(()),
                NLMSG_ERROR => return Err(error_of(body)),
                _ => TcpSocketInfo::of(body).into_iter().for_each(&mut each),
            }
            rest = next;
        }
        if flags & NLM_F_DUMP == 0 {
            return Ok(());
        }
    }

    Err(io::Error::other("the kernel lists sockets without end"))
}

/// Splits off one message: its kind, its body and what follows.
fn message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let len = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let body = bytes.get(HEADER_LEN..len)?;
    let next = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();

    Some((kind, body, next))
}

/// What an attribute of this kind holds.
fn attribute(mut bytes: &[u8], kind: u16) -> Option<&[u8]> {
    loop {
        let half = |at: usize| Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
        let len = usize::from(half(0)?);
        let value = bytes.get(4..len)?;
        if half(2)? == kind {
            return Some(value);
        }
        bytes = bytes.get(len.next_multiple_of(4)..)?;
    }
}

fn error_of(body: &[u8]) -> io::Error {
    body.get(..4)
        .and_then(|code| code.try_into().ok())
        .map_or(io::ErrorKind::InvalidData.into(), |code| {
            io::Error::from_raw_os_error(-i32::from_ne_bytes(code))
        })
}
