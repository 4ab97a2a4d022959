use super::*;

#[test]
fn a_path_without_loss_keeps_its_batches() {
    let mut path = Path::new();

    path.run(Duration::from_secs(60));

    assert_eq!((path.judge.is_on(), path.changes), (true, 0));
}

#[test]
fn loss_that_goes_with_batching_turns_it_off_and_says_so() {
    let mut path = Path::new();
    (path.lost_with, path.lost_without) = (0.8, 0.01);

    path.run(Duration::from_secs(5));

    assert_eq!(path.changes, 2, "a trial and its verdict");
    assert_eq!(
        path.judge.state(),
        "off: 80 % of packets were lost with it, 1 % without"
    );
}

#[test]
fn loss_that_stays_is_not_blamed_on_batching_and_not_tried_again_soon() {
    let mut path = Path::new();
    (path.lost_with, path.lost_without) = (0.2, 0.2);

    path.run(PAUSE_ON);

    assert_eq!((path.judge.state(), path.changes), (String::new(), 2));
    path.run(Duration::from_secs(5));
    assert_eq!(path.changes, 4, "tried again after the pause");
    path.run(PAUSE_ON);
    assert_eq!(path.changes, 4, "the pause has doubled");
}

#[test]
fn loss_of_what_is_too_fast_for_the_path_is_not_blamed_on_batching() {
    let mut path = Path::new();
    // Without batches the sender is slower than the path.
    (path.lost_with, path.speed_without) = (0.5, 0.3);

    path.run(PAUSE_ON / 2);

    assert_eq!((path.judge.state(), path.changes), (String::new(), 2));
}

#[test]
fn a_path_that_fills_once_batches_are_gone_is_no_excuse_for_them() {
    let mut path = Path::new();
    (path.lost_with, path.lost_without, path.speed_without) = (0.9, 0.5, 5.0);

    path.run(Duration::from_secs(5));

    assert!(
        path.judge.state().starts_with("off: 90 %"),
        "{}",
        path.judge.state()
    );
}

#[test]
fn a_verdict_that_rests_on_a_coincidence_is_revised() {
    let mut path = Path::new();
    (path.lost_with, path.lost_without) = (0.5, 0.0);
    path.run(Duration::from_secs(5));
    assert!(!path.judge.is_on());

    path.lost_with = 0.0;
    path.run(PAUSE_OFF);

    assert!(path.judge.is_on());
}

#[test]
fn light_loss_and_a_single_burst_of_it_are_no_reason() {
    let mut path = Path::new();
    path.lost_with = 0.05;
    path.run(Duration::from_secs(10));

    path.lost_with = 0.9;
    path.run(LOOK_BACK);
    path.lost_with = 0.0;
    path.run(Duration::from_secs(10));

    assert_eq!(path.changes, 0);
}

#[test]
fn batches_that_all_vanish_leave_no_acknowledgement_and_are_noticed() {
    let mut path = Path::new();
    (path.lost_with, path.lost_without) = (1.0, 0.0);

    path.run(Duration::from_secs(5));

    assert_eq!(
        path.judge.state(),
        "off: 100 % of packets were lost with it, 0 % without"
    );
}

#[test]
fn what_is_sent_after_a_quiet_time_is_given_time_for_its_acknowledgement() {
    let mut path = Path::new();
    path.run(Duration::from_secs(1));
    path.now += Duration::from_secs(3600);

    // Sent, and not acknowledged yet.
    path.counts.sent += 640;
    path.counts.batched += 640;
    path.counts.in_flight = 640 * 1200;
    path.look();

    assert_eq!(path.changes, 0);
}

#[test]
fn a_trial_that_another_path_interrupts_proves_nothing() {
    let mut path = Path::new();
    (path.lost_with, path.lost_without) = (0.8, 0.0);
    while path.judge.is_on() {
        path.run(PACE);
    }

    assert!(path.judge.interrupt());

    assert!(path.judge.is_on());
    assert_eq!(path.judge.not_before, None);
}

/// A path that carries a steady transfer, and what it loses of it.
struct Path {
    judge: Judge,
    now: Instant,
    counts: Counts,
    lost_with: f64,
    lost_without: f64,
    /// How fast the sender is without batches, of its speed with them.
    speed_without: f64,
    /// Losses that the sender does not know of yet.
    unknown: u64,
    changes: u32,
}

impl Path {
    const PER_LOOK: u64 = 100;

    fn new() -> Self {
        Self {
            judge: Judge::default(),
            now: Instant::now(),
            counts: Counts {
                rtt: Duration::from_millis(20),
                ..Counts::default()
            },
            lost_with: 0.0,
            lost_without: 0.0,
            speed_without: 1.0,
            unknown: 0,
            changes: 0,
        }
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            let (share, speed) = match self.judge.is_on() {
                true => (self.lost_with, 1.0),
                false => (self.lost_without, self.speed_without),
            };
            let sent = (speed * Self::PER_LOOK as f64) as u64;
            let lost = (share * sent as f64) as u64;
            self.counts.sent += sent;
            if self.judge.is_on() {
                self.counts.batched += sent;
            }
            self.counts.in_flight = match lost < sent {
                true => 0,
                false => self.counts.in_flight + lost * 1200,
            };
            if lost < sent {
                // What arrives tells of what was lost before.
                self.counts.acknowledgements += 1;
                self.counts.lost += std::mem::replace(&mut self.unknown, lost);
            } else {
                self.unknown += lost;
            }
            self.look();
        }
    }

    fn look(&mut self) {
        if self.judge.look(self.now, self.counts) {
            self.changes += 1;
        }
        self.now += PACE;
    }
}
