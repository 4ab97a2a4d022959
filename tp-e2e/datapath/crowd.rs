//! Applications with many connections, at once or one after the other.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Write as _},
    net::{Shutdown, SocketAddr, SocketAddrV4, TcpStream},
    time::Instant,
};

use serde_json::{Value, json};

use crate::{
    session::say,
    socket::{Options, PATIENCE, open},
};

/// Holds connections to many addresses. For each input line, reports how many still have their peer
/// and echo the line.
pub(crate) fn hold(first: &str, count: u32) {
    let mut streams: Vec<(SocketAddr, BufReader<TcpStream>)> = addresses(first, count)
        .map(|target| {
            let stream = TcpStream::connect(target).expect("the session approves");
            stream.set_read_timeout(Some(PATIENCE)).expect("a bound");
            (target.into(), BufReader::new(stream))
        })
        .collect();
    let greeted = streams
        .iter_mut()
        .filter_map(|(target, stream)| (line_of(stream)? == target.to_string()).then_some(()))
        .count();
    say(&json!({"event": "held", "greeted": greeted}));
    for line in std::io::stdin().lines() {
        let line = line.expect("input is text");
        let right = streams
            .iter_mut()
            .filter_map(|(target, stream)| {
                let socket = stream.get_mut();
                let is_peer = socket.peer_addr().is_ok_and(|peer| peer == *target);
                writeln!(socket, "{line}").ok()?;
                (is_peer && line_of(stream)? == line).then_some(())
            })
            .count();
        say(&json!({"event": "held", "right": right}));
    }
}

fn line_of(stream: &mut BufReader<TcpStream>) -> Option<String> {
    let mut line = String::new();
    stream.read_line(&mut line).ok()?;

    Some(line.trim_end().to_owned())
}

/// Connects to many addresses and counts the errors.
pub(crate) fn visit(options: &Options, first: &str, count: u32) -> Value {
    let mut greeted = 0_u32;
    let mut wrong = 0_u32;
    let mut errors = BTreeMap::<String, u32>::new();
    for target in addresses(first, count) {
        match open(options, target.into()) {
            Err(failed) => *errors.entry(failed.name()).or_default() += 1,
            Ok(socket) => {
                let stream = TcpStream::from(socket);
                let mut greeting = String::new();
                let _ = BufReader::new(&stream).read_line(&mut greeting);
                if greeting.trim_end() == target.to_string() {
                    greeted += 1;
                } else {
                    wrong += 1;
                }
            }
        }
    }

    json!({"greeted": greeted, "wrong": wrong, "errors": errors})
}

/// Measures connects one after the other.
pub(crate) fn bench(target: &str, count: usize) -> Value {
    let target: SocketAddr = target.parse().expect("an address");
    let mut nanos: Vec<u128> = (0..count)
        .map(|_| {
            let begin = Instant::now();
            let stream = TcpStream::connect(target).expect("the session approves");
            let elapsed = begin.elapsed().as_nanos();
            let _ = stream.shutdown(Shutdown::Both);
            elapsed
        })
        .collect();
    nanos.sort_unstable();

    json!({
        "median_us": nanos[count / 2] as f64 / 1000.0,
        "p99_us": nanos[count * 99 / 100] as f64 / 1000.0,
    })
}

fn addresses(first: &str, count: u32) -> impl Iterator<Item = SocketAddrV4> {
    let first: SocketAddrV4 = first.parse().expect("an address");

    (0..count).map(move |n| SocketAddrV4::new((u32::from(*first.ip()) + n).into(), first.port()))
}
