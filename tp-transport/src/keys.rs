//! The identity of the other end: an ephemeral key, its hash, and the `Session` it speaks for.

use std::{fmt, str::FromStr, sync::Arc};

use rcgen::{
    CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, string::Ia5String,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// SHA-256 of a public key (SubjectPublicKeyInfo, DER). Text form: 64 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyHash([u8; 32]);

/// An error of a key, its hash or its certificate.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The cryptographic library fails.
    #[error("cannot make a key pair or its certificate")]
    Generate(#[source] rcgen::Error),
    /// A text is no key hash; it is cut to 80 characters.
    #[error("{0:?} is not a key hash: expected 64 hexadecimal digits")]
    Hash(String),
    /// See [`SessionRef`] for the form of its parts.
    #[error("the session reference has a part that is empty, too long or not printable ASCII")]
    SessionRef,
    /// The bytes are no X.509 certificate (RFC 5280), or others follow.
    #[error("the certificate is malformed")]
    Certificate,
    /// Its subject alternative name is not the one URI of a session.
    #[error("the certificate does not name a session")]
    NoSession,
}

/// The manager has another key than the pinned one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "what answers proves the key {} and not the key {} that the cluster publishes for this replica \
     of the traffic manager. Something else stands in its place, unless it was replaced this moment",
    .proved.short(),
    .pinned.short()
)]
pub struct AnotherKey {
    /// The key that was proven.
    pub proved: KeyHash,
    /// The key that was expected.
    pub pinned: KeyHash,
}

impl KeyHash {
    /// The hash of a SubjectPublicKeyInfo in DER (RFC 5280, section 4.1.2.7).
    pub fn of_spki(spki_der: &[u8]) -> Self {
        let digest = ring::digest::digest(&ring::digest::SHA256, spki_der);
        let bytes = digest.as_ref().try_into();

        Self(bytes.expect("SHA-256 has 32 bytes"))
    }

    /// A prefix that is long enough to be found in a list.
    pub(crate) fn short(&self) -> String {
        self.to_string().chars().take(12).collect()
    }
}

impl fmt::Display for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyHash({self})")
    }
}

impl FromStr for KeyHash {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let malformed = || KeyError::Hash(text.chars().take(80).collect());
        if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(malformed());
        }
        let mut bytes = [0; 32];
        for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
            let digits = std::str::from_utf8(digits).map_err(|_| malformed())?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| malformed())?;
        }

        Ok(Self(bytes))
    }
}

/// Names one `Session` object for good: a later object of the same name has another UID. Each part
/// has 1 to 253 characters out of ASCII letters, digits, `-`, `.` and `_`.
#[derive(Clone, Debug, Eq, Hash, PartialEq, PartialOrd, Ord)]
pub struct SessionRef {
    /// The namespace of the object.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
}

/// Longest part of a [`SessionRef`]; Kubernetes names have at most 253 characters.
pub(crate) const MAX_REF_PART: usize = 253;
const URI_PREFIX: &str = "tp://session/";

impl SessionRef {
    /// The URI that stands in the certificate: `tp://session/NAMESPACE/NAME/UID`.
    fn uri(&self) -> String {
        format!("{URI_PREFIX}{}/{}/{}", self.namespace, self.name, self.uid)
    }

    /// Returns whether every part has a form that Kubernetes could have given out.
    pub(crate) fn is_well_formed(&self) -> bool {
        [&self.namespace, &self.name, &self.uid]
            .into_iter()
            .all(|part| is_well_formed_part(part))
    }

    fn from_uri(uri: &str) -> Option<Self> {
        let mut parts = uri.strip_prefix(URI_PREFIX)?.split('/');
        let session = Self {
            namespace: parts.next()?.into(),
            name: parts.next()?.into(),
            uid: parts.next()?.into(),
        };

        (parts.next().is_none() && session.is_well_formed()).then_some(session)
    }
}

impl fmt::Display for SessionRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

fn is_well_formed_part(part: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);

    !part.is_empty() && part.len() <= MAX_REF_PART && part.bytes().all(allowed)
}

/// A key pair that lives in memory only, and ends with the process. Clones share it.
#[derive(Clone)]
pub struct Identity {
    key: Arc<KeyPair>,
    hash: KeyHash,
}

