//! A relay between a client's UDP and the server.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};

use tokio::net::UdpSocket;
use tokio_util::task::AbortOnDropHandle;

/// The end that a datagram comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Client,
    Server,
}

/// Carries datagrams both ways, until it is dropped.
pub(crate) struct Relay {
    pub(crate) address: SocketAddr,
    _task: AbortOnDropHandle<()>,
}

impl Relay {
    /// To the server that `far` is connected to; `passes` says which datagrams.
    pub(crate) async fn start(
        far: Arc<UdpSocket>,
        passes: impl Fn(End, &[u8]) -> bool + Send + 'static,
    ) -> Self {
        let near = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = near.local_addr().unwrap();
        let task = tokio::spawn(async move {
            let (mut up, mut down) = ([0; 2048], [0; 2048]);
            let mut client = None;
            loop {
                tokio::select! {
                    Ok((length, from)) = near.recv_from(&mut up) => {
                        client = Some(from);
                        if passes(End::Client, &up[..length]) {
                            let _ = far.send(&up[..length]).await;
                        }
                    }
                    Ok(length) = far.recv(&mut down) => {
                        if passes(End::Server, &down[..length]) && let Some(client) = client {
                            let _ = near.send_to(&down[..length], client).await;
                        }
                    }
                }
            }
        });

        Self {
            address,
            _task: AbortOnDropHandle::new(task),
        }
    }
}

/// A socket of the loopback that is connected to the server.
pub(crate) async fn connected_to(server: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    socket.connect(server).await.unwrap();

    socket
}
