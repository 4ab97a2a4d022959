use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tp_transport::{
    AttachError, CloseCode, ClosedReason, ConnectError, Identity, PathChoice, Tunnel,
};

use crate::support::{Lab, echo, exchange, preface_of, session, within};

#[tokio::test]
async fn an_admitted_session_with_its_key_is_connected() {
    let mut lab = Lab::new();

    let (tunnel, peer) = lab.pair(PathChoice::Auto).await;

    assert_eq!(*peer.session(), session("alice"));
    assert_eq!(peer.key(), lab.alice.key_hash());
    assert!(tunnel.stats().udp_receive_buffer > 0);
}

#[tokio::test]
async fn another_key_is_refused() {
    let mut lab = Lab::new();
    let mut config = lab.config(PathChoice::Auto);
    config.identity = Identity::generate().unwrap();

    let error = refused(Tunnel::connect(lab.link(), config)).await;

    assert!(
        matches!(&error, ConnectError::Refused(reason) if reason == "another key"),
        "{error}"
    );
}

#[tokio::test]
async fn the_name_of_another_session_is_refused() {
    let mut lab = Lab::new();
    let mut config = lab.config(PathChoice::Auto);
    config.session = session("bob");

    let error = refused(Tunnel::connect(lab.link(), config)).await;

    assert!(matches!(error, ConnectError::Refused(_)), "{error}");
}

#[tokio::test]
async fn a_certificate_for_another_session_than_the_preface_is_refused() {
    let mut lab = Lab::new();
    let config = lab.config(PathChoice::Auto);
    // Bob's preface in front of a stream on which Alice proves who she is.
    let (near, mut server_end) = tokio::io::duplex(64 << 10);
    let link = lab.link();
    let proxy = async move {
        let (mut client_read, mut client_write) = tokio::io::split(near);
        let (mut read, mut write) = tokio::io::split(link);
        let mut preface = vec![0; preface_of("alice").len()];
        client_read.read_exact(&mut preface).await.unwrap();
        assert_eq!(preface, preface_of("alice"));
        write.write_all(&preface_of("bob")).await.unwrap();
        let up = tokio::io::copy(&mut client_read, &mut write);
        let down = tokio::io::copy(&mut read, &mut client_write);
        let _ = tokio::join!(up, down);
    };

    // The client talks to the proxy's far end.
    let client_end = std::mem::replace(&mut server_end, tokio::io::duplex(1).0);
    let error = tokio::select! {
        error = refused(Tunnel::connect(client_end, config)) => error,
        () = proxy => panic!("the proxy ended first"),
    };

    assert!(matches!(error, ConnectError::Refused(_)), "{error}");
}

#[tokio::test]
async fn a_manager_with_another_key_is_not_talked_to() {
    let mut lab = Lab::new();
    let mut config = lab.config(PathChoice::Auto);
    config.manager_key = Identity::generate().unwrap().key_hash();

    let error = refused(Tunnel::connect(lab.link(), config)).await;

    let ConnectError::AnotherKey(another) = &error else {
        panic!("{error}");
    };
    assert_eq!(another.proved, lab.manager_key);
    let (proved, reason) = (&lab.manager_key.to_string()[..12], another.to_string());
    assert!(reason.contains(proved), "{reason}");
    assert_eq!(error.to_string(), reason);
}

#[tokio::test]
async fn an_unknown_session_is_refused_before_any_quic() {
    let lab = Lab::new();
    let (mut near, far) = tokio::io::duplex(4096);
    near.write_all(&preface_of("mallory")).await.unwrap();
    // Bytes after the preface must not be read.
    near.write_all(&[0xc3; 1200]).await.unwrap();

    let attached = within("attach", async {
        tokio::join!(lab.server.attach(far), async {
            let mut answer = Vec::new();
            near.read_to_end(&mut answer).await.unwrap();
            answer
        })
    });
    let (attached, answer) = tokio::select! {
        both = attached => both,
    };

    assert!(matches!(attached, Err(AttachError::Refused(_))));
    assert_eq!(answer[..2], [1, 1], "version and refusal");
    assert!(answer.ends_with(b"there is no such session"));
}

