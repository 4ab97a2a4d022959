//! Credit of our own for the bytes of each flow, above QUIC's: a reader that has stopped uses up
//! only its own flow's part.
//!
//! QUIC's window for the whole connection is larger than all credit that is ever outstanding
//! ([`Limits::budget`]) and a reserve for everything else, so a peer that keeps to its credit never
//! uses it up. A peer that does not starves itself, and fills no more than that window.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use prost::Message;
use quinn::{Connection, ReadExactError, RecvStream, SendStream};
use tokio::sync::{Notify, Semaphore, SemaphorePermit};
use tp_core::credit::{Limits, Pool, Share};
use tp_process::sync;
use tp_proto::tunnel::{Credit, FlowUpdates, KeepAlive};

use crate::{
    codes::CloseCode,
    message::{self, CONTROL_PRIORITY, FlowError},
};

/// Updates in one message; at 23 bytes each at most they fit the largest message.
const MESSAGE_UPDATES: usize = 64;
/// More than any honest peer grants one flow.
const MAX_CREDIT: u64 = 1 << 30;
/// Kept by an idle flow; it gives the remainder back for others.
const IDLE_CREDIT: u64 = 64 << 10;
/// Bytes of all flows together that are read from TCP and wait for QUIC's send buffer.
const MAX_WAITING: usize = 16 << 20;

/// The credit of one connection: granted by its receivers, and usable by its senders.
#[derive(Debug)]
pub(crate) struct Ledger {
    connection: Connection,
    origin: Instant,
    state: Mutex<State>,
    /// There are updates for the peer.
    updates_ready: Notify,
    waiting: Semaphore,
}

#[derive(Debug)]
struct State {
    pool: Pool,
    receiving: HashMap<u64, Share>,
    sending: HashMap<u64, Arc<Balance>>,
    /// Not sent yet, by flow: as many entries as there are flows at most.
    granted: BTreeMap<u64, u64>,
    returned: BTreeMap<u64, u64>,
    keep_alives: BTreeMap<u64, u32>,
    /// The newest flow that the client opened, and that the server did: the numbers of each only
    /// grow, and their lowest bit says whose they are (RFC 9000, section 2.1).
    newest: [Option<u64>; 2],
}

#[derive(Debug, Default)]
struct Balance {
    credit: AtomicU64,
    grown: Notify,
    /// Seconds; 0 if the peer has not sent any.
    keep_alive: AtomicU32,
    keep_alive_changed: Notify,
}

impl Ledger {
    pub(crate) fn new(connection: Connection, limits: Limits) -> Arc<Self> {
        Arc::new(Self {
            connection,
            origin: Instant::now(),
            state: Mutex::new(State {
                pool: Pool::new(limits),
                receiving: HashMap::new(),
                sending: HashMap::new(),
                granted: BTreeMap::new(),
                returned: BTreeMap::new(),
                keep_alives: BTreeMap::new(),
                newest: [None; 2],
            }),
            updates_ready: Notify::new(),
            waiting: Semaphore::new(MAX_WAITING),
        })
    }

    /// Grants a new flow its initial credit; `None` if there are too many flows.
    pub(crate) fn receive(self: &Arc<Self>, flow: u64) -> Option<(ReceiveCredit, u64)> {
        let mut state = self.lock();
        let share = state.pool.open(self.origin.elapsed())?;
        let start = share.held();
        state.receiving.insert(flow, share);
        state.opened(flow);
        let credit = ReceiveCredit {
            ledger: Arc::clone(self),
            flow,
            unsettled: 0,
        };

        Some((credit, start))
    }

    /// A new flow whose receiver has granted `start`.
    pub(crate) fn send(self: &Arc<Self>, flow: u64, start: u64) -> SendCredit {
        let balance = Arc::new(Balance::default());
        balance
            .credit
            .store(start.min(MAX_CREDIT), Ordering::Relaxed);
        let mut state = self.lock();
        state.sending.insert(flow, Arc::clone(&balance));
        state.opened(flow);

        SendCredit {
            ledger: Arc::clone(self),
            flow,
            balance,
        }
    }

    /// Exchanges credit with the peer until the connection ends.
    pub(crate) async fn run(self: Arc<Self>) {
        tokio::select! {
            () = self.send_updates() => {}
            broken = self.receive_updates() => {
                if let Err(FlowError::Malformed(reason)) = broken {
                    self.violated(reason);
                }
            }
        }
        self.connection.closed().await;
    }

    /// Granted to flows and not passed on.
    pub(crate) fn held(&self) -> u64 {
        self.lock().pool.held()
    }

    /// Flows that have used up what the peer granted.
    pub(crate) fn waiting_flows(&self) -> u64 {
        let state = self.lock();
        let used_up = |balance: &&Arc<Balance>| balance.credit.load(Ordering::Relaxed) == 0;

        state.sending.values().filter(used_up).count() as u64
    }

