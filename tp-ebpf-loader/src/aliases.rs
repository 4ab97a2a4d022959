//! The part of an alias's life that user space decides: from use to rest, from rest to freedom.

use std::{
    io,
    net::Ipv4Addr,
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

/// Words of one [`AliasUse`].
const HANDED_OUT: usize = 0;
const IS_PINNED: usize = 1;
const USE_LEN: usize = 2;

/// An alias that stands for an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UsedAlias {
    pub index: u32,
    /// When a socket last got it; larger is later.
    pub handed_out: u32,
}

/// The aliases of one bundle. There is one of it: nobody else puts them to rest or frees them.
pub struct Aliases {
    in_use: HashMap<MapData, [u8; 4], u32>,
    resting: HashMap<MapData, [u8; 4], u32>,
    free: Queue<MapData, u32>,
    next: Array<MapData, u64>,
    reals: Words,
    uses: Words,
    /// Kept open: programs that are still to be loaded name it by its descriptor.
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

    /// How many aliases there are.
    pub fn capacity(&self) -> u32 {
        self.count.saturating_sub(FIRST_ALIAS_INDEX)
    }

    /// How many of them have ever stood for an address.
    pub fn ever_used(&self) -> Result<u32, MapError> {
        let next = self.next.get(&0, 0).map_err(broken(NEXT_ALIAS))?;

        Ok(u32::try_from(next).map_or(self.capacity(), |next| next.min(self.capacity())))
    }

    /// Those that stand for an address, in use or at rest, and may be given to another one.
    pub fn used(&self) -> Result<Vec<UsedAlias>, MapError> {
        let end = FIRST_ALIAS_INDEX + self.ever_used()?;
        let used = (FIRST_ALIAS_INDEX..end)
            .map(|index| UsedAlias {
                index,
                handed_out: self.use_of(index, HANDED_OUT).load(Ordering::Acquire),
            })
            .filter(|alias| alias.handed_out != 0 && !self.is_pinned(alias.index))
            .collect();

        Ok(used)
    }

    pub fn address(&self, index: u32) -> Ipv4Addr {
        Ipv4Addr::from(self.base | index)
    }

    /// True for an alias that must never be given to another address.
    pub fn is_pinned(&self, index: u32) -> bool {
        self.use_of(index, IS_PINNED).load(Ordering::Acquire) != 0
    }

    /// Makes `alias` look as if a socket had just got it.
    pub fn refresh(&self, alias: UsedAlias, latest: u32) {
        self.use_of(alias.index, HANDED_OUT)
            .store(latest.max(alias.handed_out), Ordering::Release);
    }

    /// Puts an alias to rest: a socket that wants its address brings it back into use. False if
    /// it has to stay as it is.
    pub fn rest(&mut self, index: u32) -> Result<bool, MapError> {
        let real = self.real(index);
        if lookup(&self.resting, RESTING, &real)?.is_some() {
            return Ok(false);
        }
        // There is no moment at which neither map has the address.
        self.resting
            .insert(real, index, 0)
            .map_err(broken(RESTING))?;
        if lookup(&self.in_use, ALIASES, &real)? == Some(index) {
            self.in_use.remove(&real).map_err(broken(ALIASES))?;
        }

        Ok(true)
    }

    /// Frees an alias at rest, which nobody may have any more. False if it has come back into use.
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
        // The programs set it again when they give the alias out, which is not before the push.
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
