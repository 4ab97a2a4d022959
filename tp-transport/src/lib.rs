//! The tunnel between a session and one replica of the traffic manager.
//!
//! One QUIC connection per session travels over two interchangeable paths: a framed byte stream
//! through the API server (the stream path, [`PathKind::Stream`]) and UDP (the UDP path, [`PathKind::Udp`]). The
//! handshake happens on the stream path only; a live connection moves between the paths and no flow notices.
//! Client: [`Tunnel`]. Server: [`TunnelServer`]. One stream: [`Flow`]; a TCP connection tied to it:
//! [`mod@splice`]. Keys and pins: [`Identity`], [`KeyHash`].
//!
//! This crate does not know Kubernetes. The server's [`Admission`] decides who is admitted, and
//! [`tp_core::path`] which path is used.
//!
//! # Example
//!
//! Both ends in one process, with a pipe between them for the stream path and no UDP. The client dials an
//! address in the cluster, and the server accepts the flow without a connection behind it.
//!
//! ```
//! use std::sync::Arc;
//!
//! use tp_transport::{
//!     Accepted, Admission, CloseCode, Dialed, Identity, KeyHash, PathChoice, Refusal, SessionRef,
//!     Tunnel, TunnelConfig, TunnelServer,
//! };
//!
//! /// Admits one session with one key.
//! struct OneSession(SessionRef, KeyHash);
//!
//! impl Admission for OneSession {
//!     fn known(&self, session: &SessionRef) -> Result<(), Refusal> {
//!         match *session == self.0 {
//!             true => Ok(()),
//!             false => Err(Refusal::new("there is no such session")),
//!         }
//!     }
//!
//!     fn admit(&self, session: &SessionRef, key: &KeyHash) -> Result<(), Refusal> {
//!         self.known(session)?;
//!         match *key == self.1 {
//!             true => Ok(()),
//!             false => Err(Refusal::new("the Session has another key")),
//!         }
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let (client_key, manager_key) = (Identity::generate()?, Identity::generate()?);
//! let session = SessionRef {
//!     namespace: "shop".into(),
//!     name: "alice".into(),
//!     uid: "6f1c7b0a-0000-4000-8000-000000000001".into(),
//! };
//! let config = TunnelConfig {
//!     identity: client_key.clone(),
//!     session: session.clone(),
//!     manager_key: manager_key.key_hash(),
//!     choice: PathChoice::StreamOnly,
//! };
//! let admission = Arc::new(OneSession(session, client_key.key_hash()));
//! let server = TunnelServer::bind(None, manager_key, admission)?;
//!
//! let (near, far) = tokio::io::duplex(64 << 10);
//! let attached = Arc::clone(&server);
//! tokio::spawn(async move { attached.attach(far).await });
//! let serving = tokio::spawn(async move {
//!     let peer = server.accept().await?;
//!     match peer.accept().await? {
//!         Accepted::Dial { pending, .. } => {
//!             let (mut send, _recv) = pending.accept().await.ok()?.split();
//!             send.write_all(b"hello").await.ok()?;
//!             send.finish();
//!             send.stopped().await.ok()
//!         }
//!         Accepted::Control(_) => None,
//!     }
//! });
//!
//! let tunnel = Tunnel::connect(near, config).await?;
//! let Dialed::Connected(flow) = tunnel.dial("10.96.1.2:80".parse()?).await? else {
//!     return Err("the far side refuses the dial".into());
//! };
//! let (_send, mut recv) = flow.split();
//! let mut read = Vec::new();
//! while let Some(bytes) = recv.read_chunk(1024).await? {
//!     read.extend_from_slice(&bytes);
//! }
//! assert_eq!(read, b"hello");
//! serving.await?;
//! tunnel.close(CloseCode::Quit).await;
//! # Ok(())
//! # }
//! ```

#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod agents;
pub mod splice;

mod admission;
mod client;
mod codes;
mod congestion;
mod credit;
mod flow;
mod framed;
mod keys;
mod message;
mod mux;
mod outcome;
mod preface;
mod probe;
mod quic;
mod server;
mod status;
mod tls;

pub use tp_core::path::{PathChoice, PathKind, monitor::CandidateStatus};
pub use {
    admission::{Admission, Refusal},
    client::{ConnectError, OpenError, Tunnel, TunnelConfig},
    codes::{CloseCode, ResetCode},
    flow::{
        Accepted, Dialed, Flow, FlowError, FlowIo, Intercepted, InterceptedFrom, PendingFlow,
        RecvHalf, SendHalf,
    },
    framed::tune_link,
    keys::{AnotherKey, Identity, KeyError, KeyHash, SessionRef},
    mux::udp::{UdpFacts, udp_facts},
    outcome::dial_outcome,
    server::{AttachError, BindError, Peer, SESSION_GONE_AFTER, TunnelServer},
    splice::{SpliceCounters, SpliceEnd, keep_alive, splice, splice_observed},
    status::{ClosedReason, PathStatus, TunnelStats},
};
