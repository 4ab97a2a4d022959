//! One question to the root daemon: do you answer, and who are you?

use std::{os::unix::fs::MetadataExt as _, path::PathBuf, time::Duration};

use rustix::{
    fd::OwnedFd,
    io::{Errno, retry_on_intr},
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect,
        recv, send, socket_with, sockopt,
    },
};
use tp_proto::root::{MAX_PACKET, RefusedKind, Reply, Request, SOCKET_PATH};
use tp_transport::ipc::lock::{Occupant, occupant};

/// Longest wait for each packet.
const WAIT: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(crate) enum Answer {
    Running(Running),
    /// Nothing listens there.
    Absent,
    /// It is about to end: its last session has gone.
    Ending,
    /// It does not serve this user.
    Denied(String),
    /// It listens and does not answer.
    Broken(String),
}

/// A root daemon that serves this user. One that ends with its last session does not end while
/// this exists, and ends with it unless a session has come.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) version: String,
    /// It was started for one user, and ends with that user's last session.
    pub(crate) ends_with_last_session: bool,
    _connection: OwnedFd,
}

/// Where the root daemon listens: `$TP_ROOT_SOCKET`, or the usual place.
pub(crate) fn socket_path() -> PathBuf {
    std::env::var_os("TP_ROOT_SOCKET").map_or_else(|| SOCKET_PATH.into(), PathBuf::from)
}

/// Asks; nothing depends on the answer.
pub(crate) fn hello() -> Answer {
    ask(false)
}

/// Asks on behalf of a session that is about to need the root daemon.
pub(crate) fn hello_to_connect() -> Answer {
    ask(true)
}

/// Whether there is one that ends by itself, without sessions.
pub(crate) fn is_ending() -> bool {
    match hello() {
        Answer::Running(running) => running.ends_with_last_session,
        Answer::Ending => true,
        Answer::Absent | Answer::Denied(_) | Answer::Broken(_) => false,
    }
}

/// Whether the root daemon's socket has no listener, without a word to one that has.
pub(crate) fn is_gone() -> bool {
    matches!(
        occupant(&socket_path(), SocketType::SEQPACKET),
        Ok(Occupant::Nobody | Occupant::Stale)
    )
}

fn ask(connects: bool) -> Answer {
    match exchange(connects) {
        Ok((reply, connection)) => match reply {
            Reply::Hello {
                version,
                ends_with_last_session,
                ..
            } => Answer::Running(Running {
                version,
                ends_with_last_session,
                _connection: connection,
            }),
            Reply::Refused {
                kind: RefusedKind::Permission,
                message,
            } => Answer::Denied(message),
            Reply::Refused { message, .. } => Answer::Broken(message),
            Reply::Opened(_) | Reply::Done | Reply::Counters(_) => {
                Answer::Broken("it answered another question".into())
            }
        },
        Err(Errno::NOENT | Errno::CONNREFUSED) => Answer::Absent,
        Err(Errno::CONNRESET | Errno::PIPE) => Answer::Ending,
        Err(Errno::ACCESS | Errno::PERM) => Answer::Denied(who_is_served()),
        Err(Errno::AGAIN) => Answer::Broken(format!("no answer within {} s", WAIT.as_secs())),
        Err(errno) => Answer::Broken(errno.to_string()),
    }
}

/// Whom the root daemon serves, by its socket, which this user may not open.
fn who_is_served() -> String {
    // Of a group it is writable by that.
    match std::fs::metadata(socket_path()) {
        Ok(socket) if socket.mode() & 0o060 == 0 => format!(
            "it was started for the user with the number {} alone; wait until that user has quit, \
             or run one for the group tp with `sudo tp-daemon install`",
            socket.uid()
        ),
        _ => "it serves root and members of the group tp (`sudo usermod -aG tp $USER`, then log \
              in again)"
            .to_owned(),
    }
}

fn exchange(connects: bool) -> Result<(Reply, OwnedFd), Errno> {
    let socket = socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    for direction in [sockopt::Timeout::Send, sockopt::Timeout::Recv] {
        sockopt::set_socket_timeout(&socket, direction, Some(WAIT))?;
    }
    // With a time-out they are interrupted by every signal (signal(7)), of which the end of a child is
    // one.
    let address = SocketAddrUnix::new(socket_path())?;
    retry_on_intr(|| connect(&socket, &address))?;

    let request = Request::Hello {
        version: tp_proto::VERSION.into(),
        connects,
    };
    let packet = serde_json::to_vec(&request).expect("a request has a JSON form");
    // A peer that is not served gets its reply, and the end, before it asks.
    match retry_on_intr(|| send(&socket, &packet, SendFlags::NOSIGNAL)) {
        Ok(_) | Err(Errno::PIPE) => {}
        Err(errno) => return Err(errno),
    }

    let mut buffer = vec![0; MAX_PACKET];
    let (length, _) = retry_on_intr(|| recv(&socket, &mut *buffer, RecvFlags::empty()))?;
    if length == 0 {
        return Err(Errno::CONNRESET);
    }
    let reply = serde_json::from_slice(&buffer[..length]).map_err(|_| Errno::BADMSG)?;

    Ok((reply, socket))
}
