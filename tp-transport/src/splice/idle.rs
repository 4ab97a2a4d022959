//! Idle connections: they leave credit to others, and notice when the other end of TCP has gone.

use std::{
    convert::Infallible,
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use socket2::{SockRef, TcpKeepalive};
use tokio::{net::TcpStream, time::sleep};
use tp_core::keep_alive::{Segments, Watch};

use crate::credit::SendCredit;

/// Between polls for activity.
const MIN_POLL_BACKOFF: Duration = Duration::from_secs(1);
const MAX_POLL_BACKOFF: Duration = Duration::from_secs(30);
/// A connection is probed after so long without a segment, unless its application probes sooner.
const PROBE_AFTER: Duration = Duration::from_secs(30);
/// Between probes without an answer, the last of which ends it.
const PROBE_INTERVAL: Duration = Duration::from_secs(10);
const PROBES: u32 = 3;

/// Probes a quiet connection to somewhere else, so that one whose other end has vanished fails
/// within a minute, and no firewall in between forgets it.
///
/// TCP_USER_TIMEOUT stays unset: it would end connections whose reader only pauses.
///
/// # Errors
///
/// If the kernel refuses SO_KEEPALIVE or one of its times.
pub fn keep_alive(tcp: &TcpStream) -> io::Result<()> {
    probe(tcp, PROBE_AFTER)
}

fn probe(tcp: &TcpStream, after: Duration) -> io::Result<()> {
    let after = after.clamp(Duration::from_secs(1), PROBE_AFTER);
    let pause = Duration::from_secs((after.as_secs() / 2).max(1)).min(PROBE_INTERVAL);
    let settings = TcpKeepalive::new()
        .with_time(after)
        .with_interval(pause)
        .with_retries(PROBES);

    SockRef::from(tcp).set_tcp_keepalive(&settings)
}

/// Follows one splice.
#[derive(Default)]
pub(super) struct Idle {
    reads: AtomicU64,
}

impl Idle {
    pub(super) fn has_read(&self) {
        self.reads.fetch_add(1, Ordering::Relaxed);
    }

    /// While TCP has nothing to send, leaves credit to others and detects the application's probes;
    /// probes as often as the application at the other end.
    pub(super) async fn watch(
        &self,
        tcp: &TcpStream,
        credit: Option<Arc<SendCredit>>,
        observe: fn(&TcpStream) -> Option<Segments>,
    ) -> Infallible {
        let Some(credit) = credit else {
            return std::future::pending().await;
        };
        let poll = async {
            let begun = Instant::now();
            let mut watch = Watch::default();
            let (mut before, mut pause) = (0, MIN_POLL_BACKOFF);
            loop {
                if let Some(segments) = observe(tcp)
                    && let Some(interval) = watch.observe(segments, begun.elapsed())
                {
                    credit.tell_keep_alive(interval);
                }
                sleep(pause).await;
                let reads = self.reads.load(Ordering::Relaxed);
                if reads == before {
                    pause = (pause * 2).min(MAX_POLL_BACKOFF);
                    credit.give_back();
                } else {
                    pause = MIN_POLL_BACKOFF;
                }
                before = reads;
            }
        };
        let apply = async {
            loop {
                let after = credit.keep_alive().await;
                if let Err(error) = probe(tcp, after) {
                    tracing::debug!(%error, "Connection probed as before");
                }
            }
        };

        tokio::select! {
            never = poll => never,
            never = apply => never,
        }
    }
}
