//! Streams that the other end opens, read the same way at both ends of the tunnel.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use quinn::{Connection, RecvStream, SendStream};
use tokio::{sync::mpsc, task::JoinSet, time::timeout};
use tp_proto::tunnel::{self, Control, Dial, Open, Outcome, open};

use super::{Flow, FlowError, FlowIo, InterceptedFrom, TOO_MANY, half::FlowCount, prefer, verdict};
use crate::{codes::ResetCode, credit::Ledger, quic::FlowLimit};

const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// Of a stream's wait for whoever accepts, before it is refused.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(5);
/// Streams of one connection whose `Open` is being read.
const MAX_OPENING: usize = 1024;
/// Longest UID of an Intercept.
const MAX_UID: usize = 64;
/// Nobody takes what the other end opens.
const NOT_TAKEN: &str = "the other end is too busy to take the connection";

/// What one end of the tunnel takes of the other.
pub(crate) trait Acceptable: Sized + Send + 'static {
    /// Takes a request, or refuses it with a verdict.
    fn take(
        kind: open::Kind,
        pending: PendingFlow,
    ) -> impl Future<Output = Result<Self, FlowError>> + Send;

    /// What waits for a verdict.
    fn into_pending(self) -> Option<PendingFlow>;
}

/// Reads the `Open` of every stream, so that a slow one delays no other.
pub(crate) async fn read_opens<T: Acceptable>(
    connection: &Connection,
    ledger: &Arc<Ledger>,
    mut limit: FlowLimit,
    flows: mpsc::Sender<Box<T>>,
) {
    let mut opening = JoinSet::new();
    let count = FlowCount::default();
    loop {
        let opened = tokio::select! {
            opened = connection.accept_bi(), if opening.len() < MAX_OPENING => opened,
            Some(_) = opening.join_next() => continue,
        };
        let Ok((send, recv)) = opened else {
            return;
        };
        // Streams whose task has not begun are not in `count` yet.
        limit.follow(connection, count.get() + opening.len() + 1);
        let (flows, ledger, count) = (flows.clone(), Arc::clone(ledger), count.clone());
        opening.spawn(async move {
            match timeout(OPEN_TIMEOUT, accept::<T>(send, recv, &ledger, &count)).await {
                Ok(Ok(accepted)) => hand_over(accepted, &flows).await,
                Ok(Err(FlowError::TunnelLost)) => {}
                Ok(Err(error)) => tracing::debug!(%error, "Stream not understood"),
                Err(_) => tracing::debug!("Stream did not say what it is for"),
            }
        });
    }
}

/// Gives a stream to whoever accepts; refuses it if nobody does in time.
async fn hand_over<T: Acceptable>(accepted: T, flows: &mpsc::Sender<Box<T>>) {
    match timeout(QUEUE_TIMEOUT, flows.reserve()).await {
        Ok(Ok(room)) => room.send(Box::new(accepted)),
        // This end is being dropped, and resets the stream.
        Ok(Err(_)) => {}
        Err(_) => {
            tracing::debug!("Stream refused, because nobody takes it");
            if let Some(pending) = accepted.into_pending() {
                pending.refuse(Outcome::Exhausted, NOT_TAKEN).await;
            }
        }
    }
}

/// A stream that a session opened.
#[derive(Debug)]
pub enum Accepted {
    /// A gRPC control stream, already confirmed.
    Control(FlowIo),
    /// A TCP connection that this end is asked to dial.
    Dial {
        /// The destination; its port is not 0.
        target: SocketAddr,
        /// The container is meant, where the session intercepts the port.
        to_container: bool,
        /// Takes the verdict.
        pending: PendingFlow,
    },
}

/// A connection to a port that this session intercepts, opened by the manager.
#[derive(Debug)]
pub struct Intercepted {
    /// Which intercept, who connected, and to which port of which pod.
    pub from: InterceptedFrom,
    /// Takes the verdict.
    pub pending: PendingFlow,
}

/// A connection that waits for its verdict. Dropped without one, it is reset.
#[derive(Debug)]
pub struct PendingFlow {
    flow: Flow,
    /// The initial credit of this end, and its ledger; `None` with a version that grants nothing.
    credit: Option<(Arc<Ledger>, u64)>,
}

impl PendingFlow {
    /// The target is connected: the raw bytes follow.
    ///
    /// # Errors
    ///
    /// [`FlowError::Closed`] if the session has more flows than there is credit for, which the other
    /// end is told; another if the verdict cannot be sent.
    pub async fn accept(mut self) -> Result<Flow, FlowError> {
        let mut verdict = verdict(Outcome::Connected, "");
        if let Some((ledger, start)) = self.credit.take() {
            let flow = self.flow.send.flow();
            let Some((credit, granted)) = ledger.receive(flow) else {
                self.refuse(Outcome::Exhausted, TOO_MANY).await;
                return Err(FlowError::Closed);
            };
            verdict.credit = granted;
            self.flow.recv.use_credit(Some(credit));
            self.flow.send.use_credit(ledger.send(flow, start));
        }
        self.flow.send.write_message(&verdict).await?;

        Ok(self.flow)
    }

