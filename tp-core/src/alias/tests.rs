use std::collections::VecDeque;

use super::*;

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

#[test]
fn a_random_history_never_gives_an_alias_away_while_somebody_may_have_it() {
    let (mut given_again, mut refused) = (0, 0);
    for seed in 0..30 {
        let mut machine = Machine::new(seed);
        for _ in 0..3000 {
            machine.step();
        }
        machine.come_to_rest();
        given_again += machine.given_again;
        refused += machine.refused;
    }

    assert!(given_again > 1000, "{given_again} aliases were used again");
    assert!(refused > 1000, "{refused} connects met a full table");
}

/// A kernel, its applications and a shell, all in the obvious way.
struct Machine {
    life: LifeCycle,
    random: fastrand::Rng,
    now: Instant,
    start: Instant,
    /// Of ten events so many are connects or closes, four of them connects.
    sockets_in_ten: u32,
    /// By index; others are fresh.
    aliases: BTreeMap<u32, Alias>,
    fresh: VecDeque<u32>,
    in_use: BTreeMap<u32, u32>,
    resting: BTreeMap<u32, u32>,
    free: VecDeque<u32>,
    /// The alias of each socket.
    sockets: Vec<u32>,
    /// Since when aliases are in quarantine, as far as a shell knows.
    quarantined: BTreeMap<u32, Instant>,
    is_quiet: bool,
    given_again: u32,
    refused: u32,
}

struct Alias {
    real: u32,
    given: Instant,
    last_use: u32,
    is_pinned: bool,
}

#[derive(Debug)]
struct KernelFailed;

impl Machine {
    const SLICE: Range<u32> = 256..304;
    const HALF: usize = 24;
    const ADDRESSES: u32 = 80;

    fn new(seed: u64) -> Self {
        let now = Instant::now();

        Self {
            life: LifeCycle::new(Self::SLICE, QUARANTINE_LIFETIME, now),
            random: fastrand::Rng::with_seed(seed),
            now,
            start: now,
            sockets_in_ten: 7 + seed as u32 % 3,
            aliases: BTreeMap::new(),
            fresh: Self::SLICE.collect(),
            in_use: BTreeMap::new(),
            resting: BTreeMap::new(),
            free: VecDeque::new(),
            sockets: Vec::new(),
            quarantined: BTreeMap::new(),
            is_quiet: false,
            given_again: 0,
            refused: 0,
        }
    }

    fn step(&mut self) {
        match self.random.u32(0..10) {
            0..4 => self.connect(),
            event if event < self.sockets_in_ten => self.close(),
            _ => self.now += Duration::from_secs(self.random.u64(1..40)),
        }
        if self.now >= self.life.poll_timeout() {
            self.scan_or_fail();
        }
    }

    fn connect(&mut self) {
        let popular = self.random.u32(1..=Self::ADDRESSES);
        let real = self.random.u32(0..popular);
        let known = self.in_use.get(&real).copied();
        let index = known
            .or_else(|| self.revive(real))
            .or_else(|| self.allocate(real));
        let Some(index) = index else {
            self.refused += 1;
            return;
        };
        let last_use = self.clock();
        let is_pinned = self.random.u32(0..1000) == 0;
        let alias = self.aliases.get_mut(&index).expect("it is in use");
        assert_eq!(alias.real, real);
        alias.given = self.now;
        alias.last_use = last_use;
        alias.is_pinned |= is_pinned;
        self.sockets.push(index);
    }

    /// Rarely another CPU takes a new alias for the address at the same moment.
    fn revive(&mut self, real: u32) -> Option<u32> {
        if self.random.u32(0..8) == 0 {
            return None;
        }
        let index = self.resting.remove(&real)?;
        self.in_use.insert(real, index);

        Some(index)
    }

    fn allocate(&mut self, real: u32) -> Option<u32> {
        let index = self.fresh.pop_front().or_else(|| self.free.pop_front())?;
        let alias = Alias {
            real,
            given: self.now,
            last_use: 0,
            is_pinned: false,
        };
        if let Some(earlier) = self.aliases.insert(index, alias) {
            assert!(!self.sockets.contains(&index), "{index} has a socket");
            assert!(!earlier.is_pinned, "{index} is pinned");
            assert!(
                self.now - earlier.given >= QUARANTINE_LIFETIME,
                "{index} is hot"
            );
            self.given_again += 1;
        }
        self.in_use.insert(real, index);

        Some(index)
    }

    fn close(&mut self) {
        if !self.sockets.is_empty() {
            let at = self.random.usize(0..self.sockets.len());
            self.sockets.swap_remove(at);
        }
    }

    fn clock(&self) -> u32 {
        (self.now - self.start).as_secs() as u32 + 1
    }

