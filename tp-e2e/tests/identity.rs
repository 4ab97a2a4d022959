//! Who may make a `Session`, and which Sessions the manager believes.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    os::fd::AsFd as _,
    process::Command,
    thread,
    time::Duration,
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::{Value, json};
use tokio::time::timeout;
use tp_e2e::{
    cluster::{testbed, text},
    process::{Finished, PATIENCE, Running, eventually, run},
    workstation::programs,
};
use tp_transport::{ConnectError, Dialed, Identity, PathChoice, SessionRef, Tunnel, TunnelConfig};

/// The policy takes effect, and is believed, some seconds after it was made.
const TRUST: Duration = Duration::from_secs(30);
const POLICY: &str = "tp-identity";

/// kubectl as a person.
fn kubectl(person: &str, arguments: &[&str]) -> Finished {
    let mut command = testbed().inside(&testbed().workstation());
    command
        .arg("kubectl")
        .args(arguments)
        .env("KUBECONFIG", testbed().kubeconfig(person));
    run(&mut command, PATIENCE)
}

fn create(person: &str, flags: &[&str], object: &Value) -> Finished {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), object.to_string()).unwrap();
    let path = file.path().display().to_string();
    let words = ["create", "--output=json", "--filename", &path];
    kubectl(person, &[&words, flags].concat())
}

fn whoami(person: &str, flags: &[&str]) -> Value {
    let words = ["auth", "whoami", "--output=json"];
    let review = kubectl(person, &[&words, flags].concat()).json();
    review["status"]["userInfo"].clone()
}

fn session(namespace: &str, user: &Value, key: &Identity) -> Value {
    json!({
        "apiVersion": "tp.internal/v1alpha1",
        "kind": "Session",
        "metadata": {"generateName": "e2e-", "namespace": namespace},
        "spec": {
            "user": user,
            "keyHash": key.key_hash().to_string(),
            "clientVersion": env!("CARGO_PKG_VERSION"),
        },
    })
}

/// Makes an honest Session; deleted with the guard.
fn made(person: &str, key: &Identity) -> Made {
    made_in("shop", person, key)
}

fn made_in(namespace: &str, person: &str, key: &Identity) -> Made {
    let object = session(namespace, &whoami(person, &[]), key);
    let created = create(person, &[], &object);
    assert!(created.status.success(), "{created}");
    Made::of(&created.json())
}

struct Made(SessionRef, String);

impl Made {
    fn of(object: &Value) -> Self {
        let metadata = &object["metadata"];
        let session = SessionRef {
            namespace: text(&metadata["namespace"]),
            name: text(&metadata["name"]),
            uid: text(&metadata["uid"]),
        };
        Self(session, text(&metadata["creationTimestamp"]))
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        let namespace = format!("--namespace={}", self.0.namespace);
        let words = ["delete", "session", &self.0.name, &namespace];
        kubectl("admin", &[&words[..], &["--ignore-not-found"]].concat());
    }
}

/// A forwarded port of the manager, as a client has it.
struct Forward {
    _kubectl: Running,
    address: SocketAddr,
}

impl Forward {
    fn start() -> Self {
        let port = 20_000 + u16::try_from(std::process::id() % 20_000).unwrap();
        let mut command = testbed().inside(&testbed().workstation());
        command
            .args(["kubectl", "port-forward", "tp-manager-0"])
            .arg(format!("{port}:7070"))
            .arg("--namespace=tp-system")
            .env("KUBECONFIG", testbed().kubeconfig("dev"));
        let mut kubectl = Running::start(&mut command);
        kubectl.wait_for("Forwarding from 127.0.0.1", PATIENCE);

        Self {
            _kubectl: kubectl,
            address: ([127, 0, 0, 1], port).into(),
        }
    }

    /// A connection from inside the workstation's network namespace.
    fn link(&self) -> tokio::net::TcpStream {
        let namespace = format!("/run/netns/{}", testbed().workstation());
        let address = self.address;
        let entered = thread::spawn(move || {
            let namespace = fs::File::open(namespace).unwrap();
            let network = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(namespace.as_fd(), network).unwrap();
            TcpStream::connect(address).unwrap()
        });
        let stream = entered.join().unwrap();
        stream.set_nonblocking(true).unwrap();
        tokio::net::TcpStream::from_std(stream).unwrap()
    }

