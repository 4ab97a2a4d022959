//! Neighbours on the workstation: another VPN with the cluster's addresses, and a changing
//! resolv.conf.

use std::{
    fs, io,
    net::{SocketAddr, UdpSocket},
    os::fd::AsFd as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tp_e2e::{
    cluster::testbed,
    conditions::{FakeIpProxy, inside},
    firewall::{self, Rule},
    lock::alone,
    name_server::ResolvConf,
    netns,
    process::{PATIENCE, Running, eventually, run},
    user::Account,
    workstation::Workstation,
};

/// Another VPN, set up like Tailscale: a rule before `main`, a table with the cluster's networks
/// and a default route, and a far side where a web server has the address of `web`.
struct Vpn {
    far: String,
    _server: Running,
}

impl Vpn {
    #[track_caller]
    fn begin(address: &str) -> Self {
        let workstation = testbed().workstation();
        let far = testbed().namespace("vpn");
        Self::remove(&far);
        inside(&workstation, &[&format!("ip netns add {far}")]);
        inside(
            &workstation,
            &[
                &format!("ip link add vpn0 type veth peer name vpn1 netns {far}"),
                "ip address add 100.64.0.5/32 dev vpn0",
                "ip link set vpn0 up",
                "ip route add 10.96.0.0/12 dev vpn0 table 52",
                "ip route add 10.244.0.0/16 dev vpn0 table 52",
                "ip route add default dev vpn0 table 52",
                "ip route add throw 172.30.0.0/24 table 52",
                "ip rule add pref 5270 lookup 52",
            ],
        );
        inside(
            &far,
            &[
                "ip link set lo up",
                "ip link set vpn1 up",
                &format!("ip address add {address}/32 dev vpn1"),
                "ip route add 100.64.0.5/32 dev vpn1",
            ],
        );
        let mut server = testbed().inside(&far);
        let pages = tempfile::tempdir().expect("a folder can be made").keep();
        fs::write(pages.join("index.html"), "page of the VPN\n").expect("own folders are writable");
        server
            .args(["python3", "-m", "http.server", "--bind", address, "80"])
            .current_dir(pages);

        Self {
            far,
            _server: Running::start(&mut server),
        }
    }

    fn remove(far: &str) {
        let mut inside = testbed().inside(&testbed().workstation());
        inside.args(["sh", "-c"]).arg(format!(
            "ip link del vpn0; ip rule del pref 5270; ip route flush table 52; ip netns del {far}"
        ));
        run(&mut inside, PATIENCE);
    }
}

impl Drop for Vpn {
    fn drop(&mut self) {
        Self::remove(&self.far);
    }
}

#[test]
fn another_vpn_with_the_clusters_addresses_keeps_working_and_so_does_the_session() {
    let _alone = alone();
    let before = netns::idle();
    let workstation = Workstation::new(Account::Member, "dev");
    let web = testbed().service_ip("shop", "web");
    let url = format!("http://{web}/");
    let page = |account| {
        let ask = ["curl", "-sS", "--max-time", "10", &url];
        workstation.run_as(account, &ask).expect_success()
    };
    let check = |when: &str| {
        let theirs = page(Account::Outsider);
        assert_eq!(theirs, "page of the VPN\n", "{when}");
        let ours = page(Account::Member);
        assert!(ours.contains("nginx of"), "{when}: {ours}");
        let seen = workstation.exchange(1_000_000);
        assert_eq!(
            (&seen["matches"], &seen["end"]),
            (&true.into(), &"fin".into()),
            "{when}"
        );
    };
    let listening = || {
        eventually("the VPN to answer", Duration::from_secs(10), || {
            let asked = workstation.run_as(Account::Outsider, &["curl", "-sS", "-m", "2", &url]);
            if asked.stdout == "page of the VPN\n" {
                Ok(())
            } else {
                Err(asked.to_string())
            }
        });
    };

    let vpn = Vpn::begin(&web);
    listening();
    workstation.connect(&["--namespace", "shop"]);
    check("the VPN came first");
    drop(vpn);

    let vpn = Vpn::begin(&web);
    listening();
    check("the VPN came while connected");
    let with_both = netns::Snapshot::take();
    workstation.tp(&["quit"]).expect_success();
    assert_eq!(page(Account::Outsider), "page of the VPN\n");
    assert_eq!(page(Account::Member), "page of the VPN\n");
    let changes = netns::Snapshot::take().differences(&with_both);
    assert!(
        !changes.contains("vpn0") && !changes.contains("5270"),
        "{changes}"
    );
    drop(vpn);
    before.assert_restored();
}

#[test]
fn a_proxy_that_gives_out_addresses_for_names_keeps_them_and_a_later_collision_is_told() {
    let _alone = alone();
    let before = netns::idle();
    let workstation = Workstation::new(Account::Member, "dev");
    let assert_theirs = |when: &str| {
        for account in [Account::Member, Account::Outsider] {
            let ask = ["curl", "-sS", "-m", "5", FakeIpProxy::URL];
            let page = workstation.run_as(account, &ask).expect_success();
            assert_eq!(page.trim(), FakeIpProxy::PAGE, "{when}, {}", account.name());
        }
    };
    let assert_ours = |when: &str| {
        for url in ["http://web/", "http://echo:8080/"] {
            workstation
                .run(&["curl", "-sS", "-m", "10", "-o", "/dev/null", url])
                .expect_success();
        }
        let page = workstation.run(&["curl", "-sS", "-m", "10", "http://web/"]);
        assert!(page.expect_success().contains("nginx of"), "{when}");
    };

    let proxy = FakeIpProxy::begin();
    assert_theirs("before");
    workstation.connect(&["--namespace", "shop"]);
    assert_ours("the proxy came first");
    assert_theirs("the proxy came first");
    drop(proxy);

    let proxy = FakeIpProxy::begin();
    assert_theirs("the proxy came while connected");
    assert_ours("the proxy came while connected");

    let aliases = workstation.status()["datapath"]["alias_network"].clone();
    let aliases = aliases.as_str().expect("a network").to_owned();
    let route = format!(
        "ip route {{}} {aliases} dev {} table {}",
        FakeIpProxy::INTERFACE,
        FakeIpProxy::TABLE
    );
    let notices = |is_told: bool| {
        eventually("the collision in status", Duration::from_secs(10), || {
            let notices = workstation.status()["notices"].to_string();
            if notices.contains(&aliases) == is_told {
                Ok(())
            } else {
                Err(notices)
            }
        });
    };
    inside(&testbed().workstation(), &[&route.replace("{}", "add")]);
    notices(true);
    inside(&testbed().workstation(), &[&route.replace("{}", "del")]);
    notices(false);

    workstation.tp(&["quit"]).expect_success();
    assert_theirs("afterwards");
    drop(proxy);
    before.assert_restored();
}

/// A name server on the neighbour with the same address for every name.
struct NeighbouringServer {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

const NEW_SERVER: &str = "172.30.0.210";
const ITS_ANSWER: [u8; 4] = [192, 0, 2, 99];

impl NeighbouringServer {
    fn start() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let socket = thread::spawn(|| {
            let namespace = fs::File::open(format!("/run/netns/{}", testbed().neighbour()))?;
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
            UdpSocket::bind((NEW_SERVER, 53))
        });
        let socket = socket.join().expect("binding does not panic");
        let socket = socket.expect("nobody else serves names there");
        socket
            .set_read_timeout(Some(Duration::from_millis(100)))
            .expect("sockets have time-outs");
        let thread = thread::spawn(move || {
            let mut query = [0; 512];
            while !stopped.load(Ordering::Relaxed) {
                if let Ok((length, from)) = socket.recv_from(&mut query) {
                    // The client may be gone.
                    let _ = answer_query(&socket, &query[..length], from);
                }
            }
        });

        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for NeighbouringServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn answer_query(socket: &UdpSocket, query: &[u8], from: SocketAddr) -> io::Result<usize> {
    // The header, the question without EDNS, and an answer that points to it.
    let name = query.iter().skip(12).position(|byte| *byte == 0);
    let end = 12 + name.unwrap_or_default() + 5;
    let question = query.get(..end).unwrap_or_default();
    let mut reply = question.to_vec();
    if let Some(header) = reply.get_mut(2..12) {
        header.copy_from_slice(&[0x85, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
    }
    reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4]);
    reply.extend(ITS_ANSWER);
    socket.send_to(&reply, from)
}

#[test]
fn name_servers_that_change_while_connected_are_followed() {
    let _alone = alone();
    let _server = NeighbouringServer::start();
    let workstation = Workstation::connected(Account::Member, "dev", "shop", &[]);
    let web = testbed().service_ip("shop", "web");
    let dig = |words: &[&str]| {
        let usual = ["dig", "+short", "+time=2", "+tries=1"];
        let said = workstation.run(&[&usual, words].concat());
        said.stdout.trim().to_owned()
    };
    assert_eq!(dig(&["web.shop"]), web);

    let changed = ResolvConf::name(NEW_SERVER);
    eventually("the new server to be known", Duration::from_secs(5), || {
        let status = workstation.status();
        if status["dns"]["name_servers"][0] == NEW_SERVER && dig(&["web.shop"]) == web {
            Ok(())
        } else {
            Err(status["dns"].to_string())
        }
    });
    let foreign = dig(&["intranet.corp.test"]);
    // The old server is the machine's no more: a query to it is passed on unchanged.
    let old = dig(&["@172.30.0.53", "web.shop.svc.cluster.local"]);
    drop(changed);

    assert_eq!(foreign, "192.0.2.99");
    assert_ne!(old, web);
    eventually("the old server to be back", Duration::from_secs(5), || {
        let found = dig(&["web.shop"]);
        if found == web { Ok(()) } else { Err(found) }
    });
    assert_eq!(dig(&["intranet.corp.test"]), "192.0.2.10");
}

#[test]
fn a_firewall_that_drops_what_is_steered_is_told_with_the_rule_that_allows_it() {
    let _alone = alone();
    let workstation = Workstation::new(Account::Member, "dev");
    let rule = "oifname \"tp*\" accept";
    let connect = || workstation.connect(&["--namespace", "shop"]);
    let is_told = || {
        let notices = workstation.status()["notices"].clone();
        let notices = notices.as_array().cloned().unwrap_or_default();
        notices
            .iter()
            .any(|it| it.as_str().is_some_and(|it| it.contains(rule)))
    };
    let quiet = connect();
    assert!(!quiet.stderr.contains("firewall"), "{quiet}");
    assert!(!is_told());

    for target in ["DROP", "REJECT"] {
        workstation.tp(&["quit"]).expect_success();
        let firewall = Rule::insert(
            [firewall::named(&testbed().workstation())],
            ["filter", "OUTPUT"],
            &["-o", "tp+", "-j", target],
        );

        let connected = connect();

        assert!(connected.stderr.contains(rule), "{target}: {connected}");
        assert!(is_told(), "{target}");
        drop(firewall);
        assert!(!is_told(), "{target}");
        workstation.reaches_again(Duration::from_secs(10));
    }
}
