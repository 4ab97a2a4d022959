//! The right to make a `Session`, and the Sessions that the manager accepts.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

mod forged;
mod policy;
mod renewal;
mod rights;
mod support;