    fn scan_or_fail(&mut self) {
        if let Err(KernelFailed) = self.scan() {
            self.life.handle_failure(self.now);
        }
    }

    fn scan(&mut self) -> Result<(), KernelFailed> {
        let due = self.due();
        let ever_used = self.aliases.len();
        let actions = self.life.handle_timeout(ever_used as u32, self.now);
        if ever_used <= Self::HALF {
            assert_eq!(actions, []);
        } else if due.is_empty() {
            assert_eq!(actions, [Action::ReadTable]);
        } else {
            assert_eq!(find(actions.clone()), due);
        }

        let mut actions = VecDeque::from(actions);
        while let Some(action) = actions.pop_front() {
            // The machine goes on between two actions.
            match self.random.u32(0..100) {
                0 => return Err(KernelFailed),
                1..20 if !self.is_quiet => self.connect(),
                20..40 => self.close(),
                _ => self.now += Duration::from_millis(self.random.u64(0..10)),
            }
            actions.extend(self.perform(action));
        }

        Ok(())
    }

    fn perform(&mut self, action: Action) -> Vec<Action> {
        match action {
            Action::FindHolders(indices) => {
                let holders = self.holders(&indices);
                for index in indices.iter().filter(|index| holders.have(**index)) {
                    self.quarantined
                        .entry(*index)
                        .and_modify(|it| *it = self.now);
                }
                self.life.handle_holders(&holders, self.now)
            }
            Action::ReadTable => {
                let expected = self.least_recently_used();
                let actions = self.life.handle_table(self.table(), self.now);
                if expected.is_empty() {
                    assert_eq!(actions, []);
                } else {
                    assert_eq!(find(actions.clone()), expected);
                }
                actions
            }
            Action::Quarantine(index) => {
                let real = self.aliases[&index].real;
                if self.resting.contains_key(&real) {
                    return vec![self.life.handle_refused(index, self.now)];
                }
                assert_eq!(self.in_use.remove(&real), Some(index));
                self.resting.insert(real, index);
                self.quarantined.insert(index, self.now);
                self.life.handle_quarantined(index, self.now);
                Vec::new()
            }
            Action::Free(index) => {
                let alias = &self.aliases[&index];
                assert!(self.now - self.quarantined[&index] >= QUARANTINE_LIFETIME);
                if self.resting.get(&alias.real) == Some(&index) {
                    assert!(!self.sockets.contains(&index) && !alias.is_pinned);
                    self.resting.remove(&alias.real);
                    self.free.push_back(index);
                }
                self.quarantined.remove(&index);
                self.life.handle_released(index, self.now);
                Vec::new()
            }
            Action::Refresh { index, last_use } => {
                let alias = self.aliases.get_mut(&index).expect("it is in use");
                alias.last_use = alias.last_use.max(last_use);
                Vec::new()
            }
        }
    }

    fn holders(&self, indices: &[u32]) -> Holders {
        let of = |is_so: &dyn Fn(&u32) -> bool| indices.iter().copied().filter(is_so).collect();

        Holders {
            held: of(&|index| self.sockets.contains(index)),
            pinned: of(&|index| self.aliases[index].is_pinned),
        }
    }

    fn table(&self) -> Vec<InUse> {
        self.aliases
            .iter()
            .filter(|(index, _)| !self.free.contains(index))
            .map(|(index, alias)| InUse {
                index: *index,
                last_use: alias.last_use,
                is_pinned: alias.is_pinned,
            })
            .collect()
    }

    fn due(&self) -> Vec<u32> {
        self.quarantined
            .iter()
            .filter(|(_, since)| self.now - **since >= QUARANTINE_LIFETIME)
            .map(|(index, _)| *index)
            .collect()
    }

    fn least_recently_used(&self) -> Vec<u32> {
        let mut used = self.table();
        used.retain(|alias| !alias.is_pinned && !self.quarantined.contains_key(&alias.index));
        used.sort_unstable_by_key(|alias| (alias.last_use, alias.index));
        used.truncate(used.len().saturating_sub(Self::HALF));

        sorted(used.iter().map(|alias| alias.index).collect())
    }

    /// In the end half of the aliases is in use, and all others without a holder are free.
    fn come_to_rest(&mut self) {
        self.is_quiet = true;
        self.sockets.clear();
        for _ in 0..100 {
            self.now = self.life.poll_timeout();
            self.scan_or_fail();
        }

        let pinned = self.aliases.values().filter(|it| it.is_pinned).count();
        assert!(self.in_use.len() <= Self::HALF + pinned);
        assert!(self.resting.len() <= pinned);
        let free = self.fresh.len() + self.free.len();
        assert!(free >= Self::HALF.saturating_sub(pinned), "{free} are free");
    }
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
