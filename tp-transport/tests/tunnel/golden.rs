//! The preface of the stream path and the refusal behind a handshake, to the byte: clients and managers one
//! minor version apart must read each other's.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};

use quinn::{ApplicationClose, ConnectionError};
use rcgen::{CertificateParams, KeyPair, SanType};
use rustls::pki_types::PrivatePkcs8KeyDer;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    net::UdpSocket,
    time::timeout,
};
use tp_transport::{
    Admission, AttachError, ConnectError, Identity, KeyHash, PathChoice, Refusal, SessionRef,
    Tunnel, TunnelConfig, TunnelServer,
};

use crate::support::{
    TIMEOUT,
    quic::{quic_client, trusts_all},
};

/// Magic, version, then namespace, name and UID, each behind its length.
const PREFACE: &[u8] = b"tp-T\x01\x04shop\x05alice\x246f1c7b0a-0000-4000-8000-000000000001";
/// Version, refusal, length of the reason, reason.
const REFUSAL: &[u8] = b"\x01\x01\x00\x18there is no such session";

struct Nobody;

impl Admission for Nobody {
    fn known(&self, _: &SessionRef) -> Result<(), Refusal> {
        Err(Refusal::new("there is no such session"))
    }

    fn admit(&self, _: &SessionRef, _: &KeyHash) -> Result<(), Refusal> {
        Err(Refusal::new("nobody is admitted"))
    }
}

#[tokio::test]
async fn a_client_sends_this_preface_and_reads_this_refusal() {
    let (near, mut far) = tokio::io::duplex(64 << 10);
    let config = TunnelConfig {
        identity: Identity::generate().unwrap(),
        session: SessionRef {
            namespace: "shop".into(),
            name: "alice".into(),
            uid: "6f1c7b0a-0000-4000-8000-000000000001".into(),
        },
        manager_key: Identity::generate().unwrap().key_hash(),
        choice: PathChoice::Auto,
    };
    let manager = async {
        let mut preface = vec![0; PREFACE.len()];
        far.read_exact(&mut preface).await.unwrap();
        far.write_all(REFUSAL).await.unwrap();
        preface
    };

    let both = async { tokio::join!(Tunnel::connect(near, config), manager) };
    let (connected, preface) = timeout(TIMEOUT, both).await.unwrap();

    assert_eq!(preface, PREFACE);
    let error = connected.map(drop).unwrap_err();
    assert!(
        matches!(&error, ConnectError::Refused(reason) if reason == "there is no such session"),
        "{error}"
    );
}

#[tokio::test]
async fn a_manager_reads_this_preface_and_sends_this_refusal() {
    let server = TunnelServer::bind(None, Identity::generate().unwrap(), Arc::new(Nobody)).unwrap();
    let (mut near, far) = tokio::io::duplex(64 << 10);
    near.write_all(PREFACE).await.unwrap();

    let answer = async {
        let mut answer = Vec::new();
        near.read_to_end(&mut answer).await.unwrap();
        answer
    };
    let both = async { tokio::join!(server.attach(far), answer) };
    let (attached, answer) = timeout(TIMEOUT, both).await.unwrap();

    assert_eq!(answer, REFUSAL);
    assert!(matches!(attached, Err(AttachError::Refused(_))));
}

/// Knows every session and admits none.
struct Stern;

impl Admission for Stern {
    fn known(&self, _: &SessionRef) -> Result<(), Refusal> {
        Ok(())
    }

    fn admit(&self, _: &SessionRef, _: &KeyHash) -> Result<(), Refusal> {
        Err(Refusal::new("nobody is admitted"))
    }
}

/// A client of any version takes the reason of an application's close for the sentence.
#[tokio::test]
async fn a_manager_refuses_a_key_with_this_close_code_and_sentence() {
    let server = TunnelServer::bind(None, Identity::generate().unwrap(), Arc::new(Stern)).unwrap();
    let (mut near, far) = tokio::io::duplex(64 << 10);
    near.write_all(PREFACE).await.unwrap();
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = socket.local_addr().unwrap();
    let mut client = quinn::Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    client.set_default_client_config(client_named(
        "tp://session/shop/alice/6f1c7b0a-0000-4000-8000-000000000001",
    ));

    let refused = async {
        let connecting = client.connect(address, "manager.tp.internal").unwrap();
        let connection = connecting.await?;
        Err::<(), _>(connection.closed().await)
    };
    let refused = tokio::select! {
        refused = timeout(TIMEOUT, refused) => refused.unwrap(),
        attached = server.attach(far) => panic!("the stream has ended: {attached:?}"),
        () = carry(&socket, near) => unreachable!("it ends by a panic"),
    };

    let Err(ConnectionError::ApplicationClosed(ApplicationClose { error_code, reason })) = refused
    else {
        panic!("{refused:?}");
    };
    assert_eq!(error_code.into_inner(), 2);
    assert_eq!(reason, "nobody is admitted");
}

/// Carries the datagrams of a QUIC client over the byte stream, each behind its length.
async fn carry(socket: &UdpSocket, stream: DuplexStream) {
    let (mut read, mut write) = tokio::io::split(stream);
    let mut buffer = [0; 2048];
    let (length, client) = socket.recv_from(&mut buffer).await.unwrap();
    let up = async {
        let mut length = length;
        loop {
            let prefix = u16::try_from(length).unwrap();
            write.write_u16(prefix).await.unwrap();
            write.write_all(&buffer[..length]).await.unwrap();
            length = socket.recv(&mut buffer).await.unwrap();
        }
    };
    tokio::join!(up, carry_back(socket, &mut read, client));
}

async fn carry_back(
    socket: &UdpSocket,
    read: &mut (impl AsyncReadExt + Unpin),
    client: SocketAddr,
) {
    let mut answer = [0; 4];
    read.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer, *b"\x01\x00\x00\x00", "version, known, no reason");
    loop {
        let mut datagram = vec![0; usize::from(read.read_u16().await.unwrap())];
        read.read_exact(&mut datagram).await.unwrap();
        socket.send_to(&datagram, client).await.unwrap();
    }
}

/// A client whose certificate has this name, and that trusts whatever answers.
fn client_named(uri: &str) -> quinn::ClientConfig {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    let name = SanType::URI(uri.try_into().unwrap());
    params.subject_alt_names.push(name);
    let certificate = params.self_signed(&key).unwrap().der().clone();
    let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
    let config = trusts_all().with_client_auth_cert(vec![certificate], key);

    quic_client(config.unwrap())
}
