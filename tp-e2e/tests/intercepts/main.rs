//! A workload's traffic comes to the workstation, and goes back to its pods.

mod failures;
mod kinds;
mod life;
mod local;
mod others;
mod support;
mod words;
