//! The opening handshakes through kube's client: of a WebSocket (RFC 6455, section 4.1) with our own
//! subprotocols, since kube's `Client::connect` offers only its own; and of SPDY by HTTP/1.1's Upgrade,
//! as kubectl did before Kubernetes 1.30 (client-go, `transport/spdy`).

use hyper::{
    HeaderMap, Method, Request, Response, StatusCode,
    header::{self, HeaderName, HeaderValue},
    http::Error as HttpError,
    upgrade::Upgraded,
};
use hyper_util::rt::TokioIo;
use kube::{
    Client, Error,
    client::{Body, UpgradeConnectionError},
    core::Status,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        handshake::{client::generate_key, derive_accept_key},
        protocol::Role,
    },
};

pub(super) const SPDY: &str = "SPDY/3.1";
/// The stream protocol of a port-forward over SPDY.
const PORT_FORWARD: &str = "portforward.k8s.io";
const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");
/// The most characters that are quoted from an unknown server.
const MAX_QUOTED_CHARS: usize = 100;

/// An upgrade that the API server, or a proxy before it, did not make.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error("{status}{}", if .words.is_empty() { String::new() } else { format!(": {words}") })]
    Answer { status: StatusCode, words: String },
    #[error("the answer does not switch to {0}")]
    NoSwitch(&'static str),
    #[error(transparent)]
    Handshake(UpgradeConnectionError),
    #[error("{}", .0.message)]
    ApiServer(Box<Status>),
}

/// The error of an upgrade.
#[derive(Debug)]
pub(super) enum UpgradeError {
    Refused(Refusal),
    Failed(Error),
}

impl From<Error> for UpgradeError {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl From<Refusal> for UpgradeError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

type WebSocket = WebSocketStream<TokioIo<Upgraded>>;

/// Upgrades a request to a WebSocket. Returns it with the one of `protocols` that the server chose.
pub(super) async fn websocket(
    client: &Client,
    request: Request<Vec<u8>>,
    protocols: &[&'static str],
) -> Result<(WebSocket, &'static str), UpgradeError> {
    let key = generate_key();
    let (mut parts, body) = request.into_parts();
    offer(&mut parts.headers, &key, protocols).map_err(Error::HttpError)?;
    let request = Request::from_parts(parts, Body::from(body));
    let response = send(client, request).await?;
    let protocol = verify(&response, &key, protocols)?;
    let upgraded = upgraded(response).await?;
    let websocket = WebSocketStream::from_raw_socket(upgraded, Role::Client, None).await;

    Ok((websocket, protocol))
}

/// Upgrades a request to a SPDY connection.
pub(super) async fn spdy(
    client: &Client,
    request: Request<Vec<u8>>,
) -> Result<TokioIo<Upgraded>, UpgradeError> {
    let (mut parts, body) = request.into_parts();
    parts.method = Method::POST;
    for (name, value) in [
        (header::CONNECTION, "Upgrade"),
        (header::UPGRADE, SPDY),
        (STREAM_PROTOCOL, PORT_FORWARD),
    ] {
        parts.headers.insert(name, HeaderValue::from_static(value));
    }
    let request = Request::from_parts(parts, Body::from(body));
    let response = send(client, request).await?;
    switches_to(&response, SPDY)?;

    Ok(upgraded(response).await?)
}

/// Sends an upgrade request. After a refusal the caller may try the other protocol: a gateway that strips
/// Upgrade makes the API server itself refuse. The API server's 401 and 404 are final.
async fn send(client: &Client, request: Request<Body>) -> Result<Response<Body>, UpgradeError> {
    let response = client.send(request).await?;
    let status = response.status();
    if !status.is_client_error() && !status.is_server_error() {
        return Ok(response);
    }
    let body = response.into_body().collect_bytes().await?;
    let said = serde_json::from_slice::<Status>(&body).ok();
    let said = said.filter(|said| said.code != 0).map(Box::new);
    if let Some(said) = said {
        if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::NOT_FOUND) {
            return Err(Error::Api(said).into());
        }
        return Err(UpgradeError::Refused(Refusal::ApiServer(said)));
    }
    let words = String::from_utf8_lossy(&body);
    let first = words.lines().map(str::trim).find(|line| !line.is_empty());
    let words = first
        .unwrap_or_default()
        .chars()
        .filter(|it| !it.is_control())
        .take(MAX_QUOTED_CHARS)
        .collect();

    Err(UpgradeError::Refused(Refusal::Answer { status, words }))
}

async fn upgraded(response: Response<Body>) -> Result<TokioIo<Upgraded>, Error> {
    let upgraded = hyper::upgrade::on(response).await.map_err(|error| {
        Error::UpgradeConnection(UpgradeConnectionError::GetPendingUpgrade(error))
    })?;

    Ok(TokioIo::new(upgraded))
}

fn offer(headers: &mut HeaderMap, key: &str, protocols: &[&str]) -> Result<(), HttpError> {
    let fixed = [
        (header::CONNECTION, "Upgrade"),
        (header::UPGRADE, "websocket"),
        (header::SEC_WEBSOCKET_VERSION, "13"),
    ];
    for (name, value) in fixed {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.insert(header::SEC_WEBSOCKET_KEY, key.parse()?);
    // In one header: the API server reads the first one only.
    headers.insert(
        header::SEC_WEBSOCKET_PROTOCOL,
        protocols.join(", ").parse()?,
    );

    Ok(())
}

fn verify(
    response: &Response<Body>,
    key: &str,
    protocols: &[&'static str],
) -> Result<&'static str, Refusal> {
    switches_to(response, "websocket")?;
    let accept = response.headers().get(header::SEC_WEBSOCKET_ACCEPT);
    if accept.is_none_or(|accept| accept != &derive_accept_key(key.as_bytes())) {
        let error = UpgradeConnectionError::SecWebSocketAcceptKeyMismatch;
        return Err(Refusal::Handshake(error));
    }

    protocols
        .iter()
        .find(|protocol| has(response, &header::SEC_WEBSOCKET_PROTOCOL, protocol))
        .copied()
        .ok_or(Refusal::Handshake(
            UpgradeConnectionError::SecWebSocketProtocolMismatch,
        ))
}

fn switches_to(response: &Response<Body>, protocol: &'static str) -> Result<(), Refusal> {
    // One of several, where a proxy adds its own (RFC 9110, section 7.6.1).
    let connection = response.headers().get_all(header::CONNECTION).iter();
    let mut options = connection
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','));
    let switches = response.status() == StatusCode::SWITCHING_PROTOCOLS
        && has(response, &header::UPGRADE, protocol)
        && options.any(|option| option.trim().eq_ignore_ascii_case("Upgrade"));

