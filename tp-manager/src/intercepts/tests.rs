use std::{collections::BTreeSet, convert::Infallible, time::Duration};

use jiff::SignedDuration;
use kube::client::Body;
use serde_json::json;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::task::AbortOnDropHandle;
use tp_core::intercept::holders::DISCONNECTED_AFTER;
use tp_proto::agent::{PodPhase, PodReport};

use super::*;
use crate::{model::Pod, policy::Policy};

fn intercepts() -> Intercepts {
    under(Policy::default())
}

fn under(policy: Policy) -> Intercepts {
    replica("tp-manager-1", policy)
}

fn replica(pod: &str, policy: Policy) -> Intercepts {
    releasing(pod, policy, DISCONNECTED_AFTER)
}

fn releasing(pod: &str, policy: Policy, release_after: Duration) -> Intercepts {
    let policy = watch::Sender::new(policy);
    let sessions = Arc::new(Sessions::new(policy.subscribe()));
    let now = Timestamp::now();
    let whereabouts = Whereabouts::new(pod.into(), release_after, now);

    Intercepts::new(sessions, Arc::default(), SharedModel::new(), whereabouts)
}

/// Has another replica say that it has these sessions, as of this time.
fn take_part(known: &Intercepts, of: &str, sessions: &[&str], renewed: Timestamp, at: Instant) {
    let part = json!({
        "since": 0,
        "renewed": renewed.as_second(),
        "connected": sessions,
    });
    let data = [(of.to_owned(), part.to_string())].into();
    let name = "tp-manager-sessions".to_owned();
    known.take_record(vec![Update::Replaced([(name, data)].into())], at);
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
async fn only_an_intercept_whose_session_was_away_for_some_time_is_an_orphan() {
    let known = intercepts();
    known.insert(&object(1, 1, 1));
    let now = Instant::now();
    let orphans = |seconds| known.orphans(now + Duration::from_secs(seconds)).len();
    assert_eq!(orphans(0), 0, "Sessions are not listed yet");

    use kube::runtime::watcher::Event;
    let events = futures::stream::iter([Ok(Event::Init), Ok(Event::InitDone)]);
    known.sessions.apply(events, || {}).await;
    // It is years old by the API server's clock.
    assert_eq!(orphans(0), 0, "it was not seen without its Session before");
    assert_eq!(orphans(9), 0);
    assert_eq!(orphans(10), 1);
    assert_eq!(orphans(20), 1, "it was not deleted");
    set_session(&known, 1, true).await;
    assert_eq!(orphans(30), 0);
    set_session(&known, 1, false).await;
    assert_eq!(orphans(40), 0, "it begins anew");
    assert_eq!(orphans(50), 1);
}

#[tokio::test]
async fn after_a_restart_of_all_managers_who_does_not_come_back_yields() {
    let known = intercepts();
    for session in [0, 1] {
        set_session(&known, session, true).await;
    }
    // Both are of port 80 of web0, the first one's user is away.
    known.insert(&object(0, 0, 1));
    known.insert(&object(6, 1, 1));
    let now = Timestamp::now();
    let begun = Instant::now();
    take_part(&known, "tp-manager-0", &["s0", "s1"], now, begun);
    let after = |seconds: u64| {
        let later = now + SignedDuration::from_secs(seconds.cast_signed());
        known.derive(later, begun + Duration::from_secs(seconds))
    };
    let held_by_the_first = Standing::Holds {
        others: [(80, "i0".to_owned())].into(),
    };
    assert_eq!(after(1)["i6"], held_by_the_first);
    assert_eq!(after(590)["i6"], held_by_the_first);
    assert_eq!(after(601)["i0"], Standing::Away);

    // Another replica has the second one's session: it is never away.
    let later = begun + Duration::from_secs(601);
    take_part(&known, "tp-manager-2", &["s1"], now, later);
    let standings = after(602);
    assert_eq!(standings["i0"], Standing::Away);
    let others = BTreeMap::new();
    assert_eq!(standings["i6"], Standing::Holds { others });
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

fn pod_report(intercept: &str, name: &str, pod: &str, phase: PodPhase) -> PodReport {
    PodReport {
        intercept: intercept.into(),
        pod: pod.into(),
        name: name.into(),
        phase: phase.into(),
        ..PodReport::default()
    }
}

fn set_pod(known: &Intercepts, namespace: &str, name: &str, node: &str) {
    let pod = Pod {
        addresses: vec!["10.244.1.7".parse().unwrap()],
        uid: format!("uid-of-{name}").into(),
        node: node.into(),
        ..Pod::default()
    };
    let name = ObjectName::new(namespace, name);
    known
        .model
        .update(|model| model.update_pods(Update::Applied(name, pod)));
}

#[test]
fn an_agent_is_believed_only_of_pods_of_its_node_in_the_namespace_of_the_intercept() {
    let known = intercepts();
    known.insert(&object(0, 0, 1));
    set_pod(&known, "shop", "web-1", "node1");
    set_pod(&known, "bank", "db-1", "node1");
    let record = known.record("i0").unwrap();
    let (node1, node2): (Arc<str>, Arc<str>) = ("node1".into(), "node2".into());
    let redirected = |name: &str| {
        let uid = format!("uid-of-{name}");
        pod_report("i0", name, &uid, PodPhase::Redirected)
    };
    let believed = || {
        let reports = known.reports_of(&record).into_iter();
        reports.map(|it| it.report.name).collect::<Vec<_>>()
    };

    assert_eq!(known.report(1, &node1, vec![redirected("web-1")]), 0);
    assert_eq!(believed(), ["web-1"]);
    // The one of another node, one of another namespace, and one that is not there.
    assert_eq!(known.report(2, &node2, vec![redirected("web-1")]), 1);
    assert_eq!(known.report(1, &node1, vec![redirected("db-1")]), 0);
    assert_eq!(known.report(1, &node1, vec![redirected("web-2")]), 0);
    let forged = pod_report("i0", "web-1", "other", PodPhase::Redirected);
    assert_eq!(known.report(1, &node1, vec![forged]), 0);
    assert_eq!(believed(), ["web-1"]);
    // It was known to the agent first.
    set_pod(&known, "shop", "web-2", "node1");
    assert_eq!(believed(), ["web-1", "web-2"]);
    let refused = pod_report("i0", "web-3", "uid-of-web-3", PodPhase::Refused);
    known.report(1, &node1, vec![refused]);
    assert_eq!(believed(), ["web-1", "web-2", "web-3"]);
    // While an agent is replaced both are there.
    known.report(3, &node1, vec![redirected("web-1")]);
    assert_eq!(believed(), ["web-1", "web-2", "web-3"]);
}

#[test]
fn a_report_wakes_no_agent() {
    let known = intercepts();
    known.insert(&object(0, 0, 1));
    let mut changes = known.changes();
    changes.mark_unchanged();
    let mut reported = known.reported.subscribe();

    let report = pod_report("i0", "web-1", "uid", PodPhase::Refused);
    known.report(1, &"node1".into(), vec![report]);
    known.forget_agent(1);

    assert!(!changes.has_changed().unwrap());
    assert_eq!(*reported.borrow_and_update(), 2);
}

#[tokio::test]
async fn an_intercept_older_than_the_admission_policy_is_void() {
    let now = Timestamp::now();
    let earlier = |seconds| now - SignedDuration::from_secs(seconds);
    let known = under(Policy::proven_since(earlier(1000), earlier(1)));
    for session in [0, 1] {
        set_session(&known, session, true).await;
    }
    let mut covered = object(6, 1, 1);
    covered.metadata.creation_timestamp = Some(
        k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(earlier(10)),
    );
    known.insert(&object(0, 0, 1));
    known.insert(&covered);

    let standings = known.standings();

    assert_eq!(standings["i0"], Standing::Orphan);
    let others = BTreeMap::new();
    assert_eq!(standings["i6"], Standing::Holds { others });
}

#[tokio::test]
async fn the_status_of_an_intercept_whose_session_left_says_since_when() {
    let known = intercepts();
    for session in [0, 1, 2] {
        set_session(&known, session, true).await;
        known.insert(&object(session, session, 1));
    }
    let session = |number: usize| known.record(&format!("i{number}")).unwrap().session.clone();
    // One was here, one is connected to another replica, and one was to a third that is gone.
    known.disconnected.insert(session(0));
    let left = known.disconnected.since(&session(0)).unwrap();
    let now = Instant::now();
    let gone = Timestamp::now() - SignedDuration::from_secs(60);
    let gone_at = gone.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let before = now - Duration::from_secs(61);
    take_part(&known, "tp-manager-0", &["s1"], Timestamp::now(), now);
    take_part(&known, "tp-manager-2", &["s2"], gone, before);

    let statuses = known.statuses();

    let told: Vec<_> = statuses
        .into_iter()
        .map(|(record, status)| (record.uid.clone(), status.phase, status.since.unwrap()))
        .collect();
    let left = left.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    // The first replica that lives tells it of what no replica has.
    assert_eq!(told, [("i0".to_owned(), "Disconnected".to_owned(), left)]);
    let first = replica("tp-manager-0", Policy::default());
    for session in [0, 1, 2] {
        set_session(&first, session, true).await;
        first.insert(&object(session, session, 1));
    }
    take_part(&first, "tp-manager-2", &["s2"], gone, before);
    take_part(&first, "tp-manager-3", &["s0", "s1"], gone, now);
    let told = first.statuses();
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].0.uid, "i2");
    assert_eq!(told[0].1.since.as_ref(), Some(&gone_at));
}

