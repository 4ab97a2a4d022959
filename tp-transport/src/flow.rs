//! The content of one stream of the connection: an `Open`, the far side's `Verdict`, raw bytes.
//!
//! A FIN is a half-close. A half that is dropped before its end resets its direction, so that a
//! truncated flow can never look like a complete one.

mod accept;
mod half;
mod io;

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use bytes::Bytes;
use quinn::{RecvStream, SendStream};
use tp_proto::tunnel::{self, Control, Dial, Open, Outcome, Verdict, open};

use crate::{codes::ResetCode, credit::Ledger, message::CONTROL_PRIORITY};

pub(crate) use accept::{read_opens, socket_address};
pub use {
    crate::message::FlowError,
    accept::{Accepted, Intercepted, PendingFlow},
    half::{RecvHalf, SendHalf},
    io::FlowIo,
};
#[cfg(test)]
pub(crate) use {
    accept::{Acceptable, accept},
    half::FlowCount,
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

/// The result of a dial at the far side.
#[derive(Debug)]
pub enum Dialed {
    /// The target has accepted the connection.
    Connected(Flow),
    /// There is no connection.
    Refused {
        /// The result of `connect()` there.
        outcome: Outcome,
        /// Why, as a sentence for the user.
        reason: String,
    },
}

impl Dialed {
    pub(crate) fn refused(outcome: Outcome, reason: &str) -> Self {
        Self::Refused {
            outcome,
            reason: reason.to_owned(),
        }
    }
}

fn verdict(outcome: Outcome, reason: &str) -> Verdict {
    Verdict {
        outcome: outcome.into(),
        reason: reason.chars().take(MAX_REASON / 4).collect(),
        ..Verdict::default()
    }
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

/// Asks the other end to dial `target`; `to_container` as in [`Dial`].
pub(crate) async fn open_dial(
    send: SendStream,
    recv: RecvStream,
    target: SocketAddr,
    to_container: bool,
    ledger: &Arc<Ledger>,
) -> Result<Dialed, FlowError> {
    let kind = open::Kind::Dial(Dial {
        address: octets(target.ip()),
        port: target.port().into(),
        to_container,
    });

    open_flow(send, recv, kind, ledger).await
}

/// A connection to an intercepted port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InterceptedFrom {
    /// UID of the Intercept.
    pub intercept: String,
    /// Who connected, as the pod saw it.
    pub client: SocketAddr,
    /// The pod's address and the container's port that was connected to.
    pub pod: SocketAddr,
}

/// Offers the other end a connection that was intercepted.
pub(crate) async fn open_intercepted(
    send: SendStream,
    recv: RecvStream,
    from: &InterceptedFrom,
    ledger: &Arc<Ledger>,
) -> Result<Dialed, FlowError> {
    let kind = open::Kind::Intercepted(tunnel::Intercepted {
        intercept_uid: from.intercept.clone(),
        port: from.pod.port().into(),
        client_address: octets(from.client.ip()),
        client_port: from.client.port().into(),
        pod_address: octets(from.pod.ip()),
    });

    open_flow(send, recv, kind, ledger).await
}

/// An address in network order.
pub(crate) fn octets(ip: IpAddr) -> Bytes {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec().into(),
        IpAddr::V6(ip) => ip.octets().to_vec().into(),
    }
}

async fn open_flow(
    send: SendStream,
    recv: RecvStream,
    kind: open::Kind,
    ledger: &Arc<Ledger>,
) -> Result<Dialed, FlowError> {
    let mut flow = Flow::new(send, recv);
    let number = flow.send.flow();
    let Some((credit, start)) = ledger.receive(number) else {
        return Ok(Dialed::refused(Outcome::Exhausted, TOO_MANY));
    };
    flow.recv.use_credit(Some(credit));
    let verdict = match ask(&mut flow, kind, start).await {
        // A reset discards the data before it. Only a connected flow can have been reset.
        Err(FlowError::Reset(ResetCode::Reset)) => verdict(Outcome::Connected, ""),
        answer => answer?,
    };
    match verdict.credit {
        // A version that does not know of credit, or a refusal.
        0 => flow.recv.use_credit(None),
        granted => flow.send.use_credit(ledger.send(number, granted)),
    }

    match verdict.outcome() {
        Outcome::Connected => Ok(Dialed::Connected(flow)),
        outcome => Ok(Dialed::refused(outcome, &verdict.reason)),
    }
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
