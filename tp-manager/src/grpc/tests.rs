//! The calls of one session leave enough to those of another.

use std::{
    convert::Infallible,
    future::ready,
    net::Ipv4Addr,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use futures::{future::join_all, poll};
use hickory_proto::{
    op::{Message, Query},
    rr::{Name, RecordType},
};
use kube::{Client, client::Body};
use serde_json::json;
use tokio::{net::UdpSocket, task::unconstrained, time::timeout};
use tokio_util::task::AbortOnDropHandle;
use tonic::transport::Endpoint;
use tp_proto::{
    agent::EnvironQuestion, crd::UserInfo, table::SnapshotAssembler,
    tunnel::manager_client::ManagerClient,
};

use super::*;
use crate::intercepts::taking::HeldPorts;
use crate::model::{
    AgentEnviron, EnvironError, FoundContainer, ObjectName, Service, Update, WantedContainer,
};

/// More queries than all sessions together may have under way.
const QUERIES: usize = 1100;
/// Several times the bytes of an answer that may be unwritten.
const WORKLOADS: usize = 2000;
const SERVICES: usize = 2000;
const TIMEOUT: Duration = Duration::from_secs(20);
/// Far less than a query to a slow zone may take.
const SHORT_TIMEOUT: Duration = Duration::from_secs(2);

/// A cluster whose namespace `slow` never answers.
struct Cluster {
    replica: Arc<Replica>,
    access: Arc<Access>,
    lists: Arc<Lists>,
    _names: AbortOnDropHandle<()>,
}

impl Cluster {
    async fn new() -> Self {
        let server = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let resolver = Resolver::asking(server.local_addr().unwrap());
        let lists = Arc::new(Lists::default());
        let replica = Replica {
            pod: "tp-manager-0".into(),
            namespace: "tp-system".into(),
            node: "node1".into(),
            resolver,
            workloads: Box::new(Arc::clone(&lists)),
            endings: Box::new(Arc::clone(&lists)),
            environments: Box::new(Arc::clone(&lists)),
        };
        let api_server = tower::service_fn(|_: http::Request<Body>| async {
            let review = json!({"spec": {}, "status": {"allowed": true}});
            let body = Body::from(review.to_string().into_bytes());
            Ok::<_, Infallible>(http::Response::new(body))
        });

        Self {
            replica: Arc::new(replica),
            access: Access::new(Client::new(api_server, "default")),
            lists,
            _names: AbortOnDropHandle::new(tokio::spawn(answer_names(server))),
        }
    }

    /// The service of a session of this user, whose rights in both namespaces are cached.
    async fn session(&self, name: &str) -> Control {
        let user = User::new(UserInfo {
            username: name.into(),
            ..UserInfo::default()
        });
        let (_, user) = watch::channel(Arc::new(user));
        let (replica, access) = (Arc::clone(&self.replica), Arc::clone(&self.access));
        let control = Control::new(replica, SharedModel::new(), access, user, Arc::default());
        for namespace in ["shop", "slow"] {
            assert!(control.may_reach(namespace).await.unwrap());
        }

        control
    }
}

/// Echoes the questions that it answers.
async fn answer_names(server: UdpSocket) {
    let mut buffer = [0; 512];
    while let Ok((length, from)) = server.recv_from(&mut buffer).await {
        let question = &buffer[..length];
        if !question.windows(4).any(|it| it == b"slow") {
            server.send_to(question, from).await.unwrap();
        }
    }
}

/// Ends a list of `slow` for each permit.
struct Lists {
    ends: Arc<Semaphore>,
    under_way: AtomicUsize,
    most: AtomicUsize,
}

impl Default for Lists {
    fn default() -> Self {
        Self {
            ends: Arc::new(Semaphore::new(0)),
            under_way: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
        }
    }
}

impl EndIntercept for Arc<Lists> {
    fn end(&self, _: HeldPorts, _: String) -> BoxFuture<'static, Result<(), String>> {
        Box::pin(ready(Ok(())))
    }
}

impl Environments for Arc<Lists> {
    fn find(&self, _: WantedContainer) -> BoxFuture<'static, Result<FoundContainer, FindError>> {
        Box::pin(ready(Ok(FoundContainer::default())))
    }

    fn read(
        &self,
        _: String,
        _: EnvironQuestion,
    ) -> BoxFuture<'static, Result<AgentEnviron, EnvironError>> {
        Box::pin(ready(Ok(AgentEnviron::default())))
    }
}

/// A replica that has nothing, and asks nobody.
pub(super) fn nothing_else() -> Replica {
    let lists = Arc::new(Lists::default());

    Replica {
        pod: "tp-manager-0".into(),
        namespace: "tp-system".into(),
        node: "node1".into(),
        resolver: Resolver::asking((Ipv4Addr::LOCALHOST, 9).into()),
        workloads: Box::new(Arc::clone(&lists)),
        endings: Box::new(Arc::clone(&lists)),
        environments: Box::new(lists),
    }
}

impl Workloads for Arc<Lists> {
    fn find(
        &self,
        _: String,
        _: WorkloadName,
    ) -> BoxFuture<'static, Result<FoundWorkload, FindError>> {
        Box::pin(ready(Ok(FoundWorkload::default())))
    }

    fn list(&self, namespace: String) -> BoxFuture<'static, Result<Vec<Workload>, String>> {
        let lists = Self::clone(self);
        Box::pin(async move {
            if namespace == "slow" {
                let under_way = lists.under_way.fetch_add(1, Ordering::Relaxed) + 1;
                lists.most.fetch_max(under_way, Ordering::Relaxed);
                lists.ends.acquire().await.unwrap().forget();
                lists.under_way.fetch_sub(1, Ordering::Relaxed);
            }
            let count = if namespace == "large" { WORKLOADS } else { 0 };
            let workloads = (0..count).map(|number| Workload {
                kind: "Deployment",
                name: format!("{number:0>60}"),
                ready: 1,
                desired: 1,
                ports: Vec::new(),
            });
            Ok(workloads.collect())
        })
    }
}

