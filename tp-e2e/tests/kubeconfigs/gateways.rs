//! Gateways before an API server that pass less than it.

use std::{fs, path::PathBuf, time::Duration};

use serde_json::{Value, json};
use tp_e2e::{
    process::{PATIENCE, Running},
    user::Account,
};

use super::support::{COPY, Desk, cluster, user};

/// An HTTP gateway at port 8443 that logs in as the user of a kubeconfig, and records the heads of
/// requests. Requests for one of the named upgrades get a fixed answer; if that is empty, the
/// gateway removes the upgrade from the request.
const GATEWAY: &str = r#"
import asyncio, base64, json, ssl, sys, tempfile
config, log, answer, refused = json.load(open(sys.argv[1])), sys.argv[2], sys.argv[3], sys.argv[4:]
cluster, user = config['clusters'][0]['cluster'], config['users'][0]['user']
def file(data):
    it = tempfile.NamedTemporaryFile(delete=False)
    it.write(base64.b64decode(data))
    it.close()
    return it.name
tls = ssl.create_default_context(cafile=file(cluster['certificate-authority-data']))
tls.load_cert_chain(file(user['client-certificate-data']), file(user['client-key-data']))
async def serve(reader, writer):
    head = (await reader.readuntil(b'\r\n\r\n')).decode()
    with open(log, 'a') as file: file.write(head)
    lines = head.split('\r\n')
    upgrade = [line[8:].strip() for line in lines if line.lower().startswith('upgrade:')]
    if any(it.lower() in refused for it in upgrade):
        if answer:
            writer.write(answer.encode())
            return writer.close()
        upgrade = []
        taken = ('upgrade:', 'connection:')
        head = '\r\n'.join(line for line in lines if not line.lower().startswith(taken))
    # Each connection is looked at once.
    if not upgrade: head = head.replace('\r\n', '\r\nConnection: close\r\n', 1)
    there, away = await asyncio.open_connection('172.30.0.11', 6443, ssl=tls)
    away.write(head.encode())
    await asyncio.gather(copy(reader, away), copy(there, writer))
