//! Process set-up of all background programs of `tp`: they detach from their parent, hold locks that
//! end with them, and raise their limits. For all crates: locks that ignore poisoning ([`sync`]), and
//! memory that is shared with the kernel ([`SharedWords`]).
//!
//! Knows no session and no protocol.
//!
//! ```no_run
//! use std::path::Path;
//!
//! use tp_process::{background, lock::Lock, raise_descriptors};
//!
//! # fn main() -> std::io::Result<()> {
//! background::enter(0o077);
//! raise_descriptors();
//! let lock = Lock::try_acquire(Path::new("/run/example.lock"))?;
//! if lock.is_none() {
//!     eprintln!("another one is running");
//! }
//! # Ok(())
//! # }
//! ```

#![deny(unsafe_code)]
#![warn(missing_docs)]

pub mod background;
pub mod lock;
pub mod owner;
pub mod sync;

mod limits;
#[expect(unsafe_code, reason = "system calls without a safe wrapper")]
mod sys;

pub use {limits::raise_descriptors, sys::SharedWords};
