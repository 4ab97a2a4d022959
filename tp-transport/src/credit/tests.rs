use std::{net::Ipv4Addr, time::Duration};

use bytes::Bytes;
use quinn::{ClientConfig, ConnectionError, Endpoint, ServerConfig};
use tokio::time::timeout;
use tp_proto::tunnel::{Dial, Open, open};

use super::*;
use crate::{
    Flow, Identity, SessionRef,
    congestion::PathEpoch,
    flow::{self, Acceptable, Accepted, FlowCount},
    quic::{self, SERVER_CREDIT, SERVER_NAME, server_transport},
    tls,
};

const TIMEOUT: Duration = Duration::from_secs(10);
pub(crate) const SMALL: Limits = Limits {
    flows: 10,
    floor: 4 << 10,
    start: 8 << 10,
    window: 16 << 10,
    shared: 1 << 20,
    starts: 1 << 10,
};

/// An honest end with a ledger, and a peer without one that the test plays.
pub(crate) struct Pair {
    pub(crate) peer: Connection,
    ledger: Arc<Ledger>,
    _endpoints: [Endpoint; 2],
    _run: tokio_util::task::AbortOnDropHandle<()>,
}

impl Pair {
    pub(crate) async fn new(limits: Limits) -> Self {
        let session = SessionRef {
            namespace: "shop".into(),
            name: "alice".into(),
            uid: "1".into(),
        };
        let (identity, manager) = (Identity::generate().unwrap(), Identity::generate().unwrap());
        let (client_tls, _) = tls::client_config(&identity, &session, manager.key_hash()).unwrap();
        let server_tls = tls::server_config(&manager).unwrap();
        let transport = server_transport(&Arc::new(PathEpoch::default()));
        let mut server_config = ServerConfig::with_crypto(Arc::new(server_tls));
        server_config.transport_config(Arc::clone(&transport));
        let mut client_config = ClientConfig::new(Arc::new(client_tls));
        client_config.transport_config(transport);

        let any = (Ipv4Addr::LOCALHOST, 0).into();
        let server = Endpoint::server(server_config, any).unwrap();
        let client = Endpoint::client(any).unwrap();
        let address = server.local_addr().unwrap();
        let connecting = client
            .connect_with(client_config, address, SERVER_NAME)
            .unwrap();
        let accepting = async { server.accept().await.unwrap().await.unwrap() };
        let (peer, connection) = tokio::join!(connecting, accepting);
        let peer = peer.unwrap();
        // Both ends are set up as a server is.
        for end in [&peer, &connection] {
            quic::admit(end);
        }
        let ledger = Ledger::new(connection, limits);
        let run = tokio::spawn(Arc::clone(&ledger).run());

        Self {
            peer,
            ledger,
            _endpoints: [server, client],
            _run: tokio_util::task::AbortOnDropHandle::new(run),
        }
    }

    /// A flow that the peer opens, and how its end looks to the peer.
    async fn flow(&self, start: u64) -> (Flow, SendStream, RecvStream) {
        let dial = open::Kind::Dial(Dial {
            address: vec![10, 0, 0, 1].into(),
            port: 80,
            to_container: false,
        });
        let (accepted, send, recv) = self.opened(dial, start).await;
        let Accepted::Dial { pending, .. } = accepted.unwrap() else {
            panic!("a control stream");
        };

        (pending.accept().await.unwrap(), send, recv)
    }

    /// A stream that the peer opens, as the honest end understands it.
    pub(crate) async fn opened<T: Acceptable>(
        &self,
        kind: open::Kind,
        credit: u64,
    ) -> (Result<T, FlowError>, SendStream, RecvStream) {
        let (mut send, recv) = self.peer.open_bi().await.unwrap();
        let kind = Some(kind);
        let open = message::frame(&Open { kind, credit }).unwrap();
        send.write_chunk(open).await.unwrap();
        let (answer, question) = self.ledger.connection.accept_bi().await.unwrap();
        let accepted = flow::accept(answer, question, &self.ledger, &FlowCount::default()).await;

        (accepted, send, recv)
    }

    /// The reason for which the honest end ends the connection.
    async fn verdict(&self) -> (CloseCode, String) {
        let ended = timeout(TIMEOUT, self.peer.closed()).await.unwrap();
        let ConnectionError::ApplicationClosed(close) = ended else {
            panic!("{ended}");
        };

        (
            close.error_code.into(),
            String::from_utf8(close.reason.to_vec()).unwrap(),
        )
    }

    /// Sends bytes as the stream of credit.
    async fn tell(&self, bytes: Bytes) -> SendStream {
        let mut news = self.peer.open_uni().await.unwrap();
        news.write_chunk(bytes).await.unwrap();

        news
    }
}

