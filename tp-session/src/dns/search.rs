//! Domains that complete short names, where they answer before the cluster is asked.
//!
//! The C library asks for `web.corp.test` before it asks for `web`. That question is the company's,
//! and passes on; what can be done is to say what wins.

use std::{
    net::SocketAddrV4,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures::{StreamExt as _, future::join_all, stream::FuturesUnordered};
use tokio::{net::UdpSocket, time::timeout};
use tp_core::dns::{self, Presence};

/// `tp status` waits for this.
const LIMIT: Duration = Duration::from_secs(1);
/// The C library knows six (resolv.conf(5)); later versions any number.
const MOST_DOMAINS: usize = 6;
/// It asks three (resolv.conf(5)).
const MOST_SERVERS: usize = 3;

#[derive(Debug, PartialEq, Eq)]
struct Search {
    domains: Vec<String>,
    /// A name with as many dots is asked as it is before it is completed.
    ndots: usize,
}

impl Search {
    fn parse(conf: &str) -> Self {
        let mut search = Self {
            domains: Vec::new(),
            ndots: 1,
        };
        for line in conf.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                // The last line counts.
                Some("search" | "domain") => {
                    search.domains = words
                        .map(|word| word.trim_matches('.').to_owned())
                        .filter(|word| !word.is_empty())
                        .take(MOST_DOMAINS)
                        .collect();
                }
                Some("options") => {
                    let ndots = words.find_map(|word| word.strip_prefix("ndots:")?.parse().ok());
                    search.ndots = ndots.unwrap_or(search.ndots);
                }
                _ => {}
            }
        }

        search
    }

    /// A form that is not completed first.
    fn remedy(&self) -> &'static str {
        if self.ndots <= 1 {
            "names with a dot, such as web.shop, are not concerned"
        } else {
            "names that end in a dot, such as web.shop.svc.cluster.local., are not concerned"
        }
    }
}

/// Sentences about search domains that keep short names from the cluster at this moment.
pub(super) async fn in_the_way(conf: &str, servers: &[SocketAddrV4]) -> Vec<String> {
    let search = Search::parse(conf);
    if search.ndots == 0 {
        return Vec::new();
    }
    let domains = search.domains.iter().cloned();
    let answers = join_all(domains.map(|domain| probe(domain, servers.to_vec()))).await;
    let remedy = search.remedy();
    let wildcards = answers
        .iter()
        .filter(|(_, presence)| *presence == Some(Presence::Exists))
        .map(|(domain, _)| {
            format!(
                "every name below the search domain {domain} has an address there (a wildcard), \
                 which wins over short names of the cluster: {remedy}"
            )
        });
    let mut sentences: Vec<String> = wildcards.collect();
    if let Some((domain, _)) = answers.iter().find(|(_, presence)| presence.is_none()) {
        sentences.push(format!(
            "no name server answers for the search domain {domain}, which is asked before short \
             names of the cluster: {remedy}"
        ));
    }

    sentences
}

/// What the first of `servers` that answers says of a name below `domain`; `None` if none does.
async fn probe(domain: String, servers: Vec<SocketAddrV4>) -> (String, Option<Presence>) {
    let query = dns::question(&format!("{}.{domain}", unlikely_label()));
    let mut answers: FuturesUnordered<_> = query
        .iter()
        .flat_map(|query| {
            servers
                .iter()
                .take(MOST_SERVERS)
                .map(|it| (*it, query.clone()))
        })
        .map(|(server, query)| timeout(LIMIT, ask(server, query)))
        .collect();
    while let Some(answer) = answers.next().await {
        if let Ok(Some(presence)) = answer {
            return (domain, Some(presence));
        }
    }

    (domain, None)
}

async fn ask(server: SocketAddrV4, query: Vec<u8>) -> Option<Presence> {
    let socket = UdpSocket::bind(("0.0.0.0", 0)).await.ok()?;
    socket.connect(server).await.ok()?;
    socket.send(&query).await.ok()?;
    let mut buffer = [0; 1232];
    loop {
        let length = socket.recv(&mut buffer).await.ok()?;
        if let Some(presence) = dns::presence(&query, &buffer[..length]) {
            return Some(presence);
        }
    }
}

/// One that nobody has given to a host.
fn unlikely_label() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    format!("tp-{:x}", now.map_or(0, |now| now.as_nanos()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn search_domains_and_dots_are_read() {
        let conf = "search corp.test. Example.org\nnameserver 172.30.0.53\noptions edns0 ndots:5\n";

        let search = Search::parse(conf);

        assert_eq!(search.domains, ["corp.test", "Example.org"]);
        assert_eq!(search.ndots, 5);
        assert!(search.remedy().contains("end in a dot"));
    }

    #[test]
    fn the_last_line_of_domains_counts_and_one_dot_is_usual() {
        let search = Search::parse("search a.test\ndomain b.test\n");

        assert_eq!(search.domains, ["b.test"]);
        assert_eq!(search.ndots, 1);
    }
}
