//! The tasks of one connection, which run until the connection ends. The first one that ends earlier
//! ends the connection.

use std::{any::Any, io, mem, panic::AssertUnwindSafe, sync::Mutex};

use futures::FutureExt as _;
use tokio::{sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;
use tp_process::sync;

/// Owns the tasks of a connection and knows the first that is lost.
#[derive(Debug)]
pub struct Tasks {
    running: Mutex<JoinSet<()>>,
    /// Cancelled when the connection is to end: from then on no end of a task is a loss.
    stop: CancellationToken,
    lost: watch::Sender<Option<String>>,
}

impl Tasks {
    /// No tasks yet. The caller cancels `stop` to end the connection.
    pub fn new(stop: CancellationToken) -> Self {
        Self {
            running: Mutex::default(),
            stop,
            lost: watch::Sender::new(None),
        }
    }

    pub(crate) fn stop_token(&self) -> &CancellationToken {
        &self.stop
    }

    /// Runs `task`; `name` is its name in the sentence about its end ("the relay").
    pub(crate) fn spawn<T: TaskOutcome>(
        &self,
        name: &'static str,
        task: impl Future<Output = T> + Send + 'static,
    ) {
        let (stop, lost) = (self.stop.clone(), self.lost.clone());
        let watched = async move {
            let why = match AssertUnwindSafe(task).catch_unwind().await {
                Ok(outcome) => outcome.reason(),
                Err(panic) => format!("it panicked: {}", message(&*panic)),
            };
            if stop.is_cancelled() {
                return;
            }
            let reason = format!("{name} of the session has ended ({why}): run `tp connect` again");
            tracing::error!(task = name, %why, "Task lost");
            lost.send_if_modified(|first| {
                let is_first = first.is_none();
                first.get_or_insert(reason);
                is_first
            });
        };
        sync::lock(&self.running).spawn(watched);
    }

    /// Resolves with a sentence for the user when a task has ended before `stop`.
    pub async fn lost(&self) -> String {
        let mut lost = self.lost.subscribe();
        let first = lost.wait_for(Option::is_some).await;
        let reason = first.ok().and_then(|reason| reason.clone());
        match reason {
            Some(reason) => reason,
            // The sender lives as long as `self`.
            None => std::future::pending().await,
        }
    }

    /// Returns whether [`Self::lost`] would resolve at once.
    pub(crate) fn are_lost(&self) -> bool {
        self.lost.borrow().is_some()
    }

    /// Aborts all tasks and waits for their end.
    pub async fn end(&self) {
        let mut running = mem::take(&mut *sync::lock(&self.running));
        running.shutdown().await;
    }
}

/// The output of a task, as the reason for its end.
pub(crate) trait TaskOutcome: Send + 'static {
    fn reason(self) -> String;
}

impl TaskOutcome for () {
    fn reason(self) -> String {
        "it returned".to_owned()
    }
}

impl TaskOutcome for io::Result<()> {
    fn reason(self) -> String {
        match self {
            Ok(()) => ().reason(),
            Err(error) => error.to_string(),
        }
    }
}

fn message(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without a message")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

    #[tokio::test]
    async fn a_task_that_fails_ends_or_panics_is_lost_with_its_name_and_reason() {
        type Start = Box<dyn FnOnce(&Tasks)>;
        let cases: [(&str, Start); 3] = [
            (
                "the relay of the session has ended (gone)",
                Box::new(|tasks| tasks.spawn("the relay", async { Err(io::Error::other("gone")) })),
            ),
            (
                "the uplink of the session has ended (it returned)",
                Box::new(|tasks| tasks.spawn("the uplink", async {})),
            ),
            (
                "the relay of the session has ended (it panicked: no 7)",
                Box::new(|tasks| tasks.spawn("the relay", fail(7))),
            ),
        ];

        for (words, start) in cases {
            let tasks = Tasks::new(CancellationToken::new());
            start(&tasks);
            let reason = timeout(LIMIT, tasks.lost()).await.unwrap();

            assert!(reason.starts_with(words), "{reason}");
        }
    }

    #[expect(clippy::unused_async, reason = "a task that panics at once")]
    async fn fail(number: u32) {
        assert!(number < 7, "no {number}");
    }

    #[tokio::test]
    async fn the_first_loss_is_the_reason_and_an_end_on_demand_is_none() {
        let stop = CancellationToken::new();
        let tasks = Tasks::new(stop.clone());
        tasks.spawn("the first", async {});
        let first = timeout(LIMIT, tasks.lost()).await.unwrap();
        tasks.spawn("the second", async {});
        tasks.end().await;

        assert_eq!(timeout(LIMIT, tasks.lost()).await.unwrap(), first);

        let stopped = Tasks::new(stop.clone());
        stopped.spawn("the relay", stop.clone().cancelled_owned());
        stop.cancel();
        let mut running = mem::take(&mut *stopped.running.lock().unwrap());
        while running.join_next().await.is_some() {}

        assert_eq!(*stopped.lost.borrow(), None);
    }
}
