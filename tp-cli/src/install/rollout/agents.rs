//! The rollout of the agents. A node that is not Ready has none, and holds nobody up.

use std::collections::BTreeSet;

use k8s_openapi::api::{
    apps::v1::{ControllerRevision, DaemonSet},
    core::v1::Pod,
};
use kube::{Api, ResourceExt as _, api::ListParams};
use tp_proto::{
    crd::{AGENT_NAME, AGENT_NAMESPACE},
    fault::Fault,
};

use super::{
    is_ready, node_of,
    pods::{Owner, PodState, not_created, of_pod},
    unready_nodes,
};
use crate::install::cluster::Cluster;

const REVISION: &str = "controller-revision-hash";

pub(super) enum Rollout {
    Done {
        /// Nodes without an agent, since they are not Ready.
        without: Vec<String>,
    },
    Pending(PodState),
}

pub(super) async fn look(cluster: &Cluster) -> Result<Rollout, Fault> {
    let client = cluster.client();
    let sets: Api<DaemonSet> = Api::namespaced(client.clone(), AGENT_NAMESPACE);
    let set = sets
        .get(AGENT_NAME)
        .await
        .map_err(|error| cluster.fault("read DaemonSet tp-agent", &error))?;
    let Some(counts) = Counts::of(&set) else {
        return Ok(Rollout::Pending(PodState::pending(
            "the change is about to begin",
        )));
    };
    if counts.updated == counts.wanted && counts.available == counts.wanted {
        let without = Vec::new();
        return Ok(Rollout::Done { without });
    }

    let pods: Api<Pod> = Api::namespaced(client.clone(), AGENT_NAMESPACE);
    let labelled =
        ListParams::default().labels("app.kubernetes.io/name=tp,app.kubernetes.io/component=agent");
    let list = pods
        .list(&labelled)
        .await
        .map_err(|error| cluster.fault("list the pods of tp", &error))?;
    let revisions: Api<ControllerRevision> = Api::namespaced(client.clone(), AGENT_NAMESPACE);
    let revisions = revisions
        .list(&labelled)
        .await
        .map_err(|error| cluster.fault("list the revisions of DaemonSet tp-agent", &error))?;
    let survey = Survey {
        counts,
        revision: newest(&revisions.items),
        pods: &list.items,
        unready_nodes: unready_nodes(cluster).await,
    };

    Ok(match survey.finding() {
        Finding::Done { without } => Rollout::Done { without },
        Finding::Settling => Rollout::Pending(PodState::pending("they started a moment ago")),
        Finding::Replaced(pod) => Rollout::Pending(PodState::pending(format!(
            "{} is being replaced",
            called(pod)
        ))),
        Finding::Unready(pod) => Rollout::Pending(of_pod(&pods, pod, &called(pod)).await),
        Finding::Missing(count) => {
            let owner = Owner {
                kind: "DaemonSet",
                namespace: AGENT_NAMESPACE,
                name: AGENT_NAME,
            };
            let called = match count {
                1 => "the agent of one node".to_owned(),
                count => format!("the agent of each of {count} nodes"),
            };
            Rollout::Pending(not_created(cluster, owner, &called).await)
        }
    })
}

/// From the status of the DaemonSet.
#[derive(Clone, Copy)]
struct Counts {
    wanted: usize,
    updated: usize,
    available: usize,
}

impl Counts {
    /// `None` until the status describes the set as applied.
    fn of(set: &DaemonSet) -> Option<Self> {
        let status = set.status.as_ref()?;
        let count = |number: i32| usize::try_from(number).unwrap_or(0);

        (status.observed_generation >= set.metadata.generation).then(|| Self {
            wanted: count(status.desired_number_scheduled),
            updated: count(status.updated_number_scheduled.unwrap_or(0)),
            available: count(status.number_available.unwrap_or(0)),
        })
    }
}

struct Survey<'a> {
    counts: Counts,
    /// That of the template as applied.
    revision: Option<&'a str>,
    pods: &'a [Pod],
    unready_nodes: BTreeSet<String>,
}

