//! Who may make a `Session`, and which Sessions the manager believes.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

mod forged;
mod policy;
mod renewal;
mod rights;
mod support;
