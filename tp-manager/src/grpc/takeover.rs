//! `TakeOver`: ends the Intercepts that others have of some ports.

use std::sync::Arc;

use tonic::Status;
use tp_core::intercept::holders::WorkloadKey;
use tp_proto::{
    crd::{ALL_PODS, GROUP},
    tunnel::{FindWorkloadResponse, HeldPort, TakeOverRequest, TakeOverResponse},
};

use super::{Control, NO_INTERCEPTS};
use crate::{
    access::{Scope, User},
    intercepts::taking::HeldPorts,
};

impl Control {
    pub(super) async fn end_others(
        &self,
        request: TakeOverRequest,
    ) -> Result<TakeOverResponse, Status> {
        let served = self.served.as_ref();
        let served = served.ok_or_else(|| Status::failed_precondition(NO_INTERCEPTS))?;
        self.check_may_intercept(&request.namespace).await?;
        let user = Arc::clone(&self.user.borrow());
        let ports = request.ports.iter();
        let ports: Vec<u16> = ports.filter_map(|it| u16::try_from(*it).ok()).collect();
        let pod = Some(request.replica.as_str()).filter(|it| !matches!(*it, "" | ALL_PODS));
        let workload = WorkloadKey {
            namespace: request.namespace,
            kind: request.kind,
            name: request.name,
        };
        let mut held = served.intercepts().in_the_way(&workload, &ports, pod);
        held.retain(|held| held.record.session != *served.session());
        let of_others = held.iter().find(|held| !held.is_of(&user));
        if let Some(held) = of_others {
            self.check_may_take_over(&user, &workload.namespace, held)
                .await?;
        }
        let mut ended = Vec::new();
        for held in held {
            ended.extend(held.each(&user));
            let taker = user.name().to_owned();
            let end = self.replica.endings.end(held, taker);
            end.await.map_err(Status::unavailable)?;
        }

        Ok(TakeOverResponse { ended })
    }

    async fn check_may_take_over(
        &self,
        user: &User,
        namespace: &str,
        held: &HeldPorts,
    ) -> Result<(), Status> {
        if self.may(&Scope::TakeOver(namespace.into())).await? {
            return Ok(());
        }
        let holders: Vec<String> = held
            .each(user)
            .map(|held| format!("port {} from {}", held.port, held.user))
            .collect();

        Err(Status::permission_denied(format!(
            "{} may not take {} over: that takes the verb takeover on intercepts.{GROUP} in \
             namespace {namespace}",
            user.name(),
            holders.join(", ")
        )))
    }

    /// Who has which of these ports of the workload.
    pub(super) fn holders_of(
        &self,
        namespace: &str,
        found: &FindWorkloadResponse,
    ) -> Vec<HeldPort> {
        let Some(served) = &self.served else {
            return Vec::new();
        };
        let held = served.intercepts().held_in(namespace);
        let user = Arc::clone(&self.user.borrow());
        let holders = of_workload(&held, &found.kind, &found.name, &user).into_iter();
        let is_wanted = |it: &HeldPort| found.ports.iter().any(|port| port.port == it.port);

        holders.filter(is_wanted).collect()
    }

    /// Who has which port of each workload of the namespace, by kind and name; of none if the user
    /// may not know.
    pub(super) async fn holders_in(&self, namespace: &str) -> Vec<HeldPorts> {
        let Some(served) = &self.served else {
            return Vec::new();
        };
        match self.may(&Scope::Intercepts(namespace.into())).await {
            Ok(true) => served.intercepts().held_in(namespace),
            Ok(false) | Err(_) => Vec::new(),
        }
    }
}

impl HeldPorts {
    fn is_of(&self, user: &User) -> bool {
        self.record.user().is_same_person(user)
    }

    /// As the asking user is told.
    fn each(&self, asking: &User) -> impl Iterator<Item = HeldPort> + use<'_> {
        let own = self.is_of(asking);
        let user = self.record.user().name();
        let since = self.record.created().to_string();

        self.ports.iter().map(move |port| HeldPort {
            port: u32::from(*port),
            user: user.to_owned(),
            since: since.clone(),
            own,
        })
    }

    fn is_at(&self, kind: &str, name: &str) -> bool {
        let workload = &self.record.spec.workload;

        workload.kind == kind && workload.name == name
    }
}

/// The holders of the ports of one workload, by port.
pub(super) fn of_workload(
    held: &[HeldPorts],
    kind: &str,
    name: &str,
    user: &User,
) -> Vec<HeldPort> {
    let here = held.iter().filter(|held| held.is_at(kind, name));
    let mut all: Vec<HeldPort> = here.flat_map(|held| held.each(user)).collect();
    all.sort_by_key(|it| it.port);

    all
}
