//! Asks the root daemon whether it runs, and which one it is.

use std::{io, os::unix::fs::MetadataExt as _, time::Duration};

use rustix::{
    fd::OwnedFd,
    io::Errno,
    net::{SocketFlags, SocketType, sockopt},
};
use tp_process::lock::{Occupant, occupant};
use tp_root_api::{MAX_PACKET, PROTOCOL, RefusedKind, Reply, Request, socket_path, wire};

/// For each packet.
const TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(crate) enum Answer {
    Running(Running),
    /// Nothing listens there.
    Absent,
    /// It is ending: its last session has gone.
    Ending,
    /// It does not serve this user.
    Denied(String),
    /// It listens and does not answer.
    Broken(String),
}

/// A root daemon that serves this user. One that ends with its last session stays while this
/// exists, and ends when this is dropped unless a session has come.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) version: String,
    /// Of its requests and replies.
    pub(crate) protocol: u32,
    /// Started for one user; ends with that user's last session.
    pub(crate) ends_with_last_session: bool,
    _connection: OwnedFd,
}

/// Asks without announcing a session.
pub(crate) fn hello() -> Answer {
    ask(false)
}

/// Asks on behalf of a session that is about to need the root daemon.
pub(crate) fn hello_to_connect() -> Answer {
    ask(true)
}

/// Returns whether the root daemon is one that ends with its last session.
pub(crate) fn is_ending() -> bool {
    match hello() {
        Answer::Running(running) => running.ends_with_last_session,
        Answer::Ending => true,
        Answer::Absent | Answer::Denied(_) | Answer::Broken(_) => false,
    }
}

/// Returns whether the root daemon's socket has no listener. Sends nothing to a listener.
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
                protocol,
                ends_with_last_session,
                ..
            } => Answer::Running(Running {
                version,
                protocol,
                ends_with_last_session,
                _connection: connection,
            }),
            Reply::Refused {
                kind: RefusedKind::Permission,
                message,
            } => Answer::Denied(message),
            Reply::Refused { message, .. } => Answer::Broken(message),
            Reply::Opened(_) | Reply::Done | Reply::Counters(_) | Reply::Overlaps { .. } => {
                Answer::Broken("it answered another question".into())
            }
        },
        Err(error) => match Errno::from_io_error(&error) {
            Some(Errno::NOENT | Errno::CONNREFUSED) => Answer::Absent,
            Some(Errno::CONNRESET | Errno::PIPE) => Answer::Ending,
            Some(Errno::ACCESS | Errno::PERM) => Answer::Denied(who_is_served()),
            Some(Errno::AGAIN) => {
                Answer::Broken(format!("no answer within {} s", TIMEOUT.as_secs()))
            }
            _ => Answer::Broken(error.to_string()),
        },
    }
}

/// Describes the users whom the root daemon serves, by the mode of its socket.
fn who_is_served() -> String {
    // The socket of a group is writable by that group.
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

fn exchange(connects: bool) -> io::Result<(Reply, OwnedFd)> {
    let socket = wire::socket(SocketFlags::empty())?;
    for direction in [sockopt::Timeout::Send, sockopt::Timeout::Recv] {
        sockopt::set_socket_timeout(&socket, direction, Some(TIMEOUT))?;
    }
    wire::connect(&socket, &socket_path())?;

    let request = Request::Hello {
        version: tp_core::VERSION.into(),
        protocol: PROTOCOL,
        connects,
    };
    // A refused peer receives its reply, and EOF, before it sends.
    match wire::send(&socket, &request, &[]) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error),
        _ => {}
    }

    let mut buffer = vec![0; MAX_PACKET];
    let packet = wire::receive(&socket, &mut buffer)?;
    if packet.bytes.is_empty() {
        return Err(Errno::CONNRESET.into());
    }
    let reply = serde_json::from_slice(packet.bytes).map_err(|_| Errno::BADMSG)?;

    Ok((reply, socket))
}
