//! The manager's requests if connections to the API server die silently.

use std::{collections::BTreeMap, net::SocketAddr};

use futures::future::join_all;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
};
use tokio_util::task::AbortOnDropHandle;
use tp_transport::SessionRef;

use super::*;

/// Stands for [`index::READ_TIMEOUT`].
const READ_TIMEOUT: Duration = Duration::from_millis(300);
/// Several times that, and the backoff of a watch that broke.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Sessions, the policy and its binding, and the objects of the model.
const WATCHES: usize = 8;

/// Speaks the necessary part of HTTP.
struct ApiServer {
    client: Client,
    state: watch::Sender<State>,
    _task: AbortOnDropHandle<()>,
}

#[derive(Default)]
struct State {
    connections: usize,
    /// Number of dead connections, of the oldest.
    dead: usize,
    /// The first event of a watch.
    event: String,
    /// The watched paths with their `timeoutSeconds`.
    watched: BTreeMap<String, u64>,
}

impl ApiServer {
    async fn new() -> Self {
        let listener = listen(Ipv4Addr::LOCALHOST.into(), 0).await.unwrap();
        let config = config(listener.local_addr().unwrap());
        let (state, _) = watch::channel(State::default());
        let shared = state.clone();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let number = shared.borrow().connections;
                shared.send_modify(|state| state.connections += 1);
                connections.spawn(serve(stream, number, shared.clone()));
            }
        });

        Self {
            client: client(config, READ_TIMEOUT).unwrap(),
            state,
            _task: AbortOnDropHandle::new(task),
        }
    }

    /// Returns when `count` paths are watched.
    async fn watched(&self, count: usize) {
        let mut state = self.state.subscribe();
        let watched = state.wait_for(|state| state.watched.len() == count);
        timeout(TIMEOUT, watched).await.unwrap().unwrap();
    }

    /// Kills all connections; later watches begin with this event.
    fn die(&self, event: &Value) {
        self.state.send_modify(|state| {
            state.dead = state.connections;
            state.event = format!("{event}\n");
        });
    }

    /// Opens connections that are used again.
    async fn list(&self) {
        let lists = (0..4).map(|_| index::workloads::boxed(self.client.clone(), "shop".into()));

        assert!(join_all(lists).await.iter().all(Result::is_ok));
    }
}

fn config(server: SocketAddr) -> Config {
    Config::new(format!("http://{server}").parse().unwrap())
}

async fn serve(stream: TcpStream, number: usize, state: watch::Sender<State>) {
    let mut stream = BufReader::new(stream);
    while let Some(target) = read_request(&mut stream).await {
        if number < state.borrow().dead {
            break;
        }
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        let mut parameters = query.split('&').filter_map(|it| it.split_once('='));
        let seconds = parameters.find(|(name, _)| *name == "timeoutSeconds");
        let answer = if query.contains("watch=true") {
            let seconds = seconds.expect("a watch ends").1.parse().unwrap();
            let event = state.borrow().event.clone();
            state.send_modify(|state| {
                state.watched.insert(path.to_owned(), seconds);
            });
            format!("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{event}")
        } else {
            let list = json!({"metadata": {"resourceVersion": "1"}, "items": []}).to_string();
            let length = list.len();
            format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{list}")
        };
        if stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
    // Further requests get no answer.
    let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
}

/// The target of a request; `None` once the client is gone.
async fn read_request(stream: &mut BufReader<TcpStream>) -> Option<String> {
    let (mut target, mut length) = (None, 0);
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.ok()?;
        let line = line.trim_end();
        if target.is_none() {
            target = Some(line.split(' ').nth(1)?.to_owned());
        } else if let Some(stated) = line.strip_prefix("content-length: ") {
            length = stated.parse().unwrap();
        } else if line.is_empty() {
            break;
        }
    }
    stream.read_exact(&mut vec![0; length]).await.ok()?;

    target
}

fn session() -> SessionRef {
    SessionRef {
        namespace: "shop".into(),
        name: "alice".into(),
        uid: "1".into(),
    }
}

/// The event that adds the session to a watch.
fn made() -> Value {
    json!({"type": "ADDED", "object": {
        "apiVersion": "tp.internal/v1alpha1",
        "kind": "Session",
        "metadata": {
            "name": "alice",
            "namespace": "shop",
            "uid": "1",
            "generation": 1,
            "resourceVersion": "2",
            "creationTimestamp": Timestamp::now().to_string(),
        },
        "spec": {
            "user": {"username": "alice"},
            "keyHash": "1".repeat(64),
            "clientVersion": "0.1.0",
        },
    }})
}

#[tokio::test]
async fn a_session_is_known_soon_though_all_connections_to_the_api_server_have_died() {
    let server = ApiServer::new().await;
    server.list().await;
    let sessions = Sessions::new(watch::Sender::new(Policy::default()).subscribe());
    let follow = sessions.follow(server.client.clone(), Synced::new().part());
    let known = async {
        server.watched(1).await;
        server.die(&made());
        let mut changes = sessions.changes();
        let is_known = || {
            sessions
                .revalidate(&session(), None, Timestamp::now())
                .is_ok()
        };
        while !is_known() {
            changes.changed().await.unwrap();
        }
    };

    tokio::select! {
        known = timeout(TIMEOUT, known) => assert!(known.is_ok(), "the watch is still silent"),
        () = follow => panic!("the watch has ended"),
    }
}

#[tokio::test]
async fn a_request_over_a_connection_that_has_died_is_given_up() {
    let server = ApiServer::new().await;
    server.list().await;
    server.die(&made());

    let request = index::workloads::boxed(server.client.clone(), "shop".into());
    let answer = timeout(TIMEOUT, request).await;

    assert!(answer.expect("it is given up").is_err());
    server.list().await;
}

/// Otherwise a watch without events would be taken for dead.
#[tokio::test]
async fn every_watch_ends_before_its_silence_means_that_its_connection_has_died() {
    let server = ApiServer::new().await;
    let (client, synced) = (&server.client, Synced::new());
    let mut tasks: JoinSet<()> = index::tasks(client, &SharedModel::new(), &synced)
        .into_iter()
        .collect();
    let policy = watch::Sender::new(Policy::default());
    let sessions = Sessions::new(policy.subscribe());
    let (watching, part) = (client.clone(), synced.part());
    tasks.spawn(async move { sessions.follow(watching, part).await });
    tasks.spawn(policy::follow(client.clone(), "tp-system".into(), policy));

    server.watched(WATCHES).await;

    for (watched, seconds) in &server.state.borrow().watched {
        assert!(
            *seconds < index::READ_TIMEOUT.as_secs(),
            "{watched}: {seconds} s"
        );
    }
}
