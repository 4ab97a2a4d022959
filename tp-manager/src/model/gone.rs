//! Addresses that pods have given back: services may lead there for a moment more.

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
    time::Duration,
};

use tokio::time::Instant;

const REMEMBERED: Duration = Duration::from_secs(30);
/// Addresses at once: the newest.
const ROOM: usize = 16_384;

/// Whose they were.
#[derive(Debug, Default)]
pub(super) struct GonePods {
    namespaces: HashMap<IpAddr, (Instant, String)>,
    /// The oldest first; a later entry of an address counts.
    order: VecDeque<(Instant, IpAddr)>,
}

impl GonePods {
    pub(super) fn insert(&mut self, address: IpAddr, namespace: &str) {
        let now = Instant::now();
        self.namespaces.insert(address, (now, namespace.to_owned()));
        self.order.push_back((now, address));
        while self.order.len() > ROOM
            || self
                .order
                .front()
                .is_some_and(|(since, _)| since.elapsed() > REMEMBERED)
        {
            let Some((since, address)) = self.order.pop_front() else {
                break;
            };
            if self
                .namespaces
                .get(&address)
                .is_some_and(|it| it.0 == since)
            {
                self.namespaces.remove(&address);
            }
        }
    }

    /// The namespace whose pod had the address lately.
    pub(super) fn owner(&self, address: IpAddr) -> Option<String> {
        let (since, namespace) = self.namespaces.get(&address)?;

        (since.elapsed() <= REMEMBERED).then(|| namespace.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_remembered_for_a_while_and_in_a_bounded_room() {
        let mut gone = GonePods::default();
        let address = |number: usize| IpAddr::from(std::net::Ipv4Addr::from_bits(number as u32));
        gone.insert(address(1), "shop");
        assert_eq!(gone.owner(address(1)).as_deref(), Some("shop"));
        assert_eq!(gone.owner(address(2)), None);

        let old = Instant::now() - REMEMBERED * 2;
        gone.namespaces.insert(address(1), (old, "shop".to_owned()));
        gone.order = VecDeque::from([(old, address(1))]);
        assert_eq!(gone.owner(address(1)), None);
        for number in 0..ROOM + 10 {
            gone.insert(address(number), "bank");
        }

        assert_eq!((gone.namespaces.len(), gone.order.len()), (ROOM, ROOM));
    }
}
