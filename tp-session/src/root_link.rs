//! The session's connection to the root daemon. It is the lease of everything that root made.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    time::Duration,
};

use rustix::net::SocketFlags;
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::{mpsc, oneshot},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tp_proto::{
    fault::{Fault, FaultKind},
    version,
};
use tp_root_api::{MAX_PACKET, PROTOCOL, RefusedKind, Reply, Request, wire};

use super::sys;

/// The root daemon makes a data path in milliseconds; beyond this it hangs. If it goes on later, it still
/// carries out the request.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// The most requests that wait for the one under way; beyond it, callers wait.
const MAX_QUEUED_CALLS: usize = 8;

struct Call {
    request: Request,
    fd: Option<OwnedFd>,
    answer: oneshot::Sender<Result<(Reply, Vec<OwnedFd>), Fault>>,
}

/// Closes the connection, and with it the lease, when dropped.
pub(super) struct RootLink {
    pub(super) version: String,
    /// Of its requests and replies.
    pub(super) protocol: u32,
    pub(super) pid: u32,
    /// The root daemon was started for this user, and ends with the session.
    pub(super) ends_with_last_session: bool,
    call_tx: mpsc::Sender<Call>,
    /// Bounds a caller's wait for an answer.
    limit: Duration,
    gone: CancellationToken,
    _task: AbortOnDropHandle<()>,
}

impl RootLink {
    /// Connects on behalf of a session that is about to have a data path.
    pub(super) async fn connect() -> Result<Self, Fault> {
        Self::greet(true).await
    }

    /// Connects to ask only.
    pub(super) async fn visit() -> Result<Self, Fault> {
        Self::greet(false).await
    }

    async fn greet(connects: bool) -> Result<Self, Fault> {
        let path = tp_root_api::socket_path();
        let socket = open(&path).map_err(|error| absent(&path, &error))?;
        let socket = sys::watched(socket).map_err(|error| absent(&path, &error))?;
        let mut this = Self::over(socket, ANSWER_TIMEOUT);
        let hello = Request::Hello {
            version: tp_core::VERSION.to_owned(),
            protocol: PROTOCOL,
            connects,
        };
        match this.call(hello, None).await?.0 {
            Reply::Hello {
                version,
                protocol,
                pid,
                ends_with_last_session,
            } => {
                this.version = version;
                this.protocol = protocol;
                this.pid = pid;
                this.ends_with_last_session = ends_with_last_session;
                Ok(this)
            }
            _ => Err(unexpected()),
        }
    }

    fn over(socket: AsyncFd<OwnedFd>, limit: Duration) -> Self {
        let (call_tx, call_rx) = mpsc::channel(MAX_QUEUED_CALLS);
        let gone = CancellationToken::new();
        let task = tokio::spawn(run(socket, call_rx, gone.clone()));

        Self {
            version: String::new(),
            protocol: PROTOCOL,
            pid: 0,
            ends_with_last_session: false,
            call_tx,
            limit,
            gone,
            _task: AbortOnDropHandle::new(task),
        }
    }

    /// One request and its reply; a refusal is a fault.
    pub(super) async fn call(
        &self,
        request: Request,
        fd: Option<OwnedFd>,
    ) -> Result<(Reply, Vec<OwnedFd>), Fault> {
        let (answer, answered) = oneshot::channel();
        let call = Call {
            request,
            fd,
            answer,
        };
        let reply = async {
            self.call_tx.send(call).await.map_err(|_| died())?;
            answered.await.map_err(|_| died())?
        };
        match timeout(self.limit, reply)
            .await
            .map_err(|_| slow(self.limit))??
        {
            (Reply::Refused { kind, message }, _) => Err(Fault::new(fault_kind(kind), message)),
            reply => Ok(reply),
        }
    }

    /// Fails unless the root daemon can serve this session.
    pub(super) fn check_version(&self) -> Result<(), Fault> {
        version::check("the root daemon", &self.version)?;

        version::check_root_protocol(&self.version, self.protocol, PROTOCOL)
    }

    /// Cancelled when the root daemon has closed the connection.
    pub(super) fn gone(&self) -> &CancellationToken {
        &self.gone
    }
}

async fn run(socket: AsyncFd<OwnedFd>, mut call_rx: mpsc::Receiver<Call>, gone: CancellationToken) {
    let _gone = gone.drop_guard();
    loop {
        let call = tokio::select! {
            call = call_rx.recv() => match call {
                Some(call) => call,
                None => return,
            },
            // The root daemon sends nothing unasked, so this is the end.
            _ = receive(&socket) => return,
        };
        // Without a bound: the connection is the lease of everything, and every reply belongs to the
        // request before it.
        let reply = exchange(&socket, &call).await.map_err(|error| {
            tracing::debug!(%error, "Root daemon's connection failed");
            died()
        });
        let is_over = reply.is_err();
        // A caller that has gone does not end the lease.
        drop(call.answer.send(reply));
        if is_over {
            return;
        }
    }
}

