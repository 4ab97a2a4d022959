//! Against a manager's end of the transport.

use std::net::SocketAddr;

use futures::future::BoxFuture;
use tokio::net::TcpListener;
use tp_proto::{
    agent::{Lease, PortState},
    crd::SessionReference,
};
use tp_transport::{
    Identity, KeyHash,
    agents::{AgentServer, AgentStream, ManagerControl},
};

use super::*;
use crate::{
    agentd::Agentd,
    environ::SessionRights,
    facts::{Facts, Rules},
    leases::boot_time,
};

const LIMIT: Duration = Duration::from_secs(20);

/// Admits whoever shows a token, and leases one Intercept to all.
struct FakeManager {
    address: SocketAddr,
    key: KeyHash,
    /// The tokens of the connections that have not ended, in their order.
    tokens: watch::Receiver<Vec<String>>,
    /// Of the questions that each message has, what is answered last.
    refusal: watch::Receiver<String>,
    _serving: AbortOnDropHandle<()>,
}

impl FakeManager {
    async fn new() -> Self {
        let identity = Identity::generate().unwrap();
        let key = identity.key_hash();
        let server = AgentServer::new(&identity).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (connected, tokens) = watch::channel(Vec::new());
        let (refused, refusal) = watch::channel(String::new());
        let serving = async move {
            let mut tasks = tokio::task::JoinSet::new();
            while let Ok((tcp, _)) = listener.accept().await {
                // Carriers that are being made end with their pool.
                let Ok(stream) = server.accept(tcp).await else {
                    continue;
                };
                match stream {
                    AgentStream::Greeting(greeting) => {
                        let token = greeting.token.clone();
                        connected.send_modify(|all| all.push(token.clone()));
                        let control = greeting.admit().await.unwrap();
                        let connected = connected.clone();
                        let refused = refused.clone();
                        tasks.spawn(async move {
                            lease(control, refused).await;
                            connected.send_modify(|all| all.retain(|it| *it != token));
                        });
                    }
                    AgentStream::Carrier(carrier) => {
                        tasks.spawn(async move { drop(carrier.connection().await) });
                    }
                }
            }
        };

        Self {
            address,
            key,
            tokens,
            refusal,
            _serving: AbortOnDropHandle::new(tokio::spawn(serving)),
        }
    }

    fn known(&self) -> ManagerAddress {
        ManagerAddress {
            address: self.address,
            key: self.key,
        }
    }

    async fn has(&self, tokens: &[&str]) {
        let mut now = self.tokens.clone();
        let has = now.wait_for(|all| all == tokens);
        timeout(LIMIT, has).await.unwrap().unwrap();
    }
}

struct NobodyMay;

impl SessionRights for NobodyMay {
    fn check_exec(
        &self,
        _session: SessionReference,
        _namespace: String,
    ) -> BoxFuture<'static, Result<(), String>> {
        Box::pin(async { Err("nobody may".to_owned()) })
    }
}

fn managers(token_file: PathBuf) -> Managers {
    let agentd = Agentd::start(token_file.with_file_name("absent")).unwrap();
    let (_, facts) = watch::channel(Facts::default());
    let environs = Environs::new(agentd, facts, Rules::default(), Box::new(NobodyMay));

    Managers::new(token_file, environs)
}

async fn lease(control: ManagerControl, refused: watch::Sender<String>) {
    let ManagerControl {
        mut news,
        mut reports,
        guard,
        ..
    } = control;
    let leases = vec![Lease {
        intercept: "i1".into(),
        ports: vec![PortState {
            port: 8080,
            is_listening: true,
        }],
        ..Lease::default()
    }];
    let message = ManagerNews {
        leases,
        environ: Some(EnvironQuestion::default()),
        ..ManagerNews::default()
    };
    let sending = async {
        while news.send(&message).await.is_ok() {
            sleep(Duration::from_millis(50)).await;
        }
    };
    let receiving = async {
        while let Ok(news) = reports.receive().await {
            let refusal = news.environ.map(|part| part.refusal);
            refusal.map(|refusal| refused.send_replace(refusal));
        }
    };
    tokio::select! {
        () = sending => {}
        () = receiving => {}
    }
    drop(guard);
}

#[tokio::test]
async fn a_newer_token_replaces_the_connection_and_no_lease_is_missed() {
    let manager = FakeManager::new().await;
    let dir = tempfile::tempdir().unwrap();
    let token_file = dir.path().join("token");
    std::fs::write(&token_file, "first").unwrap();
    let mut managers = managers(token_file.clone());
    managers.token_interval = Duration::from_millis(50);
    let managers = Arc::new(managers);
    let known = manager.known();
    let (_facts, known) = watch::channel([("tp-manager-0".to_owned(), known)].into());
    let keeping = Arc::clone(&managers).keep(known);
    let _keeping = AbortOnDropHandle::new(tokio::spawn(keeping));
    let mut news = managers.news();
    let leased = news.wait_for(|all| all.values().any(News::is_served));
    drop(timeout(LIMIT, leased).await.unwrap().unwrap());
    manager.has(&["first"]).await;
    let watching = tokio::spawn(async move {
        while news.changed().await.is_ok() {
            let all = news.borrow_and_update();
            assert!(
                all.values()
                    .all(|it| it.is_served() && it.is_fresh(boot_time()))
            );
        }
    });
    let taking = Arc::clone(&managers);
    let taking = tokio::spawn(async move {
        loop {
            assert!(taking.carrier("tp-manager-0").await.is_some());
            sleep(Duration::from_millis(10)).await;
        }
    });
    let (watching, taking) = (
        AbortOnDropHandle::new(watching),
        AbortOnDropHandle::new(taking),
    );

    std::fs::write(&token_file, "second").unwrap();

    // For a moment both are there.
    manager.has(&["first", "second"]).await;
    manager.has(&["second"]).await;
    sleep(Duration::from_millis(300)).await;
    assert!(!watching.is_finished(), "a lease was missed");
    assert!(!taking.is_finished(), "a carrier was missed");
    assert_eq!(*manager.tokens.borrow(), ["second"]);
}

#[tokio::test]
async fn a_question_for_which_there_is_no_room_is_refused() {
    let manager = FakeManager::new().await;
    let dir = tempfile::tempdir().unwrap();
    let token_file = dir.path().join("token");
    std::fs::write(&token_file, "first").unwrap();
    let managers = managers(token_file);
    let connected = managers.connect(manager.known()).await.unwrap();
    let AgentControl {
        mut news,
        mut reports,
        ..
    } = connected.control;
    // Nobody takes the first one.
    let (asking, _asked) = mpsc::channel(1);
    let (refusing, refused) = mpsc::channel(QUESTIONS);
    let (_answering, parts) = mpsc::channel(1);

    let mut refusal = manager.refusal.clone();
    let is_refused = timeout(LIMIT, refusal.wait_for(|it| it == BUSY));

    tokio::select! {
        error = managers.listen("tp-manager-0", &mut news, (asking, refusing)) => panic!("{error}"),
        error = managers.report(&mut reports, parts, refused) => panic!("{error}"),
        is_refused = is_refused => drop(is_refused.unwrap().unwrap()),
    }
}
