//! The node agent: redirects intercepted ports inside the pods of its node, and carries what is
//! accepted there to the traffic managers. It has no power of its own; `tp-agentd` has.
//!
//! `knowledge` turns Kubernetes objects into [`facts`]; `plan` says what follows from them and from the
//! managers' leases; `redirects` carries that out. `environ` answers questions for environments.

#![forbid(unsafe_code)]

pub mod environ;
pub mod facts;

mod agentd;
mod args;
mod connections;
mod knowledge;
mod leases;
mod managers;
mod places;
mod plan;
mod probes;
mod redirects;
mod reports;
mod runtime;

pub use {
    args::AgentArgs,
    runtime::{NodeAgent, run},
};
