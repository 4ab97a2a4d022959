use std::{net::SocketAddr, sync::Arc};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, Interest},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tp_core::dns::Zone;

use super::*;
use crate::shared::Shared;

/// A resolver, its server, and the session in between. The cluster is unreachable, so its names get
/// SERVFAIL.
struct Setup {
    resolver: TcpStream,
    server: TcpStream,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
    (near.unwrap(), far.unwrap().0)
}

async fn set_up() -> Setup {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let SocketAddr::V4(address) = listener.local_addr().unwrap() else {
        panic!("not IPv4")
    };
    let zone = Zone::new("cluster.local", "shop", []);
    let shared = Arc::new(Shared::new(zone));
    let dns = Dns::new(Arc::clone(&shared));
    let (dialled, accepted) = tokio::join!(dns.dial(address), listener.accept());
    let (verdict, reached) = dialled;
    assert_eq!(verdict, Verdict::Connected);
    let (resolver, client) = pair().await;
    SockRef::from(&client)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
    let task = tokio::spawn(dns.serve_stream(client, reached.unwrap()));

    Setup {
        resolver,
        server: accepted.unwrap().0,
        shared,
        task,
    }
}

/// A query for the address of `name`.
fn query(id: u8, name: &str) -> Vec<u8> {
    let mut message = vec![0, id, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        message.push(u8::try_from(label.len()).unwrap());
        message.extend(label.bytes());
    }
    message.extend([0, 0, 1, 0, 1]);
    framing::framed(&message).unwrap()
}

const OURS: &str = "web.shop.svc.cluster.local";
const FOREIGN: &str = "intranet.corp.test";

async fn message(stream: &mut TcpStream) -> Vec<u8> {
    let mut message = vec![0; usize::from(stream.read_u16().await.unwrap())];
    stream.read_exact(&mut message).await.unwrap();
    message
}

#[track_caller]
fn assert_own(answer: &[u8], id: u8) {
    // SERVFAIL, or NXDOMAIN: the zone is empty.
    assert_eq!(answer[1], id);
    assert_eq!(answer[2] & 0x80, 0x80, "a response");
    assert_ne!(answer[3] & 0x0f, 0);
}

#[tokio::test]
async fn every_message_of_an_answer_passes() {
    let Setup {
        mut resolver,
        mut server,
        ..
    } = set_up().await;
    resolver.write_all(&query(1, FOREIGN)).await.unwrap();
    let mut seen = vec![0; query(1, FOREIGN).len()];
    server.read_exact(&mut seen).await.unwrap();
    assert_eq!(seen, query(1, FOREIGN));

    let transfer = [query(1, "a.b"), query(1, "c.d"), query(1, "e.f")].concat();
    for byte in &transfer {
        server.write_all(&[*byte]).await.unwrap();
    }

    let mut seen = vec![0; transfer.len()];
    resolver.read_exact(&mut seen).await.unwrap();
    assert_eq!(seen, transfer);
}

