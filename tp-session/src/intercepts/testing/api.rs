//! An API server as far as intercepts need it.

use std::{
    collections::{BTreeMap, VecDeque},
    fs,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpListener,
    time::sleep,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{ServerConfig, pki_types::PrivateKeyDer},
};
use tokio_util::task::AbortOnDropHandle;
use tp_process::sync::lock;
use tp_proto::local::ConnectRequest;

use super::super::super::{cluster::Cluster, renewal::Login};

/// What becomes of a request to create an Intercept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) enum StagedCreation {
    /// The object is made, and the connection cut.
    Lost,
    /// The connection is cut, and the object made after this time.
    Late(Duration),
    /// The object is made, and this is the code of the answer.
    Fails(u16),
    /// Nothing is made, and this is the answer: code and message.
    Refused(u16, String),
}

/// An API server to which everybody is alice. It has Intercepts alone.
#[derive(Clone, Default)]
struct StagedObjects {
    /// By name.
    objects: Arc<Mutex<BTreeMap<String, Value>>>,
    refusal: Arc<Mutex<Option<(u16, String)>>>,
    creations: Arc<Mutex<VecDeque<StagedCreation>>>,
    made: Arc<AtomicU32>,
}

/// The server, and whoever uses it.
pub(in super::super) struct StagedApi {
    /// By name.
    pub(in super::super) objects: Arc<Mutex<BTreeMap<String, Value>>>,
    /// The answer to whoever creates an Intercept, if it is no success: code and message.
    pub(in super::super) refusal: Arc<Mutex<Option<(u16, String)>>>,
    /// What becomes of the next requests to create one.
    pub(in super::super) creations: Arc<Mutex<VecDeque<StagedCreation>>>,
    pub(in super::super) login: Arc<Login>,
    staged: StagedObjects,
    _file: tempfile::NamedTempFile,
    _serving: AbortOnDropHandle<()>,
}

impl StagedApi {
    pub(in super::super) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let staged = StagedObjects::default();
        let serving = serve(listener, staged.clone());
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), kubeconfig(address)).unwrap();
        let request = ConnectRequest {
            kubeconfigs: vec![file.path().display().to_string()],
            namespace: "shop".to_owned(),
            ..ConnectRequest::default()
        };
        let serving = AbortOnDropHandle::new(tokio::spawn(serving));
        let cluster = Arc::new(Cluster::load(&request).await.unwrap());

        Self {
            objects: Arc::clone(&staged.objects),
            refusal: Arc::clone(&staged.refusal),
            creations: Arc::clone(&staged.creations),
            staged,
            login: Arc::new(Login::new(request, "alice", cluster)),
            _file: file,
            _serving: serving,
        }
    }

    /// Makes an object of somebody else.
    pub(in super::super) fn make(&self, body: Value) {
        self.staged.make(body);
    }
}

fn kubeconfig(server: SocketAddr) -> String {
    format!(
        "current-context: lab\ncontexts: [{{name: lab, context: {{cluster: lab, user: me}}}}]\n\
         clusters: [{{name: lab, cluster: {{server: 'https://{server}', \
         insecure-skip-tls-verify: true}}}}]\nusers: [{{name: me, user: {{token: t}}}}]\n"
    )
}

async fn serve(listener: TcpListener, staged: StagedObjects) {
    let acceptor = acceptor();
    while let Ok((stream, _)) = listener.accept().await {
        let Ok(stream) = acceptor.accept(stream).await else {
            continue;
        };
        let Some((line, body, stream)) = request(stream).await else {
            continue;
        };
        if let Some((code, answer)) = staged.answer(&line, body) {
            write(stream, code, &answer).await;
        }
    }
}

