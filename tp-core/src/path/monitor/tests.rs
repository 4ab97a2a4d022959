use std::collections::VecDeque;

use super::*;

#[test]
fn an_address_that_answers_is_used_soon() {
    let mut world = World::new(PathChoice::Auto);
    world.candidates(&[1]);

    world.run(Duration::from_millis(200));

    assert_eq!(world.monitor.active(), udp(1));
    assert_eq!(world.monitor.reason(), "");
}

#[test]
fn an_address_that_is_silent_is_tried_ever_more_seldom_and_never_used() {
    let mut world = World::new(PathChoice::Auto);
    world.candidates(&[1]);
    world.udp_answers = false;

    world.run(Duration::from_secs(120));

    assert_eq!(world.monitor.active(), Target::Link);
    assert!(world.udp_probes < 40, "{}", world.udp_probes);
    assert!(world.monitor.reason().contains("no answer"));
}

#[test]
fn the_second_address_is_used_if_the_first_is_silent() {
    let mut world = World::new(PathChoice::Auto);
    world.dead_address = Some(address(1));
    world.candidates(&[1, 2]);

    world.run(Duration::from_millis(300));

    assert_eq!(world.monitor.active(), udp(2));
}

#[test]
fn a_look_asks_every_address_and_changes_no_path() {
    let mut world = World::new(PathChoice::Auto);
    world.dead_address = Some(address(2));
    world.candidates(&[1]);
    world.run(Duration::from_secs(1));
    assert_eq!(world.monitor.active(), udp(1));
    // From here on no other address is probed.
    world.candidates(&[1, 2, 3]);

    let asked = world.monitor.survey(world.now, false);
    let answered = world.now + Duration::from_millis(7);
    for action in &asked {
        let Action::Probe {
            to: Target::Udp(to),
            counter,
            ..
        } = *action
        else {
            panic!("{action:?}");
        };
        if to != address(2) {
            world.monitor.on_reply(answered, to, counter);
        }
    }

    let found: Vec<_> = world
        .monitor
        .found()
        .iter()
        .map(|it| (it.address, it.rtt))
        .collect();
    let rtt = Some(Duration::from_millis(7));
    assert_eq!(
        found,
        [(address(1), rtt), (address(2), None), (address(3), rtt)]
    );
    // The third has answered nothing that would prove it.
    assert!(!world.monitor.candidates[2].answers());
    let again = world.monitor.survey(answered, true);
    let silent = matches!(again[..], [Action::Probe { to, .. }] if to == udp(2));
    assert!(silent, "{again:?}");
}

#[test]
fn silence_on_udp_returns_to_the_stream_within_half_a_second() {
    let mut world = World::on_udp(PathChoice::Auto);
    world.udp_answers = false;
    world.busy = true;

    world.run(Duration::from_millis(500));

    assert_eq!(world.monitor.active(), Target::Link);
    assert!(world.monitor.reason().contains("fell silent"));
}

#[test]
fn an_idle_path_is_probed_seldom_and_still_left_when_silent() {
    let mut world = World::on_udp(PathChoice::Auto);
    world.run(Duration::from_secs(3));
    let before = world.udp_probes;
    world.run(Duration::from_secs(10));
    assert!(world.udp_probes - before <= 11);

    world.udp_answers = false;
    world.run(Duration::from_millis(1700));

    assert_eq!(world.monitor.active(), Target::Link);
}

#[test]
fn some_loss_is_not_silence() {
    let mut world = World::on_udp(PathChoice::Auto);
    world.busy = true;
    world.lose_of_five = 2;

    world.run(Duration::from_secs(60));

    assert_eq!(world.monitor.active(), udp(1));
    assert_eq!(world.switches, 1);
}

#[test]
fn a_long_way_is_not_silence() {
    let mut world = World::new(PathChoice::Auto);
    world.rtt = Duration::from_millis(700);
    world.candidates(&[1]);
    world.busy = true;

    world.run(Duration::from_secs(60));

    assert_eq!(world.monitor.active(), udp(1));
    assert_eq!(world.switches, 1);
}

