//! The content of one stream of the connection: an `Open`, the far side's `Verdict`, raw bytes.
//!
//! A FIN is a half-close. A half that is dropped before its end resets its direction, so that a
//! truncated flow can never look like a complete one.

mod half;
mod io;

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use quinn::{RecvStream, SendStream};
use tp_proto::tunnel::{Control, Dial, Open, Outcome, Verdict, open};

use crate::{codes::ResetCode, credit::Ledger, message::CONTROL_PRIORITY};

pub(crate) use half::FlowCount;
pub use {
    crate::message::FlowError,
    half::{RecvHalf, SendHalf},
    io::FlowIo,
};

/// Longest reason in a `Verdict`.
const MAX_REASON: usize = 1024;
/// There is no credit for more flows.
const TOO_MANY: &str = "this session has as many connections open as it may";

/// The raw bytes of one flow, both directions, after the verdict.
#[derive(Debug)]
pub struct Flow {
    send: SendHalf,
    recv: RecvHalf,
}

impl Flow {
    pub(crate) fn new(send: SendStream, recv: RecvStream) -> Self {
        Self {
            send: SendHalf::new(send),
            recv: RecvHalf::new(recv),
        }
    }

    /// Its two directions, which end independently.
    pub fn split(self) -> (SendHalf, RecvHalf) {
        (self.send, self.recv)
    }

    /// Resets both directions.
    pub fn reset(mut self, code: ResetCode) {
        self.send.reset(code);
        self.recv.stop(code);
    }
}

/// A stream that the other end opened.
#[derive(Debug)]
pub enum Accepted {
    /// A gRPC control stream, already confirmed.
    Control(FlowIo),
    /// A TCP connection that this end is asked to dial.
    Dial {
        /// The destination; its port is not 0.
        target: SocketAddr,
        /// Takes the verdict.
        pending: PendingFlow,
    },
}

/// A dial that waits for its verdict. Dropped without one, it is reset.
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

fn verdict(outcome: Outcome, reason: &str) -> Verdict {
    Verdict {
        outcome: outcome.into(),
        reason: reason.chars().take(MAX_REASON / 4).collect(),
        credit: 0,
    }
}

/// Reads the `Open` of a stream that the other end opened.
pub(crate) async fn accept(
    send: SendStream,
    recv: RecvStream,
    ledger: &Arc<Ledger>,
    count: &FlowCount,
) -> Result<Accepted, FlowError> {
    let mut flow = Flow::new(send, recv);
    let guard = count.enter();
    flow.send.keep(Arc::clone(&guard));
    flow.recv.keep(guard);
    let open: Open = flow.recv.read_message().await?;
    match open.kind {
        Some(open::Kind::Control(Control {})) => {
            prefer(&flow);
            flow.send
                .write_message(&verdict(Outcome::Connected, ""))
                .await?;

            Ok(Accepted::Control(FlowIo::new(flow)))
        }
        Some(open::Kind::Dial(dial)) => {
            let target = target(&dial).ok_or(FlowError::Malformed("a dial without a target"))?;
            let credit = Some(open.credit)
                .filter(|start| *start > 0)
                .map(|start| (Arc::clone(ledger), start));
            let pending = PendingFlow { flow, credit };

            Ok(Accepted::Dial { target, pending })
        }
        None => {
            let pending = PendingFlow { flow, credit: None };
            pending
                .refuse(
                    Outcome::Prohibited,
                    "this version does not know the request",
                )
                .await;

            Err(FlowError::Malformed("an unknown kind of stream"))
        }
    }
}

fn target(dial: &Dial) -> Option<SocketAddr> {
    let port = u16::try_from(dial.port).ok().filter(|port| *port != 0)?;
    let ip: IpAddr = match dial.address.len() {
        4 => <[u8; 4]>::try_from(&*dial.address).ok()?.into(),
        16 => <[u8; 16]>::try_from(&*dial.address).ok()?.into(),
        _ => return None,
    };

    Some(SocketAddr::new(ip, port))
}

/// Opens a control stream.
pub(crate) async fn open_control(
    send: SendStream,
    recv: RecvStream,
) -> Result<(FlowIo, Verdict), FlowError> {
    let kind = open::Kind::Control(Control {});
    let mut flow = Flow::new(send, recv);
    prefer(&flow);
    let verdict = ask(&mut flow, kind, 0).await?;

    Ok((FlowIo::new(flow), verdict))
}

/// Asks the other end to dial `target`.
pub(crate) async fn open_dial(
    send: SendStream,
    recv: RecvStream,
    target: SocketAddr,
    ledger: &Arc<Ledger>,
) -> Result<(Flow, Verdict), FlowError> {
    let address = match target.ip() {
        IpAddr::V4(ip) => ip.octets().to_vec().into(),
        IpAddr::V6(ip) => ip.octets().to_vec().into(),
    };
    let port = target.port().into();
    let mut flow = Flow::new(send, recv);
    let dial = open::Kind::Dial(Dial { address, port });
    let number = flow.send.flow();
    let Some((credit, start)) = ledger.receive(number) else {
        return Ok((flow, verdict(Outcome::Exhausted, TOO_MANY)));
    };
    flow.recv.use_credit(Some(credit));
    let verdict = match ask(&mut flow, dial, start).await {
        // A reset discards the data before it. Only a connected flow can have been reset.
        Err(FlowError::Reset(ResetCode::Reset)) => verdict(Outcome::Connected, ""),
        answer => answer?,
    };
    match verdict.credit {
        // A version that does not know of credit, or a refusal.
        0 => flow.recv.use_credit(None),
        granted => flow.send.use_credit(ledger.send(number, granted)),
    }

    Ok((flow, verdict))
}

async fn ask(flow: &mut Flow, kind: open::Kind, credit: u64) -> Result<Verdict, FlowError> {
    let kind = Some(kind);
    flow.send.write_message(&Open { kind, credit }).await?;

    flow.recv.read_message().await
}

fn prefer(flow: &Flow) {
    // Fails only if the stream has ended already, which the next write reports.
    let _ = flow.send.stream.set_priority(CONTROL_PRIORITY);
}
