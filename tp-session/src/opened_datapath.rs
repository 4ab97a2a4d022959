//! The data path that the root daemon opens for one connection.

use std::{fs::File, io, net::Ipv4Addr, sync::Arc};

use ipnet::{IpNet, Ipv4Net};
use tp_core::steering::Wishes;
use tp_proto::{
    fault::{Fault, FaultKind},
    local::ConnectRequest,
};
use tp_root_api::{Descriptors, MAX_NETWORKS_PER_PACKET, OpenDatapath, Reply, Request, Scope};

use super::{
    datapath::Handover,
    local::{self, Observer},
    node,
    root_link::{self, RootLink},
    steer,
};

pub(super) struct OpenedDatapath {
    pub(super) root: Arc<RootLink>,
    /// The cgroup to which steering is limited; empty if it is not.
    pub(super) cgroup: String,
    pub(super) handover: Handover,
}

impl OpenedDatapath {
    pub(super) async fn open(root: RootLink, cgroup: &str, avoid: &[IpNet]) -> Result<Self, Fault> {
        let scope = if cgroup.is_empty() {
            Scope::User
        } else {
            Scope::Cgroup {
                path: cgroup.to_owned(),
            }
        };
        let namespace = File::open("/proc/self/ns/net")
            .map_err(|error| failed("the network namespace cannot be opened", &error))?;
        let avoid = avoid
            .iter()
            .filter(|network| may_hold_aliases(network))
            .take(MAX_NETWORKS_PER_PACKET)
            .copied();
        let request = Request::Open(OpenDatapath {
            scope,
            udp: false,
            avoid: avoid.collect(),
        });
        let (reply, fds) = root.call(request, Some(namespace.into())).await?;
        let (Reply::Opened(datapath), Some(descriptors)) = (reply, Descriptors::from_fds(fds))
        else {
            return Err(root_link::unexpected());
        };

        Ok(Self {
            root: Arc::new(root),
            cgroup: cgroup.to_owned(),
            handover: Handover::new(datapath, descriptors)?,
        })
    }

    /// Opens another one if this does not suit what is known only now: the cluster's networks, and
    /// whether parts of the cluster run on this machine.
    pub(super) async fn reopen_if_needed(
        self,
        request: &ConnectRequest,
        wishes: &Wishes,
        networks: &[IpNet],
    ) -> Result<Self, Fault> {
        let mut cgroup = request.cgroup.clone();
        if cgroup.is_empty() && rustix::process::geteuid().is_root() {
            cgroup = cgroup_beside_cluster(request, networks).await?;
        }
        if cgroup == self.cgroup
            && !steer::collides(&local::of_datapath(self.handover.datapath()), networks)
        {
            return Ok(self);
        }
        // The first is closed after the second is open: a root daemon may end with its last session.
        let root = RootLink::connect().await?;
        root.check_version()?;
        Self::open(root, &cgroup, &[networks, &wishes.also].concat()).await
    }
}

/// Returns whether `network` overlaps the range from which aliases are chosen.
fn may_hold_aliases(network: &IpNet) -> bool {
    const RANGE: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(240, 0, 0, 0), 4);

    match network {
        IpNet::V4(network) => RANGE.contains(network) || network.contains(&RANGE),
        IpNet::V6(_) => false,
    }
}

/// The cgroup to which a session of root is limited on a machine that runs parts of a cluster; empty on
/// any other.
async fn cgroup_beside_cluster(
    request: &ConnectRequest,
    networks: &[IpNet],
) -> Result<String, Fault> {
    let local = Observer::open(Ipv4Addr::UNSPECIFIED)
        .map_err(|error| failed("the network of this machine cannot be read", &error))?
        .read()
        .await?;
    let Some(found) = node::detect(networks, &local) else {
        return Ok(String::new());
    };
    if request.command_cgroup.is_empty() && request.for_command {
        let message = format!(
            "this machine is part of a cluster ({found}), whose own connections a session of root \
             would take along, and no cgroup can be made for the command alone: connect as \
             another user"
        );
        return Err(Fault::new(FaultKind::Failed, message));
    }
    if request.command_cgroup.is_empty() {
        let message = format!(
            "this machine is part of a cluster ({found}), whose own connections a session of root \
             would take along: run `tp connect -- COMMAND`, which steers that command alone, or \
             connect as another user"
        );
        return Err(Fault::new(FaultKind::Usage, message));
    }

    Ok(request.command_cgroup.clone())
}

fn failed(what: &str, error: &io::Error) -> Fault {
    Fault::new(FaultKind::Failed, format!("{what}: {error}"))
}
