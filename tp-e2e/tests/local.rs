//! Local destinations stay local: own addresses, the office's network, the API server, and a
//! cluster on this machine.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::{fs, time::Duration};

use tp_e2e::{
    cluster::testbed,
    conditions::{Lan, Server},
    far_host::FarHost,
    firewall::{Rule, named},
    lock::alone,
    name_server::Route,
    netns,
    process::{PATIENCE, Running, eventually, run},
    programs::programs,
    user::Account,
    workstation::Workstation,
};

fn page(workstation: &Workstation, url: &str) -> String {
    let asked = workstation.run(&["curl", "-sS", "-m", "3", url]);
    asked.stdout.trim().to_owned() + asked.stderr.trim()
}

#[test]
fn the_office_and_own_addresses_in_the_clusters_networks_stay_and_are_told() {
    let _alone = alone();
    let before = netns::idle();
    let workstation = Workstation::new(Account::Member, "dev");
    let pod = testbed().pod_ip("shop", "web");
    let network = pod.rsplit_once('.').unwrap().0;
    let (own, printer) = (format!("{network}.251"), format!("{network}.250"));
    let (lan_network, printer_url) = (format!("{network}.0/24"), format!("http://{printer}/"));
    let begin = || Lan::begin(&format!("{own}/24"), &printer);
    let lan = begin();
    let _own = Server::start(&testbed().workstation(), &own, 7998, "own page");
    let own_url = format!("http://{own}:7998/");
    let assert_local = |when: &str| {
        assert_eq!(page(&workstation, &printer_url), Lan::PAGE, "{when}");
        assert_eq!(page(&workstation, &own_url), "own page", "{when}");
    };
    assert_local("before");

    let connected = workstation.connect(&["--namespace", "shop"]);
    assert_local("connected");
    assert!(page(&workstation, "http://web/").contains("nginx of"));
    let flag = format!("--also-proxy {lan_network}");
    for told in [
        &connected.stderr,
        &workstation.status()["notices"].to_string(),
    ] {
        assert!(told.contains(&flag) && told.contains(&own), "{told}");
    }

    // The office's network is lost while connected, and comes back.
    drop(lan);
    let pod_url = format!("http://{pod}/");
    eventually("the pod", Duration::from_secs(10), || {
        let page = page(&workstation, &pod_url);
        if page.contains("nginx of") {
            Ok(())
        } else {
            Err(page)
        }
    });
    let told = workstation.status()["notices"].to_string();
    assert!(!told.contains(network), "{told}");
    let lan = begin();
    eventually("the printer", Duration::from_secs(10), || {
        let page = page(&workstation, &printer_url);
        if page == Lan::PAGE { Ok(()) } else { Err(page) }
    });
    workstation.tp(&["quit"]).expect_success();

    let connected = workstation.connect(&["--namespace", "shop", "--also-proxy", &lan_network]);
    assert!(page(&workstation, &pod_url).contains("nginx of"));
    assert!(!connected.stderr.contains(&flag), "{connected}");
    workstation.tp(&["quit"]).expect_success();
    drop(lan);
    before.assert_restored();
}

#[test]
fn all_of_the_internet_through_the_cluster_is_without_loopback_and_the_office() {
    let _alone = alone();
    let workstation = Workstation::new(Account::Member, "admin");
    let _local = Server::start(&testbed().workstation(), "127.0.0.1", 3000, "local page");
    let lan = Lan::begin("192.168.77.1/24", "192.168.77.2");

    workstation.connect(&["--namespace", "shop", "--also-proxy", "0.0.0.0/0"]);

    assert_eq!(page(&workstation, "http://127.0.0.1:3000/"), "local page");
    assert_eq!(page(&workstation, "http://192.168.77.2/"), Lan::PAGE);
    assert!(page(&workstation, "http://web/").contains("nginx of"));
    workstation.tp(&["quit"]).expect_success();
    drop(lan);

    let refused = workstation.tp(&["connect", "--also-proxy", "127.0.0.0/8"]);
    assert_eq!(refused.code(), 2, "{refused}");
    assert!(
        refused.stderr.contains("--also-proxy 127.0.0.0/8"),
        "{refused}"
    );
}

/// Lets the workstation reach one address in the cluster without tp, until dropped.
fn way_in() -> Rule {
    let node = named(&testbed().namespace("1"));
    let words = "-s 172.30.0.200 -d 10.96.0.1 -p tcp --dport 443 -j ACCEPT";
    let words: Vec<&str> = words.split(' ').collect();

    Rule::insert([node], ["raw", "PREROUTING"], &words)
}

#[track_caller]
fn kubectl_works_before_and_while_connected(workstation: &Workstation) {
    let words = [
        "kubectl",
        "--request-timeout=5s",
        "get",
        "--raw",
        "/version",
    ];
    workstation.run(&words).expect_success();

    workstation.connect(&["--namespace", "shop"]);

    workstation.run(&words).expect_success();
}

#[test]
fn the_api_server_is_reached_as_before_also_by_a_name_that_leads_into_the_cluster() {
    let _alone = alone();
    let _way = way_in();
    let workstation = Workstation::new(Account::Member, "dev");
    workstation.set_hosts("127.0.0.1 localhost\n10.96.0.1 api.lab\n");
    workstation.set_cluster(&[
        ("server", "https://api.lab"),
        ("tls-server-name", "kubernetes.default"),
    ]);
    kubectl_works_before_and_while_connected(&workstation);
    assert!(page(&workstation, "http://web/").contains("nginx of"));
}

