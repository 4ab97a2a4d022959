//! The arrays of maps by which the programs find the maps of a session.

use std::{io, os::fd::OwnedFd, thread};

use aya::{
    Ebpf,
    maps::{Map, MapData},
};

use crate::{
    MapError, fds,
    map::{
        ALIAS_TABLES, ALIAS_USES, ALIASES, FREE, HEARTBEATS, NETWORKS, NEXT_ALIAS, RESTING, copy,
        take,
    },
};

const ARRAYS: [&str; 8] = [
    NETWORKS,
    ALIASES,
    RESTING,
    FREE,
    NEXT_ALIAS,
    ALIAS_TABLES,
    ALIAS_USES,
    HEARTBEATS,
];

/// The maps of one session, in the order of the arrays.
pub struct SlotMaps(pub(crate) [OwnedFd; ARRAYS.len()]);

/// The arrays as the programs name them: by these descriptors, until the programs are loaded.
pub(crate) struct Arrays(Vec<MapData>);

impl Arrays {
    pub(crate) fn take(ebpf: &mut Ebpf) -> Result<Self, MapError> {
        ARRAYS
            .iter()
            .map(|name| match take(ebpf, name)? {
                Map::ArrayOfMaps(array) => Ok(array),
                _ => Err(MapError::Missing { name }),
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }

    pub(crate) fn slots(&self) -> Result<Slots, MapError> {
        let arrays = ARRAYS.iter().zip(&self.0);

        arrays
            .map(|(name, array)| copy(name, array))
            .collect::<Result<_, _>>()
            .map(|arrays| Slots { arrays })
    }
}

/// The arrays of one set of programs. Slots can be changed at the same time.
pub struct Slots {
    /// In the order of [`ARRAYS`].
    arrays: Vec<OwnedFd>,
}

impl Slots {
    /// Gives a slot its maps. Returns once no program uses those that were there before.
    ///
    /// # Errors
    ///
    /// Those of bpf(2).
    pub fn put(&self, slot: u32, maps: &SlotMaps) -> Result<(), MapError> {
        self.for_each(|place| fds::set(&self.arrays[place], slot, &maps.0[place]))
    }

    /// Takes the maps of a slot away, if it has any. Returns once no program uses them.
    ///
    /// # Errors
    ///
    /// Those of bpf(2).
    pub fn remove(&self, slot: u32) -> Result<(), MapError> {
        self.for_each(|place| match fds::remove(&self.arrays[place], slot) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        })
    }

    /// After each change of such an array, bpf(2) waits until no program runs that may use what was
    /// there before (`maybe_wait_bpf_programs`). Side by side, all changes wait as long as one.
    fn for_each(&self, change: impl Fn(usize) -> io::Result<()> + Sync) -> Result<(), MapError> {
        let change = &change;
        let at = |place: usize, changed: io::Result<()>| {
            changed.map_err(|source| MapError::Descriptor {
                name: ARRAYS[place],
                source,
            })
        };
        thread::scope(|scope| {
            let begun: Vec<_> = (0..ARRAYS.len())
                .map(|place| {
                    let spawned = thread::Builder::new()
                        .name("slots".to_owned())
                        .spawn_scoped(scope, move || change(place));
                    (place, spawned)
                })
                .collect();
            begun
                .into_iter()
                .map(|(place, spawned)| match spawned {
                    Ok(thread) => at(place, thread.join().expect("no change panics")),
                    // The machine has no more threads; it takes longer without.
                    Err(_) => at(place, change(place)),
                })
                .fold(Ok(()), Result::and)
        })
    }
}
