//! What keeps the program, and what it keeps, from more than it is for.

use std::{
    cell::RefCell,
    fs::{self, DirEntry},
    io::Write as _,
    net::{TcpListener, TcpStream},
    os::{fd::AsFd as _, unix::fs::symlink},
    process::Command,
    thread,
    time::Duration,
};

use rustix::{
    net::sockopt::set_socket_linger,
    process::{Pid, Signal, Uid, kill_process},
    thread::set_thread_uid,
};
use tp_agent_api::{AgentRefusal, AgentReply, AgentRequest, LeaseState, PROTOCOL};

use crate::{
    NODE4, OUTSIDE4, POD4,
    agent::{Connected, Redirected, redirect_request},
    ask, port,
    stage::{CONTAINER, ID, Stage, UID, capabilities, confined, is_gone_soon, is_soon},
};

const AGENT_USER: u32 = 65532;

fn hello() -> AgentRequest {
    AgentRequest::Hello {
        version: String::new(),
        protocol: PROTOCOL,
    }
}

/// Connects as another user.
fn connect_as(stage: &Stage, user: u32) -> Connected {
    let socket = stage.socket();
    thread::scope(|scope| {
        let connected = scope.spawn(|| {
            set_thread_uid(Uid::from_raw(user)).unwrap();
            Connected::to(&socket)
        });
        connected.join().unwrap()
    })
}

#[test]
#[ignore = "needs root"]
fn the_agents_user_is_served_and_no_other() {
    let stage = Stage::new("k");

    let agent = connect_as(&stage, AGENT_USER);
    assert!(agent.try_request(&hello()).is_some());
    let other = connect_as(&stage, AGENT_USER + 1);
    assert!(other.try_request(&hello()).is_none());
}

#[test]
#[ignore = "needs root"]
fn a_link_in_the_place_of_the_socket_is_not_followed() {
    let stage = Stage::new("l");
    let dir = tempfile::tempdir().unwrap();
    let (socket, target) = (dir.path().join("agentd.sock"), dir.path().join("target"));
    for exists in [false, true] {
        if exists {
            fs::write(&target, "kept").unwrap();
        } else {
            symlink(&target, &socket).unwrap();
        }
        let output = Command::new(env!("CARGO_BIN_EXE_tp-agentd"))
            .arg("--proc")
            .arg(stage.proc_dir())
            .arg("--socket")
            .arg(&socket)
            .output()
            .unwrap();

        let message = String::from_utf8(output.stderr).unwrap();
        assert!(message.contains("cannot listen at"), "{message}");
        assert_eq!(target.exists(), exists);
    }
    assert_eq!(fs::read_to_string(&target).unwrap(), "kept");
}

fn refused(reply: &AgentReply) -> (AgentRefusal, &str) {
    let AgentReply::Refused { kind, message } = reply else {
        panic!("{reply:?}");
    };

    (*kind, message)
}

#[test]
#[ignore = "needs root"]
fn a_newer_agent_takes_a_pod_over() {
    let stage = Stage::new("m");
    let older = stage.redirect(&[port(8080, false)], &[]);
    older.renew_all(LeaseState::Redirect);
    let connection = stage.connect();
    connection.greet();

    let newer = connection.redirect(&[port(8080, false)], Vec::new());
    assert_eq!(stage.links(), 1);
    stage.outside(|| assert_eq!(ask(OUTSIDE4, POD4).unwrap(), CONTAINER));
    newer.renew_all(LeaseState::Redirect);
    older.renew_all(LeaseState::Refuse);
    stage.outside(|| {
        assert!(ask(OUTSIDE4, POD4).unwrap().starts_with("workstation"));
    });

    let redirect = older.number;
    for request in [
        AgentRequest::Counters { redirect },
        AgentRequest::Release { redirect },
        AgentRequest::Counters {
            redirect: newer.number,
        },
        redirect_request(&[port(8080, false)], Vec::new()),
    ] {
        refused(&stage.request(&request).0);
    }
    assert_eq!(stage.links(), 1);
    stage.hang_up();
    stage.outside(|| {
        assert!(ask(OUTSIDE4, POD4).unwrap().starts_with("workstation"));
    });
    drop(connection);
    assert!(is_gone_soon(|| stage.links()));
}

