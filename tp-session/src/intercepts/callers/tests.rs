//! Real sockets and processes of this machine.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv6Addr, SocketAddrV4, TcpListener, TcpStream},
    os::fd::OwnedFd,
    process::{Child, Command, Stdio},
};

use socket2::{Domain, Socket, Type};

use super::*;

/// Connects to the first address, and keeps the connection until its input ends.
const CALLER: &str = "import socket, sys\n\
                      call = socket.create_connection((sys.argv[1], int(sys.argv[2])))\n\
                      print(*call.getsockname(), flush=True)\n\
                      sys.stdin.read()";
/// Listens, says where, and starts a caller of the address that it is given.
const HANDLER: &str = "import socket, subprocess, sys\n\
                       server = socket.create_server(('127.0.0.1', 0))\n\
                       print(server.getsockname()[1], flush=True)\n\
                       subprocess.run([sys.executable, '-c', sys.argv[3], *sys.argv[1:3]])";

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

impl Running {
    fn start(program: &str, to: SocketAddr) -> Self {
        Self::start_with(program, to, Stdio::inherit())
    }

    fn start_with(program: &str, to: SocketAddr, stderr: Stdio) -> Self {
        let started = Command::new("python3")
            .args(["-c", program, &to.ip().to_string(), &to.port().to_string()])
            .arg(CALLER)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn();

        Self(started.expect("python3 runs"))
    }

    fn line(&mut self) -> String {
        let output = self.0.stdout.as_mut().expect("it is piped");
        let mut line = Vec::new();
        let mut byte = [0];
        while output.read(&mut byte).is_ok_and(|read| read == 1) && byte != *b"\n" {
            line.push(byte[0]);
        }

        String::from_utf8(line).expect("it prints text")
    }

    /// The connection of a caller.
    fn flow(&mut self, to: SocketAddr) -> FlowKey {
        let line = self.line();
        let (ip, port) = line.split_once(' ').expect("an address and a port");
        let source = SocketAddrV4::new(ip.parse().unwrap(), port.parse().unwrap());

        flow(source.into(), to)
    }
}

fn flow(source: SocketAddr, destination: SocketAddr) -> FlowKey {
    match (source, destination) {
        (SocketAddr::V4(source), SocketAddr::V4(destination)) => FlowKey {
            source,
            destination,
        },
        other => panic!("{other:?}"),
    }
}

fn place(listens_at: SocketAddr, command_of: Option<u32>) -> HandlerPlace {
    HandlerPlace {
        listens_at,
        command_of,
        asked_from: Arc::default(),
    }
}

async fn is_of(callers: &Callers, handler: HandlerPlace, flow: FlowKey) -> bool {
    let found = callers.find(handler, flow).await;
    assert_ne!(found, FoundCaller::Unknown);

    found == FoundCaller::Handler
}

/// An address where nothing listens, as far as anybody knows.
fn nowhere() -> SocketAddr {
    "127.0.0.1:1".parse().unwrap()
}

#[tokio::test]
async fn a_child_of_the_process_that_listens_is_of_the_handler_and_others_are_not() {
    let target = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = target.local_addr().unwrap();
    let callers = Callers::default();
    let mut handler = Running::start(HANDLER, to);
    let at = SocketAddr::new(to.ip(), handler.line().parse().unwrap());
    let by_child = handler.flow(to);
    let mut stranger = Running::start(CALLER, to);
    let by_stranger = stranger.flow(to);

    assert!(is_of(&callers, place(at, None), by_child).await);
    assert!(!is_of(&callers, place(at, None), by_stranger).await);
    // At once again: from what is known.
    assert!(is_of(&callers, place(at, None), by_child).await);
    assert!(!is_of(&callers, place(nowhere(), None), by_child).await);
}

#[tokio::test]
async fn the_process_that_listens_is_of_the_handler_also_at_a_wildcard() {
    let target = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = target.local_addr().unwrap();
    for at in ["0.0.0.0:0", "[::]:0", "127.0.0.1:0"] {
        let listener = TcpListener::bind(at).unwrap();
        let port = listener.local_addr().unwrap().port();
        let call = TcpStream::connect(to).unwrap();
        let by_us = flow(call.local_addr().unwrap(), to);
        let callers = Callers::default();
        let at = SocketAddr::new(to.ip(), port);

        assert!(is_of(&callers, place(at, None), by_us).await, "{at}");
        drop(listener);
        assert!(!is_of(&callers, place(at, None), by_us).await, "{at}");
    }
}

