//! The workloads that `tp list` shows.

use tonic::transport::Channel;
use tp_proto::{
    fault::{Fault, FaultKind},
    local::{PortHolder, Workload},
    tunnel::{self, ListWorkloadsRequest, WorkloadPort, manager_client::ManagerClient},
};

/// The workloads of a namespace, as the manager lists them.
pub(super) async fn of(
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
