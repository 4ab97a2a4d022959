//! Room for the dials of one session that are under way. A target that says nothing holds it only as
//! long as nobody else needs it: its dial waits for another turn, as Linux waits between two SYNs.

use std::{
    collections::{BTreeMap, HashMap, VecDeque, hash_map::Entry},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

use crate::sync;

/// Dials under way at once: to all targets, and to one address.
const ROOM: usize = 512;
const ROOM_OF_TARGET: usize = ROOM / 2;

#[derive(Debug)]
pub(super) struct Slots {
    tenure: Tenure,
    state: Mutex<State>,
}

/// How long a dial holds its place against one that waits.
#[derive(Debug, Clone, Copy)]
struct Tenure {
    /// That had no turn yet.
    first: Duration,
    /// That waits for another.
    again: Duration,
}

const TENURE: Tenure = Tenure {
    // What lives has answered the first SYN, or the second, which Linux sends after a second
    // (RFC 6298, section 2.1).
    first: Duration::from_millis(1500),
    // Until after the third SYN.
    again: Duration::from_secs(5),
};

#[derive(Debug, Default)]
struct State {
    next: u64,
    /// Those who were given room.
    admitted: u64,
    running: BTreeMap<u64, Running>,
    /// Of those, by their targets.
    targets: HashMap<IpAddr, usize>,
    /// Dials that had no turn yet come before the others, but for every fourth time.
    first: VecDeque<Waiting>,
    again: VecDeque<Waiting>,
}

#[derive(Debug)]
struct Running {
    target: IpAddr,
    since: Instant,
    is_wanted: bool,
    signal: Arc<Notify>,
}

#[derive(Debug)]
struct Waiting {
    number: u64,
    target: IpAddr,
    signal: Arc<Notify>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    First,
    Again,
}

/// One dial's place, or its place in the queue; given back when dropped.
#[derive(Debug)]
pub(super) struct Slot<'a> {
    slots: &'a Slots,
    number: u64,
    signal: Arc<Notify>,
}

impl Default for Slots {
    fn default() -> Self {
        Self::new(TENURE)
    }
}

impl Slots {
    fn new(tenure: Tenure) -> Self {
        Self {
            tenure,
            state: Mutex::default(),
        }
    }

    /// Waits for room for a dial.
    pub(super) async fn enter(&self, target: IpAddr, turn: Turn) -> Slot<'_> {
        let slot = self.queue(target, turn);
        let tenure = match turn {
            Turn::First => self.tenure.first,
            Turn::Again => self.tenure.again,
        };
        loop {
            let look_again = self.lock().wait_of(slot.number, target, tenure);
            let Some(look_again) = look_again else {
                return slot;
            };
            tokio::select! {
                () = slot.signal.notified() => {}
                () = sleep_until(look_again) => {}
            }
        }
    }

    fn queue(&self, target: IpAddr, turn: Turn) -> Slot<'_> {
        let signal = Arc::new(Notify::new());
        let mut state = self.lock();
        let number = state.next;
        state.next += 1;
        let waiting = Waiting {
            number,
            target,
            signal: Arc::clone(&signal),
        };
        match turn {
            Turn::First => state.first.push_back(waiting),
            Turn::Again => state.again.push_back(waiting),
        }
        state.admit();

        Slot {
            slots: self,
            number,
            signal,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        sync::lock(&self.state)
    }
}

impl State {
    /// When to look again; nothing once `number` has its place. Asks the dial that is the longest
    /// under way to give way, if that is long enough.
    fn wait_of(&mut self, number: u64, target: IpAddr, tenure: Duration) -> Option<Instant> {
        if self.running.contains_key(&number) {
            return None;
        }
        let is_full = self.of_target(target) >= ROOM_OF_TARGET;
        let oldest = self
            .running
            .values_mut()
            .filter(|it| !it.is_wanted && (!is_full || it.target == target))
            .min_by_key(|it| it.since);
        let now = Instant::now();
        match oldest {
            Some(oldest) if now < oldest.since + tenure => Some(oldest.since + tenure),
            Some(oldest) => {
                oldest.is_wanted = true;
                oldest.signal.notify_one();
                Some(now + tenure)
            }
            // All are asked.
            None => Some(now + tenure),
        }
    }

    /// Gives room to those who wait for it.
    fn admit(&mut self) {
        while self.running.len() < ROOM {
            let Some(next) = self.next_waiting() else {
                return;
            };
            self.admitted += 1;
            next.signal.notify_one();
            *self.targets.entry(next.target).or_default() += 1;
            let running = Running {
                target: next.target,
                since: Instant::now(),
                is_wanted: false,
                signal: next.signal,
            };
            self.running.insert(next.number, running);
        }
    }

    fn next_waiting(&mut self) -> Option<Waiting> {
        let fits = |queue: &VecDeque<Waiting>| {
            let is_below = |it: &Waiting| self.of_target(it.target) < ROOM_OF_TARGET;
            queue.iter().position(is_below)
        };
        let (first, again) = (fits(&self.first), fits(&self.again));
        let is_turn_of_again = self.admitted % 4 == 3;
        match (first, again) {
            (Some(index), None) => self.first.remove(index),
            (Some(index), Some(_)) if !is_turn_of_again => self.first.remove(index),
            (_, Some(index)) => self.again.remove(index),
            (None, None) => None,
        }
    }

