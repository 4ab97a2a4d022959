//! A random history of one owner's aliases.

use std::collections::VecDeque;

use super::*;

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
