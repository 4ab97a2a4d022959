//! Sockets of applications: creation, connection, and names of errors.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6},
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    net::{
        AddressFamily, SendFlags, SocketFlags, SocketType, bind, connect, connect_unspec, ipproto,
        sendto, socket_with, sockopt,
    },
    time::Timespec,
};

use crate::sys::{self, Departure};

pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// An application's socket options.
pub(crate) struct Options {
    is_nonblocking: bool,
    pub(crate) is_mapped: bool,
    pub(crate) is_connected: bool,
    kind: Kind,
    pub(crate) bind: Option<Ipv4Addr>,
    /// SO_BINDTODEVICE.
    device: Option<String>,
    /// IP_PKTINFO.
    pub(crate) departure: Option<Departure>,
    /// IP_UNICAST_IF.
    pub(crate) unicast_interface: Option<u32>,
    /// TCP_SYNCNT.
    retries: Option<u32>,
    /// The name that a datagram asks for, instead of "ping".
    pub(crate) name: Option<String>,
    pub(crate) timeout: Duration,
}

/// Ways to make a TCP connection.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Plain,
    /// MPTCP, which falls back where the other end has none.
    Multipath,
    /// The first write connects (`MSG_FASTOPEN`).
    FastOpen,
    /// Connects, disconnects by AF_UNSPEC, and connects again.
    Again,
}

impl Options {
    pub(crate) fn new() -> Self {
        Self {
            is_nonblocking: false,
            is_mapped: false,
            is_connected: false,
            kind: Kind::Plain,
            bind: None,
            device: None,
            departure: None,
            unicast_interface: None,
            retries: None,
            name: None,
            timeout: PATIENCE,
        }
    }

    pub(crate) fn parse(flags: &[&str]) -> Self {
        let mut options = Self::new();
        for flag in flags {
            match flag.split_once('=') {
                None if *flag == "nonblocking" => options.is_nonblocking = true,
                None if *flag == "mapped" => options.is_mapped = true,
                None if *flag == "connected" => options.is_connected = true,
                None if *flag == "mptcp" => options.kind = Kind::Multipath,
                None if *flag == "fastopen" => options.kind = Kind::FastOpen,
                None if *flag == "again" => options.kind = Kind::Again,
                Some(("bind", address)) => {
                    options.bind = Some(address.parse().expect("an address"))
                }
                Some(("device", name)) => options.device = Some((*name).to_owned()),
                Some(("source", address)) => {
                    options.departure.get_or_insert_default().source =
                        Some(address.parse().expect("an address"));
                }
                Some(("interface", index)) => {
                    options.departure.get_or_insert_default().interface =
                        index.parse().expect("a number");
                }
                Some(("unicast-interface", index)) => {
                    options.unicast_interface = Some(index.parse().expect("a number"));
                }
                Some(("retries", count)) => {
                    options.retries = Some(count.parse().expect("a number"))
                }
                Some(("name", name)) => options.name = Some((*name).to_owned()),
                Some(("timeout", ms)) => {
                    options.timeout = Duration::from_millis(ms.parse().expect("a number"));
                }
                _ => panic!("no such flag: {flag}"),
            }
        }

        options
    }
}

/// The reason of a failed connection.
#[derive(PartialEq, Eq)]
pub(crate) enum Failed {
    Kernel(Errno),
    /// The kernel was still trying after [`Options::timeout`]. Reported as ETIMEDOUT.
    OwnBound,
}

impl Failed {
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Kernel(errno) => name(*errno),
            Self::OwnBound => name(Errno::TIMEDOUT),
        }
    }
}

impl From<Errno> for Failed {
    fn from(errno: Errno) -> Self {
        Self::Kernel(errno)
    }
}

pub(crate) fn open(options: &Options, target: SocketAddr) -> Result<OwnedFd, Failed> {
    let family = if target.is_ipv6() {
        AddressFamily::INET6
    } else {
        AddressFamily::INET
    };
    let mut flags = SocketFlags::CLOEXEC;
    if options.is_nonblocking {
        flags |= SocketFlags::NONBLOCK;
    }
    let protocol = (options.kind == Kind::Multipath).then_some(ipproto::MPTCP);
    let socket = socket_with(family, SocketType::STREAM, flags, protocol)?;
    if let Some(address) = options.bind {
        let address = if options.is_mapped {
            IpAddr::from(address.to_ipv6_mapped())
        } else {
            address.into()
        };
        bind(&socket, &SocketAddr::from((address, 0)))?;
    }
    if let Some(device) = &options.device {
        sys::bind_to_device(&socket, device).map_err(|error| by_the_kernel(&error))?;
    }
    if let Some(retries) = options.retries {
        sys::set_syn_retries(&socket, retries).map_err(|error| by_the_kernel(&error))?;
    }
    if !options.is_nonblocking {
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(options.timeout))?;
    }
    match options.kind {
        Kind::Plain | Kind::Multipath => establish(options, &socket, target)?,
        Kind::FastOpen => {
            let flag = SendFlags::from_bits_retain(libc::MSG_FASTOPEN.cast_unsigned());
            // Echoed after the greeting.
            sendto(&socket, b"first\n", flag, &target)?;
        }
        Kind::Again => {
            establish(options, &socket, target)?;
            connect_unspec(&socket)?;
            establish(options, &socket, target)?;
        }
    }

    Ok(socket)
}

fn by_the_kernel(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).expect("the kernel says why")
}

fn establish(options: &Options, socket: &OwnedFd, target: SocketAddr) -> Result<(), Failed> {
    match connect(socket, &target) {
        Err(Errno::INPROGRESS) if options.is_nonblocking => {
            let timeout = Timespec::try_from(options.timeout).expect("short");
            let mut fds = [PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::OUT)];
            if poll(&mut fds, Some(&timeout))? == 0 {
                return Err(Failed::OwnBound);
            }
            sockopt::socket_error(socket)??;
            Ok(())
        }
        // A blocking connect returns this when its timeout has passed.
        Err(Errno::INPROGRESS) => Err(Failed::OwnBound),
        result => Ok(result?),
    }
}

pub(crate) fn destination(options: &Options, target: &str) -> SocketAddr {
    let target: SocketAddr = target.parse().expect("an address");
    match (options.is_mapped, target) {
        (true, SocketAddr::V4(v4)) => {
            SocketAddrV6::new(v4.ip().to_ipv6_mapped(), v4.port(), 0, 0).into()
        }
        _ => target,
    }
}

pub(crate) fn canonical(address: SocketAddr) -> String {
    let ip: IpAddr = address.ip().to_canonical();

    SocketAddr::new(ip, address.port()).to_string()
}

pub(crate) fn errno(error: &std::io::Error) -> String {
    error.raw_os_error().map_or_else(
        || error.to_string(),
        |code| name(Errno::from_raw_os_error(code)),
    )
}

pub(crate) fn name(errno: Errno) -> String {
    let name = match errno {
        Errno::CONNREFUSED => "ECONNREFUSED",
        Errno::HOSTUNREACH => "EHOSTUNREACH",
        Errno::NETUNREACH => "ENETUNREACH",
        Errno::TIMEDOUT => "ETIMEDOUT",
        Errno::AGAIN => "EAGAIN",
        Errno::PERM => "EPERM",
        Errno::ACCESS => "EACCES",
        Errno::CONNABORTED => "ECONNABORTED",
        Errno::CONNRESET => "ECONNRESET",
        other => return format!("{other:?}"),
    };

    name.to_owned()
}
