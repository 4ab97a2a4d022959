//! The connection to the local process, and who it is told has connected: the client, not this session.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    os::fd::AsFd as _,
    sync::{Arc, Mutex, atomic::AtomicU64},
    time::Duration,
};

use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpSocket, TcpStream},
    time::{Instant, timeout},
};
use tp_core::intercept::proxy_protocol;
use tp_process::sync::lock;
use tp_root_api::Request;
use tp_transport::InterceptedFrom;

use super::super::{root_link::RootLink, shared::count};

/// The root daemon answers within a tenth of a millisecond, unless it is at work for somebody; a
/// connection waits no longer than this for it, and what it is told then is wrong.
const ROOT_TIMEOUT: Duration = Duration::from_millis(500);
/// A root daemon that did not answer in time is not asked again for so long.
const ROOT_BACKOFF: Duration = Duration::from_secs(1);

/// Where connections to a port go, and how they begin.
#[derive(Debug, Clone)]
pub(super) struct LocalTarget {
    pub(super) address: SocketAddr,
    /// A header of the PROXY protocol precedes the bytes of the client.
    pub(super) proxy_protocol: bool,
    /// Connections whose client the process was to be shown, and was not.
    pub(super) unshown: Arc<AtomicU64>,
}

/// Has the root daemon show clients to local processes.
pub(super) struct ClientRegistry {
    root: Arc<RootLink>,
    /// It did not answer in time, and is left alone until then.
    silent_until: Mutex<Option<Instant>>,
}

/// Connects to the local process for a client.
pub(super) async fn dial(
    target: LocalTarget,
    from: &InterceptedFrom,
    clients: Option<&ClientRegistry>,
) -> io::Result<TcpStream> {
    let LocalTarget {
        address,
        proxy_protocol,
        unshown,
    } = target;
    if proxy_protocol {
        let mut tcp = TcpStream::connect(address).await?;
        tcp.write_all(&proxy_protocol::header(from.client, from.pod))
            .await?;
        return Ok(tcp);
    }
    let registered = match clients {
        Some(clients) => clients.register(address, from.client, &unshown).await,
        None => None,
    };

    match registered {
        Some(socket) => socket.connect(address).await,
        None => TcpStream::connect(address).await,
    }
}

impl ClientRegistry {
    pub(super) fn new(root: Arc<RootLink>) -> Self {
        Self {
            root,
            silent_until: Mutex::default(),
        }
    }

    /// A socket by which the process at `target` is shown `client`; `None` if it is not to be, or if the
    /// root daemon does not do it, which is counted.
    async fn register(
        &self,
        target: SocketAddr,
        client: SocketAddr,
        unshown: &AtomicU64,
    ) -> Option<TcpSocket> {
        let socket = socket_to(target)
            .inspect_err(|error| tracing::debug!(%target, %error, "Client is not shown"))
            .ok()??;
        if self.show(&socket, target, client).await {
            return Some(socket);
        }
        count(unshown);

        None
    }

    async fn show(&self, socket: &TcpSocket, target: SocketAddr, client: SocketAddr) -> bool {
        let client = SocketAddr::new(client.ip().to_canonical(), client.port());
        // A socket of one family has no form for an address of the other.
        if client.is_ipv4() != target.is_ipv4() || self.is_silent() {
            return false;
        }
        let Ok(copy) = socket.as_fd().try_clone_to_owned() else {
            return false;
        };
        let asked = self.root.call(Request::ShowClient { client }, Some(copy));
        match timeout(ROOT_TIMEOUT, asked).await {
            Ok(Ok(_)) => true,
            Ok(Err(fault)) => {
                tracing::debug!(%target, %fault, "Client is not shown");
                false
            }
            // Its copy would keep a connection open that is to end.
            Err(_) => {
                tracing::debug!(%target, "Client is not shown: the root daemon is busy");
                *lock(&self.silent_until) = Some(Instant::now() + ROOT_BACKOFF);
                false
            }
        }
    }

    fn is_silent(&self) -> bool {
        lock(&self.silent_until).is_some_and(|until| Instant::now() < until)
    }
}

/// A socket that will connect from the very address that it connects to: by that the programs know
/// which sockets to look at. `None` if `target` is another machine's.
fn socket_to(target: SocketAddr) -> io::Result<Option<TcpSocket>> {
    let socket = match target {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    match target.ip() {
        IpAddr::V4(Ipv4Addr::LOCALHOST) | IpAddr::V6(Ipv6Addr::LOCALHOST) => {}
        // The kernel would connect from 127.0.0.1.
        ip if ip.is_loopback() => socket.bind(SocketAddr::new(ip, 0))?,
        ip if source_to(target)? == ip => {}
        _ => return Ok(None),
    }

    Ok(Some(socket))
}

/// The address from which the kernel would connect to `target`.
fn source_to(target: SocketAddr) -> io::Result<IpAddr> {
    let any: IpAddr = match target {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    // Sends nothing.
    socket.connect(target)?;

    Ok(socket.local_addr()?.ip())
}

#[cfg(test)]
mod tests;