#[tokio::test]
async fn an_answer_of_the_clusters_waits_for_no_other_but_splits_none() {
    let Setup {
        mut resolver,
        mut server,
        shared,
        ..
    } = set_up().await;
    let both = [query(1, FOREIGN), query(2, OURS)].concat();
    resolver.write_all(&both).await.unwrap();
    assert_own(&message(&mut resolver).await, 2);

    // Half an answer of the server's, then another question to the cluster.
    let foreign = query(1, "half.and.half");
    server.write_all(&foreign[..9]).await.unwrap();
    let mut half = vec![0; 9];
    resolver.read_exact(&mut half).await.unwrap();
    resolver.write_all(&query(3, OURS)).await.unwrap();
    // Both directions are one task: when the answer has been decided, it waits for the boundary.
    let is_decided = async {
        while shared.counters.failed.load(Ordering::Relaxed) < 2 {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(10), is_decided).await.unwrap();
    let more = [&foreign[9..], &foreign[..5]].concat();
    server.write_all(&more).await.unwrap();

    let mut rest = vec![0; foreign.len() - 9];
    resolver.read_exact(&mut rest).await.unwrap();
    assert_eq!([half, rest].concat(), foreign);
    assert_own(&message(&mut resolver).await, 3);
    let mut begun = vec![0; 5];
    resolver.read_exact(&mut begun).await.unwrap();
    assert_eq!(begun, foreign[..5]);
}

#[tokio::test]
async fn what_is_no_dns_passes_both_ways() {
    let Setup {
        mut resolver,
        mut server,
        ..
    } = set_up().await;
    resolver.write_all(b"SSH-2.0-a\r\n").await.unwrap();
    let mut seen = [0; 11];
    server.read_exact(&mut seen).await.unwrap();
    assert_eq!(&seen, b"SSH-2.0-a\r\n");

    server.write_all(b"SSH-2.0-b\r\n").await.unwrap();

    resolver.read_exact(&mut seen).await.unwrap();
    assert_eq!(&seen, b"SSH-2.0-b\r\n");
}

#[tokio::test]
async fn the_end_of_one_side_is_the_end_of_that_side() {
    let Setup {
        mut resolver,
        mut server,
        task,
        ..
    } = set_up().await;
    let both = [query(1, FOREIGN), query(2, OURS)].concat();
    // And half a query, which the server may as well see.
    resolver.write_all(&both).await.unwrap();
    resolver.write_all(&query(3, FOREIGN)[..7]).await.unwrap();
    resolver.shutdown().await.unwrap();

    let mut seen = Vec::new();
    server.read_to_end(&mut seen).await.unwrap();
    assert_eq!(
        seen,
        [&query(1, FOREIGN)[..], &query(3, FOREIGN)[..7]].concat()
    );
    assert_own(&message(&mut resolver).await, 2);
    server.write_all(&query(1, "a.b")).await.unwrap();
    server.shutdown().await.unwrap();

    let mut seen = Vec::new();
    resolver.read_to_end(&mut seen).await.unwrap();
    assert_eq!(seen, query(1, "a.b"));
    drop((resolver, server));
    task.await.unwrap();
}

#[tokio::test]
async fn a_reset_of_either_side_is_a_reset_of_the_other() {
    let of_server = set_up().await;
    let (mut resolver, server) = (of_server.resolver, of_server.server);
    SockRef::from(&server)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
    drop(server);
    let error = resolver.read(&mut [0]).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    of_server.task.await.unwrap();

    // Also when the resolver has ended its side before.
    let of_resolver = set_up().await;
    let (mut resolver, mut server) = (of_resolver.resolver, of_resolver.server);
    resolver.shutdown().await.unwrap();
    assert_eq!(server.read(&mut [0]).await.unwrap(), 0);
    SockRef::from(&resolver)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
    drop(resolver);
    // A read would return the end of file again.
    let reset = timeout(Duration::from_secs(5), server.ready(Interest::ERROR)).await;
    assert!(reset.is_ok_and(|ready| ready.is_ok_and(|ready| ready.is_error())));
    let error = server.take_error().unwrap().unwrap();
    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    of_resolver.task.await.unwrap();
}

#[tokio::test]
async fn a_server_that_is_not_there_refuses_unless_a_truncated_answer_led_to_it() {
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let SocketAddr::V4(address) = free.local_addr().unwrap() else {
        panic!("not IPv4")
    };
    drop(free);
    let shared = Arc::new(Shared::new(Zone::new("cluster.local", "shop", [])));
    shared.name_servers.send_replace(vec![address]);
    let dns = Dns::new(shared);

    let (refused, _) = dns.dial(address).await;
    dns.note_truncated(address, &[0, 1, 0x84]);
    let (still_refused, _) = dns.dial(address).await;
    dns.note_truncated(address, &[0, 1, 0x86]);
    let (served, server) = dns.dial(address).await;

    assert_eq!(
        [refused, still_refused, served],
        [Verdict::Refused, Verdict::Refused, Verdict::Connected]
    );
    let (mut resolver, client) = pair().await;
    SockRef::from(&client)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
    let task = tokio::spawn(dns.serve_stream(client, server.unwrap()));
    resolver.write_all(&query(1, OURS)).await.unwrap();
    assert_own(&message(&mut resolver).await, 1);
    resolver.write_all(&query(2, FOREIGN)).await.unwrap();
    let error = resolver.read_u8().await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    task.await.unwrap();
}

#[test]
fn how_a_dial_failed_is_how_connect_fails() {
    for (errno, expected) in [
        (Errno::ECONNREFUSED, Verdict::Refused),
        (Errno::ENETUNREACH, Verdict::NetworkUnreachable),
        (Errno::EHOSTUNREACH, Verdict::HostUnreachable),
        (Errno::ETIMEDOUT, Verdict::TimedOut),
        (Errno::EACCES, Verdict::Prohibited),
        (Errno::EMFILE, Verdict::Exhausted),
    ] {
        assert_eq!(verdict(&errno.into()), expected, "{errno}");
    }
}
