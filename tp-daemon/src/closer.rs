//! Closes descriptors of peers. Whoever shares a socket can delay the close of its last descriptor
//! (SO_LINGER), so they are closed on a thread of their own.

use std::{
    os::fd::OwnedFd,
    sync::mpsc::{self, SyncSender, TrySendError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::wait::pause;

/// Descriptors to be closed at a time.
const QUEUE: usize = 64;
/// To close an honest one takes microseconds: when the queue stays full for so long, one is slow.
const FULL_TIMEOUT: Duration = Duration::from_millis(500);
const RETRY_INTERVAL: Duration = Duration::from_millis(1);

/// Its thread begins with the first descriptor. Dropping it waits for all to be closed.
#[derive(Default)]
pub(crate) struct Closer {
    running: Option<(SyncSender<OwnedFd>, JoinHandle<()>)>,
}

impl Closer {
    /// Gives the descriptor back if those before it are slow to close, or without a thread.
    pub(crate) fn close(&mut self, mut fd: OwnedFd) -> Result<(), OwnedFd> {
        if self.running.is_none() {
            let (fd_tx, fds) = mpsc::sync_channel(QUEUE);
            let thread = thread::Builder::new()
                .name("closer".to_owned())
                .spawn(move || fds.into_iter().for_each(drop));
            self.running = thread.ok().map(|thread| (fd_tx, thread));
        }
        let Some((fd_tx, _)) = &self.running else {
            return Err(fd);
        };

        let begin = Instant::now();
        loop {
            fd = match fd_tx.try_send(fd) {
                Ok(()) => return Ok(()),
                Err(TrySendError::Full(fd)) if begin.elapsed() < FULL_TIMEOUT => fd,
                Err(TrySendError::Full(fd) | TrySendError::Disconnected(fd)) => return Err(fd),
            };
            pause(RETRY_INTERVAL);
        }
    }
}

impl Drop for Closer {
    fn drop(&mut self) {
        if let Some((fd_tx, thread)) = self.running.take() {
            drop(fd_tx);
            if thread.join().is_err() {
                tracing::error!("Closer panicked");
            }
        }
    }
}
