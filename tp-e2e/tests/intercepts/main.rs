//! A workload's traffic comes to the workstation, and goes back to its pods.

mod client;
mod environment;
mod failures;
mod kinds;
mod life;
mod local;
mod open;
mod others;
mod support;
mod words;
