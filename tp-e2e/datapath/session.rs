//! A session without a cluster: the product's own relay and DNS service on the descriptors of a
//! real root daemon, over a real tunnel whose other end is [`FarSide`].

use std::{
    fs::File,
    io::{BufRead, Write},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    os::fd::OwnedFd,
    sync::{Arc, mpsc},
    time::Duration,
};

use rustix::fs::{OFlags, fcntl_getfl};
use serde_json::{Value, json};
use tokio::runtime::{Builder, Runtime};
use tokio_util::sync::CancellationToken;
use tp_core::dns::Zone;
use tp_proto::tunnel::{manager_client::ManagerClient, table_event::Event};
use tp_root_api::{Datapath, Descriptors, DropReason};
use tp_session::{ActiveTunnel, Handover, Shared, Tasks, firewall};
use tp_transport::{PathChoice, SessionRef, Tunnel, TunnelConfig};

use crate::{
    dials,
    far_side::{self, FarSide},
    packets::{self, Ends},
    root_client::RootClient,
    sys,
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A running session.
struct Session {
    root: RootClient,
    shared: Arc<Shared>,
    far_side: Arc<FarSide>,
    /// Cancelled when the session closes its bundle.
    stop: CancellationToken,
    datapath: Datapath,
    /// For forged packets.
    tun: File,
    /// Connections to local processes.
    dialled: Vec<OwnedFd>,
    thaw_tx: Option<mpsc::Sender<()>>,
    /// Runs only the relay and the DNS service. Its drop waits for its thread; `thaw_tx`, dropped
    /// before, releases that.
    runtime: Runtime,
    /// Runs the far end of the tunnel.
    _elsewhere: Runtime,
}

/// `SOCKET NETNS SCOPE STEER NAME_SERVERS [NUMBER]`: all but the first two are JSON. The number tells
/// the far sides of several sessions apart; see [`FarSide::new`].
pub(crate) fn run(words: &[&str]) {
    let (words, number) = match words {
        [words @ .., number] if words.len() == 5 => (words, number.parse().expect("a number")),
        words => (words, 0),
    };
    let [socket, netns, scope, steer, name_servers] = words else {
        panic!("session SOCKET NETNS SCOPE STEER NAME_SERVERS [NUMBER]");
    };
    let json = |text: &str| serde_json::from_str::<Value>(text).expect("JSON");
    let root = match RootClient::connect(socket) {
        Ok(root) => root,
        Err(error) => return say(&json!({"event": "no_connection", "error": error.to_string()})),
    };
    let netns = (!netns.is_empty()).then_some(*netns);
    let open = json!({"request": "open", "scope": json(scope)});
    let (reply, fds) = root.ask(&open, netns);
    if reply["reply"] != "opened" {
        return say(&json!({"event": "refused", "reply": reply}));
    }
    let facts = facts(&fds);

    let mut session = Session::start(root, &reply, fds, number);
    let servers = json!({"request": "name_servers", "servers": json(name_servers)});
    for request in [merged("steer", json(steer)), servers] {
        let reply = session.ask(&request);
        assert_eq!(reply["reply"], "done", "{reply}");
    }
    say(&json!({"event": "ready", "bundle": reply, "facts": facts}));
    session.obey();
}

impl Session {
    fn start(root: RootClient, reply: &Value, fds: Vec<OwnedFd>, number: u8) -> Self {
        let datapath: Datapath = serde_json::from_value(reply.clone()).expect("a data path");
        let tun = fds[2].try_clone().expect("a descriptor can be copied");
        let (runtime, elsewhere) = (one_thread(), one_thread());
        let (far_side, link) = elsewhere.block_on(async {
            let far_side = FarSide::new(number);
            let link = far_side.link();
            (far_side, link)
        });
        let config = TunnelConfig {
            identity: far_side.session_identity.clone(),
            session: SessionRef {
                namespace: "default".to_owned(),
                name: "datapath".to_owned(),
                uid: "6f1c7b0a-0000-4000-8000-000000000001".to_owned(),
            },
            manager_key: far_side.manager_key,
            choice: PathChoice::StreamOnly,
        };
        let shared = Arc::new(Shared::new(Zone::new("cluster.local", "default", [])));
        shared.apply(Event::Snapshot(far_side::table(number)));
        let descriptors = Descriptors::from_fds(fds).expect("five descriptors");
        let handover = Handover::new(datapath.clone(), descriptors).expect("maps");
        let stop = CancellationToken::new();
        runtime.block_on(async {
            let up = tokio::time::timeout(CONNECT_TIMEOUT, connect(link, config)).await;
            shared
                .up
                .send_replace(Some(up.expect("a tunnel in memory is fast")));
            let tasks = Tasks::new(stop.clone());
            handover.serve(&shared, &tasks).expect("descriptors");
            // Reports what `tp status` and the log would show.
            tokio::spawn(async move {
                let reason = tasks.lost().await;
                say(&json!({"event": "lost", "reason": reason}));
            });
        });

        Self {
            root,
            shared,
            far_side,
            stop,
            datapath,
            tun: File::from(tun),
            dialled: Vec::new(),
            runtime,
            thaw_tx: None,
            _elsewhere: elsewhere,
        }
    }

    /// Sends a request to the root daemon, and applies changed name servers as a session does.
    fn ask(&self, request: &Value) -> Value {
        if request["request"] == "close" {
            self.stop.cancel();
        }
        let (reply, _) = self.root.ask(request, None);
        if request["request"] == "name_servers" && reply["reply"] == "done" {
            let servers: Vec<SocketAddr> =
                serde_json::from_value(request["servers"].clone()).expect("addresses");
            let v4: Vec<SocketAddrV4> = servers
                .into_iter()
                .filter_map(|server| match server {
                    SocketAddr::V4(v4) => Some(v4),
                    SocketAddr::V6(_) => None,
                })
                .collect();
            self.shared.name_servers.send_replace(v4);
        }

        reply
    }

    /// Commands of the test: "freeze" (hangs the whole session), "thaw", "inject", "dials TARGET",
    /// "disconnect" (the tunnel), "firewall" (whether one is detected), "wait" (for the end of the
    /// root daemon's connection), "dial TARGET [CLIENT]" (connects to a local process for a client),
    /// "hang-up" (those connections), "time-clients CLIENT COUNT", or a request to forward.
    fn obey(&mut self) {
        for line in std::io::stdin().lock().lines() {
            let line = line.expect("input is text");
            let words: Vec<&str> = line.split(' ').collect();
            match words.as_slice() {
                ["freeze"] => self.freeze(),
                ["thaw"] => self.thaw_tx = None,
                ["inject"] => self.inject(),
                ["hang-up"] => self.dialled.clear(),
                ["dial", target, client @ ..] => {
                    let target = target.parse().expect("an address");
                    let client = client.first().map(|it| it.parse().expect("an address"));
                    let (socket, source, reply) = dials::dial(&self.root, target, client);
                    self.dialled.push(socket);
                    say(&json!({"event": "obeyed", "source": source, "reply": reply}));
                    continue;
                }
                ["time-clients", client, count] => {
                    let client = client.parse().expect("an address");
                    let count = count.parse().expect("a number");
                    say(&dials::measure(&self.root, client, count));
                    continue;
                }
                ["disconnect"] => {
                    self.shared.up.send_replace(None);
                }
                ["dials", target] => {
                    let target = target.parse().expect("an address");
                    let dials = self.far_side.dials(target);
                    say(&json!({"event": "obeyed", "dials": dials}));
                    continue;
                }
                ["firewall"] => {
                    say(&json!({"event": "obeyed", "is_noticed": !self.passes()}));
                    continue;
                }
                ["wait"] => {
                    self.root.wait_for_end();
                    return;
                }
                _ => {
                    let request = serde_json::from_str(&line).expect("a request");
                    say(&json!({"event": "reply", "reply": self.ask(&request)}));
                    continue;
                }
            }
            say(&json!({"event": "obeyed"}));
        }
    }

    /// The check of a session that has connected.
    fn passes(&self) -> bool {
        let reason = DropReason::ForeignSocket.name();
        let reached = async || {
            let counters = self.ask(&json!({"request": "counters"}));
            let drops = counters["drops"].as_array()?;
            let count = drops.iter().find(|pair| pair[0] == reason)?;
            count[1].as_u64()
        };
        let alias = firewall::unused_alias(&self.datapath);

        let passes = self.runtime.block_on(firewall::lets_pass(alias, reached));
        passes.expect("the root daemon counts")
    }

    /// Stops the only thread of the session until "thaw".
    fn freeze(&mut self) {
        let (thaw_tx, thaw) = mpsc::channel::<()>();
        let (frozen_tx, frozen) = mpsc::channel();
        self.runtime.spawn(async move {
            frozen_tx.send(()).expect("the test waits");
            // Returns when the sender is dropped.
            let _ = thaw.recv();
        });
        frozen.recv().expect("the session runs");
        self.thaw_tx = Some(thaw_tx);
    }

    /// Writes packets that must not get out of the session's namespace.
    fn inject(&mut self) {
        let packets = forbidden(self.datapath.alias_base, self.datapath.host_address);
        for packet in packets {
            self.tun.write_all(&packet).expect("the TUN takes packets");
        }
    }
}

async fn connect(link: tokio::io::DuplexStream, config: TunnelConfig) -> ActiveTunnel {
    let session = config.session.clone();
    let tunnel = Tunnel::connect(link, config).await.expect("a tunnel");
    let control = tunnel.open_control().await.expect("a control stream");
    let channel = control.into_channel().await.expect("a channel");

    ActiveTunnel {
        tunnel,
        session,
        manager: ManagerClient::new(channel),
        replica: "far-side".to_owned(),
        version: tp_core::VERSION.to_owned(),
    }
}

/// A runtime of one thread, which can be stopped.
fn one_thread() -> Runtime {
    Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime")
}

fn forbidden(base: Ipv4Addr, host: Ipv4Addr) -> Vec<Vec<u8>> {
    let alias = ((u32::from(base) + 300).to_be_bytes(), 80);
    let host = (host.octets(), 40000);
    let stranger = ([9, 9, 9, 9], 80);
    let ends = |source, destination| Ends {
        source,
        destination,
    };
    let about_a_stranger = packets::udp(ends(host, stranger), b"");
    let mut wrong_about = packets::unreachable(&about_a_stranger, 1);
    // From an alias, but about a foreign connection.
    packets::set_source(&mut wrong_about, alias.0);

    vec![
        packets::udp(ends(stranger, host), b"x"),
        packets::udp(ends(alias, stranger), b"x"),
        wrong_about,
        packets::segment(ends(alias, host), 0x10),
        packets::segment(ends(stranger, alias), 0x02),
    ]
}

/// Facts about the descriptors, for tests.
fn facts(fds: &[OwnedFd]) -> Value {
    let nonblocking = fds[..3]
        .iter()
        .all(|fd| fcntl_getfl(fd).is_ok_and(|flags| flags.contains(OFlags::NONBLOCK)));

    json!({
        "nonblocking": nonblocking,
        "alias_table_is_writable": sys::is_writable(&fds[3]),
    })
}

fn merged(request: &str, mut value: Value) -> Value {
    value["request"] = request.into();
    value
}

pub(crate) fn say(event: &Value) {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{event}").expect("the test listens");
    stdout.flush().expect("the test listens");
}
