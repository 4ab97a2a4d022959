//! Resolvers and name servers on port 53.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd as _,
    thread,
    time::{Duration, Instant},
};

use hickory_proto::{
    op::{Message, Query, ResponseCode},
    rr::{Name, RecordType},
};
use rustix::net::{SendFlags, sendto};
use serde_json::{Value, json};

use crate::{
    far_side::answer,
    session::say,
    socket::{PATIENCE, canonical, errno},
    sys,
};

/// The answer of the machine's own server to every name.
const OWN: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 53);
const ID: u16 = 0x7470;

/// `SERVER NAME [TYPE] [FLAG...]`: asks one question.
pub(crate) fn ask(server: &str, name: &str, flags: &[&str]) -> Value {
    let mut question = Question {
        server: server.parse().expect("an address"),
        kind: RecordType::A,
        timeout: PATIENCE,
        way: Way::Unconnected,
    };
    for flag in flags {
        match flag.split_once('=') {
            Some(("timeout", ms)) => {
                question.timeout = Duration::from_millis(ms.parse().expect("a number"));
            }
            Some(("type", kind)) => question.kind = kind.parse().expect("a type of records"),
            Some(("way", way)) => question.way = Way::parse(way),
            _ => panic!("no such flag: {flag}"),
        }
    }
    let begin = Instant::now();
    let asked = match question.way {
        Way::Tcp => question.by_tcp(name),
        _ => question.by_udp(name),
    };
    let elapsed_ms = begin.elapsed().as_millis();
    match asked {
        Err(error) => json!({"errno": errno(&error), "elapsed_ms": elapsed_ms}),
        Ok((message, from, peer)) => {
            let mut seen = describe(&message);
            seen["errno"] = Value::Null;
            seen["from"] = canonical(from).into();
            seen["peer"] = peer.map(canonical).into();
            seen["elapsed_ms"] = u64::try_from(elapsed_ms).expect("short").into();
            seen
        }
    }
}

/// The socket of the query.
enum Way {
    Unconnected,
    Connected,
    /// An IPv6 socket and the server's mapped address.
    Mapped,
    /// An IPv6 socket and the server's IPv4 address as it is.
    Inet,
    /// An IPv4 socket and an address of the family AF_UNSPEC, which Linux takes for IPv4.
    Unspec,
    Tcp,
}

impl Way {
    fn parse(word: &str) -> Self {
        match word {
            "unconnected" => Self::Unconnected,
            "connected" => Self::Connected,
            "mapped" => Self::Mapped,
            "inet" => Self::Inet,
            "unspec" => Self::Unspec,
            "tcp" => Self::Tcp,
            _ => panic!("no such way: {word}"),
        }
    }
}

struct Question {
    server: SocketAddr,
    kind: RecordType,
    timeout: Duration,
    way: Way,
}

type Asked = std::io::Result<(Vec<u8>, SocketAddr, Option<SocketAddr>)>;

impl Question {
    fn by_udp(&self, name: &str) -> Asked {
        let own = match self.way {
            Way::Mapped | Way::Inet => "[::]:0",
            _ => "0.0.0.0:0",
        };
        let socket = UdpSocket::bind(own)?;
        socket.set_read_timeout(Some(self.timeout))?;
        let bytes = query(name, self.kind);
        match self.way {
            Way::Connected => {
                socket.connect(self.server)?;
                socket.send(&bytes)?;
            }
            Way::Mapped => {
                let SocketAddr::V4(v4) = self.server else {
                    panic!("an IPv4 address");
                };
                socket.send_to(&bytes, (v4.ip().to_ipv6_mapped(), v4.port()))?;
            }
            Way::Inet => {
                sendto(socket.as_fd(), &bytes, SendFlags::empty(), &self.server)?;
            }
            Way::Unspec => {
                let SocketAddr::V4(v4) = self.server else {
                    panic!("an IPv4 address");
                };
                sys::send_to_unspec(&socket, v4, &bytes)?;
            }
            Way::Unconnected | Way::Tcp => {
                socket.send_to(&bytes, self.server)?;
            }
        }
        let mut buffer = vec![0; 65536];
        let (length, from) = socket.recv_from(&mut buffer)?;
        buffer.truncate(length);

        Ok((buffer, from, socket.peer_addr().ok()))
    }

