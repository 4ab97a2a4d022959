//! Real agents, carriers and tunnels, without an API server.

use futures::future::BoxFuture;
use jiff::Timestamp;
use kube::{api::DynamicObject, runtime::watcher::Event};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::watch,
    task::JoinHandle,
};
use tokio_util::task::AbortOnDropHandle;
use tp_core::intercept::holders::DISCONNECTED_AFTER;
use tp_proto::{
    agent::PodReport,
    tunnel::{InterceptStates, LocalIntercept, LocalIntercepts, LocalPort, Outcome, Verdict},
};
use tp_transport::{
    CloseCode, Identity, Intercepted, InterceptedFrom, KeyHash, PathChoice, SessionRef, Tunnel,
    TunnelConfig, TunnelServer,
    agents::{AgentControl, AgentFlow, IdleCarrier},
};

mod environs;

use super::*;
use crate::{
    disconnected::Disconnected,
    gateway::Quotas,
    intercepts::{
        serving::{Announcing, ServedGuard},
        whereabouts::Whereabouts,
    },
    model::{ObjectName, Pod, Update},
    policy::Policy,
    sessions::{SessionAdmission, Sessions},
};

mod container;
mod trust;

const LIMIT: Duration = Duration::from_secs(20);
const POD: &str = "77aa";
const POD_ADDRESS: &str = "10.244.1.7:8080";

/// A token is the name of its node; those in the list are not valid.
struct Nodes(Arc<Mutex<Vec<String>>>);

impl Tokens for Nodes {
    fn review(&self, token: String) -> BoxFuture<'static, Result<AgentIdentity, TokenError>> {
        let reviewed = match token.as_str() {
            invalid if lock(&self.0).iter().any(|it| it == invalid) => {
                Err(TokenError::Refused("the token is not valid".to_owned()))
            }
            node => Ok(AgentIdentity {
                node: node.to_owned(),
                pod: "tp-agent-x".into(),
                pod_uid: "7a".into(),
            }),
        };

        Box::pin(std::future::ready(reviewed))
    }
}

/// One replica, with the pod `web-0` of namespace `shop` on node1.
struct Lab {
    intercepts: Arc<Intercepts>,
    sessions: Arc<Sessions>,
    tunnels: Arc<TunnelServer>,
    key: KeyHash,
    address: SocketAddr,
    agents: Arc<Agents>,
    quotas: Quotas,
    invalid: Arc<Mutex<Vec<String>>>,
    model: SharedModel,
    _policy: watch::Sender<Policy>,
    _serving: AbortOnDropHandle<()>,
}

/// A connected session.
struct Workstation {
    tunnel: Tunnel,
    guard: ServedGuard,
    call: Announcing,
    /// Its byte stream.
    link: AbortOnDropHandle<()>,
}

impl Lab {
    async fn new() -> Self {
        let now = Timestamp::now();
        let earlier = |seconds| now - jiff::SignedDuration::from_secs(seconds);
        let policy = watch::Sender::new(Policy::proven_since(earlier(1000), earlier(1)));
        let sessions = Arc::new(Sessions::new(policy.subscribe()));
        let disconnected = Arc::new(Disconnected::default());
        let identity = Identity::generate().unwrap();
        let key = identity.key_hash();
        let model = SharedModel::new();
        let intercepts = Arc::new(Intercepts::new(
            Arc::clone(&sessions),
            disconnected,
            model.clone(),
            Whereabouts::new("tp-manager-0".into(), DISCONNECTED_AFTER, now),
        ));
        let pod = Pod {
            addresses: vec!["10.244.1.7".parse().unwrap()],
            uid: POD.into(),
            node: "node1".into(),
            ..Pod::default()
        };
        let name = ObjectName::new("shop", "web-0");
        model.update(|model| model.update_pods(Update::Applied(name, pod)));
        let server = AgentServer::new(&identity).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let invalid = Arc::new(Mutex::new(vec!["stolen".to_owned()]));
        let nodes = Box::new(Nodes(Arc::clone(&invalid)));
        let mut agents = Agents::new(server, Arc::clone(&intercepts), model.clone(), nodes);
        agents.review_interval = Duration::from_millis(100);
        let agents = Arc::new(agents);
        let serving = tokio::spawn(Arc::clone(&agents).serve(listener));
        let admission = Arc::new(SessionAdmission(Arc::clone(&sessions)));

        Self {
            intercepts,
            tunnels: TunnelServer::bind(None, identity, admission).unwrap(),
            sessions,
            key,
            address,
            agents,
            quotas: Quotas::default(),
            invalid,
            model,
            _policy: policy,
            _serving: AbortOnDropHandle::new(serving),
        }
    }