#[test]
fn a_monitor_that_was_late_blames_nobody() {
    let mut world = World::on_udp(PathChoice::Auto);
    world.busy = true;
    world.run(Duration::from_millis(500));

    // A sleeping laptop: probes were sent before, and the replies to them are lost.
    world.in_flight.clear();
    world.now += Duration::from_secs(3600);
    world.run(Duration::from_secs(2));

    assert_eq!(world.monitor.active(), udp(1));
    assert!(!world.gone);
}

#[test]
fn a_monitor_that_is_late_time_and_again_still_notices_silence() {
    let mut on_udp = World::on_udp(PathChoice::UdpOnly);
    on_udp.udp_answers = false;
    let mut on_link = World::new(PathChoice::StreamOnly);
    on_link.link_answers = false;

    for mut world in [on_udp, on_link] {
        world.busy = true;
        for _ in 0..40 {
            world.run(Duration::from_millis(100));
            world.now += Duration::from_millis(1100);
        }
        assert!(world.gone);
    }
}

#[test]
fn a_path_that_fell_silent_is_used_again_only_after_a_pause() {
    let mut world = World::on_udp(PathChoice::Auto);
    world.busy = true;
    world.interrupt_udp();

    world.run(Duration::from_secs(1));
    assert_eq!(world.monitor.active(), Target::Link);
    world.run(Duration::from_secs(4));
    assert_eq!(world.monitor.active(), udp(1));
}

#[test]
fn falls_are_forgotten_after_a_long_good_time_and_not_after_a_short_one() {
    let mut world = World::on_udp(PathChoice::Auto);
    world.busy = true;
    for _ in 0..3 {
        world.interrupt_udp();
        world.run(Duration::from_secs(60));
        assert_eq!(world.monitor.active(), udp(1));
    }
    world.interrupt_udp();
    world.run(Duration::from_secs(5));
    assert_eq!(world.monitor.active(), Target::Link);

    world.run(Duration::from_secs(60) + TRUSTED_AFTER);
    world.interrupt_udp();
    assert_eq!(world.monitor.active(), Target::Link);
    world.run(Duration::from_secs(5));

    assert_eq!(world.monitor.active(), udp(1));
}

#[test]
fn both_paths_silent_for_three_seconds_means_gone() {
    let mut world = World::on_udp(PathChoice::Auto);
    world.udp_answers = false;
    world.link_answers = false;
    world.busy = true;

    world.run(Duration::from_secs(2));
    assert!(!world.gone);
    world.run(Duration::from_millis(2500));
    assert!(world.gone);
}

#[test]
fn a_silent_stream_alone_means_gone_too() {
    let mut world = World::new(PathChoice::StreamOnly);
    world.run(Duration::from_secs(20));
    assert!(!world.gone);

    world.link_answers = false;
    world.run(Duration::from_secs(5));

    assert!(world.gone);
}

#[test]
fn a_lost_stream_is_no_loss_while_udp_answers() {
    let mut world = World::on_udp(PathChoice::Auto);
    world.monitor.on_link(world.now, false);

    world.run(Duration::from_secs(60));

    assert!(!world.gone);
    assert_eq!(world.monitor.active(), udp(1));
}

#[test]
fn a_lost_stream_means_gone_unless_it_is_replaced() {
    let mut world = World::new(PathChoice::Auto);
    world.monitor.on_link(world.now, false);
    world.run(Duration::from_secs(2));
    world.monitor.on_link(world.now, true);
    world.run(Duration::from_secs(10));
    assert!(!world.gone);

    world.monitor.on_link(world.now, false);
    world.run(Duration::from_millis(3200));

    assert!(world.gone);
}

#[test]
fn without_the_stream_allowed_silence_on_udp_means_gone() {
    let mut world = World::on_udp(PathChoice::UdpOnly);
    world.udp_answers = false;
    world.busy = true;

    world.run(Duration::from_secs(2));
    assert_eq!(world.monitor.active(), udp(1));
    world.run(Duration::from_millis(1500));

    assert!(world.gone);
}

