//! Clients that local processes are shown: the session's connections to them, the processes, and
//! others that connect.

use std::{
    io::BufRead as _,
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::{AsFd as _, OwnedFd},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use rustix::net::{
    AddressFamily, SocketFlags, SocketType, bind, connect, getsockname, ipproto, listen,
    socket_with, sockopt,
};
use serde_json::{Value, json};

use crate::{
    root_client::RootClient,
    session::say,
    socket::{PATIENCE, errno},
};

/// A TCP socket that is bound to this address.
fn bound(address: SocketAddr, is_multipath: bool) -> std::io::Result<OwnedFd> {
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
fn free_port_at_once(socket: &OwnedFd) {
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

/// `OWN [mptcp]`: tells what accept(2) and getpeername(2) say of each connection, and at each line
/// what getpeername(2) says of the first one by then.
pub(crate) fn accept(own: &str, flags: &[&str]) {
    let own: SocketAddr = own.parse().expect("an address");
    let socket = bound(own, flags.contains(&"mptcp")).expect("the port is free");
    listen(&socket, 16).expect("it is bound");
    let listener = TcpListener::from(socket);
    say(&json!({"event": "listening"}));
    let accepted = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&accepted);
    thread::spawn(move || {
        loop {
            let (stream, from) = listener.accept().expect("a connection");
            let peer = stream.peer_addr().map(|peer| peer.to_string());
            kept.lock().expect("nobody panics").push(stream);
            let peer = peer.map_err(|error| errno(&error));
            say(&json!({"accepted": from.to_string(), "peer": peer.unwrap_or_else(|it| it)}));
        }
    });
    for _ in std::io::stdin().lock().lines() {
        let accepted = accepted.lock().expect("nobody panics");
        let peer = accepted[0].peer_addr().map(|peer| peer.to_string());
        let peer = peer.unwrap_or_else(|error| errno(&error));
        say(&json!({"peer": peer}));
    }
}

/// `SOURCE TARGET`: connects from exactly that address, and keeps the connection until the input ends.
pub(crate) fn knock(source: &str, target: &str) {
    let source: SocketAddr = source.parse().expect("an address");
    let target: SocketAddr = target.parse().expect("an address");
    let begin = Instant::now();
    let socket = loop {
        match bound(source, false) {
            Ok(socket) => break socket,
            // The root daemon may still have a descriptor of the socket that had the port.
            Err(error) => assert!(begin.elapsed() < PATIENCE, "{error}"),
        }
        thread::yield_now();
    };
    connect(&socket, &target).expect("somebody listens");
    free_port_at_once(&socket);
    say(&json!({"event": "connected"}));
    let _stream = TcpStream::from(socket);
    let _ = std::io::stdin().lock().lines().count();
}
