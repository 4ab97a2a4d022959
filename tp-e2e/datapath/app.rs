//! Applications: each does one thing with sockets and says what came of it.

use std::{
    io::{BufRead, BufReader, Read},
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6, TcpStream, UdpSocket},
    os::fd::{AsFd, OwnedFd},
    time::{Duration, Instant},
};

use hickory_proto::rr::RecordType;
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    net::{
        AddressFamily, SendFlags, SocketFlags, SocketType, bind, connect, connect_unspec,
        getpeername, getsockname, ipproto, sendto, socket_with, sockopt,
    },
    time::Timespec,
};
use serde_json::{Value, json};

use crate::{
    attack, credentials, crowd, names,
    session::say,
    sys::{self, Departure},
};

pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

pub(crate) fn run(words: &[&str]) {
    let event = match words {
        ["connect", target] => tcp(&options(), target),
        ["connect", target, flags @ ..] => tcp(&parse(flags), target),
        ["udp", target, flags @ ..] => udp(&parse(flags), target),
        ["drain", target] => drain(target),
        ["hold", target] => return hold(target),
        ["crowd", first, count] => return crowd::hold(first, count.parse().expect("a number")),
        ["dns", server, name, flags @ ..] => names::ask(server, name, flags),
        ["late", server, name] => return names::late(server, name),
        ["bench", target, count] => crowd::bench(target, count.parse().expect("a number")),
        ["many", first, count, flags @ ..] => {
            crowd::visit(&parse(flags), first, count.parse().expect("a number"))
        }
        ["serve", own] => return names::serve(own),
        ["victim", port] => return attack::victim(port),
        ["greet", target] => attack::greet(target),
        ["greet-udp", target] => attack::greet_by_datagram(target),
        ["wait", own] => attack::wait(own),
        ["take", path] => attack::take(path),
        ["give", kind, target, path] => attack::give(kind, target, path),
        ["segment", from, to, flags] => attack::raw_segment(from, to, flags),
        ["pass", target, program] => credentials::pass(target, program),
        ["inherit"] => credentials::inherit(),
        // A program with privileges that has laid them down for a while.
        ["dropped", rest @ ..] => {
            sys::lay_down_ids();
            return run(rest);
        }
        ["in-roots-user-namespace", uid, rest @ ..] => {
            return credentials::run_in_roots_user_namespace(uid, rest);
        }
        ["unshared", rest @ ..] => return credentials::run_unshared(rest),
        ["before-setuid", uid, target] => {
            credentials::connect_after_setuid(uid.parse().expect("a number"), target)
        }
        _ => panic!("no such application: {words:?}"),
    };
    say(&event);
}

/// How an application uses its socket.
pub(crate) struct Options {
    is_nonblocking: bool,
    is_mapped: bool,
    is_connected: bool,
    kind: Kind,
    bind: Option<Ipv4Addr>,
    /// SO_BINDTODEVICE.
    device: Option<String>,
    /// IP_PKTINFO.
    departure: Option<Departure>,
    /// IP_UNICAST_IF.
    unicast_interface: Option<u32>,
    /// TCP_SYNCNT.
    retries: Option<u32>,
    /// What a datagram asks for, instead of saying "ping".
    name: Option<String>,
    timeout: Duration,
}

/// Ways to make a TCP connection.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Plain,
    /// MPTCP, which falls back where the other end has none.
    Multipath,
    /// The first write connects (`MSG_FASTOPEN`).
    FastOpen,
    /// Connects, disconnects by AF_UNSPEC, and connects again.
    Again,
}

fn options() -> Options {
    Options {
        is_nonblocking: false,
        is_mapped: false,
        is_connected: false,
        kind: Kind::Plain,
        bind: None,
        device: None,
        departure: None,
        unicast_interface: None,
        retries: None,
        name: None,
        timeout: PATIENCE,
    }
}

fn parse(flags: &[&str]) -> Options {
    let mut options = options();
    for flag in flags {
        match flag.split_once('=') {
            None if *flag == "nonblocking" => options.is_nonblocking = true,
            None if *flag == "mapped" => options.is_mapped = true,
            None if *flag == "connected" => options.is_connected = true,
            None if *flag == "mptcp" => options.kind = Kind::Multipath,
            None if *flag == "fastopen" => options.kind = Kind::FastOpen,
            None if *flag == "again" => options.kind = Kind::Again,
            Some(("bind", address)) => options.bind = Some(address.parse().expect("an address")),
            Some(("device", name)) => options.device = Some((*name).to_owned()),
            Some(("source", address)) => {
                options.departure.get_or_insert_default().source =
                    Some(address.parse().expect("an address"));
            }
            Some(("interface", index)) => {
                options.departure.get_or_insert_default().interface =
                    index.parse().expect("a number");
            }
            Some(("unicast-interface", index)) => {
                options.unicast_interface = Some(index.parse().expect("a number"));
            }
            Some(("retries", count)) => options.retries = Some(count.parse().expect("a number")),
            Some(("name", name)) => options.name = Some((*name).to_owned()),
            Some(("timeout", ms)) => {
                options.timeout = Duration::from_millis(ms.parse().expect("a number"));
            }
            _ => panic!("no such flag: {flag}"),
        }
    }

    options
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

/// Why there is no connection.
#[derive(PartialEq, Eq)]
pub(crate) enum Failed {
    Kernel(Errno),
    /// The kernel was still trying when [`Options::timeout`] had passed. An ETIMEDOUT to whoever
    /// asks, as nothing has come by then.
    OwnBound,
}

impl Failed {
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Kernel(errno) => name(*errno),
            Self::OwnBound => name(Errno::TIMEDOUT),
        }
    }
}

