//! The memory that a session costs the server before it has a flow. The clients are another process:
//! this same program, started with other arguments.

#![expect(clippy::unwrap_used, reason = "a failed step fails its test")]

use std::{
    env, fs,
    io::{BufRead as _, Write as _},
    net::SocketAddr,
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    task::JoinSet,
    time::timeout,
};
use tp_transport::{
    Accepted, Admission, FlowIo, Identity, KeyHash, PathChoice, Refusal, SessionRef, Tunnel,
    TunnelConfig, TunnelServer,
};

const FEW: usize = 40;
const MANY: usize = 240;
const BYTES_OF_SESSION: usize = 64 << 10;
/// Bytes that each client is sent at first, like the table of names.
const FIRST_BYTES: usize = 256 << 10;
const TIMEOUT: Duration = Duration::from_secs(60);
/// The server's address and its key, for the clients.
const SERVER: &str = "TP_TEST_SERVER";
const KEY: &str = "TP_TEST_KEY";

/// Admits any client that holds a key.
struct Everybody;

impl Admission for Everybody {
    fn known(&self, _: &SessionRef) -> Result<(), Refusal> {
        Ok(())
    }

    fn admit(&self, _: &SessionRef, _: &KeyHash) -> Result<(), Refusal> {
        Ok(())
    }
}

#[tokio::test]
async fn a_session_without_flows_takes_little_of_the_servers_memory_also_after_it_was_told_much() {
    let identity = Identity::generate().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut clients = Command::new(env::current_exe().unwrap())
        .args(["--exact", "--ignored", "clients_of_a_server_elsewhere"])
        .env(SERVER, listener.local_addr().unwrap().to_string())
        .env(KEY, identity.key_hash().to_string())
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut commands = clients.stdin.take().unwrap();
    let server = TunnelServer::bind(None, identity, Arc::new(Everybody)).unwrap();
    let (accepting, mut attached) = (Arc::clone(&server), JoinSet::new());
    let accept = tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let server = Arc::clone(&accepting);
            attached.spawn(async move { server.attach(stream).await.unwrap() });
        }
    });

    let mut peers = Vec::new();
    let mut taken = Vec::new();
    for count in [FEW, MANY] {
        writeln!(commands, "{count}").unwrap();
        while peers.len() < count {
            let peer = timeout(TIMEOUT, server.accept()).await;
            let peer = peer.expect("clients connect in time").unwrap();
            let Some(Accepted::Control(mut io)) = peer.accept().await else {
                panic!("a client opens a control stream first");
            };
            let told = timeout(TIMEOUT, async {
                io.write_all(&vec![7; FIRST_BYTES]).await.unwrap();
                io.read_u8().await.unwrap()
            });
            told.await.expect("clients read what they are told");
            peers.push((peer, io));
        }
        taken.push(resident_bytes());
    }
    accept.abort();
    drop(commands);
    assert!(clients.wait().unwrap().success());

    let each = (taken[1] - taken[0]) / (MANY - FEW);
    println!("{each} bytes for a session");
    assert!(each <= BYTES_OF_SESSION, "{each} bytes for a session");
}

/// It waits for lines on standard input, while its connections go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "the other end of the test above, which starts it"]
async fn clients_of_a_server_elsewhere() {
    let server: SocketAddr = env::var(SERVER).unwrap().parse().unwrap();
    let manager_key: KeyHash = env::var(KEY).unwrap().parse().unwrap();
    let mut tunnels: Vec<(Tunnel, FlowIo)> = Vec::new();
    for count in std::io::stdin().lock().lines() {
        let count: usize = count.unwrap().parse().unwrap();
        while tunnels.len() < count {
            let config = TunnelConfig {
                identity: Identity::generate().unwrap(),
                session: SessionRef {
                    namespace: "shop".into(),
                    name: format!("session-{}", tunnels.len()),
                    uid: "1".into(),
                },
                manager_key,
                choice: PathChoice::StreamOnly,
            };
            let link = tokio::net::TcpStream::connect(server).await.unwrap();
            let tunnel = timeout(TIMEOUT, Tunnel::connect(link, config)).await;
            let tunnel = tunnel.expect("a handshake takes less").unwrap();
            let mut io = tunnel.open_control().await.unwrap();
            io.read_exact(&mut vec![0; FIRST_BYTES]).await.unwrap();
            io.write_u8(1).await.unwrap();
            tunnels.push((tunnel, io));
        }
    }
}

fn resident_bytes() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|it| it.strip_prefix("VmRSS:"));
    let kilobytes = line.unwrap().trim().trim_end_matches(" kB");

    kilobytes.parse::<usize>().unwrap() << 10
}
