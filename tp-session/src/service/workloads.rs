//! The workloads that `tp list` shows.

use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use tokio::time::timeout;
use tonic::transport::Channel;
use tp_proto::{
    fault::{Fault, FaultKind},
    local::{PortHolder, Workload},
    tunnel::{self, ListWorkloadsRequest, WorkloadPort, manager_client::ManagerClient},
};

use super::super::shared::Shared;

const PARALLEL_LISTS: usize = 2;
const LIST_TIMEOUT: Duration = Duration::from_secs(8);

/// The workloads of these namespaces, in their order.
pub(super) async fn listed(
    shared: &Shared,
    namespaces: Vec<String>,
    are_all: bool,
) -> Result<Vec<Workload>, Fault> {
    let Some(up) = shared.up() else {
        let reason = shared.reason.borrow().clone();
        let message = format!("there is no tunnel at the moment: {reason}");
        return Err(Fault::new(FaultKind::Unavailable, message));
    };
    let listings = stream::iter(namespaces)
        .map(|namespace| of(up.manager.clone(), namespace, are_all))
        .buffered(PARALLEL_LISTS);
    let workloads = timeout(LIST_TIMEOUT, listings.try_concat());

    workloads.await.unwrap_or_else(|_| {
        let message = "the traffic manager does not list the workloads in time";
        Err(Fault::new(FaultKind::Unavailable, message))
    })
}

/// The workloads of a namespace, as the manager lists them.
async fn of(
    mut manager: ManagerClient<Channel>,
    namespace: String,
    is_one_of_all: bool,
) -> Result<Vec<Workload>, Fault> {
    let listed = manager.list_workloads(ListWorkloadsRequest { namespace });
    let listed = match listed.await {
        Ok(listed) => listed,
        Err(status) if status.code() == tonic::Code::PermissionDenied => {
            // The right was just revoked.
            if is_one_of_all {
                return Ok(Vec::new());
            }
            return Err(Fault::new(FaultKind::NoPermission, status.message()));
        }
        Err(status) => return Err(Fault::new(FaultKind::Unavailable, status.message())),
    };
    let workloads = listed.into_inner().workloads.into_iter();

    Ok(workloads
        .map(|it| Workload {
            kind: it.kind,
            name: it.name,
            namespace: it.namespace,
            ready: it.ready,
            desired: it.desired,
            ports: it.ports.iter().map(port).collect(),
            intercepts: it.intercepts.into_iter().map(holder).collect(),
        })
        .collect())
}

fn holder(holder: tunnel::HeldPort) -> PortHolder {
    PortHolder {
        port: holder.port,
        user: holder.user,
        since: holder.since,
        own: holder.own,
    }
}

fn port(port: &WorkloadPort) -> String {
    let protocol = &port.protocol;
    match port.name.as_str() {
        "" => format!("{}/{protocol}", port.port),
        name => format!("{name}:{}/{protocol}", port.port),
    }
}
