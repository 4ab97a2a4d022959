//! The client certificate of a user.
//!
//! kube has rustls check the certificate as one of a server, which refuses X.509 version 1
//! (`openssl x509 -req` makes it unless told otherwise); the API server and kubectl take it.

use kube::config::AuthInfo;
use rustls::{
    Error, InconsistentKeys,
    crypto::ring::default_provider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    sign::CertifiedKey,
};
use secrecy::ExposeSecret as _;

use crate::config::{FieldError, text};

const CERTIFICATE: [&str; 2] = ["client-certificate-data", "client-certificate"];
const KEY: [&str; 2] = ["client-key-data", "client-key"];

/// The client certificate of `user`; `None` if they log in by other means.
pub(crate) fn of(user: &AuthInfo) -> Result<Option<CertifiedKey>, FieldError> {
    let data = user.client_certificate_data.as_deref();
    let certificate = text(CERTIFICATE, data, user.client_certificate.as_deref())?;
    let data = user.client_key_data.as_ref().map(|key| key.expose_secret());
    let key = text(KEY, data, user.client_key.as_deref())?;
    let (certificate, key) = match (certificate, key) {
        // As for kubectl, a key alone is no login.
        (None, _) => return Ok(None),
        (Some(certificate), Some(key)) => (certificate, key),
        (Some(_), None) => {
            return Err(FieldError::new(KEY[1], "there is a certificate and no key"));
        }
    };
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&certificate.bytes)
        .filter_map(Result::ok)
        .collect();
    if chain.is_empty() {
        let why = "it holds no certificate in PEM";
        return Err(FieldError::new(certificate.field, why));
    }
    let secret = PrivateKeyDer::from_pem_slice(&key.bytes)
        .map_err(|_| FieldError::new(key.field, "it holds no private key in PEM"))?;
    let secret = default_provider().key_provider.load_private_key(secret);
    let secret = secret.map_err(|_| {
        let why = "keys of this kind are not supported: make one of RSA, ECDSA on P-256 or P-384, \
                   or Ed25519";
        FieldError::new(key.field, why)
    })?;
    let identity = CertifiedKey::new(chain, secret);
    if let Err(Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) = identity.keys_match() {
        return Err(FieldError::new(
            key.field,
            "it is not the key of the certificate",
        ));
    }

    Ok(Some(identity))
}

#[cfg(test)]
mod tests {
    use base64::{Engine as _, prelude::BASE64_STANDARD};
    use rcgen::generate_simple_self_signed;

    use super::*;

    fn user(certificate: &str, key: &str) -> AuthInfo {
        AuthInfo {
            client_certificate_data: Some(BASE64_STANDARD.encode(certificate)),
            client_key_data: Some(BASE64_STANDARD.encode(key).into()),
            ..AuthInfo::default()
        }
    }

    #[test]
    fn a_certificate_with_its_key_is_an_identity() {
        let made = generate_simple_self_signed(["me".to_owned()]).unwrap();
        let (certificate, key) = (made.cert.pem(), made.signing_key.serialize_pem());

        assert!(of(&user(&certificate, &key)).unwrap().is_some());
        // As `openssl ecparam -genkey` writes it.
        let parameters =
            "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n";
        assert!(
            of(&user(&certificate, &format!("{parameters}{key}")))
                .unwrap()
                .is_some()
        );
        assert!(of(&AuthInfo::default()).unwrap().is_none());
        assert!(of(&user("", &key)).unwrap().is_none());
    }

    #[test]
    fn what_cannot_be_used_is_named_by_its_field() {
        let [one, other] =
            ["one", "other"].map(|name| generate_simple_self_signed([name.to_owned()]).unwrap());
        let (certificate, key) = (one.cert.pem(), other.signing_key.serialize_pem());
        for (certificate, key, words) in [
            (
                &*certificate,
                &*key,
                "client-key-data cannot be used: it is not the key",
            ),
            ("words", &key, "client-certificate-data cannot be used"),
            (&certificate, "words", "client-key-data cannot be used"),
            (
                &certificate,
                "",
                "client-key cannot be used: there is a certificate and no key",
            ),
        ] {
            let wrong = of(&user(certificate, key)).unwrap_err().to_string();

            assert!(wrong.contains(words), "{words}: {wrong}");
        }
    }
}
