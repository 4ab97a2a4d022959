//! What a caller that stays is told of its intercept.

use std::sync::Arc;

use tp_proto::local::{InterceptEvent, intercept_event::Event};

use super::{OwnIntercepts, WantedIntercept, making::InterceptEvents, view};

impl OwnIntercepts {
    /// Tells the caller when somebody else gets the traffic, and when it comes here again, until the
    /// intercept is no more. A caller that does not listen misses it; `tp status` says it as well.
    pub(super) async fn tell(&self, wanted: &Arc<WantedIntercept>, events: &InterceptEvents) {
        let mut entries = self.entries.subscribe();
        let mut told = None;
        loop {
            entries.mark_unchanged();
            let Some(entry) = self.entry(wanted) else {
                return;
            };
            let shown = view::of(&entry, None);
            let news = match shown.state.as_str() {
                "held" | "ended" => Some(shown.reason),
                // It may be held by the same one after that.
                "waiting" => told.clone(),
                _ => None,
            };
            if news != told {
                let phrase = news.clone().unwrap_or_else(|| {
                    format!("the traffic of {} comes here again", wanted.title())
                });
                let event = Some(Event::Progress(phrase));
                // Full where nobody reads.
                drop(events.0.try_send(Ok(InterceptEvent { event })));
                told = news;
            }
            if entries.changed().await.is_err() {
                return;
            }
        }
    }
}
