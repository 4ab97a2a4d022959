//! Common parts of these tests: people, their Sessions, and the tunnels they open with them.

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    os::fd::AsFd as _,
    thread,
    time::Duration,
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;
use tokio::time::timeout;
use tp_e2e::{
    cluster::{testbed, text},
    files::{file_with, path_of},
    process::{Finished, PATIENCE, Running},
    sessions::{session_object, session_ref},
};
use tp_transport::{
    ConnectError, Dialed, Flow, Identity, PathChoice, SessionRef, Tunnel, TunnelConfig,
};

pub(super) const POLICY: &str = "tp-identity";

/// A Session, not yet created.
pub(super) fn session(namespace: &str, user: &Value, key: &Identity) -> Value {
    session_object(namespace, user, &key.key_hash().to_string())
}

pub(super) fn create(person: &str, flags: &[&str], object: &Value) -> Finished {
    let file = file_with(&object.to_string());
    let words = ["create", "--output=json", "--filename", path_of(&file)];
    testbed().kubectl_as(person, &[&words, flags].concat())
}

/// Creates a correct Session; deleted with the guard.
pub(super) fn made(person: &str, key: &Identity) -> Made {
    made_in("shop", person, key)
}

pub(super) fn made_in(namespace: &str, person: &str, key: &Identity) -> Made {
    let object = session(namespace, &testbed().whoami(person, &[]), key);
    let created = create(person, &[], &object);
    assert!(created.status.success(), "{created}");
    Made::of(&created.json())
}

pub(super) struct Made {
    pub(super) session: SessionRef,
    pub(super) created: String,
}

impl Made {
    pub(super) fn of(object: &Value) -> Self {
        Self {
            session: session_ref(object),
            created: text(&object["metadata"]["creationTimestamp"]),
        }
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        let namespace = format!("--namespace={}", self.session.namespace);
        let words = ["delete", "session", &self.session.name, &namespace];
        testbed().kubectl_as("admin", &[&words[..], &["--ignore-not-found"]].concat());
    }
}

/// A forwarded port of the manager, as a client opens it.
pub(super) struct Forward {
    _kubectl: Running,
    address: SocketAddr,
}

impl Forward {
    pub(super) fn start() -> Self {
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
    pub(super) fn link(&self) -> tokio::net::TcpStream {
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

    pub(super) async fn connect(
        &self,
        session: &SessionRef,
        key: &Identity,
    ) -> Result<Tunnel, ConnectError> {
        let config = TunnelConfig {
            identity: key.clone(),
            session: session.clone(),
            manager_key: testbed().manager_key().parse().unwrap(),
            choice: PathChoice::StreamOnly,
        };
        timeout(PATIENCE, Tunnel::connect(self.link(), config))
            .await
            .expect("connecting has a bound of its own")
    }

    pub(super) async fn refusal(&self, session: &SessionRef, key: &Identity) -> String {
        match self.connect(session, key).await {
            Ok(_) => panic!("{session} is admitted"),
            Err(error) => error.to_string(),
        }
    }
}

/// A user whose Session the manager has admitted.
pub(super) struct Admitted {
    pub(super) tunnel: Tunnel,
    pub(super) made: Made,
    pub(super) key: Identity,
    pub(super) forward: Forward,
}

impl Admitted {
    pub(super) async fn new(namespace: &str, person: &str) -> Self {
        ready();
        let forward = Forward::start();
        let key = key();
        let made = made_in(namespace, person, &key);
        let tunnel = forward.connect(&made.session, &key).await.unwrap();

        Self {
            tunnel,
            made,
            key,
            forward,
        }
    }
}

/// A service of the namespace `shop`.
pub(super) fn web() -> String {
    format!("{}:80", testbed().service_ip("shop", "web"))
}

pub(super) fn key() -> Identity {
    Identity::generate().unwrap()
}

pub(super) fn ready() {
    testbed().install_tp();
    testbed().manager_ready();
}

/// The reason of a refused dial.
pub(super) async fn refused_dial(tunnel: &Tunnel, target: &str) -> String {
    let dialled = timeout(PATIENCE, tunnel.dial(target.parse().unwrap())).await;
    let dialled = dialled.unwrap_or_else(|_| panic!("{target} is not refused at once"));
    match dialled.unwrap() {
        Dialed::Refused { outcome, reason } => format!("{outcome:?}: {reason}"),
        Dialed::Connected(_) => panic!("{target} is reached"),
    }
}

/// Connects to `target` as soon as the user may.
pub(super) async fn reached(tunnel: &Tunnel, target: &str) -> Flow {
    let dialling = async {
        loop {
            if let Dialed::Connected(flow) = tunnel.dial(target.parse().unwrap()).await.unwrap() {
                return flow;
            }
        }
    };
    let dialled = timeout(Duration::from_secs(10), dialling).await;
    dialled.unwrap_or_else(|_| panic!("{target} is not reached"))
}
