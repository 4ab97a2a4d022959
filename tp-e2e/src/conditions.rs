//! Surroundings of a workstation: a proxy that gives out addresses for names, a LAN. Each is
//! removed when dropped.

use std::fs;

use tempfile::TempDir;

use crate::{
    cluster::testbed,
    process::{PATIENCE, Running, eventually, run},
};

#[track_caller]
pub fn inside(namespace: &str, commands: &[&str]) {
    for command in commands {
        let words: Vec<&str> = command.split_whitespace().collect();
        testbed().run_inside(namespace, &words);
    }
}

/// A network namespace behind an interface of the workstation, with a web server.
struct AttachedNetwork {
    namespace: String,
    interface: &'static str,
    undo: &'static str,
    /// Dropped first.
    server: Option<Server>,
}

impl AttachedNetwork {
    #[track_caller]
    fn new(name: &str, interface: &'static str, undo: &'static str) -> Self {
        let network = Self {
            namespace: testbed().namespace(name),
            interface,
            undo,
            server: None,
        };
        network.remove();
        let namespace = &network.namespace;
        inside(
            &testbed().workstation(),
            &[
                &format!("ip netns add {namespace}"),
                &format!("ip link add {interface} type veth peer name e0 netns {namespace}"),
                &format!("ip link set {interface} up"),
            ],
        );
        inside(namespace, &["ip link set lo up", "ip link set e0 up"]);
        network
    }

    fn remove(&self) {
        let mut inside = testbed().inside(&testbed().workstation());
        inside.args(["sh", "-c"]).arg(format!(
            "ip link del {}; ip netns del {}; {}",
            self.interface, self.namespace, self.undo
        ));
        run(&mut inside, PATIENCE);
    }
}

impl Drop for AttachedNetwork {
    fn drop(&mut self) {
        drop(self.server.take());
        self.remove();
    }
}

/// A web server whose only page is one line.
pub struct Server {
    _program: Running,
    _pages: TempDir,
}

impl Server {
    #[track_caller]
    pub fn start(namespace: &str, address: &str, port: u16, page: &str) -> Self {
        let pages = tempfile::tempdir().expect("a folder can be made");
        fs::write(pages.path().join("index.html"), format!("{page}\n")).expect("own folder");
        let mut server = testbed().inside(namespace);
        server
            .args(["python3", "-m", "http.server", "--bind", address])
            .arg(port.to_string())
            .current_dir(pages.path());
        let program = Running::start(&mut server);
        let url = format!("http://{address}:{port}/");
        eventually("the web server to answer", PATIENCE, || {
            let mut ask = testbed().inside(namespace);
            ask.args(["curl", "-sS", "-m", "2", &url]);
            let asked = run(&mut ask, PATIENCE);
            if asked.status.success() {
                Ok(())
            } else {
                Err(asked.to_string())
            }
        });

        Self {
            _program: program,
            _pages: pages,
        }
    }
}

/// A proxy that answers every name with an address of 198.18.0.0/15, which has no route of its own:
/// the default route leads through the proxy.
pub struct FakeIpProxy {
    _network: AttachedNetwork,
}

impl FakeIpProxy {
    pub const PAGE: &str = "page behind the proxy";
    pub const URL: &str = "http://198.18.1.1/";
    pub const INTERFACE: &str = "sb0";
    pub const TABLE: &str = "2022";

    #[track_caller]
    pub fn begin() -> Self {
        let undo = "ip rule del pref 8999; ip rule del pref 9000; ip route flush table 2022";
        let mut network = AttachedNetwork::new("sb", Self::INTERFACE, undo);
        inside(
            &testbed().workstation(),
            &[
                "ip address add 172.19.0.1/30 dev sb0",
                "ip route add default via 172.19.0.2 dev sb0 table 2022",
                "ip rule add pref 8999 to 172.30.0.0/24 lookup main",
                "ip rule add pref 9000 lookup 2022",
            ],
        );
        inside(
            &network.namespace,
            &[
                "ip address add 172.19.0.2/30 dev e0",
                "ip address add 198.18.1.1/32 dev lo",
                "ip route add local 198.18.0.0/15 dev lo",
                "ip route add default via 172.19.0.1",
            ],
        );
        network.server = Some(Server::start(&network.namespace, "0.0.0.0", 80, Self::PAGE));

        Self { _network: network }
    }
}

/// A network of the workstation's, with a machine that serves a web page.
pub struct Lan {
    network: AttachedNetwork,
}

impl Lan {
    pub const PAGE: &str = "page of the printer";
    pub const INTERFACE: &str = "lan0";

    /// `own` is the workstation's address and its prefix length, 24.
    #[track_caller]
    pub fn begin(own: &str, printer: &str) -> Self {
        let mut network = AttachedNetwork::new("office", Self::INTERFACE, "true");
        // The route is that of a DHCP client that adds it itself.
        let (address, prefix_len) = own.split_once('/').expect("a prefix length");
        let (subnet, _) = address.rsplit_once('.').expect("an IPv4 address");
        let subnet = format!("{subnet}.0/{prefix_len}");
        inside(
            &testbed().workstation(),
            &[
                &format!("ip address add {own} dev lan0 noprefixroute"),
                &format!("ip route add {subnet} dev lan0 proto dhcp scope link src {address}"),
            ],
        );
        let address = format!("ip address add {printer}/{prefix_len} dev e0");
        inside(&network.namespace, &[&address]);
        network.server = Some(Server::start(&network.namespace, printer, 80, Self::PAGE));

        Self { network }
    }

    pub fn namespace(&self) -> &str {
        &self.network.namespace
    }
}
