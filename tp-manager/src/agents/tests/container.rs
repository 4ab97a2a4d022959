//! What the handler of an intercept calls, and what leads to the intercepted port.

use tp_proto::tunnel::LeadingService;

use super::*;
use crate::model::endpoints::Endpoints;

#[tokio::test]
async fn what_a_handler_calls_is_left_to_the_container() {
    let lab = Lab::new().await;
    let (alice, bob) = (lab.session("alice").await, lab.session("bob").await);
    let agent = lab.agent("node1").await;
    lab.intercept("i1", "alice", 8080);
    alice.announce("i1", 8080, true);
    let calls = &lab.intercepts.container_calls;
    let target = "127.0.0.1:9".parse().unwrap();
    let carry_of = |socket: &tokio::net::TcpSocket| {
        let client = socket.local_addr().unwrap();
        let from = InterceptedFrom {
            client,
            ..from("i1")
        };
        lab.carry_from(&agent, from)
    };

    let (socket, call) = calls
        .socket(target, alice.guard.handle().session())
        .unwrap();
    let verdict = within(carry_of(&socket)).await.unwrap().unwrap_err();
    assert!(verdict.by_container, "{verdict:?}");
    // An older agent resets the connection.
    assert_ne!(verdict.outcome(), Outcome::Connected);

    // Of another session, and of a call that has ended.
    let (other, _call) = calls.socket(target, bob.guard.handle().session()).unwrap();
    drop(call);
    for socket in [other, socket] {
        let carried = carry_of(&socket);
        let arrived = within(alice.tunnel.accept()).await.unwrap();
        arrived.pending.refuse(Outcome::Refused, "").await;
        let verdict = within(carried).await.unwrap().unwrap_err();
        assert!(!verdict.by_container, "{verdict:?}");
    }
}

#[tokio::test]
async fn a_session_is_told_what_leads_to_its_pods() {
    let lab = Lab::new().await;
    let alice = lab.session("alice").await;
    let mut agent = lab.agent("node1").await;
    lab.intercept("i1", "alice", 8080);
    lab.model.update(|model| {
        for (service, addresses) in [
            ("web", vec!["10.244.1.7"]),
            ("all", vec!["10.244.1.7", "10.244.1.9"]),
        ] {
            let slice = Endpoints {
                service: service.into(),
                addresses: addresses.iter().map(|it| it.parse().unwrap()).collect(),
                ports: vec![8080],
            };
            let name = ObjectName::new("shop", format!("{service}-x"));
            model.update_endpoints(Update::Applied(name, slice));
        }
    });
    let local = LocalIntercept {
        uid: "i1".into(),
        ports: vec![LocalPort {
            port: 8080,
            is_listening: true,
        }],
        services: ["web", "all", "none"].map(String::from).into(),
    };
    let intercepts = vec![local];
    assert!(alice.call.announce(LocalIntercepts { intercepts }));
    let state = || lab.states(&alice).intercepts.remove(0);
    assert!(state().pod_addresses.is_empty() && state().services.is_empty());

    let redirected = tp_proto::agent::PodPhase::Redirected;
    for (uid, is_told) in [(POD, true), ("of-before", false)] {
        let report = PodReport {
            intercept: "i1".into(),
            pod: uid.into(),
            name: "web-0".into(),
            phase: redirected.into(),
            ..PodReport::default()
        };
        let pods = vec![report];
        let news = AgentNews {
            pods,
            environ: None,
        };
        agent.reports.send(&news).await.unwrap();
        if !is_told {
            continue;
        }
        let told = async {
            while state().pod_addresses.is_empty() {
                sleep(Duration::from_millis(10)).await;
            }
        };
        within(told).await;
    }

    let leading = |name: &str, is_whole| LeadingService {
        name: name.into(),
        port: 8080,
        is_whole,
    };
    assert_eq!(state().pod_addresses, [&[10, 244, 1, 7][..]]);
    assert_eq!(
        state().services,
        [leading("web", true), leading("all", false)]
    );
}