    /// The target is not connected; `reason` is a sentence for `tp status`.
    pub async fn refuse(mut self, outcome: Outcome, reason: &str) {
        if let Err(error) = self
            .flow
            .send
            .write_message(&verdict(outcome, reason))
            .await
        {
            tracing::debug!(%error, "Nobody waits for this verdict");
            return;
        }
        self.flow.send.finish();
        self.flow.recv.stop(ResetCode::Reset);
    }

    /// Resolves when the application that dialled has gone, or the tunnel has: cancel the dial.
    pub fn cancelled(&self) -> impl Future<Output = ()> + Send + Sync + 'static {
        let stopped = self.flow.send.stopped();
        async move {
            // Nobody waits, however it ends.
            let _ = stopped.await;
        }
    }
}

/// Reads the `Open` of a stream that the other end opened.
pub(crate) async fn accept<T: Acceptable>(
    send: SendStream,
    recv: RecvStream,
    ledger: &Arc<Ledger>,
    count: &FlowCount,
) -> Result<T, FlowError> {
    let mut flow = Flow::new(send, recv);
    let guard = count.enter();
    flow.send.keep(Arc::clone(&guard));
    flow.recv.keep(guard);
    let open: Open = flow.recv.read_message().await?;
    let credit = Some(open.credit)
        .filter(|start| *start > 0)
        .map(|start| (Arc::clone(ledger), start));
    let pending = PendingFlow { flow, credit };
    match open.kind {
        Some(kind) => T::take(kind, pending).await,
        None => Err(pending
            .not_taken("this version does not know the request")
            .await),
    }
}

impl PendingFlow {
    /// Refuses a request that this end does not take from the other.
    async fn not_taken(self, reason: &str) -> FlowError {
        self.refuse(Outcome::Prohibited, reason).await;

        FlowError::Malformed("a kind of stream that this end does not take")
    }
}

/// At the manager.
impl Acceptable for Accepted {
    async fn take(kind: open::Kind, pending: PendingFlow) -> Result<Self, FlowError> {
        match kind {
            open::Kind::Control(Control {}) => {
                let mut flow = pending.flow;
                prefer(&flow);
                flow.send
                    .write_message(&verdict(Outcome::Connected, ""))
                    .await?;

                Ok(Self::Control(FlowIo::new(flow)))
            }
            open::Kind::Dial(Dial {
                address,
                port,
                to_container,
            }) => {
                let target = socket_address(&address, port)
                    .ok_or(FlowError::Malformed("a dial without a target"))?;

                Ok(Self::Dial {
                    target,
                    to_container,
                    pending,
                })
            }
            open::Kind::Intercepted(_) => Err(pending
                .not_taken("a session has no connections that were intercepted")
                .await),
        }
    }

    fn into_pending(self) -> Option<PendingFlow> {
        match self {
            Self::Control(_) => None,
            Self::Dial { pending, .. } => Some(pending),
        }
    }
}

/// At the session, which takes nothing else: a manager must not make a workstation dial an address
/// of the manager's choice.
impl Acceptable for Intercepted {
    async fn take(kind: open::Kind, pending: PendingFlow) -> Result<Self, FlowError> {
        match kind {
            open::Kind::Intercepted(intercepted) => {
                let from = intercepted_from(intercepted).ok_or(FlowError::Malformed(
                    "an intercepted connection without an intercept, client or port",
                ))?;

                Ok(Self { from, pending })
            }
            open::Kind::Control(_) | open::Kind::Dial(_) => Err(pending
                .not_taken("a workstation dials nothing for a manager")
                .await),
        }
    }

    fn into_pending(self) -> Option<PendingFlow> {
        Some(self.pending)
    }
}

fn intercepted_from(message: tunnel::Intercepted) -> Option<InterceptedFrom> {
    let tunnel::Intercepted {
        intercept_uid,
        port,
        client_address,
        client_port,
        pod_address,
    } = message;
    let has_uid = (1..=MAX_UID).contains(&intercept_uid.len());

    Some(InterceptedFrom {
        intercept: Some(intercept_uid).filter(|_| has_uid)?,
        client: socket_address(&client_address, client_port)?,
        pod: socket_address(&pod_address, port)?,
    })
}

/// An address of 4 or 16 octets, with a port that is not 0.
pub(crate) fn socket_address(address: &[u8], port: u32) -> Option<SocketAddr> {
    let port = u16::try_from(port).ok().filter(|port| *port != 0)?;
    let ip: IpAddr = match address.len() {
        4 => <[u8; 4]>::try_from(address).ok()?.into(),
        16 => <[u8; 16]>::try_from(address).ok()?.into(),
        _ => return None,
    };

    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests;
