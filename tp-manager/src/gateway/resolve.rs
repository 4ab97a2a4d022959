//! Questions that the table cannot decide, asked of the cluster's own name server.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use hickory_proto::{
    op::{Message, ResponseCode},
    rr::{Name, RecordType},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    time::timeout,
};

const ATTEMPT_LIMIT: Duration = Duration::from_millis(1500);
const ATTEMPTS: usize = 2;
const DNS_PORT: u16 = 53;

/// What a query is about, as far as rights go.
#[derive(Debug, Eq, PartialEq)]
pub(crate) enum Subject {
    /// A name of this namespace.
    Namespace(String),
    /// PTR of this address.
    Address(IpAddr),
    /// No name of the cluster.
    Foreign,
}

/// The cluster's name servers, as the manager's own pod is told them.
#[derive(Clone, Debug)]
pub(crate) struct Resolver {
    servers: Vec<SocketAddr>,
    domain: Name,
}

impl Resolver {
    /// Reads a resolv.conf(5): the name servers, and the cluster's domain from the search path
    /// (`svc.DOMAIN`).
    pub(crate) fn from_resolv_conf(text: &str) -> Self {
        let mut servers = Vec::new();
        let mut domain = None;
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => {
                    servers.extend(words.next().and_then(|word| word.parse::<IpAddr>().ok()));
                }
                Some("search") => {
                    domain = domain.or_else(|| words.find_map(|word| word.strip_prefix("svc.")));
                }
                _ => {}
            }
        }
        let domain = domain.unwrap_or("cluster.local");

        Self {
            servers: servers.into_iter().map(|ip| SocketAddr::new(ip, DNS_PORT)).collect(),
            domain: Name::from_ascii(domain).unwrap_or_default().to_lowercase(),
        }
    }

    pub(crate) fn domain(&self) -> String {
        self.domain.to_ascii().trim_end_matches('.').to_owned()
    }

    /// What `query` is about.
    pub(crate) fn subject(&self, query: &[u8]) -> Option<Subject> {
        let message = Message::from_vec(query).ok()?;
        let question = message.queries.first()?;
        let name = question.name().to_lowercase();
        if question.query_type() == RecordType::PTR
            && let Ok(net) = name.parse_arpa_name()
        {
            return Some(Subject::Address(net.addr()));
        }
        if !self.domain.zone_of(&name) {
            return Some(Subject::Foreign);
        }
        let labels: Vec<String> = name
            .iter()
            .map(|label| String::from_utf8_lossy(label).into_owned())
            .take(usize::from(name.num_labels().saturating_sub(self.domain.num_labels())))
            .collect();

        // …, NAMESPACE, "svc" or "pod"
        Some(match labels.as_slice() {
            [.., namespace, kind] if kind == "svc" || kind == "pod" => {
                Subject::Namespace(namespace.clone())
            }
            _ => Subject::Foreign,
        })
    }

    /// The answer to `query`; `None` if the cluster does not have the name.
    pub(crate) async fn resolve(&self, query: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let mut failure = io::Error::new(io::ErrorKind::NotFound, "the pod has no name server");
        for server in self.servers.iter().cycle().take(self.servers.len() * ATTEMPTS) {
            match timeout(ATTEMPT_LIMIT, ask(*server, query)).await {
                Ok(Ok(reply)) => return Ok(existing(reply)),
                Ok(Err(error)) => failure = error,
                Err(_) => failure = io::ErrorKind::TimedOut.into(),
            }
        }

        Err(failure)
    }
}

/// An answer that says that there is no such name is no answer.
fn existing(reply: Vec<u8>) -> Option<Vec<u8>> {
    let message = Message::from_vec(&reply).ok()?;
    (message.metadata.response_code != ResponseCode::NXDomain).then_some(reply)
}

async fn ask(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let local: SocketAddr =
        if server.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(local).await?;
    socket.connect(server).await?;
    socket.send(query).await?;
    let mut buffer = vec![0; 4096];
    loop {
        let length = socket.recv(&mut buffer).await?;
        let reply = &buffer[..length];
        // Another identifier is the late answer to somebody else's question.
        if reply.len() < 12 || reply[..2] != query[..2] {
            continue;
        }
        let truncated = reply[2] & 0x02 != 0;
        return if truncated { ask_by_tcp(server, query).await } else { Ok(reply.to_vec()) };
    }
}

async fn ask_by_tcp(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(query.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), query].concat()).await?;
    let length = stream.read_u16().await?;
    let mut reply = vec![0; usize::from(length)];
    stream.read_exact(&mut reply).await?;

    Ok(reply)
}

#[cfg(test)]
mod tests {
    use std::str::FromStr;

    use hickory_proto::op::Query;

    use super::*;

    fn resolver() -> Resolver {
        Resolver::from_resolv_conf(
            "search tp-system.svc.corp.example svc.corp.example corp.example\nnameserver 10.96.0.10\noptions ndots:5\n",
        )
    }

    fn query(name: &str, kind: RecordType) -> Vec<u8> {
        let mut message = Message::query();
        message.add_query(Query::query(Name::from_str(name).unwrap(), kind));
        message.to_vec().unwrap()
    }

    #[test]
    fn servers_and_domain_come_from_the_pod() {
        let resolver = resolver();

        assert_eq!(resolver.servers, ["10.96.0.10:53".parse().unwrap()]);
        assert_eq!(resolver.domain(), "corp.example");
    }

    #[test]
    fn rights_follow_the_namespace_in_the_name() {
        let subject = |name: &str| resolver().subject(&query(name, RecordType::A));

        for name in ["cell-0.cells.shop.svc.corp.example.", "WEB.Shop.SVC.corp.example."] {
            assert_eq!(subject(name), Some(Subject::Namespace("shop".into())), "{name}");
        }
        for name in ["example.com.", "svc.corp.example.", "shop.corp.example."] {
            assert_eq!(subject(name), Some(Subject::Foreign), "{name}");
        }
    }

    #[test]
    fn a_pointer_query_is_about_its_address() {
        let subject = resolver().subject(&query("2.1.96.10.in-addr.arpa.", RecordType::PTR));

        assert_eq!(subject, Some(Subject::Address("10.96.1.2".parse().unwrap())));
    }

    #[test]
    fn garbage_is_about_nothing() {
        assert_eq!(resolver().subject(&[1, 2, 3]), None);
    }
}