    /// Connects a session of this user, whose name is its UID too.
    async fn session(&self, user: &str) -> Workstation {
        let identity = Identity::generate().unwrap();
        let object = json!({
            "apiVersion": "tp.internal/v1alpha1",
            "kind": "Session",
            "metadata": {
                "name": user, "namespace": "shop", "uid": user, "generation": 1,
                "creationTimestamp": Timestamp::now().to_string(),
            },
            "spec": {
                "user": {"username": user},
                "keyHash": identity.key_hash().to_string(),
                "clientVersion": "0.1.0",
            },
        });
        let event = Event::Apply(serde_json::from_value(object).unwrap());
        let events = futures::stream::iter([Ok(event)]);
        self.sessions.apply(events, || {}).await;
        let (near, far) = tokio::io::duplex(64 << 10);
        let tunnels = Arc::clone(&self.tunnels);
        let link = tokio::spawn(async move { drop(tunnels.attach(far).await) });
        let config = TunnelConfig {
            identity,
            session: SessionRef {
                namespace: "shop".into(),
                name: user.into(),
                uid: user.into(),
            },
            manager_key: self.key,
            choice: PathChoice::StreamOnly,
        };
        let connected = Tunnel::connect(near, config);
        let (tunnel, peer) = tokio::join!(connected, self.tunnels.accept());
        let quota = Arc::new(self.quotas.enter(user).unwrap());
        let guard = self.intercepts.serve(peer.unwrap(), quota);
        let call = guard.handle().begin();

        Workstation {
            tunnel: tunnel.unwrap(),
            guard,
            call,
            link: AbortOnDropHandle::new(link),
        }
    }

    fn intercept(&self, uid: &str, user: &str, port: u16) {
        let object: DynamicObject = serde_json::from_value(json!({
            "apiVersion": "tp.internal/v1alpha1",
            "kind": "Intercept",
            "metadata": {
                "name": format!("web-{uid}"), "namespace": "shop", "uid": uid, "generation": 1,
                "creationTimestamp": Timestamp::now().to_string(),
            },
            "spec": {
                "user": {"username": user},
                "session": {"namespace": "shop", "name": user, "uid": user},
                "workload": {"kind": "Deployment", "name": "web"},
                "ports": [{"port": port}],
            },
        }))
        .unwrap();
        self.intercepts.insert(&object);
    }

    async fn agent(&self, node: &str) -> AgentControl {
        let tcp = TcpStream::connect(self.address).await.unwrap();

        AgentControl::connect(tcp, self.key, node).await.unwrap()
    }

    fn states(&self, workstation: &Workstation) -> InterceptStates {
        self.intercepts.states(&workstation.call.served)
    }

    /// Asks for the connection of the pod to be carried for this Intercept.
    fn carry(&self, agent: &AgentControl, uid: &str) -> JoinHandle<Result<AgentFlow, Verdict>> {
        self.carry_from(agent, from(uid))
    }

    fn carry_from(
        &self,
        agent: &AgentControl,
        from: InterceptedFrom,
    ) -> JoinHandle<Result<AgentFlow, Verdict>> {
        let (address, key, ticket) = (self.address, self.key, agent.ticket.clone());
        tokio::spawn(async move {
            let tcp = TcpStream::connect(address).await.unwrap();
            let idle = IdleCarrier::connect(tcp, key, &ticket).await.unwrap();
            idle.carry(&from, POD).await.unwrap()
        })
    }

    async fn refused(&self, agent: &AgentControl, uid: &str) -> (Outcome, String) {
        let verdict = within(self.carry(agent, uid)).await.unwrap().unwrap_err();
        assert!(!verdict.by_container, "{verdict:?}");

        (verdict.outcome(), verdict.reason)
    }

    async fn left_to_container(&self, agent: &AgentControl, uid: &str) -> String {
        let verdict = within(self.carry(agent, uid)).await.unwrap().unwrap_err();
        assert!(verdict.by_container, "{verdict:?}");

        verdict.reason
    }
}

