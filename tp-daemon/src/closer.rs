//! Closes descriptors of peers. Whoever shares a socket can delay the close of its last descriptor
//! (SO_LINGER), so they are closed on a thread of their own.

use std::{
    os::fd::OwnedFd,
    sync::mpsc::{self, SyncSender},
    thread::{self, JoinHandle},
};

/// Descriptors to be closed at a time; an honest one takes microseconds.
const QUEUE: usize = 1024;

/// Its thread begins with the first descriptor. Dropping it waits for all to be closed.
#[derive(Default)]
pub(crate) struct Closer {
    running: Option<(SyncSender<OwnedFd>, JoinHandle<()>)>,
}

impl Closer {
    /// Gives the descriptor back if too many are to be closed already, or without a thread.
    pub(crate) fn close(&mut self, fd: OwnedFd) -> Result<(), OwnedFd> {
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

        fd_tx.try_send(fd).map_err(|error| match error {
            mpsc::TrySendError::Full(fd) | mpsc::TrySendError::Disconnected(fd) => fd,
        })
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