    fn by_tcp(&self, name: &str) -> Asked {
        let mut stream = TcpStream::connect(self.server)?;
        stream.set_read_timeout(Some(self.timeout))?;
        stream.write_all(&framed(&query(name, self.kind)))?;
        let buffer = read_framed(&mut stream)?;
        let peer = stream.peer_addr()?;

        Ok((buffer, peer, Some(peer)))
    }
}

/// Sends a query, and reads the answer when told to.
pub(crate) fn late(server: &str, name: &str) {
    let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket can be bound");
    socket.set_read_timeout(Some(PATIENCE)).expect("a bound");
    socket
        .send_to(&query(name, RecordType::A), server)
        .expect("the session takes it");
    say(&json!({"event": "sent"}));
    let mut line = String::new();
    std::io::stdin()
        .read_line(&mut line)
        .expect("input is text");
    let mut buffer = [0; 2048];
    let (length, from) = socket.recv_from(&mut buffer).expect("an answer");
    let mut seen = describe(&buffer[..length]);
    seen["from"] = canonical(from).into();
    say(&seen);
}

/// A name server of the machine: every name is [`OWN`], and other datagrams are echoed. Reports the
/// source of each datagram.
pub(crate) fn serve(own: &str) {
    let socket = UdpSocket::bind(own).expect("a socket can be bound");
    let listener = TcpListener::bind(own).expect("a socket can be bound");
    // Ends with the process.
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // The client may be gone.
            let _ = serve_stream(stream);
        }
    });
    say(&json!({"event": "serving"}));
    let mut buffer = [0; 2048];
    while let Ok((length, from)) = socket.recv_from(&mut buffer) {
        let received = &buffer[..length];
        say(&json!({"heard": String::from_utf8_lossy(received), "from": from.to_string()}));
        // The client may be gone.
        let _ = socket.send_to(&reply(received), from);
    }
}

fn serve_stream(mut stream: TcpStream) -> std::io::Result<()> {
    loop {
        let received = read_framed(&mut stream)?;
        stream.write_all(&framed(&reply(&received)))?;
    }
}

fn reply(received: &[u8]) -> Vec<u8> {
    Message::from_vec(received).map_or_else(
        |_| [received, b"|own"].concat(),
        |query| answer(&query, ResponseCode::NoError, Some(OWN)),
    )
}

fn framed(message: &[u8]) -> Vec<u8> {
    let length = u16::try_from(message.len()).expect("a small message");

    [&length.to_be_bytes(), message].concat()
}

fn read_framed(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut message)?;

    Ok(message)
}

pub(crate) fn query(name: &str, kind: RecordType) -> Vec<u8> {
    let mut message = Message::query();
    message.metadata.id = ID;
    message.metadata.recursion_desired = true;
    let name = Name::from_ascii(name).expect("a name");
    message.add_query(Query::query(name, kind));

    message.to_vec().expect("a small message")
}

/// Describes a message; other bytes than DNS as they are.
pub(crate) fn describe(bytes: &[u8]) -> Value {
    let Ok(message) = Message::from_vec(bytes) else {
        return json!({"answer": String::from_utf8_lossy(bytes)});
    };
    let addresses: Vec<String> = message
        .answers
        .iter()
        .filter_map(|record| record.data.ip_addr())
        .map(|address| address.to_string())
        .collect();

    json!({
        "id_is_right": message.metadata.id == ID,
        "code": message.metadata.response_code.to_str(),
        "addresses": addresses,
    })
}