/// The counters of the one port: to the listener, and elsewhere.
fn went(connection: &Connected, redirected: &Redirected) -> (u64, u64) {
    let redirect = redirected.number;
    let (reply, _) = connection.request(&AgentRequest::Counters { redirect });
    let AgentReply::Counters { ports } = reply else {
        panic!("{reply:?}");
    };

    (ports[0].redirected, ports[0].elsewhere)
}

#[test]
#[ignore = "needs root"]
fn of_two_programs_the_newer_one_has_the_pod() {
    let stage = Stage::new("n");
    let older = stage.redirect(&[port(8080, false)], &[]);
    older.renew_all(LeaseState::Redirect);
    let (_other, connection) = stage.another_program();
    let newer = connection.redirect(&[port(8080, false)], Vec::new());
    let is_served = || stage.outside(|| ask(OUTSIDE4, POD4));

    // Until it has a lease, it leaves all to the older one.
    assert!(is_served().unwrap().starts_with("workstation"));
    assert_eq!(went(&connection, &newer), (0, 0));
    newer.renew_all(LeaseState::Redirect);
    assert!(is_served().unwrap().starts_with("workstation"));
    assert_eq!(went(&connection, &newer), (1, 0));
    newer.renew_all(LeaseState::Refuse);
    assert!(is_served().unwrap().starts_with("workstation"));
    assert_eq!(went(&connection, &newer), (1, 1));
    older.renew_all(LeaseState::Container);
    assert!(is_served().is_err());

    // A listener that is closed before its redirect.
    newer.renew_all(LeaseState::Redirect);
    newer.close();
    assert_eq!(is_served().unwrap(), CONTAINER);
    assert_eq!(went(&connection, &newer), (1, 2));
}

#[test]
#[ignore = "needs root"]
fn a_pod_with_processes_in_two_networks_is_refused() {
    let stage = Stage::new("o");
    let request = redirect_request(&[port(8080, false)], Vec::new());
    let process = stage.add_process_outside();

    let (reply, _) = stage.request(&request);
    let (kind, message) = refused(&reply);
    assert_eq!(kind, AgentRefusal::Unsupported);
    assert!(
        message.contains("different network namespaces"),
        "{message}"
    );

    // As of a process that its runtime starts: it is in the pod's network a moment later.
    fs::remove_dir_all(&process).unwrap();
    let process = stage.add_process_outside();
    thread::scope(|scope| {
        scope.spawn(|| {
            #[expect(
                clippy::disallowed_methods,
                reason = "nobody tells that it was looked at"
            )]
            thread::sleep(Duration::from_millis(20));
            fs::remove_dir_all(&process).unwrap();
        });
        let _redirected = stage.redirect(&[port(8080, false)], &[]);
    });
}

#[test]
#[ignore = "needs root"]
fn each_request_names_the_capability_that_it_lacks() {
    let all = capabilities();
    let mut needed = Vec::new();
    for lacking in &all {
        let rest: Vec<&str> = all.iter().copied().filter(|it| it != lacking).collect();
        let stage = Stage::under("q", &confined(&rest));
        let redirect = redirect_request(&[port(8080, false)], Vec::new());
        let environ = AgentRequest::Environ {
            uid: UID.into(),
            container: ID.into(),
        };
        for (name, request) in [("redirect", redirect), ("environ", environ)] {
            let (reply, _) = stage.request(&request);
            if matches!(reply, AgentReply::Refused { .. }) {
                let (kind, message) = refused(&reply);
                assert_eq!(kind, AgentRefusal::Failed);
                assert!(
                    message.ends_with(&format!("needs CAP_{lacking}")),
                    "{message}"
                );
                needed.push((*lacking, name));
            }
        }
    }

    // Newer kernels take SYS_ADMIN for the others, and for SYS_PTRACE where an environment is read.
    for wanted in [
        ("SYS_PTRACE", "redirect"),
        ("SYS_ADMIN", "redirect"),
        ("DAC_READ_SEARCH", "environ"),
    ] {
        assert!(needed.contains(&wanted), "{wanted:?} of {needed:?}");
    }
}

