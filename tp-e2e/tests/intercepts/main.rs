//! A workload's traffic comes to the workstation, and goes back to its pods.

mod life;
mod support;
mod words;
