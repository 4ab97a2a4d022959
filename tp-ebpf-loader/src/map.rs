//! Takes single maps of a loaded object by name; the errors carry that name.

use std::{
    io,
    net::IpAddr,
    os::fd::{AsFd as _, OwnedFd},
};

use aya::{
    Ebpf,
    maps::{Map, MapData, MapError as AyaError},
};

use ipnet::IpNet;
use tp_ebpf_common::{ADDRESS_BITS, Address, mapped};

use crate::MapError;

pub(crate) const NETWORKS: &str = "NETWORKS";
pub(crate) const ALIASES: &str = "ALIASES";
pub(crate) const RESTING: &str = "RESTING";
pub(crate) const FREE: &str = "FREE";
pub(crate) const NEXT_ALIAS: &str = "NEXT_ALIAS";
pub(crate) const ALIAS_TABLES: &str = "ALIAS_TABLES";
pub(crate) const ALIAS_USES: &str = "ALIAS_USES";
pub(crate) const HEARTBEATS: &str = "HEARTBEATS";

pub(crate) fn take(ebpf: &mut Ebpf, name: &'static str) -> Result<Map, MapError> {
    ebpf.take_map(name).ok_or(MapError::Missing { name })
}

pub(crate) fn typed<M>(ebpf: &mut Ebpf, name: &'static str) -> Result<M, MapError>
where
    M: TryFrom<Map, Error = AyaError>,
{
    M::try_from(take(ebpf, name)?).map_err(broken(name))
}

pub(crate) fn copy(name: &'static str, map: &MapData) -> Result<OwnedFd, MapError> {
    map.fd()
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

/// Both families in one form.
pub(crate) fn address(address: IpAddr) -> Address {
    match address {
        IpAddr::V4(v4) => mapped(v4.octets()),
        IpAddr::V6(v6) => v6.octets(),
    }
}

pub(crate) fn prefix(network: IpNet) -> (Address, u32) {
    let network = network.trunc();
    let bits = match network {
        IpNet::V4(_) => ADDRESS_BITS - 32,
        IpNet::V6(_) => 0,
    };

    (
        address(network.addr()),
        bits + u32::from(network.prefix_len()),
    )
}

/// What is not there need not be removed.
pub(crate) fn gone(removed: Result<(), AyaError>) -> Result<(), AyaError> {
    match removed {
        Err(error) if is_absent(&error) => Ok(()),
        result => result,
    }
}

pub(crate) fn is_absent(error: &AyaError) -> bool {
    match error {
        AyaError::KeyNotFound => true,
        AyaError::SyscallError(error) => error.io_error.kind() == io::ErrorKind::NotFound,
        _ => false,
    }
}
