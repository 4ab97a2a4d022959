//! The workstation's end of every flow: SYNs from the TUN, connections from the listener.

use std::{
    collections::HashMap,
    io,
    net::{SocketAddr, SocketAddrV4},
    panic::AssertUnwindSafe,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use futures::FutureExt as _;
use tokio::{
    net::{TcpListener, TcpStream},
    task::{AbortHandle, JoinSet},
    time::{Interval, MissedTickBehavior, interval, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tp_core::{
    packet::{self, FlowKey},
    syn::{Action, Attempt, HeldSyns},
    verdict::Verdict,
};
use tp_proto::tunnel::Outcome;
use tp_transport::{Dialed, Flow, splice_observed};

use super::{
    datapath::{aliases::AliasMap, tun::Tun},
    dns::{self, Dns},
    intercepts::{CallWay, LocalCall, LocalCalls},
    shared::{FlowCount, Shared, count},
    sys::{self, BEAT_INTERVAL, Heartbeat, Part},
};

/// As many as the listener's backlog.
const MAX_HELD: usize = 4096;
/// Packets taken from the TUN before others get their turn.
const BATCH: usize = 64;
/// The largest packet; SYNs are far smaller.
const MAX_PACKET: usize = 65_536;
const ACCEPT_RETRY_INTERVAL: Duration = Duration::from_millis(50);
const IDLE_TIMEOUT: Duration = Duration::from_secs(3600);

pub(super) struct Relay {
    pub(super) tun: Tun,
    pub(super) listener: TcpListener,
    pub(super) aliases: AliasMap,
    pub(super) shared: Arc<Shared>,
    pub(super) dns: Arc<Dns>,
    pub(super) calls: Arc<LocalCalls>,
    pub(super) heartbeat: Arc<Heartbeat>,
}

/// The far end of an approved attempt, until its connection is accepted.
enum Ready {
    Flow(Flow),
    NameServer(dns::NameServerStream),
    Local(LocalCall),
}

/// The result of a dial.
struct FinishedDial {
    attempt: Attempt,
    verdict: Verdict,
    ready: Option<Ready>,
}

/// The state of the loop.
struct Attempts {
    held: HeldSyns,
    dialling: HashMap<Attempt, AbortHandle>,
    ready: HashMap<FlowKey, Ready>,
    dials: JoinSet<FinishedDial>,
    flows: JoinSet<()>,
    beat: Interval,
}

enum Input {
    Packet(usize),
    Accepted(TcpStream, SocketAddr),
    Dialled(FinishedDial),
    Timeout,
    Stop,
}

impl Relay {
    /// Runs until `stop`; then every held attempt and every flow is reset.
    pub(super) async fn run(self, stop: CancellationToken) -> io::Result<()> {
        let mut attempts = Attempts {
            held: HeldSyns::new(MAX_HELD),
            dialling: HashMap::new(),
            ready: HashMap::new(),
            dials: JoinSet::new(),
            flows: JoinSet::new(),
            beat: interval(BEAT_INTERVAL),
        };
        attempts
            .beat
            .set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut buffer = vec![0; MAX_PACKET];
        loop {
            match self.next_input(&mut attempts, &mut buffer, &stop).await? {
                Input::Packet(length) => {
                    self.packet(&mut attempts, &buffer[..length]);
                    for _ in 1..BATCH {
                        let Some(length) = self.tun.try_read(&mut buffer) else {
                            break;
                        };
                        self.packet(&mut attempts, &buffer[..length]);
                    }
                }
                Input::Accepted(stream, peer) => self.accepted(&mut attempts, stream, peer),
                Input::Dialled(dialled) => self.dialled(&mut attempts, dialled),
                Input::Timeout => {
                    let actions = attempts.held.handle_timeout(Instant::now());
                    self.perform(&mut attempts, actions);
                }
                Input::Stop => {
                    for packet in attempts.held.reset_all() {
                        self.tun.write(&packet);
                    }
                    return Ok(());
                }
            }
            let held = u64::try_from(attempts.held.dialling()).unwrap_or(u64::MAX);
            self.shared.counters.held.store(held, Ordering::Relaxed);
        }
    }

    async fn next_input(
        &self,
        attempts: &mut Attempts,
        buffer: &mut [u8],
        stop: &CancellationToken,
    ) -> io::Result<Input> {
        let due = attempts
            .held
            .poll_timeout()
            .unwrap_or_else(|| Instant::now() + IDLE_TIMEOUT);
        loop {
            let input = tokio::select! {
                () = stop.cancelled() => Input::Stop,
                _ = attempts.beat.tick() => {
                    self.heartbeat.beat(Part::Relay);
                    continue;
                }
                length = self.tun.read(buffer) => Input::Packet(length?),
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, peer)) => Input::Accepted(stream, peer),
                    // The socket no longer listens.
                    Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                        return Err(error);
                    }
                    Err(error) => {
                        // Without a free descriptor, the connection waits in the backlog.
                        tracing::info!(%error, "Connection not accepted");
                        tokio::time::sleep(ACCEPT_RETRY_INTERVAL).await;
                        continue;
                    }
                },
                Some(dialled) = attempts.dials.join_next() => match dialled {
                    Ok(dialled) => Input::Dialled(dialled),
                    // Cancelled with its attempt.
                    Err(_) => continue,
                },
                Some(ended) = attempts.flows.join_next() => {
                    if let Err(error) = ended && error.is_panic() {
                        tracing::error!(%error, "Flow lost");
                    }
                    continue;
                }
                () = sleep_until(due.into()) => Input::Timeout,
            };
            return Ok(input);
        }
    }

    fn packet(&self, attempts: &mut Attempts, bytes: &[u8]) {
        let Some(syn) = packet::parse_syn(bytes) else {
            return;
        };
        let actions = attempts.held.handle_syn(syn, Instant::now());
        self.perform(attempts, actions);
    }

    fn perform(&self, attempts: &mut Attempts, actions: impl IntoIterator<Item = Action>) {
        for action in actions {
            let mut next = Some(action);
            while let Some(action) = next {
                next = self.perform_one(attempts, action);
            }
        }
    }

    /// Performs `action`; returns the action that follows at once.
    fn perform_one(&self, attempts: &mut Attempts, action: Action) -> Option<Action> {
        match action {
            Action::Write(packet) => self.tun.write(&packet),
            Action::WriteAgain(packet) => {
                count(&self.shared.counters.repeated);
                self.tun.write(&packet);
            }
            Action::Cancel(attempt) => {
                attempts.ready.remove(&attempt.flow);
                if let Some(dial) = attempts.dialling.remove(&attempt) {
                    dial.abort();
                }
            }
            Action::Dial(attempt) => return self.dial(attempts, attempt),
        }

        None
    }

    /// Begins to dial; returns the refusal of an attempt whose destination is not known.
    fn dial(&self, attempts: &mut Attempts, attempt: Attempt) -> Option<Action> {
        let Some(target) = self.aliases.real(attempt.flow.destination) else {
            let verdict = Verdict::HostUnreachable;
            return attempts
                .held
                .handle_verdict(attempt, verdict, Instant::now());
        };
        let (dns, shared) = (Arc::clone(&self.dns), Arc::clone(&self.shared));
        let calls = Arc::clone(&self.calls);
        let dial = async move {
            if dns.is_name_server(target) {
                let (verdict, server) = dns.dial(target).await;
                return (verdict, server.map(Ready::NameServer));
            }
            let to_container = match calls.way(&shared, attempt.flow, target).await {
                CallWay::Cluster => false,
                CallWay::Container => true,
                CallWay::Local(call) => return (Verdict::Connected, Some(Ready::Local(call))),
                CallWay::Refused(outcome) => return (verdict(outcome), None),
            };
            let (verdict, flow) = dial(&shared, target, to_container).await;
            shared.counters.dialled(verdict);

            (verdict, flow.map(Ready::Flow))
        };
        let dial = attempts.dials.spawn(async move {
            // Without a verdict the application would wait for its own time-out.
            let dialled = AssertUnwindSafe(dial).catch_unwind().await;
            let (verdict, ready) = dialled.unwrap_or_else(|_| {
                tracing::error!(%target, "Dial lost");
                (Verdict::HostUnreachable, None)
            });
            FinishedDial {
                attempt,
                verdict,
                ready,
            }
        });
        attempts.dialling.insert(attempt, dial);

        None
    }

    fn dialled(&self, attempts: &mut Attempts, dialled: FinishedDial) {
        let FinishedDial {
            attempt,
            verdict,
            ready,
        } = dialled;
        if attempts.dialling.remove(&attempt).is_none() {
            return;
        }
        if let Some(ready) = ready {
            attempts.ready.insert(attempt.flow, ready);
        }
        let action = attempts
            .held
            .handle_verdict(attempt, verdict, Instant::now());
        self.perform(attempts, action);
    }

    fn accepted(&self, attempts: &mut Attempts, stream: TcpStream, peer: SocketAddr) {
        // On any error from here on, the application must see a reset.
        let reset = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
        let (Ok(()), Ok(SocketAddr::V4(destination)), SocketAddr::V4(source)) =
            (reset, stream.local_addr(), peer)
        else {
            return;
        };
        let flow = FlowKey {
            source,
            destination,
        };
        let Some(ready) = attempts
            .held
            .handle_accepted(flow)
            .and(attempts.ready.remove(&flow))
        else {
            tracing::debug!("Connection without an approved attempt");
            return;
        };
        match ready {
            Ready::NameServer(server) => {
                let dns = Arc::clone(&self.dns);
                attempts
                    .flows
                    .spawn(async move { dns.serve_stream(stream, server).await });
            }
            Ready::Local(call) => {
                let shared = Arc::clone(&self.shared);
                attempts.flows.spawn(async move {
                    let _open = FlowCount::new(&shared.counters);
                    call.serve(stream).await;
                });
            }
            Ready::Flow(flow) => {
                let shared = Arc::clone(&self.shared);
                attempts.flows.spawn(async move {
                    let _open = FlowCount::new(&shared.counters);
                    let counters = &shared.counters.splice;
                    let end = splice_observed(stream, flow, counters, sys::segments).await;
                    tracing::trace!(?end, "Flow ended");
                });
            }
        }
    }
}

