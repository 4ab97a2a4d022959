//! Loads the eBPF programs, attaches them and uses their maps, in `std::net` types.
//!
//! Nothing is pinned: an attachment ends when the value that made it is dropped, or when the process
//! dies. [`DataPath`] lists the hooks and the kernels that have them.
//!
//! ```no_run
//! use std::{fs::File, net::Ipv4Addr, os::unix::fs::MetadataExt};
//!
//! use tp_ebpf_loader::{AliasBlock, DataPath, Interfaces, SessionMaps, SessionPlan, kernel_offsets};
//!
//! let hierarchy = File::open("/sys/fs/cgroup")?;
//! let root = hierarchy.metadata()?.ino();
//! let mut data_path = DataPath::load(c"tp-daemon", kernel_offsets()?, root)?;
//! data_path.attach_cgroup(hierarchy)?;
//!
//! let slot = 0;
//! let maps = SessionMaps::create()?;
//! let aliases = AliasBlock {
//!     base4: u32::from(Ipv4Addr::new(243, 2, 0, 0)),
//!     base6: "fd5a:1234:5678:1::".parse()?,
//!     count: 65536,
//! };
//! // Here the way to the aliases is made: `attach_inner`, `attach_host`.
//! let (maps, mut networks, _aliases) = maps.into_parts(aliases)?;
//! data_path.maps().slots()?.put(slot, &maps)?;
//! let plan = SessionPlan {
//!     id: 1,
//!     netns: 1,
//!     cgroup: None,
//!     user: None,
//!     udp: false,
//!     aliases,
//!     interfaces: Interfaces::default(),
//! };
//! data_path.maps_mut().announce(slot, &plan)?;
//! networks.set("10.96.0.0/16".parse()?, Some(true))?;
//! // Here a scope and its candidates lead to the session: `set_scope`, `set_candidate`.
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! ```

#![warn(missing_docs)]

mod aliases;
mod btf;
mod data_path;
mod error;
mod fds;
mod map;
mod maps;
mod pod;
mod session;
mod slots;

pub use aliases::{AliasBlock, Aliases, UsedAlias};
pub use btf::kernel_offsets;
pub use data_path::{DataPath, SessionLinks};
pub use error::{BtfError, LoadError, MapError};
pub use maps::{CounterValue, Maps, ScopeTask, is_map_alive};
pub use pod::{PodPortCounters, PodRedirect};
pub use session::{Interfaces, Networks, SessionMaps, SessionPlan, UserScope};
pub use slots::{SlotMaps, Slots};
pub use tp_ebpf_common::{
    ALIAS_TABLE_LEN, Counter, CounterKind, FIRST_ALIAS_INDEX, KernelOffsets, MAX_CGROUP_LEVELS,
    MAX_PER_SCOPE, MAX_POD_PORTS, MAX_SESSIONS, PodCounter,
};
