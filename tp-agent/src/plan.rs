//! What is to be redirected, from all that is known. Pure: the same facts give the same plan.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use tp_agent_api::{LeaseState, MAX_PORTS, PodIds};
use tp_proto::{
    agent::{Lease, ManagerNews, PodPhase, PodReport},
    crd::{AGENT_NAMESPACE, MANAGER_NAMESPACE},
};

use crate::facts::{Facts, InterceptFacts, PodFacts, Rules, UserReview};

#[cfg(test)]
mod tests;

/// Older news of a manager are no lease any more; the kernel goes by the same time.
pub(crate) const LEASE_LIFETIME: Duration = Duration::from_secs(5);
const SYSTEM_NAMESPACE: &str = "kube-system";

/// Of one manager; more are not served.
const MAX_LEASES: usize = 16_384;

/// A time of CLOCK_BOOTTIME, in nanoseconds.
pub(crate) type BootTime = u64;

/// The latest news of each manager, by its pod.
pub(crate) type AllNews = BTreeMap<String, News>;

/// What a manager said last.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct News {
    heard: BootTime,
    /// By UID of the Intercept.
    leases: BTreeMap<String, LeasedPorts>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct LeasedPorts {
    /// From when on each news have named it.
    since: BootTime,
    is_quiet: bool,
    /// With whether something listens at the workstation.
    ports: BTreeMap<u16, bool>,
}

impl LeasedPorts {
    fn rank(&self) -> (bool, BootTime) {
        (!self.is_quiet, self.since)
    }
}

impl News {
    /// The news that follow these, with all leases of a round.
    pub(crate) fn next(&self, leases: Vec<Lease>, heard: BootTime) -> Self {
        let leases = leases.into_iter().map(|lease| {
            let before = self.leases.get(&lease.intercept);
            let ports = lease.ports.iter().filter_map(|state| {
                let port = u16::try_from(state.port).ok().filter(|port| *port != 0)?;
                Some((port, state.is_listening))
            });
            let leased = LeasedPorts {
                since: before.map_or(heard, |it| it.since),
                is_quiet: lease.is_quiet,
                ports: ports.collect(),
            };
            (lease.intercept, leased)
        });

        Self {
            heard,
            leases: leases.collect(),
        }
    }

    /// The manager itself is not heard: nothing can be carried to it.
    pub(crate) fn quieten(&mut self) {
        for lease in self.leases.values_mut() {
            lease.is_quiet = true;
        }
    }

    /// Returns whether each of its leases is one that connections follow.
    #[cfg(test)]
    pub(crate) fn is_served(&self) -> bool {
        !self.leases.is_empty() && self.leases.values().all(|lease| !lease.is_quiet)
    }

    pub(crate) fn is_fresh(&self, now: BootTime) -> bool {
        u128::from(now.saturating_sub(self.heard)) <= LEASE_LIFETIME.as_nanos()
    }
}

/// The leases of a round of news that goes on.
#[derive(Default)]
pub(crate) struct Round {
    leases: Vec<Lease>,
    has_more: bool,
}

impl Round {
    /// Takes one message; returns all leases of the round that it ends.
    pub(crate) fn take(&mut self, news: ManagerNews) -> Option<Vec<Lease>> {
        for lease in news.leases {
            if self.leases.len() >= MAX_LEASES {
                self.has_more = true;
                break;
            }
            // Their names are for people, and would be most of what is kept.
            self.leases.push(Lease {
                namespace: String::new(),
                name: String::new(),
                ..lease
            });
        }
        if news.more {
            return None;
        }
        let Self { leases, has_more } = std::mem::take(self);
        if has_more {
            tracing::warn!(MAX_LEASES, "Manager has more intercepts than are served");
        }

        Some(leases)
    }
}

/// What is to be done on the node.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Plan {
    /// The pods to redirect, by UID.
    pub(crate) pods: BTreeMap<String, PodPlan>,
    /// What cannot be.
    pub(crate) refusals: Vec<PodReport>,
}

/// The redirect of a pod; without ports there is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PodPlan {
    pub(crate) name: String,
    pub(crate) ids: PodIds,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) nodes: Vec<IpAddr>,
    pub(crate) ports: BTreeMap<u16, PortPlan>,
}

#[cfg(test)]
impl PodPlan {
    /// A pod of which nothing matters but what is planned for these ports: the Intercept, what each does,
    /// and whether open connections end.
    pub(crate) fn of_ports<'a>(
        ports: impl IntoIterator<Item = (u16, &'a str, LeaseState)>,
        takes_open: bool,
    ) -> Self {
        let ports = ports.into_iter().map(|(number, intercept, state)| {
            let port = PortPlan {
                intercept: intercept.into(),
                manager: "m".into(),
                probed: false,
                http_probed: false,
                takes_open,
                met: 0,
                state,
                renewed: 0,
            };
            (number, port)
        });

        Self {
            name: "web-0".into(),
            ids: PodIds {
                uid: "1".into(),
                containers: Vec::new(),
                addresses: Vec::new(),
            },
            addresses: Vec::new(),
            nodes: Vec::new(),
            ports: ports.collect(),
        }
    }
}

/// A redirected port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PortPlan {
    /// UID of the Intercept.
    pub(crate) intercept: String,
    /// The manager that leases it.
    pub(crate) manager: String,
    /// Connections from the node are left to the container.
    pub(crate) probed: bool,
    /// HTTP probes are.
    pub(crate) http_probed: bool,
    /// Connections that the container has already are ended.
    pub(crate) takes_open: bool,
    /// When there were both the pod and the Intercept, in seconds since 1970.
    pub(crate) met: i64,
    pub(crate) state: LeaseState,
    /// When the manager last said so.
    pub(crate) renewed: BootTime,
}

