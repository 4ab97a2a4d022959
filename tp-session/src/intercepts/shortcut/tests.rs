use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener as StdTcpListener, TcpStream as StdTcpStream},
    process::{Child, Command, Stdio},
    sync::atomic::Ordering,
};

use tokio::net::TcpListener;
use tonic::transport::Endpoint;
use tp_core::dns::ServiceEntry;
use tp_proto::{
    local::InterceptRequest,
    tunnel::{FindWorkloadResponse, FoundPort, HeldPort, LeadingService},
};
use tp_transport::{Identity, SessionRef, TunnelServer};

use super::{
    super::{
        MadeObject,
        request::CheckedRequest,
        testing::{Anybody, connect as connect_tunnel},
    },
    *,
};

const POD: &str = "10.244.1.7:80";
const SERVICE: &str = "10.96.0.7:8080";

fn at(address: &str) -> SocketAddrV4 {
    address.parse().unwrap()
}

fn zone() -> Zone {
    let mut zone = Zone::new("cluster.local", "shop", []);
    zone.replace(["shop", "team"].map(str::to_owned), Vec::new());
    for (namespace, address) in [("shop", "10.96.0.7"), ("team", "10.96.0.8")] {
        let addresses = vec![address.parse().unwrap()];
        zone.apply(namespace, "web", ServiceEntry { addresses });
    }
    zone
}

/// Port 80 of deployment web in shop, which the service web leads to by its port 8080.
fn intercept(local: u16, request: InterceptRequest, is_whole: bool) -> OwnIntercept {
    let request = InterceptRequest {
        workload: "web".into(),
        ports: vec![local.to_string()],
        ..request
    };
    let port = FoundPort {
        local: local.into(),
        port: 80,
        services: vec!["web:8080".into()],
        ..FoundPort::default()
    };
    let found = FindWorkloadResponse {
        kind: "Deployment".into(),
        name: "web".into(),
        ports: vec![port],
        ready: 1,
        held: Vec::new(),
        pods: Vec::new(),
    };
    let checked = CheckedRequest::of(request, "shop").unwrap();
    let wanted = checked.complete(found, ([127, 0, 0, 1].into(), None));
    let mut entry = OwnIntercept::new(Arc::new(wanted.unwrap()), None);
    entry.phase = EntryPhase::Standing;
    entry.made = Some(MadeObject {
        uid: "i1".into(),
        session: "s1".into(),
    });
    entry.state = Some(InterceptState {
        uid: "i1".into(),
        pod_addresses: vec![vec![10, 244, 1, 7].into()],
        services: vec![LeadingService {
            name: "web".into(),
            port: 80,
            is_whole,
        }],
        ..InterceptState::default()
    });

    entry
}

fn entries(entry: OwnIntercept) -> Entries {
    BTreeMap::from([("web".to_owned(), entry)])
}

#[test]
fn pods_and_their_services_lead_to_the_port_and_nothing_else_does() {
    let led = |entry: OwnIntercept, target: &str| {
        let led = led_port(&entries(entry), &zone(), at(target))?;
        Some((led.port, led.is_whole))
    };
    let whole = || intercept(3000, InterceptRequest::default(), true);

    assert_eq!(led(whole(), POD), Some((80, true)));
    assert_eq!(led(whole(), SERVICE), Some((80, true)));
    for other in [
        "10.244.1.7:81",
        "10.244.1.8:80",
        "10.96.0.7:80",
        "10.96.0.8:8080",
    ] {
        assert_eq!(led(whole(), other), None, "{other}");
    }
    for target in [POD, SERVICE] {
        let led = led_port(&entries(whole()), &zone(), at(target)).unwrap();
        assert_eq!(led.pod, at(POD), "{target}");
    }
    let partly = intercept(3000, InterceptRequest::default(), false);
    assert_eq!(led(partly, SERVICE), Some((80, false)));
    // As of a manager that does not say.
    let mut untold = whole();
    untold.state = Some(InterceptState::default());
    assert_eq!(led(untold, SERVICE), None);
    let mut held = whole();
    let by_another = HeldPort {
        port: 80,
        ..HeldPort::default()
    };
    held.state.as_mut().unwrap().held = vec![by_another];
    assert_eq!(led(held, POD), None);
    let mut leaving = whole();
    leaving.phase = EntryPhase::Leaving;
    assert_eq!(led(leaving, POD), None);
}

/// A process that answers one connection; ours is no part of its tree.
struct Handler(Child, u16);

impl Handler {
    fn start() -> Self {
        let program = "import socket\n\
                       server = socket.create_server(('127.0.0.1', 0))\n\
                       print(server.getsockname()[1], flush=True)\n\
                       client, _ = server.accept()\n\
                       client.sendall(b'local ' + client.makefile('rb').read())";
        let started = Command::new("python3")
            .args(["-c", program])
            .stdout(Stdio::piped())
            .spawn();
        let mut child = started.expect("python3 runs");
        let mut line = String::new();
        let output = child.stdout.take().expect("it is piped");
        BufReader::new(output).read_line(&mut line).unwrap();

        Self(child, line.trim().parse().unwrap())
    }
}