fn grant(flow: u64, bytes: u64) -> Bytes {
    message::frame(&FlowUpdates {
        granted: vec![Credit { flow, bytes }],
        ..FlowUpdates::default()
    })
    .unwrap()
}

fn give_back(flow: u64, bytes: u64) -> Bytes {
    message::frame(&FlowUpdates {
        returned: vec![Credit { flow, bytes }],
        ..FlowUpdates::default()
    })
    .unwrap()
}

#[tokio::test]
async fn a_sender_that_ignores_its_credit_ends_the_connection() {
    let pair = Pair::new(SMALL).await;
    let (flow, mut send, _recv) = pair.flow(1000).await;
    let (_answer, mut recv) = flow.split();

    send.write_all(&[7; 256 << 10]).await.unwrap();
    let reads = async {
        let mut chunks: [Bytes; 64] = std::array::from_fn(|_| Bytes::new());
        loop {
            if let Err(error) = recv.read_chunks(&mut chunks).await {
                break error;
            }
        }
    };
    let error = timeout(TIMEOUT, reads).await.unwrap();

    assert_eq!(error, FlowError::TunnelLost);
    let reason = "a flow sent more than it was granted".to_owned();
    assert_eq!(pair.verdict().await, (CloseCode::Protocol, reason));
}

#[tokio::test]
async fn a_sender_that_ignores_its_credit_fills_no_more_than_the_connections_window() {
    let pair = Pair::new(SERVER_CREDIT).await;
    let mut flows = Vec::new();
    for _ in 0..40 {
        flows.push(pair.flow(1000).await);
    }
    let block = Bytes::from(vec![7; 64 << 10]);

    let mut sent = 0;
    for (_, send, _) in &mut flows {
        while let Ok(written) =
            timeout(Duration::from_millis(100), send.write_chunk(block.clone())).await
        {
            written.unwrap();
            sent += block.len() as u64;
        }
    }

    assert!(sent <= 168 << 20, "{sent}");
    assert!(sent > 100 << 20, "{sent}");
    assert!(pair.ledger.held() <= SERVER_CREDIT.budget());
}

#[tokio::test]
async fn absurd_updates_end_the_connection_with_a_reason() {
    let cases = [
        (grant(400, 1), "an update of a flow that was never opened"),
        (grant(0, 0), "an impossible amount of credit"),
        (grant(0, u64::MAX), "an impossible amount of credit"),
        (
            grant(0, 1 << 30),
            "a flow was granted more than any may have",
        ),
        (
            give_back(0, 1 << 20),
            "more credit is given back than was granted",
        ),
        (
            give_back(400, 1),
            "an update of a flow that was never opened",
        ),
        (
            Bytes::from_static(&[0, 2, 0xff, 0xff]),
            "a message about credit cannot be decoded",
        ),
        (
            Bytes::from_static(&[0xff, 0xff]),
            "a message about credit is too long",
        ),
    ];
    for (update, reason) in cases {
        let pair = Pair::new(SMALL).await;
        let _flow = pair.flow(1000).await;

        let _news = pair.tell(update).await;

        let expected = (CloseCode::Protocol, reason.to_owned());
        assert_eq!(pair.verdict().await, expected);
    }
}

#[tokio::test]
async fn a_stream_of_credit_that_ends_ends_the_connection_with_a_reason() {
    for reset in [false, true] {
        let pair = Pair::new(SMALL).await;
        let _flow = pair.flow(1000).await;
        let mut news = pair.tell(grant(0, 1)).await;

        match reset {
            false => news.finish().unwrap(),
            true => news.reset(1_u32.into()).unwrap(),
        }

        let reason = match reset {
            false => "the stream of credit has ended",
            true => "the stream of credit was reset",
        };
        assert_eq!(
            pair.verdict().await,
            (CloseCode::Protocol, reason.to_owned())
        );
    }
}

#[tokio::test]
async fn updates_for_a_flow_that_has_ended_are_passed_over() {
    let pair = Pair::new(SMALL).await;
    let (flow, _send, _recv) = pair.flow(1000).await;
    drop(flow);

    let mut news = pair.tell(grant(0, 1 << 30)).await;
    news.write_chunk(give_back(0, 1 << 30)).await.unwrap();
    let (flow, _send, mut recv) = pair.flow(5).await;
    let (mut send, _question) = flow.split();
    news.write_chunk(grant(4, 6)).await.unwrap();
    timeout(TIMEOUT, send.write_all(b"hello world"))
        .await
        .unwrap()
        .unwrap();

    let verdict = message::read_frame(&mut recv).await.unwrap();
    assert!(verdict.is_some());
    let mut received = [0; 11];
    recv.read_exact(&mut received).await.unwrap();
    assert_eq!(&received, b"hello world");
}

