//! The root daemon's changes to the maps of the aliases.
//!
//! The life cycle of an alias is drawn and decided in `tp-core/src/alias.rs`. `ALIASES` has the
//! aliases in use, `RESTING` those in quarantine, `FREE` the free ones; the indices that `NEXT_ALIAS`
//! has not reached are fresh.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    ops::Range,
    sync::atomic::{AtomicU32, Ordering},
};

use aya::maps::{Array, HashMap, MapData, MapError as AyaError, Queue};
use ipnet::IpNet;
use tp_ebpf_common::{ALIAS_TABLE_LEN, Address, AliasUse, FIRST_ALIAS_INDEX};

use crate::{
    MapError,
    fds::{Access, Words},
    map::{
        ALIAS_TABLES, ALIAS_USES, ALIASES, FREE, NEXT_ALIAS, RESTING, address, broken, is_absent,
    },
};

/// Words of one [`AliasUse`].
const HANDED_OUT: usize = 0;
const IS_PINNED: usize = 1;
const USE_LEN: usize = 2;
/// Words of one address.
const REAL_LEN: usize = 4;

/// An alias that stands for an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UsedAlias {
    /// Its index in the alias table.
    pub index: u32,
    /// When a socket last received it, in units of 2^[`AliasUse::UNIT_BITS`] ns since boot.
    pub handed_out: u32,
    /// It must never stand for another address.
    pub is_pinned: bool,
}

/// The aliases of a session: of each index one address of each family.
#[derive(Clone, Copy, Debug)]
pub struct AliasBlock {
    /// The IPv4 alias with index 0, a multiple of 65536, in the machine's byte order: `u32::from`
    /// of an `Ipv4Addr`.
    pub base4: u32,
    /// The IPv6 alias with index 0; its last two bytes are 0.
    pub base6: Ipv6Addr,
    /// A power of two, at most 65536.
    pub count: u32,
}

impl AliasBlock {
    /// The networks of the aliases, of both families.
    pub(crate) fn networks(&self) -> [IpNet; 2] {
        let host_bits = self.count.ilog2() as u8;

        [
            IpNet::new_assert(Ipv4Addr::from(self.base4).into(), 32 - host_bits),
            IpNet::new_assert(self.base6.into(), 128 - host_bits),
        ]
    }

    /// As the programs look them up: without the last two bytes.
    pub(crate) fn ranges(&self) -> [Address; 2] {
        self.networks().map(|network| address(network.addr()))
    }
}

/// The maps of a session that are about aliases.
pub(crate) struct AliasMaps {
    pub(crate) in_use: HashMap<MapData, Address, u32>,
    pub(crate) resting: HashMap<MapData, Address, u32>,
    pub(crate) free: Queue<MapData, u32>,
    pub(crate) next: Array<MapData, u64>,
    pub(crate) table: MapData,
    pub(crate) uses: MapData,
}

/// The aliases of one session. They have no second owner: nobody else quarantines or frees them.
pub struct Aliases {
    in_use: HashMap<MapData, Address, u32>,
    resting: HashMap<MapData, Address, u32>,
    free: Queue<MapData, u32>,
    next: Array<MapData, u64>,
    reals: Words,
    uses: Words,
    block: AliasBlock,
}

impl Aliases {
    pub(crate) fn new(maps: AliasMaps, block: AliasBlock) -> Result<Self, MapError> {
        let mapped = |name, map: &MapData, words_each, access| {
            Words::map(map.fd(), ALIAS_TABLE_LEN * words_each, access)
                .map_err(|source| MapError::Descriptor { name, source })
        };

        Ok(Self {
            reals: mapped(ALIAS_TABLES, &maps.table, REAL_LEN, Access::Read)?,
            uses: mapped(ALIAS_USES, &maps.uses, USE_LEN, Access::ReadWrite)?,
            in_use: maps.in_use,
            resting: maps.resting,
            free: maps.free,
            next: maps.next,
            block,
        })
    }

    /// The indices of all aliases.
    pub fn indices(&self) -> Range<u32> {
        FIRST_ALIAS_INDEX..self.block.count.max(FIRST_ALIAS_INDEX)
    }

