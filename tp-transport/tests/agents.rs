//! Agent and manager, both ends over TCP on loopback.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, ErrorKind},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::timeout,
};
use tp_proto::{
    agent::{AgentNews, Lease, ManagerNews, PodReport},
    tunnel::Outcome,
};
use tp_transport::{
    Identity, InterceptedFrom, KeyHash, SpliceCounters,
    agents::{
        AgentControl, AgentError, AgentFlow, AgentServer, AgentStream, IdleCarrier,
        IncomingConnection, ManagerControl, carry,
    },
};

const POD: &str = "77aa";
const TOKEN: &str = "token of the agent on node1";
const LIMIT: Duration = Duration::from_secs(10);

/// A manager's listener.
struct Manager {
    server: AgentServer,
    listener: TcpListener,
    key: KeyHash,
}

impl Manager {
    async fn new() -> Self {
        let identity = Identity::generate().expect("both ends are there");

        Self {
            server: AgentServer::new(&identity).expect("both ends are there"),
            listener: TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
                .await
                .expect("both ends are there"),
            key: identity.key_hash(),
        }
    }

    fn connect(&self) -> impl Future<Output = TcpStream> + 'static {
        let address = self.listener.local_addr().expect("both ends are there");

        async move {
            TcpStream::connect(address)
                .await
                .expect("both ends are there")
        }
    }

    async fn accept(&self) -> Result<AgentStream, AgentError> {
        let (tcp, _) = self.listener.accept().await.expect("both ends are there");

        self.server.accept(tcp).await
    }

    /// Both ends of an admitted control connection.
    async fn admitted(&self) -> (AgentControl, ManagerControl) {
        let (tcp, key) = (self.connect(), self.key);
        let agent = tokio::spawn(async move {
            AgentControl::connect(tcp.await, key, TOKEN)
                .await
                .expect("both ends are there")
        });
        let AgentStream::Greeting(greeting) = self.accept().await.expect("both ends are there")
        else {
            panic!("a carrier came first");
        };
        assert_eq!(greeting.token, TOKEN);
        let manager = greeting.admit().await.expect("both ends are there");

        (agent.await.expect("both ends are there"), manager)
    }

    /// Both ends of a carrier that was asked to carry a connection.
    async fn carried(
        &self,
        agent: &AgentControl,
        number: u64,
    ) -> (
        JoinHandle<Result<AgentFlow, tp_proto::tunnel::Verdict>>,
        IncomingConnection,
    ) {
        let (tcp, key, ticket) = (self.connect(), self.key, agent.ticket.clone());
        let carried = tokio::spawn(async move {
            let idle = IdleCarrier::connect(tcp.await, key, &ticket)
                .await
                .expect("both ends are there");
            idle.carry(&from(), POD).await.expect("both ends are there")
        });
        let AgentStream::Carrier(carrier) = self.accept().await.expect("both ends are there")
        else {
            panic!("it is a carrier");
        };
        assert_eq!(carrier.agent, number);
        let incoming = carrier
            .connection()
            .await
            .expect("both ends are there")
            .expect("both ends are there");
        assert_eq!((&incoming.from, incoming.pod.as_str()), (&from(), POD));

        (carried, incoming)
    }
}

fn from() -> InterceptedFrom {
    let address = |text: &str| text.parse::<SocketAddr>().expect("it is one");

    InterceptedFrom {
        intercept: "8a4e".into(),
        client: address("[fd00::9]:40112"),
        pod: address("10.244.1.7:8080"),
    }
}

#[tokio::test]
async fn bytes_and_the_end_of_each_direction_arrive() {
    let manager = Manager::new().await;
    let (agent, control) = manager.admitted().await;
    let (carried, incoming) = manager.carried(&agent, control.agent).await;
    let mut theirs = incoming.accept().await.unwrap();
    let mut ours = carried.await.unwrap().unwrap();

    let sent = vec![7; 1 << 20];
    let expected = sent.clone();
    let writing = tokio::spawn(async move {
        ours.write_all(&sent).await.unwrap();
        ours.shutdown().await.unwrap();
        let mut answer = String::new();
        ours.read_to_string(&mut answer).await.unwrap();
        answer
    });
    let mut received = Vec::new();
    theirs.read_to_end(&mut received).await.unwrap();
    assert!(received == expected);
    // The other direction goes on.
    theirs.write_all(b"all read").await.unwrap();
    theirs.shutdown().await.unwrap();

    assert_eq!(writing.await.unwrap(), "all read");
}

