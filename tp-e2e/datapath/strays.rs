//! Applications whose sockets stray between sessions: steered by one, they send to another, hear
//! from several, or outlive theirs.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{SocketAddr, TcpStream, UdpSocket},
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use hickory_proto::rr::RecordType;
use rustix::net::getpeername;
use serde_json::{Value, json};

use crate::{
    names,
    session::say,
    socket::{Options, PATIENCE, canonical, errno, open},
    sys,
};

/// For what must not come.
const SILENCE: Duration = Duration::from_millis(300);

/// `SERVER TO [DEVICE]`: asks a name server, binds the socket to the interface, and sends a datagram.
pub(crate) fn send(server: &str, to: &str, device: Option<&str>) -> Value {
    let socket = asking_socket(&[server]);
    // Answered: the socket is steered.
    let first = receive(&socket, PATIENCE);
    if let Some(device) = device {
        sys::bind_to_device(&socket, device).expect("every user may");
    }
    let sent = socket.send_to(b"stray", address(to));

    json!({"first": first["from"], "errno": sent.err().map(|error| errno(&error))})
}

/// `TARGET DEVICE`: connects, binds the connection to the interface, and writes.
pub(crate) fn write(target: &str, device: &str) -> Value {
    let stream = TcpStream::connect(target).expect("the session approves");
    stream.set_read_timeout(Some(PATIENCE)).expect("a bound");
    let mut reader = BufReader::new(&stream);
    let mut greeting = String::new();
    reader.read_line(&mut greeting).expect("a greeting");
    sys::bind_to_device(&stream, device).expect("every user may");
    let written = (&stream).write_all(b"stray\n");
    stream.set_read_timeout(Some(SILENCE)).expect("a bound");
    let mut echo = String::new();
    let _ = reader.read_line(&mut echo);

    json!({
        "greeting": greeting.trim_end(),
        "errno": written.err().map(|error| errno(&error)),
        "echo": echo,
    })
}

/// `SERVER,SERVER...`: asks all by one socket, and reports who answers; at a line, what came
/// meanwhile.
pub(crate) fn ask_several(servers: &str) {
    let servers: Vec<&str> = servers.split(',').collect();
    let socket = asking_socket(&servers);
    let mut from: Vec<String> = servers
        .iter()
        .map(|_| receive(&socket, PATIENCE)["from"].to_string())
        .collect();
    from.sort();
    let port = socket.local_addr().expect("bound").port();
    say(&json!({"from": from, "port": port}));
    wait_for_line();
    say(&receive(&socket, SILENCE));
}

/// `SERVER TARGET`: has a socket of each kind steered; at a line, which of them still tell of a real
/// address; at one more, with an address, sends there by the unconnected one.
pub(crate) fn linger(server: &str, target: &str) {
    let asked = asking_socket(&[server]);
    let connected = UdpSocket::bind("0.0.0.0:0").expect("a socket can be bound");
    connected.connect(server).expect("the session takes it");
    let stream = |kind: &[&str]| {
        let stream = TcpStream::from(
            open(&Options::parse(kind), address(target))
                .unwrap_or_else(|failed| panic!("{kind:?}: {}", failed.name())),
        );
        let mut greeting = String::new();
        BufReader::new(&stream)
            .read_line(&mut greeting)
            .expect("a greeting");
        OwnedFd::from(stream)
    };
    let (plain, multipath) = (stream(&[]), stream(&["mptcp"]));
    say(&json!({"event": "held"}));
    wait_for_line();
    say(&json!({
        "from": receive(&asked, PATIENCE)["from"],
        "connected": peer(&connected),
        "plain": peer(&plain),
        "multipath": peer(&multipath),
    }));
    let to = wait_for_line();
    let sent = asked.send_to(b"stray", address(&to));
    say(&json!({
        "errno": sent.err().map(|error| errno(&error)),
        "heard": receive(&asked, SILENCE),
    }));
}

/// A socket that has asked each of these servers.
fn asking_socket(servers: &[&str]) -> UdpSocket {
    let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket can be bound");
    for server in servers {
        socket
            .send_to(
                &names::query(crate::far_side::WEB_NAME, RecordType::A),
                server,
            )
            .expect("the session takes it");
    }

    socket
}

fn receive(socket: &UdpSocket, timeout: Duration) -> Value {
    socket.set_read_timeout(Some(timeout)).expect("a bound");
    let mut buffer = [0; 2048];
    match socket.recv_from(&mut buffer) {
        Ok((_, from)) => json!({"from": canonical(from)}),
        Err(error) => json!({"errno": errno(&error)}),
    }
}

fn peer(socket: impl AsFd) -> Value {
    match getpeername(socket) {
        Ok(peer) => peer
            .and_then(|peer| SocketAddr::try_from(peer).ok())
            .map(canonical)
            .into(),
        Err(error) => crate::socket::name(error).into(),
    }
}

fn wait_for_line() -> String {
    let mut line = String::new();
    std::io::stdin()
        .read_line(&mut line)
        .expect("input is text");

    line.trim_end().to_owned()
}

fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}
