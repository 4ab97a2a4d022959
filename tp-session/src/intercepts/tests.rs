//! Intercepts from the request to the end, with a staged manager and API server.

use std::sync::atomic::Ordering;

use futures::StreamExt as _;
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::AbortOnDropHandle;
use tonic::transport::Channel;
use tp_core::dns::Zone;
use tp_process::sync::lock;
use tp_proto::{
    local::{InterceptEvent, InterceptRequest, KeepFilesRequest, NewFile, intercept_event::Event},
    tunnel::{HeldPort, InterceptStates, InterceptedPod, LocalIntercepts, ReadyPod},
};
use tp_transport::{Identity, KeyHash, SessionRef, TunnelServer};

use super::{
    testing::{Anybody, StagedApi, StagedManager, connect},
    *,
};

mod histories;
mod objects;
mod others;

const LIMIT: Duration = Duration::from_secs(20);

struct Lab {
    api: StagedApi,
    manager: StagedManager,
    channel: Channel,
    server: Arc<TunnelServer>,
    key: KeyHash,
    shared: Arc<Shared>,
    own: Arc<OwnIntercepts>,
    session: u32,
    _tasks: Vec<AbortOnDropHandle<()>>,
}

impl Lab {
    async fn new() -> Self {
        let (api, (manager, channel, serving)) =
            tokio::join!(StagedApi::start(), StagedManager::start());
        let identity = Identity::generate().unwrap();
        let shared = Arc::new(Shared::new(Zone::new("cluster.local", "shop", [])));
        let (login, stop) = (Arc::clone(&api.login), CancellationToken::new());
        let own = Arc::new(OwnIntercepts::new(login, Arc::clone(&shared), stop));
        let follow = tokio::spawn(Arc::clone(&own).follow());
        let ports = tokio::spawn(Arc::clone(&own).watch_local_ports());

        Self {
            api,
            manager,
            channel,
            key: identity.key_hash(),
            server: TunnelServer::bind(None, identity, Arc::new(Anybody)).unwrap(),
            shared,
            own,
            session: 0,
            _tasks: [follow, ports]
                .map(AbortOnDropHandle::new)
                .into_iter()
                .chain([serving])
                .collect(),
        }
    }

    /// Connects with a new Session.
    async fn connect(&mut self) {
        self.session += 1;
        let session = SessionRef {
            namespace: "shop".to_owned(),
            name: format!("alice-{}", self.session),
            uid: format!("session-{}", self.session),
        };
        let channel = self.channel.clone();
        let (up, _) = connect(&self.server, self.key, session, channel).await;
        self.shared.up.send_replace(Some(up));
    }

    fn ask(
        &self,
        request: InterceptRequest,
    ) -> mpsc::Receiver<Result<InterceptEvent, tonic::Status>> {
        let (event_tx, events) = mpsc::channel(16);
        let own = Arc::clone(&self.own);
        tokio::spawn(own.answer(
            request,
            "shop".to_owned(),
            Some(std::process::id()),
            InterceptEvents(event_tx),
        ));

        events
    }

    async fn intercept(&self, workload: &str) -> Result<Intercept, Fault> {
        result(self.ask(request(workload))).await
    }

    /// The UIDs in the cluster that are of the current Session.
    fn of_session(&self) -> Vec<String> {
        let session = format!("session-{}", self.session);
        let objects = lock(&self.api.objects);
        let of_session = objects
            .values()
            .filter(|it| it["spec"]["session"]["uid"] == session);
        let mut uids: Vec<_> = of_session
            .map(|it| it["metadata"]["uid"].as_str().unwrap().to_owned())
            .collect();
        uids.sort();

        uids
    }

    async fn hears(&self, expected: impl Fn(&LocalIntercepts) -> bool) {
        let mut heard = self.manager.heard.subscribe();
        let heard = timeout(LIMIT, heard.wait_for(|it| expected(it))).await;
        heard.expect("it is told in time").unwrap();
    }
}