#[tokio::test]
async fn a_truncated_flow_never_ends_cleanly() {
    let manager = Manager::new().await;
    let (agent, control) = manager.admitted().await;
    let (carried, incoming) = manager.carried(&agent, control.agent).await;
    let mut theirs = incoming.accept().await.unwrap();
    let mut ours = carried.await.unwrap().unwrap();

    ours.write_all(b"half of").await.unwrap();
    ours.flush().await.unwrap();
    let mut begun = [0; 7];
    theirs.read_exact(&mut begun).await.unwrap();
    drop(ours);

    let error = theirs.read_to_end(&mut Vec::new()).await.unwrap_err();
    let kinds = [ErrorKind::UnexpectedEof, ErrorKind::ConnectionReset];
    assert!(kinds.contains(&error.kind()), "{error:?}");
}

#[tokio::test]
async fn a_refusal_is_told_with_its_outcome() {
    let manager = Manager::new().await;
    let (agent, control) = manager.admitted().await;
    let (carried, incoming) = manager.carried(&agent, control.agent).await;

    incoming
        .refuse(Outcome::Refused, "nothing listens at port 8080")
        .await;

    let verdict = carried.await.unwrap().unwrap_err();
    assert_eq!(verdict.outcome(), Outcome::Refused);
    assert_eq!(verdict.reason, "nothing listens at port 8080");
}

#[tokio::test]
async fn the_token_is_sent_only_to_the_pinned_manager() {
    let manager = Manager::new().await;
    let another = Identity::generate().unwrap().key_hash();
    let tcp = manager.connect();
    let agent =
        tokio::spawn(async move { AgentControl::connect(tcp.await, another, TOKEN).await.err() });

    // The handshake fails before any message.
    assert!(matches!(manager.accept().await, Err(AgentError::Io(_))));
    let error = agent.await.unwrap();

    assert!(
        matches!(&error, Some(AgentError::AnotherKey(key)) if key.pinned == another),
        "{error:?}"
    );
}

#[tokio::test]
async fn an_agent_that_is_refused_is_told_why() {
    let manager = Manager::new().await;
    let (tcp, key) = (manager.connect(), manager.key);
    let agent = tokio::spawn(async move { AgentControl::connect(tcp.await, key, "stolen").await });
    let Ok(AgentStream::Greeting(greeting)) = manager.accept().await else {
        panic!("it greets");
    };

    greeting.refuse("the token is of no agent").await;

    let error = agent.await.unwrap().err().map(|error| error.to_string());
    assert_eq!(
        error.as_deref(),
        Some("the traffic manager refuses the agent: the token is of no agent")
    );
}

#[tokio::test]
async fn a_carrier_is_admitted_while_its_control_connection_lasts_and_by_its_key_alone() {
    let manager = Manager::new().await;
    let (agent, control) = manager.admitted().await;
    let (other, other_control) = manager.admitted().await;
    assert_ne!(control.agent, other_control.agent);
    let attempt = async |agent: &AgentControl| {
        let (tcp, key, ticket) = (manager.connect(), manager.key, agent.ticket.clone());
        let carrier =
            tokio::spawn(async move { IdleCarrier::connect(tcp.await, key, &ticket).await });
        let accepted = manager.accept().await;
        (carrier.await.unwrap(), accepted)
    };

    let (carrier, accepted) = attempt(&agent).await;
    assert!(carrier.is_ok() && matches!(accepted, Ok(AgentStream::Carrier(_))));
    drop(control.guard);
    let (carrier, accepted) = attempt(&agent).await;
    assert!(
        matches!(carrier, Err(AgentError::Refused(_))),
        "{carrier:?}"
    );
    assert!(accepted.is_err());
    // That of another agent still is.
    let (carrier, _accepted) = attempt(&other).await;
    assert!(carrier.is_ok());
}