    /// The number of aliases that have ever stood for an address.
    ///
    /// # Errors
    ///
    /// Those of bpf(2).
    pub fn ever_used(&self) -> Result<u32, MapError> {
        let capacity = self.block.count.saturating_sub(FIRST_ALIAS_INDEX);
        let next = self.next.get(&0, 0).map_err(broken(NEXT_ALIAS))?;

        Ok(u32::try_from(next).map_or(capacity, |next| next.min(capacity)))
    }

    /// The aliases that stand for an address, in use or in quarantine.
    ///
    /// # Errors
    ///
    /// Those of [`Self::ever_used`].
    pub fn used(&self) -> Result<Vec<UsedAlias>, MapError> {
        let end = FIRST_ALIAS_INDEX + self.ever_used()?;
        let used = (FIRST_ALIAS_INDEX..end)
            .map(|index| UsedAlias {
                index,
                handed_out: self.use_of(index, HANDED_OUT).load(Ordering::Acquire),
                is_pinned: self.is_pinned(index),
            })
            .filter(|alias| alias.handed_out != 0)
            .collect();

        Ok(used)
    }

    /// The address that IPv4 sockets have as their peer.
    pub fn address(&self, index: u32) -> Ipv4Addr {
        Ipv4Addr::from(self.block.base4 | index)
    }

    /// True for an alias that must never stand for another address.
    pub fn is_pinned(&self, index: u32) -> bool {
        self.use_of(index, IS_PINNED).load(Ordering::Acquire) != 0
    }

    /// Notes that a socket had the alias at `last_use`, unless a later use is noted.
    pub fn refresh(&self, index: u32, last_use: u32) {
        self.use_of(index, HANDED_OUT)
            .fetch_max(last_use, Ordering::AcqRel);
    }

    /// Quarantines an alias; a socket that connects to its address brings it back into use. Returns
    /// false if another alias of that address is in quarantine.
    ///
    /// # Errors
    ///
    /// Those of bpf(2).
    pub fn quarantine(&mut self, index: u32) -> Result<bool, MapError> {
        let real = self.real(index);
        if lookup(&self.resting, RESTING, &real)?.is_some() {
            return Ok(false);
        }
        // At any moment one of the two maps has the address.
        self.resting
            .insert(real, index, 0)
            .map_err(broken(RESTING))?;
        if lookup(&self.in_use, ALIASES, &real)? == Some(index) {
            self.in_use.remove(&real).map_err(broken(ALIASES))?;
        }

        Ok(true)
    }

    /// Frees an alias in quarantine, which no socket may have any more. Returns false if it has come
    /// back into use.
    ///
    /// # Errors
    ///
    /// Those of bpf(2).
    pub fn free(&mut self, index: u32) -> Result<bool, MapError> {
        let real = self.real(index);
        if lookup(&self.resting, RESTING, &real)? != Some(index) {
            return Ok(false);
        }
        match self.resting.remove(&real) {
            Ok(()) => {}
            Err(error) if is_absent(&error) => return Ok(false),
            Err(error) => return Err(broken(RESTING)(error)),
        }
        // Before the push: after it the programs may give the alias out, and then set this again.
        self.use_of(index, HANDED_OUT).store(0, Ordering::Release);
        self.free.push(index, 0).map_err(broken(FREE))?;

        Ok(true)
    }

    fn real(&self, index: u32) -> Address {
        let mut real = Address::default();
        for (place, bytes) in real.chunks_exact_mut(size_of::<u32>()).enumerate() {
            let word = self.reals.word(index as usize * REAL_LEN + place);
            bytes.copy_from_slice(&word.load(Ordering::Acquire).to_ne_bytes());
        }

        real
    }

    fn use_of(&self, index: u32, word: usize) -> &AtomicU32 {
        self.uses.word(index as usize * USE_LEN + word)
    }
}

const _: () = assert!(size_of::<AliasUse>() == USE_LEN * size_of::<u32>());
const _: () = assert!(size_of::<Address>() == REAL_LEN * size_of::<u32>());

fn lookup(
    map: &HashMap<MapData, Address, u32>,
    name: &'static str,
    real: &Address,
) -> Result<Option<u32>, MapError> {
    match map.get(real, 0) {
        Ok(index) => Ok(Some(index)),
        Err(AyaError::KeyNotFound) => Ok(None),
        Err(error) => Err(broken(name)(error)),
    }
}
