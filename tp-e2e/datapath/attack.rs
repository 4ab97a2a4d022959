//! A session that misuses its descriptors, and its target: another user's server on the same
//! machine.

use std::{
    fs::File,
    io::{BufRead as _, IoSlice, IoSliceMut, Read as _, Write as _},
    mem::MaybeUninit,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    thread,
    time::Duration,
};

use hickory_proto::rr::RecordType;
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, SocketType, bind, connect, connect_unspec, getpeername,
        recvmsg, sendmsg, socket, sockopt,
    },
    time::Timespec,
};
use serde_json::{Value, json};

use crate::{
    far_side, names,
    packets::{self, Ends},
    root_client::RootClient,
    session::say,
    sys::{self, Departure},
};

const PATIENCE: Duration = Duration::from_secs(5);
const ATTEMPT: Duration = Duration::from_millis(500);

/// `SOCKET OPEN STEER NAME_SERVERS`: opens a bundle, with these fields of the request, and approves
/// nothing. Each line is an attack, or a request to forward.
pub(crate) fn run(words: &[&str]) {
    let [socket, open, steer, name_servers] = words else {
        panic!("rogue SOCKET OPEN STEER NAME_SERVERS");
    };
    let root = RootClient::connect(socket).expect("the root daemon listens");
    let mut open: Value = serde_json::from_str(open).expect("JSON");
    open["request"] = "open".into();
    let (reply, fds) = root.ask(&open, Some("/proc/self/ns/net"));
    assert_eq!(reply["reply"], "opened", "{reply}");
    let [listener, udp, tun, _, heartbeat] =
        <[OwnedFd; 5]>::try_from(fds).expect("five descriptors");
    let mut steer: Value = serde_json::from_str(steer).expect("JSON");
    steer["request"] = "steer".into();
    let servers: Value = serde_json::from_str(name_servers).expect("JSON");
    let servers = json!({"request": "name_servers", "servers": servers});
    for request in [steer, servers] {
        let (reply, _) = root.ask(&request, None);
        assert_eq!(reply["reply"], "done", "{reply}");
    }
    let host = reply["host_address"].as_str().expect("an address");
    let rogue = Rogue {
        host: host.parse().expect("an address"),
        listener,
        udp,
        tun: File::from(tun),
        heartbeat: sys::Heartbeat::map(&heartbeat),
    };
    say(&json!({"event": "ready", "bundle": reply}));
    for line in std::io::stdin().lock().lines() {
        let line = line.expect("input is text");
        rogue.heartbeat.set(sys::boot_time_ns());
        let words: Vec<&str> = line.split(' ').collect();
        say(&match words.as_slice() {
            ["alive"] => json!({"event": "obeyed"}),
            ["listener", alias, port] => rogue.turn_listener(address(alias), number(port)),
            ["pktinfo", alias, port] => rogue.send_from(address(alias), number(port)),
            ["datagram", source, port] => rogue.write_datagram(end(source), number(port), 1),
            ["answer", len] => rogue.answer(usize::from(number(len))),
            ["segment", source, port, flags] => {
                rogue.write_segment(end(source), number(port), flags)
            }
            ["unreachable", source, port] => rogue.write_unreachable(end(source), number(port)),
            _ => {
                let request = serde_json::from_str(&line).expect("a request");
                json!({"event": "reply", "reply": root.ask(&request, None).0})
            }
        });
    }
}

struct Rogue {
    host: Ipv4Addr,
    listener: OwnedFd,
    udp: OwnedFd,
    tun: File,
    heartbeat: sys::Heartbeat,
}

impl Rogue {
    /// Turns the listener's descriptor into a client inside the private namespace. Possible once.
    fn turn_listener(&self, alias: Ipv4Addr, port: u16) -> Value {
        connect_unspec(&self.listener).expect("a listener can be closed");
        bind(&self.listener, &SocketAddr::from((alias, 0))).expect("aliases are local there");
        let connected = match connect(&self.listener, &SocketAddr::from((self.host, port))) {
            Err(Errno::INPROGRESS) => {
                let mut fds = [PollFd::new(&self.listener, PollFlags::OUT)];
                let timeout = Timespec::try_from(ATTEMPT).expect("short");
                poll(&mut fds, Some(&timeout)).is_ok_and(|ready| ready > 0)
                    && sockopt::socket_error(&self.listener).is_ok_and(|error| error.is_ok())
            }
            result => result.is_ok(),
        };
        if connected {
            rustix::io::write(&self.listener, b"attack").expect("connected");
        }

        json!({"connected": connected})
    }

