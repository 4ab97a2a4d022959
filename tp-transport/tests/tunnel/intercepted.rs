//! Connections that were intercepted: opened by the manager towards the session.

use std::{sync::Arc, time::Duration};

use tokio::{task::JoinSet, time::sleep};
use tp_proto::tunnel::Outcome;
use tp_transport::{
    CloseCode, Dialed, Flow, FlowError, Intercepted, InterceptedFrom, PathChoice, Peer, ResetCode,
    Tunnel,
};

use crate::support::{Lab, echo, exchange, flow_pair, pattern, within};

/// More than any window lets a stalled flow send: see `quic.rs`.
const DOWNLOAD: usize = 32 << 20;
/// More than wait for somebody who accepts: see `client.rs`.
const MORE_THAN_WAIT: usize = 80;

fn from() -> InterceptedFrom {
    InterceptedFrom {
        intercept: "0d5e7f6a-0000-4000-8000-000000000002".into(),
        client: "10.244.0.7:40000".parse().unwrap(),
        pod: "[fd00:10:244::9]:8080".parse().unwrap(),
    }
}

/// An intercepted flow as the manager and the session see it.
async fn intercepted_pair(tunnel: &Tunnel, peer: &Peer) -> (Flow, Flow) {
    let accepted = async {
        let Intercepted { pending, .. } = tunnel.accept().await.unwrap();
        pending.accept().await.unwrap()
    };
    let from = from();
    let both = async { tokio::join!(peer.open_intercepted(&from), accepted) };
    let (opened, accepted) = within("an intercepted connection", both).await;
    match opened.unwrap() {
        Dialed::Connected(flow) => (flow, accepted),
        Dialed::Refused { outcome, reason } => panic!("refused: {outcome:?} {reason}"),
    }
}

#[tokio::test]
async fn an_intercepted_connection_arrives_with_its_intercept_client_and_port() {
    let mut lab = Lab::new();
    let (tunnel, peer) = lab.pair(PathChoice::StreamOnly).await;
    let opening = tokio::spawn(async move { peer.open_intercepted(&from()).await });

    let Intercepted {
        from: arrived,
        pending,
    } = within("accept", tunnel.accept()).await.unwrap();
    assert_eq!(arrived, from());
    pending.refuse(Outcome::Refused, "nobody listens").await;

    match within("verdict", opening).await.unwrap().unwrap() {
        Dialed::Refused { outcome, reason } => {
            assert_eq!(outcome, Outcome::Refused);
            assert_eq!(reason, "nobody listens");
        }
        Dialed::Connected(_) => panic!("connected"),
    }
}

#[tokio::test]
async fn an_intercepted_connection_carries_bytes_both_ways_and_half_closes() {
    let mut lab = Lab::new();
    let (tunnel, peer) = lab.pair(PathChoice::StreamOnly).await;
    let (manager, session) = intercepted_pair(&tunnel, &peer).await;
    let ((mut send, mut recv), (mut answer, mut question)) = (manager.split(), session.split());
    let sent = pattern(0, 3 << 20);

    let ask = async {
        send.write_chunk(sent.clone()).await.unwrap();
        send.finish();
        read_all(&mut recv).await.unwrap()
    };
    let reply = async {
        let asked = read_all(&mut question).await.unwrap();
        // Its other direction has ended already.
        answer.write_all(&asked).await.unwrap();
        answer.finish();
        asked
    };
    let (answered, asked) = within("both ways", async { tokio::join!(ask, reply) }).await;

    assert!(asked == sent, "question");
    assert!(answered == sent, "answer");
}

async fn read_all(recv: &mut tp_transport::RecvHalf) -> Result<Vec<u8>, FlowError> {
    let mut read = Vec::new();
    while let Some(chunk) = recv.read_chunk(1 << 20).await? {
        read.extend_from_slice(&chunk);
    }

    Ok(read)
}

