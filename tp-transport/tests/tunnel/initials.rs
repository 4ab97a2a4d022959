//! The first packet of a handshake, as a genuine QUIC client sends it.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use rustls::pki_types::PrivatePkcs8KeyDer;
use tokio::{io::AsyncWriteExt, net::UdpSocket, time::timeout};
use tp_transport::PathChoice;

use crate::support::{
    Lab, preface_of,
    quic::{quic_client, trusts_all},
    within, within_limit,
};

/// Of the wait for an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
/// More handshakes than the server does at once, for all sessions together.
const HANDSHAKES: usize = 1200;

/// Keys come only later in a handshake: its first packet does not depend on the sender.
#[tokio::test]
async fn a_genuine_first_packet_of_quic_is_answered_to_nobody() {
    let mut lab = Lab::new();
    let (_tunnel, _peer) = lab.udp_pair().await;
    let ordinary = ordinary_server();
    let address = ordinary.local_addr().unwrap();
    let accepting = async {
        while let Some(incoming) = ordinary.accept().await {
            let _ = incoming.await;
        }
    };

    let answered = tokio::select! {
        answered = answers_quic(address) => answered,
        () = accepting => false,
    };
    assert!(answered, "the packet is one that servers answer");
    assert!(!answers_quic(lab.udp).await, "the port answers a stranger");
}

/// A handshake takes one of a limited number of slots until it is done or has taken too long.
#[tokio::test]
async fn a_session_that_begins_handshakes_and_ends_none_leaves_room_for_others() {
    let mut lab = Lab::new();
    let mut stalled = lab.link();
    stalled.write_all(&preface_of("bob")).await.unwrap();
    for packet in first_packets(HANDSHAKES).await {
        let length = u16::try_from(packet.len()).unwrap();
        let written = async {
            stalled.write_all(&length.to_be_bytes()).await.unwrap();
            stalled.write_all(&packet).await.unwrap();
        };
        within("a first packet", written).await;
    }

    // Before unfinished handshakes time out.
    let connect = lab.connect(PathChoice::StreamOnly);
    within_limit(Duration::from_secs(5), "connect", connect)
        .await
        .unwrap();
}

/// Each of another handshake.
async fn first_packets(count: usize) -> Vec<Vec<u8>> {
    let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = server.local_addr().unwrap();
    let mut client = quinn::Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    client.set_default_client_config(ordinary_client());
    let (mut packets, mut connections) = (Vec::new(), BTreeSet::new());
    let mut buffer = [0; 2048];
    while packets.len() < count {
        let _connecting = client.connect(address, "manager.tp.internal").unwrap();
        // The one before has said that it was dropped.
        let packet = loop {
            let received = within("a first packet", server.recv_from(&mut buffer)).await;
            let packet = &buffer[..received.unwrap().0];
            let connection = &packet[6..6 + usize::from(packet[5])];
            if connections.insert(connection.to_vec()) {
                break packet.to_vec();
            }
        };
        packets.push(packet);
    }

    packets
}

/// Returns whether any datagram comes back to an ordinary QUIC client that connects to this address.
async fn answers_quic(server: SocketAddr) -> bool {
    let near = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let far = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    far.connect(server).await.unwrap();
    let mut client = quinn::Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    client.set_default_client_config(ordinary_client());
    let _connecting = client
        .connect(near.local_addr().unwrap(), "manager.tp.internal")
        .unwrap();

    let mut buffer = [0; 2048];
    let (length, _) = within("the first packet", near.recv_from(&mut buffer))
        .await
        .unwrap();
    assert!(length >= 1200, "{length}");
    far.send(&buffer[..length]).await.unwrap();
    timeout(ANSWER_TIMEOUT, far.recv(&mut buffer)).await.is_ok()
}

fn ordinary_server() -> quinn::Endpoint {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let config = quinn::ServerConfig::with_single_cert(vec![made.cert.into()], key.into()).unwrap();

    quinn::Endpoint::server(config, (Ipv4Addr::LOCALHOST, 0).into()).unwrap()
}

fn ordinary_client() -> quinn::ClientConfig {
    quic_client(trusts_all().with_no_client_auth())
}