#[tokio::test]
async fn a_session_that_asks_slow_names_takes_the_names_of_no_other() {
    let cluster = Cluster::new().await;
    let (alice, bob) = (cluster.session("alice").await, cluster.session("bob").await);
    let asked: Vec<_> = (0..QUERIES)
        .map(|_| alice.resolve(question("slow")))
        .collect();
    let _asked = all_wait(asked).await;

    let answer = timeout(SHORT_TIMEOUT, bob.resolve(question("shop"))).await;

    let answer = answer.expect("bob has a share of his own").unwrap();
    let asked = question("shop").into_inner().query;
    assert_eq!(answer.into_inner().response, asked);
    assert_eq!(alice.limits.queries.available_permits(), 0);
}

#[tokio::test]
async fn a_session_lists_few_namespaces_at_once_and_the_others_in_turn() {
    let cluster = Cluster::new().await;
    let (alice, bob) = (cluster.session("alice").await, cluster.session("bob").await);
    let calls = 4 * MAX_LISTS;
    let listing: Vec<_> = (0..calls)
        .map(|_| alice.list_workloads(list("slow")))
        .collect();
    let listing = all_wait(listing).await;
    assert_eq!(cluster.lists.under_way.load(Ordering::Relaxed), MAX_LISTS);

    let listed = timeout(SHORT_TIMEOUT, bob.list_workloads(list("shop"))).await;
    assert!(listed.expect("bob has a share of his own").is_ok());

    cluster.lists.ends.add_permits(calls);
    let listed = timeout(SHORT_TIMEOUT, join_all(listing)).await;
    assert!(listed.expect("all have a turn").iter().all(Result::is_ok));
    assert_eq!(cluster.lists.most.load(Ordering::Relaxed), MAX_LISTS);
}

#[tokio::test]
async fn a_session_watches_so_many_tables_and_one_more_when_one_has_ended() {
    let cluster = Cluster::new().await;
    let (alice, bob) = (cluster.session("alice").await, cluster.session("bob").await);
    let mut tables = Vec::new();
    for _ in 0..MAX_TABLES {
        tables.push(watched(&alice).await.unwrap());
    }

    let refused = watched(&alice).await.err().expect("she has her share");
    assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
    assert!(refused.message().contains("4 tables"), "{refused}");
    let mut table = watched(&bob).await.expect("bob has a share of his own");
    let snapshot = timeout(SHORT_TIMEOUT, table.next()).await;
    assert!(matches!(snapshot, Ok(Some(Ok(_)))));

    tables.pop();
    assert!(watched(&alice).await.is_ok());
}

/// Through HTTP/2, with a client that reads little at a time.
#[tokio::test]
async fn answers_that_are_larger_than_what_may_wait_arrive_whole() {
    let cluster = Cluster::new().await;
    let alice = cluster.session("alice").await;
    alice.model.update(|model| {
        let services = (0..SERVICES).map(|it| {
            let name = ObjectName::new("shop", format!("{it:0>60}"));
            (name, Service::default())
        });
        model.update_namespaces(Update::Replaced([("shop".to_owned(), ())].into()));
        model.update_services(Update::Replaced(services.collect()));
    });
    let (near, far) = tokio::io::duplex(1 << 10);
    let _served = AbortOnDropHandle::new(tokio::spawn(serve(far, alice)));
    let mut near = Some(TokioIo::new(near));
    let connector = tower::service_fn(move |_| ready(near.take().ok_or("connected once")));
    let endpoint = Endpoint::from_static("http://manager");
    let channel = endpoint.connect_with_connector(connector).await.unwrap();
    let mut manager = ManagerClient::new(channel);

    let answers = timeout(TIMEOUT, async {
        let listed = manager.list_workloads(list("large")).await.unwrap();
        let watched = manager.watch_table(WatchTableRequest {}).await.unwrap();
        let (mut events, mut parts) = (watched.into_inner(), SnapshotAssembler::default());
        let table = loop {
            let event = events.message().await.unwrap().unwrap().event;
            if let Some(Event::Snapshot(table)) = event.and_then(|it| parts.take(it)) {
                break table;
            }
        };
        (listed.into_inner().workloads, table.services)
    });

    let (workloads, services) = answers.await.expect("nothing waits for ever");
    assert_eq!((workloads.len(), services.len()), (WORKLOADS, SERVICES));
}

/// Polls each call once, so that it takes its permit, without a task's budget.
async fn all_wait<F: Future + Unpin>(mut calls: Vec<F>) -> Vec<F> {
    unconstrained(async {
        for call in &mut calls {
            assert!(poll!(call).is_pending());
        }
    })
    .await;

    calls
}

async fn watched(session: &Control) -> Result<<Control as Manager>::WatchTableStream, Status> {
    let table = session
        .watch_table(Request::new(WatchTableRequest {}))
        .await;

    table.map(Response::into_inner)
}

fn question(namespace: &str) -> Request<ResolveRequest> {
    let name = Name::from_ascii(format!("web.{namespace}.svc.cluster.local.")).unwrap();
    let mut message = Message::query();
    message.metadata.id = 7;
    message.add_query(Query::query(name, RecordType::A));
    let query = message.to_vec().unwrap().into();

    Request::new(ResolveRequest { query })
}

fn list(namespace: &str) -> Request<ListWorkloadsRequest> {
    let namespace = namespace.into();

    Request::new(ListWorkloadsRequest { namespace })
}