    fn send_from(&self, alias: Ipv4Addr, port: u16) -> Value {
        let departure = Departure {
            source: Some(alias),
            interface: 0,
        };
        let to = SocketAddrV4::new(self.host, port);

        json!({"sent": sys::send_with(&self.udp, departure, to, b"ping").is_ok()})
    }

    fn write(&self, packet: &[u8]) -> Value {
        let mut tun = &self.tun;
        tun.write_all(packet).expect("the TUN takes packets");

        json!({"event": "obeyed"})
    }

    fn ends(&self, source: ([u8; 4], u16), port: u16) -> Ends {
        Ends {
            source,
            destination: (self.host.octets(), port),
        }
    }

    fn write_datagram(&self, source: ([u8; 4], u16), port: u16, len: usize) -> Value {
        self.write(&packets::udp(self.ends(source, port), &vec![b'x'; len]))
    }

    fn write_segment(&self, source: ([u8; 4], u16), port: u16, flags: &str) -> Value {
        let flags = u8::from_str_radix(flags, 16).expect("hexadecimal");

        self.write(&packets::segment(self.ends(source, port), flags))
    }

    /// Reports a datagram from the host's port to `source` as unreachable.
    fn write_unreachable(&self, source: ([u8; 4], u16), port: u16) -> Value {
        let about = packets::udp(self.ends(source, port).reversed(), b"");

        self.write(&packets::unreachable(&about, 3))
    }

    /// Answers the workstation's next datagram in the destination's place, with so many bytes.
    fn answer(&self, len: usize) -> Value {
        let mut buffer = vec![0; 65536];
        let mut fds = [PollFd::new(&self.udp, PollFlags::IN)];
        let timeout = Timespec::try_from(PATIENCE).expect("short");
        poll(&mut fds, Some(&timeout)).expect("a socket can be polled");
        let datagram = sys::receive_datagram(&self.udp, &mut buffer).expect("a datagram");
        let ends = Ends {
            source: datagram.destination,
            destination: datagram.source,
        };
        self.write(&packets::udp(ends, &vec![b'x'; len]));

        json!({
            "alias": Ipv4Addr::from(datagram.destination.0).to_string(),
            "port": datagram.source.1,
        })
    }
}

/// A server on every address of the machine. Reports connections, datagrams and unreachable errors.
pub(crate) fn victim(port: &str) {
    let port = number(port);
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).expect("the port is free");
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).expect("the port is free");
    sys::set_ip_option(&socket, libc::IP_RECVERR, 1).expect("every socket may");
    say(&json!({"event": "serving"}));
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            let peer = stream.peer_addr().expect("connected");
            let mut bytes = [0; 16];
            let len = stream.read(&mut bytes).unwrap_or(0);
            let bytes = String::from_utf8_lossy(&bytes[..len]).into_owned();
            say(&json!({"heard": "tcp", "from": peer.to_string(), "bytes": bytes}));
        }
    });
    let mut buffer = [0; 2048];
    loop {
        match socket.recv_from(&mut buffer) {
            Ok((len, from)) => {
                let bytes = String::from_utf8_lossy(&buffer[..len]).into_owned();
                say(&json!({"heard": "udp", "from": from.to_string(), "bytes": bytes}));
            }
            Err(error) => say(&json!({"heard": "error", "error": error.to_string()})),
        }
    }
}

/// An honest client of [`victim`].
pub(crate) fn greet(target: &str) -> Value {
    let target: SocketAddr = target.parse().expect("an address");
    let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket can be bound");
    socket.send_to(b"greeting", target).expect("a server");
    let mut stream = TcpStream::connect(target).expect("a server");
    stream.write_all(b"greeting").expect("connected");

    json!({"event": "greeted"})
}

