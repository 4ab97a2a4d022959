//! One question to the root daemon: do you answer, and who are you?

use std::{path::PathBuf, time::Duration};

use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect,
        recv, send, socket_with, sockopt,
    },
};
use tp_proto::root::{MAX_PACKET, Reply, Request, SOCKET_PATH};

/// Longest wait for each packet.
const WAIT: Duration = Duration::from_secs(2);

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Running {
        version: String,
    },
    /// Nothing listens there.
    Absent,
    /// It does not serve this user.
    Denied(String),
    /// It listens and does not answer.
    Broken(String),
}

/// Where the root daemon listens: `$TP_ROOT_SOCKET`, or the usual place.
pub(crate) fn socket_path() -> PathBuf {
    std::env::var_os("TP_ROOT_SOCKET").map_or_else(|| SOCKET_PATH.into(), PathBuf::from)
}

pub(crate) fn hello() -> Answer {
    match exchange() {
        Ok(Reply::Hello { version, .. }) => Answer::Running { version },
        Ok(Reply::Refused { message, .. }) => Answer::Denied(message),
        Ok(_) => Answer::Broken("it answered another question".into()),
        Err(Errno::NOENT | Errno::CONNREFUSED) => Answer::Absent,
        Err(Errno::ACCESS | Errno::PERM) => {
            Answer::Denied("it serves root and members of the group tp".into())
        }
        Err(Errno::AGAIN) => Answer::Broken(format!("no answer within {} s", WAIT.as_secs())),
        Err(errno) => Answer::Broken(errno.to_string()),
    }
}

fn exchange() -> Result<Reply, Errno> {
    let socket = socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    for direction in [sockopt::Timeout::Send, sockopt::Timeout::Recv] {
        sockopt::set_socket_timeout(&socket, direction, Some(WAIT))?;
    }
    connect(&socket, &SocketAddrUnix::new(socket_path())?)?;

    let request = Request::Hello {
        version: tp_proto::VERSION.into(),
    };
    let packet = serde_json::to_vec(&request).expect("a request has a JSON form");
    send(&socket, &packet, SendFlags::NOSIGNAL)?;

    let mut buffer = vec![0; MAX_PACKET];
    let (length, _) = recv(&socket, &mut *buffer, RecvFlags::empty())?;
    if length == 0 {
        // It closes the connections of peers that it does not serve.
        return Err(Errno::PERM);
    }

    serde_json::from_slice(&buffer[..length]).map_err(|_| Errno::BADMSG)
}

/// Is the root daemon installed as a service of the system?
pub(crate) fn is_service() -> bool {
    std::path::Path::new("/etc/systemd/system/tp-daemon.service").exists()
}
