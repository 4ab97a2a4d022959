//! Converts a cluster and a user of a kubeconfig into the settings of a client.
//!
//! kube does the same, but takes `server` without a scheme for a path, asks an API server that
//! NO_PROXY names through the proxy, and rejects a whole bundle for one bad certificate
//! (kube-client 5.0.0, `config/mod.rs` and `config/file_loader.rs`), where kubectl connects.

use std::fs;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use http::uri::Scheme;
use kube::{
    Config,
    config::{AuthInfo, Cluster, ExecAuthCluster},
};
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, pem::PemObject as _},
};

use secrecy::ExposeSecret as _;

use crate::{
    proxy::{self, Environment},
    server,
};

/// A field of a cluster or of a user that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("its {field} cannot be used: {why}")]
pub(crate) struct FieldError {
    field: &'static str,
    why: String,
}

impl FieldError {
    pub(crate) fn new(field: &'static str, why: impl ToString) -> Self {
        Self {
            field,
            why: why.to_string(),
        }
    }
}

pub(crate) fn of(
    cluster: &Cluster,
    mut user: AuthInfo,
    environment: &Environment,
) -> Result<Config, FieldError> {
    let url = server::url(cluster.server.as_deref().unwrap_or_default())
        .map_err(|why| FieldError::new("server", why))?;
    let proxy = match cluster.proxy_url.as_deref().filter(|it| !it.is_empty()) {
        Some(proxy) => {
            Some(proxy::of_kubeconfig(proxy).map_err(|why| FieldError::new("proxy-url", why))?)
        }
        None => environment.proxy(&url),
    };
    let mut config = Config::new(url);
    config.proxy_url = proxy;
    if config.cluster_url.scheme() != Some(&Scheme::HTTPS) {
        // As kubectl does, sends no credentials without TLS (client-go,
        // `tools/clientcmd/client_config.go`).
        config.auth_info = AuthInfo {
            impersonate: user.impersonate,
            impersonate_groups: user.impersonate_groups,
            ..AuthInfo::default()
        };
        return Ok(config);
    }
    let authorities = authorities(cluster)?;
    let trusts_anybody = cluster.insecure_skip_tls_verify.unwrap_or_default();
    if trusts_anybody && authorities.is_some() {
        let why = "a certificate-authority is given beside it: remove one of the two";
        return Err(FieldError::new("insecure-skip-tls-verify", why));
    }
    drop_empty_fields(&mut user);
    if let Some(plugin) = &mut user.exec
        && plugin.provide_cluster_info
    {
        let shown = ExecAuthCluster::try_from(cluster);
        plugin.cluster = Some(shown.map_err(|why| FieldError::new("certificate-authority", why))?);
    }

    config.root_cert = authorities;
    config.accept_invalid_certs = trusts_anybody;
    config.disable_compression = cluster.disable_compression.unwrap_or_default();
    config.tls_server_name = cluster.tls_server_name.clone().filter(|it| !it.is_empty());
    config.auth_info = user;

    Ok(config)
}

/// Removes empty fields, which Go treats as absent.
fn drop_empty_fields(user: &mut AuthInfo) {
    for field in [
        &mut user.token_file,
        &mut user.username,
        &mut user.client_certificate,
        &mut user.client_certificate_data,
        &mut user.client_key,
    ] {
        field.take_if(|text| text.is_empty());
    }
    for secret in [
        &mut user.token,
        &mut user.password,
        &mut user.client_key_data,
    ] {
        secret.take_if(|secret| secret.expose_secret().is_empty());
    }
}

/// The trusted certificates; `None` for those of the machine. Unusable ones are skipped as long as
/// one is usable, as by Go's `x509`.
fn authorities(cluster: &Cluster) -> Result<Option<Vec<Vec<u8>>>, FieldError> {
    const FIELDS: [&str; 2] = ["certificate-authority-data", "certificate-authority"];

    let data = cluster.certificate_authority_data.as_deref();
    let Some(bundle) = text(FIELDS, data, cluster.certificate_authority.as_deref())? else {
        return Ok(None);
    };
    let found: Vec<CertificateDer<'_>> = CertificateDer::pem_slice_iter(&bundle.bytes)
        .filter_map(Result::ok)
        .collect();
    let (mut usable, mut last) = (Vec::new(), "it holds no certificate in PEM".to_owned());
    for certificate in found {
        match RootCertStore::empty().add(certificate.clone()) {
            Ok(()) => usable.push(certificate.to_vec()),
            Err(error) => last = format!("a certificate in it is not accepted: {error}"),
        }
    }
    if usable.is_empty() {
        return Err(FieldError::new(bundle.field, last));
    }

    Ok(Some(usable))
}

/// The contents of a field, or of the file that it names.
pub(crate) struct FieldContents {
    pub(crate) field: &'static str,
    pub(crate) bytes: Vec<u8>,
}

/// Reads one of a pair of fields: the first holds base64, the second the path of a file.
pub(crate) fn text(
    [data_field, file_field]: [&'static str; 2],
    data: Option<&str>,
    file: Option<&str>,
) -> Result<Option<FieldContents>, FieldError> {
    if let Some(data) = data.filter(|it| !it.is_empty()) {
        let data: String = data.split_ascii_whitespace().collect();
        return match BASE64_STANDARD.decode(data) {
            Ok(bytes) => Ok(Some(FieldContents {
                field: data_field,
                bytes,
            })),
            Err(error) => Err(FieldError::new(
                data_field,
                format!("it is not base64: {error}"),
            )),
        };
    }
    let Some(path) = file.filter(|it| !it.is_empty()) else {
        return Ok(None);
    };

    match fs::read(path) {
        Ok(bytes) => Ok(Some(FieldContents {
            field: file_field,
            bytes,
        })),
        Err(error) => Err(FieldError::new(
            file_field,
            format!("{path} cannot be read: {error}"),
        )),
    }
}
