//! Byte streams that have not named a session yet. Everybody who reaches the port has one for the
//! asking, so they have a room of their own. When it is full, any of them makes way: who has a session
//! names it in one round trip, and is seldom the one; the oldest would be he who is far away.

use std::{
    hash::{BuildHasher as _, RandomState},
    sync::{Mutex, MutexGuard},
};

use tokio_util::sync::CancellationToken;

use crate::sync;

/// Each costs little more than its socket.
const ROOM: usize = 1024;

#[derive(Debug, Default)]
pub(super) struct Strangers(Mutex<Entered>);

#[derive(Debug, Default)]
struct Entered {
    next: u64,
    streams: Vec<(u64, CancellationToken)>,
    /// Seeded at random.
    chance: RandomState,
}

/// One stream's place; given back when dropped.
#[derive(Debug)]
pub(super) struct Stranger<'a> {
    strangers: &'a Strangers,
    number: u64,
    evicted: CancellationToken,
}

impl Strangers {
    pub(super) fn enter(&self) -> Stranger<'_> {
        let evicted = CancellationToken::new();
        let mut entered = self.lock();
        let number = entered.next;
        entered.next += 1;
        if entered.streams.len() >= ROOM {
            let index = entered.chance.hash_one(number) % ROOM as u64;
            let (_, stream) = entered.streams.swap_remove(index as usize);
            stream.cancel();
        }
        entered.streams.push((number, evicted.clone()));

        Stranger {
            strangers: self,
            number,
            evicted,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Entered> {
        sync::lock(&self.0)
    }
}

impl Stranger<'_> {
    /// Resolves when another needs the room.
    pub(super) async fn evicted(&self) {
        self.evicted.cancelled().await;
    }
}

impl Drop for Stranger<'_> {
    fn drop(&mut self) {
        let mut entered = self.strangers.lock();
        entered.streams.retain(|(number, _)| *number != self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_makes_way_for_a_new_one_where_there_is_no_room() {
        let strangers = Strangers::default();
        let mut streams: Vec<_> = (0..ROOM).map(|_| strangers.enter()).collect();
        let evicted = |streams: &[Stranger<'_>]| {
            let evicted = streams.iter().filter(|it| it.evicted.is_cancelled());
            evicted.count()
        };

        drop(streams.remove(0));
        streams.push(strangers.enter());
        assert_eq!(evicted(&streams), 0, "one had left");

        streams.push(strangers.enter());
        assert_eq!(evicted(&streams), 1);
        assert!(!streams.last().unwrap().evicted.is_cancelled());
        assert_eq!(strangers.lock().streams.len(), ROOM);
    }
}
