//! Applications: each does one thing with sockets and reports the result.

use std::{
    io::{BufRead, BufReader, Read},
    net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket},
    time::Instant,
};

use hickory_proto::rr::RecordType;
use rustix::{
    io::Errno,
    net::{getpeername, getsockname},
};
use serde_json::{Value, json};

use crate::{
    attack, calls, credentials, crowd, names,
    session::say,
    shown,
    socket::{Failed, Options, PATIENCE, canonical, destination, errno, name, open},
    strays, sys,
};

pub(crate) fn run(words: &[&str]) {
    let event = match words {
        ["connect", target] => tcp(&Options::new(), target),
        ["connect", target, flags @ ..] => tcp(&Options::parse(flags), target),
        ["udp", target, flags @ ..] => udp(&Options::parse(flags), target),
        ["drain", target] => drain(target),
        ["hold", target] => return hold(target),
        ["crowd", first, count] => return crowd::hold(first, count.parse().expect("a number")),
        ["dns", server, name, flags @ ..] => names::ask(server, name, flags),
        ["late", server, name] => return names::late(server, name),
        ["bench", target, count] => crowd::bench(target, count.parse().expect("a number")),
        ["calls"] => return calls::measure(),
        ["many", first, count, flags @ ..] => crowd::visit(
            &Options::parse(flags),
            first,
            count.parse().expect("a number"),
        ),
        ["stray", server, to] => strays::send(server, to, None),
        ["stray", server, to, device] => strays::send(server, to, Some(device)),
        ["stray-stream", target, device] => strays::write(target, device),
        ["several", servers] => return strays::ask_several(servers),
        ["linger", server, target] => return strays::linger(server, target),
        ["serve", own] => return names::serve(own),
        ["accept", own, flags @ ..] => return shown::accept(own, flags),
        ["knock", source, target] => return shown::knock(source, target),
        ["victim", port] => return attack::victim(port),
        ["greet", target] => attack::greet(target),
        ["greet-udp", target] => attack::greet_by_datagram(target),
        ["wait", own] => attack::wait(own),
        ["take", path] => attack::take(path),
        ["give", kind, target, path] => attack::give(kind, target, path),
        ["segment", from, to, flags] => attack::raw_segment(from, to, flags),
        ["pass", target, program] => credentials::pass(target, program),
        ["inherit"] => credentials::inherit(),
        // A privileged program that has temporarily dropped its privileges.
        ["dropped", rest @ ..] => {
            sys::lay_down_ids();
            return run(rest);
        }
        ["in-roots-user-namespace", uid, rest @ ..] => {
            return credentials::run_in_roots_user_namespace(uid, rest);
        }
        ["unshared", rest @ ..] => {
            credentials::become_root_of_new_users();
            return run(rest);
        }
        ["before-setuid", uid, target] => {
            credentials::connect_after_setuid(uid.parse().expect("a number"), target)
        }
        _ => panic!("no such application: {words:?}"),
    };
    say(&event);
}

/// Connects and reads the greeting.
fn tcp(options: &Options, target: &str) -> Value {
    let begin = Instant::now();
    let target = destination(options, target);
    let connected = open(options, target);
    let elapsed_ms = begin.elapsed().as_millis();
    let socket = match connected {
        Ok(socket) => socket,
        Err(failed) => {
            return json!({
                "errno": failed.name(),
                "gave_up": failed == Failed::OwnBound,
                "elapsed_ms": elapsed_ms,
            });
        }
    };
    let peer = getpeername(&socket)
        .ok()
        .flatten()
        .and_then(|a| SocketAddr::try_from(a).ok());
    let own = getsockname(&socket)
        .ok()
        .and_then(|a| SocketAddr::try_from(a).ok());
    let stream = TcpStream::from(socket);
    stream.set_nonblocking(false).expect("a socket may block");
    stream
        .set_read_timeout(Some(options.timeout))
        .expect("a bound");
    let mut greeting = String::new();
    let read = BufReader::new(&stream).read_line(&mut greeting);

    json!({
        "errno": read.err().and_then(|e| e.raw_os_error()).map(|e| name(Errno::from_raw_os_error(e))),
        "elapsed_ms": elapsed_ms,
        "greeting": greeting.trim_end(),
        "peer": peer.map(|peer| peer.to_string()),
        "own": own.map(|own| own.ip().to_canonical().to_string()),
    })
}

/// Sends a datagram and waits for the answer.
fn udp(options: &Options, target: &str) -> Value {
    let target = destination(options, target);
    let own: SocketAddr = match (options.bind, target) {
        (Some(address), _) => (address, 0).into(),
        (None, SocketAddr::V4(_)) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        (None, SocketAddr::V6(_)) => "[::]:0".parse().expect("an address"),
    };
    let socket = UdpSocket::bind(own).expect("a socket can be bound");
    socket
        .set_read_timeout(Some(options.timeout))
        .expect("a bound");
    if let Some(index) = options.unicast_interface {
        sys::set_ip_option(&socket, libc::IP_UNICAST_IF, index.to_be()).expect("an interface");
    }
    let payload = match &options.name {
        Some(name) => names::query(name, RecordType::A),
        None => b"ping".to_vec(),
    };
    let sent = match (options.departure, target) {
        (Some(departure), SocketAddr::V4(target)) => {
            sys::send_with(&socket, departure, target, &payload)
        }
        _ if options.is_connected => socket
            .connect(target)
            .and_then(|()| socket.send(&payload))
            .map(drop),
        _ => socket.send_to(&payload, target).map(drop),
    };
    if let Err(error) = sent {
        return json!({"errno": errno(&error)});
    }
    let mut buffer = vec![0; 65536];
    match socket.recv_from(&mut buffer) {
        Err(error) => json!({"errno": errno(&error)}),
        Ok((len, from)) => {
            let mut seen = names::describe(&buffer[..len]);
            seen["errno"] = Value::Null;
            seen["len"] = len.into();
            seen["from"] = canonical(from).into();
            seen["peer"] = socket.peer_addr().ok().map(canonical).into();
            seen
        }
    }
}

/// Connects, reads to the end, and reports the end.
fn drain(target: &str) -> Value {
    let mut stream = match TcpStream::connect(target) {
        Ok(stream) => stream,
        Err(error) => return json!({"connect": errno(&error)}),
    };
    stream.set_read_timeout(Some(PATIENCE)).expect("a bound");
    let mut received = Vec::new();
    let ended = stream.read_to_end(&mut received);

    json!({"errno": ended.err().map(|error| errno(&error)), "received": received.len()})
}

/// Connects, reports it, and then reports how the connection ends.
fn hold(target: &str) {
    let mut stream = match TcpStream::connect(target) {
        Ok(stream) => stream,
        Err(error) => return say(&json!({"errno": errno(&error)})),
    };
    let mut greeting = String::new();
    let mut reader = BufReader::new(stream.try_clone().expect("a socket can be copied"));
    reader.read_line(&mut greeting).expect("a greeting");
    say(&json!({"event": "held", "greeting": greeting.trim_end()}));
    let mut rest = Vec::new();
    let ended = stream.read_to_end(&mut rest);
    say(&json!({"event": "ended", "errno": ended.err().map(|error| errno(&error))}));
}
