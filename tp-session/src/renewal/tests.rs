use std::{fs, future::pending, net::SocketAddr};

use futures::FutureExt as _;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    sync::mpsc,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{ServerConfig, pki_types::PrivateKeyDer},
};
use tp_core::dns::Zone;

use super::*;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// A world in which hours pass at once.
struct Lab {
    now: Duration,
    end: Duration,
    /// When the machine falls asleep, and for how long.
    sleep: Option<(Duration, Duration)>,
    /// The time until which the API server does not answer.
    away_until: Duration,
    attempts: Vec<Duration>,
    reports: Vec<(Duration, Option<String>)>,
}

impl Lab {
    fn until(end: Duration) -> Self {
        Self {
            now: Duration::ZERO,
            end,
            sleep: None,
            away_until: Duration::ZERO,
            attempts: Vec::new(),
            reports: Vec::new(),
        }
    }

    fn run(mut self) -> Self {
        assert!(keep(&mut self).now_or_never().is_none());
        self
    }
}

impl World for &mut Lab {
    fn clock(&self) -> Duration {
        self.now
    }

    async fn pause(&mut self, pause: Duration) {
        if self.now + pause > self.end {
            pending::<()>().await;
        }
        self.now += pause;
        if let Some((_, length)) = self.sleep.take_if(|(begin, _)| *begin <= self.now) {
            self.now += length;
        }
    }

    async fn renew(&mut self) -> Result<(), Fault> {
        self.attempts.push(self.now);
        if self.now < self.away_until {
            return Err(Fault::new(FaultKind::Unavailable, "nobody answers"));
        }
        Ok(())
    }

    fn report(&mut self, reason: Option<String>) {
        self.reports.push((self.now, reason));
    }
}

#[test]
fn a_session_is_renewed_every_hour() {
    let lab = Lab::until(5 * HOUR + HOUR / 2).run();

    assert_eq!(lab.attempts, [1, 2, 3, 4, 5].map(|hours| hours * HOUR));
    assert!(lab.reports.iter().all(|(_, reason)| reason.is_none()));
}

#[test]
fn a_machine_that_slept_renews_its_session_within_a_minute() {
    let wakes = 7 * HOUR + HOUR / 2;
    let mut lab = Lab::until(wakes + 2 * MINUTE);
    lab.sleep = Some((HOUR / 2, 7 * HOUR));

    let lab = lab.run();

    let [first] = lab.attempts.as_slice() else {
        panic!("{:?}", lab.attempts);
    };
    assert!((wakes..=wakes + MINUTE).contains(first), "{first:?}");
}

#[test]
fn a_renewal_that_fails_is_repeated_and_told_of_when_the_end_is_near() {
    let mut lab = Lab::until(9 * HOUR);
    lab.away_until = 7 * HOUR + HOUR / 2;

    let lab = lab.run();

    let failed = lab
        .attempts
        .iter()
        .filter(|at| **at < lab.away_until)
        .count();
    assert!(
        (72..150).contains(&failed),
        "{failed} attempts in 6.5 hours"
    );
    let (begin, reason) = &lab.reports[0];
    assert!(
        (7 * HOUR..7 * HOUR + 5 * MINUTE).contains(begin),
        "{begin:?}"
    );
    let reason = reason.as_ref().unwrap();
    assert!(reason.contains("ends in 5"), "{reason}");
    assert!(reason.contains("nobody answers"), "{reason}");
    let (taken_back, nothing) = &lab
        .reports
        .iter()
        .find(|(at, _)| *at >= lab.away_until)
        .unwrap();
    assert!(*taken_back < lab.away_until + 5 * MINUTE, "{taken_back:?}");
    assert_eq!(*nothing, None);
    assert_eq!(lab.attempts.last(), Some(&(*taken_back + HOUR)));
}

fn kubeconfig(current: &str, server: &str, token: &str) -> String {
    let context = |name| format!("{{name: {name}, context: {{cluster: {name}, user: me}}}}");
    let cluster = |name, server| {
        format!(
            "{{name: {name}, cluster: {{server: 'https://{server}', \
                 insecure-skip-tls-verify: true}}}}"
        )
    };
    format!(
        "current-context: {current}\ncontexts: [{}, {}]\nclusters: [{}, {}]\nusers: [{{name: me, \
         user: {{token: {token}}}}}]\n",
        context("lab"),
        context("prod"),
        cluster("lab", server),
        cluster("prod", "192.0.2.9"),
    )
}

