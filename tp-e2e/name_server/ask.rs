//! A resolver that reports each answer.

use std::{
    io::{self, Read},
    net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpStream, UdpSocket},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    message::{A, Query},
    read_message, wait, write_message,
};

const TIMEOUT: Duration = Duration::from_secs(5);

/// `WAY [half-close] [every=MS] [pace=MS] [timeout=MS] NAME…`, where the way is `tcp`, `connected` or
/// `unconnected`. Reports the answers in the order in which they came, and how it ended: `all`
/// answers are there, `timeout`, `fin`, or the name of an error.
pub(crate) fn ask(server: &str, words: &[&str]) -> Value {
    let (way, words) = words.split_first().expect("a way to ask");
    let number = |name: &str| {
        words
            .iter()
            .find_map(|word| word.strip_prefix(name))
            .map(|value| Duration::from_millis(value.parse().expect("milliseconds")))
    };
    let asking = Asking {
        server: SocketAddrV4::new(server.parse().expect("an address"), 53),
        names: words
            .iter()
            .filter(|word| !word.contains('=') && **word != "half-close")
            .copied()
            .collect(),
        is_half_closed: words.contains(&"half-close"),
        every: number("every="),
        pace: number("pace="),
        timeout: number("timeout=").unwrap_or(TIMEOUT),
        begin: Instant::now(),
    };
    let mut answers = Vec::new();
    let asked = match *way {
        "tcp" => asking.over_tcp(&mut answers),
        "connected" => asking.over_udp(true, &mut answers),
        "unconnected" => asking.over_udp(false, &mut answers),
        other => panic!("{other} is no way to ask"),
    };
    let end = match asked {
        Ok(end) => end.to_owned(),
        Err(error) => name_of(&error),
    };

    json!({
        "answers": answers,
        "end": end,
        "ms": milliseconds(asking.begin),
    })
}

struct Asking<'a> {
    server: SocketAddrV4,
    names: Vec<&'a str>,
    is_half_closed: bool,
    /// The pause after an answer, before the next query.
    every: Option<Duration>,
    /// The pause between queries, without waiting for answers.
    pace: Option<Duration>,
    timeout: Duration,
    begin: Instant,
}

impl Asking<'_> {
    fn queries(&self) -> impl Iterator<Item = Vec<u8>> {
        self.names
            .iter()
            .zip(0..)
            .map(|(name, id)| Query::message(id, name, A))
    }

    fn over_tcp(&self, answers: &mut Vec<Value>) -> io::Result<&'static str> {
        let mut stream = TcpStream::connect_timeout(&self.server.into(), self.timeout)?;
        stream.set_read_timeout(Some(self.timeout))?;
        let mut all = Vec::new();
        for query in self.queries() {
            write_message(&mut all, &query)?;
        }
        io::Write::write_all(&mut stream, &all)?;
        if self.is_half_closed {
            stream.shutdown(Shutdown::Write)?;
        }
        while answers.len() < self.names.len() {
            match read_message(&mut stream)? {
                Some(message) => answers.push(self.seen(&message)),
                None => return Ok("fin"),
            }
        }
        if self.is_half_closed && stream.read(&mut [0])? == 0 {
            return Ok("fin");
        }

        Ok("all")
    }

    fn over_udp(&self, is_connected: bool, answers: &mut Vec<Value>) -> io::Result<&'static str> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.set_read_timeout(Some(self.timeout))?;
        if is_connected {
            socket.connect(self.server)?;
        }
        let send = |query: &[u8]| {
            if is_connected {
                socket.send(query)
            } else {
                socket.send_to(query, self.server)
            }
        };
        let mut buffer = vec![0; 65_536];
        let mut receive = |answers: &mut Vec<Value>| {
            let (length, from) = socket.recv_from(&mut buffer)?;
            assert_eq!(from, self.server.into(), "answers come from who was asked");
            answers.push(self.seen(&buffer[..length]));
            io::Result::Ok(())
        };
        if let Some(pause) = self.every {
            // One query at a time, each with its duration.
            for query in self.queries() {
                send(&query)?;
                receive(answers)?;
                wait(pause);
            }
            return Ok("all");
        }
        for query in self.queries() {
            send(&query)?;
            if let Some(pace) = self.pace {
                wait(pace);
            }
        }
        while answers.len() < self.names.len() {
            receive(answers)?;
        }

        Ok("all")
    }

    fn seen(&self, message: &[u8]) -> Value {
        let id = u16::from_be_bytes([message[0], message[1]]);
        let answers = u16::from_be_bytes([message[6], message[7]]);
        let address = (answers > 0)
            .then(|| message.last_chunk::<4>())
            .flatten()
            .map(|octets| Ipv4Addr::from(*octets).to_string());

        json!({
            "name": self.names.get(usize::from(id)),
            "rcode": message[3] & 0x0f,
            "address": address,
            "length": message.len(),
            "ms": milliseconds(self.begin),
        })
    }
}

fn milliseconds(begin: Instant) -> u64 {
    u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX)
}

fn name_of(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => "timeout".to_owned(),
        io::ErrorKind::UnexpectedEof => "cut".to_owned(),
        kind => kind.to_string(),
    }
}
