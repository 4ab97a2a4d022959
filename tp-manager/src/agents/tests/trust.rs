//! Whom the manager believes, and for how long.

use std::{
    convert::Infallible,
    sync::atomic::{AtomicBool, Ordering},
};

use kube::{Client, client::Body};

use super::*;
use crate::{access::Access, intercepts::rights};

#[tokio::test]
async fn what_an_agent_may_not_send_is_refused() {
    let lab = Lab::new().await;
    let (alice, bob) = (lab.session("alice").await, lab.session("bob").await);
    let (agent, other) = (lab.agent("node1").await, lab.agent("node2").await);
    lab.intercept("i1", "alice", 8080);
    lab.intercept("i2", "alice", 9090);
    alice.announce("i1", 8080, true);
    // It is not his: no lease, and no connection.
    bob.announce("i2", 9090, true);

    let (outcome, reason) = lab.refused(&other, "i1").await;
    assert_eq!(outcome, Outcome::Prohibited);
    assert_eq!(reason, "pod web-0 is not on node node2");
    let reason = lab.left_to_container(&agent, "i2").await;
    assert_eq!(reason, "Intercept web-i2 does not hold port 8080");
    let reason = lab.left_to_container(&agent, "i3").await;
    assert_eq!(reason, "the Intercept has ended");
    let leases = lab.intercepts.leases();
    assert_eq!(leases.len(), 1);
    let states = || lab.intercepts.states(&bob.call.served).intercepts;
    assert_eq!(states(), [], "its object may be new, and the watch late");
    bob.call.age(Duration::from_secs(10));
    assert!(states()[0].refusal.contains("not this session's"));
}

#[tokio::test]
async fn what_waits_when_the_session_leaves_or_goes_is_served_by_the_container() {
    let lab = Lab::new().await;
    let alice = lab.session("alice").await;
    let agent = lab.agent("node1").await;
    lab.intercept("i1", "alice", 8080);
    alice.announce("i1", 8080, true);
    let verdict_of = async |carried: JoinHandle<Result<AgentFlow, Verdict>>| {
        within(carried).await.unwrap().unwrap_err()
    };

    for (outcome, is_left) in [(Outcome::Prohibited, true), (Outcome::Refused, false)] {
        let carried = lab.carry(&agent, "i1");
        let arrived = within(alice.tunnel.accept()).await.unwrap();
        arrived.pending.refuse(outcome, "").await;
        assert_eq!(
            verdict_of(carried).await.by_container,
            is_left,
            "{outcome:?}"
        );
    }
    let carried = lab.carry(&agent, "i1");
    let _waiting = within(alice.tunnel.accept()).await.unwrap();
    alice.tunnel.close(CloseCode::Quit).await;
    assert!(verdict_of(carried).await.by_container);
}

#[tokio::test]
async fn a_token_that_is_not_an_agents_is_refused_and_the_newest_of_a_node_stay() {
    let lab = Lab::new().await;
    let tcp = TcpStream::connect(lab.address).await.unwrap();
    let error = AgentControl::connect(tcp, lab.key, "stolen")
        .await
        .unwrap_err();
    assert!(
        error.to_string().ends_with("the token is not valid"),
        "{error}"
    );

    let mut first = lab.agent("node1").await;
    let (mut second, mut third) = (lab.agent("node1").await, lab.agent("node1").await);
    let ended = async { while first.news.receive().await.is_ok() {} };
    within(ended).await;
    news(&mut second, |_| true).await;
    news(&mut third, |_| true).await;
}

#[tokio::test]
async fn an_address_that_the_status_of_the_pod_does_not_have_is_its_nodes_to_tell() {
    let lab = Lab::new().await;
    let alice = lab.session("alice").await;
    let (agent, other) = (lab.agent("node1").await, lab.agent("node2").await);
    lab.intercept("i1", "alice", 8080);
    alice.announce("i1", 8080, true);
    let further = InterceptedFrom {
        pod: "192.168.7.9:8080".parse().unwrap(),
        ..from("i1")
    };

    let refused = within(lab.carry_from(&other, further.clone())).await;
    let reason = refused.unwrap().unwrap_err().reason;
    assert_eq!(reason, "pod web-0 is not on node node2");
    let _carried = AbortOnDropHandle::new(lab.carry_from(&agent, further.clone()));
    let arrived = within(alice.tunnel.accept()).await.unwrap();
    assert_eq!(arrived.from, further);
}