async fn exchange(socket: &AsyncFd<OwnedFd>, call: &Call) -> io::Result<(Reply, Vec<OwnedFd>)> {
    let fds: Vec<_> = call.fd.iter().map(AsFd::as_fd).collect();
    socket
        .async_io(Interest::WRITABLE, |socket| {
            wire::send(socket, &call.request, &fds)
        })
        .await?;

    receive(socket).await
}

async fn receive(socket: &AsyncFd<OwnedFd>) -> io::Result<(Reply, Vec<OwnedFd>)> {
    socket
        .async_io(Interest::READABLE, |socket| {
            let mut buffer = vec![0; MAX_PACKET];
            let packet = wire::receive(socket, &mut buffer)?;
            if packet.bytes.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            Ok((serde_json::from_slice(packet.bytes)?, packet.fds))
        })
        .await
}

fn open(path: &Path) -> io::Result<OwnedFd> {
    let socket = wire::socket(SocketFlags::NONBLOCK)?;
    match wire::connect(&socket, path) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            Err(io::Error::other("it is busy"))
        }
        result => result.map(|()| socket),
    }
}

fn absent(path: &Path, error: &io::Error) -> Fault {
    let path = path.display();
    match error.kind() {
        io::ErrorKind::PermissionDenied => Fault::new(
            FaultKind::NoPermission,
            format!(
                "you may not use the root daemon at {path}: ask an administrator for membership of \
                 the group tp (`sudo usermod -aG tp $USER`), then log in again"
            ),
        ),
        _ => Fault::new(
            FaultKind::Unavailable,
            format!(
                "the root daemon does not answer at {path} ({error}): start it with `sudo tp-daemon \
                 root --sudo`, or install it with `sudo tp-daemon install`"
            ),
        ),
    }
}

fn slow(limit: Duration) -> Fault {
    Fault::new(
        FaultKind::Unavailable,
        format!("the root daemon does not answer within {limit:?}"),
    )
}

fn died() -> Fault {
    Fault::new(
        FaultKind::Unavailable,
        "the root daemon has ended: run `tp connect` again",
    )
}

pub(super) fn unexpected() -> Fault {
    Fault::new(
        FaultKind::Failed,
        "the root daemon gave an unexpected answer: are tp-session and tp-daemon of the same version?",
    )
}

fn fault_kind(kind: RefusedKind) -> FaultKind {
    match kind {
        RefusedKind::Invalid | RefusedKind::Failed => FaultKind::Failed,
        RefusedKind::Permission => FaultKind::NoPermission,
        RefusedKind::Unsupported => FaultKind::Unavailable,
    }
}

/// The other end of a link, played by a test.
#[cfg(test)]
pub(super) struct FakeRoot(AsyncFd<OwnedFd>);

#[cfg(test)]
impl FakeRoot {
    pub(super) fn new(limit: Duration) -> (RootLink, Self) {
        use rustix::net::{AddressFamily, SocketType, socketpair};

        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (own, root) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
            .expect("sockets can be made");

        (
            RootLink::over(sys::watched(own).expect("a runtime"), limit),
            Self(sys::watched(root).expect("a runtime")),
        )
    }

    pub(super) async fn request(&self) -> Request {
        let read = |socket: &OwnedFd| {
            let mut buffer = vec![0; MAX_PACKET];
            Ok(wire::receive(socket, &mut buffer)?.bytes.to_vec())
        };
        let bytes = self.0.async_io(Interest::READABLE, read).await;

        serde_json::from_slice(&bytes.expect("a request comes")).expect("requests are JSON")
    }

    pub(super) fn reply(&self, reply: &Reply) {
        wire::send(self.0.get_ref(), reply, &[]).expect("somebody reads");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_slow_root_daemon_costs_an_answer_and_not_the_connection() {
        let (mut link, root) = FakeRoot::new(Duration::from_millis(50));

        let fault = link.call(Request::Counters, None).await.unwrap_err();
        assert!(fault.message.contains("does not answer"), "{fault}");

        link.limit = ANSWER_TIMEOUT;
        // Swapped in again, it answers what it was asked, then the next question.
        assert_eq!(root.request().await, Request::Counters);
        root.reply(&Reply::Done);
        let close = link.call(Request::Close, None);
        let answer = async {
            assert_eq!(root.request().await, Request::Close);
            let (kind, message) = (RefusedKind::Failed, "the last one".to_owned());
            root.reply(&Reply::Refused { kind, message });
        };
        let (answered, ()) = tokio::join!(close, answer);
        assert_eq!(answered.unwrap_err().message, "the last one");

        drop(root);
        link.gone().cancelled().await;
    }
}
