//! The HTTP client for the API server: as kube's own builder makes it, but with `TCP_NODELAY`.
//!
//! A port-forward carries QUIC in small pieces. With Nagle's algorithm (RFC 896) a piece that does
//! not fill a segment waits for the acknowledgement of the one before, which the API server delays.

use hyper_util::{
    client::legacy::{Client as HttpClient, connect::HttpConnector},
    rt::TokioExecutor,
};
use kube::{
    Client, Config, Error,
    client::{Body, ConfigExt as _, retry::RetryPolicy},
};
use tower::{BoxError, ServiceBuilder, retry::RetryLayer};

/// A client of `config`.
pub(super) fn client(config: Config) -> Result<Client, Error> {
    // What leads through a proxy is kube's own affair, Nagle's algorithm included.
    if config.proxy_url.is_some() {
        return Client::try_from(config);
    }
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(config.connect_timeout);
    let tls = config.rustls_https_connector_with_connector(tcp)?;
    let http: HttpClient<_, Body> = HttpClient::builder(TokioExecutor::new()).build(tls);
    let retry = config
        .default_retry
        .then(|| RetryLayer::new(RetryPolicy::server_retry()));
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(retry)
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(http);

    Ok(Client::new(service, config.default_namespace))
}
