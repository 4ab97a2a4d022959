//! Byte streams that have not named a session yet. Anybody who reaches the port can open one, so they
//! have a limit of their own. Beyond it a random one is evicted: a client names its session within one
//! round trip, so it is seldom hit; evicting the oldest would hit distant clients.

use std::{
    hash::{BuildHasher as _, RandomState},
    sync::{Mutex, MutexGuard},
};

use tokio_util::sync::CancellationToken;
use tp_process::sync;

/// Each costs little more than its socket.
const MAX_STREAMS: usize = 1024;

#[derive(Debug, Default)]
pub(super) struct Strangers(Mutex<Entered>);

#[derive(Debug, Default)]
struct Entered {
    next: u64,
    streams: Vec<(u64, CancellationToken)>,
    /// Seeded at random.
    chance: RandomState,
}

/// One stream's entry; removed when dropped.
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
        if entered.streams.len() >= MAX_STREAMS {
            let index = entered.chance.hash_one(number) % MAX_STREAMS as u64;
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
    /// Resolves when a new stream has replaced this one.
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
        let mut streams: Vec<_> = (0..MAX_STREAMS).map(|_| strangers.enter()).collect();
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
        assert_eq!(strangers.lock().streams.len(), MAX_STREAMS);
    }
}
