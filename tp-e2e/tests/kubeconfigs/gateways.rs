//! What stands before an API server and passes less than it.

use std::time::Duration;

use serde_json::json;
use tp_e2e::{
    process::{PATIENCE, Running},
    user::Account,
};

use super::support::{Desk, cluster, user};

/// A gateway at port 8443 that logs in as the user of a kubeconfig. To requests that ask for one of
/// the named upgrades it answers 403 with a page.
const GATEWAY: &str = r#"
import asyncio, base64, json, ssl, sys, tempfile
config, refused = json.load(open(sys.argv[1])), sys.argv[2:]
cluster, user = config['clusters'][0]['cluster'], config['users'][0]['user']
def file(data):
    it = tempfile.NamedTemporaryFile(delete=False)
    it.write(base64.b64decode(data))
    it.close()
    return it.name
tls = ssl.create_default_context(cafile=file(cluster['certificate-authority-data']))
tls.load_cert_chain(file(user['client-certificate-data']), file(user['client-key-data']))
async def copy(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError: pass
    finally: writer.close()
async def serve(reader, writer):
    head = (await reader.readuntil(b'\r\n\r\n')).decode()
    upgrade = [line[8:].strip() for line in head.split('\r\n') if line.lower().startswith('upgrade:')]
    if any(it.lower() in refused for it in upgrade):
        page = b'\n<html>Not through this gateway.</html>'
        size = str(len(page)).encode()
        writer.write(b'HTTP/1.1 403 Forbidden\r\nConnection: close\r\nContent-Length: ' + size)
        writer.write(b'\r\n\r\n' + page)
        return writer.close()
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

/// The gateway, and flags that lead to it.
fn gateway(desk: &Desk, refused: &[&str]) -> (Running, [String; 2]) {
    let config = desk.workstation.kubeconfig().to_str().unwrap();
    let words = [&["/usr/bin/python3", "-c", GATEWAY, config], refused].concat();
    let mut running = Running::start(&mut desk.workstation.command_as(Account::Root, &words));
    running.wait_for("ready", PATIENCE);
    let mut kubeconfig = desk.kubeconfig();
    *cluster(&mut kubeconfig, "server") = "http://127.0.0.1:8443".into();
    *user(&mut kubeconfig) = json!({});
    let file = desk.write("tried/config", &kubeconfig.to_string());

    (
        running,
        ["--kubeconfig".to_owned(), file.display().to_string()],
    )
}

#[test]
fn a_gateway_that_passes_no_websocket_is_passed_by_spdy_as_kubectl_does() {
    let desk = Desk::new();
    let (_gateway, flags) = gateway(&desk, &["websocket"]);
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

    let connect = [
        "connect",
        "--namespace",
        "shop",
        "--transport",
        "portforward",
    ];
    desk.tp(&[&connect[..], &flags].concat(), &[])
        .expect_success();

    let page = desk
        .workstation
        .run(&["curl", "-sS", "--max-time", "10", "http://web/"]);
    assert!(page.expect_success().contains("nginx of"));
    let log = desk.workstation.session_log();
    assert!(log.contains("protocol=\"SPDY/3.1\""), "{log}");
    desk.tp(&["quit"], &[]).expect_success();
}

#[test]
fn a_gateway_that_passes_no_upgrade_at_all_is_named_as_the_reason() {
    let desk = Desk::new();
    let (_gateway, flags) = gateway(&desk, &["websocket", "spdy/3.1"]);
    let flags = flags.each_ref().map(String::as_str);

    let begin = std::time::Instant::now();
    let refused = desk.tp(
        &[&["connect", "--namespace", "shop"], &flags[..]].concat(),
        &[],
    );

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
