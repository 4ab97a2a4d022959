//! The tunnel between a session and one replica of the traffic manager, and the unix socket
//! between `tp` and its session.
//!
//! One QUIC connection per session travels over two interchangeable paths: a framed byte stream
//! through the API server (path T, [`PathKind::Stream`]) and UDP (path U, [`PathKind::Udp`]). The
//! handshake happens on T only; a live connection moves between the paths and no flow notices.
//! Client: [`client::Tunnel`]. Server: [`server::TunnelServer`]. What a stream carries:
//! [`flow`]; how a TCP connection is tied to it: [`splice`]. Keys and pins: [`keys`].
//!
//! Nothing here knows Kubernetes, and nothing here decides who is admitted: the server asks its
//! [`server::Admission`].

#![forbid(unsafe_code)]

#[cfg(feature = "quic")]
pub mod client;
#[cfg(feature = "quic")]
pub mod codes;
#[cfg(feature = "quic")]
pub mod flow;
#[cfg(feature = "ipc")]
pub mod ipc;
#[cfg(feature = "quic")]
pub mod keys;
#[cfg(feature = "quic")]
pub mod server;
#[cfg(feature = "quic")]
pub mod splice;
#[cfg(feature = "quic")]
pub mod status;

#[cfg(feature = "quic")]
mod batching;
#[cfg(feature = "quic")]
mod congestion;
#[cfg(feature = "quic")]
mod credit;
#[cfg(feature = "quic")]
mod framed;
#[cfg(feature = "quic")]
mod limits;
#[cfg(feature = "quic")]
mod monitor;
#[cfg(feature = "quic")]
mod mux;
#[cfg(feature = "quic")]
mod preface;
#[cfg(feature = "quic")]
mod probe;
#[cfg(feature = "quic")]
mod quic;
#[cfg(feature = "quic")]
mod tls;

#[cfg(feature = "quic")]
pub use {
    client::{ConnectError, Dialed, OpenError, PathChoice, Tunnel, TunnelConfig},
    codes::{CloseCode, ResetCode},
    flow::{Accepted, Flow, FlowError, FlowIo, PendingFlow, RecvHalf, SendHalf},
    framed::tune_link,
    keys::{Identity, KeyError, KeyHash, SessionRef},
    limits::raise_descriptors,
    monitor::CandidateStatus,
    mux::udp::{UdpFacts, udp_facts},
    server::{Admission, AttachError, BindError, Peer, Refusal, SILENCE_LIMIT, TunnelServer},
    splice::{SpliceCounters, SpliceEnd, keep_alive, splice, splice_observed},
    status::{ClosedReason, PathKind, PathStatus, TunnelStats},
};
