//! Sockets with a source of one's choice, and a session's connections to local processes.

use std::{
    net::SocketAddr,
    os::fd::{AsFd as _, OwnedFd},
    time::{Duration, Instant},
};

use rustix::net::{
    AddressFamily, SocketFlags, SocketType, bind, connect, getsockname, ipproto, socket_with,
    sockopt,
};
use serde_json::{Value, json};

use crate::root_client::RootClient;

/// A TCP socket that is bound to this address.
pub(crate) fn bound(address: SocketAddr, is_multipath: bool) -> std::io::Result<OwnedFd> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let protocol = if is_multipath {
        ipproto::MPTCP
    } else {
        ipproto::TCP
    };
    let socket = socket_with(
        family,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        Some(protocol),
    )?;
    bind(&socket, &address)?;

    Ok(socket)
}

/// Connects to the target as a session does for a client, or as anybody does without one; returns the
/// connection, its source and the root daemon's reply.
pub(crate) fn dial(
    root: &RootClient,
    target: SocketAddr,
    client: Option<SocketAddr>,
) -> (OwnedFd, SocketAddr, Value) {
    let socket = bound((target.ip(), 0).into(), false).expect("a port is free");
    let source = getsockname(&socket).expect("it is bound");
    let reply = client.map_or(Value::Null, |client| {
        let request = json!({"request": "show_client", "client": client});
        root.ask_with(&request, &[socket.as_fd()]).0
    });
    connect(&socket, &target).expect("somebody listens");
    free_port_at_once(&socket);

    (socket, source.try_into().expect("an address"), reply)
}

/// When it is closed, however its process ends.
pub(crate) fn free_port_at_once(socket: &OwnedFd) {
    sockopt::set_socket_linger(socket, Some(Duration::ZERO)).expect("every socket may");
}

/// The median and the 99th percentile of the time that the root daemon takes for one client, in
/// microseconds.
pub(crate) fn measure(root: &RootClient, client: SocketAddr, count: usize) -> Value {
    let mut times: Vec<f64> = (0..count)
        .map(|_| {
            let socket = bound(([127, 0, 0, 1], 0).into(), false).expect("a port is free");
            let request = json!({"request": "show_client", "client": client});
            let begin = Instant::now();
            let (reply, _) = root.ask_with(&request, &[socket.as_fd()]);
            let elapsed = begin.elapsed();
            assert_eq!(reply["reply"], "done", "{reply}");
            elapsed.as_secs_f64() * 1e6
        })
        .collect();
    times.sort_by(f64::total_cmp);

    json!({"median_us": times[count / 2], "p99_us": times[count * 99 / 100]})
}
