//! Round trips, counted by packets (draft-ietf-ccwg-bbr-06 section 5.5.1).

use std::time::Duration;

/// Measurements of the current round trip (section 5.5.1).
#[derive(Debug, Clone, Copy)]
pub(super) struct Round {
    pub(super) end_delivered: u64,
    pub(super) start_delivered: u64,
    pub(super) lost: u64,
    pub(super) lowest_rtt: Option<Duration>,
    pub(super) is_app_limited: bool,
    /// True if any sample had a rate.
    pub(super) has_rate: bool,
    /// The largest rate of an application that sent less than it might.
    pub(super) limited_rate: f64,
    pub(super) most_in_flight: u64,
}

impl Round {
    pub(super) fn new(start_delivered: u64, end_delivered: u64) -> Self {
        Self {
            end_delivered,
            start_delivered,
            lost: 0,
            lowest_rtt: None,
            is_app_limited: false,
            has_rate: false,
            limited_rate: 0.0,
            most_in_flight: 0,
        }
    }
}

/// The shortest round trip, with one more.
pub(super) fn lower(lowest: Option<Duration>, rtt: Duration) -> Duration {
    lowest.map_or(rtt, |lowest| lowest.min(rtt))
}
