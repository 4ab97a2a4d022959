//! Loads the eBPF programs, attaches them and speaks to their maps, in `std::net` types.
//!
//! Nothing is pinned: what was attached goes when the value that attached it is dropped, or when
//! the process dies.

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
pub use maps::{CounterValue, NEVER_STEERED, is_map_alive};
pub use plan::{CgroupScope, Interfaces, Plan, UserScope};
pub use tp_ebpf_common::{ALIAS_TABLE_LEN, Counter, CounterKind, FIRST_ALIAS_INDEX, KernelOffsets};