/// An honest client of [`wait`].
pub(crate) fn greet_by_datagram(target: &str) -> Value {
    let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket can be bound");
    socket.send_to(b"greeting", target).expect("somebody waits");

    json!({"event": "greeted"})
}

/// Waits for one datagram.
pub(crate) fn wait(own: &str) -> Value {
    let socket = UdpSocket::bind(own).expect("the port is free");
    socket.set_read_timeout(Some(PATIENCE)).expect("a bound");
    say(&json!({"event": "waiting"}));
    let mut buffer = [0; 64];
    let (len, from) = socket.recv_from(&mut buffer).expect("a datagram");

    json!({"from": from.to_string(), "bytes": String::from_utf8_lossy(&buffer[..len])})
}

/// Receives a socket at a path and reports its peer; for a datagram socket also the next datagram.
pub(crate) fn take(path: &str) -> Value {
    let listener = UnixListener::bind(path).expect("the path is free");
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o666))
        .expect("own file");
    say(&json!({"event": "serving"}));
    let (stream, _) = listener.accept().expect("a connection");
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let mut slices = [IoSliceMut::new(&mut byte)];
    recvmsg(&stream, &mut slices, &mut control, RecvFlags::CMSG_CLOEXEC).expect("a message");
    let passed = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    let passed = passed.expect("a descriptor");
    let peer = getpeername(&passed)
        .ok()
        .flatten()
        .and_then(|peer| SocketAddr::try_from(peer).ok());
    let from = sockopt::socket_type(&passed)
        .is_ok_and(|kind| kind == SocketType::DGRAM)
        .then(|| receive_from(UdpSocket::from(passed)));

    json!({
        "peer": peer.map(|peer| peer.to_string()),
        "from": from,
        "uid": rustix::process::getuid().as_raw(),
    })
}

fn receive_from(socket: UdpSocket) -> String {
    socket.set_read_timeout(Some(PATIENCE)).expect("a bound");
    let mut buffer = [0; 2048];

    socket
        .recv_from(&mut buffer)
        .map_or_else(|error| error.to_string(), |(_, from)| from.to_string())
}

/// Passes a steered socket to the listener at a path: a connection, or a socket that has sent a
/// datagram.
pub(crate) fn give(kind: &str, target: &str, path: &str) -> Value {
    let target: SocketAddr = target.parse().expect("an address");
    let passed: OwnedFd = if kind == "tcp" {
        TcpStream::connect(target)
            .expect("the session approves")
            .into()
    } else {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket can be bound");
        socket
            .send_to(&names::query(far_side::WEB_NAME, RecordType::A), target)
            .expect("the session takes it");
        socket.into()
    };
    let stream = UnixStream::connect(path).expect("somebody listens");
    let fds = [passed.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    let slices = [IoSlice::new(b"x")];
    sendmsg(&stream, &slices, &mut control, SendFlags::NOSIGNAL).expect("somebody listens");

    json!({"event": "given"})
}

/// Sends one raw TCP segment, which needs root.
pub(crate) fn raw_segment(source: &str, destination: &str, flags: &str) -> Value {
    let socket = socket(
        AddressFamily::INET,
        SocketType::RAW,
        Some(rustix::net::ipproto::RAW),
    )
    .expect("root may");
    let (source, destination) = (end(source), end(destination));
    let ends = Ends {
        source,
        destination,
    };
    let flags = u8::from_str_radix(flags, 16).expect("hexadecimal");
    let packet = packets::segment(ends, flags);
    let to = SocketAddrV4::new(destination.0.into(), 0);
    let sent = rustix::net::sendto(&socket, &packet, SendFlags::empty(), &to).is_ok();

    json!({"sent": sent})
}

fn number(text: &str) -> u16 {
    text.parse().expect("a number")
}

fn address(text: &str) -> Ipv4Addr {
    text.parse().expect("an address")
}

fn end(text: &str) -> ([u8; 4], u16) {
    let end: SocketAddrV4 = text.parse().expect("an address and a port");

    (end.ip().octets(), end.port())
}
