//! Local processes that are shown clients, and others that connect to them.

use std::{
    io::BufRead as _,
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
    time::Instant,
};

use rustix::net::{connect, listen};
use serde_json::json;

use crate::{
    dials::{bound, free_port_at_once},
    session::say,
    socket::{PATIENCE, errno},
};

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