#[test]
#[ignore = "needs root"]
fn a_lack_of_descriptors_is_told_as_such() {
    let confined = confined(&capabilities());
    let (mut failed, mut done) = (0, 0);
    for limit in (6..40).step_by(2) {
        let under = ["prlimit".to_owned(), format!("--nofile={limit}:{limit}")];
        let stage = Stage::under("r", &[&under[..], &confined].concat());
        let (reply, _) = stage.request(&redirect_request(&[port(8080, false)], Vec::new()));
        if matches!(reply, AgentReply::Redirected { .. }) {
            done += 1;
            continue;
        }
        let (kind, message) = refused(&reply);
        assert_eq!(kind, AgentRefusal::Failed, "{limit}: {message}");
        assert!(
            message.contains("Too many open files"),
            "{limit}: {message}"
        );
        failed += 1;
    }
    assert!(failed > 0 && done > 0, "{failed} {done}");
}

#[test]
#[ignore = "needs root"]
fn as_many_descriptors_are_used_as_there_may_be() {
    let under = ["prlimit".to_owned(), "--nofile=64:3000".to_owned()];
    let stage = Stage::under("s", &[&under[..], &confined(&capabilities())].concat());

    let limits = fs::read_to_string(format!("/proc/{}/limits", stage.program())).unwrap();
    let line = limits.lines().find(|it| it.starts_with("Max open files"));
    let words: Vec<&str> = line.unwrap().split_whitespace().collect();
    assert_eq!(words[3..5], ["3000", "3000"]);
}

#[test]
#[ignore = "needs root"]
fn listeners_take_no_port_that_the_pod_may_want() {
    let stage = Stage::new("t");
    let range = |range: &str| {
        stage.inside(|| fs::write("/proc/sys/net/ipv4/ip_local_port_range", range).unwrap());
    };
    let own = stage.inside(|| TcpListener::bind("0.0.0.0:65534").unwrap());
    range("1024 65530");

    let redirected = stage.redirect(&[port(65535, false), port(8080, false)], &[]);
    let mut ports = stage.ports_of_ours();
    ports.sort_unstable();
    assert_eq!(ports, [65533, 65534], "of IPv4 and IPv6");
    drop((redirected, own));
    stage.hang_up();
    assert!(is_gone_soon(|| stage.listeners_of_ours()));

    // None is left: one of the kernel's choice is taken.
    range("1024 65535");
    let connection = stage.connect();
    connection.greet();
    let redirected = connection.redirect(&[port(8080, false)], Vec::new());
    redirected.renew_all(LeaseState::Redirect);
    stage.outside(|| {
        assert!(ask(OUTSIDE4, POD4).unwrap().starts_with("workstation"));
    });
}

