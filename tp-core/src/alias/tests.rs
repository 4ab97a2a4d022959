//! The life cycle, one step at a time.

use super::*;

mod history;

const MINUTE: Duration = Duration::from_secs(60);
/// A slice in the middle of all aliases: of other indices an owner decides nothing.
const SLICE: Range<u32> = 1024..1032;

#[test]
fn half_of_the_aliases_may_be_in_use_undisturbed() {
    assert!(is_enough(128, 256));
    assert!(!is_enough(129, 256));
    assert!(least_recently_used(aliases(128), 256).is_empty());
}

#[test]
fn what_was_used_last_rests_last() {
    let mut chosen = least_recently_used(aliases(150), 256);
    chosen.sort_unstable_by_key(|alias| alias.index);

    let indices: Vec<u32> = chosen.iter().map(|alias| alias.index).collect();
    assert_eq!(indices, (128..150).collect::<Vec<_>>());
}

#[test]
fn one_round_is_bounded() {
    assert_eq!(least_recently_used(aliases(60_000), 65_280).len(), BATCH);
}

#[test]
fn while_half_is_fresh_nothing_is_scanned() {
    let (mut life, now) = life();
    let due = life.poll_timeout();

    assert_eq!(due, now + SCAN_INTERVAL);
    assert_eq!(life.handle_timeout(4, due), []);
    assert_eq!(life.poll_timeout(), due + SCAN_INTERVAL);
    assert_eq!(life.handle_timeout(5, due), [], "not before the next one");
    assert_eq!(
        life.handle_timeout(5, life.poll_timeout()),
        [Action::ReadTable]
    );
}

#[test]
fn a_short_quarantine_is_scanned_more_often() {
    let now = Instant::now();
    let life = LifeCycle::new(SLICE, Duration::from_secs(8), now);

    assert_eq!(life.poll_timeout(), now + Duration::from_secs(1));
}

#[test]
fn the_least_recently_used_are_quarantined_until_half_is_left() {
    let (mut life, _) = life();
    let now = scan(&mut life);

    let asked = life.handle_table(table(&[50, 20, 40, 30, 60, 10]), now);
    assert_eq!(find(asked), [1025, 1029]);
    let actions = life.handle_holders(&Holders::default(), now);
    assert_eq!(actions.len(), 2);
    assert!(
        [1025, 1029]
            .iter()
            .all(|index| actions.contains(&Action::Quarantine(*index)))
    );
}

#[test]
fn a_held_alias_stays_in_use_and_its_turn_comes_last() {
    let (mut life, _) = life();
    let now = scan(&mut life);
    life.handle_table(table(&[50, 20, 40, 30, 60, 10]), now);

    let refreshed = Action::Refresh {
        index: 1029,
        last_use: 60,
    };
    let actions = life.handle_holders(&held(&[1029]), now);
    assert_eq!(actions.len(), 2);
    assert!(actions.contains(&Action::Quarantine(1025)) && actions.contains(&refreshed));
}

#[test]
fn an_alias_whose_address_has_another_in_quarantine_stays_in_use() {
    let (mut life, _) = life();
    let now = scan(&mut life);
    life.handle_table(table(&[50, 20, 40, 30, 60]), now);
    life.handle_holders(&Holders::default(), now);

    let refreshed = Action::Refresh {
        index: 1025,
        last_use: 60,
    };
    assert_eq!(life.handle_refused(1025, now), refreshed);
    let later = scan(&mut life);
    assert_eq!(
        find(life.handle_table(table(&[50, 20, 40, 30, 60]), later)),
        [1025],
        "it is not taken for one in quarantine"
    );
}

#[test]
fn an_alias_is_freed_after_its_quarantine_and_not_before() {
    let (mut life, since) = with_quarantined(1025);
    let early = since + QUARANTINE_LIFETIME - Duration::from_nanos(1);

    assert_eq!(life.handle_timeout(5, early), [Action::ReadTable]);
    let now = since + QUARANTINE_LIFETIME + SCAN_INTERVAL;
    assert_eq!(find(life.handle_timeout(5, now)), [1025]);
    assert_eq!(
        life.handle_holders(&Holders::default(), now),
        [Action::Free(1025), Action::ReadTable]
    );
    life.handle_released(1025, now);
    assert_eq!(
        life.handle_timeout(5, now + QUARANTINE_LIFETIME),
        [Action::ReadTable],
        "it is free"
    );
}

#[test]
fn nothing_is_freed_while_somebody_holds_it_or_it_is_pinned() {
    let pinned = Holders {
        pinned: BTreeSet::from([1025]),
        ..Holders::default()
    };
    for holders in [held(&[1025]), pinned] {
        let (mut life, since) = with_quarantined(1025);
        let mut now = since + QUARANTINE_LIFETIME;

        for _ in 0..3 {
            assert_eq!(find(life.handle_timeout(5, now)), [1025]);
            assert_eq!(life.handle_holders(&holders, now), [Action::ReadTable]);
            let early = now + QUARANTINE_LIFETIME / 2;
            assert_eq!(life.handle_timeout(5, early), [Action::ReadTable]);
            now += QUARANTINE_LIFETIME;
        }
        assert_eq!(find(life.handle_timeout(5, now)), [1025]);
        assert_eq!(
            life.handle_holders(&Holders::default(), now),
            [Action::Free(1025), Action::ReadTable]
        );
    }
}

