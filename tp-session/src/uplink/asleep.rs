//! Notices that the machine has slept for longer than the far end of a tunnel waits.

use std::time::Duration;

use rustix::time::{ClockId, Timespec, clock_gettime};
use tokio::time::sleep;

/// The runtime's timers stand still while the machine sleeps: they go on when it wakes.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// How long this machine has slept since it started.
pub(super) fn suspended() -> Duration {
    let since_start = |clock| {
        let Timespec { tv_sec, tv_nsec } = clock_gettime(clock);
        let nanoseconds = u32::try_from(tv_nsec).unwrap_or_default();
        Duration::new(tv_sec.unsigned_abs(), nanoseconds)
    };

    since_start(ClockId::Boottime).saturating_sub(since_start(ClockId::Monotonic))
}

/// Resolves once `suspended` has grown by more than `limit` between two polls.
pub(super) async fn slept_longer(limit: Duration, mut suspended: impl FnMut() -> Duration) {
    let mut before = suspended();
    loop {
        sleep(POLL_INTERVAL).await;
        let now = suspended();
        if now.saturating_sub(before) > limit {
            return;
        }
        before = now;
    }
}

#[cfg(test)]
mod tests {
    use std::iter;

    use tokio::time::timeout;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(120);

    async fn notices(slept: &[u64]) -> bool {
        let last = slept.last().copied().unwrap_or_default();
        let mut slept = slept.iter().copied().chain(iter::repeat(last));
        let suspended = || Duration::from_secs(slept.next().unwrap_or_default());

        timeout(Duration::from_millis(2500), slept_longer(LIMIT, suspended))
            .await
            .is_ok()
    }

    #[tokio::test]
    async fn a_long_sleep_is_noticed_and_short_ones_are_not() {
        let (long, short, before) = tokio::join!(
            notices(&[7, 7, 128]),
            notices(&[7, 97, 187]),
            notices(&[500])
        );

        assert!(long);
        assert!(!short);
        assert!(!before);
    }

    #[test]
    fn this_machine_has_slept_for_less_than_it_runs() {
        assert!(
            suspended()
                <= Duration::from_secs(clock_gettime(ClockId::Boottime).tv_sec.unsigned_abs())
        );
    }
}
