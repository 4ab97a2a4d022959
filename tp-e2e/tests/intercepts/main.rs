//! A workload's traffic comes to the workstation, and goes back to its pods.

mod life;
mod others;
mod support;
mod words;