#[tokio::test]
async fn news_go_both_ways() {
    let manager = Manager::new().await;
    let (mut agent, mut control) = manager.admitted().await;
    let news = ManagerNews {
        leases: vec![Lease {
            intercept: "8a4e".into(),
            ..Lease::default()
        }],
        ..ManagerNews::default()
    };
    let report = AgentNews {
        pods: vec![PodReport {
            intercept: "8a4e".into(),
            ..PodReport::default()
        }],
        environ: None,
    };

    control.news.send(&news).await.unwrap();
    agent.reports.send(&report).await.unwrap();

    assert_eq!(agent.news.receive().await.unwrap(), news);
    assert_eq!(control.reports.receive().await.unwrap(), report);
    drop(control);
    assert!(matches!(agent.news.receive().await, Err(AgentError::Io(_))));
}

#[tokio::test]
async fn whoever_says_nothing_loses_the_connection() {
    let manager = Manager::new().await;
    let silent = manager.connect().await;

    let accepted = timeout(LIMIT, manager.accept()).await.unwrap();

    assert!(matches!(accepted, Err(AgentError::TimedOut)));
    drop(silent);
}

#[tokio::test]
async fn a_client_that_goes_is_noticed_while_its_connection_waits() {
    let manager = Manager::new().await;
    let (agent, control) = manager.admitted().await;
    let (carried, mut incoming) = manager.carried(&agent, control.agent).await;

    carried.abort();

    timeout(LIMIT, incoming.cancelled()).await.unwrap();
}

/// A client's connection, carried to a manager: the client's end, and the manager's.
async fn carried_client(
    manager: &Manager,
) -> (
    TcpStream,
    AgentFlow,
    JoinHandle<std::io::Result<()>>,
    (AgentControl, ManagerControl),
) {
    let (agent, control) = manager.admitted().await;
    let (carried, incoming) = manager.carried(&agent, control.agent).await;
    let theirs = incoming.accept().await.expect("the agent waits");
    let ours = carried.await.expect("no panic").expect("it is accepted");
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .expect("loopback");
    let address = listener.local_addr().expect("it is bound");
    let (client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
    let (accepted, _) = accepted.expect("the client connects");
    let carrying =
        tokio::spawn(async move { carry(accepted, ours, &SpliceCounters::default()).await });

    (
        client.expect("it is accepted"),
        theirs,
        carrying,
        (agent, control),
    )
}

#[tokio::test]
async fn a_client_and_its_manager_end_each_direction() {
    let manager = Manager::new().await;
    let (mut client, mut theirs, carrying, _control) = carried_client(&manager).await;
    let sent: Vec<u8> = (0..3 << 20).map(|n: u32| (n % 251) as u8).collect();
    let expected = sent.clone();

    let talk = tokio::spawn(async move {
        client.write_all(&sent).await.unwrap();
        client.shutdown().await.unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        answer
    });
    let mut received = Vec::new();
    theirs.read_to_end(&mut received).await.unwrap();
    assert!(received == expected);
    theirs.write_all(&received).await.unwrap();
    theirs.shutdown().await.unwrap();

    assert!(talk.await.unwrap() == expected);
    timeout(LIMIT, carrying).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn a_reset_is_a_reset_at_the_other_end() {
    let manager = Manager::new().await;

    let (client, mut theirs, carrying, _control) = carried_client(&manager).await;
    client.set_zero_linger().unwrap();
    drop(client);
    let error = theirs.read_to_end(&mut Vec::new()).await.unwrap_err();
    let kinds = [ErrorKind::UnexpectedEof, ErrorKind::ConnectionReset];
    assert!(kinds.contains(&error.kind()), "{error:?}");
    timeout(LIMIT, carrying)
        .await
        .unwrap()
        .unwrap()
        .unwrap_err();

    let (mut client, theirs, carrying, _control) = carried_client(&manager).await;
    drop(theirs);
    let error = client.read_to_end(&mut Vec::new()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    timeout(LIMIT, carrying)
        .await
        .unwrap()
        .unwrap()
        .unwrap_err();
}

#[tokio::test]
async fn a_client_that_resets_while_nobody_reads_is_noticed() {
    let manager = Manager::new().await;
    let (mut client, theirs, carrying, _control) = carried_client(&manager).await;
    // Until every buffer on the way is full.
    let full = async { while client.write(&[0; 64 << 10]).await.is_ok() {} };
    assert!(timeout(Duration::from_millis(500), full).await.is_err());

    client.set_zero_linger().unwrap();
    drop(client);

    timeout(LIMIT, carrying)
        .await
        .unwrap()
        .unwrap()
        .unwrap_err();
    drop(theirs);
}
