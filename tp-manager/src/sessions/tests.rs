use serde_json::{Value, json};

use super::*;

const POLICY: i64 = 1_700_000_000;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(POLICY + second).unwrap()
}

fn key(digit: char) -> KeyHash {
    digit.to_string().repeat(64).parse().unwrap()
}

fn reference(uid: &str) -> SessionRef {
    SessionRef {
        namespace: "shop".into(),
        name: format!("alice-{uid}"),
        uid: uid.into(),
    }
}

fn object(uid: &str, created: i64, key: char) -> Value {
    json!({
        "apiVersion": "tp.internal/v1alpha1",
        "kind": "Session",
        "metadata": {
            "name": format!("alice-{uid}"),
            "namespace": "shop",
            "uid": uid,
            "generation": 1,
            "creationTimestamp": at(created).to_string(),
        },
        "spec": {
            "user": {"username": "alice"},
            "keyHash": key.to_string().repeat(64),
            "clientVersion": "0.1.0",
        },
    })
}

async fn sessions(objects: Vec<Value>) -> Sessions {
    under_policy(objects).await.1
}

/// The sender stands for the watch of the policy.
async fn under_policy(objects: Vec<Value>) -> (watch::Sender<Policy>, Sessions) {
    let policy = watch::Sender::new(Policy::proven_since(at(0), at(100)));
    let sessions = Sessions::new(policy.subscribe());
    for object in objects {
        apply(&sessions, object).await;
    }

    (policy, sessions)
}

async fn apply(sessions: &Sessions, object: Value) {
    let event = Event::Apply(serde_json::from_value(object).unwrap());
    sessions
        .apply(futures::stream::iter([Ok(event)]), || {})
        .await;
}

fn reason(sessions: &Sessions, uid: &str, digit: char) -> String {
    let verdict = sessions.check_admission(&reference(uid), Some(&key(digit)), at(120));
    verdict.unwrap_err().reason
}

#[tokio::test]
async fn a_session_made_under_the_policy_is_admitted_with_its_key() {
    let sessions = sessions(vec![object("a", 50, '1')]).await;

    assert_eq!(
        sessions.check_admission(&reference("a"), Some(&key('1')), at(120)),
        Ok(())
    );
    assert!(reason(&sessions, "a", '2').contains("key is not that of"));
}

#[tokio::test]
async fn a_session_of_another_uid_or_name_does_not_exist() {
    let sessions = sessions(vec![object("a", 50, '1')]).await;
    let mut other = reference("a");
    other.name = "bob".into();

    let refusal = sessions.check_admission(&other, None, at(120)).unwrap_err();

    assert!(refusal.reason.contains("does not exist"));
    assert!(refusal.retry);
}

#[tokio::test]
async fn a_session_as_old_as_the_policy_is_void() {
    let sessions = sessions(vec![object("a", 1, '1')]).await;

    assert!(reason(&sessions, "a", '1').contains("older than the admission policy"));
}

#[tokio::test]
async fn a_session_that_was_changed_is_void() {
    let mut changed = object("a", 50, '1');
    changed["metadata"]["generation"] = json!(2);
    let sessions = sessions(vec![changed]).await;

    assert!(reason(&sessions, "a", '1').contains("was changed"));
}

#[tokio::test]
async fn a_session_without_a_valid_specification_is_void() {
    let mut broken = object("a", 50, '1');
    broken["spec"] = json!({"user": 7});
    let sessions = sessions(vec![broken, object("b", 50, '2')]).await;

    assert!(reason(&sessions, "a", '1').contains("no valid specification"));
    assert!(
        sessions
            .check_admission(&reference("b"), Some(&key('2')), at(120))
            .is_ok()
    );
}

#[tokio::test]
async fn a_key_belongs_to_the_session_that_had_it_first() {
    let sessions = sessions(vec![object("a", 60, '1'), object("b", 50, '1')]).await;

    assert!(reason(&sessions, "a", '1').contains("in use by another"));
    assert!(
        sessions
            .check_admission(&reference("b"), Some(&key('1')), at(120))
            .is_ok()
    );
}