impl Identity {
    /// A fresh ECDSA P-256 key pair.
    ///
    /// # Errors
    ///
    /// [`KeyError::Generate`] if the machine gives no random numbers.
    pub fn generate() -> Result<Self, KeyError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(KeyError::Generate)?;
        let hash = KeyHash::of_spki(&key.subject_public_key_info());

        Ok(Self {
            key: Arc::new(key),
            hash,
        })
    }

    /// The hash that the other end pins.
    pub fn key_hash(&self) -> KeyHash {
        self.hash
    }

    /// A self-signed certificate that names a session.
    pub(crate) fn session_certificate(
        &self,
        session: &SessionRef,
    ) -> Result<CertificateDer<'static>, KeyError> {
        if !session.is_well_formed() {
            return Err(KeyError::SessionRef);
        }

        self.certificate(&session.uri())
    }

    /// A self-signed certificate of a manager; only its key counts, which clients pin.
    pub(crate) fn manager_certificate(&self) -> Result<CertificateDer<'static>, KeyError> {
        self.certificate("tp://manager")
    }

    fn certificate(&self, uri: &str) -> Result<CertificateDer<'static>, KeyError> {
        let uri = Ia5String::try_from(uri).map_err(KeyError::Generate)?;
        let mut params = CertificateParams::default();
        params.subject_alt_names.push(SanType::URI(uri));
        let certificate = params.self_signed(&*self.key).map_err(KeyError::Generate)?;

        Ok(certificate.der().clone())
    }

    pub(crate) fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key.serialize_der()).into()
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Identity").field(&self.hash).finish()
    }
}

/// The key hash of a certificate.
pub(crate) fn certificate_key(certificate: &CertificateDer<'_>) -> Result<KeyHash, KeyError> {
    Ok(KeyHash::of_spki(parse(certificate)?.public_key().raw))
}

/// The session that a client certificate names, exactly one.
pub(crate) fn certificate_session(
    certificate: &CertificateDer<'_>,
) -> Result<SessionRef, KeyError> {
    let certificate = parse(certificate)?;
    let names = certificate
        .subject_alternative_name()
        .map_err(|_| KeyError::Certificate)?
        .ok_or(KeyError::NoSession)?;
    match names.value.general_names.as_slice() {
        [GeneralName::URI(uri)] => SessionRef::from_uri(uri).ok_or(KeyError::NoSession),
        _ => Err(KeyError::NoSession),
    }
}

fn parse<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, KeyError> {
    match X509Certificate::from_der(certificate) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) | Err(_) => Err(KeyError::Certificate),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_hash_survives_its_text_form() {
        let hash = Identity::generate().unwrap().key_hash();

        assert_eq!(hash.to_string().parse::<KeyHash>().unwrap(), hash);
    }

    #[test]
    fn anything_but_64_hex_digits_is_no_key_hash() {
        for text in ["", "00", &"g".repeat(64), &"+0".repeat(32), &"0".repeat(65)] {
            assert!(text.parse::<KeyHash>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_certificate_carries_session_and_key() {
        let identity = Identity::generate().unwrap();
        let session = session("shop", "alice", "5b7c");

        let certificate = identity.session_certificate(&session).unwrap();

        assert_eq!(certificate_key(&certificate).unwrap(), identity.key_hash());
        assert_eq!(certificate_session(&certificate).unwrap(), session);
    }

    #[test]
    fn a_session_with_a_slash_in_its_name_gets_no_certificate() {
        let identity = Identity::generate().unwrap();

        assert!(
            identity
                .session_certificate(&session("a/b", "c", "d"))
                .is_err()
        );
    }

    #[test]
    fn a_manager_certificate_names_no_session() {
        let certificate = Identity::generate().unwrap().manager_certificate().unwrap();

        assert!(matches!(
            certificate_session(&certificate),
            Err(KeyError::NoSession)
        ));
    }

    fn session(namespace: &str, name: &str, uid: &str) -> SessionRef {
        SessionRef {
            namespace: namespace.into(),
            name: name.into(),
            uid: uid.into(),
        }
    }
}