async def main():
    await asyncio.start_server(serve, '127.0.0.1', 8443)
    print('ready', flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"#;

const PAGE: &str = "\n<html>Not through this gateway.</html>";

/// The gateway at the developer's machine.
struct Gateway {
    log: PathBuf,
    _running: Running,
}

impl Gateway {
    fn start(desk: &Desk, answer: &str, refused: &[&str]) -> Self {
        let log = desk.workstation.home().join("asked");
        fs::write(&log, "").unwrap();
        let config = desk.workstation.kubeconfig().to_str().unwrap();
        let script = format!("{COPY}{GATEWAY}");
        let program = ["/usr/bin/python3", "-c", &script];
        let words = [config, log.to_str().unwrap(), answer];
        let words = [&program[..], &words, refused].concat();
        let mut running = Running::start(&mut desk.workstation.command_as(Account::Root, &words));
        running.wait_for("ready", PATIENCE);

        Self {
            log,
            _running: running,
        }
    }

    /// The heads of requests since the last call, in lower case.
    fn asked(&self) -> String {
        let heads = fs::read_to_string(&self.log).unwrap();
        fs::write(&self.log, "").unwrap();

        heads.to_ascii_lowercase()
    }
}

/// A kubeconfig for the gateway, without credentials.
fn kubeconfig_of_gateway(desk: &Desk) -> Value {
    let mut kubeconfig = desk.kubeconfig();
    *cluster(&mut kubeconfig, "server") = "http://127.0.0.1:8443".into();
    *user(&mut kubeconfig) = json!({});

    kubeconfig
}

/// Flags for that kubeconfig.
fn flags_of_gateway(desk: &Desk) -> [String; 2] {
    let file = desk
        .workstation
        .write_file("tried/config", &kubeconfig_of_gateway(desk).to_string());

    ["--kubeconfig".to_owned(), file.display().to_string()]
}

/// An HTTP response.
fn http_answer(status: &str, body: &str) -> String {
    let size = body.len();

    format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {size}\r\n\r\n{body}")
}

/// The response of an API server.
fn status_answer(code: u16, reason: &str) -> String {
    let status = json!({
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "message": "not by this way",
        "reason": reason,
        "code": code,
    });

    http_answer(&format!("{code} {reason}"), &status.to_string())
}

#[test]
fn nobody_is_shown_credentials_where_everybody_can_read_them() {
    let desk = Desk::new();
    let gateway = Gateway::start(&desk, "", &[]);
    let plugin = json!({
        "apiVersion": "client.authentication.k8s.io/v1",
        "command": "false",
        "interactiveMode": "IfAvailable",
    });

    for (name, credentials) in [
        ("a token", json!({"token": "secret"})),
        (
            "a password",
            json!({"username": "me", "password": "secret"}),
        ),
        ("a plugin, which fails", json!({"exec": plugin})),
    ] {
        let mut kubeconfig = kubeconfig_of_gateway(&desk);
        *user(&mut kubeconfig) = credentials;
        desk.with(name, &kubeconfig).expect_success(name);

        let asked = gateway.asked();
        let logins = asked.matches("/selfsubjectreviews").count();
        assert!(logins >= 2, "{name}: by kubectl and by tp: {asked}");
        assert!(!asked.contains("\r\nauthorization:"), "{name}: {asked}");
    }
}

#[track_caller]
fn is_passed_by_spdy(name: &str, answer: &str) {
    let desk = Desk::new();
    let _gateway = Gateway::start(&desk, answer, &["websocket"]);
    let flags = flags_of_gateway(&desk);
    let flags = flags.each_ref().map(String::as_str);
    let forward = [
        "kubectl",
        "-n",
        "tp-system",
        "port-forward",
        "pod/tp-manager-0",
        "9999:7070",
    ];
    let mut reference = Running::start(&mut desk.command(&[&forward[..], &flags].concat(), &[]));
    reference.wait_for("Forwarding from", PATIENCE);
    drop(reference);

    let transport = ["--transport", "portforward"];
    let connected = desk.connect(&[&transport[..], &flags].concat(), &[]);
    assert!(connected.status.success(), "{name}: {connected}");

    let page = desk.workstation.read_web();
    assert!(page.contains("nginx of"), "{name}");
    let log = desk.workstation.session_log();
    assert!(log.contains("protocol=\"SPDY/3.1\""), "{name}: {log}");
    desk.tp(&["quit"], &[]).expect_success();
}

#[test]
fn a_gateway_that_passes_no_websocket_is_passed_by_spdy_as_kubectl_does() {
    for (name, answer) in [
        ("a page", http_answer("403 Forbidden", PAGE)),
        ("a page that is no error", http_answer("200 OK", PAGE)),
        ("a bad request", status_answer(400, "BadRequest")),
        // As for a user who may create port-forwards but not get them.
        ("forbidden", status_answer(403, "Forbidden")),
        ("the API server's, which is not asked", String::new()),
    ] {
        is_passed_by_spdy(name, &answer);
    }
}

#[test]
fn a_gateway_that_passes_no_upgrade_at_all_is_named_as_the_reason() {
    let desk = Desk::new();
    let page = http_answer("403 Forbidden", PAGE);
    let _gateway = Gateway::start(&desk, &page, &["websocket", "spdy/3.1"]);
    let flags = flags_of_gateway(&desk);

    let begin = std::time::Instant::now();
    let refused = desk.connect(&flags.each_ref().map(String::as_str), &[]);

    assert_eq!(refused.code(), 69, "{refused}");
    for words in [
        "port-forward to tp-manager-0",
        "before the API server",
        "neither a WebSocket (403 Forbidden: <html>Not through this gateway.</html>)",
    ] {
        assert!(refused.stderr.contains(words), "{words}: {refused}");
    }
    assert!(begin.elapsed() < Duration::from_secs(10));
}
