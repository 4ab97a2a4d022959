//! How far an attempt to connect is, for all who take part in it.

use tokio::sync::watch;
use tp_proto::{fault::Fault, local::Connected};

/// How far an attempt is.
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

/// Phrases for whoever listens; nobody may.
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
            // An attempt that is told to be over stays so.
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
