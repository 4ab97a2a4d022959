//! Values that were true a moment ago: nodes and other watches learn of a change later than the
//! model.

use std::{
    borrow::Borrow,
    collections::{HashMap, VecDeque},
    hash::Hash,
    time::Duration,
};

use tokio::time::Instant;

/// Bounds that lag: kube-proxy gathers changes for a second and more.
pub(super) const RECENT_LIFETIME: Duration = Duration::from_secs(30);
/// Values kept: the newest.
const MAX_VALUES: usize = 16_384;

/// Recently removed values by their keys.
#[derive(Debug)]
pub(super) struct Recent<K, V> {
    values: HashMap<K, VecDeque<(Instant, V)>>,
    /// A key for each value, the oldest first.
    order: VecDeque<(Instant, K)>,
}

impl<K, V> Default for Recent<K, V> {
    fn default() -> Self {
        Self {
            values: HashMap::new(),
            order: VecDeque::new(),
        }
    }
}

impl<K: Clone + Eq + Hash, V> Recent<K, V> {
    pub(super) fn insert(&mut self, key: K, value: V) {
        let now = Instant::now();
        self.order.push_back((now, key.clone()));
        self.values.entry(key).or_default().push_back((now, value));
        self.forget();
    }

    /// The values of a key, the oldest first.
    pub(super) fn of<Q>(&self, key: &Q) -> impl DoubleEndedIterator<Item = &V> + use<'_, K, V, Q>
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        let values = self.values.get(key).into_iter().flatten();

        values
            .filter(|(since, _)| since.elapsed() <= RECENT_LIFETIME)
            .map(|(_, value)| value)
    }

    /// Drops values that are too old or too many.
    pub(super) fn forget(&mut self) {
        let is_old = |oldest: &mut (Instant, K)| oldest.0.elapsed() > RECENT_LIFETIME;
        while let Some((_, key)) = match self.order.len() > MAX_VALUES {
            true => self.order.pop_front(),
            false => self.order.pop_front_if(is_old),
        } {
            if let Some(values) = self.values.get_mut(&key) {
                values.pop_front();
                if values.is_empty() {
                    self.values.remove(&key);
                }
            }
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.order.len()
    }

    /// As if so much time had passed.
    #[cfg(test)]
    pub(super) fn age(&mut self, by: Duration) {
        let times = self.values.values_mut().flatten().map(|it| &mut it.0);
        for since in times.chain(self.order.iter_mut().map(|it| &mut it.0)) {
            *since -= by;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;

    #[test]
    fn an_address_is_remembered_for_a_while_and_in_a_bounded_room() {
        let mut gone = Recent::default();
        let address = |number: usize| IpAddr::from(Ipv4Addr::from_bits(number as u32));
        gone.insert(address(1), "shop");
        assert_eq!(gone.of(&address(1)).next_back(), Some(&"shop"));
        assert_eq!(gone.of(&address(2)).next_back(), None);

        gone.age(RECENT_LIFETIME * 2);
        assert_eq!(gone.of(&address(1)).next_back(), None);
        for number in 0..MAX_VALUES + 10 {
            gone.insert(address(number), "bank");
        }

        assert_eq!(
            (gone.values.len(), gone.order.len()),
            (MAX_VALUES, MAX_VALUES)
        );
    }
}
