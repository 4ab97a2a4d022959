use std::collections::BTreeSet;

use serde_json::json;

use super::*;
use crate::policy::Policy;

fn intercepts() -> Intercepts {
    let policy = watch::Sender::new(Policy::default());
    let sessions = Arc::new(Sessions::new(policy.subscribe()));

    Intercepts::new(sessions, Arc::default())
}

async fn set_session(intercepts: &Intercepts, number: usize, is_there: bool) {
    use kube::runtime::watcher::Event;

    let user = format!("user{}", number % 2);
    let object: DynamicObject = serde_json::from_value(json!({
        "apiVersion": "tp.internal/v1alpha1",
        "kind": "Session",
        "metadata": {
            "name": format!("s{number}"), "namespace": "shop", "uid": format!("s{number}"),
            "generation": 1, "creationTimestamp": Timestamp::now().to_string(),
        },
        "spec": {
            "user": {"username": user},
            "keyHash": format!("{number:064x}"),
            "clientVersion": "0.1.0",
        },
    }))
    .unwrap();
    let event = match is_there {
        true => Event::Apply(object),
        false => Event::Delete(object),
    };
    let events = futures::stream::iter([Ok(event)]);
    intercepts.sessions.apply(events, || {}).await;
}

fn object(number: usize, session: usize, generation: i64) -> DynamicObject {
    serde_json::from_value(json!({
        "apiVersion": "tp.internal/v1alpha1",
        "kind": "Intercept",
        "metadata": {
            "name": format!("i{number}"), "namespace": "shop", "uid": format!("i{number}"),
            "generation": generation,
            "creationTimestamp": Timestamp::from_second(1_700_000_000 + number as i64 / 3)
                .unwrap()
                .to_string(),
        },
        "spec": {
            "user": {"username": format!("user{}", session % 2)},
            "session": {
                "namespace": "shop", "name": format!("s{session}"), "uid": format!("s{session}"),
            },
            "workload": {"kind": "Deployment", "name": format!("web{}", number % 2)},
            "ports": [{"port": 80 + number % 3}],
        },
    }))
    .unwrap()
}

#[tokio::test]
async fn after_any_history_it_stands_as_after_a_fresh_start() {
    for seed in 0..50 {
        let mut random = fastrand::Rng::with_seed(seed);
        let known = intercepts();
        let mut objects: BTreeMap<usize, DynamicObject> = BTreeMap::new();
        let mut sessions: BTreeSet<usize> = BTreeSet::new();
        for _ in 0..60 {
            let number = random.usize(..8);
            match random.u8(..5) {
                0 => {
                    known.remove(&format!("i{number}"));
                    objects.remove(&number);
                }
                1 => {
                    let is_there = sessions.insert(number) || !sessions.remove(&number);
                    set_session(&known, number, is_there).await;
                }
                step => {
                    let generation = if step == 2 { 2 } else { 1 };
                    let object = object(number, random.usize(..8), generation);
                    known.insert(&object);
                    objects.insert(number, object);
                }
            }
            // Cached between the changes.
            assert!(Arc::ptr_eq(&known.standings(), &known.standings()));
        }

        let fresh = intercepts();
        for number in sessions {
            set_session(&fresh, number, true).await;
        }
        for object in objects.values() {
            fresh.insert(object);
        }
        assert_eq!(known.standings(), fresh.standings(), "seed {seed}");
    }
}

#[tokio::test]
async fn only_an_intercept_whose_session_is_known_to_be_gone_is_an_orphan() {
    let known = intercepts();
    known.insert(&object(1, 1, 1));
    let now = Timestamp::now();
    assert!(known.orphans(now).is_empty(), "Sessions are not listed yet");

    use kube::runtime::watcher::Event;
    let events = futures::stream::iter([Ok(Event::Init), Ok(Event::InitDone)]);
    known.sessions.apply(events, || {}).await;
    assert_eq!(known.orphans(now).len(), 1);
    let created = Timestamp::from_second(1_700_000_005).unwrap();
    assert!(known.orphans(created).is_empty(), "it is too young");
    set_session(&known, 1, true).await;
    assert!(known.orphans(now).is_empty());
}