#[tokio::test]
async fn a_socket_that_cannot_take_the_connection_makes_nobody_the_handler() {
    let target = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = target.local_addr().unwrap();
    let call = TcpStream::connect(to).unwrap();
    let by_us = flow(call.local_addr().unwrap(), to);
    let callers = Callers::default();
    // Of documentation (RFC 5737): no machine has it, and this one may have no way to it.
    let elsewhere: IpAddr = [192, 0, 2, 1].into();
    let (v4, v6) = (
        IpAddr::from([127, 0, 0, 1]),
        IpAddr::from(Ipv6Addr::LOCALHOST),
    );
    for (at, only_v6, takes, others) in [
        ("0.0.0.0:0", false, &[v4][..], &[v6][..]),
        ("[::]:0", false, &[v4, v6], &[]),
        ("[::]:0", true, &[v6], &[v4]),
        ("127.0.0.2:0", false, &[], &[v4, v6]),
    ] {
        let at: SocketAddr = at.parse().unwrap();
        let socket = Socket::new(Domain::for_address(at), Type::STREAM, None).unwrap();
        if only_v6 {
            socket.set_only_v6(true).unwrap();
        }
        socket.bind(&at.into()).unwrap();
        socket.listen(1).unwrap();
        let port = socket.local_addr().unwrap().as_socket().unwrap().port();
        for ip in takes {
            let place = place(SocketAddr::new(*ip, port), None);
            assert!(is_of(&callers, place, by_us).await, "{at} {only_v6} {ip}");
        }
        for ip in others {
            let place = place(SocketAddr::new(*ip, port), None);
            assert!(!is_of(&callers, place, by_us).await, "{at} {only_v6} {ip}");
        }
        let foreign = place(SocketAddr::new(elsewhere, port), None);
        let found = callers.find(foreign, by_us).await;
        assert_ne!(found, FoundCaller::Handler, "{at}");
    }
}

#[tokio::test]
async fn what_descends_as_tp_does_from_a_holder_is_no_handler_unless_it_has_the_socket() {
    let target = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = target.local_addr().unwrap();
    let callers = Callers::default();
    // As a service manager does.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    let mut tp = Running::start(CALLER, to);
    let by_tp = tp.flow(to);
    let asked_from: Arc<[ProcessId]> = ancestors(tp.0.id()).into();
    assert_eq!(asked_from[0].pid, process::id());
    let place = HandlerPlace {
        asked_from,
        ..place(at, None)
    };

    assert!(!is_of(&callers, place.clone(), by_tp).await);
    let passed: OwnedFd = listener.try_clone().unwrap().into();
    let mut activated = Running::start_with(CALLER, to, passed.into());
    let by_activated = activated.flow(to);
    assert!(is_of(&callers, place.clone(), by_activated).await);
    let call = TcpStream::connect(to).unwrap();
    let by_manager = flow(call.local_addr().unwrap(), to);
    assert!(is_of(&callers, place.clone(), by_manager).await);
}

#[tokio::test]
async fn what_descends_from_the_command_is_of_the_handler_wherever_it_listens() {
    let target = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = target.local_addr().unwrap();
    let callers = Callers::default();
    let mut caller = Running::start(CALLER, to);
    let by_child = caller.flow(to);
    let own = process::id();

    assert!(is_of(&callers, place(nowhere(), Some(own)), by_child).await);
    let of_itself = place(nowhere(), Some(caller.0.id()));
    assert!(is_of(&callers, of_itself, by_child).await);
    let mut other = Running::start(CALLER, to);
    let of_other = place(nowhere(), Some(other.0.id()));
    other.flow(to);
    assert!(!is_of(&callers, of_other, by_child).await);
}

#[tokio::test]
async fn sockets_of_both_families_are_found_and_one_that_has_gone_is_nobodys() {
    let target = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = target.local_addr().unwrap();
    let mapped = format!("[::ffff:127.0.0.1]:{}", to.port());
    let handler = place(nowhere(), Some(process::id()));
    let callers = Callers::default();
    for address in [to.to_string(), mapped] {
        let mut call = TcpStream::connect(address).unwrap();
        let (mut accepted, source) = target.accept().unwrap();
        let by_us = flow(source, to);

        assert!(is_of(&callers, handler.clone(), by_us).await, "{source}");
        call.write_all(b"x").unwrap();
        drop(call);
        // Its other end listens still, which is no caller.
        accepted.read_to_end(&mut Vec::new()).unwrap();
        drop(accepted);
        assert!(!is_of(&callers, handler.clone(), by_us).await, "{source}");
    }
}

#[test]
fn searches_share_what_was_read_after_all_of_them_began() {
    let seen = SeenProcesses::default();
    let (first, second) = (Instant::now(), Instant::now());
    let read = seen.after(first).unwrap();

    assert!(Arc::ptr_eq(&read, &seen.after(second).unwrap()));
    // A later caller may be younger than what was read.
    assert!(!Arc::ptr_eq(&read, &seen.after(Instant::now()).unwrap()));
}

#[tokio::test]
async fn who_is_not_found_in_time_is_unknown() {
    let callers = Callers::default();
    let by_anybody = flow(nowhere(), nowhere());
    let all = u32::try_from(PARALLEL).unwrap();
    let _others = callers.slots.acquire_many(all).await.unwrap();

    let found = callers.find(place(nowhere(), None), by_anybody).await;

    assert_eq!(found, FoundCaller::Unknown);
}