#[tokio::test]
async fn a_kubeconfig_is_read_again_as_long_as_it_leads_to_the_same_place() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let write = |text: String| fs::write(file.path(), text).unwrap();
    let request = ConnectRequest {
        kubeconfigs: vec![file.path().display().to_string()],
        ..ConnectRequest::default()
    };
    write(kubeconfig("lab", "192.0.2.1", "old"));
    let cluster = Arc::new(Cluster::load(&request).await.unwrap());
    let login = Login::new(request, "alice", cluster);

    write(kubeconfig("prod", "192.0.2.1", "new"));
    let same = login.reload().await.unwrap();
    assert_eq!(same.destination.context, "lab");
    write(kubeconfig("lab", "192.0.2.1", "new, as-groups: [dev]"));
    let same = login.reload().await.unwrap();
    assert_eq!(same.destination.impersonate_groups, ["dev"]);

    write(kubeconfig("lab", "192.0.2.1", "new, as: bob"));
    assert!(login.reload().await.is_none());
    write(kubeconfig("lab", "192.0.2.2", "new"));
    assert!(login.reload().await.is_none());
    write("no kubeconfig".to_owned());
    assert!(login.reload().await.is_none());
}

/// An API server to which everybody is alice, in the group that their token names.
async fn api_server() -> (SocketAddr, mpsc::UnboundedReceiver<(String, Value)>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let acceptor = acceptor();
    let address = listener.local_addr().unwrap();
    let (seen_tx, seen) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut made = 0;
        while let Ok((stream, _)) = listener.accept().await {
            let stream = acceptor.accept(stream).await.unwrap();
            let (head, body, mut stream) = request(stream).await;
            let line = head.split('?').next().unwrap().to_owned();
            let mut answer = body.clone();
            if line.ends_with("/selfsubjectreviews") {
                let token = head.split("Bearer ").nth(1).unwrap().lines().next();
                answer["status"] = json!({"userInfo": {"username": "alice", "groups": [token]}});
            } else if line.starts_with("POST") {
                made += 1;
                answer["metadata"]["name"] = json!(format!("made-{made}"));
                answer["metadata"]["uid"] = json!(format!("uid-{made}"));
            } else {
                answer = json!({"apiVersion": "v1", "kind": "Status", "status": "Success"});
            }
            let answer = answer.to_string();
            let length = answer.len();
            let head = format!(
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\
                 connection: close\r\n\r\n"
            );
            stream.write_all((head + &answer).as_bytes()).await.unwrap();
            stream.shutdown().await.unwrap();
            seen_tx.send((line, body)).unwrap();
        }
    });

    (address, seen)
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

async fn request<S: AsyncRead + Unpin>(mut stream: S) -> (String, Value, S) {
    let mut bytes = Vec::new();
    loop {
        stream.read_buf(&mut bytes).await.unwrap();
        let text = String::from_utf8(bytes.clone()).unwrap();
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            continue;
        };
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            name.eq_ignore_ascii_case("content-length")
                .then(|| value.parse().unwrap())
        });
        if body.len() >= length.unwrap_or(0) {
            let body = serde_json::from_str(body).unwrap_or(Value::Null);
            return (head.to_owned(), body, stream);
        }
    }
}

#[tokio::test]
async fn a_renewal_carries_the_groups_of_the_day_and_replaces_the_last_one() {
    let (server, mut seen) = api_server().await;
    let file = tempfile::NamedTempFile::new().unwrap();
    let log_in = |token| fs::write(file.path(), kubeconfig("lab", &server.to_string(), token));
    log_in("monday").unwrap();
    let request = ConnectRequest {
        kubeconfigs: vec![file.path().display().to_string()],
        namespace: "shop".to_owned(),
        ..ConnectRequest::default()
    };
    let cluster = Arc::new(Cluster::load(&request).await.unwrap());
    let key = KeyHash::of_spki(b"key");
    let mut renewal = Renewal {
        login: Arc::new(Login::new(request, "alice", cluster)),
        shared: Arc::new(Shared::new(Zone::new("cluster.local", "shop", []))),
        session: SessionRef {
            namespace: "shop".to_owned(),
            name: "alice-1".to_owned(),
            uid: "first".to_owned(),
        },
        key,
        newest: None,
    };

    renewal.renew().await.unwrap();
    log_in("tuesday").unwrap();
    renewal.renew().await.unwrap();

    let mut requests = Vec::new();
    while let Ok(request) = seen.try_recv() {
        requests.push(request);
    }
    let sessions = "/apis/tp.internal/v1alpha1/namespaces/shop/sessions";
    let lines: Vec<&str> = requests.iter().map(|(line, _)| line.as_str()).collect();
    let review = "POST /apis/authentication.k8s.io/v1/selfsubjectreviews";
    let make = format!("POST {sessions}");
    let delete = format!("DELETE {sessions}/made-1");
    assert_eq!(lines, [review, &make, review, &make, &delete]);
    for (index, group) in [(1, "monday"), (3, "tuesday")] {
        let made = &requests[index].1;
        assert_eq!(made["spec"]["user"]["username"], "alice");
        assert_eq!(made["spec"]["user"]["groups"], json!([group]));
        assert_eq!(made["spec"]["renews"], "first");
        assert_eq!(made["spec"]["keyHash"], key.to_string());
        assert_eq!(made["metadata"]["ownerReferences"][0]["uid"], "first");
        assert_eq!(made["metadata"]["generateName"], "alice-1-");
    }
}
