//! Proxies of the kubeconfig and of the environment.

use std::{collections::BTreeSet, fs, path::PathBuf};

use tp_e2e::{
    process::{PATIENCE, Running},
    user::Account,
};

use super::support::{COPY, Desk, cluster};

/// A proxy for CONNECT and SOCKS5 (RFC 1928) at port 3128 that records the requested targets; if
/// credentials are given, CONNECT requires them. Port 6443 leads to the API server.
const PROXY: &str = r#"
import asyncio, base64, sys
log, credentials = sys.argv[1], sys.argv[2:]
async def join(reader, writer, host, port, words=b''):
    there, away = await asyncio.open_connection(host, port)
    writer.write(words)
    await asyncio.gather(copy(reader, away), copy(there, writer))
async def socks(reader, writer):
    await reader.readexactly((await reader.readexactly(1))[0])
    writer.write(b'\x05\x00')
    kind = (await reader.readexactly(4))[3]
    size = 4 if kind == 1 else (await reader.readexactly(1))[0]
    host = await reader.readexactly(size)
    host = '.'.join(map(str, host)) if kind == 1 else host.decode()
    port = int.from_bytes(await reader.readexactly(2), 'big')
    return host, port, b'\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00'
async def connect(reader, writer):
    head = (await reader.readuntil(b'\r\n\r\n')).decode()
    host, port = head.split()[0].rsplit(':', 1)
    wanted = [base64.b64encode(it.encode()).decode() for it in credentials]
    if any('Proxy-Authorization: Basic ' + it not in head for it in wanted):
        writer.write(b'HTTP/1.1 407 Who are you\r\nContent-Length: 0\r\n\r\n')
        return writer.close()
    return host, int(port), b'HTTP/1.1 200 OK\r\n\r\n'
async def serve(reader, writer):
    first = await reader.readexactly(1)
    if first != b'\x05': await reader.readexactly(len('ONNECT '))
    target = await (socks if first == b'\x05' else connect)(reader, writer)
    if target:
        with open(log, 'a') as file: print(target[0], target[1], file=file)
        await join(reader, writer, *target)
async def main():
    await asyncio.start_server(serve, '0.0.0.0', 3128)
    await asyncio.start_server(lambda r, w: join(r, w, '172.30.0.11', 6443), '127.0.0.1', 6443)
    print('ready', flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"#;

/// The proxy at the developer's machine.
struct Proxy {
    log: PathBuf,
    _running: Running,
}

impl Proxy {
    fn start(desk: &Desk, credentials: &[&str]) -> Self {
        let log = desk.workstation.home().join("proxied");
        fs::write(&log, "").unwrap();
        let script = format!("{COPY}{PROXY}");
        let words = ["/usr/bin/python3", "-c", &script, log.to_str().unwrap()];
        let words = [&words[..], credentials].concat();
        let mut running = Running::start(&mut desk.workstation.command_as(Account::Root, &words));
        running.wait_for("ready", PATIENCE);

        Self {
            log,
            _running: running,
        }
    }

    /// Targets requested since the last call.
    fn asked(&self) -> BTreeSet<String> {
        let text = fs::read_to_string(&self.log).unwrap();
        fs::write(&self.log, "").unwrap();

        text.lines().map(str::to_owned).collect()
    }
}

/// Checks that both succeed, with the same requests to the proxy: none if they go directly.
#[track_caller]
fn assert_alike(
    desk: &Desk,
    proxy: &Proxy,
    name: &str,
    variables: &[(&str, &str)],
    is_direct: bool,
) {
    proxy.asked();
    desk.kubectl(&[], variables).expect_success();
    let by_kubectl = proxy.asked();
    desk.connect_once(&[], variables).expect_success();
    let by_tp = proxy.asked();

    assert_eq!(by_kubectl.is_empty(), is_direct, "{name}: kubectl");
    assert_eq!(by_tp, by_kubectl, "{name}: tp, and kubectl");
}

#[test]
fn the_proxy_of_the_environment_is_used_where_kubectl_uses_it() {
    let desk = Desk::new();
    let proxy = Proxy::start(&desk, &[]);
    for (no_proxy, is_direct) in [
        ("", false),
        ("172.30.0.0/24", true),
        ("172.30.0.11,localhost,", true),
        ("localhost 172.30.0.11", false),
        ("*", true),
        (".svc,.cluster.local,172.30.0.11:6443", true),
        ("172.30.0.11:443", false),
    ] {
        let variables = [
            ("HTTPS_PROXY", "http://127.0.0.1:3128"),
            ("NO_PROXY", no_proxy),
        ];
        assert_alike(&desk, &proxy, no_proxy, &variables, is_direct);
    }
    for value in ["127.0.0.1:3128", "socks5://127.0.0.1:3128"] {
        assert_alike(&desk, &proxy, value, &[("https_proxy", value)], false);
    }
    assert_alike(
        &desk,
        &proxy,
        "of HTTP",
        &[("HTTP_PROXY", "127.0.0.1:3128")],
        true,
    );
}

#[test]
fn the_machine_itself_is_asked_without_a_proxy() {
    let desk = Desk::new();
    let proxy = Proxy::start(&desk, &[]);
    desk.workstation.set_cluster(&[
        ("server", "https://127.0.0.1:6443"),
        ("tls-server-name", "kubernetes.default"),
    ]);

    let variables = [("HTTPS_PROXY", "http://127.0.0.1:3128")];
    assert_alike(&desk, &proxy, "loopback", &variables, true);
}

#[test]
fn the_proxy_of_the_kubeconfig_comes_before_the_environment() {
    let desk = Desk::new();
    let proxy = Proxy::start(&desk, &["u@x:p:w"]);
    desk.workstation
        .set_cluster(&[("proxy-url", "http://u%40x:p%3Aw@127.0.0.1:3128")]);

    let variables = [("HTTPS_PROXY", "http://192.0.2.1:1"), ("NO_PROXY", "*")];
    assert_alike(&desk, &proxy, "proxy-url", &variables, false);
}

#[test]
fn a_proxy_that_cannot_be_used_is_named() {
    let desk = Desk::new();
    for (url, code, words) in [
        ("proxy:3128", 78, &["tried/config", "proxy-url"][..]),
        ("ftp://127.0.0.1:3128", 78, &["tried/config", "proxy-url"]),
        ("http://127.0.0.1:1", 69, &["172.30.0.11:6443"]),
    ] {
        let mut kubeconfig = desk.kubeconfig();
        *cluster(&mut kubeconfig, "proxy-url") = url.into();
        desk.with(url, &kubeconfig).expect_refusal(url, code, words);
    }
}
