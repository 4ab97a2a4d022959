//! Carriers that wait, admitted, for connections: few while none are used.

use std::{collections::VecDeque, convert::Infallible, pin::pin, task::Poll, time::Duration};

use futures::{StreamExt as _, future::poll_fn, stream::FuturesUnordered};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, interval, sleep_until},
};
use tp_transport::agents::{AgentError, IdleCarrier, Ticket};

use super::connect;
use crate::facts::ManagerAddress;

const MIN_IDLE: usize = 4;
const MAX_IDLE: usize = 16;
/// Handshakes at a time.
const MAX_CONNECTING: usize = 16;
/// Takers that wait for one; the oldest of more gets none.
const MAX_WAITING: usize = 256;
/// A pool that was not found empty for this long halves.
const SHRINK_INTERVAL: Duration = Duration::from_secs(60);
/// After a carrier that could not be made.
const RETRY_DELAY: Duration = Duration::from_millis(500);

/// Who wants a carrier.
pub(super) type Take = oneshot::Sender<IdleCarrier>;

pub(super) struct Pool {
    manager: ManagerAddress,
    ticket: Ticket,
    idle: Vec<IdleCarrier>,
    waiting: VecDeque<Take>,
    target: usize,
    is_enough: bool,
    not_before: Instant,
}

enum Input {
    Take(Option<Take>),
    Made(Result<Box<IdleCarrier>, AgentError>),
    Ended(usize),
    Shrink,
    Retry,
}

impl Pool {
    pub(super) fn new(manager: ManagerAddress, ticket: Ticket) -> Self {
        Self {
            manager,
            ticket,
            idle: Vec::new(),
            waiting: VecDeque::new(),
            target: MIN_IDLE,
            is_enough: true,
            not_before: Instant::now(),
        }
    }

    /// Serves until it is dropped.
    pub(super) async fn serve(mut self, mut takes: mpsc::Receiver<Take>) -> Infallible {
        let mut connecting = FuturesUnordered::new();
        let mut shrink = interval(SHRINK_INTERVAL);
        loop {
            let may_connect = Instant::now() >= self.not_before;
            while may_connect && self.is_short(connecting.len()) {
                connecting.push(made(self.manager, self.ticket.clone()));
            }
            let input = tokio::select! {
                take = takes.recv(), if !takes.is_closed() => Input::Take(take),
                Some(made) = connecting.next() => Input::Made(made),
                index = any_ended(&mut self.idle) => Input::Ended(index),
                _ = shrink.tick() => Input::Shrink,
                () = sleep_until(self.not_before), if !may_connect => Input::Retry,
            };
            self.handle(input);
        }
    }

    fn is_short(&self, connecting: usize) -> bool {
        let wanted = self.target + self.waiting.len();

        connecting < MAX_CONNECTING && self.idle.len() + connecting < wanted
    }

    fn handle(&mut self, input: Input) {
        match input {
            Input::Take(Some(take)) => match self.idle.pop() {
                Some(carrier) => self.give(carrier, take),
                None => {
                    self.target = (self.target * 2).min(MAX_IDLE);
                    self.is_enough = false;
                    self.waiting.retain(|take| !take.is_closed());
                    if self.waiting.len() >= MAX_WAITING {
                        self.waiting.pop_front();
                    }
                    self.waiting.push_back(take);
                }
            },
            Input::Take(None) | Input::Retry => {}
            Input::Made(Ok(carrier)) => match self.waiting.pop_front() {
                Some(take) => self.give(*carrier, take),
                None => self.idle.push(*carrier),
            },
            Input::Made(Err(error)) => {
                tracing::debug!(%error, "Cannot make a carrier");
                self.not_before = Instant::now() + RETRY_DELAY;
            }
            Input::Ended(index) => {
                self.idle.swap_remove(index);
                // A manager that closes them at once is not asked all the time.
                self.not_before = Instant::now() + RETRY_DELAY;
            }
            Input::Shrink => {
                if self.is_enough {
                    self.target = (self.target / 2).max(MIN_IDLE);
                    self.idle.truncate(self.target);
                }
                self.is_enough = true;
            }
        }
    }

    fn give(&mut self, carrier: IdleCarrier, take: Take) {
        if let Err(carrier) = take.send(carrier) {
            // Who wanted it has gone.
            match self.waiting.pop_front() {
                Some(next) => self.give(carrier, next),
                None => self.idle.push(carrier),
            }
        }
    }
}

async fn made(manager: ManagerAddress, ticket: Ticket) -> Result<Box<IdleCarrier>, AgentError> {
    let tcp = connect(manager).await?;

    let carrier = IdleCarrier::connect(tcp, manager.key, &ticket).await?;

    Ok(Box::new(carrier))
}

/// The index of one that has ended.
async fn any_ended(idle: &mut [IdleCarrier]) -> usize {
    poll_fn(|cx| {
        let ended = idle
            .iter_mut()
            .position(|carrier| pin!(carrier.ended()).poll(cx).is_ready());
        ended.map_or(Poll::Pending, Poll::Ready)
    })
    .await
}