/// Dials through the tunnel. Without one, the cluster is as unreachable as a network that is down.
async fn dial(
    shared: &Shared,
    target: SocketAddrV4,
    to_container: bool,
) -> (Verdict, Option<Flow>) {
    let Some(up) = shared.up() else {
        return (Verdict::HostUnreachable, None);
    };
    shared.external.used(*target.ip());
    let dialled = match to_container {
        true => up.tunnel.dial_container(target.into()).await,
        false => up.tunnel.dial(target.into()).await,
    };
    match dialled {
        Ok(Dialed::Connected(flow)) => (Verdict::Connected, Some(flow)),
        Ok(Dialed::Refused { outcome, reason }) => {
            shared.counters.dial_failed(target, &reason);
            (verdict(outcome), None)
        }
        Err(error) => {
            tracing::debug!(%error, "Dial failed in the tunnel");
            shared.counters.dial_failed(target, &error.to_string());
            (Verdict::HostUnreachable, None)
        }
    }
}

fn verdict(outcome: Outcome) -> Verdict {
    match outcome {
        Outcome::Connected => Verdict::Connected,
        Outcome::Refused => Verdict::Refused,
        Outcome::NetworkUnreachable => Verdict::NetworkUnreachable,
        Outcome::TimedOut => Verdict::TimedOut,
        Outcome::Prohibited => Verdict::Prohibited,
        Outcome::Exhausted => Verdict::Exhausted,
        Outcome::HostUnreachable | Outcome::Unspecified => Verdict::HostUnreachable,
    }
}
