//! The opening handshake of a WebSocket (RFC 6455, section 4.1) by way of kube's client, with
//! subprotocols of our choice: `Client::connect` of kube offers its own ones only.

use hyper::{
    HeaderMap, Request, Response, StatusCode,
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

/// Makes a WebSocket of a request. Returns that one of `protocols` which the server chose.
pub(super) async fn upgrade(
    client: &Client,
    request: Request<Vec<u8>>,
    protocols: &[&'static str],
) -> Result<(WebSocketStream<TokioIo<Upgraded>>, &'static str), Error> {
    let key = generate_key();
    let (mut parts, body) = request.into_parts();
    offer(&mut parts.headers, &key, protocols).map_err(Error::HttpError)?;
    let response = client
        .send(Request::from_parts(parts, Body::from(body)))
        .await?;
    let status = response.status();
    if status.is_client_error() || status.is_server_error() {
        return Err(refusal(response).await?);
    }
    let protocol = verify(&response, &key, protocols).map_err(Error::UpgradeConnection)?;
    let upgraded = hyper::upgrade::on(response).await.map_err(|error| {
        Error::UpgradeConnection(UpgradeConnectionError::GetPendingUpgrade(error))
    })?;
    let websocket =
        WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Client, None).await;

    Ok((websocket, protocol))
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

/// What the server says instead: a `metav1.Status`, or the words of something before it.
async fn refusal(response: Response<Body>) -> Result<Error, Error> {
    let code = response.status().as_u16();
    let body = response.into_body().collect_bytes().await?;
    let status = serde_json::from_slice(&body).unwrap_or_else(|_| {
        Status::failure(String::from_utf8_lossy(&body).trim(), "no status").with_code(code)
    });

    Ok(Error::Api(Box::new(status)))
}

fn verify(
    response: &Response<Body>,
    key: &str,
    protocols: &[&'static str],
) -> Result<&'static str, UpgradeConnectionError> {
    let has = |name: HeaderName, value: &str| {
        let found = response.headers().get(name);
        found.is_some_and(|found| found.as_bytes().eq_ignore_ascii_case(value.as_bytes()))
    };
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(UpgradeConnectionError::ProtocolSwitch(response.status()));
    }
    if !has(header::UPGRADE, "websocket") {
        return Err(UpgradeConnectionError::MissingUpgradeWebSocketHeader);
    }
    if !has(header::CONNECTION, "Upgrade") {
        return Err(UpgradeConnectionError::MissingConnectionUpgradeHeader);
    }
    let accept = response.headers().get(header::SEC_WEBSOCKET_ACCEPT);
    if accept.is_none_or(|accept| accept != &derive_accept_key(key.as_bytes())) {
        return Err(UpgradeConnectionError::SecWebSocketAcceptKeyMismatch);
    }

    protocols
        .iter()
        .find(|protocol| has(header::SEC_WEBSOCKET_PROTOCOL, protocol))
        .copied()
        .ok_or(UpgradeConnectionError::SecWebSocketProtocolMismatch)
}
