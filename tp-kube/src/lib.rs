//! The API server as the programs of the workstation meet it: where the kubeconfig says, as whom
//! it says, and their refusals in sentences.

#![forbid(unsafe_code)]

mod client;
mod kubeconfig;

pub use kubeconfig::{Choice, Chosen, of_environment};

/// An error and its causes, each said once.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let cause = source.to_string();
        if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
        next = source.source();
    }

    text
}
