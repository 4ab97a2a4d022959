//! Both ends of the tunnel against each other, over real sockets on the loopback.

#![expect(clippy::unwrap_used, reason = "a failed step fails its test")]

mod batches;
mod credit;
mod flows;
mod golden;
mod handshake;
mod initials;
mod intercepted;
mod paths;
mod splices;
mod strangers;
mod support;