impl Workstation {
    fn announce(&self, uid: &str, port: u32, is_listening: bool) {
        let ports = vec![LocalPort { port, is_listening }];
        let uid = uid.to_owned();
        let intercepts = vec![LocalIntercept {
            uid,
            ports,
            ..LocalIntercept::default()
        }];
        assert!(self.call.announce(LocalIntercepts { intercepts }));
    }
}

fn from(uid: &str) -> InterceptedFrom {
    InterceptedFrom {
        intercept: uid.into(),
        client: "10.244.2.9:40112".parse().unwrap(),
        pod: POD_ADDRESS.parse().unwrap(),
    }
}

async fn within<F: Future>(future: F) -> F::Output {
    timeout(LIMIT, future).await.unwrap()
}

/// The first news of which this is true.
async fn news(agent: &mut AgentControl, is: impl Fn(&[Lease]) -> bool) -> Vec<Lease> {
    let arrived = async {
        loop {
            let leases = agent.news.receive().await.unwrap().leases;
            if is(&leases) {
                return leases;
            }
        }
    };

    within(arrived).await
}

fn are_quiet(leases: &[Lease]) -> bool {
    !leases.is_empty() && leases.iter().all(|lease| lease.is_quiet)
}

#[tokio::test]
async fn an_announced_intercept_is_leased_and_its_connections_reach_the_workstation() {
    let lab = Lab::new().await;
    let alice = lab.session("alice").await;
    let mut agent = lab.agent("node1").await;
    lab.intercept("i1", "alice", 8080);
    assert!(news(&mut agent, |_| true).await.is_empty(), "not announced");

    alice.announce("i1", 8080, false);
    let leases = news(&mut agent, |leases| !leases.is_empty()).await;
    assert_eq!(
        (&*leases[0].namespace, &*leases[0].name),
        ("shop", "web-i1")
    );
    assert_eq!(leases[0].ports.len(), 1);
    assert!(!leases[0].ports[0].is_listening);
    alice.announce("i1", 8080, true);
    news(&mut agent, |leases| leases[0].ports[0].is_listening).await;

    let carried = lab.carry(&agent, "i1");
    let Intercepted {
        from: arrived,
        pending,
    } = within(alice.tunnel.accept()).await.unwrap();
    assert_eq!(arrived, from("i1"));
    let flow = within(pending.accept()).await.unwrap();
    let mut client = within(carried).await.unwrap().unwrap();
    let (mut send, mut recv) = flow.split();
    client.write_all(b"question").await.unwrap();
    client.flush().await.unwrap();
    let read = within(recv.read_chunk(64)).await.unwrap();
    assert_eq!(read.as_deref(), Some(&b"question"[..]));
    send.write_all(b"answer").await.unwrap();
    let mut answer = [0; 6];
    within(client.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer, b"answer");
}

#[tokio::test]
async fn leases_end_with_the_session_the_intercept_and_the_call() {
    let lab = Lab::new().await;
    let alice = lab.session("alice").await;
    let mut agent = lab.agent("node1").await;
    lab.intercept("i1", "alice", 8080);
    alice.announce("i1", 8080, true);
    news(&mut agent, |leases| leases.len() == 1).await;

    lab.intercepts.remove("i1");
    news(&mut agent, <[Lease]>::is_empty).await;
    lab.intercept("i1", "alice", 8080);
    news(&mut agent, |leases| leases.len() == 1).await;

    let Workstation {
        tunnel,
        guard,
        call,
        ..
    } = alice;
    // As after a control stream that broke.
    drop(call);
    news(&mut agent, are_quiet).await;
    let call = guard.handle().begin();
    let ports = vec![LocalPort {
        port: 8080,
        is_listening: true,
    }];
    let intercepts = vec![LocalIntercept {
        uid: "i1".into(),
        ports,
        ..LocalIntercept::default()
    }];
    call.announce(LocalIntercepts { intercepts });
    news(&mut agent, |leases| {
        leases.len() == 1 && !leases[0].is_quiet
    })
    .await;

    tunnel.close(CloseCode::Quit).await;
    within(call.served.peer.closed()).await;
    drop(guard);
    news(&mut agent, <[Lease]>::is_empty).await;
    let reason = lab.left_to_container(&agent, "i1").await;
    assert!(reason.contains("is not connected here"), "{reason}");
}