impl From<Errno> for Failed {
    fn from(errno: Errno) -> Self {
        Self::Kernel(errno)
    }
}

pub(crate) fn open(options: &Options, target: SocketAddr) -> Result<OwnedFd, Failed> {
    let family = if target.is_ipv6() {
        AddressFamily::INET6
    } else {
        AddressFamily::INET
    };
    let mut flags = SocketFlags::CLOEXEC;
    if options.is_nonblocking {
        flags |= SocketFlags::NONBLOCK;
    }
    let protocol = (options.kind == Kind::Multipath).then_some(ipproto::MPTCP);
    let socket = socket_with(family, SocketType::STREAM, flags, protocol)?;
    if let Some(address) = options.bind {
        let address = if options.is_mapped {
            IpAddr::from(address.to_ipv6_mapped())
        } else {
            address.into()
        };
        bind(&socket, &SocketAddr::from((address, 0)))?;
    }
    if let Some(device) = &options.device {
        sys::bind_to_device(&socket, device).map_err(|error| by_the_kernel(&error))?;
    }
    if let Some(retries) = options.retries {
        sys::set_syn_retries(&socket, retries).map_err(|error| by_the_kernel(&error))?;
    }
    if !options.is_nonblocking {
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(options.timeout))?;
    }
    match options.kind {
        Kind::Plain | Kind::Multipath => establish(options, &socket, target)?,
        Kind::FastOpen => {
            let flag = SendFlags::from_bits_retain(libc::MSG_FASTOPEN.cast_unsigned());
            // Comes back behind the greeting.
            sendto(&socket, b"first\n", flag, &target)?;
        }
        Kind::Again => {
            establish(options, &socket, target)?;
            connect_unspec(&socket)?;
            establish(options, &socket, target)?;
        }
    }

    Ok(socket)
}

fn by_the_kernel(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).expect("the kernel says why")
}

fn establish(options: &Options, socket: &OwnedFd, target: SocketAddr) -> Result<(), Failed> {
    match connect(socket, &target) {
        Err(Errno::INPROGRESS) if options.is_nonblocking => {
            let timeout = Timespec::try_from(options.timeout).expect("short");
            let mut fds = [PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::OUT)];
            if poll(&mut fds, Some(&timeout))? == 0 {
                return Err(Failed::OwnBound);
            }
            sockopt::socket_error(socket)??;
            Ok(())
        }
        // What a blocking connect says when its own bound has passed.
        Err(Errno::INPROGRESS) => Err(Failed::OwnBound),
        result => Ok(result?),
    }
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

/// Connects, reads to the end, and reports how it came.
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

/// Connects, says so, and reports how the connection ends.
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

fn destination(options: &Options, target: &str) -> SocketAddr {
    let target: SocketAddr = target.parse().expect("an address");
    match (options.is_mapped, target) {
        (true, SocketAddr::V4(v4)) => {
            SocketAddrV6::new(v4.ip().to_ipv6_mapped(), v4.port(), 0, 0).into()
        }
        _ => target,
    }
}

pub(crate) fn canonical(address: SocketAddr) -> String {
    let ip: IpAddr = address.ip().to_canonical();

    SocketAddr::new(ip, address.port()).to_string()
}

pub(crate) fn errno(error: &std::io::Error) -> String {
    error.raw_os_error().map_or_else(
        || error.to_string(),
        |code| name(Errno::from_raw_os_error(code)),
    )
}

pub(crate) fn name(errno: Errno) -> String {
    let name = match errno {
        Errno::CONNREFUSED => "ECONNREFUSED",
        Errno::HOSTUNREACH => "EHOSTUNREACH",
        Errno::NETUNREACH => "ENETUNREACH",
        Errno::TIMEDOUT => "ETIMEDOUT",
        Errno::AGAIN => "EAGAIN",
        Errno::PERM => "EPERM",
        Errno::ACCESS => "EACCES",
        Errno::CONNABORTED => "ECONNABORTED",
        Errno::CONNRESET => "ECONNRESET",
        other => return format!("{other:?}"),
    };

    name.to_owned()
}