#[tokio::test]
async fn the_client_learns_why_its_session_is_refused() {
    let mut lab = Lab::new();
    let mut config = lab.config(PathChoice::Auto);
    config.session = session("mallory");

    let error = refused(Tunnel::connect(lab.link(), config)).await;

    assert!(
        matches!(&error, ConnectError::Refused(reason) if reason == "there is no such session"),
        "{error}"
    );
}

#[tokio::test]
async fn a_stream_that_is_not_ours_is_hung_up_on() {
    let lab = Lab::new();
    let (mut near, far) = tokio::io::duplex(4096);
    near.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();

    let attached = within("attach", lab.server.attach(far)).await;

    assert!(matches!(attached, Err(AttachError::NotOurs)));
}

#[tokio::test]
async fn a_stream_that_nobody_proves_to_be_the_sessions_is_ended() {
    let lab = Lab::new();
    let (mut near, far) = tokio::io::duplex(4096);
    near.write_all(&preface_of("alice")).await.unwrap();

    let attached = within("attach", lab.server.attach(far)).await;

    assert!(matches!(attached, Err(AttachError::Unproven)));
}

#[tokio::test]
async fn streams_opened_in_a_sessions_name_do_not_displace_the_one_it_uses() {
    let mut lab = Lab::new();
    let (tunnel, peer) = lab.pair(PathChoice::StreamOnly).await;
    let _echo = echo(peer);

    let mut streams = Vec::new();
    for _ in 0..30 {
        let mut stream = lab.link();
        stream.write_all(&preface_of("alice")).await.unwrap();
        let mut answer = [0; 4];
        within("the answer", stream.read_exact(&mut answer))
            .await
            .unwrap();
        streams.push(stream);
    }

    let ended = within("the end of the first", streams[0].read(&mut [0])).await;
    assert_eq!(ended.unwrap(), 0);
    exchange(&tunnel, 1 << 20, || {}).await;
    // A client that has the key may use another stream.
    within("another link", tunnel.replace_link(lab.link()))
        .await
        .unwrap();
    exchange(&tunnel, 1 << 20, || {}).await;
}

#[tokio::test]
async fn both_ends_learn_how_the_other_closed() {
    let mut lab = Lab::new();
    let (tunnel, peer) = lab.pair(PathChoice::StreamOnly).await;
    tunnel.close(CloseCode::Quit).await;
    let reason = within("closed", peer.closed()).await;
    assert!(
        matches!(
            reason,
            ClosedReason::Peer {
                code: CloseCode::Quit,
                ..
            }
        ),
        "{reason}"
    );
    assert_eq!(tunnel.closed().await, ClosedReason::Local);

    let (tunnel, peer) = lab.pair(PathChoice::StreamOnly).await;
    peer.close(CloseCode::SessionGone, "the Session was deleted");
    let reason = within("closed", tunnel.closed()).await;
    let expected = ClosedReason::Peer {
        code: CloseCode::SessionGone,
        reason: "the Session was deleted".into(),
    };
    assert_eq!(reason, expected);
}

#[tokio::test]
async fn a_closing_server_tells_its_clients() {
    let mut lab = Lab::new();
    let (tunnel, _peer) = lab.pair(PathChoice::Auto).await;

    lab.server.close(CloseCode::Shutdown).await;

    let reason = within("closed", tunnel.closed()).await;
    assert!(
        matches!(
            reason,
            ClosedReason::Peer {
                code: CloseCode::Shutdown,
                ..
            }
        ),
        "{reason}"
    );
}

async fn refused(connect: impl Future<Output = Result<Tunnel, ConnectError>>) -> ConnectError {
    match within("connect", connect).await {
        Ok(_) => panic!("it was admitted"),
        Err(error) => error,
    }
}
