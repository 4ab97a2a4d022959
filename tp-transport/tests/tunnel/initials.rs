//! The first packet of a handshake by UDP, as a genuine QUIC client sends it.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use quinn::crypto::rustls::QuicClientConfig;
use rustls::{
    DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime},
};
use tokio::{net::UdpSocket, time::timeout};

use crate::support::{Lab, within};

/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(1);

/// Keys are shown only later in a handshake: its first packet is the same, whoever sends it.
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

/// Whether any datagram comes back to an ordinary QUIC client that connects to this address.
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
    timeout(PATIENCE, far.recv(&mut buffer)).await.is_ok()
}

fn ordinary_server() -> quinn::Endpoint {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let config = quinn::ServerConfig::with_single_cert(vec![made.cert.into()], key.into()).unwrap();

    quinn::Endpoint::server(config, (Ipv4Addr::LOCALHOST, 0).into()).unwrap()
}

fn ordinary_client() -> quinn::ClientConfig {
    let provider = Arc::new(ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(TrustsAll(provider)))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"tp/1".to_vec()];

    quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(config).unwrap()))
}

#[derive(Debug)]
struct TrustsAll(Arc<CryptoProvider>);

impl ServerCertVerifier for TrustsAll {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
