//! Whom a TLS connection trusts: as Go's `crypto/x509`, also the server's own certificate where the
//! kubeconfig names that instead of who issued it (RFC 5280 section 6.1 leaves it to the
//! application; rustls-webpki takes trust anchors for issuers only, and kube with it:
//! <https://github.com/kube-rs/kube/issues/1767>).

use std::sync::Arc;

use rustls::{
    CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::ParsedCertificate,
};
use x509_parser::{prelude::FromDer as _, time::ASN1Time};

/// Trusts what leads to one of `authorities`, and each of them itself.
#[derive(Debug)]
pub(crate) struct Verifier {
    issued: Arc<WebPkiServerVerifier>,
    authorities: Vec<CertificateDer<'static>>,
}

impl Verifier {
    /// The certificates must be such that a [`RootCertStore`] takes them.
    pub(crate) fn new(authorities: &[Vec<u8>]) -> Result<Self, Error> {
        let authorities: Vec<_> = authorities
            .iter()
            .cloned()
            .map(CertificateDer::from)
            .collect();
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(authorities.iter().cloned());
        let issued = WebPkiServerVerifier::builder(Arc::new(roots)).build();

        Ok(Self {
            issued: issued.map_err(|error| Error::General(error.to_string()))?,
            authorities,
        })
    }

    /// What remains to be checked of a certificate that is trusted itself.
    fn check(
        &self,
        own: &CertificateDer<'_>,
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), Error> {
        verify_server_name(&ParsedCertificate::try_from(own)?, name)?;
        let malformed = || Error::from(CertificateError::BadEncoding);
        let (_, certificate) =
            x509_parser::certificate::X509Certificate::from_der(own).map_err(|_| malformed())?;
        let now = i64::try_from(now.as_secs()).map_err(|_| malformed())?;
        let now = ASN1Time::from_timestamp(now).map_err(|_| malformed())?;
        let validity = certificate.validity();
        if now < validity.not_before {
            return Err(CertificateError::NotValidYet.into());
        }
        if now > validity.not_after {
            return Err(CertificateError::Expired.into());
        }

        Ok(())
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        own: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let issued = self
            .issued
            .verify_server_cert(own, intermediates, name, ocsp, now);
        if issued.is_err()
            && self
                .authorities
                .iter()
                .any(|known| known.as_ref() == own.as_ref())
        {
            self.check(own, name, now)?;
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
        self.issued
            .verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.issued
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.issued.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

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
}
