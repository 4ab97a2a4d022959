//! What the kubelet's probes ask.

use std::{sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::timeout,
};

const TIMEOUT: Duration = Duration::from_secs(2);
const MAX_REQUEST: usize = 2048;
const MAX_CONNECTIONS: usize = 32;

/// Whether this replica can serve, and if not, why.
pub(crate) trait Health: Send + Sync + 'static {
    fn ready(&self) -> Result<(), String>;
}

/// Answers until it is aborted.
pub(crate) async fn serve(listener: TcpListener, health: Arc<dyn Health>) {
    let mut answers = tokio::task::JoinSet::new();
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        while answers.try_join_next().is_some() {}
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        // Beyond that a probe finds its connection closed.
        if let Ok(permit) = Arc::clone(&room).try_acquire_owned() {
            let health = Arc::clone(&health);
            answers.spawn(async move {
                let _permit = permit;
                if timeout(TIMEOUT, answer(stream, &*health)).await.is_err() {
                    tracing::trace!("A health probe was too slow");
                }
            });
        }
    }
}

async fn answer(mut stream: TcpStream, health: &dyn Health) {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") && request.len() < MAX_REQUEST {
        match stream.read_buf(&mut request).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
    }
    let response = respond(&request, health);
    if let Err(error) = stream.write_all(response.as_bytes()).await {
        tracing::trace!(%error, "A health probe went away");
    }
}

fn respond(request: &[u8], health: &dyn Health) -> String {
    let (status, body) = if request.starts_with(b"GET /healthz ") {
        ("200 OK", "ok".to_owned())
    } else if request.starts_with(b"GET /readyz ") {
        match health.ready() {
            Ok(()) => ("200 OK", "ok".to_owned()),
            Err(reason) => ("503 Service Unavailable", reason),
        }
    } else {
        ("404 Not Found", "not found".to_owned())
    };

    format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: \
         close\r\n\r\n{body}",
        body.len()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Ready(bool);

    impl Health for Ready {
        fn ready(&self) -> Result<(), String> {
            self.0.then_some(()).ok_or_else(|| "not yet".into())
        }
    }

    #[test]
    fn readiness_says_why_not() {
        let response = respond(b"GET /readyz HTTP/1.1\r\n\r\n", &Ready(false));

        assert!(response.starts_with("HTTP/1.1 503"));
        assert!(response.ends_with("not yet"));
    }

    #[test]
    fn a_process_that_waits_is_healthy() {
        let response = respond(b"GET /healthz HTTP/1.1\r\n\r\n", &Ready(false));

        assert!(response.starts_with("HTTP/1.1 200"));
    }
}