#[tokio::test]
async fn the_status_of_an_intercept_that_was_taken_over_is_not_written_again() {
    let known = intercepts();
    set_session(&known, 0, true).await;
    let mut object = object(0, 0, 1);
    known.insert(&object);
    let session = known.record("i0").unwrap().session.clone();
    known.disconnected.insert(session);
    assert_eq!(known.statuses().len(), 1);

    object.data["status"] = json!({"phase": "TakenOver", "holder": "user1", "ports": "80"});
    known.insert(&object);

    assert!(known.statuses().is_empty());
}

#[tokio::test]
async fn a_session_is_recorded_whoever_else_names_its_uid() {
    let known = intercepts();
    set_session(&known, 0, true).await;
    known.apply(vec![Update::Replaced(BTreeMap::new())]);
    known.take_record(vec![Update::Replaced(BTreeMap::new())], Instant::now());
    known.insert(&object(0, 0, 1));
    let mut forged = object(1, 1, 1);
    // It is looked at first.
    forged.metadata.uid = Some("a0".into());
    forged.data["spec"]["session"] = json!({"namespace": "shop", "name": "other", "uid": "s0"});
    known.insert(&forged);
    let session = known.record("i0").unwrap().session.clone();
    known.disconnected.insert(session);

    assert!(known.note_sessions());

    assert!(known.whereabouts.had("s0"));
}

