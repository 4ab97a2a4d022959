//! Connections that sessions asked for to the container of a pod whose port they intercept. The agent of
//! the pod hands such a connection over like any other: it is told by the address that it comes from.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::{Arc, Mutex},
};

use tokio::net::TcpSocket;
use tp_process::sync::lock;
use tp_transport::SessionRef;

/// The sessions of these connections, by our own addresses. Each is a flow of its session, of which the
/// quotas of sessions and users admit so many, and a port of ours.
#[derive(Debug, Default)]
pub(crate) struct ContainerCalls(Mutex<BTreeMap<SocketAddr, SessionRef>>);

/// One connection, until it is dropped.
#[derive(Debug)]
pub(crate) struct ContainerCall {
    calls: Arc<ContainerCalls>,
    from: SocketAddr,
}

impl ContainerCalls {
    /// A socket that is known before it connects: an agent may hear of the connection first.
    ///
    /// # Errors
    ///
    /// If there is no route to `target`, or no free port.
    pub(crate) fn socket(
        self: &Arc<Self>,
        target: SocketAddr,
        session: &SessionRef,
    ) -> io::Result<(TcpSocket, ContainerCall)> {
        let socket = match target {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        socket.bind(SocketAddr::new(source_to(target)?, 0))?;
        let from = socket.local_addr()?;
        lock(&self.0).insert(from, session.clone());
        let calls = Arc::clone(self);

        Ok((socket, ContainerCall { calls, from }))
    }

    /// Returns whether the connection that comes from `client` is such a one of this session.
    pub(crate) fn has(&self, client: SocketAddr, session: &SessionRef) -> bool {
        lock(&self.0).get(&client) == Some(session)
    }
}

impl Drop for ContainerCall {
    fn drop(&mut self) {
        lock(&self.calls.0).remove(&self.from);
    }
}

/// Only looks a route up; sends nothing.
fn source_to(target: SocketAddr) -> io::Result<IpAddr> {
    let any: IpAddr = match target {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(target)?;

    Ok(socket.local_addr()?.ip())
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    fn session(name: &str) -> SessionRef {
        SessionRef {
            namespace: "shop".into(),
            name: name.into(),
            uid: name.into(),
        }
    }

    #[tokio::test]
    async fn a_call_is_known_before_it_connects_and_until_it_ends_to_its_session_alone() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = listener.local_addr().unwrap();
        let calls = Arc::new(ContainerCalls::default());
        let (alice, bob) = (session("alice"), session("bob"));

        let (socket, call) = calls.socket(target, &alice).unwrap();
        assert!(calls.has(socket.local_addr().unwrap(), &alice));
        let connecting = socket.connect(target);
        let (connected, accepted) = tokio::join!(connecting, listener.accept());
        let (connected, (_, from)) = (connected.unwrap(), accepted.unwrap());

        assert_eq!(connected.local_addr().unwrap(), from);
        assert!(calls.has(from, &alice));
        assert!(!calls.has(from, &bob));
        drop(call);
        assert!(!calls.has(from, &alice));
    }

    #[test]
    fn without_a_socket_of_its_own_nothing_is_known_of_a_call() {
        let calls = Arc::new(ContainerCalls::default());
        // No socket is connected to all.
        let target = "255.255.255.255:80".parse().unwrap();

        assert!(calls.socket(target, &session("alice")).is_err());
        assert!(lock(&calls.0).is_empty());
    }
}
