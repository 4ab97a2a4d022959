//! Reads one Intercept at a time: a malformed one must not hide the others.

use kube::{ResourceExt as _, api::DynamicObject};
use tp_core::intercept::holders::WorkloadKey;
use tp_proto::crd::{INTERCEPT, InterceptSpec};

use super::KnownIntercept;
use crate::facts::InterceptFacts;

/// An Intercept with its UID, if it may have anything.
pub(super) fn read(object: &DynamicObject) -> Option<(String, KnownIntercept)> {
    let (uid, namespace) = (object.uid()?, object.namespace()?);
    let created = object.metadata.creation_timestamp.as_ref()?.0.as_second();
    let spec = InterceptSpec::as_made(object)?;
    if spec.mode != INTERCEPT || spec.user.username.is_empty() {
        return None;
    }
    let ports = spec.ports.iter().filter(|port| port.protocol == "TCP");
    let facts = InterceptFacts {
        created,
        ports: ports.map(|port| port.port).collect(),
        replica: spec.pod().map(str::to_owned),
        workload: WorkloadKey {
            namespace,
            kind: spec.workload.kind,
            name: spec.workload.name,
        },
        has_local_probes: spec.probes == "local",
        falls_back: spec.when_down == "container",
        takes_open: spec.take_open,
    };

    Some((
        uid,
        KnownIntercept {
            facts,
            user: spec.user,
        },
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn object() -> Value {
        json!({
            "apiVersion": "tp.internal/v1alpha1",
            "kind": "Intercept",
            "metadata": {
                "name": "web", "namespace": "shop", "uid": "1", "generation": 1,
                "creationTimestamp": "2026-01-01T00:00:00Z",
            },
            "spec": {
                "user": {"username": "alice"},
                "session": {"namespace": "shop", "name": "s", "uid": "2"},
                "workload": {"kind": "Deployment", "name": "web"},
                "ports": [{"port": 8080}, {"port": 53, "protocol": "UDP"}],
                "whenDown": "container",
            },
        })
    }

    fn read_json(object: Value) -> Option<InterceptFacts> {
        let object: DynamicObject = serde_json::from_value(object).unwrap();

        read(&object).map(|(_, intercept)| intercept.facts)
    }

    #[test]
    fn an_intercept_is_of_a_workload_in_its_own_namespace() {
        let facts = read_json(object()).unwrap();

        assert_eq!(facts.workload.namespace, "shop");
        assert_eq!(facts.ports.iter().collect::<Vec<_>>(), [&8080]);
        assert_eq!((facts.replica, facts.has_local_probes), (None, false));
        assert!(facts.falls_back && !facts.takes_open);
        let mut taking = object();
        taking["spec"]["takeOpen"] = json!(true);
        assert!(read_json(taking).unwrap().takes_open);
    }

    #[test]
    fn what_was_changed_or_is_malformed_or_unknown_has_nothing() {
        for (pointer, value) in [
            ("/metadata/generation", json!(2)),
            ("/metadata/deletionTimestamp", json!("2026-01-01T00:00:00Z")),
            ("/spec/ports", json!("8080")),
            ("/spec/mode", json!("wiretap")),
            ("/spec/user/username", json!("")),
        ] {
            let mut object = object();
            let (parent, key) = pointer.rsplit_once('/').unwrap();
            object.pointer_mut(parent).unwrap()[key] = value;
            assert!(read_json(object).is_none(), "{pointer}");
        }
    }
}
