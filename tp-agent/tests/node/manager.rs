use std::{net::Ipv4Addr, sync::Arc, time::Duration};

use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    task::JoinSet,
    time::timeout,
};
use tp_agent::facts::ManagerAddress;
use tp_proto::agent::{EnvironPart, EnvironQuestion, Lease, ManagerNews, PodReport, PortState};
use tp_transport::{
    Identity,
    agents::{AgentServer, AgentStream, IncomingConnection, ManagerControl},
};

pub(crate) const INTERCEPT: &str = "0c9a3f52-2f0e-4c0a-8f0f-5a3d3a6c1b11";
const LIMIT: Duration = Duration::from_secs(15);
const NEWS_INTERVAL: Duration = Duration::from_millis(500);

/// The manager's end.
pub(crate) struct Manager {
    news: watch::Sender<ManagerNews>,
    reports: mpsc::Receiver<PodReport>,
    parts: mpsc::Receiver<EnvironPart>,
    pub(crate) incoming: mpsc::Receiver<IncomingConnection>,
    pub(crate) address: ManagerAddress,
    _task: JoinSet<()>,
}

impl Manager {
    pub(crate) async fn start() -> Self {
        let identity = Identity::generate().unwrap();
        let server = AgentServer::new(&identity).unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = ManagerAddress {
            address: listener.local_addr().unwrap(),
            key: identity.key_hash(),
        };
        let (news, told) = watch::channel(ManagerNews::default());
        let (said, reports) = mpsc::channel(1024);
        let (parting, parts) = mpsc::channel(1024);
        let (carried, incoming) = mpsc::channel(64);
        let mut task = JoinSet::new();
        task.spawn(async move {
            let server = Arc::new(server);
            let mut tasks = JoinSet::new();
            while let Ok((tcp, _)) = listener.accept().await {
                let (server, told) = (Arc::clone(&server), told.clone());
                let (said, carried) = ((said.clone(), parting.clone()), carried.clone());
                tasks.spawn(async move {
                    match server.accept(tcp).await {
                        Ok(AgentStream::Greeting(greeting)) => {
                            assert_eq!(greeting.token, "token");
                            converse(greeting.admit().await.unwrap(), told, said).await;
                        }
                        Ok(AgentStream::Carrier(carrier)) => {
                            if let Ok(Some(connection)) = carrier.connection().await {
                                carried.send(connection).await.unwrap();
                            }
                        }
                        Err(error) => panic!("{error}"),
                    }
                });
            }
        });

        Self {
            news,
            reports,
            parts,
            incoming,
            address,
            _task: task,
        }
    }

    /// Leases these ports, which listen at the workstation or do not; none ends the lease.
    pub(crate) fn lease(&self, ports: &[(u16, bool)]) {
        self.tell(ports, false);
    }

    /// The session of the lease is not heard from.
    pub(crate) fn lease_quietly(&self, ports: &[(u16, bool)]) {
        self.tell(ports, true);
    }

    fn tell(&self, ports: &[(u16, bool)], is_quiet: bool) {
        let states = ports.iter().map(|(port, is_listening)| PortState {
            port: (*port).into(),
            is_listening: *is_listening,
        });
        let lease = Lease {
            intercept: INTERCEPT.into(),
            ports: states.collect(),
            is_quiet,
            ..Lease::default()
        };
        let leases = Some(lease).filter(|lease| !lease.ports.is_empty());
        self.news.send_replace(ManagerNews {
            leases: leases.into_iter().collect(),
            more: false,
            environ: None,
        });
    }

    /// The answer to a question, which is asked again and again.
    pub(crate) async fn ask(&mut self, question: EnvironQuestion) -> Vec<EnvironPart> {
        let number = question.number;
        self.news.send_replace(ManagerNews {
            environ: Some(question),
            more: true,
            ..ManagerNews::default()
        });
        let answered = async {
            let mut all = Vec::new();
            while let Some(part) = self.parts.recv().await {
                if part.number != number {
                    continue;
                }
                let is_last = part.is_last;
                all.push(part);
                if is_last {
                    break;
                }
            }
            all
        };

        timeout(LIMIT, answered).await.unwrap()
    }

    /// The next report of this kind.
    pub(crate) async fn report(&mut self, wanted: impl Fn(&PodReport) -> bool) -> PodReport {
        let mut seen = Vec::new();
        let found = async {
            loop {
                let report = self.reports.recv().await.unwrap();
                if wanted(&report) {
                    return report;
                }
                seen.push(report);
            }
        };
        let found = timeout(LIMIT, found).await;

        found.unwrap_or_else(|_| panic!("no such report, but {seen:?}"))
    }

    pub(crate) async fn incoming(&mut self) -> IncomingConnection {
        timeout(LIMIT, self.incoming.recv()).await.unwrap().unwrap()
    }
}

async fn converse(
    control: ManagerControl,
    mut told: watch::Receiver<ManagerNews>,
    (said, parting): (mpsc::Sender<PodReport>, mpsc::Sender<EnvironPart>),
) {
    let ManagerControl {
        mut news,
        mut reports,
        guard: _guard,
        ..
    } = control;
    let tell = async {
        loop {
            let all = told.borrow_and_update().clone();
            if news.send(&all).await.is_err() {
                return;
            }
            let _ = timeout(NEWS_INTERVAL, told.changed()).await;
        }
    };
    let listen = async {
        while let Ok(news) = reports.receive().await {
            for report in news.pods {
                said.send(report).await.unwrap();
            }
            if let Some(part) = news.environ {
                parting.send(part).await.unwrap();
            }
        }
    };
    tokio::select! {
        () = tell => {}
        () = listen => {}
    }
}
