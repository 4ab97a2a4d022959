//! Asks the cluster's DNS for names that the table cannot decide.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::atomic::{AtomicU16, Ordering},
    time::Duration,
};

use bytes::Bytes;
use resolv_conf::{Config, ScopedIp};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UdpSocket},
    sync::Semaphore,
    time::timeout,
};

const TRY_TIMEOUT: Duration = Duration::from_secs(2);
const TRIES: usize = 2;
const MAX_UDP: usize = 4096;
/// Concurrent queries of all sessions; further ones wait, within their own timeout.
const MAX_QUERIES: usize = 1024;
const DEFAULT_DOMAIN: &str = "cluster.local";

#[derive(Debug, thiserror::Error)]
pub(crate) enum ResolveError {
    #[error("the cluster's DNS does not answer")]
    TimedOut,
    #[error("no name server of the cluster is known")]
    NoServer,
    #[error("the cluster's DNS cannot be asked")]
    Io(#[from] io::Error),
}

/// The name servers of the manager's pod, which are the cluster's.
#[derive(Debug)]
pub(crate) struct Resolver {
    servers: Vec<SocketAddr>,
    cluster_domain: String,
    next_id: AtomicU16,
    queries: Semaphore,
}

impl Resolver {
    /// Reads a pod's `/etc/resolv.conf`.
    pub(crate) fn from_conf(text: &str) -> Self {
        let (conf, _) = Config::parse_with_errors(text.as_bytes());
        let search = conf.get_search().map(Vec::as_slice).unwrap_or_default();
        let cluster_domain = search
            .iter()
            .find_map(|domain| domain.strip_prefix("svc."))
            .unwrap_or(DEFAULT_DOMAIN)
            .trim_end_matches('.')
            .to_owned();
        let servers = conf.nameservers.iter().filter_map(socket_address).collect();

        Self {
            servers,
            cluster_domain,
            next_id: AtomicU16::new(0),
            queries: Semaphore::new(MAX_QUERIES),
        }
    }

    #[cfg(test)]
    pub(super) fn asking(server: SocketAddr) -> Self {
        Self {
            servers: vec![server],
            ..Self::from_conf("")
        }
    }

    pub(crate) fn cluster_domain(&self) -> &str {
        &self.cluster_domain
    }

    /// Returns the answer, with the query's own identifier. `share` limits the calling session.
    pub(crate) async fn ask(&self, query: &[u8], share: &Semaphore) -> Result<Bytes, ResolveError> {
        let limit = TRY_TIMEOUT.saturating_mul(u32::try_from(TRIES).unwrap_or(u32::MAX)) * 2;
        let asked = async {
            let _own = share.acquire().await;
            let _permit = self.queries.acquire().await;
            self.ask_servers(query).await
        };

        timeout(limit, asked)
            .await
            .unwrap_or(Err(ResolveError::TimedOut))
    }

    async fn ask_servers(&self, query: &[u8]) -> Result<Bytes, ResolveError> {
        let mut last = ResolveError::NoServer;
        for server in self.servers.iter().cycle().take(self.servers.len() * TRIES) {
            match timeout(TRY_TIMEOUT, self.ask_server(*server, query)).await {
                Ok(Ok(response)) => return Ok(response),
                Ok(Err(error)) => last = error.into(),
                Err(_) => last = ResolveError::TimedOut,
            }
        }

        Err(last)
    }

    async fn ask_server(&self, server: SocketAddr, query: &[u8]) -> io::Result<Bytes> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let mut question = query.to_vec();
        set_id(&mut question, id)?;
        let mut response = over_udp(server, &question).await?;
        // Truncated: asked again over TCP.
        if response.get(2).is_some_and(|flags| flags & 0b10 != 0) {
            response = over_tcp(server, &question).await?;
        }
        let original = [query[0], query[1]];
        set_id(&mut response, u16::from_be_bytes(original))?;

        Ok(response.into())
    }
}

/// The address to ask; `None` for an IPv6 address with a zone, which no cluster's server has.
fn socket_address(server: &ScopedIp) -> Option<SocketAddr> {
    match server {
        ScopedIp::V6(_, Some(_)) => None,
        server => Some(SocketAddr::new(server.into(), 53)),
    }
}

fn set_id(message: &mut [u8], id: u16) -> io::Result<()> {
    message
        .get_mut(..2)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a DNS message is too short"))?
        .copy_from_slice(&id.to_be_bytes());

    Ok(())
}

async fn over_udp(server: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    // A fresh port for every query: the kernel matches the answer's source.
    let any: IpAddr = if server.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(question).await?;
    let mut buffer = vec![0; MAX_UDP];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if length >= 12 && buffer[..2] == question[..2] {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
}

async fn over_tcp(server: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(question.len())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "a DNS query is too long"))?;
    let mut framed = length.to_be_bytes().to_vec();
    framed.extend_from_slice(question);
    stream.write_all(&framed).await?;
    let length = stream.read_u16().await?;
    let mut response = vec![0; length.into()];
    stream.read_exact(&mut response).await?;

    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pods_resolv_conf_names_servers_and_domain() {
        let resolver = Resolver::from_conf(
            "search tp-system.svc.example.org svc.example.org example.org corp.test\n\
             nameserver 10.96.0.10\noptions ndots:5\n",
        );

        assert_eq!(resolver.servers, ["10.96.0.10:53".parse().unwrap()]);
        assert_eq!(resolver.cluster_domain(), "example.org");
    }

    #[test]
    fn what_cannot_be_asked_is_no_server() {
        let resolver = Resolver::from_conf(
            "# nameserver 10.96.0.9\nnameserver bad\nnameserver fe80::1%eth0\nnonsense\n\
             nameserver fd00::a\nnameserver 10.96.0.10 extra\noptions unknown\n",
        );

        let expected = ["[fd00::a]:53", "10.96.0.10:53"].map(|it| it.parse().unwrap());
        assert_eq!(resolver.servers, expected as [SocketAddr; 2]);
    }

    #[test]
    fn without_a_search_path_the_domain_is_the_usual_one() {
        assert_eq!(Resolver::from_conf("").cluster_domain(), "cluster.local");
    }

    #[tokio::test]
    async fn an_answer_carries_the_identifier_of_the_question() {
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = server.local_addr().unwrap();
        let mut resolver = Resolver::asking(address);
        resolver.next_id = AtomicU16::new(99);
        let answering = async {
            let mut buffer = [0; 64];
            let (length, from) = server.recv_from(&mut buffer).await.unwrap();
            assert_eq!(buffer[..2], [0, 99]);
            server.send_to(&buffer[..length], from).await.unwrap();
        };
        let (mut query, share) = ([0; 12], Semaphore::new(1));
        query[..2].copy_from_slice(&[7, 8]);

        let (response, ()) = tokio::join!(resolver.ask(&query, &share), answering);

        assert_eq!(response.unwrap()[..2], [7, 8]);
    }

    #[tokio::test]
    async fn without_a_server_the_failure_is_at_once() {
        let answer = Resolver::from_conf("")
            .ask(&[0; 12], &Semaphore::new(1))
            .await;

        assert!(matches!(answer, Err(ResolveError::NoServer)));
    }
}