#[tokio::test]
async fn a_flow_sends_what_it_was_granted_and_waits_for_more() {
    let pair = Pair::new(SMALL).await;
    let (flow, _send, mut recv) = pair.flow(5).await;
    let (mut send, _question) = flow.split();
    message::read_frame(&mut recv).await.unwrap();
    let write = tokio::spawn(async move { send.write_all(b"hello world").await.map(|()| send) });

    let mut received = [0; 11];
    recv.read_exact(&mut received[..5]).await.unwrap();
    assert_eq!(&received[..5], b"hello");
    assert_eq!(pair.ledger.waiting_flows(), 1);
    assert!(!write.is_finished());
    let _news = pair.tell(grant(0, 100)).await;
    timeout(TIMEOUT, recv.read_exact(&mut received[5..]))
        .await
        .unwrap()
        .unwrap();

    assert_eq!(&received, b"hello world");
    assert!(write.await.unwrap().is_ok());
    assert_eq!(pair.ledger.waiting_flows(), 0);
}

#[tokio::test]
async fn an_idle_flow_gives_back_what_it_does_not_need() {
    let pair = Pair::new(SMALL).await;
    let (flow, _send, _recv) = pair.flow(IDLE_CREDIT + 1000).await;
    let (send, _question) = flow.split();

    send.shared_credit().unwrap().give_back();

    let mut news = timeout(TIMEOUT, pair.peer.accept_uni())
        .await
        .unwrap()
        .unwrap();
    let update = timeout(TIMEOUT, read(&mut news)).await.unwrap().unwrap();
    let returned = vec![Credit {
        flow: 0,
        bytes: 1000,
    }];
    assert_eq!(update.returned, returned);
    assert_eq!(send.credit_left(), IDLE_CREDIT);
}

#[tokio::test]
async fn a_peer_of_a_version_without_credit_is_served_as_before() {
    let pair = Pair::new(SMALL).await;
    let (flow, mut peer_send, mut peer_recv) = pair.flow(0).await;
    let (mut send, mut recv) = flow.split();
    let verdict = message::read_frame(&mut peer_recv).await.unwrap().unwrap();
    assert_eq!(verdict, [8, 1], "as it always was");
    let data = Bytes::from(vec![7; 1 << 20]);

    let both = async {
        send.write_chunk(data.clone()).await.unwrap();
        peer_send.write_chunk(data.clone()).await.unwrap();
        let mut received = 0;
        while received < data.len() {
            received += recv.read_chunk(1 << 20).await.unwrap().unwrap().len();
        }
        let mut answered = vec![0; data.len()];
        peer_recv.read_exact(&mut answered).await.unwrap();
        assert_eq!(received, data.len());
    };
    timeout(TIMEOUT, both).await.unwrap();

    assert_eq!(pair.ledger.held(), 0);
}

#[tokio::test]
async fn an_update_of_a_flow_that_this_end_never_opened_ends_the_connection() {
    let pair = Pair::new(SMALL).await;
    // The peer's flows have even numbers; this end has opened none.
    let _flows = [pair.flow(1000).await, pair.flow(1000).await];
    let granted = vec![Credit { flow: 1, bytes: 1 }];
    let update = FlowUpdates {
        granted,
        ..FlowUpdates::default()
    };

    let _news = pair.tell(message::frame(&update).unwrap()).await;

    let (code, reason) = pair.verdict().await;
    assert_eq!(code, CloseCode::Protocol);
    assert_eq!(reason, "an update of a flow that was never opened");
}

#[test]
fn an_update_of_many_flows_with_long_numbers_fits_its_message() {
    let first = 1 << 60;
    let mut state = State {
        pool: Pool::new(SMALL),
        receiving: HashMap::new(),
        sending: HashMap::new(),
        granted: (0..100).map(|n| (first + n, MAX_CREDIT)).collect(),
        returned: (0..100).map(|n| (first + n, MAX_CREDIT)).collect(),
        keep_alives: (0..100).map(|n| (first + n, u32::MAX)).collect(),
        newest: [None; 2],
    };

    let (mut credits, mut probes) = (0, 0);
    while let Some(updates) = state.take_updates() {
        message::frame(&updates).unwrap();
        credits += updates.granted.len() + updates.returned.len();
        probes += updates.keep_alives.len();
    }

    assert_eq!((credits, probes), (200, 100));
}
