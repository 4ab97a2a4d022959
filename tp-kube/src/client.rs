//! The HTTP client for an API server: as kube's own builder makes it, but with `TCP_NODELAY`, with
//! every proxy that kubectl takes, and trusting whom kubectl trusts.
//!
//! A port-forward carries QUIC in small pieces. With Nagle's algorithm (RFC 896) a piece that does
//! not fill a segment waits for the acknowledgement of the one before, which the API server delays.

use std::sync::Arc;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use http::{HeaderValue, Uri};
use hyper::rt::{Read, Write};
use hyper_rustls::{FixedServerNameResolver, HttpsConnector, HttpsConnectorBuilder};
use hyper_timeout::TimeoutConnector;
use hyper_util::{
    client::legacy::{
        Client as HttpClient,
        connect::{
            Connection, HttpConnector,
            proxy::{SocksV5, Tunnel},
        },
    },
    rt::TokioExecutor,
};
use kube::{
    Client, Config, Error,
    client::{Body, ConfigExt as _, retry::RetryPolicy},
};
use percent_encoding::percent_decode_str;
use rustls::{
    ClientConfig,
    pki_types::ServerName,
    sign::{CertifiedKey, SingleCertAndKey},
};
use tower::{BoxError, Service, ServiceBuilder, retry::RetryLayer};

use crate::{login::Login, server, trust::Verifier};

/// The login of a client.
struct Authentication {
    tls: ClientConfig,
    login: Option<Login>,
}

/// A client of `config`.
///
/// The client certificate is `identity`, or else that of the plugin of `login`. Other credentials
/// of the kubeconfig are in `config`.
pub(crate) fn client(
    mut config: Config,
    identity: Option<CertifiedKey>,
    login: Option<Login>,
) -> Result<Client, Error> {
    let mut tls = tls(&config)?;
    if let Some(identity) = identity {
        tls.client_auth_cert_resolver = Arc::new(SingleCertAndKey::from(identity));
    } else if let Some(login) = &login {
        tls.client_auth_cert_resolver = Arc::new(login.clone());
    }
    let auth = Authentication { tls, login };
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(config.connect_timeout);
    let Some(proxy) = config.proxy_url.clone() else {
        return client_over(tcp, config, auth);
    };
    // Otherwise CONNECT asks for port 443 where HTTP means 80.
    config.cluster_url = server::with_port(&config.cluster_url);
    let credentials = credentials(&proxy);
    match proxy.scheme_str() {
        Some("socks5" | "socks5h") => {
            let socks = SocksV5::new(proxy, tcp);
            let socks = match credentials {
                Some((user, password)) => socks.with_auth(user, password),
                None => socks,
            };
            client_over(socks, config, auth)
        }
        Some("https") => {
            let proxy_tls = HttpsConnectorBuilder::new()
                // As for kubectl, the same certificates are trusted and shown (Go, net/http).
                .with_tls_config(auth.tls.clone())
                .https_only()
                .enable_http1()
                .wrap_connector(tcp);
            client_over(tunnel(proxy, credentials, proxy_tls), config, auth)
        }
        _ => client_over(tunnel(proxy, credentials, tcp), config, auth),
    }
}

/// Tunnels by CONNECT (RFC 9110 section 9.3.6).
fn tunnel<C>(proxy: Uri, credentials: Option<(String, String)>, connector: C) -> Tunnel<C> {
    let tunnel = Tunnel::new(proxy, connector);
    let header = credentials.and_then(|(user, password)| {
        let credentials = BASE64_STANDARD.encode(format!("{user}:{password}"));
        HeaderValue::from_str(&format!("Basic {credentials}")).ok()
    });

    match header {
        Some(mut header) => {
            header.set_sensitive(true);
            tunnel.with_auth(header)
        }
        None => tunnel,
    }
}

/// User and password of a URL.
fn credentials(url: &Uri) -> Option<(String, String)> {
    let (credentials, _) = url.authority()?.as_str().rsplit_once('@')?;
    let (user, password) = credentials.split_once(':').unwrap_or((credentials, ""));
    let decoded = |text| percent_decode_str(text).decode_utf8_lossy().into_owned();

    Some((decoded(user), decoded(password)))
}

fn client_over<C>(connector: C, config: Config, auth: Authentication) -> Result<Client, Error>
where
    C: Service<Uri> + Clone + Send + Sync + 'static,
    C::Response: Read + Write + Connection + Unpin + Send + 'static,
    C::Future: Send + 'static,
    C::Error: Into<BoxError>,
{
    let mut connector = TimeoutConnector::new(with_tls(connector, &config, auth.tls)?);
    connector.set_connect_timeout(config.connect_timeout);
    connector.set_read_timeout(config.read_timeout);
    connector.set_write_timeout(config.write_timeout);
    let http: HttpClient<_, Body> = HttpClient::builder(TokioExecutor::new()).build(connector);
    let retry = config
        .default_retry
        .then(|| RetryLayer::new(RetryPolicy::server_retry()));
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(retry)
        .option_layer(config.auth_layer()?)
        .option_layer(auth.login)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(http);

    Ok(Client::new(service, config.default_namespace))
}

fn with_tls<C>(
    connector: C,
    config: &Config,
    tls: ClientConfig,
) -> Result<HttpsConnector<C>, Error> {
    let builder = HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http();
    let builder = match config.tls_server_name.clone() {
        Some(name) => {
            let name = ServerName::try_from(name)
                .map_err(|error| Error::Service(format!("tls-server-name: {error}").into()))?;
            builder.with_server_name_resolver(FixedServerNameResolver::new(name))
        }
        None => builder,
    };

    Ok(builder.enable_http1().wrap_connector(connector))
}

fn tls(config: &Config) -> Result<ClientConfig, Error> {
    let mut tls = config.rustls_client_config()?;
    // In a pod the bundle is a file, which kube reloads by itself.
    let authorities = config
        .root_cert
        .as_ref()
        .filter(|_| config.root_cert_file.is_none());
    if let Some(authorities) = authorities
        && !config.accept_invalid_certs
    {
        let verifier = Verifier::new(authorities);
        let verifier = verifier.map_err(|error| Error::Service(error.into()))?;
        tls.dangerous().set_certificate_verifier(Arc::new(verifier));
    }

    Ok(tls)
}
