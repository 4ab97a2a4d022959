//! Loads the eBPF programs, attaches them and uses their maps, in `std::net` types.
//!
//! Nothing is pinned: an attachment ends when the value that made it is dropped, or when the process
//! dies. [`DataPath`] lists the hooks and the kernels that have them.
//!
//! ```no_run
//! use std::{fs::File, net::Ipv4Addr};
//!
//! use tp_ebpf_loader::{DataPath, Plan, kernel_offsets};
//!
//! # fn cookie() -> u64 { 1 }
//! let plan = Plan {
//!     netns_cookie: cookie(),
//!     exempt: c"tp-daemon",
//!     alias_base: u32::from(Ipv4Addr::new(243, 2, 0, 0)),
//!     alias_count: 65536,
//!     offsets: kernel_offsets()?,
//!     ..Plan::default()
//! };
//! let mut data_path = DataPath::load(&plan)?;
//! data_path.maps_mut().steer(&["10.96.0.0/16".parse()?], &[])?;
//! // Before this, make the link to the aliases: `attach_inner`, `attach_host`.
//! data_path.attach_cgroup(File::open("/sys/fs/cgroup")?)?;
//! println!("{}", data_path.hooks().join(", "));
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! ```

#![warn(missing_docs)]

mod aliases;
mod btf;
mod bundle;
mod error;
mod fds;
mod map;
mod maps;
mod plan;

pub use aliases::{Aliases, UsedAlias};
pub use btf::kernel_offsets;
pub use bundle::DataPath;
pub use error::{BtfError, LoadError, MapError};
pub use maps::{CounterValue, Maps, NEVER_STEERED, is_map_alive};
pub use plan::{CgroupScope, Interfaces, Plan, UserScope};
pub use tp_ebpf_common::{ALIAS_TABLE_LEN, Counter, CounterKind, FIRST_ALIAS_INDEX, KernelOffsets};