    /// Ends the connection: the peer does not keep to its credit.
    fn violated(&self, reason: &str) {
        tracing::info!(reason, "Tunnel ended: the other end breaks the protocol");
        self.connection
            .close(CloseCode::Protocol.into(), reason.as_bytes());
    }

    async fn send_updates(&self) {
        let mut stream: Option<SendStream> = None;
        loop {
            self.updates_ready.notified().await;
            loop {
                let updates = self.lock().take_updates();
                let Some(updates) = updates else {
                    break;
                };
                let stream = match &mut stream {
                    Some(stream) => stream,
                    None => match self.connection.open_uni().await {
                        Ok(opened) => {
                            // Fails only if the stream has ended already.
                            let _ = opened.set_priority(CONTROL_PRIORITY);
                            stream.insert(opened)
                        }
                        Err(_) => return,
                    },
                };
                let Ok(frame) = message::frame(&updates) else {
                    return self.violated("an update of credit does not fit its message");
                };
                if stream.write_chunk(frame).await.is_err() {
                    // The connection is lost, or the peer ends it: its other half says so.
                    return std::future::pending().await;
                }
            }
        }
    }

    async fn receive_updates(&self) -> Result<(), FlowError> {
        let mut stream = self.connection.accept_uni().await?;
        loop {
            let updates = read(&mut stream).await?;
            self.lock().apply(updates).map_err(FlowError::Malformed)?;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        sync::lock(&self.state)
    }
}

async fn read(stream: &mut RecvStream) -> Result<FlowUpdates, FlowError> {
    let frame = message::read_frame(stream)
        .await
        .map_err(|error| match error {
            ReadExactError::FinishedEarly(_) => {
                FlowError::Malformed("the stream of credit has ended")
            }
            ReadExactError::ReadError(error) => match FlowError::from(error) {
                FlowError::TunnelLost => FlowError::TunnelLost,
                _ => FlowError::Malformed("the stream of credit was reset"),
            },
        })?;
    let frame = frame.ok_or(FlowError::Malformed("a message about credit is too long"))?;

    FlowUpdates::decode(frame.as_slice())
        .map_err(|_| FlowError::Malformed("a message about credit cannot be decoded"))
}

impl State {
    /// The next message for the peer.
    fn take_updates(&mut self) -> Option<FlowUpdates> {
        let room = MESSAGE_UPDATES;
        let granted: Vec<_> = take(&mut self.granted, room)
            .map(|(flow, bytes)| Credit { flow, bytes })
            .collect();
        let room = room - granted.len();
        let returned: Vec<_> = take(&mut self.returned, room)
            .map(|(flow, bytes)| Credit { flow, bytes })
            .collect();
        let room = room - returned.len();
        let keep_alives = take(&mut self.keep_alives, room)
            .map(|(flow, seconds)| KeepAlive { flow, seconds })
            .collect();
        let updates = FlowUpdates {
            granted,
            returned,
            keep_alives,
        };

        Some(updates).filter(|updates| *updates != FlowUpdates::default())
    }

    /// Applies the peer's message; the error says what is wrong with it.
    fn apply(&mut self, updates: FlowUpdates) -> Result<(), &'static str> {
        for Credit { flow, bytes } in updates.granted {
            self.check(flow, bytes)?;
            // Missing: it has ended here, and the peer does not know yet.
            if let Some(balance) = self.sending.get(&flow) {
                let before = balance.credit.fetch_add(bytes, Ordering::AcqRel);
                if before + bytes > MAX_CREDIT {
                    return Err("a flow was granted more than any may have");
                }
                balance.grown.notify_one();
            }
        }
        for Credit { flow, bytes } in updates.returned {
            self.check(flow, bytes)?;
            if let Some(share) = self.receiving.get_mut(&flow) {
                self.pool
                    .give_back(share, bytes)
                    .map_err(|_| "more credit is given back than was granted")?;
            }
        }

        for KeepAlive { flow, seconds } in updates.keep_alives {
            self.check_flow(flow)?;
            if let Some(balance) = self.sending.get(&flow) {
                balance.keep_alive.store(seconds, Ordering::Relaxed);
                balance.keep_alive_changed.notify_one();
            }
        }

        Ok(())
    }

    fn opened(&mut self, flow: u64) {
        let newest = &mut self.newest[opener(flow)];
        *newest = (*newest).max(Some(flow));
    }

    fn check_flow(&self, flow: u64) -> Result<(), &'static str> {
        match self.newest[opener(flow)] {
            Some(newest) if flow <= newest => Ok(()),
            _ => Err("an update of a flow that was never opened"),
        }
    }

    fn check(&self, flow: u64, bytes: u64) -> Result<(), &'static str> {
        self.check_flow(flow)?;
        if bytes == 0 || bytes > MAX_CREDIT {
            return Err("an impossible amount of credit");
        }

        Ok(())
    }
}