#[tokio::test]
async fn a_session_ends_after_its_lifetime() {
    let sessions = sessions(vec![object("a", 50, '1')]).await;
    let later = at(50) + LIFETIME + SignedDuration::from_secs(1);

    assert!(sessions.revalidate(&reference("a"), None, at(120)).is_ok());
    assert!(sessions.revalidate(&reference("a"), None, later).is_err());
    assert_eq!(sessions.expired(later), [reference("a")]);
}

#[tokio::test]
async fn who_is_connected_stays_while_the_policy_is_away_and_ends_when_it_returns() {
    let policy = watch::Sender::new(Policy::default());
    let sessions = Sessions::new(policy.subscribe());
    let event = Event::Apply(serde_json::from_value(object("a", 50, '1')).unwrap());
    sessions
        .apply(futures::stream::iter([Ok(event)]), || {})
        .await;

    assert!(sessions.revalidate(&reference("a"), None, at(120)).is_ok());
    assert!(
        sessions
            .check_admission(&reference("a"), None, at(120))
            .is_err()
    );
    policy.send_replace(Policy::proven_since(at(100), at(119)));
    assert!(sessions.revalidate(&reference("a"), None, at(120)).is_err());
}

#[tokio::test]
async fn a_deleted_session_is_gone() {
    let sessions = sessions(vec![object("a", 50, '1')]).await;
    let event = Event::Delete(serde_json::from_value(object("a", 50, '1')).unwrap());

    sessions
        .apply(futures::stream::iter([Ok(event)]), || {})
        .await;

    assert!(sessions.revalidate(&reference("a"), None, at(120)).is_err());
}

/// A renewal of Session `a` by its user, who is in these groups now.
fn renewal(uid: &str, created: i64, groups: &[&str]) -> Value {
    let mut renewal = object(uid, created, '1');
    renewal["spec"]["renews"] = json!("a");
    renewal["spec"]["user"]["groups"] = json!(groups);
    renewal
}

fn alice(groups: &[&str]) -> User {
    User::new(tp_proto::crd::UserInfo {
        username: "alice".into(),
        groups: groups.iter().map(|&group| group.into()).collect(),
        ..Default::default()
    })
}

fn revalidated(sessions: &Sessions, now: Timestamp) -> ValidSession {
    sessions.revalidate(&reference("a"), None, now).unwrap()
}

fn after_the_lifetime() -> Timestamp {
    at(50) + LIFETIME + SignedDuration::from_secs(1)
}

#[tokio::test]
async fn a_renewal_gives_a_session_another_lifetime_and_the_groups_of_the_day() {
    let sessions = sessions(vec![
        object("a", 50, '1'),
        renewal("late", 7200, &["late"]),
        renewal("early", 3600, &["early"]),
    ])
    .await;
    let end = at(7200) + LIFETIME;

    assert_eq!(*revalidated(&sessions, at(7300)).user, alice(&["late"]));
    assert_eq!(sessions.expired(end), [reference("early")]);
    assert!(sessions.revalidate(&reference("a"), None, end).is_ok());
    let over = end + SignedDuration::from_secs(1);
    assert!(sessions.revalidate(&reference("a"), None, over).is_err());
    assert_eq!(sessions.expired(over).len(), 3);
}

#[tokio::test]
async fn a_session_that_was_renewed_is_admitted_after_its_first_lifetime() {
    let (policy, sessions) =
        under_policy(vec![object("a", 50, '1'), renewal("r", 7200, &[])]).await;
    let now = after_the_lifetime();
    policy.send_replace(Policy::proven_since(at(0), now));

    let verdict = sessions.check_admission(&reference("a"), Some(&key('1')), now);

    assert_eq!(verdict, Ok(()));
}

#[tokio::test]
async fn a_renewal_of_another_user_namespace_or_key_changes_nothing() {
    let changed = |change: fn(&mut Value)| {
        let mut renewal = renewal("r", 7200, &["admins"]);
        change(&mut renewal);
        renewal
    };
    let cases = [
        changed(|it| it["spec"]["user"]["username"] = json!("mallory")),
        changed(|it| it["spec"]["user"]["uid"] = json!("another")),
        changed(|it| it["spec"]["keyHash"] = json!("2".repeat(64))),
        changed(|it| it["metadata"]["namespace"] = json!("bank")),
        changed(|it| it["metadata"]["generation"] = json!(2)),
        changed(|it| it["metadata"]["deletionTimestamp"] = json!(at(7300).to_string())),
        changed(|it| it["spec"]["renews"] = json!("b")),
    ];

    for case in cases {
        let sessions = sessions(vec![object("a", 50, '1'), case.clone()]).await;

        let late = sessions.revalidate(&reference("a"), None, after_the_lifetime());

        assert_eq!(*revalidated(&sessions, at(7300)).user, alice(&[]), "{case}");
        assert!(late.is_err(), "{case}");
    }
}

