use prost::Message as _;
use tp_proto::tunnel::Verdict;

use super::*;
use crate::{
    credit::tests::{Pair, SMALL},
    message,
};

fn dial() -> open::Kind {
    open::Kind::Dial(Dial {
        address: vec![10, 0, 0, 1].into(),
        port: 22,
        to_container: false,
    })
}

fn intercepted() -> tunnel::Intercepted {
    tunnel::Intercepted {
        intercept_uid: "6f1c".into(),
        port: 8080,
        client_address: vec![10, 244, 0, 7].into(),
        client_port: 40_000,
        pod_address: vec![10, 244, 0, 9].into(),
    }
}

/// The verdict on a stream that `T`'s end does not take.
async fn refusal<T: Acceptable + std::fmt::Debug>(kind: open::Kind) -> Verdict {
    let pair = Pair::new(SMALL).await;
    let (accepted, _send, mut recv) = pair.opened::<T>(kind, 1000).await;

    assert!(
        matches!(accepted, Err(FlowError::Malformed(_))),
        "{accepted:?}"
    );
    let verdict = message::read_frame(&mut recv).await.unwrap().unwrap();

    Verdict::decode(verdict.as_slice()).unwrap()
}

#[tokio::test]
async fn a_workstation_refuses_to_dial_for_a_manager() {
    let verdict = refusal::<Intercepted>(dial()).await;

    assert_eq!(verdict.outcome(), Outcome::Prohibited);
    assert_eq!(verdict.reason, "a workstation dials nothing for a manager");
}

#[tokio::test]
async fn a_workstation_refuses_a_control_stream() {
    let verdict = refusal::<Intercepted>(open::Kind::Control(Control {})).await;

    assert_eq!(verdict.outcome(), Outcome::Prohibited);
}

#[tokio::test]
async fn a_manager_refuses_an_intercepted_connection_of_a_session() {
    let verdict = refusal::<Accepted>(open::Kind::Intercepted(intercepted())).await;

    assert_eq!(verdict.outcome(), Outcome::Prohibited);
}

#[test]
fn an_intercepted_connection_needs_an_intercept_and_whole_addresses() {
    assert!(intercepted_from(intercepted()).is_some());

    let wrong = [
        tunnel::Intercepted {
            intercept_uid: String::new(),
            ..intercepted()
        },
        tunnel::Intercepted {
            intercept_uid: "x".repeat(MAX_UID + 1),
            ..intercepted()
        },
        tunnel::Intercepted {
            port: 0,
            ..intercepted()
        },
        tunnel::Intercepted {
            client_port: 65_536,
            ..intercepted()
        },
        tunnel::Intercepted {
            client_address: vec![1, 2, 3].into(),
            ..intercepted()
        },
        tunnel::Intercepted {
            pod_address: Vec::new().into(),
            ..intercepted()
        },
    ];
    for message in wrong {
        assert_eq!(intercepted_from(message.clone()), None, "{message:?}");
    }
}
