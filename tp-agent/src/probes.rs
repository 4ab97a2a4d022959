//! Tells the HTTP probes of the kubelet from what else comes from its node, and passes them to the
//! container: they must not depend on a workstation.

use std::{
    io,
    net::{IpAddr, SocketAddr, TcpStream as StdTcpStream},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    time::timeout,
};
use tp_agent_api::{AgentReply, AgentRequest};
use tp_transport::splice::join_tcp;

use crate::agentd::Agentd;

#[cfg(test)]
mod tests;

const METHOD: &[u8] = b"GET ";
const VERSION: &[u8] = b" HTTP/1.";
const AGENT_HEADER: &[u8] = b"user-agent";
/// How the kubelet names itself, unless the probe's headers say otherwise: in a probe, and in a hook of
/// the life of a container.
const KUBELETS: [&[u8]; 2] = [b"kube-probe/", b"kube-lifecycle/"];

/// Of a request until it must be known who asks.
const MAX_HEAD: usize = 8 << 10;
const HEAD_TIMEOUT: Duration = Duration::from_secs(1);
const FIRST_READ_SIZE: usize = 1 << 10;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The kubelet has long given up then.
const PASS_TIMEOUT: Duration = Duration::from_secs(300);

/// What the beginning of a connection says of who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asker {
    Kubelet,
    Somebody,
    NotYetKnown,
}

/// Where the probes of a redirected port go.
#[derive(Clone)]
pub(crate) struct ProbedPort {
    /// From where the kubelet probes.
    pub(crate) nodes: Arc<[IpAddr]>,
    pub(crate) container: ContainerDoor,
}

/// Passes connections to the containers of a redirected pod, of one port.
#[derive(Clone)]
pub(crate) struct ContainerDoor {
    pub(crate) agentd: Agentd,
    pub(crate) redirect: u64,
    /// To `tp-agentd`, which has the redirect.
    pub(crate) connection: u64,
    pub(crate) counts: Arc<ProbeCounts>,
}

/// Connections that the kernel gave to the listener, but that are not carried to the workstation.
/// Those of which it is not known yet are among them.
#[derive(Debug, Default)]
pub(crate) struct ProbeCounts(AtomicU64);

impl ProbeCounts {
    pub(crate) fn count_one(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn uncount_one(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl ProbedPort {
    /// Passes a probe to the container, to the end. Returns any other connection, with what was read of
    /// it.
    pub(crate) async fn sort(
        &self,
        mut client: TcpStream,
        local: SocketAddr,
    ) -> io::Result<Option<(TcpStream, Vec<u8>)>> {
        let counts = &self.container.counts;
        counts.count_one();
        let head = read_head(&mut client).await;
        if !head
            .as_ref()
            .is_ok_and(|head| asker(head) == Asker::Kubelet)
        {
            counts.uncount_one();
            return Ok(Some((client, head?)));
        }
        let head = head?;
        let passed = self.container.pass(client, local, &head);
        timeout(PASS_TIMEOUT, passed).await??;

        Ok(None)
    }
}

impl ContainerDoor {
    /// Passes a connection to the container whose beginning was read. Any failure resets the client, as
    /// the container's port would.
    pub(crate) async fn pass(
        &self,
        client: TcpStream,
        pod: SocketAddr,
        head: &[u8],
    ) -> io::Result<()> {
        let connected = timeout(CONNECT_TIMEOUT, self.connect(pod)).await;
        let mut container = connected??;
        container.set_nodelay(true)?;
        container.write_all(head).await?;

        join_tcp(client, container).await
    }

    /// Connects to an address of the pod from that same address: the kernel program lets it pass, and
    /// the application sees no client of its loopback interface, which it may trust.
    async fn connect(&self, pod: SocketAddr) -> io::Result<TcpStream> {
        let request = AgentRequest::Socket {
            redirect: self.redirect,
            ipv6: pod.is_ipv6(),
        };
        let replied = self.agentd.request(request).await;
        let replied = replied.map_err(io::Error::other)?;
        let socket = match (replied.reply, replied.fds.into_iter().next()) {
            // Of another connection the number means another redirect.
            (AgentReply::Socket, Some(fd)) if replied.connection == self.connection => fd,
            _ => return Err(io::ErrorKind::NotConnected.into()),
        };
        let socket = TcpSocket::from_std_stream(StdTcpStream::from(socket));
        SockRef::from(&socket).set_linger(Some(Duration::ZERO))?;
        socket.bind(SocketAddr::new(pod.ip(), 0))?;

        socket.connect(pod).await
    }
}

/// Whether a User-Agent is the kubelet's.
pub(crate) fn is_kubelet(agent: &[u8]) -> bool {
    KUBELETS.into_iter().any(|name| agent.starts_with(name))
}

/// Reads until it is known who asks; for a second at most, since the client may wait for us.
async fn read_head(client: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut head = Vec::with_capacity(FIRST_READ_SIZE);
    let read = async {
        while head.len() < MAX_HEAD && asker(&head) == Asker::NotYetKnown {
            head.reserve(1);
            let most = (MAX_HEAD - head.len()) as u64;
            if (&mut *client).take(most).read_buf(&mut head).await? == 0 {
                break;
            }
        }
        io::Result::Ok(())
    };
    match timeout(HEAD_TIMEOUT, read).await {
        Ok(Err(error)) => Err(error),
        Ok(Ok(())) | Err(_) => Ok(head),
    }
}

/// The first request of a connection decides: the kubelet makes one for each probe.
fn asker(head: &[u8]) -> Asker {
    if !head.starts_with(&METHOD[..METHOD.len().min(head.len())]) {
        return Asker::Somebody;
    }
    let mut lines = head.split_inclusive(|byte| *byte == b'\n');
    let mut complete = std::iter::from_fn(|| lines.next()?.strip_suffix(b"\n"));
    let Some(request) = complete.next() else {
        return Asker::NotYetKnown;
    };
    if !request.windows(VERSION.len()).any(|part| part == VERSION) {
        return Asker::Somebody;
    }
    for line in complete {
        let line = line.trim_ascii();
        if line.is_empty() {
            return Asker::Somebody;
        }
        let Some(colon) = line.iter().position(|byte| *byte == b':') else {
            continue;
        };
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if name.eq_ignore_ascii_case(AGENT_HEADER) {
            return match is_kubelet(value) {
                true => Asker::Kubelet,
                false => Asker::Somebody,
            };
        }
    }

    Asker::NotYetKnown
}
