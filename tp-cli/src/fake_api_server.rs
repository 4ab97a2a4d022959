//! An API server for tests, over HTTP, with answers of the test's choice.

use std::{net::Ipv4Addr, sync::Arc};

use serde_json::{Value, json};
use tempfile::NamedTempFile;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
};

#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) method: String,
    /// With the query.
    pub(crate) path: String,
    pub(crate) body: String,
}

/// A kubeconfig whose current context is a server that answers each request with a status and a
/// value: an object, or plain text.
pub(crate) async fn kubeconfig(
    answer: impl Fn(&Asked) -> (u16, Value) + Send + Sync + 'static,
) -> NamedTempFile {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let server = format!("http://{}", listener.local_addr().unwrap());
    let answer = Arc::new(answer);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, Arc::clone(&answer)));
        }
    });
    let kubeconfig = NamedTempFile::new().unwrap();
    let config = json!({
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u", "namespace": "shop"}}],
        "clusters": [{"name": "c", "cluster": {"server": server}}],
        "users": [{"name": "u", "user": {}}],
    });
    std::fs::write(kubeconfig.path(), config.to_string()).unwrap();

    kubeconfig
}

pub(crate) fn refused(code: u16) -> (u16, Value) {
    let reason = if code == 404 { "NotFound" } else { "Forbidden" };
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "no",
        "reason": reason, "code": code,
    });

    (code, status)
}

/// Answers the requests of one connection (RFC 9112).
async fn serve(stream: TcpStream, answer: Arc<impl Fn(&Asked) -> (u16, Value)>) {
    let mut stream = BufReader::new(stream);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if stream.read_line(&mut head).await.unwrap_or(0) == 0 {
                return;
            }
        }
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            name.eq_ignore_ascii_case("content-length")
                .then(|| value.parse().unwrap())
        });
        let mut body = vec![0; length.unwrap_or(0)];
        stream.read_exact(&mut body).await.unwrap();
        let mut words = head.split(' ').map(str::to_owned);
        let asked = Asked {
            method: words.next().unwrap(),
            path: words.next().unwrap(),
            body: String::from_utf8(body).unwrap(),
        };
        let (status, object) = answer(&asked);
        let (kind, object) = match object {
            Value::String(text) => ("text/plain", text),
            object => ("application/json", object.to_string()),
        };
        let answer = format!(
            "HTTP/1.1 {status} So\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n{object}",
            object.len()
        );
        stream.write_all(answer.as_bytes()).await.unwrap();
    }
}