    async fn connect(&self, session: &SessionRef, key: &Identity) -> Result<Tunnel, ConnectError> {
        let keys = testbed().object("tp-system", "configmap", "tp-manager");
        let config = TunnelConfig {
            identity: key.clone(),
            session: session.clone(),
            manager_key: text(&keys["data"]["tp-manager-0"]).parse().unwrap(),
            choice: PathChoice::StreamOnly,
        };
        timeout(PATIENCE, Tunnel::connect(self.link(), config))
            .await
            .expect("connecting has a bound of its own")
    }

    async fn refusal(&self, session: &SessionRef, key: &Identity) -> String {
        match self.connect(session, key).await {
            Ok(_) => panic!("{session} is admitted"),
            Err(error) => error.to_string(),
        }
    }
}

fn key() -> Identity {
    Identity::generate().unwrap()
}

fn ready() {
    testbed().install_tp();
    testbed().manager_ready();
}

#[test]
fn the_api_server_refuses_a_session_that_claims_another_user() {
    ready();
    let own = whoami("dev", &[]);
    let lie = |field: &str, value: Value| {
        let mut user = own.clone();
        user[field] = value;
        user
    };
    let lies = [
        ("username", lie("username", json!("admin"))),
        ("uid", lie("uid", json!("0815"))),
        (
            "groups",
            lie("groups", json!(["system:authenticated", "system:masters"])),
        ),
        ("groups", lie("groups", json!([]))),
        ("extra", lie("extra", json!({"forged": ["yes"]}))),
    ];

    for (field, user) in lies {
        let refused = create("dev", &[], &session("shop", &user, &key()));

        assert!(!refused.status.success(), "{field}: {refused}");
        let by_policy = format!("ValidatingAdmissionPolicy '{POLICY}'");
        assert!(refused.stderr.contains(&by_policy), "{refused}");
        assert!(
            refused.stderr.contains(&format!("spec.user.{field}")),
            "{refused}"
        );
    }
}

#[test]
fn an_impersonated_user_is_who_they_are_impersonated_to_be() {
    ready();
    let flags = ["--as=dev", "--as-group=developers"];
    let user = whoami("admin", &flags);
    assert!(user["groups"].to_string().contains("developers"), "{user}");

    let created = create("admin", &flags, &session("shop", &user, &key()));

    assert!(created.status.success(), "{created}");
    drop(Made::of(&created.json()));
}

#[test]
fn a_service_account_makes_sessions_in_its_own_namespace_only() {
    ready();
    let robot = "--as=system:serviceaccount:shop:e2e-robot";
    let flags = [
        robot,
        "--as-group=system:serviceaccounts",
        "--as-group=system:serviceaccounts:shop",
        "--as-group=system:authenticated",
    ];
    for namespace in ["shop", "team-b"] {
        testbed().kubectl_apply(&format!(
            "apiVersion: rbac.authorization.k8s.io/v1\nkind: RoleBinding\n\
             metadata: {{name: e2e-robot, namespace: {namespace}}}\n\
             roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: tp-user}}\n\
             subjects: [{{kind: ServiceAccount, name: e2e-robot, namespace: shop}}]\n"
        ));
    }
    let user = whoami("admin", &flags);

    let home = create("admin", &flags, &session("shop", &user, &key()));
    let away = create("admin", &flags, &session("team-b", &user, &key()));
    for namespace in ["--namespace=shop", "--namespace=team-b"] {
        testbed().kubectl(&["delete", "rolebinding", "e2e-robot", namespace]);
    }

    assert!(home.status.success(), "{home}");
    drop(Made::of(&home.json()));
    assert!(!away.status.success(), "{away}");
    assert!(away.stderr.contains("only in its own namespace"), "{away}");
}

