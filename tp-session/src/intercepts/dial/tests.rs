//! A root daemon that is played, and a service on loopback.

use std::sync::atomic::Ordering;

use tokio::{io::AsyncReadExt as _, net::TcpListener};
use tp_root_api::{RefusedKind, Reply};

use super::{super::super::root_link::FakeRoot, *};

const LIMIT: Duration = Duration::from_secs(10);
const CLIENT: &str = "10.244.2.9:40112";

fn from(client: &str) -> InterceptedFrom {
    InterceptedFrom {
        intercept: "8a4e".to_owned(),
        client: client.parse().unwrap(),
        pod: "10.244.1.7:8080".parse().unwrap(),
    }
}

fn registry() -> (ClientRegistry, FakeRoot) {
    let (link, root) = FakeRoot::new(LIMIT);

    (ClientRegistry::new(Arc::new(link)), root)
}

/// A listener, and what connects to it without a header.
async fn service(address: &str) -> (TcpListener, LocalTarget) {
    let listener = TcpListener::bind(address).await.unwrap();
    let target = LocalTarget {
        address: listener.local_addr().unwrap(),
        proxy_protocol: false,
        unshown: Arc::default(),
    };

    (listener, target)
}

#[tokio::test]
async fn the_root_daemon_knows_the_client_before_the_process_sees_the_connection() {
    for address in ["127.0.0.1:0", "127.0.0.5:0"] {
        registered_before_it_is_connected(address).await;
    }
}

async fn registered_before_it_is_connected(address: &str) {
    let (registry, root) = registry();
    let (listener, target) = service(address).await;
    let from = from(CLIENT);
    let dialled = dial(target.clone(), &from, Some(&registry));
    let answer = async {
        let client = CLIENT.parse().unwrap();
        assert_eq!(root.request().await, Request::ShowClient { client });
        let early = timeout(ROOT_TIMEOUT / 5, listener.accept()).await;
        assert!(early.is_err(), "it connects before it is registered");
        root.reply(&Reply::Done);
        listener.accept().await.unwrap().1
    };

    let (dialled, source) = tokio::join!(dialled, answer);

    assert_eq!(dialled.unwrap().local_addr().unwrap(), source);
    assert_eq!(source.ip(), target.address.ip());
    assert_eq!(target.unshown.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn without_an_answer_of_the_root_daemon_connections_are_made_all_the_same() {
    let (registry, root) = registry();
    let (listener, target) = service("127.0.0.1:0").await;
    let from = from(CLIENT);

    let refused = async {
        root.request().await;
        let (kind, message) = (RefusedKind::Invalid, "no data path".to_owned());
        root.reply(&Reply::Refused { kind, message });
    };
    let (dialled, ()) = tokio::join!(dial(target.clone(), &from, Some(&registry)), refused);
    dialled.unwrap();
    listener.accept().await.unwrap();
    assert!(!registry.is_silent());

    // Busy: it is waited for once, and not by the connections that follow.
    for _ in 0..2 {
        dial(target.clone(), &from, Some(&registry)).await.unwrap();
        assert!(registry.is_silent());
    }
    assert_eq!(target.unshown.load(Ordering::Relaxed), 3);
    root.request().await;
    root.reply(&Reply::Done);
    let more = timeout(ROOT_TIMEOUT, root.request()).await;
    assert!(more.is_err(), "{more:?}");
}

#[tokio::test]
async fn a_client_of_the_other_family_and_one_for_another_machine_are_not_registered() {
    let (registry, root) = registry();
    let (_listener, target) = service("127.0.0.1:0").await;

    dial(target.clone(), &from("[fd00::9]:40112"), Some(&registry))
        .await
        .unwrap();

    assert_eq!(target.unshown.load(Ordering::Relaxed), 1);
    let more = timeout(ROOT_TIMEOUT, root.request()).await;
    assert!(more.is_err(), "{more:?}");
    // Of documentation (RFC 5737): no machine has it, and this one may have no way to it.
    let foreign = socket_to("192.0.2.1:80".parse().unwrap());
    assert!(foreign.is_err() || foreign.is_ok_and(|socket| socket.is_none()));
}

#[tokio::test]
async fn with_the_proxy_protocol_a_header_comes_first_and_root_is_not_asked() {
    let (registry, root) = registry();
    let (listener, mut target) = service("127.0.0.1:0").await;
    target.proxy_protocol = true;
    let from = from(CLIENT);

    let mut dialled = dial(target.clone(), &from, Some(&registry)).await.unwrap();
    dialled.write_all(b"hello").await.unwrap();
    drop(dialled);

    let (mut accepted, _) = listener.accept().await.unwrap();
    let mut read = Vec::new();
    accepted.read_to_end(&mut read).await.unwrap();
    let header = proxy_protocol::header(from.client, from.pod);
    assert_eq!(read, [header, b"hello".to_vec()].concat());
    assert_eq!(target.unshown.load(Ordering::Relaxed), 0);
    let more = timeout(ROOT_TIMEOUT, root.request()).await;
    assert!(more.is_err(), "{more:?}");
}
