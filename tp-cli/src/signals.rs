//! Signals that ask `tp` to stop, and those it forwards to the command it runs.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Signals that end a program by default and that a user may send to `tp`.
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    quit: Signal,
    user1: Signal,
    user2: Signal,
    /// Never awaited. If `tp` inherits an ignored SIGCHLD, the kernel discards the exit code of the
    /// command (wait(2)).
    _child: Signal,
}

impl Signals {
    /// Installs the handlers: these signals no longer end the process.
    pub(crate) fn catch() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
            quit: signal(SignalKind::quit())?,
            user1: signal(SignalKind::user_defined1())?,
            user2: signal(SignalKind::user_defined2())?,
            _child: signal(SignalKind::child())?,
        })
    }

    /// The number of the next signal. Cancel-safe.
    pub(crate) async fn next(&mut self) -> i32 {
        let kind = tokio::select! {
            Some(()) = self.interrupt.recv() => SignalKind::interrupt(),
            Some(()) = self.terminate.recv() => SignalKind::terminate(),
            Some(()) = self.hangup.recv() => SignalKind::hangup(),
            Some(()) = self.quit.recv() => SignalKind::quit(),
            Some(()) = self.user1.recv() => SignalKind::user_defined1(),
            Some(()) = self.user2.recv() => SignalKind::user_defined2(),
            else => std::future::pending().await,
        };

        kind.as_raw_value()
    }
}