#[derive(Debug, PartialEq)]
enum Finding<'a> {
    Done {
        without: Vec<String>,
    },
    /// All are ready, but not for long enough.
    Settling,
    Replaced(&'a Pod),
    Unready(&'a Pod),
    /// So many have no pod.
    Missing(usize),
}

impl<'a> Survey<'a> {
    fn finding(&self) -> Finding<'a> {
        let mut without = BTreeSet::new();
        let mut ready = 0;
        let mut replaced = None;
        for pod in self.pods {
            if let Some(node) = node_of(pod).filter(|node| self.unready_nodes.contains(*node)) {
                without.insert(node.to_owned());
            } else if !self.is_current(pod) {
                replaced = replaced.or(Some(pod));
            } else if is_ready(pod) {
                ready += 1;
            } else {
                return Finding::Unready(pod);
            }
        }
        let there = ready + without.len();
        match replaced {
            Some(pod) => Finding::Replaced(pod),
            None if there < self.counts.wanted => Finding::Missing(self.counts.wanted - there),
            None if self.counts.available + without.len() < self.counts.wanted => Finding::Settling,
            None => Finding::Done {
                without: without.into_iter().collect(),
            },
        }
    }

    /// The reason of an earlier pod is that of an earlier installation.
    fn is_current(&self, pod: &Pod) -> bool {
        let revision = pod.labels().get(REVISION).map(String::as_str);

        revision == self.revision && pod.metadata.deletion_timestamp.is_none()
    }
}

fn newest(revisions: &[ControllerRevision]) -> Option<&str> {
    let newest = revisions.iter().max_by_key(|it| it.revision)?;

    newest.labels().get(REVISION).map(String::as_str)
}

/// The name of a pod in messages: which node it is of tells more.
fn called(pod: &Pod) -> String {
    let name = pod.name_any();

    match node_of(pod) {
        Some(node) => format!("{name} on {node}"),
        None => name,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(node: &str, revision: &str, ready: bool) -> Pod {
        let ready = if ready { "True" } else { "False" };
        let value = json!({
            "metadata": {"name": format!("tp-agent-{node}"), "labels": {REVISION: revision}},
            "spec": {"nodeName": node, "containers": []},
            "status": {"conditions": [{"type": "Ready", "status": ready}]},
        });

        serde_json::from_value(value).unwrap()
    }

    fn survey<'a>(pods: &'a [Pod], wanted: usize, available: usize) -> Survey<'a> {
        Survey {
            counts: Counts {
                wanted,
                updated: wanted,
                available,
            },
            revision: Some("new"),
            pods,
            unready_nodes: BTreeSet::from(["down".to_owned()]),
        }
    }

    fn done(without: &[&str]) -> Finding<'static> {
        Finding::Done {
            without: without.iter().map(|&node| node.to_owned()).collect(),
        }
    }

    #[test]
    fn a_node_that_is_not_ready_holds_nobody_up() {
        let pods = [pod("a", "new", true), pod("down", "old", false)];

        assert_eq!(survey(&pods, 2, 1).finding(), done(&["down"]));
    }

    #[test]
    fn an_agent_of_a_ready_node_is_waited_for() {
        let pods = [pod("a", "new", true), pod("b", "new", false)];

        assert_eq!(survey(&pods, 2, 1).finding(), Finding::Unready(&pods[1]));
        assert_eq!(called(&pods[1]), "tp-agent-b on b");
    }

    #[test]
    fn what_an_earlier_agent_suffered_from_is_not_told() {
        let pods = [pod("a", "old", false), pod("b", "new", true)];

        assert_eq!(survey(&pods, 2, 1).finding(), Finding::Replaced(&pods[0]));
    }

    #[test]
    fn an_agent_that_admission_refuses_is_missed() {
        let pods = [pod("a", "new", true)];

        assert_eq!(survey(&pods, 3, 1).finding(), Finding::Missing(2));
    }

    #[test]
    fn an_agent_that_has_just_started_is_not_trusted_yet() {
        let pods = [pod("a", "new", true)];

        assert_eq!(survey(&pods, 1, 0).finding(), Finding::Settling);
        assert_eq!(survey(&pods, 1, 1).finding(), done(&[]));
    }

    #[test]
    fn a_status_of_before_the_change_tells_nothing() {
        let set = |generation: i64, status: Value| -> DaemonSet {
            let value = json!({"metadata": {"generation": generation}, "status": status});
            serde_json::from_value(value).unwrap()
        };
        let status = json!({
            "observedGeneration": 1, "desiredNumberScheduled": 2, "numberAvailable": 2,
            "updatedNumberScheduled": 2, "currentNumberScheduled": 2, "numberMisscheduled": 0,
            "numberReady": 2,
        });

        assert!(Counts::of(&set(2, status.clone())).is_none());
        assert_eq!(Counts::of(&set(1, status)).unwrap().available, 2);
    }

    #[test]
    fn the_newest_revision_is_that_of_the_template() {
        let revision = |number: i64, hash: &str| -> ControllerRevision {
            let metadata = json!({"name": hash, "labels": {REVISION: hash}});
            serde_json::from_value(json!({"metadata": metadata, "revision": number})).unwrap()
        };

        // A template that was there before has its number raised.
        let revisions = [revision(3, "new"), revision(2, "old")];
        assert_eq!(newest(&revisions), Some("new"));
        assert_eq!(newest(&[]), None);
    }
}
