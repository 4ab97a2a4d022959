//! The root daemon's changes to the maps of the aliases.
//!
//! The life cycle of an alias is drawn and decided in `tp-core/src/alias.rs`. `ALIASES` has the
//! aliases in use, `RESTING` those in quarantine, `FREE` the free ones; the indices that `NEXT_ALIAS`
//! has not reached are fresh.

use std::{
    io,
    net::Ipv4Addr,
    ops::Range,
    sync::atomic::{AtomicU32, Ordering},
};

use aya::{
    Ebpf,
    maps::{Array, HashMap, Map, MapData, MapError as AyaError, Queue},
};
use tp_ebpf_common::{ALIAS_TABLE_LEN, AliasUse, FIRST_ALIAS_INDEX};

use crate::{
    MapError, Plan,
    fds::{Access, Words},
    map::{array, broken, take, typed},
};

const ALIASES: &str = "ALIASES";
const RESTING: &str = "RESTING";
const FREE: &str = "FREE";
const NEXT_ALIAS: &str = "NEXT_ALIAS";
const ALIAS_USES: &str = "ALIAS_USES";

/// The fields of an [`AliasUse`], as indices of 32-bit words, and their number.
const HANDED_OUT: usize = 0;
const IS_PINNED: usize = 1;
const USE_LEN: usize = 2;

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

/// The aliases of one data path. Only the owner of this value quarantines or frees them.
pub struct Aliases {
    in_use: HashMap<MapData, [u8; 4], u32>,
    resting: HashMap<MapData, [u8; 4], u32>,
    free: Queue<MapData, u32>,
    next: Array<MapData, u64>,
    reals: Words,
    uses: Words,
    /// Kept open: programs that are loaded later refer to it by its descriptor.
    _uses: Map,
    base: u32,
    count: u32,
}

impl Aliases {
    pub(crate) fn take(ebpf: &mut Ebpf, table: &Map, plan: &Plan) -> Result<Self, MapError> {
        let uses_map = take(ebpf, ALIAS_USES)?;
        let mapped = |name, map, len, access| {
            Words::map(array(name, map)?.fd(), len, access)
                .map_err(|source| MapError::Descriptor { name, source })
        };
        let reals = mapped("ALIAS_TABLE", table, ALIAS_TABLE_LEN, Access::Read)?;
        let len = ALIAS_TABLE_LEN * USE_LEN;
        let uses = mapped(ALIAS_USES, &uses_map, len, Access::ReadWrite)?;

        Ok(Self {
            in_use: typed(ebpf, ALIASES)?,
            resting: typed(ebpf, RESTING)?,
            free: typed(ebpf, FREE)?,
            next: typed(ebpf, NEXT_ALIAS)?,
            reals,
            uses,
            _uses: uses_map,
            base: plan.alias_base,
            count: plan.alias_count,
        })
    }

    /// The indices of all aliases.
    pub fn indices(&self) -> Range<u32> {
        FIRST_ALIAS_INDEX..self.count.max(FIRST_ALIAS_INDEX)
    }

    /// The number of aliases that have ever stood for an address.
    ///
    /// # Errors
    ///
    /// Those of bpf(2).
    pub fn ever_used(&self) -> Result<u32, MapError> {
        let capacity = self.count.saturating_sub(FIRST_ALIAS_INDEX);
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

    /// The alias itself, which sockets have as the address of their peer.
    pub fn address(&self, index: u32) -> Ipv4Addr {
        Ipv4Addr::from(self.base | index)
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

    fn real(&self, index: u32) -> [u8; 4] {
        self.reals
            .word(index as usize)
            .load(Ordering::Acquire)
            .to_ne_bytes()
    }

    fn use_of(&self, index: u32, word: usize) -> &AtomicU32 {
        self.uses.word(index as usize * USE_LEN + word)
    }
}

const _: () = assert!(size_of::<AliasUse>() == USE_LEN * size_of::<u32>());

fn lookup(
    map: &HashMap<MapData, [u8; 4], u32>,
    name: &'static str,
    real: &[u8; 4],
) -> Result<Option<u32>, MapError> {
    match map.get(real, 0) {
        Ok(index) => Ok(Some(index)),
        Err(AyaError::KeyNotFound) => Ok(None),
        Err(error) => Err(broken(name)(error)),
    }
}

fn is_absent(error: &AyaError) -> bool {
    match error {
        AyaError::KeyNotFound => true,
        AyaError::SyscallError(error) => error.io_error.kind() == io::ErrorKind::NotFound,
        _ => false,
    }
}
