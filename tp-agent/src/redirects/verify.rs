//! Proves a redirect by a connection of our own: not everything that could keep traffic from it is
//! known beforehand.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use socket2::SockRef;
use tokio::{
    net::{TcpSocket, TcpStream},
    sync::mpsc,
    time::timeout,
};
use tp_agent_api::LeaseState;

use super::listeners::Doorway;

/// Of the wait for the connection, and then for its arrival.
const VERIFY_TIMEOUT: Duration = Duration::from_secs(2);
/// Connections from our port of other addresses that arrive at once.
const QUEUE: usize = 4;

/// What came of a connection of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Proof {
    /// It arrived at our listener.
    Taken,
    /// It was refused, as the lease says.
    Refused,
    /// Something else took it.
    Bypassed,
    /// Nothing did.
    Unseen,
}

pub(super) async fn verify(
    doorway: Arc<Doorway>,
    target: SocketAddr,
    state: LeaseState,
    exempt: Vec<IpAddr>,
) -> Proof {
    let Some(socket) = bound(target.ip()) else {
        return Proof::Unseen;
    };
    let Ok(bound) = socket.local_addr() else {
        return Proof::Unseen;
    };
    let (sender, mut arriving) = mpsc::channel(QUEUE);
    doorway.expect(bound.port(), sender);
    let _expected = Expected(Arc::clone(&doorway), bound.port());
    match (timeout(VERIFY_TIMEOUT, socket.connect(target)).await, state) {
        (Ok(Ok(stream)), LeaseState::Redirect) => {
            let Some(own) = own_address(&stream) else {
                return Proof::Unseen;
            };
            let taken = async {
                while let Some(connection) = arriving.recv().await {
                    if connection.peer == own {
                        return true;
                    }
                    doorway.route(connection);
                }
                false
            };
            match timeout(VERIFY_TIMEOUT, taken).await {
                Ok(true) => Proof::Taken,
                // From here it is as a probe, or it waits.
                _ if exempt.contains(&own.ip()) || doorway.places().is_full(target.port()) => {
                    Proof::Unseen
                }
                _ => Proof::Bypassed,
            }
        }
        (Ok(Ok(stream)), _) => match own_address(&stream) {
            Some(own) if !exempt.contains(&own.ip()) => Proof::Bypassed,
            _ => Proof::Unseen,
        },
        (Ok(Err(error)), LeaseState::Refuse)
            if error.kind() == std::io::ErrorKind::ConnectionRefused =>
        {
            Proof::Refused
        }
        _ => Proof::Unseen,
    }
}

/// A socket with a port, which is known before anything can arrive from it.
fn bound(target: IpAddr) -> Option<TcpSocket> {
    let (socket, any): (_, IpAddr) = match target {
        IpAddr::V4(_) => (TcpSocket::new_v4(), Ipv4Addr::UNSPECIFIED.into()),
        IpAddr::V6(_) => (TcpSocket::new_v6(), Ipv6Addr::UNSPECIFIED.into()),
    };
    let socket = socket.ok()?;
    socket.bind((any, 0).into()).ok()?;

    Some(socket)
}

/// The address of our end, which is reset in the end.
fn own_address(stream: &TcpStream) -> Option<SocketAddr> {
    // It carries nothing, and need not linger.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));

    stream.local_addr().ok()
}

/// A port that is expected while this is there.
struct Expected(Arc<Doorway>, u16);

impl Drop for Expected {
    fn drop(&mut self) {
        self.0.forget(self.1);
    }
}
