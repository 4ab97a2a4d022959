//! TLS 1.3 with pinned keys on both ends: no authority, no name, no resumption.
//!
//! A client refuses a manager here, before it shows its own certificate. A manager lets clients prove
//! any key here and refuses them after the handshake, with a close code of ours and a sentence: TLS
//! itself could only send one of its alerts.

use std::sync::{Arc, OnceLock};

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::{
    CertificateError, CipherSuite, ClientConfig, DigitallySignedStruct, DistinguishedName, Error,
    OtherError, ServerConfig, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{
        NoServerSessionStorage,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    version::TLS13,
};

use crate::{
    keys::{
        AnotherKey, Identity, KeyError, KeyHash, SessionRef, certificate_key, certificate_session,
    },
    quic::ALPN,
};

/// Of connections between agents and managers.
const AGENT_ALPN: &[u8] = b"tp-agent/1";

/// TLS 1.3 suites of ring, AES-128-GCM first: with AES in hardware it is the fastest.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    let mut provider = rustls::crypto::ring::default_provider();
    provider
        .cipher_suites
        .retain(|suite| suite.tls13().is_some());
    provider
        .cipher_suites
        .sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);

    Arc::new(provider)
}

/// The client's side of a handshake. It fills the cell if the manager has another key: QUIC keeps
/// only the text of a TLS error.
pub(crate) fn client_config(
    identity: &Identity,
    session: &SessionRef,
    manager_key: KeyHash,
) -> Result<(QuicClientConfig, Arc<OnceLock<AnotherKey>>), KeyError> {
    let provider = provider();
    let another_key = Arc::default();
    let verifier = PinnedManager {
        key: manager_key,
        another_key: Arc::clone(&another_key),
        provider: Arc::clone(&provider),
    };
    let certificate = identity.session_certificate(session)?;
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .expect("ring has TLS 1.3 suites")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_auth_cert(vec![certificate], identity.private_key())
        .expect("ring signs with ECDSA P-256");
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    config.alpn_protocols = vec![ALPN.to_vec()];

    let config = QuicClientConfig::try_from(config).expect("AES-128-GCM is among the suites");

    Ok((config, another_key))
}

/// The manager's side of every handshake.
pub(crate) fn server_config(identity: &Identity) -> Result<QuicServerConfig, KeyError> {
    let provider = provider();
    let verifier = AnySession {
        provider: Arc::clone(&provider),
    };
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .expect("ring has TLS 1.3 suites")
        .with_client_cert_verifier(Arc::new(verifier))
        .with_single_cert(
            vec![identity.manager_certificate()?],
            identity.private_key(),
        )
        .expect("ring signs with ECDSA P-256");
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.alpn_protocols = vec![ALPN.to_vec()];

    Ok(QuicServerConfig::try_from(config).expect("AES-128-GCM is among the suites"))
}

/// An agent's side of a handshake with the manager that has this key. It shows no certificate.
pub(crate) fn agent_config(manager_key: KeyHash) -> (ClientConfig, Arc<OnceLock<AnotherKey>>) {
    let provider = provider();
    let another_key = Arc::default();
    let verifier = PinnedManager {
        key: manager_key,
        another_key: Arc::clone(&another_key),
        provider: Arc::clone(&provider),
    };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .expect("ring has TLS 1.3 suites")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    config.alpn_protocols = vec![AGENT_ALPN.to_vec()];

    (config, another_key)
}

/// The manager's side of handshakes with agents.
pub(crate) fn agent_server_config(identity: &Identity) -> Result<ServerConfig, KeyError> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .expect("ring has TLS 1.3 suites")
        .with_no_client_auth()
        .with_single_cert(
            vec![identity.manager_certificate()?],
            identity.private_key(),
        )
        .expect("ring signs with ECDSA P-256");
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.alpn_protocols = vec![AGENT_ALPN.to_vec()];

    Ok(config)
}

/// Verifies a peer's signature: the same methods for the verifier traits of both ends.
macro_rules! tls13_signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            _message: &[u8],
            _cert: &CertificateDer<'_>,
            _dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Err(tls13_only())
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            let algorithms = &self.provider.signature_verification_algorithms;

            verify_tls13_signature(message, cert, dss, algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.provider
                .signature_verification_algorithms
                .supported_schemes()
        }
    };
}

/// Trusts one key.
#[derive(Debug)]
struct PinnedManager {
    key: KeyHash,
    another_key: Arc<OnceLock<AnotherKey>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinnedManager {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let key = certificate_key(end_entity).map_err(|_| CertificateError::BadEncoding)?;
        if key != self.key {
            let another_key = AnotherKey {
                proved: key,
                pinned: self.key,
            };
            let _ = self.another_key.set(another_key);
            return Err(Error::Other(OtherError(Arc::new(another_key))));
        }

        Ok(ServerCertVerified::assertion())
    }

    tls13_signatures!();
}

/// Trusts any key whose certificate names a session: admission is decided after the client has
/// proven the key.
#[derive(Debug)]
struct AnySession {
    provider: Arc<CryptoProvider>,
}

impl ClientCertVerifier for AnySession {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        certificate_key(end_entity)
            .and_then(|_| certificate_session(end_entity))
            .map_err(|_| CertificateError::BadEncoding)?;

        Ok(ClientCertVerified::assertion())
    }

    tls13_signatures!();
}

fn tls13_only() -> Error {
    Error::General("only TLS 1.3 is spoken".into())
}