#[tokio::test]
async fn a_session_is_deleted_only_once_its_tunnel_cannot_live_any_more() {
    let minute = Duration::from_secs(60);
    let abandoned = |seconds| {
        let known = releasing("tp-manager-1", Policy::default(), minute);
        known.insert(&object(0, 0, 1));
        let renewed = Timestamp::now() - SignedDuration::from_secs(seconds);
        // The earlier process of this pod had it.
        take_part(&known, "tp-manager-1", &["s0"], renewed, Instant::now());
        known.abandoned().len()
    };
    assert_eq!(abandoned(61), 0, "the client may be silent");
    assert_eq!(abandoned(125), 0);
    assert_eq!(abandoned(135), 1);
}

#[test]
fn a_session_that_intercepts_is_kept_for_as_long_as_it_holds_ports() {
    let kept_for = |release_after, session| {
        let release_after = Duration::from_secs(release_after);
        let known = releasing("tp-manager-1", Policy::default(), release_after);
        known.insert(&object(0, 0, 1));
        let mut named = known.record("i0").unwrap().session.clone();
        named.name = format!("s{session}");
        known.kept_for(&named, Duration::from_secs(60)).as_secs()
    };

    assert_eq!(kept_for(600, 0), 600);
    assert_eq!(kept_for(30, 0), 60);
    assert_eq!(kept_for(600, 1), 60, "no Intercept names it");
}

#[tokio::test]
async fn a_record_that_was_deleted_is_written_anew() {
    let (count, mut written) = watch::channel(0);
    let api_server = tower::service_fn(move |request: http::Request<Body>| {
        assert_eq!(request.method(), http::Method::PATCH);
        count.send_modify(|count| *count += 1);
        let map = json!({"metadata": {"name": "tp-manager-sessions"}});
        let body = Body::from(map.to_string().into_bytes());
        std::future::ready(Ok::<_, Infallible>(http::Response::new(body)))
    });
    let client = Client::new(api_server, "default");
    let known = Arc::new(intercepts());
    known.apply(vec![Update::Replaced(BTreeMap::new())]);
    known.take_record(vec![Update::Replaced(BTreeMap::new())], Instant::now());
    let keeping = whereabouts::keep(client, "tp-system".into(), Arc::clone(&known));
    let _keeping = AbortOnDropHandle::new(tokio::spawn(keeping));
    let limit = Duration::from_secs(5);
    let is_written = timeout(limit, written.wait_for(|count| *count == 1));
    drop(is_written.await.unwrap().unwrap());
    // What is not written cannot be waited for.
    sleep(Duration::from_millis(1500)).await;
    assert_eq!(*written.borrow(), 1, "nothing has changed");

    let removed = Update::Removed("tp-manager-sessions".to_owned());
    known.take_record(vec![removed], Instant::now());

    let is_written = timeout(limit, written.wait_for(|count| *count == 2));
    drop(is_written.await.unwrap().unwrap());
}