    fn of_target(&self, target: IpAddr) -> usize {
        self.targets.get(&target).copied().unwrap_or_default()
    }

    fn leave(&mut self, number: u64) {
        match self.running.remove(&number) {
            Some(running) => {
                if let Entry::Occupied(mut count) = self.targets.entry(running.target) {
                    *count.get_mut() -= 1;
                    if *count.get() == 0 {
                        count.remove();
                    }
                }
            }
            None => {
                self.first.retain(|it| it.number != number);
                self.again.retain(|it| it.number != number);
            }
        }
        self.admit();
    }
}

impl Slot<'_> {
    /// Waits until another dial needs the room.
    pub(super) async fn wanted(&self) {
        while !self.is_wanted() {
            self.signal.notified().await;
        }
    }

    fn is_wanted(&self) -> bool {
        let state = self.slots.lock();

        state
            .running
            .get(&self.number)
            .is_some_and(|it| it.is_wanted)
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        self.slots.lock().leave(self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, net::Ipv4Addr};

    use futures::FutureExt as _;
    use tokio::{
        task::{JoinSet, yield_now},
        time::{sleep, timeout},
    };

    use super::*;

    /// For what happens within some tenures, or never.
    const LIMIT: Duration = Duration::from_secs(10);

    fn target(number: usize) -> IpAddr {
        Ipv4Addr::from_bits(0x0a00_0000 + u32::try_from(number).unwrap()).into()
    }

    /// A dial of a target that says nothing.
    async fn silent(slots: Arc<Slots>, target: IpAddr) {
        let mut turn = Turn::First;
        loop {
            let slot = slots.enter(target, turn).await;
            slot.wanted().await;
            turn = Turn::Again;
        }
    }

    /// As many dials as begin in one moment, to as many silent targets.
    async fn full(dials: usize, targets: usize) -> (Arc<Slots>, JoinSet<()>) {
        let tenure = Tenure {
            first: Duration::from_millis(20),
            again: Duration::from_millis(100),
        };
        let slots = Arc::new(Slots::new(tenure));
        let mut tasks = JoinSet::new();
        for dial in 0..dials {
            tasks.spawn(silent(Arc::clone(&slots), target(dial % targets)));
        }
        let room = ROOM.min(targets.saturating_mul(ROOM_OF_TARGET));
        while slots.lock().running.len() < room {
            yield_now().await;
        }

        (slots, tasks)
    }

    #[tokio::test]
    async fn a_silent_target_takes_no_room_from_another() {
        let (slots, _tasks) = full(600, 1).await;

        let others: Vec<_> = (0..ROOM_OF_TARGET)
            .map(|_| slots.enter(target(1), Turn::First).now_or_never())
            .collect();

        assert!(others.iter().all(Option::is_some));
    }

    #[tokio::test]
    async fn silent_targets_give_way_to_another() {
        for dials in [ROOM, 8 * ROOM] {
            let (slots, _tasks) = full(dials, dials).await;

            let slot = slots.enter(target(8 * ROOM), Turn::First);

            assert!(timeout(LIMIT, slot).await.is_ok(), "{dials}");
        }
    }

    #[tokio::test]
    async fn those_that_wait_have_their_turns() {
        let (slots, _tasks) = full(2 * ROOM, 2 * ROOM).await;
        let mut without: BTreeSet<IpAddr> = (0..2 * ROOM).map(target).collect();

        let all = async {
            while !without.is_empty() {
                for running in slots.lock().running.values() {
                    without.remove(&running.target);
                }
                sleep(Duration::from_millis(5)).await;
            }
        };

        assert!(timeout(LIMIT, all).await.is_ok());
        assert!(slots.lock().running.len() <= ROOM);
    }

    #[tokio::test]
    async fn of_those_who_are_admitted_every_fourth_had_a_turn_before() {
        let slots = Slots::default();
        let enter = |number| slots.enter(target(number), Turn::First).now_or_never();
        let mut running: Vec<_> = (0..ROOM).map(|it| enter(it).unwrap()).collect();
        let again = slots.queue(target(ROOM), Turn::Again);
        let first: Vec<_> = (1..=4)
            .map(|it| slots.queue(target(ROOM + it), Turn::First))
            .collect();
        let is_admitted = |slot: &Slot<'_>| slots.lock().running.contains_key(&slot.number);

        for admitted in 1..=3 {
            running.pop();
            assert!(first[..admitted].iter().all(is_admitted) && !is_admitted(&again));
        }
        running.pop();
        assert!(is_admitted(&again) && !is_admitted(&first[3]));
    }

    #[tokio::test]
    async fn who_gives_up_leaves_nothing() {
        let (slots, mut tasks) = full(2 * ROOM, 1).await;
        tasks.shutdown().await;

        let state = slots.lock();
        assert!(state.running.is_empty() && state.targets.is_empty());
        assert!(state.first.is_empty() && state.again.is_empty());
    }
}