fn request(workload: &str) -> InterceptRequest {
    InterceptRequest {
        workload: workload.to_owned(),
        ports: vec!["9".to_owned()],
        ..InterceptRequest::default()
    }
}

async fn result(
    events: mpsc::Receiver<Result<InterceptEvent, tonic::Status>>,
) -> Result<Intercept, Fault> {
    let mut events = ReceiverStream::new(events);
    loop {
        let event = timeout(LIMIT, events.next()).await.expect("an end in time");
        let event = event.expect("a result")?.event;
        if let Some(Event::Intercepted(intercept)) = event {
            return Ok(intercept);
        }
    }
}

fn uids(local: &LocalIntercepts) -> Vec<String> {
    let mut uids: Vec<_> = local.intercepts.iter().map(|it| it.uid.clone()).collect();
    uids.sort();

    uids
}

#[tokio::test]
async fn an_intercept_is_made_shown_and_left() {
    let mut lab = Lab::new().await;
    lab.connect().await;

    let made = lab.intercept("web").await.unwrap();

    assert_eq!((made.state.as_str(), made.name.as_str()), ("active", "web"));
    assert_eq!(made.ports[0].local, "127.0.0.1:9");
    assert_eq!(
        made.notices,
        ["nothing listens at 127.0.0.1:9 yet: connections are refused until something does"]
    );
    assert_eq!(lab.of_session().len(), 1);
    assert_eq!(lab.own.status().len(), 1);
    let wanted = Arc::clone(&lab.own.entries.borrow()["web"].wanted);
    wanted.unshown.store(2, Ordering::Relaxed);
    assert_eq!(
        lab.own.status()[0].notices.last().unwrap(),
        "2 connections came without their client's address: the local process saw one of this \
         machine instead; --proxy-protocol tells it"
    );
    let again = lab.intercept("web").await.unwrap_err();
    assert!(
        again.message.contains("there is an intercept web already"),
        "{again}"
    );
    let unknown = lab.own.leave("api").await.unwrap_err();
    assert_eq!(unknown.message, "there is no intercept api: there are web");
    lab.own.leave("web").await.unwrap();
    assert!(lab.of_session().is_empty() && lab.own.status().is_empty());
    lab.hears(|it| it.intercepts.is_empty()).await;
}

#[tokio::test]
async fn what_cannot_be_intercepted_leaves_nothing_and_says_why() {
    let mut lab = Lab::new().await;
    lab.connect().await;
    let refused = tonic::Status::not_found("there is no workload web");
    *lab.manager.refusal.lock().unwrap() = Some(refused);
    let fault = lab.intercept("web").await.unwrap_err();
    assert_eq!(
        (fault.kind, fault.message.as_str()),
        (FaultKind::Usage, "there is no workload web")
    );
    *lab.manager.refusal.lock().unwrap() = None;

    let forbidden = "intercepts is forbidden: User \"alice\" cannot create resource";
    *lab.api.refusal.lock().unwrap() = Some((403, forbidden.to_owned()));
    let fault = lab.intercept("web").await.unwrap_err();
    assert_eq!(fault.kind, FaultKind::NoPermission);
    let command = "`tp grant alice --namespace shop --intercept`";
    assert!(fault.message.ends_with(command), "{fault}");
    *lab.api.refusal.lock().unwrap() = Some((404, "the server could not find it".to_owned()));
    let fault = lab.intercept("web").await.unwrap_err();
    assert!(fault.message.contains("`tp install`"), "{fault}");
    *lab.api.refusal.lock().unwrap() = None;

    let held = HeldPort {
        port: 80,
        user: "bob".to_owned(),
        since: "2026-11-27T09:00:00Z".to_owned(),
        own: false,
    };
    lab.manager.state.lock().unwrap().held = vec![held];
    let fault = lab.intercept("web").await.unwrap_err();
    assert!(
        fault
            .message
            .contains("bob has port 80 since 2026-11-27T09:00:00Z"),
        "{fault}"
    );
    let pod = InterceptedPod {
        name: "web-1".to_owned(),
        reason: "it uses the node's network".to_owned(),
        ..InterceptedPod::default()
    };
    *lab.manager.state.lock().unwrap() = InterceptState {
        pods: vec![pod],
        ..InterceptState::default()
    };
    let fault = lab.intercept("web").await.unwrap_err();
    assert!(
        fault.message.contains("web-1: it uses the node's network"),
        "{fault}"
    );

    assert!(lab.of_session().is_empty() && lab.own.status().is_empty());
}

