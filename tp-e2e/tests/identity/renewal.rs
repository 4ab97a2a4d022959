//! Renewals: the user's current groups count, and only the user can renew.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::timeout;
use tp_e2e::{
    applied::{Applied, Subject, right},
    cluster::testbed,
    process::{PATIENCE, eventually},
};
use tp_proto::crd::{Session, SessionSpec};
use tp_transport::Identity;

use super::support::{
    Admitted, Forward, Made, POLICY, create, key, made, reached, ready, refused_dial, session, web,
};

/// May make Sessions in team-b.
const USER: &str = "e2e-renewer";
/// Its members may reach shop.
const GROUP: &str = "e2e-shop";

fn granted() -> [Applied; 2] {
    [
        ("team-b", Subject::User(USER)),
        ("shop", Subject::Group(GROUP)),
    ]
    .map(|(namespace, subject)| {
        let deletion = ["rolebinding", "e2e-renewal", "--namespace", namespace];

        Applied::new(&right("e2e-renewal", namespace, subject), &deletion)
    })
}

/// The object by which `user` would renew a Session, as tp makes it.
fn renewal(of: &Made, user: &Value, key: &Identity) -> Value {
    let spec = SessionSpec {
        user: serde_json::from_value(user.clone()).unwrap(),
        key_hash: key.key_hash().to_string(),
        client_version: env!("CARGO_PKG_VERSION").into(),
        renews: None,
    };
    let renewal = Session::renewal(&of.session.name, &of.session.uid, spec);
    let mut renewal = serde_json::to_value(renewal).unwrap();
    renewal["metadata"]["namespace"] = json!(of.session.namespace);
    renewal
}

/// The user, in these additional groups.
struct Person(Vec<String>);

impl Person {
    fn in_groups(groups: &[&str]) -> Self {
        let mut flags = vec![
            format!("--as={USER}"),
            "--as-group=system:authenticated".to_owned(),
        ];
        flags.extend(groups.iter().map(|group| format!("--as-group={group}")));
        Self(flags)
    }

    fn makes(&self, object: impl Fn(&Value) -> Value) -> Made {
        let flags: Vec<&str> = self.0.iter().map(String::as_str).collect();
        let created = create("admin", &flags, &object(&testbed().whoami("admin", &flags)));
        assert!(created.status.success(), "{created}");
        Made::of(&created.json())
    }
}

#[tokio::test]
async fn a_renewal_brings_the_users_groups_of_the_day_to_a_living_connection() {
    ready();
    let _granted = granted();
    let forward = Forward::start();
    let own = key();
    let alone = Person::in_groups(&[]);
    let made = alone.makes(|user| session("team-b", user, &own));
    let tunnel = forward.connect(&made.session, &own).await.unwrap();
    let target = web();
    assert!(refused_dial(&tunnel, &target).await.contains("shop"));

    let joined = Person::in_groups(&[GROUP]).makes(|user| renewal(&made, user, &own));
    let (_send, mut receive) = reached(&tunnel, &target).await.split();

    let _left = eventually("a later second", PATIENCE, || {
        let left = alone.makes(|user| renewal(&made, user, &own));
        if left.created > joined.created {
            Ok(left)
        } else {
            Err(left.created.clone())
        }
    });
    let ended = timeout(Duration::from_secs(5), receive.read_chunk(1024)).await;
    let ended = ended.expect("the flow ends with the membership");
    assert!(ended.is_err(), "a reset is expected, not {ended:?}");
    assert!(refused_dial(&tunnel, &target).await.contains("shop"));
}

#[tokio::test]
async fn another_users_renewal_is_refused_or_changes_nothing() {
    let Admitted {
        forward,
        key: own,
        made,
        tunnel,
    } = Admitted::new("team-b", "limited").await;
    let target = web();

    let forged = create(
        "dev",
        &[],
        &renewal(&made, &testbed().whoami("limited", &[]), &own),
    );
    let by_policy = format!("ValidatingAdmissionPolicy '{POLICY}'");
    assert!(forged.stderr.contains(&by_policy), "{forged}");

    // With the true creator it is an ordinary object.
    let honest = create(
        "dev",
        &[],
        &renewal(&made, &testbed().whoami("dev", &[]), &own),
    );
    assert!(honest.status.success(), "{honest}");
    let honest = Made::of(&honest.json());
    let refused = forward.refusal(&honest.session, &own).await;
    assert!(refused.contains("renews another one"), "{refused}");
    // The manager has seen it by now, and dev may reach shop.
    assert!(refused_dial(&tunnel, &target).await.contains("shop"));
}

#[test]
fn renewals_go_with_their_session() {
    ready();
    let own = key();
    let made = made("dev", &own);
    let renewed = create(
        "dev",
        &[],
        &renewal(&made, &testbed().whoami("dev", &[]), &own),
    );
    assert!(renewed.status.success(), "{renewed}");
    let renewed = Made::of(&renewed.json());

    drop(made);

    eventually("the renewal to be collected", PATIENCE, || {
        let words = ["get", "session", &renewed.session.name, "--namespace=shop"];
        let found = testbed().kubectl_as("dev", &words);
        if found.stderr.contains("NotFound") {
            Ok(())
        } else {
            Err(found.to_string())
        }
    });
}
