//! The network namespace of a pod, and the sockets that we make in it.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    thread,
};

use rustix::{
    io::Errno,
    net::{
        AddressFamily, SocketFlags, SocketType, bind, listen, socket_with,
        sockopt::{set_ip_freebind, set_ipv6_freebind, set_ipv6_v6only},
    },
    thread::{CapabilitySet, LinkNameSpaceType, move_into_link_name_space},
};
use socket2::SockRef;

use crate::{own_addresses, pod_error::PodError};

/// The listeners have addresses that no packet is delivered to (RFC 7600, RFC 6666): nothing but the
/// program leads to them.
const NOWHERE4: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(192, 0, 0, 8), 0);
const NOWHERE6: SocketAddrV6 =
    SocketAddrV6::new(Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 1), 0, 0, 0);

/// Attempts to bind the ports of listeners outside of the range that the kernel gives out.
const BIND_ATTEMPTS: usize = 64;
const FIRST_UNPRIVILEGED_PORT: u16 = 1024;
const PORT_RANGE: &str = "/proc/sys/net/ipv4/ip_local_port_range";

/// Of the listeners, and so of what they accept: the kernel tells it of each connection. No rule of a pod
/// is known to look at these bits.
pub(crate) const ACCEPTED_MARK: u32 = 0x7400_0000;

/// Routes of a pod are few; more than this is not read.
const MAX_LIST: u64 = 1 << 20;

/// The kernel lowers it to `net.core.somaxconn` of the namespace.
const BACKLOG: i32 = 4096;

#[derive(Debug)]
pub(crate) struct PodNetns {
    fd: OwnedFd,
    id: FileId,
}

/// Device and inode: a namespace has the same ones however it is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct FileId(u64, u64);

impl FileId {
    pub(crate) fn of(fd: impl AsFd) -> io::Result<Self> {
        let found = rustix::fs::fstat(fd)?;

        Ok(Self(found.st_dev, found.st_ino))
    }
}

/// The sockets that accept for all ports of a pod.
pub(crate) struct PodListeners {
    pub(crate) v4: OwnedFd,
    /// `None` if the kernel has no IPv6.
    pub(crate) v6: Option<OwnedFd>,
}

impl PodNetns {
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        let id = FileId::of(&fd)?;

        Ok(Self { fd, id })
    }

    pub(crate) fn id(&self) -> FileId {
        self.id
    }

    pub(crate) fn again(&self) -> io::Result<Self> {
        let fd = self.fd.try_clone()?;

        Ok(Self { fd, id: self.id })
    }

    /// Listens at ports other than `ports`, which the container is to find free.
    pub(crate) fn listeners(&self, ports: &BTreeMap<u16, bool>) -> Result<PodListeners, PodError> {
        let needed = CapabilitySet::NET_ADMIN;
        self.run("listen in the network of the pod", needed, || {
            // Of the namespace of whoever opens it.
            let range = fs::read_to_string(PORT_RANGE).unwrap_or_default();
            let candidates: Vec<u16> = outside(&range)
                .filter(|port| !ports.contains_key(port))
                .take(BIND_ATTEMPTS)
                .collect();
            let v4 = stream(AddressFamily::INET)?;
            SockRef::from(&v4).set_mark(ACCEPTED_MARK)?;
            set_ip_freebind(&v4, true)?;
            bind_one(&v4, NOWHERE4.into(), &candidates)?;
            listen(&v4, BACKLOG)?;

            Ok(PodListeners {
                v4,
                v6: listener6(&candidates)?,
            })
        })
    }

    /// A TCP socket that is neither bound nor connected, and does not block.
    pub(crate) fn socket(&self, ipv6: bool) -> Result<OwnedFd, PodError> {
        let needed = CapabilitySet::empty();
        self.run("make a socket in the network of the pod", needed, || {
            let family = if ipv6 {
                AddressFamily::INET6
            } else {
                AddressFamily::INET
            };
            let socket = stream(family)?;
            if ipv6 {
                set_ipv6_v6only(&socket, true)?;
            }
            Ok(socket)
        })
    }

    /// The pod's addresses but for those of loopback.
    pub(crate) fn addresses(&self) -> Result<Vec<IpAddr>, PodError> {
        self.run(
            "read the addresses of the pod",
            CapabilitySet::empty(),
            || {
                let mut addresses = own_addresses::v4(&list("fib_trie"));
                addresses.extend(own_addresses::v6(&list("if_inet6")));
                Ok(addresses)
            },
        )
    }

    /// Runs `work`, which does `what`, on a thread inside the namespace. `needed` are the capabilities
    /// that it takes there.
    pub(crate) fn run<T: Send>(
        &self,
        what: &str,
        needed: CapabilitySet,
        work: impl FnOnce() -> io::Result<T> + Send,
    ) -> Result<T, PodError> {
        let inside = || {
            let network = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(self.fd.as_fd(), network).map_err(|errno| {
                let entering = "enter the network of the pod";
                PodError::step(entering, &errno.into(), CapabilitySet::SYS_ADMIN)
            })?;
            work().map_err(|error| PodError::step(what, &error, needed))
        };
        thread::scope(|scope| {
            thread::Builder::new()
                .name("netns".to_owned())
                .spawn_scoped(scope, inside)?
                .join()
                .unwrap_or_else(|_| {
                    Err(io::Error::other("a thread inside a namespace panicked").into())
                })
        })
    }
}

