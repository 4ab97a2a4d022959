//! Whom a local process sees as its caller: the client in the cluster.

use serde_json::Value;
use tp_e2e::{
    cluster::testbed,
    process::{PATIENCE, Running, eventually},
    workstation::Workstation,
};

use super::support::{CHANGE, Target, ask, connected};

/// Answers every request with the caller as accept(2), getpeername(2) and a header of the PROXY
/// protocol tell it.
const TELLER: &str = r#"
import json, socket, sys
server = socket.create_server(('127.0.0.1', int(sys.argv[1])))
print('listening', flush=True)
while True:
    connection, accepted = server.accept()
    with connection:
        told = {'accepted': accepted[0], 'peer': connection.getpeername()[0], 'header': None}
        read = b''
        while not (len(read) > 28 and read.endswith(b'\r\n\r\n')): read += connection.recv(65536)
        if read.startswith(b'\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c'):
            told['header'] = [socket.inet_ntoa(read[at:at + 4]) for at in (16, 20)]
        body = json.dumps(told).encode()
        head = b'HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n' % len(body)
        connection.sendall(head + body)
"#;

#[track_caller]
fn teller(workstation: &Workstation, port: &str) -> Running {
    let words = ["/usr/bin/python3", "-c", TELLER, port];
    let mut teller = Running::start(&mut workstation.command(&words));
    teller.wait_for("listening", PATIENCE);

    teller
}

/// The address from which the pod itself is asked.
#[track_caller]
fn client_of_the_pod(url: &str) -> String {
    let answer: Value = serde_json::from_str(&ask(url).expect_success()).expect("JSON");
    let remote = answer["remote"].as_str().expect("the echo server says it");
    let (address, _) = remote.rsplit_once(':').expect("a port");

    address.to_owned()
}

/// What the workstation's process says, once it is the one that answers.
#[track_caller]
fn told(url: &str) -> Value {
    eventually("an answer from the workstation", CHANGE, || {
        let answer = ask(url);
        let told: Option<Value> = serde_json::from_str(&answer.stdout).ok();
        match told.filter(|told| told.get("accepted").is_some()) {
            Some(told) => Ok(told),
            None => Err(answer.to_string()),
        }
    })
}

#[test]
fn the_local_process_sees_the_client_of_the_cluster_as_its_peer() {
    let target = Target::new("e2e-client", 1);
    let workstation = connected();
    let _teller = teller(&workstation, "18084");
    let client = client_of_the_pod(&target.url());

    workstation
        .tp(&["intercept", "e2e-client", "--port", "18084:http"])
        .expect_success();

    let told = told(&target.url());
    assert_eq!(told["accepted"], client.as_str(), "{told}");
    assert_eq!(told["peer"], client.as_str(), "{told}");
    assert_eq!(told["header"], Value::Null, "{told}");
    let status = workstation.status();
    assert_eq!(status["intercepts"][0]["proxy_protocol"], false, "{status}");
}

#[test]
fn with_the_proxy_protocol_a_header_tells_client_and_pod() {
    let target = Target::new("e2e-proxy", 1);
    let workstation = connected();
    let _teller = teller(&workstation, "18085");
    let client = client_of_the_pod(&target.url());
    let pod = testbed().pod_ip("shop", "e2e-proxy");

    let words = [
        "intercept",
        "e2e-proxy",
        "--port",
        "18085:http",
        "--proxy-protocol",
    ];
    let said = workstation.tp(&words).expect_success();

    assert!(said.contains("a header of the PROXY protocol"), "{said}");
    let told = told(&target.url());
    assert_eq!(told["header"], serde_json::json!([client, pod]), "{told}");
    assert_eq!(told["accepted"], "127.0.0.1", "{told}");
    let status = workstation.status();
    assert_eq!(status["intercepts"][0]["proxy_protocol"], true, "{status}");
}
