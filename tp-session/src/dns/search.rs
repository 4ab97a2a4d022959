//! Domains that complete short names, where they answer before the cluster is asked.
//!
//! The C library asks for `web.corp.test` before it asks for `web`. That question is the company's
//! and is passed on; tp can only say which answer wins.

use std::{
    net::SocketAddrV4,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures::{StreamExt as _, future::join_all, stream::FuturesUnordered};
use resolv_conf::Config;
use tokio::{net::UdpSocket, time::timeout};
use tp_core::dns::{self, Presence};

/// `tp status` waits for this.
const TIMEOUT: Duration = Duration::from_secs(1);
/// The C library uses six (resolv.conf(5)); later versions any number.
const MAX_DOMAINS: usize = 6;
/// The C library asks three (resolv.conf(5)).
const MAX_SERVERS: usize = 3;

/// The domains of the last line that names any, without the dots that may stand around them.
fn domains(conf: &Config) -> Vec<String> {
    conf.get_last_search_or_domain()
        .map(|domain| domain.trim_matches('.').to_owned())
        .filter(|domain| !domain.is_empty())
        .take(MAX_DOMAINS)
        .collect()
}

/// The form of a name that is not completed first: with `ndots` dots it is asked as it is.
fn remedy(ndots: u32) -> &'static str {
    if ndots <= 1 {
        "names with a dot, such as web.shop, are not concerned"
    } else {
        "names that end in a dot, such as web.shop.svc.cluster.local., are not concerned"
    }
}

/// Sentences about search domains that shadow short names of the cluster at this moment.
pub(super) async fn shadowing(conf: &Config, servers: &[SocketAddrV4]) -> Vec<String> {
    if conf.ndots == 0 {
        return Vec::new();
    }
    let domains = domains(conf).into_iter();
    let answers = join_all(domains.map(|domain| probe(domain, servers.to_vec()))).await;
    let remedy = remedy(conf.ndots);
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

/// The first answer of `servers` about an unlikely name below `domain`; `None` without an answer.
async fn probe(domain: String, servers: Vec<SocketAddrV4>) -> (String, Option<Presence>) {
    let query = dns::question(&format!("{}.{domain}", unlikely_label()));
    let mut answers: FuturesUnordered<_> = query
        .iter()
        .flat_map(|query| {
            servers
                .iter()
                .take(MAX_SERVERS)
                .map(|it| (*it, query.clone()))
        })
        .map(|(server, query)| timeout(TIMEOUT, ask(server, query)))
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

/// A label that no host is likely to have.
fn unlikely_label() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    format!("tp-{:x}", now.map_or(0, |now| now.as_nanos()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(conf: &str) -> Config {
        Config::parse_with_errors(conf.as_bytes()).0
    }

    #[test]
    fn search_domains_and_dots_are_read() {
        let conf = "search corp.test. Example.org\nnameserver 172.30.0.53\noptions edns0 ndots:5\n";

        let conf = parse(conf);

        assert_eq!(domains(&conf), ["corp.test", "Example.org"]);
        assert_eq!(conf.ndots, 5);
        assert!(remedy(conf.ndots).contains("end in a dot"));
    }

    #[test]
    fn the_last_line_of_domains_counts_and_one_dot_is_usual() {
        let conf = parse("search a.test\ndomain b.test\n");

        assert_eq!(domains(&conf), ["b.test"]);
        assert_eq!(conf.ndots, 1);
        assert_eq!(
            domains(&parse("domain b.test\nsearch a.test c.test\n")).len(),
            2
        );
    }

    #[test]
    fn of_the_options_the_last_one_counts_that_is_a_number() {
        let conf =
            parse("options ndots:2 ndots:3\noptions ndots:4 rotate unknown\noptions ndots:x\n");

        assert_eq!(conf.ndots, 4);
    }

    #[test]
    fn six_domains_complete_a_name() {
        let conf = parse("search a.test b.test c.test . d.test e.test f.test g.test\n");

        assert_eq!(domains(&conf).len(), MAX_DOMAINS);
    }
}
