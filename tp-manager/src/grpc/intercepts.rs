//! `ServeIntercepts`: what a session announces, and what it is told.

use std::time::Duration;

use futures::{Stream, StreamExt as _, stream};
use tokio::{sync::watch, time::sleep};
use tonic::{Status, Streaming};
use tp_proto::tunnel::{InterceptStates, LocalIntercepts};

use crate::{intercepts::serving::Announcing, model::SharedModel};

/// From one message to the next: reports of many agents are told together.
const INTERVAL: Duration = Duration::from_millis(100);
/// A session that falls silent yields its ports without an event.
const RECHECK_INTERVAL: Duration = Duration::from_secs(1);

struct Call {
    announcing: Announcing,
    model: SharedModel,
    local: Streaming<LocalIntercepts>,
    changes: watch::Receiver<u64>,
    told: Option<InterceptStates>,
}

/// Ends when the session ends the call, or begins another one.
pub(super) fn states(
    announcing: Announcing,
    model: SharedModel,
    local: Streaming<LocalIntercepts>,
) -> impl Stream<Item = Result<InterceptStates, Status>> + Send {
    let changes = announcing.intercepts.changes();
    let call = Call {
        announcing,
        model,
        local,
        changes,
        told: None,
    };

    stream::unfold(call, |mut call| async move {
        let states = call.next().await?;
        call.told = Some(states.clone());

        Some((Ok(states), call))
    })
}

impl Call {
    /// The next states that differ from those told.
    async fn next(&mut self) -> Option<InterceptStates> {
        if self.told.is_some() {
            self.await_change().await?;
        }
        loop {
            if !self.announcing.is_newest() {
                return None;
            }
            let Announcing {
                intercepts, served, ..
            } = &self.announcing;
            self.changes.mark_unchanged();
            let states = intercepts.states(served, &self.model.read());
            if self.told.as_ref() != Some(&states) {
                return Some(states);
            }
            self.await_change().await?;
        }
    }

    /// `None` once the session has ended the call.
    async fn await_change(&mut self) -> Option<()> {
        tokio::select! {
            announced = self.local.next() => match announced {
                Some(Ok(announced)) => {
                    if !self.announcing.announce(announced) {
                        return None;
                    }
                }
                Some(Err(_)) | None => return None,
            },
            changed = self.changes.changed() => {
                changed.ok()?;
                sleep(INTERVAL).await;
            }
            () = sleep(RECHECK_INTERVAL) => {}
        }

        Some(())
    }
}
