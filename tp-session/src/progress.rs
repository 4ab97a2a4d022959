//! What `tp connect` shows while it waits.

use tokio::sync::mpsc;
use tonic::Status;
use tp_proto::local::{ConnectEvent, connect_event::Event};

/// Phrases for whoever listens; nobody may.
#[derive(Clone)]
pub(super) struct Progress(Option<mpsc::Sender<Result<ConnectEvent, Status>>>);

impl Progress {
    pub(super) fn new(event_tx: mpsc::Sender<Result<ConnectEvent, Status>>) -> Self {
        Self(Some(event_tx))
    }

    pub(super) fn silent() -> Self {
        Self(None)
    }

    pub(super) async fn step(&self, phrase: String) {
        tracing::debug!(%phrase, "Connecting");
        if let Some(event_tx) = &self.0 {
            let event = ConnectEvent {
                event: Some(Event::Progress(phrase)),
            };
            // A listener that has gone ends the attempt elsewhere.
            drop(event_tx.send(Ok(event)).await);
        }
    }
}
