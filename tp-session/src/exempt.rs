//! The API server and the proxy before it, whose addresses are never steered, even if the cluster's
//! networks contain them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use ipnet::IpNet;
use tokio::{
    net::lookup_host,
    sync::watch,
    time::{Instant, sleep, timeout},
};

/// Bounds the lookup of one name.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);
/// Load balancers change their addresses without notice.
const LOOKUP_INTERVAL: Duration = Duration::from_secs(30);
/// Programs may go on using an address that they once resolved.
const ADDRESS_LIFETIME: Duration = Duration::from_secs(60 * 60);
/// The most addresses that are kept: those seen last.
const MAX_ADDRESSES: usize = 64;

pub(super) struct ExemptHosts {
    hosts: Vec<String>,
    seen: BTreeMap<IpAddr, Instant>,
}

impl ExemptHosts {
    /// The hosts of `urls`, without empty ones.
    pub(super) fn of(urls: &[&str]) -> Self {
        Self {
            hosts: urls.iter().filter_map(|url| host(url)).collect(),
            seen: BTreeMap::new(),
        }
    }

    /// Returns all addresses that the names have and had. A name that does not resolve keeps its own.
    pub(super) async fn resolve(&mut self) -> BTreeSet<IpNet> {
        let now = Instant::now();
        for host in &self.hosts {
            match timeout(LOOKUP_TIMEOUT, lookup_host((host.as_str(), 0))).await {
                Ok(Ok(found)) => self.seen.extend(found.map(|it| (it.ip(), now))),
                Ok(Err(error)) => tracing::debug!(%error, "Name to spare does not resolve"),
                Err(_) => tracing::debug!("Name to spare does not resolve in time"),
            }
        }
        forget(&mut self.seen, now);

        self.seen.keys().copied().map(IpNet::from).collect()
    }

    /// Publishes every change until aborted.
    pub(super) async fn watch(mut self, exempt: watch::Sender<BTreeSet<IpNet>>) {
        loop {
            sleep(LOOKUP_INTERVAL).await;
            let found = self.resolve().await;
            exempt.send_if_modified(|old| {
                let is_new = *old != found;
                *old = found;
                is_new
            });
        }
    }
}

fn forget(seen: &mut BTreeMap<IpAddr, Instant>, now: Instant) {
    seen.retain(|_, last| now.duration_since(*last) < ADDRESS_LIFETIME);
    while seen.len() > MAX_ADDRESSES {
        let oldest = seen.iter().min_by_key(|(_, last)| **last);
        let Some(oldest) = oldest.map(|(address, _)| *address) else {
            return;
        };
        seen.remove(&oldest);
    }
}

/// The host of a URL, without brackets.
fn host(url: &str) -> Option<String> {
    let authority = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = authority.split(['/', '?', '#']).next().unwrap_or_default();
    let host_port = authority.rsplit_once('@').map_or(authority, |(_, it)| it);
    let host = match host_port.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host_port.split(':').next().unwrap_or_default(),
    };

    (!host.is_empty()).then(|| host.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_of_a_url_is_found() {
        for (url, expected) in [
            ("https://10.96.0.1:443", Some("10.96.0.1")),
            ("https://10.96.0.1/prefix", Some("10.96.0.1")),
            (
                "https://api.example.com:6443/a:b@c",
                Some("api.example.com"),
            ),
            (
                "http://me:secret@proxy.corp.test:3128",
                Some("proxy.corp.test"),
            ),
            ("https://[2001:db8::1]:6443", Some("2001:db8::1")),
            ("socks5://proxy", Some("proxy")),
            ("api.lab", Some("api.lab")),
            ("", None),
        ] {
            assert_eq!(host(url).as_deref(), expected, "{url}");
        }
    }

    #[tokio::test]
    async fn addresses_and_names_are_spared_and_what_was_seen_stays() {
        let mut exempt = ExemptHosts::of(&[
            "https://10.96.0.1",
            "https://localhost:1",
            "https://x.invalid",
        ]);

        let found = exempt.resolve().await;

        assert!(
            found.contains(&"10.96.0.1/32".parse().unwrap()),
            "{found:?}"
        );
        assert!(
            found.contains(&"127.0.0.1/32".parse().unwrap()),
            "{found:?}"
        );
        exempt.hosts = vec!["x.invalid".to_owned()];
        assert_eq!(exempt.resolve().await, found);
    }

    #[test]
    fn old_addresses_are_forgotten_and_their_number_is_bounded() {
        let now = Instant::now() + 2 * ADDRESS_LIFETIME;
        let address = |n: u32| IpAddr::from(n.to_be_bytes());
        let mut seen: BTreeMap<_, _> = (0..100)
            .map(|n| (address(n), now - Duration::from_secs(u64::from(n))))
            .collect();
        seen.insert(address(1000), now - ADDRESS_LIFETIME);

        forget(&mut seen, now);

        let kept: Vec<IpAddr> = (0..64).map(address).collect();
        assert_eq!(seen.into_keys().collect::<Vec<_>>(), kept);
    }
}
