//! A bounded number of tasks: one more aborts the oldest.

use std::{collections::BTreeMap, future::Future};

use tokio::task::{AbortHandle, JoinSet};

/// Keeps the newest tasks: the client of the oldest has waited longest, and retries or has gone.
#[derive(Debug)]
pub(super) struct NewestTasks {
    tasks: JoinSet<u64>,
    running: BTreeMap<u64, AbortHandle>,
    next: u64,
    limit: usize,
}

impl NewestTasks {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            tasks: JoinSet::new(),
            running: BTreeMap::new(),
            next: 0,
            limit,
        }
    }

    /// Runs `task`; returns whether the oldest was aborted for it.
    pub(super) fn spawn(&mut self, task: impl Future<Output = ()> + Send + 'static) -> bool {
        let is_full = self.running.len() >= self.limit;
        if is_full && let Some((_, oldest)) = self.running.pop_first() {
            oldest.abort();
        }
        let number = self.next;
        self.next += 1;
        let handle = self.tasks.spawn(async move {
            task.await;
            number
        });
        self.running.insert(number, handle);

        is_full
    }

    /// Waits until a task has ended; `None` if none runs.
    pub(super) async fn join_next(&mut self) -> Option<()> {
        if let Ok(number) = self.tasks.join_next().await? {
            self.running.remove(&number);
        }

        Some(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn a_task_too_many_ends_the_oldest() {
        let ended = Arc::new(Mutex::new(Vec::new()));
        let go = Arc::new(Notify::new());
        let mut tasks = NewestTasks::new(2);
        let mut spawn = |number: u32| {
            let (ended, go) = (Arc::clone(&ended), Arc::clone(&go));
            tasks.spawn(async move {
                go.notified().await;
                ended.lock().unwrap().push(number);
            })
        };

        let is_full = [spawn(1), spawn(2), spawn(3)];
        for _ in 0..3 {
            tokio::task::yield_now().await;
            go.notify_waiters();
        }
        while tasks.join_next().await.is_some() {}

        assert_eq!(is_full, [false, false, true]);
        let mut ended = ended.lock().unwrap().clone();
        ended.sort_unstable();
        assert_eq!(ended, [2, 3]);
        assert!(tasks.running.is_empty());
    }
}
