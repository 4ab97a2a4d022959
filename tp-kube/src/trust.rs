//! Trust in a server's certificate: as in Go's `crypto/x509`, the kubeconfig may name the server's
//! own certificate instead of its issuer (RFC 5280 section 6.1 leaves it to the application;
//! rustls-webpki, and so kube, takes trust anchors for issuers only:
//! <https://github.com/kube-rs/kube/issues/1767>).

use std::sync::Arc;

use rustls::{
    CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    crypto::{WebPkiSupportedAlgorithms, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::ParsedCertificate,
};
use x509_parser::{
    certificate::X509Certificate,
    der_parser::Oid,
    extensions::X509Extension,
    oid_registry::{
        OID_X509_EXT_BASIC_CONSTRAINTS, OID_X509_EXT_EXTENDED_KEY_USAGE, OID_X509_EXT_KEY_USAGE,
        OID_X509_EXT_NAME_CONSTRAINTS, OID_X509_EXT_SUBJECT_ALT_NAME,
    },
    prelude::FromDer as _,
    time::ASN1Time,
    x509::X509Version,
};

/// Trusts certificates issued by those `authorities` that may issue, and each authority itself.
#[derive(Debug)]
pub(crate) struct Verifier {
    /// `None` if no authority may issue.
    issued: Option<Arc<WebPkiServerVerifier>>,
    authorities: Vec<CertificateDer<'static>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Verifier {
    /// A [`RootCertStore`] must accept the certificates.
    pub(crate) fn new(authorities: &[Vec<u8>]) -> Result<Self, Error> {
        let authorities: Vec<_> = authorities
            .iter()
            .cloned()
            .map(CertificateDer::from)
            .collect();
        let mut roots = RootCertStore::empty();
        let issuers = authorities.iter().filter(|it| may_issue(it)).cloned();
        roots.add_parsable_certificates(issuers);
        let issued = (!roots.is_empty())
            .then(|| WebPkiServerVerifier::builder(Arc::new(roots)).build())
            .transpose();

        Ok(Self {
            issued: issued.map_err(|error| Error::General(error.to_string()))?,
            authorities,
            algorithms: ring::default_provider().signature_verification_algorithms,
        })
    }
}

/// Returns whether it may issue others. webpki lets every trust anchor issue; Go asks for `CA:TRUE`
/// and the key usage from X.509 version 3 on (`CheckSignatureFrom`).
fn may_issue(certificate: &CertificateDer<'_>) -> bool {
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else {
        return false;
    };
    let (Ok(constraints), Ok(usage)) = (certificate.basic_constraints(), certificate.key_usage())
    else {
        return false;
    };
    let is_ca = match constraints {
        Some(constraints) => constraints.value.ca,
        None => certificate.version() != X509Version::V3,
    };

    is_ca && usage.is_none_or(|usage| usage.value.key_cert_sign())
}

/// The remaining checks of a certificate that is trusted itself.
fn check_trusted(
    own: &CertificateDer<'_>,
    name: &ServerName<'_>,
    now: UnixTime,
) -> Result<(), Error> {
    verify_server_name(&ParsedCertificate::try_from(own)?, name)?;
    let malformed = || Error::from(CertificateError::BadEncoding);
    let (_, certificate) = X509Certificate::from_der(own).map_err(|_| malformed())?;
    let now = i64::try_from(now.as_secs()).map_err(|_| malformed())?;
    let now = ASN1Time::from_timestamp(now).map_err(|_| malformed())?;
    let validity = certificate.validity();
    if now < validity.not_before {
        return Err(CertificateError::NotValidYet.into());
    }
    if now > validity.not_after {
        return Err(CertificateError::Expired.into());
    }
    let usage = certificate.extended_key_usage().map_err(|_| malformed())?;
    if usage.is_some_and(|usage| !usage.value.server_auth && !usage.value.any) {
        return Err(CertificateError::InvalidPurpose.into());
    }
    let is_unhandled = |extension: &X509Extension<'_>| {
        extension.critical && !HANDLED_EXTENSIONS.contains(&extension.oid)
    };
    if certificate.extensions().iter().any(is_unhandled) {
        return Err(CertificateError::UnhandledCriticalExtension.into());
    }

    Ok(())
}

