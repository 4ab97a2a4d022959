use std::time::Duration;

use super::*;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const LIMITS: Limits = Limits {
    flows: 5000,
    floor: 8 * KIB,
    start: 256 * KIB,
    window: 7 * MIB,
    shared: 80 * MIB,
    starts: 16 * MIB,
};
const ROUND_TRIP: Duration = Duration::from_millis(20);

/// A reader that passes everything on once in a round trip, for so many of them.
fn read_at_once(pool: &mut Pool, share: &mut Share, round_trips: u32) -> u64 {
    let mut passed = 0;
    for round in 1..=round_trips {
        let held = share.held();
        pool.pass_on(share, held, ROUND_TRIP * round, || ROUND_TRIP)
            .unwrap();
        passed += held;
    }

    passed
}

/// A flow of a reader that read fast and then stopped for good.
fn stalled(pool: &mut Pool) -> Share {
    let mut share = pool.open(Duration::ZERO).unwrap();
    read_at_once(pool, &mut share, 20);

    share
}

#[test]
fn a_reader_that_keeps_up_gets_the_whole_window_within_a_few_round_trips() {
    let mut pool = Pool::new(LIMITS);
    let mut share = pool.open(Duration::ZERO).unwrap();
    assert_eq!(share.held(), LIMITS.start);

    read_at_once(&mut pool, &mut share, 5);

    assert_eq!(share.held(), LIMITS.window);
}

#[test]
fn a_reader_that_is_slower_than_its_window_gets_no_more() {
    let mut pool = Pool::new(LIMITS);
    let mut share = pool.open(Duration::ZERO).unwrap();

    for second in 1..=100 {
        let now = Duration::from_secs(second);
        pool.pass_on(&mut share, 200 * KIB, now, || ROUND_TRIP)
            .unwrap();
    }

    assert_eq!(share.held(), LIMITS.start);
}

#[test]
fn a_reader_that_has_become_slow_gets_less() {
    let mut pool = Pool::new(LIMITS);
    let mut share = stalled(&mut pool);
    assert_eq!(share.held(), LIMITS.window);

    for second in 1..=1000 {
        let now = Duration::from_secs(100 + second);
        pool.pass_on(&mut share, 64 * KIB, now, || ROUND_TRIP)
            .unwrap();
    }

    assert!(share.held() <= LIMITS.start, "{}", share.held());
}

#[test]
fn readers_that_have_stopped_leave_a_start_for_every_new_flow_and_never_exceed_the_budget() {
    let mut pool = Pool::new(LIMITS);
    let _stalled: Vec<_> = (0..200).map(|_| stalled(&mut pool)).collect();

    let mut share = pool.open(Duration::ZERO).unwrap();
    let start = share.held();
    let passed = read_at_once(&mut pool, &mut share, 10);

    assert!(start >= 32 * KIB, "{start}");
    assert!(passed >= 10 * start, "{passed} of {start}");
    assert!(pool.held() <= LIMITS.budget(), "{}", pool.held());
}

#[test]
fn as_many_stopped_readers_as_there_may_be_leave_every_flow_its_floor() {
    let mut pool = Pool::new(LIMITS);
    let mut shares: Vec<_> = (0..LIMITS.flows).map(|_| stalled(&mut pool)).collect();
    assert!(pool.open(Duration::ZERO).is_none());
    assert!(pool.held() <= LIMITS.budget());

    for share in &mut shares {
        let held = share.held();
        assert!(held >= LIMITS.floor);
        let granted = pool.pass_on(share, held, ROUND_TRIP * 1000, || ROUND_TRIP);
        assert!(granted.unwrap() >= LIMITS.floor);
        assert!(pool.held() <= LIMITS.budget());
    }
}

#[test]
fn what_ends_or_is_given_back_is_there_for_others() {
    let mut pool = Pool::new(LIMITS);
    let mut idle = stalled(&mut pool);
    let back = idle.held() - LIMITS.floor;
    pool.give_back(&mut idle, back).unwrap();
    assert_eq!(pool.held(), LIMITS.floor);
    let busy = stalled(&mut pool);

    pool.close(idle);
    pool.close(busy);

    assert_eq!(pool.held(), 0);
}

#[test]
fn nobody_passes_on_or_gives_back_more_than_was_granted() {
    let mut pool = Pool::new(LIMITS);
    let mut share = pool.open(Duration::ZERO).unwrap();
    let held = share.held();

    let passed = pool.pass_on(&mut share, held + 1, ROUND_TRIP, || ROUND_TRIP);

    assert_eq!(passed, Err(Exceeded));
    assert_eq!(pool.give_back(&mut share, held + 1), Err(Exceeded));
    assert_eq!(share.held(), held);
}

/// Every order of events, as a generator of pseudo-random numbers has them.
#[test]
fn no_history_takes_more_than_the_budget_or_leaves_a_reader_without_credit() {
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = |below: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % below
    };
    let limits = Limits {
        flows: 50,
        shared: 4 * MIB,
        starts: MIB,
        ..LIMITS
    };
    let mut pool = Pool::new(limits);
    let mut shares: Vec<Share> = Vec::new();
    for step in 0..100_000 {
        let now = Duration::from_micros(step * 300);
        match (next(10), shares.is_empty()) {
            (0, _) | (_, true) => shares.extend(pool.open(now)),
            (1, _) => {
                let share = shares.swap_remove(next(shares.len() as u64) as usize);
                pool.close(share);
            }
            (2, _) => {
                let at = next(shares.len() as u64) as usize;
                let bytes = next(shares[at].held() + 1);
                pool.give_back(&mut shares[at], bytes).unwrap();
            }
            _ => {
                let at = next(shares.len() as u64) as usize;
                let bytes = shares[at].held() - next(shares[at].held() + 1) / 4;
                pool.pass_on(&mut shares[at], bytes, now, || ROUND_TRIP)
                    .unwrap();
                assert!(shares[at].held() > 0);
            }
        }
        assert!(pool.held() <= limits.budget());
        assert!(shares.len() as u64 <= limits.flows);
    }
}
