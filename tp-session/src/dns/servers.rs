//! The name servers that this machine uses, and the ways to resolve that pass them by.

use std::{
    fs,
    net::{IpAddr, SocketAddrV4},
    time::Duration,
};

use tokio::{sync::watch, time::interval};

const RESOLV_CONF: &str = "/etc/resolv.conf";
const NSSWITCH_CONF: &str = "/etc/nsswitch.conf";
const PORT: u16 = 53;
/// The file is replaced, linked and mounted over by many programs; reading it is cheap and misses
/// none of that.
const LOOK: Duration = Duration::from_secs(1);

/// The IPv4 name servers in use at this moment.
pub(crate) fn current() -> Vec<SocketAddrV4> {
    parse(&read(RESOLV_CONF))
        .into_iter()
        .filter_map(|address| match address {
            IpAddr::V4(v4) => Some(SocketAddrV4::new(v4, PORT)),
            IpAddr::V6(_) => None,
        })
        .collect()
}

/// Publishes every change until aborted.
pub(crate) async fn watch(servers: watch::Sender<Vec<SocketAddrV4>>) {
    let mut look = interval(LOOK);
    loop {
        look.tick().await;
        let found = current();
        servers.send_if_modified(|old| {
            let is_new = *old != found;
            old.clone_from(&found);
            is_new
        });
    }
}

/// Sentences about queries that do not pass through tp.
pub(crate) fn not_covered() -> Vec<String> {
    let mut sentences = Vec::new();
    for address in parse(&read(RESOLV_CONF))
        .iter()
        .filter(|address| address.is_ipv6())
    {
        sentences.push(format!(
            "queries to the IPv6 name server {address} are not read"
        ));
    }
    if uses_resolved(&read(NSSWITCH_CONF)) {
        sentences.push(
            "programs that ask systemd-resolved over its unix socket (nss-resolve in \
             /etc/nsswitch.conf) do not see cluster names"
                .to_owned(),
        );
    }

    sentences
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// Without a line, the resolver asks this machine (resolv.conf(5)).
fn parse(text: &str) -> Vec<IpAddr> {
    let mut servers: Vec<IpAddr> = text
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            (words.next()? == "nameserver").then(|| words.next())?
        })
        .filter_map(|word| word.split('%').next()?.parse().ok())
        .collect();
    servers.dedup();
    if servers.is_empty() {
        servers.push(IpAddr::from([127, 0, 0, 1]));
    }

    servers
}

fn uses_resolved(nsswitch: &str) -> bool {
    nsswitch
        .lines()
        .filter_map(|line| line.strip_prefix("hosts:"))
        .any(|sources| sources.split_whitespace().any(|source| source == "resolve"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_are_read_in_order() {
        let text = "# nameserver 1.1.1.1\nsearch corp.test\nnameserver 172.30.0.53\nnameserver fe80::1%eth0\nnameserver bad\n";

        let expected: [IpAddr; 2] = ["172.30.0.53".parse().unwrap(), "fe80::1".parse().unwrap()];
        assert_eq!(parse(text), expected);
    }

    #[test]
    fn without_a_server_the_machine_itself_is_asked() {
        assert_eq!(parse(""), ["127.0.0.1".parse::<IpAddr>().unwrap()]);
    }

    #[test]
    fn nss_resolve_is_noticed() {
        assert!(uses_resolved(
            "hosts: files resolve [!UNAVAIL=return] dns\n"
        ));
        assert!(!uses_resolved("passwd: files\nhosts: files dns\n"));
    }
}