#[tokio::test]
async fn what_another_holds_is_taken_over_where_that_is_asked_for() {
    let mut lab = Lab::new().await;
    lab.connect().await;
    lab.manager.state.lock().unwrap().held = vec![HeldPort {
        port: 80,
        user: "bob".to_owned(),
        ..HeldPort::default()
    }];
    let fault = lab.intercept("web").await.unwrap_err();
    assert!(fault.message.contains("--take-over"), "{fault}");

    let asked = InterceptRequest {
        take_over: true,
        ..request("web")
    };
    let made = result(lab.ask(asked)).await.unwrap();

    assert_eq!(made.state, "active");
}

#[tokio::test]
async fn who_ended_an_intercept_is_told() {
    let mut lab = Lab::new().await;
    lab.connect().await;
    lab.intercept("web").await.unwrap();
    let [uid] = &lab.of_session()[..] else {
        panic!("one object is expected");
    };
    lab.api.objects.lock().unwrap().clear();
    lab.own.apply(&InterceptStates {
        intercepts: vec![InterceptState {
            uid: uid.clone(),
            refusal: "the Intercept does not exist".to_owned(),
            ended: "bob took port 80 over".to_owned(),
            ..InterceptState::default()
        }],
    });

    let is_ended = |entries: &Entries| entries.values().all(|it| it.phase == EntryPhase::Ended);
    let mut entries = lab.own.entries.subscribe();
    let ended = timeout(LIMIT, entries.wait_for(is_ended)).await;
    drop(ended.expect("it is looked for at once").unwrap());
    lab.hears(|it| it.intercepts.is_empty()).await;
    let shown = &lab.own.status()[0];
    assert_eq!(shown.state, "ended");
    assert_eq!(
        shown.reason,
        "bob took port 80 over: `tp leave web`, then intercept again"
    );
    assert!(lab.own.names().is_empty());
    lab.own.leave("web").await.unwrap();
}

#[tokio::test]
async fn an_intercept_for_a_command_ends_with_its_caller() {
    let mut lab = Lab::new().await;
    lab.connect().await;
    let mut events = lab.ask(InterceptRequest {
        for_command: true,
        ..request("web")
    });
    while lab.own.status().is_empty() {
        timeout(LIMIT, events.recv()).await.unwrap();
    }

    drop(events);

    let mut entries = lab.own.entries.subscribe();
    let gone = timeout(LIMIT, entries.wait_for(BTreeMap::is_empty)).await;
    gone.expect("it ends").unwrap();
    assert!(lab.of_session().is_empty());
}

#[tokio::test]
async fn the_manager_hears_whether_the_local_port_listens() {
    let mut lab = Lab::new().await;
    lab.connect().await;
    let listener = std::net::TcpListener::bind("[::1]:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let asked = InterceptRequest {
        ports: vec![port.to_string()],
        ..request("web")
    };
    let is = |listens: bool| {
        move |it: &LocalIntercepts| {
            let port = it.intercepts.first().and_then(|it| it.ports.first());
            port.is_some_and(|port| port.is_listening == listens)
        }
    };

    let made = result(lab.ask(asked)).await.unwrap();

    assert_eq!(made.ports[0].local, format!("[::1]:{port}"));
    lab.hears(is(true)).await;
    drop(listener);
    lab.hears(is(false)).await;
    let _at_ipv4 = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
    lab.hears(is(true)).await;
    let shown = lab.own.status();
    assert_eq!(shown[0].ports[0].local, format!("127.0.0.1:{port}"));
}

