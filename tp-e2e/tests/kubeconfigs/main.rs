//! Every kubeconfig that works for kubectl works for `tp`, and a broken one gets an error that
//! names the cause: each is tried with both.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

mod files;
mod gateways;
mod login;
mod plugins;
mod proxies;
mod shells;
mod support;
