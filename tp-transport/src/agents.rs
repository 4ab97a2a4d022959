//! Connections between the agents of nodes and a traffic manager: TLS 1.3 over TCP, one for each
//! intercepted connection, beside one for control.
//!
//! Inside a cluster QUIC's strengths count little, and its price per byte would be paid a second time.
//! The manager proves the key that the agent pins. The agent proves by a token who it is, once, on its
//! control connection, and gets a key there by which it proves itself on all others: such a carrier
//! costs no review, and waits, admitted, until it is used.

mod carry;
mod client;
mod link;
mod server;

pub use {
    carry::{carry, carry_on},
    client::{AgentControl, IdleCarrier, Ticket},
    link::{AgentError, AgentFlow, Receiver, Sender},
    server::{
        AdmittedAgent, AgentServer, AgentStream, Greeting, IncomingCarrier, IncomingConnection,
        ManagerControl,
    },
};

/// Bytes of the key of a control connection, and of the material that a carrier's proof is of.
const KEY_SIZE: usize = 32;
const PROOF_LABEL: &[u8] = b"EXPORTER-tp-agent-carrier";