#[tokio::test]
async fn an_agent_whose_token_has_expired_connects_again_and_what_it_carries_goes_on() {
    let lab = Lab::new().await;
    let alice = lab.session("alice").await;
    let mut agent = lab.agent("node1").await;
    lab.intercept("i1", "alice", 8080);
    alice.announce("i1", 8080, true);
    let carried = lab.carry(&agent, "i1");
    let arrived = within(alice.tunnel.accept()).await.unwrap();
    let flow = within(arrived.pending.accept()).await.unwrap();
    let mut client = within(carried).await.unwrap().unwrap();
    // It is reviewed several times meanwhile, and nothing is to be seen of that.
    sleep(Duration::from_millis(300)).await;
    news(&mut agent, |_| true).await;

    lock(&lab.invalid).push("node1".to_owned());

    let ended = async { while agent.news.receive().await.is_ok() {} };
    within(ended).await;
    let (_send, mut recv) = flow.split();
    client.write_all(b"still").await.unwrap();
    client.flush().await.unwrap();
    let read = within(recv.read_chunk(64)).await.unwrap();
    assert_eq!(read.as_deref(), Some(&b"still"[..]));
    lock(&lab.invalid).clear();
    news(&mut lab.agent("node1").await, |_| true).await;
}

#[tokio::test]
async fn the_leases_of_a_user_who_may_intercept_no_longer_end_within_five_seconds() {
    let allowed = Arc::new(AtomicBool::new(true));
    let allows = Arc::clone(&allowed);
    let api_server = tower::service_fn(move |_: http::Request<Body>| {
        let allowed = allows.load(Ordering::Relaxed);
        let review = json!({"spec": {}, "status": {"allowed": allowed}});
        let body = Body::from(review.to_string().into_bytes());
        std::future::ready(Ok::<_, Infallible>(http::Response::new(body)))
    });
    let access = Access::new(Client::new(api_server, "default"));
    let lab = Lab::new().await;
    let alice = lab.session("alice").await;
    let mut agent = lab.agent("node1").await;
    lab.intercept("i1", "alice", 8080);
    lab.intercept("i2", "alice", 8081);
    alice.announce("i1", 8080, true);
    let keeping = rights::keep(access, Arc::clone(&lab.intercepts));
    let _keeping = AbortOnDropHandle::new(tokio::spawn(keeping));
    // The right was granted once before, and nothing is to be seen of that.
    sleep(Duration::from_millis(500)).await;
    news(&mut agent, |leases| leases.len() == 1).await;

    allowed.store(false, Ordering::Relaxed);
    let ended = news(&mut agent, <[Lease]>::is_empty);
    timeout(Duration::from_secs(5), ended).await.unwrap();

    let sentence = "alice may no longer create intercepts.tp.internal in namespace shop";
    let states = lab.intercepts.states(&alice.call.served).intercepts;
    assert_eq!(states[0].refusal, sentence);
    assert_eq!(lab.left_to_container(&agent, "i1").await, sentence);
    // For a minute they hold their ports, also what was not announced.
    let unlawful = || lab.intercepts.unlawful(Instant::now()).len();
    let age = |since, confirmed| {
        let (since, confirmed) = (Duration::from_secs(since), Duration::from_secs(confirmed));
        lab.intercepts.age_denials(since, confirmed);
        unlawful()
    };
    assert_eq!(unlawful(), 0);
    assert_eq!(age(60, 0), 2);
    assert_eq!(
        age(0, 60),
        0,
        "what could not be asked since may have changed"
    );
    lab.intercepts.remove("i1");
    let states = lab.intercepts.states(&alice.call.served).intercepts;
    assert_eq!(states[0].ended, sentence);

    lab.intercept("i1", "alice", 8080);
    allowed.store(true, Ordering::Relaxed);
    news(&mut agent, |leases| leases.len() == 1).await;
    assert_eq!(unlawful(), 0);
}
