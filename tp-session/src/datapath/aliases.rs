//! The addresses that aliases stand for.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    sync::Arc,
};

use tp_root_api::Datapath;

use crate::sys::AliasTable;

/// Translates aliases of one data path.
#[derive(Clone)]
pub(crate) struct Aliases {
    table: Arc<AliasTable>,
    base: Ipv4Addr,
    count: u32,
}

impl Aliases {
    pub(super) fn new(table: AliasTable, datapath: &Datapath) -> Self {
        Self {
            table: Arc::new(table),
            base: datapath.alias_base,
            count: datapath.alias_count,
        }
    }

    /// The real address and port behind an alias.
    pub(crate) fn real(&self, alias: SocketAddrV4) -> Option<SocketAddrV4> {
        let index = index(*alias.ip(), self.base, self.count)?;

        Some(SocketAddrV4::new(self.table.real(index)?, alias.port()))
    }
}

/// The place of `address` among the aliases `base .. base + count`; `None` if it is not one.
fn index(address: Ipv4Addr, base: Ipv4Addr, count: u32) -> Option<u32> {
    u32::from(address)
        .checked_sub(u32::from(base))
        .filter(|index| *index < count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alias_has_an_index() {
        let base = Ipv4Addr::new(198, 18, 0, 0);

        assert_eq!(index(Ipv4Addr::new(198, 18, 1, 2), base, 65_536), Some(258));
        assert_eq!(index(Ipv4Addr::new(198, 19, 0, 0), base, 65_536), None);
        assert_eq!(index(Ipv4Addr::new(198, 17, 0, 0), base, 65_536), None);
    }
}
