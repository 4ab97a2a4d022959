//! Connections on which nothing happens: what they leave to others, and how they notice that the
//! other end of TCP has gone.

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

/// How often it is asked whether anything has happened.
const FIRST_LOOK: Duration = Duration::from_secs(1);
const LONGEST_LOOK: Duration = Duration::from_secs(30);
/// A connection is probed after so long without a segment, unless its application does so sooner.
const PROBED_AFTER: Duration = Duration::from_secs(30);
/// Probes without an answer, so far apart, end it.
const PROBE_PAUSE: Duration = Duration::from_secs(10);
const PROBES: u32 = 3;

/// Probes a quiet connection to somewhere else, so that one whose other end has vanished fails
/// within a minute, and no firewall in between forgets it.
///
/// TCP_USER_TIMEOUT stays as it is: it would end connections whose reader merely does not read.
///
/// # Errors
///
/// If the kernel refuses SO_KEEPALIVE or one of its times.
pub fn keep_alive(tcp: &TcpStream) -> io::Result<()> {
    probe(tcp, PROBED_AFTER)
}

fn probe(tcp: &TcpStream, after: Duration) -> io::Result<()> {
    let after = after.clamp(Duration::from_secs(1), PROBED_AFTER);
    let pause = Duration::from_secs((after.as_secs() / 2).max(1)).min(PROBE_PAUSE);
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

    /// While TCP has nothing to send, leaves credit to others and looks for the application's
    /// probes; applies those that the other end tells of.
    pub(super) async fn watch(
        &self,
        tcp: &TcpStream,
        credit: Option<Arc<SendCredit>>,
        observe: fn(&TcpStream) -> Option<Segments>,
    ) -> Infallible {
        let Some(credit) = credit else {
            return std::future::pending().await;
        };
        let look = async {
            let begun = Instant::now();
            let mut watch = Watch::default();
            let (mut before, mut pause) = (0, FIRST_LOOK);
            loop {
                if let Some(segments) = observe(tcp)
                    && let Some(pace) = watch.look(segments, begun.elapsed())
                {
                    credit.tell_keep_alive(pace);
                }
                sleep(pause).await;
                let reads = self.reads.load(Ordering::Relaxed);
                if reads == before {
                    pause = (pause * 2).min(LONGEST_LOOK);
                    credit.give_back();
                } else {
                    pause = FIRST_LOOK;
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
            never = look => never,
            never = apply => never,
        }
    }
}
