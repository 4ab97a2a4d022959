//! Which of the network namespaces that the processes of a pod are in is the pod's own.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use crate::{
    cgroup::ContainerId,
    netns::{FileId, PodNetns},
    pod_error::PodError,
};

/// The namespaces of the processes that were seen.
#[derive(Default)]
pub(crate) struct PodNetworks {
    all: BTreeSet<FileId>,
    firsts: BTreeMap<ContainerId, FirstProcess>,
}

/// Of a container: the runtime starts it inside the pod's network, and only its children are in others.
struct FirstProcess {
    started: u64,
    netns: PodNetns,
    /// Another process, in another network, was started in the same tick.
    is_doubtful: bool,
}

impl PodNetworks {
    /// Adds what was seen of a process: when it was started, and where it is.
    pub(crate) fn add(&mut self, container: ContainerId, started: u64, netns: PodNetns) {
        self.all.insert(netns.id());
        let first = self.firsts.get_mut(&container);
        match first {
            Some(first) if first.started < started => {}
            Some(first) if first.started == started => {
                first.is_doubtful |= first.netns.id() != netns.id();
            }
            _ => {
                let first = FirstProcess {
                    started,
                    netns,
                    is_doubtful: false,
                };
                self.firsts.insert(container, first);
            }
        }
    }

    /// Returns whether there is no doubt of which network is the pod's: all processes are in one, or
    /// else the first process of each container is, and it has the addresses of the pod. The network of a
    /// sandbox has lost them, or its containers are in another one.
    pub(crate) fn is_known(&self, addresses: &[IpAddr]) -> Result<bool, PodError> {
        if self.all.len() <= 1 {
            return Ok(true);
        }
        let mut firsts = self.firsts.values();
        let Some(first) = firsts.next().filter(|_| !addresses.is_empty()) else {
            return Ok(false);
        };
        let is_one = !first.is_doubtful
            && firsts.all(|it| !it.is_doubtful && it.netns.id() == first.netns.id());
        if !is_one {
            return Ok(false);
        }
        let own = first.netns.addresses()?;

        Ok(addresses.iter().all(|address| own.contains(address)))
    }

    pub(crate) fn into_first(self) -> Option<PodNetns> {
        self.firsts.into_values().next().map(|first| first.netns)
    }
}
