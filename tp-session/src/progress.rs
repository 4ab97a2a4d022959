//! The progress of an attempt to connect, for all its participants.

use tokio::sync::watch;
use tp_proto::{fault::Fault, local::Connected};

/// The stage of an attempt.
#[derive(Debug, Clone)]
pub(super) enum Stage {
    Begun,
    /// A step that begins, as a phrase.
    Step(String),
    Over(Result<Connected, Fault>),
}

impl Stage {
    pub(super) fn is_over(&self) -> bool {
        matches!(self, Self::Over(_))
    }
}

/// Publishes phrases to the listeners, if there are any.
#[derive(Clone)]
pub(super) struct Progress(Option<watch::Sender<Stage>>);

impl Progress {
    pub(super) fn new(stage: watch::Sender<Stage>) -> Self {
        Self(Some(stage))
    }

    pub(super) fn silent() -> Self {
        Self(None)
    }

    pub(super) fn step(&self, phrase: String) {
        tracing::debug!(%phrase, "Connecting");
        if let Some(stage) = &self.0 {
            // An attempt that is over stays so.
            stage.send_if_modified(|stage| {
                let goes_on = !stage.is_over();
                if goes_on {
                    *stage = Stage::Step(phrase);
                }
                goes_on
            });
        }
    }
}