#[test]
fn an_alias_that_came_back_into_use_can_be_quarantined_again_once_its_time_was_over() {
    let (mut life, since) = with_quarantined(1025);
    let again = table(&[50, 20, 40, 30, 60]);
    let now = life.poll_timeout();
    life.handle_timeout(5, now);

    assert_eq!(life.handle_table(again.clone(), now), [], "not yet");
    let now = since + QUARANTINE_LIFETIME;
    life.handle_timeout(5, now);
    life.handle_holders(&Holders::default(), now);
    life.handle_released(1025, now);
    assert_eq!(find(life.handle_table(again, now)), [1025]);
}

#[test]
fn a_pinned_alias_is_never_quarantined() {
    let (mut life, _) = life();
    let mut pinned = table(&[50, 20, 40, 30, 60]);
    let now = scan(&mut life);
    pinned[1].is_pinned = true;

    assert_eq!(life.handle_table(pinned, now), []);
}

#[test]
fn aliases_of_other_owners_are_left_alone() {
    let (mut life, _) = life();
    let mut with_others = table(&[50, 20, 40, 30, 60]);
    let now = scan(&mut life);
    with_others.extend([SLICE.start - 1, SLICE.end].map(|index| InUse {
        index,
        last_use: 1,
        is_pinned: false,
    }));

    assert_eq!(find(life.handle_table(with_others, now)), [1025]);
}

#[test]
fn a_scan_that_failed_is_repeated_and_forgets_nothing() {
    let (mut life, since) = with_quarantined(1025);
    let now = since + QUARANTINE_LIFETIME;

    assert_eq!(find(life.handle_timeout(5, now)), [1025]);
    life.handle_failure(now + MINUTE);
    assert_eq!(life.handle_holders(&Holders::default(), now), []);
    life.handle_failure(now + MINUTE);
    let later = life.poll_timeout();
    assert_eq!(later, now + MINUTE + SCAN_INTERVAL);
    assert_eq!(find(life.handle_timeout(5, later)), [1025], "nobody asked");
    life.handle_holders(&Holders::default(), later);
    let last = life.poll_timeout();
    assert_eq!(find(life.handle_timeout(5, last)), [1025], "nothing freed");
}

#[test]
fn an_answer_that_nobody_asked_for_changes_nothing() {
    let (mut life, now) = life();

    assert_eq!(life.handle_holders(&Holders::default(), now), []);
    assert_eq!(life.handle_table(table(&[1; 8]), now), []);
    scan(&mut life);
    assert_eq!(life.handle_holders(&Holders::default(), now), []);
}

#[test]
fn the_next_scan_begins_an_interval_after_the_last_answer() {
    let (mut life, _) = life();
    let slow = scan(&mut life) + MINUTE;

    life.handle_table(table(&[1; 5]), slow);

    assert_eq!(life.poll_timeout(), slow + SCAN_INTERVAL);
}

fn life() -> (LifeCycle, Instant) {
    let now = Instant::now();

    (LifeCycle::new(SLICE, QUARANTINE_LIFETIME, now), now)
}

/// Begins a scan that frees nothing.
fn scan(life: &mut LifeCycle) -> Instant {
    let now = life.poll_timeout();
    assert_eq!(life.handle_timeout(5, now), [Action::ReadTable]);

    now
}

/// A life cycle with one alias in quarantine, and since when.
fn with_quarantined(index: u32) -> (LifeCycle, Instant) {
    let (mut life, _) = life();
    let now = scan(&mut life);
    let mut last_uses = [9; 5];
    last_uses[(index - SLICE.start) as usize] = 1;
    assert_eq!(find(life.handle_table(table(&last_uses), now)), [index]);
    life.handle_holders(&Holders::default(), now);
    life.handle_quarantined(index, now);

    (life, now)
}

/// The last uses of the first aliases of the slice.
fn table(last_uses: &[u32]) -> Vec<InUse> {
    SLICE
        .zip(last_uses)
        .map(|(index, last_use)| InUse {
            index,
            last_use: *last_use,
            is_pinned: false,
        })
        .collect()
}

fn held(indices: &[u32]) -> Holders {
    Holders {
        held: indices.iter().copied().collect(),
        ..Holders::default()
    }
}

/// The aliases of the request for holders, in the order of their indices.
#[track_caller]
fn find(mut actions: Vec<Action>) -> Vec<u32> {
    match (actions.pop(), &actions[..]) {
        (Some(Action::FindHolders(indices)), []) => sorted(indices),
        (last, _) => panic!("{actions:?}, {last:?}"),
    }
}

fn sorted(mut list: Vec<u32>) -> Vec<u32> {
    list.sort_unstable();

    list
}

/// The first is the one that was used last.
fn aliases(count: u32) -> Vec<InUse> {
    (0..count)
        .map(|index| InUse {
            index,
            last_use: 100_000 - index,
            is_pinned: false,
        })
        .collect()
}