/// An HTTP proxy with the method CONNECT.
const PROXY: &str = r#"
import socket, sys, threading
def copy(a, b):
    try:
        while data := a.recv(65536): b.sendall(data)
    except OSError: pass
    finally:
        for it in (a, b):
            try: it.shutdown(socket.SHUT_RDWR)
            except OSError: pass
def serve(client):
    head = b''
    while b'\r\n\r\n' not in head: head += client.recv(65536)
    host, port = head.split()[1].decode().rsplit(':', 1)
    server = socket.create_connection((host, int(port)))
    client.sendall(b'HTTP/1.1 200 OK\r\n\r\n')
    threading.Thread(target=copy, args=(client, server), daemon=True).start()
    copy(server, client)
listener = socket.create_server((sys.argv[1], 3128))
print('ready', flush=True)
while True: threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"#;

#[test]
fn a_proxy_on_the_way_to_the_api_server_is_reached_as_before() {
    let _alone = alone();
    let address = "10.96.77.77";
    let mut proxy = FarHost::start(address, &["/usr/bin/python3", "-c", PROXY, address]);
    proxy.server.wait_for("ready", PATIENCE);
    let _route = Route::add(&format!("{address}/32 via 172.30.0.210"));
    let workstation = Workstation::new(Account::Member, "dev");
    let through = format!("http://{address}:3128");
    workstation.set_cluster(&[("proxy-url", &through)]);

    kubectl_works_before_and_while_connected(&workstation);
}

/// Root on the first node of the cluster, with a root daemon there.
struct OnNode {
    home: tempfile::TempDir,
    _daemon: Running,
}

impl OnNode {
    fn begin() -> Self {
        testbed().install_tp();
        let home = tempfile::tempdir().unwrap();
        let mut command = Self::command(home.path());
        command
            .arg(programs().join("tp-daemon"))
            .args(["root", "--group", "tp"]);
        let mut daemon = Running::start(&mut command);
        daemon.wait_for("Root daemon is ready", PATIENCE);

        Self {
            home,
            _daemon: daemon,
        }
    }

    fn command(home: &std::path::Path) -> std::process::Command {
        let mut command = testbed().inside(&testbed().namespace("1"));
        command
            .arg("env")
            .arg(format!(
                "TP_ROOT_SOCKET={}",
                home.join("root.sock").display()
            ))
            .arg(format!("TP_STATE_DIR={}", home.display()))
            .arg(format!("XDG_RUNTIME_DIR={}", home.display()))
            .arg(format!(
                "KUBECONFIG={}",
                testbed().kubeconfig("admin").display()
            ));
        command
    }

    fn tp_command(&self, words: &[&str]) -> std::process::Command {
        let mut command = Self::command(self.home.path());
        command.arg(programs().join("tp")).args(words);
        command
    }

    fn tp(&self, words: &[&str]) -> tp_e2e::process::Finished {
        run(&mut self.tp_command(words), Duration::from_secs(60))
    }
}

impl Drop for OnNode {
    fn drop(&mut self) {
        self.tp(&["quit"]);
    }
}

#[test]
fn a_session_of_root_on_a_node_leaves_the_clusters_own_components_alone() {
    let _alone = alone();
    let node = OnNode::begin();

    let refused = node.tp(&["connect", "--namespace", "shop"]);
    assert_eq!(refused.code(), 2, "{refused}");
    assert!(
        refused.stderr.contains("tp connect -- COMMAND"),
        "{refused}"
    );

    let (tp, go) = (programs().join("tp"), node.home.path().join("go"));
    let script = format!(
        "curl -sS -m 10 http://$0/ && for n in $(seq 300); do \
         [ -e {} ] && break; sleep 0.1; done; {} status --output json",
        go.display(),
        tp.display()
    );
    let web = testbed().service_ip("shop", "web");
    let words = [
        "connect",
        "--namespace",
        "shop",
        "--",
        "sh",
        "-c",
        &script,
        &web,
    ];
    let mut command = Running::start(&mut node.tp_command(&words));
    command.wait_for("nginx of", Duration::from_secs(30));
    // Like the cluster's own components: they connect to a steered network and are not steered.
    let mut component = OnNode::command(node.home.path());
    component.args(["curl", "-sS", "-m", "10", &format!("http://{web}/")]);
    let beside = run(&mut component, PATIENCE).expect_success();
    assert!(beside.contains("nginx of"), "{beside}");
    fs::write(go, "").unwrap();
    let said = command.finish(Duration::from_secs(40)).expect_success();

    let (page, status) = said.split_at(said.find("\n{").unwrap());
    assert!(page.contains("nginx of"), "{said}");
    let status: serde_json::Value = serde_json::from_str(status).unwrap();
    assert_eq!(status["datapath"]["flows_total"], 1, "{status}");
    let others = status["datapath"]["not_steered"].as_array().unwrap();
    let others = others
        .iter()
        .find(|count| count["reason"] == "other_cgroup");
    assert!(others.unwrap()["count"].as_u64() > Some(0), "{status}");
}
