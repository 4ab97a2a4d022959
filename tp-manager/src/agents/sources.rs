//! Shares of those who are not admitted yet, by the address that they come from: each agent has one of
//! its own, and one that floods leaves room for the others.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, Mutex, Weak},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tp_process::sync::lock;

/// Connections that are no agent's yet; further ones are closed. An agent makes 17 at once.
const MAX_PENDING: usize = 512;
const MAX_PENDING_OF_SOURCE: usize = 32;
/// Reviews of tokens under way; further ones wait.
const MAX_REVIEWS: usize = 16;
/// Further ones are refused.
const MAX_REVIEWS_OF_SOURCE: usize = 2;

pub(super) struct Sources {
    pending: Arc<Semaphore>,
    reviews: Arc<Semaphore>,
    by_address: Mutex<BTreeMap<IpAddr, Weak<Source>>>,
}

struct Source {
    pending: Arc<Semaphore>,
    reviews: Arc<Semaphore>,
}

/// The place of a connection that is no agent's yet; given back when dropped.
pub(super) struct Place {
    source: Arc<Source>,
    _all: OwnedSemaphorePermit,
    _of_source: OwnedSemaphorePermit,
}

/// May have one token reviewed.
pub(super) struct ReviewTurn {
    _all: OwnedSemaphorePermit,
    _of_source: Option<OwnedSemaphorePermit>,
}

impl Sources {
    pub(super) fn new() -> Self {
        Self {
            pending: Arc::new(Semaphore::new(MAX_PENDING)),
            reviews: Arc::new(Semaphore::new(MAX_REVIEWS)),
            by_address: Mutex::default(),
        }
    }

    /// `None` if there are as many connections as fit, in all or from there.
    pub(super) fn enter(&self, address: IpAddr) -> Option<Place> {
        let source = self.of(address.to_canonical());
        let of_source = Arc::clone(&source.pending).try_acquire_owned().ok()?;
        let all = Arc::clone(&self.pending).try_acquire_owned().ok()?;

        Some(Place {
            source,
            _all: all,
            _of_source: of_source,
        })
    }

    fn of(&self, address: IpAddr) -> Arc<Source> {
        let mut known = lock(&self.by_address);
        if let Some(source) = known.get(&address).and_then(Weak::upgrade) {
            return source;
        }
        known.retain(|_, source| source.strong_count() > 0);
        let source = Arc::new(Source {
            pending: Arc::new(Semaphore::new(MAX_PENDING_OF_SOURCE)),
            reviews: Arc::new(Semaphore::new(MAX_REVIEWS_OF_SOURCE)),
        });
        known.insert(address, Arc::downgrade(&source));

        source
    }

    /// Waits for a turn. `None` if the source has as many reviews as it may.
    pub(super) async fn review(&self, place: &Place) -> Option<ReviewTurn> {
        let reviews = Arc::clone(&place.source.reviews);
        let of_source = reviews.try_acquire_owned().ok()?;
        let all = self.turn().await?;

        Some(ReviewTurn {
            _of_source: Some(of_source),
            ..all
        })
    }

    /// [`Self::review`] for an agent that was admitted.
    pub(super) async fn turn(&self) -> Option<ReviewTurn> {
        let all = Arc::clone(&self.reviews).acquire_owned().await.ok()?;

        Some(ReviewTurn {
            _all: all,
            _of_source: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    fn address(number: usize) -> IpAddr {
        format!("10.244.{}.{}", number / 256, number % 256)
            .parse()
            .unwrap()
    }

    #[test]
    fn one_source_that_floods_leaves_room_for_the_others() {
        let sources = Sources::new();
        let mut places: Vec<_> = (0..MAX_PENDING)
            .map_while(|_| sources.enter(address(1)))
            .collect();
        assert_eq!(places.len(), MAX_PENDING_OF_SOURCE);
        assert!(
            sources
                .enter("::ffff:10.244.0.1".parse().unwrap())
                .is_none()
        );
        assert!(sources.enter(address(2)).is_some());
        places.pop();
        assert!(
            sources.enter(address(1)).is_some(),
            "its place was given back"
        );

        let rest: Vec<_> = (3..)
            .map_while(|number| sources.enter(address(number)))
            .collect();
        assert_eq!(places.len() + rest.len(), MAX_PENDING);
        drop((places, rest));
        assert!(sources.enter(address(3)).is_some());
        assert_eq!(
            lock(&sources.by_address).len(),
            1,
            "those without a place are forgotten"
        );
    }

    #[tokio::test]
    async fn reviews_are_bounded_in_all_and_for_each_source() {
        let sources = Sources::new();
        let flooding: Vec<_> = (0..8).map(|_| sources.enter(address(1)).unwrap()).collect();
        let mut turns = Vec::new();
        for place in &flooding {
            turns.extend(sources.review(place).await);
        }
        assert_eq!(turns.len(), MAX_REVIEWS_OF_SOURCE);
        let other = sources.enter(address(2)).unwrap();
        assert!(sources.review(&other).await.is_some());

        while turns.len() < MAX_REVIEWS {
            turns.extend(sources.turn().await);
        }
        assert!(sources.review(&other).now_or_never().is_none(), "it waits");
        turns.pop();
        assert!(sources.review(&other).now_or_never().is_some());
    }
}
