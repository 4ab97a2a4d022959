use tokio::net::TcpListener;

use super::*;

const PROBE: &[u8] =
    b"GET /healthz HTTP/1.1\r\nHost: 10.244.1.7:8080\r\nUser-Agent: kube-probe/1.35\r\n\
                       Accept: */*\r\nConnection: close\r\n\r\n";

/// What is read of a connection to which these are sent, one after the other.
async fn read(parts: &[&[u8]], ends: bool) -> Vec<u8> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap())
        .await
        .unwrap();
    client.set_nodelay(true).unwrap();
    let (mut accepted, _) = listener.accept().await.unwrap();
    let send = async {
        for part in parts {
            client.write_all(part).await.unwrap();
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        if ends {
            client.shutdown().await.unwrap();
        }
        client
    };
    let (head, _client) = tokio::join!(read_head(&mut accepted), send);

    head.unwrap()
}

#[tokio::test]
async fn a_probe_is_known_however_it_is_split() {
    let agent_at = PROBE.windows(4).position(|it| it == b"Acce").unwrap();
    for at in 0..PROBE.len() {
        let expected = match at < agent_at {
            true => Asker::NotYetKnown,
            false => Asker::Kubelet,
        };
        assert_eq!(asker(&PROBE[..at]), expected, "{at}");
    }
    let bytes: Vec<&[u8]> = PROBE.chunks(7).collect();
    let head = read(&bytes, false).await;

    assert_eq!(asker(&head), Asker::Kubelet);
    assert!(PROBE.starts_with(&head), "nothing is lost");
}

#[test]
fn only_the_first_request_decides() {
    let other = b"GET / HTTP/1.1\r\nHost: a\r\nUser-Agent: curl/8\r\n\r\n";
    let bare = b"GET / HTTP/1.0\r\n\r\n";

    assert_eq!(asker(&[PROBE, other].concat()), Asker::Kubelet);
    assert_eq!(asker(&[other, PROBE].concat()), Asker::Somebody);
    assert_eq!(asker(&[&bare[..], PROBE].concat()), Asker::Somebody);
    let hook = b"GET /started HTTP/1.1\r\nHost: a\r\nUser-Agent: kube-lifecycle/1.35\r\n";
    assert_eq!(asker(hook), Asker::Kubelet);
    let lenient = b"GET / HTTP/1.1\nuser-agent:kube-probe/1.29+\n";
    assert_eq!(asker(lenient), Asker::Kubelet);
}

#[test]
fn what_is_no_get_of_http_1_is_known_at_once() {
    for head in [
        &b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..],
        b"POST / HTTP/1.1\r\n",
        b"GETS",
        b"\x16\x03\x01\x02\x00",
        b"GET kube-probe/\r\n",
        b"GET / HTTP/2\r\nUser-Agent: kube-probe/1\r\n",
        b"\0",
        b"hello",
    ] {
        assert_eq!(asker(head), Asker::Somebody, "{head:?}");
    }
    assert_eq!(asker(b""), Asker::NotYetKnown);
    assert_eq!(
        asker(b"GET / HTTP/1.1\r\nX: kube-probe/1\r\n"),
        Asker::NotYetKnown
    );
}

#[tokio::test]
async fn a_head_is_bounded_in_size_and_time() {
    let long = [&b"GET / HTTP/1.1\r\nX: "[..], &[b'x'; 2 * MAX_HEAD]].concat();
    let head = read(&[&long], false).await;
    assert_eq!(head, &long[..MAX_HEAD]);

    // The client waits for the server.
    assert!(read(&[], false).await.is_empty());
    assert_eq!(read(&[b"GET /"], false).await, b"GET /");
    let begun = std::time::Instant::now();
    assert_eq!(read(&[b"GET /"], true).await, b"GET /");
    assert_eq!(read(&[b"hello"], false).await, b"hello");
    assert!(begun.elapsed() < HEAD_TIMEOUT);
}
