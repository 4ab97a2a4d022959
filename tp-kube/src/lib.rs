//! Where the API server is and as whom to talk to it, as the kubeconfig says, for the programs of
//! the workstation.

#![forbid(unsafe_code)]

mod client;
mod config;
mod credential;
mod identity;
mod kubeconfig;
mod login;
mod plugin;
mod proxy;
mod server;
mod shell;
mod trust;

pub use credential::Credential;
pub use kubeconfig::{Choice, Chosen};
pub use plugin::Place;
pub use shell::Shell;