#[tokio::test]
async fn pods_that_no_agent_has_reported_are_named() {
    let mut lab = Lab::new().await;
    lab.connect().await;
    lab.manager.ready.store(2, Ordering::Relaxed);
    let pod = |name: &str, node: &str| ReadyPod {
        name: name.to_owned(),
        node: node.to_owned(),
    };
    *lab.manager.pods.lock().unwrap() = vec![pod("web-1", "node-1"), pod("web-2", "node-2")];

    let made = lab.intercept("web").await.unwrap();

    assert_eq!(made.state, "active");
    let notice = made.notices.last().expect("what is missing is said");
    assert!(notice.contains("not redirected yet"), "{notice}");
    assert!(notice.contains(": pod web-2 on node-2;"), "{notice}");
}

#[tokio::test]
async fn an_intercept_waits_where_there_is_no_pod() {
    let mut lab = Lab::new().await;
    lab.connect().await;
    *lab.manager.state.lock().unwrap() = InterceptState::default();
    lab.manager.ready.store(0, Ordering::Relaxed);

    assert_eq!(lab.intercept("web").await.unwrap().state, "waiting");
}

/// The manager knows what it would know had everything just begun: the objects of the Session, however
/// they came about.
#[tokio::test]
async fn whatever_happened_the_manager_knows_the_intercepts_of_the_session() {
    let mut lab = Lab::new().await;
    let mut random = fastrand::Rng::with_seed(13);
    let mut names: Vec<String> = Vec::new();
    lab.connect().await;
    for step in 0..40 {
        match random.u8(0..4) {
            0 | 1 if names.len() < 6 => {
                let name = format!("web-{step}");
                lab.intercept(&name).await.unwrap();
                names.push(name);
            }
            2 if !names.is_empty() => {
                let name = names.swap_remove(random.usize(0..names.len()));
                lab.own.leave(&name).await.unwrap();
            }
            _ => {
                if random.bool() {
                    lab.shared.up.send_replace(None);
                }
                lab.connect().await;
            }
        }
        let mut entries = lab.own.entries.subscribe();
        let session = format!("session-{}", lab.session);
        let is_current = |entry: &OwnIntercept| {
            entry
                .made
                .as_ref()
                .is_some_and(|made| made.session == session)
        };
        let all = |entries: &Entries| entries.values().all(is_current);
        let settled = timeout(LIMIT, entries.wait_for(all)).await;
        drop(settled.expect("they are made anew").unwrap());
        assert_eq!(lab.of_session().len(), names.len(), "step {step}");
        if !names.is_empty() {
            lab.hears(|it| uids(it) == lab.of_session()).await;
        }
        let shown: Vec<String> = lab.own.status().into_iter().map(|it| it.name).collect();
        names.sort();
        assert_eq!(shown, names, "step {step}");
    }
    lab.own.end_all().await;
    assert!(lab.api.objects.lock().unwrap().is_empty());
}

#[tokio::test]
async fn files_end_with_their_intercept_however_it_ends() {
    let mut lab = Lab::new().await;
    lab.connect().await;
    let file = NewFile {
        path: String::new(),
        content: b"A=1\n".to_vec(),
    };
    let request = |intercept: &str| KeepFilesRequest {
        intercept: intercept.to_owned(),
        files: vec![file.clone()],
    };
    let is_there = |paths: &[String]| {
        let found = std::fs::read_link(&paths[0]);
        found.is_ok_and(|it| it.to_string_lossy().contains("memfd:tp-env"))
    };
    lab.intercept("web").await.unwrap();
    let kept = lab.own.keep_files(request("web")).await.unwrap();
    assert!(is_there(&kept));
    lab.own.leave("web").await.unwrap();
    assert!(!is_there(&kept));
    let refused = lab.own.keep_files(request("web")).await.unwrap_err();
    assert_eq!(refused.kind, FaultKind::Usage);

    lab.intercept("db").await.unwrap();
    let kept = lab.own.keep_files(request("db")).await.unwrap();
    lab.own.end_all().await;
    assert!(!is_there(&kept));
}