#[tokio::test]
async fn a_renewal_does_not_save_a_session_as_old_as_the_policy() {
    let (policy, sessions) = under_policy(vec![object("a", 50, '1'), renewal("r", 90, &[])]).await;
    assert!(sessions.revalidate(&reference("a"), None, at(120)).is_ok());

    policy.send_replace(Policy::proven_since(at(60), at(119)));

    let void = sessions.revalidate(&reference("a"), None, at(120));
    assert!(
        void.unwrap_err()
            .contains("older than the admission policy")
    );
}

#[tokio::test]
async fn a_renewal_made_while_the_policy_is_away_changes_nothing() {
    let (policy, sessions) =
        under_policy(vec![object("a", 50, '1'), renewal("r", 60, &["dev"])]).await;
    let before = revalidated(&sessions, at(100));

    policy.send_replace(Policy::default());
    apply(&sessions, renewal("forged", 110, &["admins"])).await;

    let meanwhile = sessions.revalidate(&reference("a"), Some(&before), at(120));
    assert_eq!(*meanwhile.unwrap().user, alice(&["dev"]));
    assert_eq!(*revalidated(&sessions, at(120)).user, alice(&[]));
}

#[tokio::test]
async fn nobody_connects_with_a_renewal() {
    let sessions = sessions(vec![object("a", 50, '1'), renewal("r", 60, &[])]).await;

    assert!(reason(&sessions, "r", '1').contains("renews another one"));
}

#[tokio::test]
async fn a_renewal_does_not_take_the_key_of_a_later_session() {
    let mut early = renewal("r", 50, &[]);
    early["spec"]["renews"] = json!("b");
    let sessions = sessions(vec![early, object("a", 60, '1')]).await;

    let verdict = sessions.check_admission(&reference("a"), Some(&key('1')), at(120));

    assert_eq!(verdict, Ok(()));
}

#[tokio::test]
async fn a_renewal_that_is_deleted_counts_no_more() {
    let sessions = sessions(vec![object("a", 50, '1'), renewal("r", 60, &["dev"])]).await;
    let event = Event::Delete(serde_json::from_value(renewal("r", 60, &["dev"])).unwrap());

    sessions
        .apply(futures::stream::iter([Ok(event)]), || {})
        .await;

    assert_eq!(*revalidated(&sessions, at(120)).user, alice(&[]));
}

#[tokio::test]
async fn a_renewal_without_its_session_keeps_nothing_alive() {
    let sessions = sessions(vec![renewal("r", 60, &[])]).await;

    assert!(sessions.revalidate(&reference("a"), None, at(120)).is_err());
    let over = at(60) + LIFETIME + SignedDuration::from_secs(1);
    assert_eq!(sessions.expired(over), [reference("r")]);
}

#[tokio::test]
async fn a_session_whose_object_is_taken_away_is_deleted_unless_its_time_is_over() {
    let sessions = sessions(vec![object("a", 50, '1')]).await;
    let valid = sessions.revalidate(&reference("a"), None, at(120)).unwrap();
    let is_deleted = |second| sessions.is_deleted(&reference("a"), &valid, at(second));
    assert!(!is_deleted(120));

    let mut ending = object("a", 50, '1');
    ending["metadata"]["deletionTimestamp"] = json!(at(121).to_string());
    apply(&sessions, ending).await;
    assert!(is_deleted(122));

    let event = Event::Delete(serde_json::from_value(object("a", 50, '1')).unwrap());
    let events = futures::stream::iter([Ok(event)]);
    sessions.apply(events, || {}).await;
    assert!(is_deleted(122));
    // Then a replica deletes it by itself.
    assert!(!is_deleted(51 + SESSION_LIFETIME_SECONDS));
}