#[tokio::test]
async fn the_lease_of_a_session_that_is_not_heard_from_is_quiet_until_it_is_gone() {
    let lab = Lab::new().await;
    let mut alice = lab.session("alice").await;
    let mut agent = lab.agent("node1").await;
    lab.intercept("i1", "alice", 8080);
    alice.announce("i1", 8080, true);
    news(&mut agent, |leases| leases.len() == 1).await;

    // Its stream is cut; the connection waits for another one.
    alice.link = AbortOnDropHandle::new(tokio::spawn(async {}));
    let leases = news(&mut agent, are_quiet).await;
    assert_eq!(leases[0].ports.len(), 1);
    // The connection is given up, and another one of the session may follow.
    let Workstation { guard, call, .. } = alice;
    drop((guard, call));
    assert!(are_quiet(&lab.intercepts.leases()));

    lab.intercepts.remove("i1");
    news(&mut agent, <[Lease]>::is_empty).await;
}

#[tokio::test]
async fn a_session_that_stays_away_has_no_lease() {
    let lab = Lab::new().await;
    let alice = lab.session("alice").await;
    lab.intercept("i1", "alice", 8080);
    alice.announce("i1", 8080, true);
    drop((alice.guard, alice.call));
    assert!(are_quiet(&lab.intercepts.leases()));

    let later = Instant::now() + DISCONNECTED_AFTER;

    assert!(lab.intercepts.leases_at(later).is_empty());
}

#[test]
fn a_round_of_many_leases_goes_into_several_messages() {
    use prost::Message as _;

    let leases: Vec<Lease> = (0..2000)
        .map(|number| Lease {
            intercept: format!("0c9a3f52-2f0e-4c0a-8f0f-{number:012}"),
            ports: vec![tp_proto::agent::PortState {
                port: 8080,
                is_listening: true,
            }],
            namespace: "shop".into(),
            name: format!("web-{number}"),
            is_quiet: false,
        })
        .collect();

    let messages: Vec<ManagerNews> = round(&leases).collect();

    assert!(messages.iter().all(|it| it.encoded_len() <= 16 << 10));
    let (last, before) = messages.split_last().unwrap();
    assert!(!last.more && before.iter().all(|it| it.more));
    let told: Vec<Lease> = messages.into_iter().flat_map(|it| it.leases).collect();
    assert_eq!(told, leases);
    let nothing: Vec<ManagerNews> = round(&[]).collect();
    assert_eq!(nothing, [ManagerNews::default()]);
}

#[tokio::test]
async fn the_older_intercept_of_a_port_holds_it_and_the_other_is_told() {
    let lab = Lab::new().await;
    let (alice, bob) = (lab.session("alice").await, lab.session("bob").await);
    lab.intercept("i1", "alice", 8080);
    lab.intercept("i2", "bob", 8080);
    alice.announce("i1", 8080, true);
    bob.announce("i2", 8080, true);

    let leases = lab.intercepts.leases();
    let states = lab.states(&bob);

    assert_eq!(leases.len(), 1);
    assert_eq!(leases[0].intercept, "i1");
    let held = &states.intercepts[0].held;
    assert_eq!((held[0].port, &*held[0].user), (8080, "alice"));
}

#[tokio::test]
async fn reports_last_as_long_as_the_agent_is_connected() {
    let lab = Lab::new().await;
    let alice = lab.session("alice").await;
    let mut agent = lab.agent("node1").await;
    lab.intercept("i1", "alice", 8080);
    alice.announce("i1", 8080, true);
    let report = PodReport {
        intercept: "i1".into(),
        pod: POD.into(),
        name: "web-0".into(),
        phase: tp_proto::agent::PodPhase::Redirected.into(),
        ..PodReport::default()
    };
    let pods = || lab.states(&alice).intercepts[0].pods.clone();
    let until = async |count: usize| {
        while pods().len() != count {
            sleep(Duration::from_millis(10)).await;
        }
    };

    agent
        .reports
        .send(&AgentNews {
            pods: vec![report],
            environ: None,
        })
        .await
        .unwrap();
    within(until(1)).await;
    assert!(pods()[0].is_redirected);
    assert_eq!((&*pods()[0].name, &*pods()[0].node), ("web-0", "node1"));

    drop(agent);
    within(until(0)).await;
}
