use super::*;

const RTT: Duration = Duration::from_millis(20);

#[test]
fn one_round_in_which_everything_arrives_is_enough() {
    let mut path = Path::new(|_| true);

    path.run(1);

    assert_eq!(path.check.lost(), BatchLoss::default());
    assert!(!path.check.tick(path.now + CHECK_INTERVAL / 2, true));
    assert!(path.check.tick(path.now + CHECK_INTERVAL, true));
}

#[test]
fn batches_that_are_lost_whole_or_but_for_the_first_are_given_up() {
    for first_arrives in [false, true] {
        let mut up = Path::new(move |probe| match probe {
            Probe::Up(part) => part == 0 && first_arrives,
            Probe::Down(_) | Probe::Alone => true,
        });
        let mut down = Path::new(move |probe| match probe {
            Probe::Down(part) => part == 0 && first_arrives,
            Probe::Up(_) | Probe::Alone => true,
        });

        up.run(ROUNDS);
        down.run(ROUNDS);

        let is_lost = |up, down| BatchLoss { up, down };
        assert_eq!(up.check.lost(), is_lost(true, false));
        assert_eq!(down.check.lost(), is_lost(false, true));
    }
}

#[test]
fn loss_that_hits_all_alike_is_hardly_ever_blamed_on_batches() {
    let blamed = (0..1000).filter(|seed| {
        let mut dice = fastrand::Rng::with_seed(*seed);
        let mut path = Path::new(move |_| dice.u8(..5) > 1);
        path.run(ROUNDS);

        path.check.lost() != BatchLoss::default()
    });

    // Of batches that lose two of five by chance, some lose nearly all: of 10 000 verdicts, two.
    assert!(blamed.count() <= 2);
}

#[test]
fn a_path_that_brings_nothing_is_asked_again_soon() {
    let mut path = Path::new(|_| false);

    path.run(ROUNDS);

    assert_eq!(path.check.lost(), BatchLoss::default());
    assert!(path.check.tick(path.now + RETRY_INTERVAL, true));
}

#[test]
fn an_idle_path_is_left_in_peace_and_keeps_its_verdict() {
    let mut path = Path::new(|probe| matches!(probe, Probe::Alone));
    path.run(ROUNDS);

    let hour = Duration::from_secs(3600);
    let mut ticks = 0;
    let end = path.now + hour;
    while path.check.next_tick() < end {
        path.now = path.check.next_tick();
        assert!(!path.check.tick(path.now, false));
        ticks += 1;
    }

    assert!(ticks <= 60, "{ticks}");
    assert!(path.check.lost().up && path.check.lost().down);
}

#[test]
fn batches_that_arrive_again_are_used_again() {
    let mut path = Path::new(|probe| matches!(probe, Probe::Alone));
    path.run(ROUNDS);
    assert!(path.check.lost().up);

    path.arrives = Box::new(|_| true);
    path.now += CHECK_INTERVAL;
    path.run(1);

    assert_eq!(path.check.lost(), BatchLoss::default());
}

#[test]
fn replies_of_other_rounds_and_places_count_for_nothing() {
    let mut check = BatchCheck::new(Instant::now());
    let now = Instant::now();
    assert!(check.tick(now, true));
    check.begin(now, 100, RTT);

    for (counter, part) in [(99, 0), (104, 9), (106, 0), (u64::MAX, 0)] {
        check.on_reply(now, counter, part);
    }

    let round = check.round.expect("nothing has ended it");
    assert_eq!((round.alone, behind_another(round.up)), (false, 0));
    assert_eq!(round.down, [false; PARTS]);
}

#[derive(Clone, Copy)]
enum Probe {
    Up(usize),
    Down(usize),
    Alone,
}

/// A path that delivers some probes and their answers.
struct Path {
    check: BatchCheck,
    now: Instant,
    next_counter: u64,
    arrives: Box<dyn FnMut(Probe) -> bool>,
}

impl Path {
    fn new(arrives: impl FnMut(Probe) -> bool + 'static) -> Self {
        let now = Instant::now();

        Self {
            check: BatchCheck::new(now),
            now,
            next_counter: 1,
            arrives: Box::new(arrives),
        }
    }

    fn run(&mut self, rounds: u32) {
        for _ in 0..rounds {
            assert!(self.check.tick(self.now, true));
            let first = self.next_counter;
            self.check.begin(self.now, first, RTT);
            self.next_counter += COUNTERS;
            for part in 0..PARTS {
                if (self.arrives)(Probe::Up(part)) {
                    self.check.on_reply(self.now, first + part as u64, 0);
                }
                if (self.arrives)(Probe::Down(part)) {
                    let part = u8::try_from(part).expect("few");
                    self.check.on_reply(self.now, first + PARTS as u64, part);
                }
            }
            if (self.arrives)(Probe::Alone) {
                self.check.on_reply(self.now, first + COUNTERS - 1, 0);
            }
            if self.check.round.is_none() {
                return;
            }
            self.now = self.check.next_tick();
        }
        self.check.tick(self.now, false);
    }
}
