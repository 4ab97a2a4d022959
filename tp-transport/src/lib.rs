//! The tunnel between a session and one replica of the traffic manager.
//!
//! One QUIC connection per session travels over two interchangeable paths: a framed byte stream
//! through the API server (path T, [`PathKind::Stream`]) and UDP (path U, [`PathKind::Udp`]). The
//! handshake happens on T only; a live connection moves between the paths and no flow notices.
//! Client: [`client::Tunnel`]. Server: [`server::TunnelServer`]. What a stream carries:
//! [`flow`]; how a TCP connection is tied to it: [`splice`]. Keys and pins: [`keys`].
//!
//! Nothing here knows Kubernetes, and nothing here decides who is admitted: the server asks its
//! [`Admission`].

#![forbid(unsafe_code)]

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
mod preface;
mod probe;
mod quic;
mod server;
mod status;
mod sync;
mod tls;

pub use tp_core::path::{PathChoice, PathKind, monitor::CandidateStatus};
pub use {
    admission::{Admission, Refusal},
    client::{ConnectError, Dialed, OpenError, Tunnel, TunnelConfig},
    codes::{CloseCode, ResetCode},
    flow::{Accepted, Flow, FlowError, FlowIo, PendingFlow, RecvHalf, SendHalf},
    framed::tune_link,
    keys::{AnotherKey, Identity, KeyError, KeyHash, SessionRef},
    mux::udp::{UdpFacts, udp_facts},
    server::{AttachError, BindError, Peer, SILENCE_LIMIT, TunnelServer},
    splice::{SpliceCounters, SpliceEnd, keep_alive, splice, splice_observed},
    status::{ClosedReason, PathStatus, TunnelStats},
};
