//! What a background program of `tp` does as a process, whichever of them it is: it lets go of
//! whoever started it, holds locks that end with it, and raises its limits.
//!
//! Knows no session and no protocol.

#![deny(unsafe_code)]

pub mod background;
pub mod lock;
pub mod owner;

mod limits;
#[expect(unsafe_code, reason = "system calls without a safe wrapper")]
mod sys;

pub use limits::raise_descriptors;