#[tokio::test]
async fn intercepted_and_dialled_flows_keep_credits_of_their_own() {
    let mut lab = Lab::new();
    let (tunnel, peer) = lab.pair(PathChoice::StreamOnly).await;
    let mut flows = Vec::new();
    // More than a window of each, side by side, in both directions.
    for _ in 0..4 {
        flows.push(flow_pair(&tunnel, &peer).await);
        flows.push(intercepted_pair(&tunnel, &peer).await);
    }
    let size = 10 << 20;

    let mut transfers = JoinSet::new();
    for (first, second) in flows {
        let ((send, back), (answer, recv)) = (first.split(), second.split());
        for (mut send, mut recv) in [(send, recv), (answer, back)] {
            transfers.spawn(async move {
                let data = pattern(0, size);
                let write = async {
                    send.write_chunk(data.clone()).await.unwrap();
                    send.finish();
                };
                let ((), read) = tokio::join!(write, read_all(&mut recv));
                assert!(read.unwrap() == data);
            });
        }
    }
    let all = async { while transfers.join_next().await.transpose().unwrap().is_some() {} };
    within("all transfers", all).await;

    within("the release of all credit", async {
        while peer.stats().credit_held + tunnel.stats().credit_held > 0 {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_intercepted_flow_that_is_not_read_holds_up_no_dialled_one() {
    let mut lab = Lab::new();
    let (tunnel, peer) = lab.pair(PathChoice::StreamOnly).await;
    let mut stalled = Vec::new();
    let mut senders = JoinSet::new();
    for _ in 0..40 {
        let (manager, session) = intercepted_pair(&tunnel, &peer).await;
        let (mut send, recv) = manager.split();
        stalled.push((session, recv));
        senders.spawn(async move { send.write_chunk(pattern(0, DOWNLOAD)).await });
    }
    sleep(Duration::from_millis(500)).await;
    assert!(senders.try_join_next().is_none(), "a sender was not held");
    let _echo = echo(peer.clone());

    exchange(&tunnel, 1 << 20, || {}).await;
}

#[tokio::test]
async fn a_session_that_accepts_nothing_refuses_what_does_not_fit_its_queue() {
    let mut lab = Lab::new();
    let (tunnel, peer) = lab.pair(PathChoice::StreamOnly).await;
    let mut opening = JoinSet::new();
    for _ in 0..MORE_THAN_WAIT {
        let peer = peer.clone();
        opening.spawn(async move { peer.open_intercepted(&from()).await });
    }

    let first = within("a refusal", opening.join_next()).await.unwrap();

    match first.unwrap().unwrap() {
        Dialed::Refused { outcome, .. } => assert_eq!(outcome, Outcome::Exhausted),
        Dialed::Connected(_) => panic!("connected"),
    }
    // What waits is still served, and dials are not held up.
    let Intercepted { pending, .. } = within("accept", tunnel.accept()).await.unwrap();
    let _flow = within("verdict", pending.accept()).await.unwrap();
    let _pair = flow_pair(&tunnel, &peer).await;
}

#[tokio::test]
async fn more_intercepted_connections_than_at_first_fit_are_open_at_once() {
    let mut lab = Lab::new();
    let (tunnel, peer) = lab.pair(PathChoice::StreamOnly).await;
    let mut flows = Vec::new();
    for _ in 0..600 {
        flows.push(intercepted_pair(&tunnel, &peer).await);
    }

    assert_eq!(flows.len(), 600);
}

#[tokio::test]
async fn an_intercepted_connection_that_is_given_up_cancels_the_dial() {
    let mut lab = Lab::new();
    let (tunnel, peer) = lab.pair(PathChoice::StreamOnly).await;
    let from = from();
    let mut opening = Box::pin(peer.open_intercepted(&from));
    let accepted = within("accept", async {
        tokio::select! {
            accepted = tunnel.accept() => accepted.unwrap(),
            _ = &mut opening => panic!("a verdict out of nowhere"),
        }
    })
    .await;

    drop(opening);

    within("cancelled", accepted.pending.cancelled()).await;
}

#[tokio::test]
async fn an_intercepted_flow_is_reset_when_one_end_resets_it() {
    let mut lab = Lab::new();
    let (tunnel, peer) = lab.pair(PathChoice::StreamOnly).await;
    let (manager, session) = intercepted_pair(&tunnel, &peer).await;
    let (_send, mut recv) = manager.split();

    session.reset(ResetCode::Reset);

    let read = within("reset", recv.read_chunk(100)).await;
    assert_eq!(read, Err(FlowError::Reset(ResetCode::Reset)));
}

#[tokio::test]
async fn a_tunnel_that_closes_ends_intercepted_flows_and_whoever_accepts() {
    let mut lab = Lab::new();
    let (tunnel, peer) = lab.pair(PathChoice::StreamOnly).await;
    let (manager, _session) = intercepted_pair(&tunnel, &peer).await;
    let waiting = Arc::new(tunnel);
    let accepting = tokio::spawn({
        let tunnel = Arc::clone(&waiting);
        async move { tunnel.accept().await.is_none() }
    });
    let (_send, mut recv) = manager.split();

    within("close", waiting.close(CloseCode::Quit)).await;

    assert!(within("accept", accepting).await.unwrap());
    let read = within("the end", recv.read_chunk(100)).await;
    assert_eq!(read, Err(FlowError::TunnelLost));
    let opened = within("open", peer.open_intercepted(&from())).await;
    assert_eq!(opened.err(), Some(FlowError::TunnelLost));
}