/// The end that opened the flow.
fn opener(flow: u64) -> usize {
    (flow & 1) as usize
}

fn take<T>(pending: &mut BTreeMap<u64, T>, most: usize) -> impl Iterator<Item = (u64, T)> {
    std::iter::from_fn(|| pending.pop_first()).take(most)
}

/// The credit that one flow's receiver has granted; free for others when dropped.
#[derive(Debug)]
pub(crate) struct ReceiveCredit {
    ledger: Arc<Ledger>,
    flow: u64,
    /// Bytes handed over and not known to be passed on.
    unsettled: u64,
}

impl ReceiveCredit {
    /// `bytes` are handed to the reader that passes them on.
    pub(crate) fn hand_over(&mut self, bytes: usize) {
        self.unsettled += bytes as u64;
    }

    /// All that was handed over is passed on.
    pub(crate) fn settle(&mut self) -> Result<(), FlowError> {
        let bytes = std::mem::take(&mut self.unsettled);
        if bytes == 0 {
            return Ok(());
        }
        let ledger = &*self.ledger;
        let mut state = ledger.lock();
        let State {
            pool,
            receiving,
            granted,
            ..
        } = &mut *state;
        let share = receiving.get_mut(&self.flow).ok_or(FlowError::Closed)?;
        let round_trip = || ledger.connection.rtt();
        let passed = pool.pass_on(share, bytes, ledger.origin.elapsed(), round_trip);
        match passed {
            Ok(0) => {}
            Ok(more) => {
                *granted.entry(self.flow).or_default() += more;
                drop(state);
                ledger.updates_ready.notify_one();
            }
            Err(_) => {
                drop(state);
                ledger.violated("a flow sent more than it was granted");
                return Err(FlowError::TunnelLost);
            }
        }

        Ok(())
    }
}

impl Drop for ReceiveCredit {
    fn drop(&mut self) {
        let mut state = self.ledger.lock();
        state.granted.remove(&self.flow);
        if let Some(share) = state.receiving.remove(&self.flow) {
            state.pool.close(share);
        }
    }
}

/// The credit that one flow's sender may use.
#[derive(Debug)]
pub(crate) struct SendCredit {
    ledger: Arc<Ledger>,
    flow: u64,
    balance: Arc<Balance>,
}

impl SendCredit {
    pub(crate) fn left(&self) -> u64 {
        self.balance.credit.load(Ordering::Acquire)
    }

    /// Resolves when there is credit. Only one task may wait for a flow's.
    pub(crate) async fn available(&self) -> u64 {
        loop {
            let left = self.left();
            if left > 0 {
                return left;
            }
            // A grant in between is not lost: `Notify` stores a permit.
            self.balance.grown.notified().await;
        }
    }

    /// `bytes` are no more than is left.
    pub(crate) fn spend(&self, bytes: u64) {
        self.balance.credit.fetch_sub(bytes, Ordering::AcqRel);
    }

    /// Reserves buffer space for `bytes` that wait to be sent, as long as the permit lives.
    pub(crate) async fn reserve_waiting(&self, bytes: usize) -> Option<SemaphorePermit<'_>> {
        let bytes = u32::try_from(bytes.min(MAX_WAITING)).expect("fits");

        self.ledger.waiting.acquire_many(bytes).await.ok()
    }

    /// Gives back credit that a flow without data to send does not need. Only the task that spends
    /// may call it.
    pub(crate) fn give_back(&self) {
        let more = self.left().saturating_sub(IDLE_CREDIT);
        if more == 0 {
            return;
        }
        self.spend(more);
        let mut state = self.ledger.lock();
        *state.returned.entry(self.flow).or_default() += more;
        drop(state);
        self.ledger.updates_ready.notify_one();
    }
}

impl SendCredit {
    /// Tells the other end how often the application here probes its connection.
    pub(crate) fn tell_keep_alive(&self, interval: Duration) {
        let seconds = u32::try_from(interval.as_secs()).unwrap_or(u32::MAX).max(1);
        self.ledger.lock().keep_alives.insert(self.flow, seconds);
        self.ledger.updates_ready.notify_one();
    }

    /// Resolves with the other end's probe interval when that has arrived.
    pub(crate) async fn keep_alive(&self) -> Duration {
        self.balance.keep_alive_changed.notified().await;

        Duration::from_secs(self.balance.keep_alive.load(Ordering::Relaxed).into())
    }
}

impl Drop for SendCredit {
    fn drop(&mut self) {
        let mut state = self.ledger.lock();
        state.sending.remove(&self.flow);
        state.returned.remove(&self.flow);
        state.keep_alives.remove(&self.flow);
    }
}

#[cfg(test)]
pub(crate) mod tests;
