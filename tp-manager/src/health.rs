//! Answers the kubelet's probes.

use std::{convert::Infallible, future::ready, sync::Arc, time::Duration};

use hyper::{
    Method, Request, Response, StatusCode,
    header::{CONTENT_TYPE, HeaderValue},
    server::conn::http1::Builder,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    sync::Semaphore,
    time::timeout,
};

/// Bounds a whole connection.
const TIMEOUT: Duration = Duration::from_secs(2);
const MAX_REQUEST: usize = 2048;
/// The smallest that hyper accepts.
const BUFFER: usize = 8192;
const MAX_CONNECTIONS: usize = 32;

/// The readiness of this replica; the error says why it cannot serve.
pub(crate) trait Health: Send + Sync + 'static {
    fn ready(&self) -> Result<(), String>;
}

/// Runs until it is aborted.
pub(crate) async fn serve(listener: TcpListener, health: Arc<dyn Health>) {
    let mut answers = tokio::task::JoinSet::new();
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        while answers.try_join_next().is_some() {}
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        // Further connections are closed without an answer.
        if let Ok(permit) = Arc::clone(&slots).try_acquire_owned() {
            let health = Arc::clone(&health);
            answers.spawn(async move {
                let _permit = permit;
                if timeout(TIMEOUT, answer(stream, &*health)).await.is_err() {
                    tracing::trace!("Health probe too slow");
                }
            });
        }
    }
}

/// Answers the one request of a connection.
async fn answer<I>(stream: I, health: &dyn Health)
where
    I: AsyncRead + AsyncWrite + Unpin,
{
    let answered = Builder::new()
        .keep_alive(false)
        // The client may shut down its sending side before the answer.
        .half_close(true)
        .auto_date_header(false)
        .max_header_size(MAX_REQUEST)
        .max_buf_size(BUFFER)
        .serve_connection(
            TokioIo::new(stream),
            service_fn(|request| ready(Ok::<_, Infallible>(respond(&request, health)))),
        )
        .await;
    if let Err(error) = answered {
        tracing::trace!(%error, "Health probe gone");
    }
}

fn respond<B>(request: &Request<B>, health: &dyn Health) -> Response<String> {
    let target = request.uri().path_and_query().map(|it| it.as_str());
    let (status, body) = match (request.method(), target) {
        (&Method::GET, Some("/healthz")) => (StatusCode::OK, "ok".to_owned()),
        (&Method::GET, Some("/readyz")) => match health.ready() {
            Ok(()) => (StatusCode::OK, "ok".to_owned()),
            Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, reason),
        },
        _ => (StatusCode::NOT_FOUND, "not found".to_owned()),
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let text = HeaderValue::from_static("text/plain");
    response.headers_mut().insert(CONTENT_TYPE, text);

    response
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _, duplex},
        net::TcpStream,
    };

    use super::*;

    struct Ready(bool);

    impl Health for Ready {
        fn ready(&self) -> Result<(), String> {
            self.0.then_some(()).ok_or_else(|| "not yet".into())
        }
    }

    /// The answer to these bytes, from a client that sends no more.
    async fn answered(request: &str, is_ready: bool) -> String {
        let (mut client, server) = duplex(64 << 10);
        client.write_all(request.as_bytes()).await.unwrap();
        client.shutdown().await.unwrap();
        answer(server, &Ready(is_ready)).await;
        let mut response = String::new();
        client.read_to_string(&mut response).await.unwrap();

        response
    }

    #[tokio::test]
    async fn readiness_says_why_not() {
        let response = answered("GET /readyz HTTP/1.1\r\n\r\n", false).await;

        assert!(response.starts_with("HTTP/1.1 503 "), "{response}");
        assert!(response.ends_with("\r\n\r\nnot yet"), "{response}");
    }

    #[tokio::test]
    async fn a_process_that_waits_is_healthy() {
        let response = answered("GET /healthz HTTP/1.1\r\n\r\n", false).await;

        let mut lines: Vec<&str> = response.split("\r\n").collect();
        lines[1..4].sort_unstable();
        let expected = [
            "HTTP/1.1 200 OK",
            "connection: close",
            "content-length: 2",
            "content-type: text/plain",
            "",
            "ok",
        ];
        assert_eq!(lines, expected);
    }

    #[tokio::test]
    async fn all_else_is_not_found() {
        for line in [
            "GET / HTTP/1.1",
            "GET /readyz?verbose HTTP/1.1",
            "GET /readyz/ HTTP/1.1",
            "POST /readyz HTTP/1.1",
        ] {
            let response = answered(&format!("{line}\r\n\r\n"), true).await;

            assert!(response.starts_with("HTTP/1.1 404 "), "{line}: {response}");
        }
    }

    #[tokio::test]
    async fn a_request_that_is_too_long_is_not_read() {
        let long = "x".repeat(MAX_REQUEST);

        let response = answered(&format!("GET /healthz HTTP/1.1\r\nx: {long}\r\n\r\n"), true).await;

        assert!(response.starts_with("HTTP/1.1 431 "), "{response}");
    }

    #[tokio::test]
    async fn a_probe_is_closed_without_an_answer_where_too_many_are_open() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let _serving = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(serve(
            listener,
            Arc::new(Ready(true)),
        )));
        let mut open = Vec::new();
        for _ in 0..MAX_CONNECTIONS {
            open.push(TcpStream::connect(address).await.unwrap());
        }

        let mut further = TcpStream::connect(address).await.unwrap();
        let read = timeout(TIMEOUT / 2, further.read(&mut [0; 16])).await;

        assert!(matches!(read, Ok(Ok(0) | Err(_))), "{read:?}");
    }
}
