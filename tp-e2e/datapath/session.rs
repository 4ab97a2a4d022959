//! A session that needs no cluster. Its policy is the destination port: see [`decide`].

use std::{
    fs::File,
    io::{BufRead, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::{OFlags, fcntl_getfl},
    io::fcntl_getfd,
    net::sockopt::set_socket_linger,
    time::{ClockId, Timespec, clock_gettime},
};
use serde_json::{Value, json};

use crate::{
    packets::{self, Ends},
    root_client::RootClient,
    sys::{self, AliasTable, Heartbeat},
};

const BEAT: Duration = Duration::from_millis(200);
const DELAY: Duration = Duration::from_millis(200);

/// What becomes of a held SYN.
#[derive(Clone, Copy, Debug)]
enum Decision {
    Approve,
    Reset,
    Unreachable(u8),
    Silence,
}

fn decide(port: u16) -> (Decision, Duration) {
    match port {
        7001 => (Decision::Reset, Duration::ZERO),
        7002 => (Decision::Reset, DELAY),
        7003 => (Decision::Unreachable(1), Duration::ZERO),
        7004 => (Decision::Silence, Duration::ZERO),
        7005 => (Decision::Approve, DELAY),
        7006 => (Decision::Unreachable(1), DELAY),
        7009 => (Decision::Unreachable(0), Duration::ZERO),
        _ => (Decision::Approve, Duration::ZERO),
    }
}

/// `SOCKET NETNS SCOPE STEER NAME_SERVERS`: all but the first two are JSON.
pub(crate) fn run(words: &[&str]) {
    let [socket, netns, scope, steer, name_servers] = words else {
        panic!("session SOCKET NETNS SCOPE STEER NAME_SERVERS");
    };
    let json = |text: &str| serde_json::from_str::<Value>(text).expect("JSON");
    let root = match RootClient::connect(socket) {
        Ok(root) => root,
        Err(error) => return say(&json!({"event": "no_connection", "error": error.to_string()})),
    };
    let netns = (!netns.is_empty()).then_some(*netns);
    let open = json!({"request": "open", "scope": json(scope)});
    let (reply, fds) = root.ask(&open, netns);
    if reply["reply"] != "opened" {
        return say(&json!({"event": "refused", "reply": reply}));
    }
    let [listener, udp, tun, alias_table, heartbeat] =
        <[OwnedFd; 5]>::try_from(fds).expect("five descriptors");
    let facts = facts(&[&listener, &udp, &tun, &alias_table, &heartbeat]);

    let base: Ipv4Addr = reply["alias_base"]
        .as_str()
        .and_then(|base| base.parse().ok())
        .expect("an address");
    let count = reply["alias_count"].as_u64().expect("a count");
    let world = Arc::new(World {
        aliases: AliasTable::map(&alias_table, usize::try_from(count).expect("small")),
        base: u32::from(base),
        tun: Mutex::new(File::from(
            tun.try_clone().expect("a descriptor can be copied"),
        )),
    });
    let is_beating = Arc::new(AtomicBool::new(true));
    beat(Heartbeat::map(&heartbeat), Arc::clone(&is_beating));
    for request in [
        merged("steer", json(steer)),
        json!({"request": "name_servers", "servers": json(name_servers)}),
    ] {
        let (reply, _) = root.ask(&request, None);
        assert_eq!(reply["reply"], "done", "{reply}");
    }
    spawn({
        let world = Arc::clone(&world);
        move || hold(&world, File::from(tun))
    });
    spawn({
        let world = Arc::clone(&world);
        move || accept(&world, TcpListener::from(listener))
    });
    spawn({
        let world = Arc::clone(&world);
        move || answer_datagrams(&world, &udp)
    });
    let reply_host = reply["host_address"]
        .as_str()
        .expect("an address")
        .to_owned();
    say(&json!({"event": "ready", "bundle": reply, "facts": facts}));
    let host: Ipv4Addr = reply_host.parse().expect("an address");
    obey(&root, &is_beating, &world, host.octets());
}

/// Lines of the test's: "freeze", "thaw", "inject", "wait" (for the end of the root daemon's connection), or
/// a request to pass on.
fn obey(root: &RootClient, is_beating: &AtomicBool, world: &World, host: [u8; 4]) {
    for line in std::io::stdin().lock().lines() {
        match line.expect("input is text").as_str() {
            "freeze" => is_beating.store(false, Ordering::Relaxed),
            "thaw" => is_beating.store(true, Ordering::Relaxed),
            "inject" => {
                for packet in forbidden(world.base, host) {
                    world.write(&packet);
                }
            }
            "wait" => {
                root.wait_for_end();
                return;
            }
            request => {
                let request = serde_json::from_str(request).expect("a request");
                let (reply, _) = root.ask(&request, None);
                say(&json!({"event": "reply", "reply": reply}));
                continue;
            }
        }
        say(&json!({"event": "obeyed"}));
    }
}

/// Packets that a session must not get out of its namespace.
fn forbidden(base: u32, host: [u8; 4]) -> Vec<Vec<u8>> {
    let alias = ((base + 300).to_be_bytes(), 80);
    let host = (host, 40000);
    let stranger = ([9, 9, 9, 9], 80);
    let ends = |source, destination| Ends {
        source,
        destination,
    };
    let about_a_stranger = packets::udp(ends(host, stranger), b"");
    let mut wrong_about = packets::unreachable(&about_a_stranger, 1);
    // From an alias, but about a connection that is none of the session's.
    packets::set_source(&mut wrong_about, alias.0);

    vec![
        packets::udp(ends(stranger, host), b"x"),
        packets::udp(ends(alias, stranger), b"x"),
        wrong_about,
        packets::segment(ends(alias, host), 0x10),
        packets::segment(ends(stranger, alias), 0x02),
    ]
}

/// What tests want to know about the descriptors.
fn facts(fds: &[&OwnedFd; 5]) -> Value {
    let close_on_exec = fds
        .iter()
        .all(|fd| fcntl_getfd(fd).is_ok_and(|flags| flags.contains(rustix::io::FdFlags::CLOEXEC)));
    let nonblocking = fds[..3]
        .iter()
        .all(|fd| fcntl_getfl(fd).is_ok_and(|flags| flags.contains(OFlags::NONBLOCK)));

    json!({
        "close_on_exec": close_on_exec,
        "nonblocking": nonblocking,
        "alias_table_is_writable": sys::is_writable(fds[3]),
    })
}

struct World {
    aliases: AliasTable,
    base: u32,
    tun: Mutex<File>,
}

impl World {
    fn real(&self, (alias, port): ([u8; 4], u16)) -> String {
        let index = u32::from_be_bytes(alias) - self.base;
        let real = self.aliases.real(usize::try_from(index).expect("small"));

        SocketAddr::from((real, port)).to_string()
    }

    fn write(&self, packet: &[u8]) {
        let mut tun = self.tun.lock().expect("no thread panics");
        tun.write_all(packet).expect("the TUN takes packets");
    }
}

fn beat(heartbeat: Heartbeat, is_beating: Arc<AtomicBool>) {
    spawn(move || {
        loop {
            if is_beating.load(Ordering::Relaxed) {
                let now = clock_gettime(ClockId::Boottime);
                let seconds = u64::try_from(now.tv_sec).expect("time is positive");
                let rest = u64::try_from(now.tv_nsec).expect("time is positive");
                heartbeat.set(seconds * 1_000_000_000 + rest);
            }
            wait(BEAT);
        }
    });
}

/// Reads SYNs and acts on them when they are due. A repeated SYN is decided once.
fn hold(world: &World, mut tun: File) {
    struct Held {
        syn: Vec<u8>,
        decision: Decision,
        due: Instant,
    }
    let mut held: Vec<Held> = Vec::new();
    let mut buffer = vec![0; 65536];
    loop {
        let next = held.iter().map(|held| held.due).min();
        let timeout = next.map(|due| due.saturating_duration_since(Instant::now()));
        wait_readable(&tun, timeout);
        while let Ok(len) = tun.read(&mut buffer) {
            let packet = &buffer[..len];
            if len < 40 || packet[9] != 6 || packet[33] & 0x12 != 2 {
                continue;
            }
            if held.iter().any(|held| held.syn[12..28] == packet[12..28]) {
                continue;
            }
            let (decision, delay) = decide(Ends::of(packet).destination.1);
            if delay.is_zero() {
                act(world, decision, packet);
            } else {
                held.push(Held {
                    syn: packet.to_vec(),
                    decision,
                    due: Instant::now() + delay,
                });
            }
        }
        let now = Instant::now();
        let (due, rest) = held.into_iter().partition(|held| held.due <= now);
        held = rest;
        let due: Vec<Held> = due;
        for one in due {
            act(world, one.decision, &one.syn);
        }
    }
}

fn act(world: &World, decision: Decision, syn: &[u8]) {
    match decision {
        Decision::Approve => world.write(syn),
        Decision::Reset => world.write(&packets::reset(syn)),
        Decision::Unreachable(code) => world.write(&packets::unreachable(syn, code)),
        Decision::Silence => {}
    }
}

/// Greets every connection with the address that it was meant for, then echoes.
fn accept(world: &World, listener: TcpListener) {
    loop {
        wait_readable(&listener, None);
        let Ok((stream, _)) = listener.accept() else {
            continue;
        };
        stream.set_nonblocking(false).expect("a socket may block");
        // An orphan would keep the namespace, and with it the veth, for minutes.
        set_socket_linger(&stream, Some(Duration::ZERO)).expect("sockets can linger");
        let SocketAddr::V4(alias) = stream.local_addr().expect("a name") else {
            continue;
        };
        let real = world.real((alias.ip().octets(), alias.port()));
        spawn(move || greet_and_echo(stream, &real));
    }
}

fn greet_and_echo(mut stream: TcpStream, real: &str) {
    if writeln!(stream, "{real}").is_err() {
        return;
    }
    let mut copy = stream.try_clone().expect("a socket can be copied");
    // The application may end at any moment.
    let _ = std::io::copy(&mut copy, &mut stream);
}

/// Answers every datagram with the address that it was meant for and itself.
fn answer_datagrams(world: &World, socket: &OwnedFd) {
    let mut buffer = vec![0; 65536];
    loop {
        wait_readable(socket, None);
        let Some(datagram) = sys::receive_datagram(socket, &mut buffer) else {
            continue;
        };
        let mut answer = world.real(datagram.destination).into_bytes();
        answer.push(b'|');
        answer.extend_from_slice(&buffer[..datagram.len]);
        let ends = Ends {
            source: datagram.destination,
            destination: datagram.source,
        };
        world.write(&packets::udp(ends, &answer));
    }
}

fn merged(request: &str, mut value: Value) -> Value {
    value["request"] = request.into();
    value
}

fn wait_readable(fd: impl AsFd, timeout: Option<Duration>) {
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    let timeout = timeout.map(|timeout| Timespec::try_from(timeout).expect("short"));
    // An interruption makes the caller look again.
    let _ = poll(&mut fds, timeout.as_ref());
}

fn wait(duration: Duration) {
    let timeout = Timespec::try_from(duration).expect("short");
    let _ = poll(&mut [], Some(&timeout));
}

fn spawn(work: impl FnOnce() + Send + 'static) {
    // Ends with the process.
    thread::spawn(work);
}

pub(crate) fn say(event: &Value) {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{event}").expect("the test listens");
    stdout.flush().expect("the test listens");
}