#[test]
#[ignore = "needs root"]
fn a_connection_that_sends_descriptors_ends() {
    let stage = Stage::new("u");
    let _redirected = stage.redirect(&[port(8080, false)], &[]);
    let program = Pid::from_raw(i32::try_from(stage.program()).unwrap()).unwrap();
    let stuck = stage.outside(|| {
        let listener = TcpListener::bind(OUTSIDE4).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        set_socket_linger(&client, Some(Duration::from_secs(60))).unwrap();
        client.set_nonblocking(true).unwrap();
        // Nobody reads: closing it lasts until the time is over.
        while (&client).write(&[0; 65536]).is_ok() {}
        (client, listener)
    });

    kill_process(program, Signal::STOP).unwrap();
    let tasks = || fs::read_dir(format!("/proc/{}/task", stage.program())).unwrap();
    let is_stopped = |task: DirEntry| {
        let stat = fs::read_to_string(task.path().join("stat")).unwrap();
        stat.contains(") T ")
    };
    assert!(is_soon(|| tasks().flatten().all(is_stopped)));
    let counters = AgentRequest::Counters { redirect: 1 };
    stage.send(&counters, &[stuck.0.as_fd()]);
    // The program has it alone.
    let (client, _listener) = stuck;
    drop(client);
    kill_process(program, Signal::CONT).unwrap();

    assert!(is_gone_soon(|| stage.links()));
    // There are four places: none is lost. It gives its own back last.
    let others = RefCell::new(Vec::new());
    assert!(is_soon(|| {
        let other = stage.connect();
        let is_served = other.try_request(&hello()).is_some();
        others.borrow_mut().extend(is_served.then_some(other));
        others.borrow().len() == 4
    }));
    assert_eq!(tasks().count(), 6, "the one that closes is still there");
}

#[test]
#[ignore = "needs root"]
fn environments_and_sockets_are_handed_out_at_a_bounded_rate() {
    let stage = Stage::new("v");
    let redirected = stage.redirect(&[port(8080, false)], &[]);
    let environ = AgentRequest::Environ {
        uid: UID.into(),
        container: ID.into(),
    };
    let socket = AgentRequest::Socket {
        redirect: redirected.number,
        ipv6: false,
    };
    for (request, most) in [(environ, 200), (socket, 20_000)] {
        let replies = (0..most).map(|_| stage.request(&request).0);
        let reply = replies
            .into_iter()
            .find(|it| matches!(it, AgentReply::Refused { .. }))
            .expect("there is a bound");
        let (kind, message) = refused(&reply);
        assert_eq!(kind, AgentRefusal::Failed);
        assert!(message.contains("ask again later"), "{message}");
    }
}

#[test]
#[ignore = "needs root"]
fn an_agent_of_another_protocol_is_told_so() {
    let stage = Stage::new("w");
    let connection = stage.connect();
    let request = redirect_request(&[port(8080, false)], Vec::new());

    assert!(refused(&connection.request(&request).0).1.contains("hello"));
    let (version, protocol) = ("9".into(), PROTOCOL + 1);
    let (reply, _) = connection.request(&AgentRequest::Hello { version, protocol });
    assert!(matches!(reply, AgentReply::Hello { .. }));
    let (reply, _) = connection.request(&request);
    let (kind, message) = refused(&reply);
    assert_eq!(kind, AgentRefusal::Invalid);
    assert!(message.contains("of one image"), "{message}");
}

#[test]
#[ignore = "needs root"]
fn nodes_change_with_the_ports() {
    let stage = Stage::new("x");
    let ports = vec![port(8080, true)];
    let redirected = stage.redirect(&ports, &["10.77.0.9"]);
    redirected.renew_all(LeaseState::Redirect);
    let redirect = redirected.number;
    let set = |nodes: Option<&[&str]>| {
        let nodes = nodes.map(|nodes| nodes.iter().map(|it| it.parse().unwrap()).collect());
        let ports = ports.clone();
        let (reply, _) = stage.request(&AgentRequest::Ports {
            redirect,
            ports,
            nodes,
        });
        assert!(matches!(reply, AgentReply::Changed { .. }), "{reply:?}");
    };
    let is_probe = || stage.outside(|| ask(NODE4, POD4).unwrap() == CONTAINER);

    assert!(is_probe());
    set(None);
    assert!(is_probe());
    set(Some(&["10.77.0.8"]));
    assert!(!is_probe());
    set(Some(&["10.77.0.8", "10.77.0.9"]));
    assert!(is_probe());
}