impl AsFd for PodNetns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A file about the network namespace of this thread; empty if the kernel has none.
fn list(name: &str) -> String {
    let mut text = String::new();
    let read = File::open(format!("/proc/thread-self/net/{name}"))
        .and_then(|file| file.take(MAX_LIST).read_to_string(&mut text));
    if let Err(error) = read {
        tracing::debug!(name, %error, "Addresses of a pod are not known");
    }

    text
}

/// The ports that `ip_local_port_range` leaves, the highest first. A program that listens at all
/// addresses of the pod cannot have the port of a listener, and least expects so there.
fn outside(range: &str) -> impl Iterator<Item = u16> {
    let mut ends = range.split_whitespace().map(str::parse::<u16>);
    let taken = match (ends.next(), ends.next()) {
        (Some(Ok(first)), Some(Ok(last))) => first..=last,
        _ => 0..=u16::MAX,
    };

    (FIRST_UNPRIVILEGED_PORT..=u16::MAX)
        .rev()
        .filter(move |port| !taken.contains(port))
}

/// Binds the first of these ports that is free, or one of the kernel's choice.
fn bind_one(socket: &OwnedFd, mut address: SocketAddr, ports: &[u16]) -> io::Result<()> {
    for port in ports {
        address.set_port(*port);
        match bind(socket, &address) {
            Err(Errno::ADDRINUSE | Errno::ACCESS) => {}
            bound => return Ok(bound?),
        }
    }
    address.set_port(0);

    Ok(bind(socket, &address)?)
}

fn listener6(ports: &[u16]) -> io::Result<Option<OwnedFd>> {
    let socket = match stream(AddressFamily::INET6) {
        Err(error) if error.raw_os_error() == Some(Errno::AFNOSUPPORT.raw_os_error()) => {
            return Ok(None);
        }
        made => made?,
    };
    SockRef::from(&socket).set_mark(ACCEPTED_MARK)?;
    set_ipv6_v6only(&socket, true)?;
    set_ipv6_freebind(&socket, true)?;
    bind_one(&socket, NOWHERE6.into(), ports)?;
    listen(&socket, BACKLOG)?;

    Ok(Some(socket))
}

fn stream(family: AddressFamily) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;

    Ok(socket_with(family, SocketType::STREAM, flags, None)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_leave_the_ports_that_the_kernel_gives_out() {
        let first = |range: &str| outside(range).next();

        assert_eq!(first("32768\t60999\n"), Some(65535));
        assert_eq!(first("32768\t65535\n"), Some(32767));
        assert_eq!(first("1024\t65534\n"), Some(65535));
        assert_eq!(first("1\t65535\n"), None);
        assert_eq!(first(""), None);
    }
}