impl Drop for Handler {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A connection of this process, and what the session knows.
struct Lab {
    shared: Shared,
    flow: FlowKey,
    call: StdTcpStream,
    accepted: Option<TcpStream>,
}

impl Lab {
    async fn new() -> Self {
        let shared = Shared::new(zone());
        let identity = Identity::generate().unwrap();
        let key = identity.key_hash();
        let server = TunnelServer::bind(None, identity, Arc::new(Anybody)).unwrap();
        let session = SessionRef {
            namespace: "shop".into(),
            name: "s1".into(),
            uid: "s1".into(),
        };
        let manager = Endpoint::from_static("http://127.0.0.1:1").connect_lazy();
        let (up, _) = connect_tunnel(&server, key, session, manager).await;
        shared.up.send_replace(Some(up));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let call = StdTcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        let (SocketAddr::V4(source), SocketAddr::V4(destination)) =
            (call.local_addr().unwrap(), call.peer_addr().unwrap())
        else {
            panic!("an address of IPv4 is expected");
        };

        Self {
            shared,
            flow: FlowKey {
                source,
                destination,
            },
            call,
            accepted: Some(accepted),
        }
    }

    async fn way(&self, entry: OwnIntercept, target: &str) -> CallWay {
        self.way_of(Callers::default(), entry, target).await
    }

    async fn way_of(&self, callers: Callers, entry: OwnIntercept, target: &str) -> CallWay {
        let targets = Arc::new(InterceptTargets::default());
        targets.insert("i1", entry.targets());
        let (_, entries) = watch::channel(entries(entry));
        let calls = LocalCalls {
            intercepts: Some((entries, targets)),
            callers,
        };

        calls.way(&self.shared, self.flow, at(target)).await
    }
}

fn with(when_down: &str, no_local_shortcut: bool) -> InterceptRequest {
    InterceptRequest {
        when_down: when_down.into(),
        no_local_shortcut,
        ..InterceptRequest::default()
    }
}

#[tokio::test]
async fn a_call_of_this_machine_reaches_the_local_process_and_is_counted() {
    let mut lab = Lab::new().await;
    let handler = Handler::start();
    let entry = intercept(handler.1, with("", false), true);
    let wanted = Arc::clone(&entry.wanted);

    let CallWay::Local(call) = lab.way(entry, SERVICE).await else {
        panic!("it goes elsewhere");
    };
    let served = tokio::spawn(call.serve(lab.accepted.take().unwrap()));
    let mut client = lab.call;
    let asked = tokio::task::spawn_blocking(move || {
        client.write_all(b"question").unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        answer
    });

    assert_eq!(asked.await.unwrap(), "local question");
    served.await.unwrap();
    assert_eq!(wanted.local_calls.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn calls_of_the_handler_go_to_the_container() {
    let lab = Lab::new().await;
    // This process listens, and calls.
    let listener = StdTcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();

    for is_whole in [true, false] {
        for no_shortcut in [true, false] {
            let entry = intercept(port, with("", no_shortcut), is_whole);
            let way = lab.way(entry, SERVICE).await;
            assert!(matches!(way, CallWay::Container));
        }
    }
    let mut entry = intercept(1, with("", false), true);
    let command = Arc::get_mut(&mut entry.wanted).unwrap();
    command.command_of = Some(std::process::id());
    assert!(matches!(lab.way(entry, POD).await, CallWay::Container));
}

#[tokio::test]
async fn a_call_of_nobody_knows_whom_is_refused() {
    let lab = Lab::new().await;
    let handler = Handler::start();

    for no_shortcut in [true, false] {
        let entry = intercept(handler.1, with("", no_shortcut), true);
        let way = lab.way_of(Callers::failing(), entry, SERVICE).await;
        assert!(matches!(way, CallWay::Refused(Outcome::Exhausted)));
    }
}

#[tokio::test]
async fn what_has_no_shortcut_goes_through_the_cluster() {
    let lab = Lab::new().await;
    let handler = Handler::start();
    let through = async |request, is_whole, target| {
        let entry = intercept(handler.1, request, is_whole);
        matches!(lab.way(entry, target).await, CallWay::Cluster)
    };

    assert!(through(with("", true), true, SERVICE).await);
    assert!(through(with("", false), false, SERVICE).await);
    assert!(through(with("", false), true, "10.96.0.8:8080").await);
    lab.shared.up.send_replace(None);
    assert!(through(with("", false), true, POD).await);
}

#[tokio::test]
async fn where_nothing_listens_a_call_is_refused_or_the_container_serves_it() {
    let lab = Lab::new().await;
    let refused = lab.way(intercept(1, with("refuse", false), true), POD);
    assert!(matches!(refused.await, CallWay::Refused(Outcome::Refused)));
    let served = lab.way(intercept(1, with("container", false), true), POD);
    assert!(matches!(served.await, CallWay::Container));
}