impl StagedObjects {
    /// `None` if the connection is cut.
    fn answer(&self, line: &str, mut body: Value) -> Option<(u16, Value)> {
        let name = line.rsplit('/').next().unwrap_or_default();
        if line.ends_with("/selfsubjectreviews") {
            body["status"] = json!({"userInfo": {"username": "alice"}});
            return Some((200, body));
        }
        let mut objects = lock(&self.objects);
        let answer = match line.split(' ').next() {
            Some("POST") => {
                drop(objects);
                return self.create(body);
            }
            Some("DELETE") => {
                let wanted = &body["preconditions"]["uid"];
                match objects.get(name) {
                    Some(found) if *wanted != found["metadata"]["uid"] => failure(409, "another"),
                    Some(_) => {
                        objects.remove(name);
                        (
                            200,
                            json!({"apiVersion": "v1", "kind": "Status", "status": "Success"}),
                        )
                    }
                    None => failure(404, "not found"),
                }
            }
            Some("GET") if objects.contains_key(name) => (200, objects[name].clone()),
            _ => failure(404, "not found"),
        };

        Some(answer)
    }

    fn create(&self, body: Value) -> Option<(u16, Value)> {
        if let Some((code, message)) = lock(&self.refusal).clone() {
            return Some(failure(code, &message));
        }
        let next = lock(&self.creations).pop_front();
        match next {
            None => Some(self.make(body)),
            Some(StagedCreation::Lost) => {
                self.make(body);
                None
            }
            Some(StagedCreation::Late(pause)) => {
                let this = self.clone();
                tokio::spawn(async move {
                    sleep(pause).await;
                    this.make(body);
                });
                None
            }
            Some(StagedCreation::Fails(code)) => {
                self.make(body);
                Some(failure(code, "out of order"))
            }
            Some(StagedCreation::Refused(code, message)) => Some(failure(code, &message)),
        }
    }

    fn make(&self, mut body: Value) -> (u16, Value) {
        let name = body["metadata"]["name"].as_str().unwrap().to_owned();
        let mut objects = lock(&self.objects);
        if objects.contains_key(&name) {
            return failure(409, "it exists already");
        }
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        // Some are made in one second.
        let created = Timestamp::from_second(1_700_000_000 + i64::from(number) / 2).unwrap();
        body["metadata"]["creationTimestamp"] = json!(created.to_string());
        body["metadata"]["uid"] = json!(format!("uid-{number}"));
        objects.insert(name, body.clone());

        (200, body)
    }
}

fn failure(code: u16, message: &str) -> (u16, Value) {
    let reason = match code {
        404 => "NotFound",
        409 => "AlreadyExists",
        _ => "",
    };
    let status = json!({"apiVersion": "v1", "kind": "Status", "status": "Failure",
        "message": message, "reason": reason, "code": code});

    (code, status)
}

async fn write(mut stream: impl AsyncWrite + Unpin, code: u16, answer: &Value) {
    let answer = answer.to_string();
    let head = format!(
        "HTTP/1.1 {code} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
         connection: close\r\n\r\n",
        answer.len()
    );
    // A client that has gone reads nothing.
    drop(stream.write_all((head + &answer).as_bytes()).await);
    drop(stream.shutdown().await);
}

/// kube sends credentials over TLS only.
fn acceptor() -> TlsAcceptor {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key);

    TlsAcceptor::from(Arc::new(config.unwrap()))
}

/// Method and path, and the body.
async fn request<S: AsyncRead + Unpin>(mut stream: S) -> Option<(String, Value, S)> {
    let mut bytes = Vec::new();
    loop {
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
        let text = String::from_utf8(bytes.clone()).ok()?;
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            continue;
        };
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            let is_length = name.eq_ignore_ascii_case("content-length");
            is_length.then(|| value.parse().ok()).flatten()
        });
        if body.len() >= length.unwrap_or(0) {
            let body = serde_json::from_str(body).unwrap_or(Value::Null);
            let line = head.split(" HTTP").next()?.split('?').next()?.to_owned();
            return Some((line, body, stream));
        }
    }
}
