//! Common parts of tests that need root, network namespaces or a cluster.
//!
//! Tests run the programs as a user does: as processes. A test whose requirements are missing
//! fails; it is never skipped. Every process started here ends with its guard, also when the test
//! program is killed.

#![deny(unsafe_code)]

pub mod api_server;
pub mod applied;
pub mod batches;
pub mod cluster;
pub mod conditions;
pub mod daemons;
pub mod datapath;
pub mod far_host;
pub mod files;
pub mod firewall;
pub mod installation;
pub mod link;
pub mod lock;
pub mod name_server;
pub mod netns;
pub mod objects;
#[expect(unsafe_code, reason = "an ioctl without a safe wrapper")]
pub mod private;
pub mod process;
pub mod programs;
pub mod readers;
pub mod sessions;
pub mod terminal;
pub mod transfers;
pub mod user;
pub mod workstation;
