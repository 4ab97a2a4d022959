//! The addresses that aliases stand for.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddrV4},
    sync::Arc,
};

use tp_core::alias::ranges::alias_index;
use tp_root_api::Datapath;

use crate::sys::AliasTable;

/// Translates aliases of one data path.
#[derive(Clone)]
pub(crate) struct AliasMap {
    table: Arc<AliasTable>,
    base: Ipv4Addr,
    count: u32,
}

impl AliasMap {
    pub(super) fn new(table: AliasTable, datapath: &Datapath) -> Self {
        Self {
            table: Arc::new(table),
            base: datapath.alias_base,
            count: datapath.alias_count,
        }
    }

    /// The real address and port behind an alias.
    pub(crate) fn real(&self, alias: SocketAddrV4) -> Option<SocketAddrV4> {
        let index = alias_index(*alias.ip(), self.base, self.count)?;
        match self.table.real(index)? {
            IpAddr::V4(real) => Some(SocketAddrV4::new(real, alias.port())),
            IpAddr::V6(_) => None,
        }
    }
}