    switches.then_some(()).ok_or(Refusal::NoSwitch(protocol))
}

fn has(response: &Response<Body>, name: &HeaderName, value: &str) -> bool {
    let found = response.headers().get(name);

    found.is_some_and(|found| found.as_bytes().eq_ignore_ascii_case(value.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, headers: &[(&str, &str)]) -> Response<Body> {
        let mut response = Response::builder().status(status);
        for (name, value) in headers {
            response = response.header(*name, *value);
        }

        response.body(Body::empty()).unwrap()
    }

    #[test]
    fn an_upgrade_may_stand_among_other_options_of_the_connection() {
        for connection in [
            &[("connection", "Upgrade")][..],
            &[("connection", "keep-alive, upgrade")],
            &[("connection", "keep-alive"), ("connection", "Upgrade")],
        ] {
            let headers = [connection, &[("upgrade", "SPDY/3.1")]].concat();

            assert!(
                switches_to(&answer(101, &headers), SPDY).is_ok(),
                "{headers:?}"
            );
        }
    }

    #[test]
    fn what_is_no_upgrade_is_none() {
        let connection = ("connection", "Upgrade");
        for (status, headers) in [
            (200, &[connection, ("upgrade", "SPDY/3.1")][..]),
            (101, &[connection]),
            (101, &[connection, ("upgrade", "websocket")]),
            (101, &[("upgrade", "SPDY/3.1")]),
            (101, &[("connection", "close"), ("upgrade", "SPDY/3.1")]),
        ] {
            assert!(
                switches_to(&answer(status, headers), SPDY).is_err(),
                "{headers:?}"
            );
        }
    }
}
