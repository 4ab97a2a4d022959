//! Every kubeconfig that serves kubectl serves `tp`, and what serves neither is named: each is tried
//! with both.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

mod files;
mod gateways;
mod login;
mod plugins;
mod proxies;
mod shells;
mod support;
