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

#[tokio::test]
async fn who_holds_a_port_is_known_and_who_took_it_over_is_remembered() {
    let known = intercepts();
    for session in [0, 1] {
        set_session(&known, session, true).await;
    }
    // Of user0 port 80 of web0, and of user1 port 81 of web1; a later one of user1 has nothing.
    for (number, session) in [(0, 0), (1, 1), (6, 1)] {
        known.insert(&object(number, session, 1));
    }
    let held: Vec<_> = known
        .held_in("shop")
        .into_iter()
        .map(|it| (it.record.uid.clone(), it.ports))
        .collect();
    assert_eq!(
        held,
        [("i0".to_owned(), vec![80]), ("i1".to_owned(), vec![81])]
    );
    assert!(known.held_in("bank").is_empty());
    let workload = known.record("i0").unwrap().claim().workload;
    let in_the_way = known.in_the_way(&workload, &[80, 81], Some("web0-1"));
    assert_eq!(in_the_way.len(), 1);
    assert_eq!(in_the_way[0].record.uid, "i0");
    assert!(known.in_the_way(&workload, &[81], None).is_empty());

    let mut taken = object(0, 0, 1);
    taken.data["status"] = json!({"phase": "TakenOver", "holder": "user1", "ports": "80"});
    known.insert(&taken);
    known.remove("i0");
    known.remove("i1");

    let why = |uid: &str| lock(&known.ended).why(uid);
    assert_eq!(why("i0").unwrap(), "user1 took port 80 over");
    assert!(why("i1").unwrap().contains("somebody has ended it"));
    assert_eq!(why("i6"), None);
    assert_eq!(known.held_in("shop")[0].record.uid, "i6");
}