/// A lease with whom it is of.
struct Leased<'a> {
    uid: &'a str,
    manager: &'a str,
    heard: BootTime,
    lease: &'a LeasedPorts,
    intercept: &'a InterceptFacts,
}

pub(crate) fn plan(now: BootTime, news: &AllNews, facts: &Facts, rules: &Rules) -> Plan {
    let mut plan = Plan::default();
    for leased in leases(now, news, facts) {
        let workload = &leased.intercept.workload;
        let pods = facts.pods.iter().filter(|(_, pod)| {
            let replica = leased.intercept.replica.as_ref();
            pod.workloads.contains(workload) && replica.is_none_or(|name| *name == pod.name)
        });
        for (uid, pod) in pods {
            let Some(review) = facts.reviews.get(leased.uid) else {
                // Under way.
                continue;
            };
            let reason = refusal(&workload.namespace, review, pod, rules)
                .or_else(|| add(&mut plan, &leased, uid, pod));
            if let Some(reason) = reason {
                plan.refusals.push(PodReport {
                    intercept: leased.uid.to_owned(),
                    pod: uid.clone(),
                    name: pod.name.clone(),
                    phase: PodPhase::Refused.into(),
                    reason,
                    ports: Vec::new(),
                });
            }
        }
    }

    plan
}

/// The Intercepts with a lease, the older ones first: the first has a port. Of two managers that lease
/// one, the session has gone from the one where it is quiet, or that leased it first.
fn leases<'a>(now: BootTime, news: &'a AllNews, facts: &'a Facts) -> Vec<Leased<'a>> {
    let mut leases: BTreeMap<&str, Leased<'_>> = BTreeMap::new();
    for (manager, news) in news.iter().filter(|(_, news)| news.is_fresh(now)) {
        for (uid, lease) in &news.leases {
            let Some(intercept) = facts.intercepts.get(uid) else {
                continue;
            };
            if leases
                .get(uid.as_str())
                .is_some_and(|it| it.lease.rank() > lease.rank())
            {
                continue;
            }
            let leased = Leased {
                uid,
                manager,
                heard: news.heard,
                lease,
                intercept,
            };
            leases.insert(uid, leased);
        }
    }
    let mut leases: Vec<_> = leases.into_values().collect();
    leases.sort_by_key(|leased| (leased.intercept.created, leased.uid));

    leases
}

fn refusal(namespace: &str, review: &UserReview, pod: &PodFacts, rules: &Rules) -> Option<String> {
    if let Some(reason) = closed(namespace, rules) {
        return Some(reason);
    }
    if let UserReview::Denied(reason) = review {
        return Some(reason.clone());
    }

    pod.obstacle.clone()
}

/// Why the pods of a namespace are left alone, whoever asks.
pub(crate) fn closed(namespace: &str, rules: &Rules) -> Option<String> {
    let ours = [MANAGER_NAMESPACE, AGENT_NAMESPACE, &rules.manager_namespace];
    if ours.contains(&namespace) {
        return Some(format!(
            "namespace {namespace} is tp's own, whose pods are not intercepted"
        ));
    }
    if namespace == SYSTEM_NAMESPACE && !rules.allow_system {
        return Some(format!(
            "pods in namespace {namespace} are not intercepted: an administrator can allow it by the \
             argument --allow-system of tp-agent"
        ));
    }
    if !rules.only.is_empty() && !rules.only.contains(namespace) {
        return Some(format!(
            "namespace {namespace} is not among those in which the agents intercept: an administrator \
             names them by the argument --intercept-namespaces of tp-agent"
        ));
    }

    None
}

/// Adds the ports of a lease; returns why not, if they cannot be.
fn add(plan: &mut Plan, leased: &Leased<'_>, uid: &str, pod: &PodFacts) -> Option<String> {
    let intercept = leased.intercept;
    let is_own = |(port, _): &(&u16, &bool)| intercept.ports.contains(port);
    let wanted: Vec<_> = leased.lease.ports.iter().filter(is_own).collect();
    if wanted.is_empty() {
        return None;
    }
    let entry = plan.pods.entry(uid.to_owned());
    let planned = entry.or_insert_with(|| PodPlan {
        name: pod.name.clone(),
        ids: pod.ids.clone(),
        addresses: pod.addresses.clone(),
        nodes: pod.nodes.clone(),
        ports: BTreeMap::new(),
    });
    if planned.ports.len() + wanted.len() > MAX_PORTS {
        return Some(format!(
            "at most {MAX_PORTS} ports of a pod are redirected: end another intercept of it first"
        ));
    }
    for (port, is_listening) in wanted {
        planned.ports.entry(*port).or_insert_with(|| PortPlan {
            intercept: leased.uid.to_owned(),
            manager: leased.manager.to_owned(),
            probed: pod.probed.contains(port) && !intercept.has_local_probes,
            http_probed: pod.http_probed.contains(port) && !intercept.has_local_probes,
            takes_open: intercept.takes_open,
            met: intercept.created.max(pod.created),
            state: match (is_listening, intercept.falls_back) {
                // The redirect stays, for the workstation to come back to.
                _ if leased.lease.is_quiet => LeaseState::Container,
                (true, _) => LeaseState::Redirect,
                (false, true) => LeaseState::Container,
                (false, false) => LeaseState::Refuse,
            },
            renewed: leased.heard,
        });
    }

    None
}
