//! The credential that a plugin returns.

use std::fmt;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use jiff::Timestamp;
use kube::config::AuthInfo;
use serde::{Deserialize, Serialize};

/// A token, a client certificate with its key, or both, for as long as they are valid.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Credential {
    #[serde(default)]
    pub(crate) token: Option<String>,
    #[serde(default)]
    pub(crate) client_certificate_data: Option<String>,
    #[serde(default)]
    pub(crate) client_key_data: Option<String>,
    #[serde(default)]
    expiration_timestamp: Option<Timestamp>,
}

/// A plugin's answer (`client.authentication.k8s.io`).
#[derive(Deserialize)]
struct ExecCredential {
    kind: String,
    status: Credential,
}

impl Credential {
    /// Parses a plugin's output: JSON, or YAML, which Kubernetes' own decoder accepts as well.
    pub(crate) fn of_plugin(output: &[u8]) -> Option<Self> {
        let answer: ExecCredential = serde_norway::from_slice(output).ok()?;
        let filled = |text: Option<String>| text.filter(|text| !text.is_empty());
        let credential = Self {
            token: filled(answer.status.token),
            client_certificate_data: filled(answer.status.client_certificate_data),
            client_key_data: filled(answer.status.client_key_data),
            ..answer.status
        };
        let is_whole = match (
            &credential.client_certificate_data,
            &credential.client_key_data,
        ) {
            (Some(_), Some(_)) => true,
            (None, None) => credential.token.is_some(),
            _ => false,
        };

        // The token goes into a header.
        let token = credential.token.as_deref().unwrap_or_default();
        let is_header_safe = token.bytes().all(|byte| byte.is_ascii_graphic());

        (answer.kind == "ExecCredential" && is_whole && is_header_safe).then_some(credential)
    }

    pub(crate) fn has_certificate(&self) -> bool {
        self.client_certificate_data.is_some()
    }

    /// Sets the certificate of `user` to its own, if it has one.
    pub(crate) fn identify(&self, user: &mut AuthInfo) {
        let (Some(certificate), Some(key)) = (&self.client_certificate_data, &self.client_key_data)
        else {
            return;
        };
        user.client_certificate = None;
        user.client_key = None;
        user.client_certificate_data = Some(BASE64_STANDARD.encode(certificate));
        user.client_key_data = Some(BASE64_STANDARD.encode(key).into());
    }

    /// Writes it as bytes for another program of the same version.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("strings")
    }

    /// Reads what [`Credential::to_bytes`] wrote; `None` for other bytes.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok()
    }

    /// As by kubectl, it is used to its last moment: earlier renewal would run a plugin, whose
    /// credentials live for seconds, before each request.
    pub(crate) fn is_expired(&self, now: Timestamp) -> bool {
        self.expiration_timestamp.is_some_and(|end| now >= end)
    }
}

/// Its fields are secrets.
impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential")
            .field("expiration_timestamp", &self.expiration_timestamp)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(status: &str) -> Option<Credential> {
        let text = format!(
            r#"{{"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": {status}}}"#
        );

        Credential::of_plugin(text.as_bytes())
    }

    #[test]
    fn a_token_or_a_certificate_with_its_key_is_a_credential() {
        for (status, is_credential) in [
            (r#"{"token": "t"}"#, true),
            (
                r#"{"clientCertificateData": "c", "clientKeyData": "k"}"#,
                true,
            ),
            (
                r#"{"token": "t", "clientCertificateData": "c", "clientKeyData": "k"}"#,
                true,
            ),
            (r#"{"clientCertificateData": "c"}"#, false),
            (r#"{"token": "t", "clientKeyData": "k"}"#, false),
            ("{}", false),
            (r#"{"token": ""}"#, false),
            (r#"{"token": "t\n"}"#, false),
            ("null", false),
        ] {
            assert_eq!(of(status).is_some(), is_credential, "{status}");
        }
        assert_eq!(Credential::of_plugin(b"token"), None);
    }

    #[test]
    fn it_runs_out_at_the_moment_it_says() {
        let credential =
            of(r#"{"token": "t", "expirationTimestamp": "2030-01-01T00:00:00Z"}"#).unwrap();
        let end: Timestamp = "2030-01-01T00:00:00Z".parse().unwrap();

        assert!(!credential.is_expired(end - jiff::Span::new().milliseconds(1)));
        assert!(credential.is_expired(end));
        assert!(!of(r#"{"token": "t"}"#).unwrap().is_expired(end));
    }

    #[test]
    fn it_goes_to_another_program_whole_and_is_not_shown() {
        let credential = of(r#"{"token": "secret"}"#).unwrap();

        assert_eq!(
            Credential::from_bytes(&credential.to_bytes()).as_ref(),
            Some(&credential)
        );
        assert!(!format!("{credential:?}").contains("secret"));
    }
}
