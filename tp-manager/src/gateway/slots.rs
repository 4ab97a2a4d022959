//! Slots for the dials of one session. A dial of a silent target keeps its slot only until another
//! dial needs it: then it waits for another turn, as Linux waits between two SYNs.

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
use tp_process::sync;

/// Concurrent dials: to all targets, and to one address.
const MAX_DIALS: usize = 512;
const MAX_DIALS_OF_TARGET: usize = MAX_DIALS / 2;

#[derive(Debug)]
pub(super) struct Slots {
    tenure: Tenure,
    state: Mutex<State>,
}

/// How long a dial keeps its slot while another one waits.
#[derive(Debug, Clone, Copy)]
struct Tenure {
    /// If the other one had no turn yet.
    first: Duration,
    /// If the other one waits for another turn.
    again: Duration,
}

const TENURE: Tenure = Tenure {
    // A live target has answered the first SYN, or the second, which Linux sends after a second
    // (RFC 6298, section 2.1).
    first: Duration::from_millis(1500),
    // Until after the third SYN.
    again: Duration::from_secs(5),
};

#[derive(Debug, Default)]
struct State {
    next: u64,
    /// Number of dials that were given a slot.
    admitted: u64,
    running: BTreeMap<u64, Running>,
    /// Number of running dials by target.
    targets: HashMap<IpAddr, usize>,
    /// Dials that had no turn yet come before the others, except every fourth time.
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

/// One dial's slot, or its position in the queue; released when dropped.
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

    /// Waits for a slot for a dial.
    pub(super) async fn enter(&self, target: IpAddr, turn: Turn) -> Slot<'_> {
        let slot = self.queue(target, turn);
        let tenure = match turn {
            Turn::First => self.tenure.first,
            Turn::Again => self.tenure.again,
        };
        loop {
            let next_check = self.lock().next_check(slot.number, target, tenure);
            let Some(next_check) = next_check else {
                return slot;
            };
            tokio::select! {
                () = slot.signal.notified() => {}
                () = sleep_until(next_check) => {}
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
    /// The time of the next check; `None` once `number` has its slot. Asks the oldest dial to give
    /// way if its tenure is over.
    fn next_check(&mut self, number: u64, target: IpAddr, tenure: Duration) -> Option<Instant> {
        if self.running.contains_key(&number) {
            return None;
        }
        let is_full = self.running_to(target) >= MAX_DIALS_OF_TARGET;
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
            // All have been asked.
            None => Some(now + tenure),
        }
    }

    /// Gives free slots to waiting dials.
    fn admit(&mut self) {
        while self.running.len() < MAX_DIALS {
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
            let is_below = |it: &Waiting| self.running_to(it.target) < MAX_DIALS_OF_TARGET;
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

    fn running_to(&self, target: IpAddr) -> usize {
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
    /// Waits until another dial needs the slot.
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

    /// Bounds what takes some tenures.
    const TIMEOUT: Duration = Duration::from_secs(10);

    fn target(number: usize) -> IpAddr {
        Ipv4Addr::from_bits(0x0a00_0000 + u32::try_from(number).unwrap()).into()
    }

    /// Dials a silent target for ever.
    async fn silent(slots: Arc<Slots>, target: IpAddr) {
        let mut turn = Turn::First;
        loop {
            let slot = slots.enter(target, turn).await;
            slot.wanted().await;
            turn = Turn::Again;
        }
    }

    /// Slots with this many dials, begun at once, of this many silent targets.
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
        let expected = MAX_DIALS.min(targets.saturating_mul(MAX_DIALS_OF_TARGET));
        while slots.lock().running.len() < expected {
            yield_now().await;
        }

        (slots, tasks)
    }

    #[tokio::test]
    async fn a_silent_target_takes_no_room_from_another() {
        let (slots, _tasks) = full(600, 1).await;

        let others: Vec<_> = (0..MAX_DIALS_OF_TARGET)
            .map(|_| slots.enter(target(1), Turn::First).now_or_never())
            .collect();

        assert!(others.iter().all(Option::is_some));
    }

    #[tokio::test]
    async fn silent_targets_give_way_to_another() {
        for dials in [MAX_DIALS, 8 * MAX_DIALS] {
            let (slots, _tasks) = full(dials, dials).await;

            let slot = slots.enter(target(8 * MAX_DIALS), Turn::First);

            assert!(timeout(TIMEOUT, slot).await.is_ok(), "{dials}");
        }
    }

    #[tokio::test]
    async fn those_that_wait_have_their_turns() {
        let (slots, _tasks) = full(2 * MAX_DIALS, 2 * MAX_DIALS).await;
        let mut without: BTreeSet<IpAddr> = (0..2 * MAX_DIALS).map(target).collect();

        let all = async {
            while !without.is_empty() {
                for running in slots.lock().running.values() {
                    without.remove(&running.target);
                }
                sleep(Duration::from_millis(5)).await;
            }
        };

        assert!(timeout(TIMEOUT, all).await.is_ok());
        assert!(slots.lock().running.len() <= MAX_DIALS);
    }

    #[tokio::test]
    async fn of_those_who_are_admitted_every_fourth_had_a_turn_before() {
        let slots = Slots::default();
        let enter = |number| slots.enter(target(number), Turn::First).now_or_never();
        let mut running: Vec<_> = (0..MAX_DIALS).map(|it| enter(it).unwrap()).collect();
        let again = slots.queue(target(MAX_DIALS), Turn::Again);
        let first: Vec<_> = (1..=4)
            .map(|it| slots.queue(target(MAX_DIALS + it), Turn::First))
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
        let (slots, mut tasks) = full(2 * MAX_DIALS, 1).await;
        tasks.shutdown().await;

        let state = slots.lock();
        assert!(state.running.is_empty() && state.targets.is_empty());
        assert!(state.first.is_empty() && state.again.is_empty());
    }
}
