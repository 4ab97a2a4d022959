//! Measures the tunnel's throughput over loopback, from a TCP connection to a TCP connection, and its
//! cost. Two processes, as in real use; the processor time covers both, with source and sink.
//!
//! `cargo run --release -p tp-transport --example throughput [SECONDS]`

use std::{
    env,
    net::SocketAddr,
    process::Stdio,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    process::{Child, Command},
    task::JoinSet,
};
use tp_transport::{
    Accepted, Admission, Dialed, Identity, KeyHash, PathChoice, PathKind, Refusal, SessionRef,
    SpliceCounters, Tunnel, TunnelConfig, TunnelServer, splice, tune_link,
};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

const BLOCK: usize = 256 << 10;
const SINK: u8 = b's';
const SOURCE: u8 = b'd';
const ECHO: u8 = b'e';

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<()> {
    match env::args().nth(1).as_deref() {
        Some("server") => serve().await,
        seconds => measure(seconds.unwrap_or("5").parse()?).await,
    }
}

struct Everybody;

impl Admission for Everybody {
    fn known(&self, _: &SessionRef) -> std::result::Result<(), Refusal> {
        Ok(())
    }

    fn admit(&self, _: &SessionRef, _: &KeyHash) -> std::result::Result<(), Refusal> {
        Ok(())
    }
}

/// The far process: the tunnel's server, and the target that it dials.
async fn serve() -> Result<()> {
    let identity = Identity::generate()?;
    let key = identity.key_hash();
    let udp = std::net::UdpSocket::bind("127.0.0.1:0")?;
    let udp_address = udp.local_addr()?;
    let server = TunnelServer::bind(Some(udp), identity, Arc::new(Everybody))?;
    let links = TcpListener::bind("127.0.0.1:0").await?;
    let target = TcpListener::bind("127.0.0.1:0").await?;
    println!(
        "{key} {udp_address} {} {}",
        links.local_addr()?,
        target.local_addr()?
    );

    let mut tasks = JoinSet::new();
    loop {
        tokio::select! {
            link = links.accept() => {
                let (link, server) = (link?.0, Arc::clone(&server));
                tune_link(&link)?;
                tasks.spawn(async move { drop(server.attach(link).await) });
            }
            connection = target.accept() => {
                let connection = connection?.0;
                connection.set_nodelay(true)?;
                tasks.spawn(async move { drop(target_end(connection).await) });
            }
            peer = server.accept() => {
                let peer = peer.ok_or("the server has ended")?;
                tasks.spawn(async move {
                    let mut flows = JoinSet::new();
                    while let Some(accepted) = peer.accept().await {
                        flows.spawn(async move { drop(dial(accepted).await) });
                    }
                });
            }
            Some(_) = tasks.join_next() => {}
        }
    }
}

async fn dial(accepted: Accepted) -> Result<()> {
    if let Accepted::Dial {
        target, pending, ..
    } = accepted
    {
        let tcp = TcpStream::connect(target).await?;
        let flow = pending.accept().await?;
        splice(tcp, flow, &SpliceCounters::default()).await;
    }

    Ok(())
}

async fn target_end(mut tcp: TcpStream) -> Result<()> {
    let mut block = vec![7; BLOCK];
    match tcp.read_u8().await? {
        SINK => while tcp.read(&mut block).await? > 0 {},
        SOURCE => loop {
            tcp.write_all(&block).await?;
        },
        _ => loop {
            let length = tcp.read(&mut block).await?;
            if length == 0 {
                break;
            }
            tcp.write_all(&block[..length]).await?;
        },
    }

    Ok(())
}

struct Far {
    child: Child,
    key: KeyHash,
    udp: SocketAddr,
    link: SocketAddr,
    target: SocketAddr,
}

async fn start() -> Result<Far> {
    let mut child = Command::new(env::current_exe()?)
        .arg("server")
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let stdout = child.stdout.take().ok_or("no output")?;
    let line = BufReader::new(stdout).lines().next_line().await?;
    let line = line.ok_or("the server said nothing")?;
    let [key, udp, link, target] = line.split(' ').collect::<Vec<_>>()[..] else {
        return Err("the server said something else".into());
    };

    Ok(Far {
        child,
        key: key.parse()?,
        udp: udp.parse()?,
        link: link.parse()?,
        target: target.parse()?,
    })
}

