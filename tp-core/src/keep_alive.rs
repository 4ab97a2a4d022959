//! Detects from the other end that an application has its kernel probe a quiet connection. No other
//! process can read the options of its socket, but the probes arrive: segments without data, each
//! of which the kernel here answers with one.

use std::time::Duration;

/// The segments that a connection has received and sent so far.
///
/// The counters are those of `struct tcp_info` in `linux/tcp.h` (Linux 4.2 and 4.6). Each wraps to
/// zero after 2³² - 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Segments {
    /// `tcpi_segs_in`: all segments received.
    pub received: u32,
    /// `tcpi_segs_out`: all segments sent.
    pub sent: u32,
    /// `tcpi_data_segs_in`: segments received that carry data.
    pub data_received: u32,
    /// `tcpi_data_segs_out`: segments sent that carry data.
    pub data_sent: u32,
}

/// Measures how often an application probes one connection.
#[derive(Debug, Default)]
pub struct Watch {
    quiet: Option<Quiet>,
    interval: Option<Duration>,
}

#[derive(Debug)]
struct Quiet {
    since: Duration,
    segments: Segments,
}

impl Watch {
    /// Takes the connection's counters at `now`, the time since any fixed moment. Returns the time
    /// between two probes when it becomes known, or turns out to be shorter.
    pub fn observe(&mut self, segments: Segments, now: Duration) -> Option<Duration> {
        let Some(quiet) = self
            .quiet
            .as_ref()
            .filter(|quiet| quiet.segments.has_same_data(&segments))
        else {
            self.quiet = Some(Quiet {
                since: now,
                segments,
            });
            return None;
        };
        let probes = segments.received.wrapping_sub(quiet.segments.received);
        let answers = segments.sent.wrapping_sub(quiet.segments.sent);
        // Without an answer it is not a probe, but a window update or an acknowledgement.
        let probes = probes.min(answers);
        if probes == 0 {
            return None;
        }
        let interval = now.saturating_sub(quiet.since) / probes;
        let is_news = self.interval.is_none_or(|known| interval < known);
        if is_news {
            self.interval = Some(interval);
        }

        is_news.then_some(interval)
    }
}

impl Segments {
    fn has_same_data(&self, other: &Self) -> bool {
        (self.data_received, self.data_sent) == (other.data_received, other.data_sent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A connection that was last used at 0 and is probed every `interval` seconds.
    fn probed(interval: u32, second: u32) -> Segments {
        let probes = second / interval;

        Segments {
            received: 10 + probes,
            sent: 20 + probes,
            data_received: 5,
            data_sent: 6,
        }
    }

    fn seconds(seconds: u32) -> Duration {
        Duration::from_secs(seconds.into())
    }

    #[test]
    fn the_pace_of_probes_is_found_and_made_more_precise() {
        let mut watch = Watch::default();

        let found: Vec<_> = [0, 1, 3, 7, 15, 31, 61]
            .map(|second| watch.observe(probed(5, second), seconds(second)))
            .into_iter()
            .flatten()
            .collect();

        assert_eq!(found, [seconds(7), seconds(5)]);
    }

    #[test]
    fn a_connection_without_probes_has_no_pace() {
        let mut watch = Watch::default();

        for second in 0..100 {
            assert_eq!(watch.observe(probed(1000, second), seconds(second)), None);
        }
    }

    #[test]
    fn segments_that_are_not_answered_are_no_probes() {
        let mut watch = Watch::default();
        let mut segments = probed(1000, 0);
        assert_eq!(watch.observe(segments, seconds(0)), None);

        segments.received += 3;

        assert_eq!(watch.observe(segments, seconds(10)), None);
    }

    #[test]
    fn data_begins_the_count_anew() {
        let mut watch = Watch::default();
        let before = probed(5, 0);
        assert_eq!(watch.observe(before, seconds(0)), None);
        let after = Segments {
            received: 15,
            sent: 25,
            data_received: 6,
            data_sent: 7,
        };

        assert_eq!(watch.observe(after, seconds(100)), None);
        assert_eq!(watch.observe(after, seconds(101)), None);
    }
}