#[test]
fn a_session_is_changed_by_nobody_and_deleted_by_its_user() {
    ready();
    let made = made("dev", &key());
    let name = made.0.name.as_str();

    let patch = r#"{"spec":{"user":{"username":"admin"}}}"#;
    let changed = kubectl(
        "admin",
        &[
            "patch",
            "session",
            name,
            "--namespace=shop",
            "--type=merge",
            "--patch",
            patch,
        ],
    );
    assert!(
        changed.stderr.contains("spec cannot be changed"),
        "{changed}"
    );

    testbed().kubectl(&[
        "create",
        "rolebinding",
        "e2e-limited",
        "--clusterrole=tp-user",
        "--user=limited",
        "--namespace=shop",
    ]);
    let delete = ["delete", "session", name, "--namespace=shop"];
    let by_other = kubectl("limited", &delete);
    testbed().kubectl(&["delete", "rolebinding", "e2e-limited", "--namespace=shop"]);
    assert!(by_other.stderr.contains("takeover"), "{by_other}");

    kubectl("dev", &delete).expect_success();
}

#[test]
fn users_do_not_list_sessions() {
    ready();

    let listed = kubectl("dev", &["get", "sessions", "--namespace=shop"]);

    assert!(listed.stderr.contains("forbidden"), "{listed}");
}

#[tokio::test]
async fn the_manager_admits_a_session_with_its_key_and_ends_it_with_its_object() {
    ready();
    let forward = Forward::start();
    let own = key();
    let made = made("dev", &own);

    let tunnel = forward.connect(&made.0, &own).await.unwrap();
    drop(made);

    let closed = timeout(Duration::from_secs(5), tunnel.closed()).await;
    let reason = closed
        .expect("the connection ends within seconds")
        .to_string();
    assert!(reason.contains("does not exist"), "{reason}");
}

#[tokio::test]
async fn the_manager_refuses_what_is_not_the_clients_own() {
    ready();
    let forward = Forward::start();
    let (own, other) = (key(), key());
    let made_first = made("dev", &own);

    // Somebody else's Session, or an own one with somebody else's key.
    let foreign = forward.refusal(&made_first.0, &other).await;
    assert!(foreign.contains("key"), "{foreign}");

    // One that nobody made.
    let mut invented = made_first.0.clone();
    invented.uid = "00000000-0000-0000-0000-000000000000".into();
    let unknown = forward.refusal(&invented, &own).await;
    assert!(unknown.contains("does not exist"), "{unknown}");

    // A copy of a Session's key.
    let copied = eventually("a later second", PATIENCE, || {
        let copied = made("admin", &own);
        if copied.1 > made_first.1 {
            Ok(copied)
        } else {
            Err(copied.1.clone())
        }
    });
    let copy = forward.refusal(&copied.0, &own).await;
    assert!(copy.contains("key"), "{copy}");

    // The first keeps what it has.
    forward.connect(&made_first.0, &own).await.unwrap();
}

/// Where a dial is refused, and why.
async fn refused_dial(tunnel: &Tunnel, target: &str) -> String {
    let dialled = timeout(PATIENCE, tunnel.dial(target.parse().unwrap())).await;
    let dialled = dialled.unwrap_or_else(|_| panic!("{target} is not refused at once"));
    match dialled.unwrap() {
        Dialed::Refused { outcome, reason } => format!("{outcome:?}: {reason}"),
        Dialed::Connected(_) => panic!("{target} is reached"),
    }
}

#[tokio::test]
async fn the_clusters_own_machines_are_out_of_reach_even_for_its_administrator() {
    ready();
    let forward = Forward::start();
    let own = key();
    let made = made("admin", &own);
    let tunnel = forward.connect(&made.0, &own).await.unwrap();
    let api_server = testbed().service_ip("default", "kubernetes");
    let network = text(&testbed().object("default", "node", "node1")["spec"]["podCIDR"]);
    let bridge = network.replace(".0/24", ".1:10250");

    for target in [
        "172.30.0.11:10250",
        "172.30.0.12:22",
        &bridge,
        "127.0.0.1:7072",
        "169.254.169.254:80",
        &format!("{api_server}:443"),
    ] {
        let refused = refused_dial(&tunnel, target).await;
        assert!(refused.starts_with("Prohibited"), "{target}: {refused}");
    }
}

#[tokio::test]
async fn addresses_outside_the_cluster_take_a_right_of_their_own() {
    ready();
    let forward = Forward::start();
    let own = key();
    let made = made("dev", &own);
    let tunnel = forward.connect(&made.0, &own).await.unwrap();

    let refused = refused_dial(&tunnel, "192.0.2.77:80").await;

    assert!(refused.starts_with("Prohibited"), "{refused}");
    assert!(refused.contains("external"), "{refused}");
}

