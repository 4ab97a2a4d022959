//! A company's name server with the behaviour that a test needs, and a resolver that reports its
//! results.
//!
//! `serve ADDRESS [no-tcp] [wildcard] [answer=ADDRESS]` answers what lies below corp.test. The
//! first label of a name may say how:
//!
//! | Label | Answer |
//! |---|---|
//! | `slow-MS-…` | after this time |
//! | `silent…` | none |
//! | `long-BYTES` | a message of this length |
//! | `absent…` | NXDOMAIN |
//! | `reset…` | the TCP connection is reset |
//! | all others | an address |
//!
//! Over TCP it transfers its zone (AXFR) in three messages, and answers queries on one connection
//! as they come.

use std::{
    env,
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Shutdown, TcpListener, TcpStream, UdpSocket},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

mod ask;
mod message;

use message::{Query, Reply};

const DOMAIN: &str = "corp.test";
const PORT: u16 = 53;

fn main() {
    let words: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["serve", address, flags @ ..] => serve(address, flags),
        ["ask", server, words @ ..] => println!("{}", ask::ask(server, words)),
        _ => panic!("say serve ADDRESS or ask SERVER"),
    }
}

#[derive(Clone)]
struct Zone {
    answer: Ipv4Addr,
    is_wildcard: bool,
}

fn serve(address: &str, flags: &[&str]) {
    let address: IpAddr = address.parse().expect("an address");
    let answer = flags.iter().find_map(|flag| flag.strip_prefix("answer="));
    let zone = Zone {
        answer: answer.map_or(Ipv4Addr::new(192, 0, 2, 10), |answer| {
            answer.parse().expect("an address")
        }),
        is_wildcard: flags.contains(&"wildcard"),
    };
    let datagrams = UdpSocket::bind((address, PORT)).expect("UDP port 53 is free");
    if !flags.contains(&"no-tcp") {
        let listener = TcpListener::bind((address, PORT)).expect("TCP port 53 is free");
        let zone = zone.clone();
        spawn(move || serve_tcp(&listener, &zone));
    }
    println!("ready");
    io::stdout().flush().expect("the test listens");
    serve_udp(&datagrams, &zone);
}

fn serve_udp(socket: &UdpSocket, zone: &Zone) {
    let socket = Arc::new(socket.try_clone().expect("a socket can be copied"));
    let mut buffer = vec![0; 65_536];
    loop {
        let Ok((length, from)) = socket.recv_from(&mut buffer) else {
            continue;
        };
        let Some(query) = Query::parse(&buffer[..length]) else {
            continue;
        };
        let reply = zone.reply(&query);
        let Some(pause) = zone.pause(&query) else {
            continue;
        };
        let socket = Arc::clone(&socket);
        let send = move || {
            // The client may be gone.
            let _ = socket.send_to(&reply, from);
        };
        after(pause, send);
    }
}

fn serve_tcp(listener: &TcpListener, zone: &Zone) {
    for stream in listener.incoming().flatten() {
        let zone = zone.clone();
        spawn(move || {
            // The resolver may end at any moment.
            let _ = serve_stream(stream, &zone);
        });
    }
}

fn serve_stream(mut stream: TcpStream, zone: &Zone) -> io::Result<()> {
    let writer = Arc::new(Mutex::new(stream.try_clone()?));
    let mut waiting = Vec::new();
    while let Some(message) = read_message(&mut stream)? {
        let Some(query) = Query::parse(&message) else {
            break;
        };
        let replies = if query.kind == message::AXFR {
            zone.transfer(&query)
        } else {
            vec![zone.reply(&query)]
        };
        if query.label().starts_with("reset") {
            rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO))?;
            return Ok(());
        }
        let Some(pause) = zone.pause(&query) else {
            continue;
        };
        let writer = Arc::clone(&writer);
        waiting.extend(after(pause, move || {
            let mut writer = writer.lock().unwrap_or_else(PoisonError::into_inner);
            for reply in replies {
                let _ = write_message(&mut *writer, &reply);
            }
        }));
    }
    for one in waiting {
        let _ = one.join();
    }

    stream.shutdown(Shutdown::Write)
}

/// The next message; `None` at the end of the stream.
fn read_message(stream: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 2];
    match stream.read_exact(&mut length) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut message)?;

    Ok(Some(message))
}

fn write_message(stream: &mut impl Write, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;

    stream.write_all(&[&length.to_be_bytes(), message].concat())
}

impl Zone {
    fn has(&self, query: &Query) -> bool {
        let is_below = query.name.strip_suffix(DOMAIN).is_some();

        (is_below || self.is_wildcard) && !query.label().starts_with("absent")
    }

    fn reply(&self, query: &Query) -> Vec<u8> {
        let mut reply = Reply::to(query);
        if !self.has(query) {
            return reply.missing();
        }
        if let Some(length) = query.label().strip_prefix("long-") {
            return reply.padded(length.parse().expect("a length"));
        }
        if query.kind == message::A {
            reply.add_address(self.answer);
        }

        reply.finish()
    }

    /// The delay of the answer; `None` if there is none.
    fn pause(&self, query: &Query) -> Option<Duration> {
        let label = query.label();
        if label.starts_with("silent") {
            return None;
        }
        let pause = label
            .strip_prefix("slow-")
            .and_then(|rest| rest.split('-').next())
            .and_then(|pause| pause.parse().ok());

        Some(Duration::from_millis(pause.unwrap_or_default()))
    }

    /// Six records in three messages.
    fn transfer(&self, query: &Query) -> Vec<Vec<u8>> {
        (0..3)
            .map(|number| {
                let mut reply = Reply::to(query);
                if number == 0 {
                    reply.add_authority();
                }
                reply.add_address(self.answer);
                if number == 1 {
                    reply.add_address(Ipv4Addr::new(192, 0, 2, 20));
                }
                if number == 2 {
                    reply.add_authority();
                }
                reply.finish()
            })
            .collect()
    }
}

/// Runs `work` after the pause, at once if it is zero.
fn after(pause: Duration, work: impl FnOnce() + Send + 'static) -> Option<thread::JoinHandle<()>> {
    if pause.is_zero() {
        work();
        return None;
    }

    Some(thread::spawn(move || {
        wait(pause);
        work();
    }))
}

fn wait(pause: Duration) {
    let pause = rustix::time::Timespec::try_from(pause).expect("short");
    let _ = rustix::event::poll(&mut [], Some(&pause));
}

fn spawn(work: impl FnOnce() + Send + 'static) {
    // Ends with the process.
    thread::spawn(work);
}