#[test]
fn small_packets_alone_suffice_in_the_end() {
    let mut world = World::new(PathChoice::Auto);
    world.largest = usize::from(BASE_SIZE);
    world.candidates(&[1]);
    world.busy = true;

    world.run(Duration::from_secs(2));

    assert_eq!(world.monitor.active(), udp(1));
    assert_eq!(world.switches, 1);
}

#[test]
fn withdrawing_the_address_in_use_does_not_interrupt_it() {
    let mut world = World::on_udp(PathChoice::Auto);

    world.candidates(&[2]);
    world.run(Duration::from_secs(5));

    assert_eq!(world.monitor.active(), udp(1));
}

#[test]
fn where_udp_is_not_allowed_nothing_is_probed() {
    let mut world = World::new(PathChoice::StreamOnly);
    world.candidates(&[1]);

    world.run(Duration::from_secs(10));

    assert_eq!((world.udp_probes, world.switches), (0, 0));
}

fn address(last: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, last], 30071))
}

fn udp(last: u8) -> Target {
    Target::Udp(address(last))
}

/// A wire and a clock for one monitor.
struct World {
    monitor: Monitor,
    now: Instant,
    link_received: Instant,
    in_flight: VecDeque<(Instant, Target, u64)>,
    rtt: Duration,
    udp_answers: bool,
    link_answers: bool,
    dead_address: Option<SocketAddr>,
    /// The number of UDP probes that are lost, of five.
    lose_of_five: u64,
    largest: usize,
    busy: bool,
    udp_probes: usize,
    switches: usize,
    gone: bool,
}

impl World {
    fn new(choice: PathChoice) -> Self {
        let now = Instant::now();

        Self {
            monitor: Monitor::new(choice, now),
            now,
            link_received: now,
            in_flight: VecDeque::new(),
            rtt: Duration::from_millis(5),
            udp_answers: true,
            link_answers: true,
            dead_address: None,
            lose_of_five: 0,
            largest: usize::MAX,
            busy: false,
            udp_probes: 0,
            switches: 0,
            gone: false,
        }
    }

    fn on_udp(choice: PathChoice) -> Self {
        let mut world = Self::new(choice);
        world.candidates(&[1]);
        world.run(Duration::from_secs(1));
        assert_eq!(world.monitor.active(), udp(1));

        world
    }

    fn candidates(&mut self, last: &[u8]) {
        let addresses: Vec<_> = last.iter().map(|last| address(*last)).collect();
        self.monitor.set_candidates(self.now, &addresses);
    }

    /// Long enough to be noticed.
    fn interrupt_udp(&mut self) {
        self.udp_answers = false;
        self.run(Duration::from_millis(600));
        self.udp_answers = true;
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            while let Some((at, from, counter)) = self.in_flight.front().copied()
                && at <= self.now
            {
                self.in_flight.pop_front();
                match from {
                    Target::Link => self.link_received = at,
                    Target::Udp(from) => self.monitor.on_reply(self.now, from, counter),
                }
            }
            if self.busy {
                self.monitor.on_activity(self.now);
            }
            if self.monitor.next_tick(self.now) <= self.now {
                for action in self.monitor.tick(self.now, self.link_received) {
                    self.act(action);
                }
            }
            self.now += Duration::from_millis(5);
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Probe { to, counter, size } => {
                let arrives = match to {
                    Target::Link => self.link_answers,
                    Target::Udp(address) => {
                        self.udp_probes += 1;
                        self.udp_answers
                            && Some(address) != self.dead_address
                            && counter % 5 >= self.lose_of_five
                            && size <= self.largest
                    }
                };
                if arrives {
                    self.in_flight.push_back((self.now + self.rtt, to, counter));
                }
            }
            Action::Switch(_) => self.switches += 1,
            Action::Gone => self.gone = true,
        }
    }
}
