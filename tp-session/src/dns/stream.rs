//! Queries over TCP: a relay to the original server, which answers the cluster's queries itself.
//!
//! As without tp, the server decides how connect() ends, and when the connection ends. If it does not
//! serve TCP, the cluster's names are still answered over UDP, and a resolver that got a truncated
//! answer over UDP from here is served without the server.

use std::{
    io,
    net::{Shutdown, SocketAddrV4},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use nix::errno::Errno;
use socket2::SockRef;
use tokio::{net::TcpStream, sync::mpsc, task::JoinSet, time::timeout};
use tp_core::{
    dns::{Limit, Query, Step},
    framing::{self, Boundaries, Part, Queries},
    verdict::Verdict,
};
use tp_transport::splice::{closed, failed};

use super::Dns;
use crate::shared::count;

/// The most answers per connection that are awaited, or wait to be written; beyond it, the resolver is
/// not read.
const MAX_OWN_ANSWERS: usize = 32;
const READ_SIZE: usize = 16 << 10;
/// Bounds the dial of a server that may not serve TCP while a resolver waits for the cluster's answer.
const SHORT_DIAL_TIMEOUT: Duration = Duration::from_secs(1);

/// The far end of a resolver's connection.
#[derive(Debug)]
pub(crate) struct NameServerStream {
    /// `None` if the server was not reached, so that only the cluster's names are answered.
    stream: Option<TcpStream>,
}

/// An answer of ours that was announced; `None` if the server answers after all.
type OwnAnswer = Option<Vec<u8>>;

impl Dns {
    /// Dials the server in the machine's own network.
    pub(crate) async fn dial(&self, address: SocketAddrV4) -> (Verdict, Option<NameServerStream>) {
        let dialled = async {
            let stream = TcpStream::connect(address).await?;
            // On any error from here on, the server sees a reset.
            SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
            stream.set_nodelay(true)?;
            Ok(stream)
        };
        let is_expected = self.is_expected_by_tcp(address);
        let dialled = if is_expected {
            timeout(SHORT_DIAL_TIMEOUT, dialled)
                .await
                .unwrap_or(Err(io::ErrorKind::TimedOut.into()))
        } else {
            dialled.await
        };
        match dialled {
            Ok(stream) => {
                let stream = Some(stream);
                (Verdict::Connected, Some(NameServerStream { stream }))
            }
            Err(_) if is_expected => (Verdict::Connected, Some(NameServerStream { stream: None })),
            Err(error) => {
                tracing::debug!(%error, "Name server not reached by TCP");
                (verdict(&error), None)
            }
        }
    }

    /// Serves a resolver until both sides have ended.
    pub(crate) async fn serve_stream(self: Arc<Self>, client: TcpStream, server: NameServerStream) {
        let prepared = client.set_nodelay(true);
        let NameServerStream { stream } = server;
        let served = match (&stream, prepared) {
            (_, Err(error)) => Err(error),
            (Some(server), Ok(())) => self.relay_stream(&client, server).await,
            (None, Ok(())) => self.serve_alone(&client).await,
        };
        match served {
            Ok(()) => {
                if let Some(server) = stream {
                    // Ended by FIN in both directions: no reset is due.
                    let _ = SockRef::from(&server).set_linger(None);
                }
                closed(&client).await;
            }
            // Closing resets both.
            Err(error) => tracing::trace!(%error, "Connection of a resolver ended early"),
        }
    }

    async fn relay_stream(
        self: &Arc<Self>,
        client: &TcpStream,
        server: &TcpStream,
    ) -> io::Result<()> {
        let (own_tx, own_rx) = mpsc::channel(MAX_OWN_ANSWERS);
        let owed = AtomicUsize::new(0);
        let both = async {
            tokio::try_join!(
                self.upward(client, server, own_tx, &owed),
                downward(client, server, own_rx, &owed),
            )
        };
        tokio::select! {
            biased;
            both = both => both.map(drop),
            // Errors that a direction no longer sees after its end.
            error = failed(client) => Err(error),
            error = failed(server) => Err(error),
        }
    }

    async fn upward(
        self: &Arc<Self>,
        client: &TcpStream,
        server: &TcpStream,
        own: mpsc::Sender<OwnAnswer>,
        owed: &AtomicUsize,
    ) -> io::Result<()> {
        let mut queries = Queries::default();
        let mut asked = JoinSet::new();
        let mut buffer = vec![0; READ_SIZE];
        let mut is_open = true;
        loop {
            while asked.len() < MAX_OWN_ANSWERS
                && let Some(part) = queries.next_part()
            {
                match part {
                    Part::Other(bytes) => write_all(server, &bytes).await?,
                    Part::Query(framed) => {
                        let query = decoded(&framed);
                        match self.decide(&query) {
                            Step::Send(answer) | Step::Fail(answer) => {
                                owed.fetch_add(1, Ordering::Relaxed);
                                // It fails once the server has ended its side.
                                let _ = own.send(Some(answer)).await;
                            }
                            Step::AskCluster(question) => {
                                owed.fetch_add(1, Ordering::Relaxed);
                                let this = Arc::clone(self);
                                asked.spawn(
                                    async move { (this.ask(&query, question).await, framed) },
                                );
                            }
                            Step::PassOn => {
                                count(&self.shared.counters.passed_on);
                                write_all(server, &framed).await?;
                            }
                        }
                    }
                }
            }
            tokio::select! {
                read = read(client, &mut buffer), if is_open && asked.len() < MAX_OWN_ANSWERS => {
                    let read = read?;
                    is_open = read > 0;
                    queries.push(&buffer[..read]);
                }
                Some(ended) = asked.join_next() => {
                    let (answer, framed) = match ended {
                        Ok((Step::Send(answer) | Step::Fail(answer), _)) => (Some(answer), None),
                        Ok((Step::AskCluster(_) | Step::PassOn, framed)) => (None, Some(framed)),
                        Err(_) => (None, None),
                    };
                    let _ = own.send(answer).await;
                    if let Some(framed) = framed {
                        queries.pass_on(framed);
                    }
                }
                else => break,
            }
        }
        write_all(server, &queries.rest()).await?;

        SockRef::from(server).shutdown(Shutdown::Write)
    }

    /// Serves a resolver that retries a truncated answer by TCP, without a server that serves TCP.
    async fn serve_alone(&self, client: &TcpStream) -> io::Result<()> {
        let mut queries = Queries::default();
        let mut buffer = vec![0; READ_SIZE];
        loop {
            let read = read(client, &mut buffer).await?;
            if read == 0 {
                break;
            }
            queries.push(&buffer[..read]);
            while let Some(part) = queries.next_part() {
                let step = match &part {
                    Part::Query(framed) => {
                        let query = decoded(framed);
                        match self.decide(&query) {
                            Step::AskCluster(question) => self.ask(&query, question).await,
                            step => step,
                        }
                    }
                    Part::Other(_) => Step::PassOn,
                };
                let (Step::Send(answer) | Step::Fail(answer)) = step else {
                    count(&self.shared.counters.failed);
                    return Err(io::ErrorKind::ConnectionRefused.into());
                };
                write_all(client, &framing::framed(&answer).unwrap_or_default()).await?;
            }
        }

        SockRef::from(client).shutdown(Shutdown::Write)
    }
}

fn decoded(framed: &[u8]) -> Query {
    Query::decode(Part::message(framed).to_vec(), Limit::Stream)
}

/// The server's bytes as they come, and answers of ours between its messages.
async fn downward(
    client: &TcpStream,
    server: &TcpStream,
    mut own: mpsc::Receiver<OwnAnswer>,
    owed: &AtomicUsize,
) -> io::Result<()> {
    let mut boundaries = Boundaries::default();
    let mut ready = Vec::new();
    let mut buffer = vec![0; READ_SIZE];
    let mut is_open = true;
    loop {
        if boundaries.is_between_messages() {
            write_own(client, &mut ready).await?;
        }
        if !is_open && owed.load(Ordering::Relaxed) == 0 {
            break;
        }
        tokio::select! {
            read = read(server, &mut buffer), if is_open => {
                let read = read?;
                is_open = read > 0;
                let mut bytes = &buffer[..read];
                if let Some(boundary) = boundaries.push(bytes)
                    && !ready.is_empty()
                {
                    write_all(client, &bytes[..boundary]).await?;
                    write_own(client, &mut ready).await?;
                    bytes = &bytes[boundary..];
                }
                write_all(client, bytes).await?;
            }
            Some(answer) = own.recv(), if ready.len() < MAX_OWN_ANSWERS => {
                owed.fetch_sub(1, Ordering::Relaxed);
                ready.extend(answer);
            }
            else => break,
        }
    }

    SockRef::from(client).shutdown(Shutdown::Write)
}

async fn write_own(client: &TcpStream, ready: &mut Vec<Vec<u8>>) -> io::Result<()> {
    for answer in ready.drain(..) {
        write_all(client, &framing::framed(&answer).unwrap_or_default()).await?;
    }

    Ok(())
}

async fn read(tcp: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        tcp.readable().await?;
        match tcp.try_read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            result => return result,
        }
    }
}

async fn write_all(tcp: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match tcp.try_write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => tcp.writable().await?,
            Err(error) => return Err(error),
        }
    }

    Ok(())
}

/// The verdict by which the application's connect() fails like ours, as far as a SYN's answer can tell.
fn verdict(error: &io::Error) -> Verdict {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ECONNREFUSED | Errno::ECONNRESET) => Verdict::Refused,
        Some(Errno::ENETUNREACH | Errno::ENETDOWN) => Verdict::NetworkUnreachable,
        Some(Errno::ETIMEDOUT) => Verdict::TimedOut,
        Some(Errno::EPERM | Errno::EACCES | Errno::EINVAL) => Verdict::Prohibited,
        Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM) => Verdict::Exhausted,
        _ => Verdict::HostUnreachable,
    }
}

#[cfg(test)]
mod tests;
