//! Workloads to intercept, handlers at the workstation, and callers in the cluster.

use std::time::Duration;

use serde_json::Value;
use tp_e2e::{
    applied::{Applied, Subject, binding},
    cluster::{testbed, text},
    process::{Finished, PATIENCE, Running, eventually, run},
    user::Account,
    workstation::Workstation,
};

/// Until something is seen of which nobody promises when.
pub(crate) const CHANGE: Duration = Duration::from_secs(10);
/// Promised for new connections, once everybody can hear of a change: of an intercept, of its local port,
/// or that the workstation is back.
pub(crate) const HEARD: Duration = Duration::from_secs(2);
/// Promised for new connections, until the pods have them when nobody is heard.
pub(crate) const LEASE: Duration = Duration::from_secs(5);
/// For a pod to start.
const START: Duration = Duration::from_secs(60);

/// The port of the echo server's HTTP.
pub(crate) const HTTP: u16 = 8080;
/// A port of it that echoes.
pub(crate) const ECHO: u16 = 7000;

/// A deployment of the echo server in the namespace shop with a service of its name, whose port 80
/// leads to [`HTTP`], and the right of `dev` to intercept there. Gone when dropped.
pub(crate) struct Target {
    pub(crate) name: &'static str,
    _applied: Applied,
}

impl Target {
    #[track_caller]
    pub(crate) fn new(name: &'static str, replicas: u32) -> Self {
        testbed().install_tp();
        let manifest = format!(
            "
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}, namespace: shop}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      automountServiceAccountToken: false
      terminationGracePeriodSeconds: 0
      containers:
      - name: echo
        image: localhost/tp-testbed/echo:1
        imagePullPolicy: Never
        ports: [{{name: http, containerPort: {HTTP}}}, {{name: echo, containerPort: {ECHO}}}]
        readinessProbe: {{tcpSocket: {{port: {ECHO}}}, periodSeconds: 1}}
---
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: shop}}
spec:
  selector: {{app: {name}}}
  ports: [{{name: http, port: 80, targetPort: http}}, {{name: echo, port: {ECHO}}}]
"
        ) + &may_intercept(name);
        let objects = ["deployment", "service", "rolebinding"].map(|kind| format!("{kind}/{name}"));
        let [deployment, service, binding] = &objects;
        let applied = Applied::new(
            &manifest,
            &["--namespace=shop", deployment, service, binding],
        );
        let target = Self {
            name,
            _applied: applied,
        };
        target.wait_for_rollout();

        target
    }

    #[track_caller]
    pub(crate) fn wait_for_rollout(&self) {
        let deployment = format!("deployment/{}", self.name);
        let timeout = format!("--timeout={}s", START.as_secs());
        let mut command = testbed().kubectl_command(&[
            "rollout",
            "status",
            &deployment,
            "--namespace=shop",
            &timeout,
        ]);
        run(&mut command, START).expect_success();
    }

    /// `http://ADDRESS:PORT/` of its service.
    #[track_caller]
    pub(crate) fn url(&self) -> String {
        format!("http://{}:80/", testbed().service_ip("shop", self.name))
    }

    /// Names and addresses of its pods.
    #[track_caller]
    pub(crate) fn pods(&self) -> Vec<Value> {
        let selector = format!("--selector=app={}", self.name);
        let pods = testbed().kubectl(&[
            "get",
            "pods",
            "--namespace=shop",
            &selector,
            "--output=json",
        ]);
        let mut pods: Value = serde_json::from_str(&pods).expect("kubectl prints JSON");

        match pods["items"].take() {
            Value::Array(pods) => pods,
            other => panic!("a list is expected instead of {other}"),
        }
    }

    /// `http://ADDRESS:8080/` of each of its pods.
    #[track_caller]
    pub(crate) fn pod_urls(&self) -> Vec<String> {
        let pods = self.pods();
        let addresses = pods.iter().map(|pod| text(&pod["status"]["podIP"]));

        addresses
            .map(|address| format!("http://{address}:{HTTP}/"))
            .collect()
    }

    /// How often containers of its pods were restarted.
    #[track_caller]
    pub(crate) fn restarts(&self) -> u64 {
        let count = |pod: &Value| pod["status"]["containerStatuses"][0]["restartCount"].as_u64();

        self.pods().iter().filter_map(count).sum()
    }
}

