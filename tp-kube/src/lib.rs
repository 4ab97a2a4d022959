//! Where the API server is and as whom to talk to it, as the kubeconfig says, for the programs of
//! the workstation.

#![forbid(unsafe_code)]

mod kubeconfig;

pub use kubeconfig::{Choice, Chosen, of_environment};