/// Extensions that are checked, or do not matter for a server's own certificate.
const HANDLED_EXTENSIONS: [Oid<'static>; 5] = [
    OID_X509_EXT_BASIC_CONSTRAINTS,
    OID_X509_EXT_EXTENDED_KEY_USAGE,
    OID_X509_EXT_KEY_USAGE,
    OID_X509_EXT_NAME_CONSTRAINTS,
    OID_X509_EXT_SUBJECT_ALT_NAME,
];

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        own: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let issued = match &self.issued {
            Some(issued) => issued.verify_server_cert(own, intermediates, name, ocsp, now),
            None => Err(CertificateError::UnknownIssuer.into()),
        };
        let is_known = || {
            self.authorities
                .iter()
                .any(|known| known.as_ref() == own.as_ref())
        };
        if issued.is_err() && is_known() {
            check_trusted(own, name, now)?;
            return Ok(ServerCertVerified::assertion());
        }

        issued
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::{
        BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    };

    use super::*;

    const NAME: &str = "api.corp.test";
    /// 2030-01-01T00:00:00Z.
    const NOW: u64 = 1_893_456_000;

    fn parameters() -> CertificateParams {
        CertificateParams::new([NAME.to_owned()]).unwrap()
    }

    fn verify(
        authority: &CertificateDer<'_>,
        own: &CertificateDer<'_>,
        name: &str,
        now: u64,
    ) -> Result<(), Error> {
        let verifier = Verifier::new(&[authority.to_vec()]).unwrap();
        let now = UnixTime::since_unix_epoch(Duration::from_secs(now));
        let name = ServerName::try_from(name.to_owned()).unwrap();

        verifier
            .verify_server_cert(own, &[], &name, &[], now)
            .map(|_| ())
    }

    fn ca() -> (CertificateDer<'static>, Issuer<'static, KeyPair>) {
        let mut ca = CertificateParams::default();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = ca.self_signed(&key).unwrap();
        (certificate.der().clone(), Issuer::new(ca, key))
    }

    fn issued() -> CertificateDer<'static> {
        let key = KeyPair::generate().unwrap();
        parameters().signed_by(&key, &ca().1).unwrap().der().clone()
    }

    #[test]
    fn a_servers_own_certificate_is_trusted_whoever_issued_it() {
        let mut authority = parameters();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let self_issued = authority.self_signed(&key).unwrap().der().clone();

        for own in [issued(), self_issued] {
            assert_eq!(verify(&own, &own, NAME, NOW), Ok(()));
        }
    }

    #[test]
    fn its_name_and_its_dates_are_checked() {
        let own = issued();

        for (name, now) in [("other.corp.test", NOW), (NAME, 0), (NAME, 1 << 40)] {
            assert!(verify(&own, &own, name, now).is_err(), "{name} {now}");
        }
    }

    #[test]
    fn another_certificate_of_the_same_name_is_not_trusted() {
        assert!(verify(&issued(), &issued(), NAME, NOW).is_err());
    }

    #[test]
    fn what_an_authority_has_issued_is_trusted() {
        let (authority, issuer) = ca();
        let key = KeyPair::generate().unwrap();
        let own = parameters().signed_by(&key, &issuer).unwrap();

        assert_eq!(verify(&authority, own.der(), NAME, NOW), Ok(()));
    }

    #[test]
    fn a_servers_own_certificate_issues_no_other() {
        let key = KeyPair::generate().unwrap();
        let own = parameters();
        let authority = own.self_signed(&key).unwrap().der().clone();
        let issuer = Issuer::new(own, key);
        let forged_key = KeyPair::generate().unwrap();
        let forged = parameters().signed_by(&forged_key, &issuer).unwrap();

        assert!(verify(&authority, forged.der(), NAME, NOW).is_err());
        assert_eq!(verify(&authority, &authority, NAME, NOW), Ok(()));
    }

    #[test]
    fn a_certificate_for_clients_only_is_no_servers() {
        let mut own = parameters();
        own.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let own = own.self_signed(&key).unwrap().der().clone();

        assert!(verify(&own, &own, NAME, NOW).is_err());
    }
}
