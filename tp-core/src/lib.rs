//! Decisions of tp as values in and values out: which packet answers a held SYN, who answers a DNS
//! query, which path carries the tunnel, how long to wait before the next attempt.
//!
//! No I/O, no clock, no runtime: time comes in as an argument, packets and messages as bytes.
//!
//! ```
//! use std::net::Ipv4Addr;
//!
//! use tp_core::dns::{self, ClusterState, Limit, Query, ServiceEntry, Step, Zone};
//!
//! let address = Ipv4Addr::new(10, 96, 1, 2);
//! let mut zone = Zone::new("cluster.local", "shop", []);
//! zone.replace(["shop".to_owned()], vec!["10.96.0.0/16".parse()?]);
//! let web = ServiceEntry { addresses: vec![address.into()] };
//! zone.apply("shop", "web", web);
//! let step = |name| {
//!     let message = dns::question(name).unwrap_or_default();
//!     zone.decide(&Query::decode(message, Limit::Datagram), ClusterState::Reachable)
//! };
//!
//! // The table has the service, and nobody but the cluster has names below its domain.
//! let Step::Send(answer) = step("web") else { panic!() };
//! assert_eq!(dns::addresses(&answer, 1), [address]);
//! assert!(matches!(step("nothing.shop.svc.cluster.local"), Step::Send(_)));
//! // All other names are asked where the application asked for them.
//! assert_eq!(step("example.com"), Step::PassOn);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod alias;
pub mod backoff;
pub mod credit;
pub mod dns;
pub mod environment;
pub mod framing;
pub mod intercept;
pub mod keep_alive;
pub mod outside;
pub mod packet;
pub mod path;
pub mod sessions;
pub mod steering;
pub mod syn;
pub mod verdict;

/// Version of every program built from this workspace.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
