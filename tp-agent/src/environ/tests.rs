use std::collections::BTreeSet;

use tp_agent_api::PodIds;
use tp_core::intercept::holders::WorkloadKey;

use super::*;
use crate::facts::PodFacts;

fn facts(namespace: &str) -> Facts {
    let pod = PodFacts {
        name: "web-0".into(),
        created: 0,
        workloads: vec![WorkloadKey {
            namespace: namespace.into(),
            kind: "Deployment".into(),
            name: "web".into(),
        }],
        ids: PodIds {
            uid: "mirrored".into(),
            containers: vec!["c1".into()],
            addresses: Vec::new(),
        },
        addresses: Vec::new(),
        nodes: Vec::new(),
        probed: BTreeSet::new(),
        http_probed: BTreeSet::new(),
        obstacle: None,
    };

    Facts {
        pods: [("p1".to_owned(), pod)].into(),
        ..Facts::default()
    }
}

fn question(namespace: &str, pod: &str, container: &str) -> EnvironQuestion {
    EnvironQuestion {
        namespace: namespace.into(),
        pod: pod.into(),
        container: container.into(),
        ..EnvironQuestion::default()
    }
}

#[test]
fn only_a_container_of_this_node_in_a_namespace_that_is_served_is_read() {
    let rules = Rules::default();
    let asked = |namespace: &str, pod: &str, container: &str| {
        pod_uid(
            &facts(namespace),
            &rules,
            &question(namespace, pod, container),
        )
    };

    assert_eq!(asked("shop", "p1", "c1").unwrap(), "mirrored");
    assert!(asked("shop", "p2", "c1").is_err());
    assert!(asked("shop", "p1", "c2").is_err());
    assert!(asked("tp-system", "p1", "c1").is_err());
    assert!(asked("tp-agents", "p1", "c1").is_err());
    assert!(asked("kube-system", "p1", "c1").is_err());
    // The right is asked for the namespace that the question names.
    assert!(pod_uid(&facts("bank"), &rules, &question("shop", "p1", "c1")).is_err());
}

fn read(bytes: &[u8], excluded: &[&str]) -> Vec<EnvironPart> {
    let excluded: Vec<NamePattern> = excluded.iter().map(|it| it.parse().unwrap()).collect();

    parts(7, Environ::parse(bytes), &excluded)
}

fn joined(parts: &[EnvironPart]) -> Vec<u8> {
    parts.iter().flat_map(|it| it.part.to_vec()).collect()
}

#[test]
fn an_environment_fits_into_messages_of_the_protocol() {
    use prost::Message as _;

    let environ = [b"A=", vec![b'x'; MAX_ENVIRON - 3].as_slice(), b"\0"].concat();
    let parts = read(&environ, &[]);

    let sizes = parts.iter().map(|part| part.encoded_len());
    assert!(sizes.max().unwrap() < 16 << 10);
    let (last, before) = parts.split_last().unwrap();
    assert!(last.is_last && before.iter().all(|part| !part.is_last));
    assert_eq!(joined(&parts), environ);
    assert_eq!(read(b"", &[]).len(), 1);
}

#[test]
fn what_is_excluded_does_not_leave_the_node() {
    let parts = read(b"A=1\0DB_USER=app\0DB_PASSWORD=hunter2\0", &["DB_*", "C"]);

    assert_eq!(joined(&parts), b"A=1\0");
    let last = parts.last().unwrap();
    assert_eq!((last.excluded, last.is_overwritten), (2, false));
    // For what the manager rebuilds.
    assert_eq!(last.excluded_names, ["DB_*", "C"]);
}

#[test]
fn nothing_is_sent_of_an_environment_that_was_overwritten() {
    let parts = read(b"nginx: master process\0\0\0", &[]);

    assert_eq!(joined(&parts), b"");
    assert!(parts[0].is_last && parts[0].is_overwritten);
}

#[test]
fn a_part_shows_none_of_its_bytes() {
    let part = &read(b"TOKEN=hunter2\0", &[])[0];

    assert!(!format!("{part:?}").contains("hunter2"));
    assert!(!format!("{part:?}").contains("104"), "{part:?}");
}