async fn measure(seconds: u64) -> Result<()> {
    let time = Duration::from_secs(seconds);
    for path in [PathKind::Stream, PathKind::Udp] {
        let far = start().await?;
        let link = TcpStream::connect(far.link).await?;
        tune_link(&link)?;
        let tunnel = Tunnel::connect(
            link,
            TunnelConfig {
                identity: Identity::generate()?,
                session: SessionRef {
                    namespace: "bench".into(),
                    name: "bench".into(),
                    uid: "1".into(),
                },
                manager_key: far.key,
                choice: PathChoice::Auto,
            },
        )
        .await?;
        if path == PathKind::Udp {
            tunnel.set_candidates(vec![far.udp]);
            let mut status = tunnel.path();
            status.wait_for(|status| status.path == path).await?;
        }
        latency(&tunnel, &far, path).await?;
        bulk(&tunnel, &far, path, SINK, time).await?;
        bulk(&tunnel, &far, path, SOURCE, time).await?;
        let stats = tunnel.stats();
        println!(
            "{path:?}: mtu {} lost {} rtt {:?} switches {} udp buffers {}/{} KiB",
            stats.mtu,
            stats.lost_packets,
            stats.rtt,
            tunnel.path().borrow().switches,
            stats.udp_receive_buffer >> 10,
            stats.udp_send_buffer >> 10,
        );
    }

    Ok(())
}

/// An application's connection through the tunnel.
async fn through(tunnel: &Tunnel, far: &Far, tasks: &mut JoinSet<()>) -> Result<TcpStream> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let connecting = TcpStream::connect(listener.local_addr()?);
    let (app, accepted) = tokio::join!(connecting, listener.accept());
    let (app, tcp) = (app?, accepted?.0);
    app.set_nodelay(true)?;
    let Dialed::Connected(flow) = tunnel.dial(far.target).await? else {
        return Err("the dial was refused".into());
    };
    tasks.spawn(async move {
        splice(tcp, flow, &SpliceCounters::default()).await;
    });

    Ok(app)
}

async fn bulk(
    tunnel: &Tunnel,
    far: &Far,
    path: PathKind,
    direction: u8,
    time: Duration,
) -> Result<()> {
    let mut tasks = JoinSet::new();
    let mut app = through(tunnel, far, &mut tasks).await?;
    app.write_u8(direction).await?;
    let mut block = vec![7; BLOCK];
    let (near_before, far_before) = (cpu_seconds("self")?, far_cpu(far)?);
    let started = Instant::now();
    let mut bytes = 0;
    while started.elapsed() < time {
        bytes += match direction {
            SINK => app.write(&block).await?,
            _ => app.read(&mut block).await?,
        };
    }
    let elapsed = started.elapsed().as_secs_f64();
    let gib = bytes as f64 / f64::from(1 << 30);
    println!(
        "{path:?} {}: {:.2} Gbit/s, CPU-s/GiB near {:.2} far {:.2}",
        if direction == SINK { "up" } else { "down" },
        bytes as f64 * 8.0 / elapsed / 1e9,
        (cpu_seconds("self")? - near_before) / gib,
        (far_cpu(far)? - far_before) / gib,
    );

    Ok(())
}

async fn latency(tunnel: &Tunnel, far: &Far, path: PathKind) -> Result<()> {
    const ROUNDS: usize = 3000;

    let mut tasks = JoinSet::new();
    let mut app = through(tunnel, far, &mut tasks).await?;
    let mut direct = TcpStream::connect(far.target).await?;
    direct.set_nodelay(true)?;
    for (name, tcp) in [("tunnel", &mut app), ("direct", &mut direct)] {
        tcp.write_u8(ECHO).await?;
        let mut times = Vec::with_capacity(ROUNDS);
        let mut request = [0; 64];
        for _ in 0..ROUNDS {
            let started = Instant::now();
            tcp.write_all(&request).await?;
            tcp.read_exact(&mut request).await?;
            times.push(started.elapsed());
        }
        times.sort();
        println!(
            "{path:?} request on a kept connection, {name}: median {:?}, p99 {:?}",
            times[ROUNDS / 2],
            times[ROUNDS * 99 / 100],
        );
    }

    Ok(())
}

fn far_cpu(far: &Far) -> Result<f64> {
    cpu_seconds(&far.child.id().ok_or("the server has ended")?.to_string())
}

/// User and system time of a process.
fn cpu_seconds(process: &str) -> Result<f64> {
    const TICKS_PER_SECOND: f64 = 100.0;

    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    let (_, fields) = stat.rsplit_once(") ").ok_or("malformed stat")?;
    let mut times = fields.split(' ').skip(11).map(str::parse::<f64>);
    let (user, system) = (
        times.next().ok_or("no time")??,
        times.next().ok_or("no time")??,
    );

    Ok((user + system) / TICKS_PER_SECOND)
}