/// A YAML document: the binding of this name that lets `dev` intercept in shop.
pub(crate) fn may_intercept(name: &str) -> String {
    binding(name, "shop", "tp-intercept", Subject::User("dev"))
}

/// A web server at 127.0.0.1 of the workstation that says who it is.
pub(crate) struct Handler {
    server: Running,
}

/// What it says.
pub(crate) const FROM_WORKSTATION: &str = "from the workstation";

impl Handler {
    #[track_caller]
    pub(crate) fn start(workstation: &Workstation, port: u16) -> Self {
        Self::answering(200, workstation, port)
    }

    /// One whose every answer is an error.
    #[track_caller]
    pub(crate) fn failing(workstation: &Workstation, port: u16) -> Self {
        Self::answering(500, workstation, port)
    }

    #[track_caller]
    fn answering(status: u16, workstation: &Workstation, port: u16) -> Self {
        let program = format!(
            "import http.server\n\
             class Handler(http.server.BaseHTTPRequestHandler):\n\
             \x20   protocol_version = 'HTTP/1.1'\n\
             \x20   def do_GET(self):\n\
             \x20       body = b'{FROM_WORKSTATION}'\n\
             \x20       self.send_response({status})\n\
             \x20       self.send_header('Content-Length', str(len(body)))\n\
             \x20       self.end_headers()\n\
             \x20       self.wfile.write(body)\n\
             server = http.server.ThreadingHTTPServer(('127.0.0.1', {port}), Handler)\n\
             print('listening', flush=True)\n\
             server.serve_forever()"
        );
        let mut server =
            Running::start(&mut workstation.command(&["/usr/bin/python3", "-c", &program]));
        server.wait_for("listening", PATIENCE);

        Self { server }
    }
}

impl Handler {
    pub(crate) fn pid(&self) -> u32 {
        self.server.pid()
    }
}

/// Asks from the network of the first node.
#[track_caller]
pub(crate) fn ask(url: &str) -> Finished {
    curl(&["--max-time", "5", url])
}

/// Asks for a second. Of what is promised for new connections, the last one may begin when it is due.
#[track_caller]
pub(crate) fn ask_soon(url: &str) -> Finished {
    curl(&["--max-time", "1", url])
}

/// The code of the answer, as HTTP has it.
#[track_caller]
pub(crate) fn ask_for_code(url: &str) -> String {
    let code = ["--output", "/dev/null", "--write-out", "%{http_code}"];

    curl(&[&code[..], &["--max-time", "5", url]].concat()).expect_success()
}

#[track_caller]
fn curl(words: &[&str]) -> Finished {
    let mut command = testbed().inside(&testbed().namespace("1"));
    command.args(["curl", "-sS"]).args(words);

    run(&mut command, PATIENCE)
}

/// Waits until a caller in the cluster is answered by the workstation, for as long as is promised.
#[track_caller]
pub(crate) fn expect_workstation(url: &str) {
    eventually("an answer from the workstation", HEARD, || {
        let answer = ask_soon(url);
        match answer.stdout == FROM_WORKSTATION {
            true => Ok(()),
            false => Err(answer.to_string()),
        }
    });
}

/// Waits until a caller in the cluster is answered by a pod, for as long as is promised after a change that
/// was told.
#[track_caller]
pub(crate) fn expect_pod(url: &str) {
    expect_pod_within(HEARD, url);
}

/// Waits until a caller in the cluster is answered by a pod, for as long as is promised where nobody is left
/// to tell.
#[track_caller]
pub(crate) fn expect_pod_after_lease(url: &str) {
    expect_pod_within(LEASE, url);
}

#[track_caller]
fn expect_pod_within(bound: Duration, url: &str) {
    eventually("an answer from the pod", bound, || {
        let answer = ask_soon(url);
        match answer.stdout.contains("\"pod\"") {
            true => Ok(()),
            false => Err(answer.to_string()),
        }
    });
}

/// A workstation of `dev`, connected to shop.
#[track_caller]
pub(crate) fn connected() -> Workstation {
    Workstation::connected(Account::Member, "dev", "shop", &[])
}
