//! TLS 1.3 with pinned keys on both ends: no authority, no name, no resumption.

use std::sync::Arc;

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
    admission::Admission,
    keys::{Identity, KeyError, KeyHash, SessionRef, certificate_key, certificate_session},
    quic::ALPN,
};

/// Why this end refuses the other. TLS turns it into one of its alerts; QUIC carries its text to
/// the other end, where [`refusal`] finds it.
#[derive(Debug, thiserror::Error)]
#[error("{REFUSED}{0}")]
struct Refused(String);

const REFUSED: &str = "tp refuses: ";

impl From<Refused> for Error {
    fn from(refused: Refused) -> Self {
        Self::Other(OtherError(Arc::new(refused)))
    }
}

/// The sentence in the reason with which a connection was closed, if one of the ends gave one.
pub(crate) fn refusal(reason: &str) -> Option<&str> {
    reason.split_once(REFUSED).map(|(_, sentence)| sentence)
}

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

pub(crate) fn client_config(
    identity: &Identity,
    session: &SessionRef,
    manager_key: KeyHash,
) -> Result<QuicClientConfig, KeyError> {
    let provider = provider();
    let verifier = PinnedManager {
        key: manager_key,
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

    Ok(QuicClientConfig::try_from(config).expect("AES-128-GCM is among the suites"))
}

/// The manager's side of the handshakes; each one expects the session of its byte stream.
pub(crate) struct ServerTls {
    provider: Arc<CryptoProvider>,
    certificate: CertificateDer<'static>,
    identity: Identity,
    admission: Arc<dyn Admission>,
}

impl ServerTls {
    pub(crate) fn new(identity: Identity, admission: Arc<dyn Admission>) -> Result<Self, KeyError> {
        Ok(Self {
            provider: provider(),
            certificate: identity.manager_certificate()?,
            identity,
            admission,
        })
    }

    pub(crate) fn config(&self, session: &SessionRef) -> QuicServerConfig {
        let verifier = AdmittedSession {
            session: session.clone(),
            admission: Arc::clone(&self.admission),
            provider: Arc::clone(&self.provider),
        };
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&TLS13])
            .expect("ring has TLS 1.3 suites")
            .with_client_cert_verifier(Arc::new(verifier))
            .with_single_cert(vec![self.certificate.clone()], self.identity.private_key())
            .expect("ring signs with ECDSA P-256");
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.alpn_protocols = vec![ALPN.to_vec()];

        QuicServerConfig::try_from(config).expect("AES-128-GCM is among the suites")
    }
}

/// What verifies a peer's signature, whichever end the peer is: the same methods of two traits.
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
            return Err(Refused(format!(
                "what answers proves the key {} and not the key {} that the cluster publishes for \
                 this replica of the traffic manager. Something else stands in its place, unless \
                 it was replaced this moment",
                key.short(),
                self.key.short()
            ))
            .into());
        }

        Ok(ServerCertVerified::assertion())
    }

    tls13_signatures!();
}

/// Trusts the key that belongs to one session, if that session is admitted.
struct AdmittedSession {
    session: SessionRef,
    admission: Arc<dyn Admission>,
    provider: Arc<CryptoProvider>,
}

impl std::fmt::Debug for AdmittedSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("AdmittedSession")
            .field(&self.session)
            .finish()
    }
}

impl ClientCertVerifier for AdmittedSession {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let key = certificate_key(end_entity).map_err(|_| CertificateError::BadEncoding)?;
        let named = certificate_session(end_entity).map_err(|_| CertificateError::BadEncoding)?;
        if named != self.session {
            tracing::debug!(%named, expected = %self.session, "Certificate of another session");
            let reason = format!("the certificate is not that of Session {}", self.session);
            return Err(Refused(reason).into());
        }
        if let Err(refusal) = self.admission.admit(&self.session, &key) {
            tracing::debug!(session = %self.session, refusal.reason, "Session is not admitted");
            return Err(Refused(refusal.reason).into());
        }

        Ok(ClientCertVerified::assertion())
    }

    tls13_signatures!();
}

fn tls13_only() -> Error {
    Error::General("only TLS 1.3 is spoken".into())
}
