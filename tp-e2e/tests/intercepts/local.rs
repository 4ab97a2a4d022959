//! Calls of the workstation itself to what it intercepts.

use serde_json::Value;
use tp_e2e::{
    process::{Finished, PATIENCE, Running, eventually},
    user::Account,
    workstation::Workstation,
};

use super::support::{CHANGE, FROM_WORKSTATION, Handler, Target, ask, connected};

/// What the proxy says before what the original has answered.
const BY_PROXY: &str = "by the proxy: ";

/// A handler that passes each request on to a URL: itself, or by a child process where the path is
/// `/child`.
struct Proxy {
    _server: Running,
}

impl Proxy {
    #[track_caller]
    fn start(workstation: &Workstation, port: u16, original: &str) -> Self {
        let program = program(port, original);
        let mut command = workstation.command(&["/usr/bin/python3", "-c", &program]);
        let mut server = Running::start(&mut command);
        server.wait_for("listening", PATIENCE);

        Self { _server: server }
    }
}

fn program(port: u16, original: &str) -> String {
    format!(
        "import http.server, subprocess, urllib.request\n\
         class Proxy(http.server.BaseHTTPRequestHandler):\n\
         \x20   def do_GET(self):\n\
         \x20       if self.path == '/child':\n\
         \x20           command = ['curl', '-sS', '--max-time', '5', '{original}']\n\
         \x20           body = subprocess.run(command, stdout=subprocess.PIPE).stdout\n\
         \x20       else:\n\
         \x20           body = urllib.request.urlopen('{original}', timeout=5).read()\n\
         \x20       body = b'{BY_PROXY}' + body\n\
         \x20       self.send_response(200)\n\
         \x20       self.send_header('Content-Length', str(len(body)))\n\
         \x20       self.end_headers()\n\
         \x20       self.wfile.write(body)\n\
         server = http.server.ThreadingHTTPServer(('127.0.0.1', {port}), Proxy)\n\
         print('listening', flush=True)\n\
         server.serve_forever()"
    )
}

fn call(workstation: &Workstation, url: &str) -> Finished {
    workstation.run(&["curl", "-sS", "--max-time", "10", url])
}

/// What the only intercept says of its connections: those that went to the local process directly, and
/// those that pods gave to it.
#[track_caller]
fn counted(workstation: &Workstation) -> (u64, u64) {
    let status = workstation.status();
    let intercept = &status["intercepts"][0];
    let pods = intercept["pods"].as_array().expect("pods are a list");
    let to_workstation = |pod: &Value| pod["to_workstation"].as_u64().expect("it is a number");

    (
        intercept["local"].as_u64().expect("it is a number"),
        pods.iter().map(to_workstation).sum(),
    )
}

#[track_caller]
fn expect_counted(workstation: &Workstation, expected: (u64, u64)) {
    eventually("the connections to be counted", CHANGE, || {
        match counted(workstation) {
            now if now == expected => Ok(()),
            now => Err(format!("{now:?}")),
        }
    });
}

/// An answer of the pod that came by the proxy once.
#[track_caller]
fn assert_proxied(answer: &Finished) {
    let original = answer.stdout.strip_prefix(BY_PROXY);

    assert!(
        original.is_some_and(|it| it.contains("\"pod\"") && !it.contains(BY_PROXY)),
        "{answer}"
    );
}

#[test]
fn a_call_of_the_workstation_reaches_the_local_process_without_passing_the_pod() {
    let target = Target::new("e2e-near", 1);
    let workstation = connected();
    let _handler = Handler::start(&workstation, 18110);
    workstation
        .tp(&["intercept", "e2e-near", "--port", "18110:http"])
        .expect_success();
    let (url, pod) = (target.url(), target.pod_urls().remove(0));

    for url in ["http://e2e-near/", &url, &pod] {
        assert_eq!(call(&workstation, url).stdout, FROM_WORKSTATION, "{url}");
    }

    // From the cluster as ever.
    assert_eq!(ask(&url).stdout, FROM_WORKSTATION);
    expect_counted(&workstation, (3, 1));
    let text = workstation.tp(&["status"]).expect_success();
    assert!(text.contains("1, 3 local"), "{text}");
    workstation.tp(&["leave", "e2e-near"]).expect_success();
    let answer = call(&workstation, &url);
    assert!(answer.stdout.contains("\"pod\""), "{answer}");
}

#[test]
fn a_handler_that_calls_what_it_intercepts_reaches_the_original() {
    let target = Target::new("e2e-proxied", 2);
    let workstation = connected();
    let url = target.url();
    let _proxy = Proxy::start(&workstation, 18111, &url);
    workstation
        .tp(&["intercept", "e2e-proxied", "--port", "18111:http"])
        .expect_success();

    for _ in 0..5 {
        assert_proxied(&ask(&url));
        assert_proxied(&call(&workstation, &url));
        assert_proxied(&ask(&format!("{url}child")));
    }
    expect_counted(&workstation, (5, 10));
    for pod in target.pod_urls() {
        assert_proxied(&ask(&pod));
        assert_proxied(&call(&workstation, &format!("{pod}child")));
    }
}

#[test]
fn the_command_of_an_intercept_reaches_the_original_wherever_it_listens() {
    let target = Target::new("e2e-command-proxy", 1);
    let workstation = connected();
    let url = target.url();
    // Something else than the command listens.
    let _handler = Handler::start(&workstation, 18112);
    let port = "18112:http";

    let ended = workstation.tp(&[
        "intercept",
        "e2e-command-proxy",
        "--port",
        port,
        "--",
        "curl",
        "-sS",
        &url,
    ]);

    assert!(ended.stdout.contains("\"pod\""), "{ended}");
}

#[test]
fn without_the_shortcut_calls_pass_the_pod_and_those_of_the_handler_reach_the_original() {
    let target = Target::new("e2e-far", 1);
    let workstation = connected();
    let url = target.url();
    let _proxy = Proxy::start(&workstation, 18113, &url);
    let words = ["--port", "18113:http", "--no-local-shortcut"];
    workstation
        .tp(&[&["intercept", "e2e-far"][..], &words].concat())
        .expect_success();

    assert_proxied(&call(&workstation, &url));

    expect_counted(&workstation, (0, 1));
}

#[test]
fn where_nothing_listens_a_call_of_the_workstation_ends_as_one_of_the_cluster() {
    let target = Target::new("e2e-near-down", 1);
    let workstation = connected();
    let url = target.url();
    let intercept = |when_down| {
        let words = ["--port", "18114:http", "--when-down", when_down];
        workstation
            .tp(&[&["intercept", "e2e-near-down"][..], &words].concat())
            .expect_success();
    };

    intercept("refuse");
    let refused = call(&workstation, &url);
    assert_eq!(refused.code(), 7, "{refused}");
    workstation.tp(&["leave", "e2e-near-down"]).expect_success();

    intercept("container");
    let answer = call(&workstation, &url);
    assert!(answer.stdout.contains("\"pod\""), "{answer}");
    assert_eq!(counted(&workstation).0, 0);
}

#[test]
fn the_calls_of_another_user_pass_the_pod() {
    let target = Target::new("e2e-near-two", 1);
    let first = connected();
    let _handler = Handler::start(&first, 18115);
    first
        .tp(&["intercept", "e2e-near-two", "--port", "18115:http"])
        .expect_success();
    let second = Workstation::connected(Account::Colleague, "admin", "shop", &[]);

    assert_eq!(call(&second, &target.url()).stdout, FROM_WORKSTATION);

    expect_counted(&first, (0, 1));
}
