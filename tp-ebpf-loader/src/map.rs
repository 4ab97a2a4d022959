//! Takes single maps of a loaded object by name; the errors carry that name.

use std::os::fd::{AsFd as _, OwnedFd};

use aya::{
    Ebpf,
    maps::{Map, MapData, MapError as AyaError},
};

use crate::MapError;

pub(crate) fn take(ebpf: &mut Ebpf, name: &'static str) -> Result<Map, MapError> {
    ebpf.take_map(name).ok_or(MapError::Missing { name })
}

pub(crate) fn typed<M>(ebpf: &mut Ebpf, name: &'static str) -> Result<M, MapError>
where
    M: TryFrom<Map, Error = AyaError>,
{
    M::try_from(take(ebpf, name)?).map_err(broken(name))
}

pub(crate) fn array<'a>(name: &'static str, map: &'a Map) -> Result<&'a MapData, MapError> {
    match map {
        Map::Array(data) => Ok(data),
        _ => Err(MapError::Missing { name }),
    }
}

pub(crate) fn copy(name: &'static str, map: &Map) -> Result<OwnedFd, MapError> {
    array(name, map)?
        .fd()
        .as_fd()
        .try_clone_to_owned()
        .map_err(|source| MapError::Descriptor { name, source })
}

pub(crate) fn broken(name: &'static str) -> impl Fn(AyaError) -> MapError {
    move |source| MapError::Aya {
        name,
        source: Box::new(source),
    }
}