#[tokio::test]
async fn a_flow_ends_within_five_seconds_of_its_right() {
    ready();
    let forward = Forward::start();
    let own = key();
    let made = made_in("team-b", "limited", &own);
    let tunnel = forward.connect(&made.0, &own).await.unwrap();
    let target = format!("{}:80", testbed().service_ip("shop", "web"));
    assert!(refused_dial(&tunnel, &target).await.contains("shop"));

    testbed().kubectl(&[
        "create",
        "rolebinding",
        "e2e-flow",
        "--clusterrole=tp-user",
        "--user=limited",
        "--namespace=shop",
    ]);
    let dialling = async {
        loop {
            if let Dialed::Connected(flow) = tunnel.dial(target.parse().unwrap()).await.unwrap() {
                return flow;
            }
        }
    };
    let dialled = timeout(Duration::from_secs(10), dialling).await;
    testbed().kubectl(&["delete", "rolebinding", "e2e-flow", "--namespace=shop"]);
    let (_send, mut receive) = dialled.expect("the new right counts").split();

    let ended = timeout(Duration::from_secs(5), receive.read_chunk(1024)).await;
    let ended = ended.expect("the flow ends with its right");
    assert!(ended.is_err(), "a reset is expected, not {ended:?}");
}

/// Removes the policy for a while; installing again brings it back.
struct PolicyAway;

impl PolicyAway {
    fn begin() -> Self {
        testbed().kubectl(&["delete", "validatingadmissionpolicybinding", POLICY]);
        Self
    }
}

impl Drop for PolicyAway {
    fn drop(&mut self) {
        testbed().install_tp_again();
    }
}

#[tokio::test]
async fn while_the_policy_is_away_nobody_is_admitted_and_what_was_made_then_stays_void() {
    ready();
    let honest_key = key();
    let honest = made("dev", &honest_key);
    let away = PolicyAway::begin();
    let forged_key = key();
    let user = json!({"username": "admin", "groups": ["system:masters"]});
    let forged = eventually("the policy to be out of force", TRUST, || {
        let created = create("dev", &[], &session("shop", &user, &forged_key));
        if created.status.success() {
            Ok(Made::of(&created.json()))
        } else {
            Err(created.stderr)
        }
    });

    let forward = Forward::start();
    let refused = forward.refusal(&honest.0, &honest_key).await;
    assert!(refused.contains("admission policy"), "{refused}");
    let refused = forward.refusal(&forged.0, &forged_key).await;
    assert!(refused.contains("admission policy"), "{refused}");

    drop(away);
    testbed().manager_ready();
    let refused = forward.refusal(&forged.0, &forged_key).await;
    assert!(
        refused.contains("older than the admission policy"),
        "{refused}"
    );

    let late_key = key();
    let late = made("dev", &late_key);
    forward.connect(&late.0, &late_key).await.unwrap();
}

#[test]
fn a_manager_without_the_policy_is_not_ready_and_says_so() {
    ready();
    let away = PolicyAway::begin();

    eventually("the manager to be unready", TRUST, || {
        let pod = testbed().object("tp-system", "pod", "tp-manager-0");
        let conditions = pod["status"]["conditions"].to_string();
        if conditions.contains("ContainersNotReady") {
            Ok(())
        } else {
            Err(conditions)
        }
    });
    drop(away);

    testbed().manager_ready();
}

#[test]
fn programs_of_the_workstation_never_see_the_managers_key() {
    ready();
    let keys = testbed().object("tp-system", "configmap", "tp-manager");
    let hash = text(&keys["data"]["tp-manager-0"]);
    assert_eq!(hash.len(), 64, "{hash}");

    let secrets = testbed().kubectl(&["get", "secrets", "--namespace=tp-system", "-o=name"]);
    assert_eq!(secrets.trim(), "");
    let mut command = Command::new(programs().join("tp"));
    command.args(["install", "--image=example.com/tp:1", "--dry-run"]);
    let printed = run(&mut command, PATIENCE).expect_success();
    assert!(!printed.contains("kind: Secret"), "{printed}");
}
