//! The data path of the workstation in network namespaces, without a cluster: real root daemon,
//! real kernel, a session that decides by port. Needs root.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use serde_json::json;
use tp_e2e::{
    datapath::{MEMBER, Machine, OUTSIDER, STEER},
    process::eventually,
};

const HELPER: &str = env!("CARGO_BIN_EXE_datapath");

fn machine() -> Machine {
    Machine::new(Path::new(HELPER))
}

#[test]
fn connect_is_steered_and_the_application_sees_the_real_address() {
    let machine = machine();
    let mut session = machine.session();

    let seen = machine.app(MEMBER, &["connect", "10.96.1.2:80"]);

    assert_eq!(seen["greeting"], "10.96.1.2:80");
    assert_eq!(seen["peer"], "10.96.1.2:80");
    assert_eq!(seen["own"], session.greeting["bundle"]["host_address"]);
    assert_eq!(session.counter("steered"), 1);
    assert_eq!(session.counter("aliases"), 1);
}

#[test]
fn descriptors_close_on_exec_and_the_alias_table_is_read_only() {
    let machine = machine();
    let session = machine.session();

    let facts = &session.greeting["facts"];

    assert_eq!(facts["close_on_exec"], true);
    assert_eq!(facts["nonblocking"], true);
    assert_eq!(facts["alias_table_is_writable"], false);
}

#[test]
fn a_mapped_address_is_steered_and_reversed() {
    let machine = machine();
    let _session = machine.session();

    let tcp = machine.app(MEMBER, &["connect", "10.96.1.2:80", "mapped"]);
    let udp = machine.app(MEMBER, &["udp", "127.0.0.53:53", "mapped"]);

    assert_eq!(tcp["greeting"], "10.96.1.2:80");
    assert_eq!(tcp["peer"], "[::ffff:10.96.1.2]:80");
    assert_eq!(udp["from"], "127.0.0.53:53");
}

#[test]
fn the_verdict_of_the_far_side_is_the_error_of_connect() {
    let machine = machine();
    let _session = machine.session();

    for (port, errno) in [
        ("7001", "ECONNREFUSED"),
        ("7002", "ECONNREFUSED"),
        ("7003", "EHOSTUNREACH"),
        ("7006", "EHOSTUNREACH"),
        ("7009", "ENETUNREACH"),
    ] {
        let target = format!("10.96.1.2:{port}");
        let blocking = machine.app(MEMBER, &["connect", &target]);
        let nonblocking = machine.app(MEMBER, &["connect", &target, "nonblocking"]);

        for seen in [blocking, nonblocking] {
            assert_eq!(seen["errno"], errno, "port {port}");
            assert!(
                seen["elapsed_ms"].as_u64().unwrap() < 1000,
                "port {port}: {seen}"
            );
        }
    }
}

#[test]
fn a_silent_far_side_times_out() {
    let machine = machine();
    let _session = machine.session();

    for flags in [&["timeout=600"][..], &["timeout=600", "nonblocking"]] {
        let seen = machine.app(MEMBER, &[&["connect", "10.96.1.2:7004"], flags].concat());

        assert_eq!(seen["errno"], "ETIMEDOUT");
    }
}

#[test]
fn connect_ends_when_the_dial_ends() {
    let machine = machine();
    let _session = machine.session();

    let seen = machine.app(MEMBER, &["connect", "10.96.1.2:7005"]);

    assert_eq!(seen["greeting"], "10.96.1.2:7005");
    let elapsed = seen["elapsed_ms"].as_u64().unwrap();
    assert!((190..1000).contains(&elapsed), "{elapsed} ms");
}

#[test]
fn an_excluded_network_is_left_alone() {
    let machine = machine();
    let mut session = machine.session();

    let seen = machine.app(MEMBER, &["connect", "10.96.9.7:80"]);

    assert_eq!(seen["errno"], "EHOSTUNREACH");
    assert_eq!(session.counter("steered"), 0);
}

#[test]
fn networks_and_name_servers_can_be_replaced() {
    let machine = machine();
    let mut session = machine.session();

    let steer = json!({"request": "steer", "include": ["10.97.0.0/16"], "exclude": ["10.97.0.0/16", "10.98.0.0/16"]});
    assert_eq!(session.ask(&steer)["reply"], "done");
    let excluded_on_a_tie = machine.app(MEMBER, &["connect", "10.97.0.1:80"]);
    let steer = json!({"request": "steer", "include": ["10.97.0.0/16"], "exclude": []});
    assert_eq!(session.ask(&steer)["reply"], "done");
    let included = machine.app(MEMBER, &["connect", "10.97.0.1:80"]);
    let no_more = machine.app(MEMBER, &["connect", "10.96.0.1:80"]);
    let servers = json!({"request": "name_servers", "servers": ["10.200.0.1:53", "[fd00::1]:53"]});
    assert_eq!(session.ask(&servers)["reply"], "done");
    let new_server = machine.app(MEMBER, &["udp", "10.200.0.1:53"]);

    assert_eq!(excluded_on_a_tie["errno"], "EHOSTUNREACH");
    assert_eq!(included["greeting"], "10.97.0.1:80");
    assert_eq!(no_more["errno"], "EHOSTUNREACH");
    assert_eq!(new_server["from"], "10.200.0.1:53");
}

#[test]
fn datagrams_to_a_name_server_are_answered_in_its_name() {
    let machine = machine();
    let mut session = machine.session();

    for server in ["127.0.0.53:53", "172.31.0.53:53"] {
        let unconnected = machine.app(MEMBER, &["udp", server]);
        let connected = machine.app(MEMBER, &["udp", server, "connected"]);

        for seen in [unconnected, connected.clone()] {
            assert_eq!(seen["answer"], format!("{server}|ping"));
            assert_eq!(seen["from"], server);
        }
        assert_eq!(connected["peer"], server);
    }
    let tcp = machine.app(MEMBER, &["connect", "127.0.0.53:53"]);
    assert_eq!(tcp["greeting"], "127.0.0.53:53");
    assert_eq!(session.counter("stale_session"), 0);
}

#[test]
fn other_datagrams_are_left_alone_and_counted() {
    let machine = machine();
    let mut session = machine.session();

    let other_port = machine.app(
        MEMBER,
        &["udp", "127.0.0.53:54", "connected", "timeout=300"],
    );
    let cluster = machine.app(MEMBER, &["udp", "10.96.0.10:53", "timeout=300"]);

    assert_eq!(other_port["errno"], "ECONNREFUSED");
    assert_eq!(cluster["errno"], "EHOSTUNREACH");
    assert_eq!(session.counter("udp"), 1);
    assert_eq!(session.counter("steered"), 0);
}

#[test]
fn names_of_the_machine_resolve_while_the_session_hangs() {
    let machine = machine();
    let mut server = machine.start_app(0, &["serve", "127.0.0.53:53"]);
    server.object();
    let mut session = machine.session();
    let ask = || machine.app(MEMBER, &["udp", "127.0.0.53:53", "timeout=200"]);

    assert_eq!(ask()["answer"], "127.0.0.53:53|ping");
    session.tell("freeze");
    let frozen = Instant::now();
    eventually("the machine's own server", Duration::from_secs(4), || {
        let seen = ask();
        (seen["answer"] == "own|ping")
            .then_some(())
            .ok_or_else(|| seen.to_string())
    });
    assert!(frozen.elapsed() > Duration::from_millis(1500));
    assert!(session.counter("stale_session") > 0);
    session.tell("thaw");
    eventually("the session", Duration::from_secs(1), || {
        let seen = ask();
        (seen["answer"] == "127.0.0.53:53|ping")
            .then_some(())
            .ok_or_else(|| seen.to_string())
    });
}

#[test]
fn a_socket_bound_elsewhere_is_left_alone_and_counted() {
    let machine = machine();
    let mut session = machine.session();

    let loopback = machine.app(
        MEMBER,
        &["connect", "10.96.1.2:80", "bind=127.0.0.1", "timeout=300"],
    );
    let own = machine.app(
        MEMBER,
        &["udp", "127.0.0.53:53", "bind=127.0.0.1", "timeout=300"],
    );

    assert!(loopback["errno"].is_string(), "{loopback}");
    assert!(own["errno"].is_string(), "{own}");
    assert_eq!(session.counter("bound_address"), 2);
}

#[test]
fn another_user_is_not_steered_and_cannot_use_the_aliases() {
    let machine = machine();
    let mut session = machine.session();
    machine.app(MEMBER, &["connect", "10.96.1.2:80"]);

    for uid in [OUTSIDER, 0] {
        let steered = machine.app(uid, &["connect", "10.96.1.2:80"]);
        let tcp = machine.app(uid, &["connect", "198.18.1.0:80", "timeout=400"]);
        let udp = machine.app(uid, &["udp", "198.18.1.0:53", "timeout=300"]);

        assert_eq!(steered["errno"], "EHOSTUNREACH", "uid {uid}");
        assert_eq!(tcp["errno"], "ETIMEDOUT", "uid {uid}");
        assert_eq!(udp["errno"], "EAGAIN", "uid {uid}");
    }
    assert_eq!(session.counter("other_user"), 2);
    assert!(session.counter("foreign_user") >= 4);
}

#[test]
fn a_set_user_id_program_is_not_steered() {
    let machine = machine();
    let mut session = machine.session();

    let seen = machine.setuid_app(&["connect", "10.96.1.2:80"]);
    let name = machine.setuid_app(&["udp", "127.0.0.53:53", "timeout=300"]);

    assert_eq!(seen["errno"], "EHOSTUNREACH");
    assert!(name["errno"].is_string(), "{name}");
    assert_eq!(session.counter("privileged"), 2);
    assert_eq!(session.counter("steered"), 0);
}

#[test]
fn a_socket_that_is_passed_on_still_tells_its_real_peer() {
    let machine = machine();
    let _session = machine.session();
    let program = machine.setuid_helper().display().to_string();

    let seen = machine.app(MEMBER, &["pass", "10.96.1.2:80", &program]);

    assert_eq!(seen["euid"], 0);
    assert_eq!(seen["peer"], "10.96.1.2:80");
}

#[test]
fn a_neighbour_cannot_use_the_aliases() {
    let machine = machine();
    let mut session = machine.session();
    machine.app(MEMBER, &["connect", "10.96.1.2:80"]);

    let tcp = machine.neighbours_app(MEMBER, &["connect", "198.18.1.0:80", "timeout=400"]);
    let udp = machine.neighbours_app(MEMBER, &["udp", "198.18.1.0:53", "timeout=300"]);

    assert_eq!(tcp["errno"], "ETIMEDOUT");
    assert_eq!(udp["errno"], "EAGAIN");
    assert!(session.counter("forwarded") >= 2);
}

#[test]
fn another_network_namespace_is_not_steered() {
    let machine = machine();
    let mut session = machine.session();

    let seen = machine.neighbours_app(MEMBER, &["connect", "10.96.1.2:80", "timeout=300"]);

    assert!(seen["errno"].is_string(), "{seen}");
    assert_eq!(session.counter("steered"), 0);
}

#[test]
fn a_session_cannot_send_what_it_should_not() {
    let machine = machine();
    let mut session = machine.session();

    session.tell("inject");

    assert_eq!(session.counter("foreign_source"), 2);
    assert_eq!(session.counter("foreign_destination"), 1);
    assert_eq!(session.counter("forbidden_reply"), 2);
}

#[test]
fn a_full_alias_table_is_an_error_and_never_a_wrong_address() {
    let machine = machine();
    // Leaves only the small range.
    let taken = machine
        .command(&["ip", "route", "add", "unreachable", "198.18.0.0/16"])
        .status();
    assert!(taken.unwrap().success());
    let mut session = machine.session();
    assert_eq!(session.greeting["bundle"]["alias_base"], "198.19.0.0");
    assert_eq!(session.greeting["bundle"]["alias_count"], 32768);
    let usable = 32768 - 256;

    let seen = machine.app(MEMBER, &["many", "10.100.0.0:7001", "32600"]);
    let known = machine.app(MEMBER, &["connect", "10.100.0.0:80"]);
    let unknown = machine.app(MEMBER, &["connect", "10.101.0.0:80"]);

    assert_eq!(seen["errors"]["ECONNREFUSED"], usable);
    assert_eq!(seen["errors"]["EPERM"], 32600 - usable);
    assert_eq!(known["greeting"], "10.100.0.0:80");
    assert_eq!(unknown["errno"], "EPERM");
    assert_eq!(session.counter("aliases"), usable);
    assert_eq!(session.counter("alias_table_full"), 32600 - usable + 1);
}

#[test]
fn two_sessions_have_their_own_aliases() {
    let machine = machine();
    let other = r#"{"include":["10.112.0.0/12"],"exclude":[]}"#;
    let first = machine.session();
    let mut second = machine.session_of(MEMBER, r#""user""#, other);

    let through_first = machine.app(MEMBER, &["connect", "10.96.1.2:80"]);
    let through_second = machine.app(MEMBER, &["connect", "10.112.1.2:80"]);

    assert_eq!(through_first["greeting"], "10.96.1.2:80");
    assert_eq!(through_second["greeting"], "10.112.1.2:80");
    assert_eq!(second.greeting["bundle"]["alias_base"], "198.19.0.0");
    assert_eq!(second.counter("steered"), 1);
    drop(first);
    let after = machine.app(MEMBER, &["connect", "10.112.1.2:80"]);
    assert_eq!(after["greeting"], "10.112.1.2:80");
}

#[test]
fn two_users_have_a_session_each() {
    let mut machine = Machine::without_daemon(Path::new(HELPER));
    machine.start_daemon(&["--group", "1"]);
    let mut mine = machine.session_of(0, r#""user""#, STEER);
    let mut theirs = machine.session_of(OUTSIDER, r#""user""#, STEER);

    let of_root = machine.app(0, &["connect", "10.96.1.2:80"]);
    let of_other = machine.app(OUTSIDER, &["connect", "10.96.1.2:80"]);
    let of_nobody = machine.app(MEMBER, &["connect", "10.96.1.2:80"]);

    assert_eq!(of_root["greeting"], "10.96.1.2:80");
    assert_eq!(of_other["greeting"], "10.96.1.2:80");
    assert_eq!(of_nobody["errno"], "EHOSTUNREACH");
    assert_eq!(mine.counter("steered"), 1);
    assert_eq!(theirs.counter("steered"), 1);
}

#[test]
fn the_system_scope_is_for_root_and_for_everybody() {
    let machine = machine();
    let refused = machine
        .try_session(MEMBER, "/proc/self/ns/net", r#""system""#, STEER)
        .object();
    assert_eq!(refused["reply"]["kind"], "permission");
    let mut session = machine.session_of(0, r#""system""#, STEER);

    for uid in [0, MEMBER, OUTSIDER] {
        let seen = machine.app(uid, &["connect", "10.96.1.2:80"]);
        assert_eq!(seen["greeting"], "10.96.1.2:80", "uid {uid}");
    }
    let neighbour = machine.neighbours_app(0, &["connect", "198.18.1.0:80", "timeout=400"]);
    assert_eq!(neighbour["errno"], "ETIMEDOUT");
    assert!(session.counter("forwarded") >= 1);
}

#[test]
fn a_cgroup_scope_reaches_no_further_than_the_cgroup() {
    let machine = machine();
    let cgroup = Cgroup::new(MEMBER);
    let scope = json!({"cgroup": {"path": cgroup.path()}}).to_string();
    let mut session = machine.session_of(MEMBER, &scope, STEER);

    let outside = machine.app(MEMBER, &["connect", "10.96.1.2:80"]);
    let enter = format!("echo $$ > {}/cgroup.procs; exec \"$@\"", cgroup.path());
    let app = machine.helper_words(MEMBER, &["app", "connect", "10.96.1.2:80"]);
    let mut words = vec!["sh", "-c", &enter, "sh"];
    words.extend(app.iter().map(String::as_str));
    let inside = tp_e2e::datapath::Process::start(&mut machine.command(&words)).object();
    let alias = machine.app(MEMBER, &["connect", "198.18.1.0:80", "timeout=400"]);

    assert_eq!(outside["errno"], "EHOSTUNREACH");
    assert_eq!(inside["greeting"], "10.96.1.2:80");
    assert_eq!(alias["errno"], "ETIMEDOUT");
    assert_eq!(session.counter("other_cgroup"), 1);
    assert!(session.counter("foreign_cgroup") >= 1);
}

#[test]
fn a_cgroup_of_somebody_else_is_no_scope() {
    let machine = machine();
    let cgroup = Cgroup::new(0);

    for (path, kind) in [
        (cgroup.path(), "permission"),
        ("/tmp", "invalid"),
        ("/nowhere", "invalid"),
    ] {
        let scope = json!({"cgroup": {"path": path}}).to_string();
        let refused = machine
            .try_session(MEMBER, "/proc/self/ns/net", &scope, STEER)
            .object();
        assert_eq!(refused["reply"]["kind"], kind, "{path}: {refused}");
    }
}

#[test]
fn a_user_outside_the_group_is_refused() {
    let machine = machine();
    let at_the_socket = machine
        .try_session(OUTSIDER, "/proc/self/ns/net", r#""user""#, STEER)
        .object();
    fs::set_permissions(machine.socket(), fs::Permissions::from_mode(0o666)).unwrap();
    let by_the_daemon = machine
        .try_session(OUTSIDER, "/proc/self/ns/net", r#""user""#, STEER)
        .object();

    assert_eq!(at_the_socket["event"], "no_connection");
    assert_eq!(by_the_daemon["reply"]["kind"], "permission");
}

#[test]
fn only_the_sessions_own_network_namespace_is_taken() {
    let machine = machine();
    let foreign = format!("/run/netns/{}", machine.neighbour());

    for (netns, kind) in [
        (foreign.as_str(), "permission"),
        ("/dev/null", "invalid"),
        ("/proc/self/ns/mnt", "invalid"),
        ("", "invalid"),
    ] {
        let refused = machine
            .try_session(MEMBER, netns, r#""user""#, STEER)
            .object();
        assert_eq!(refused["reply"]["kind"], kind, "{netns}: {refused}");
    }
}

#[test]
fn a_network_namespace_with_other_users_is_refused() {
    let machine = machine();
    let socket = machine.socket();
    let servers = tp_e2e::datapath::NAME_SERVERS;
    let words = [
        "session",
        &socket,
        "/proc/self/ns/net",
        r#""user""#,
        STEER,
        servers,
    ];
    let mut command = machine.command(&["unshare", "--user", "--map-root-user", "--net", "--"]);
    command.args(machine.helper_words(0, &words));

    let refused = tp_e2e::datapath::Process::start(&mut command).object();

    assert_eq!(refused["reply"]["kind"], "unsupported", "{refused}");
}

#[test]
fn senseless_requests_are_refused_and_the_session_goes_on() {
    let machine = machine();
    let mut session = machine.session();
    let too_many: Vec<String> = (0..65).map(|n| format!("10.0.0.{n}:53")).collect();

    for request in [
        json!({"request": "open", "scope": "user"}),
        json!({"request": "dance"}),
        json!({"request": "steer", "include": ["10.0.0.0/99"], "exclude": []}),
        json!({"request": "name_servers", "servers": too_many}),
    ] {
        let reply = session.ask(&request);
        assert_eq!(reply["reply"], "refused", "{request}");
        assert_eq!(reply["kind"], "invalid", "{request}: {reply}");
    }
    assert_eq!(
        machine.app(MEMBER, &["connect", "10.96.1.2:80"])["errno"],
        json!(null)
    );
}

#[test]
fn sessions_of_one_user_are_bounded() {
    let machine = machine();
    let sessions: Vec<_> = (0..8).map(|_| machine.session()).collect();

    let refused = machine
        .try_session(MEMBER, "/proc/self/ns/net", r#""user""#, STEER)
        .object();

    assert_eq!(refused["reply"]["kind"], "permission");
    drop(sessions);
}

#[test]
fn closing_restores_the_machine_and_ends_held_connections() {
    let machine = machine();
    let before = machine.snapshot();
    let mut session = machine.session();
    let mut app = machine.start_app(MEMBER, &["hold", "10.96.1.2:80"]);
    app.object();
    assert!(machine.snapshot().has_programs());

    assert_eq!(session.ask(&json!({"request": "close"}))["reply"], "done");

    assert_eq!(app.object()["errno"], "ECONNABORTED");
    drop(session);
    machine.assert_as(&before);
}

#[test]
fn a_killed_session_leaves_nothing_behind() {
    let machine = machine();
    let before = machine.snapshot();
    let mut session = machine.session();
    let mut app = machine.start_app(MEMBER, &["hold", "10.96.1.2:80"]);
    app.object();

    session.kill();

    machine.assert_as(&before);
    assert!(app.object()["errno"].is_string());
}

#[test]
fn a_killed_root_daemon_leaves_nothing_behind() {
    let mut machine = machine();
    let before = machine.snapshot();
    let mut session = machine.session();
    let mut app = machine.start_app(MEMBER, &["hold", "10.96.1.2:80"]);
    app.object();
    session.say("wait");

    machine.daemon_mut().kill();

    machine.assert_as(&before);
    assert!(app.object()["errno"].is_string());
    machine.start_daemon(&["--group", &MEMBER.to_string()]);
    let _next = machine.session();
}

#[test]
fn nothing_is_left_when_both_are_killed() {
    let mut machine = machine();
    let before = machine.snapshot();
    let mut session = machine.session();
    let mut app = machine.start_app(MEMBER, &["hold", "10.96.1.2:80"]);
    app.object();

    session.signal(Signal::STOP);
    machine.daemon_mut().kill();
    session.kill();

    machine.assert_as(&before);
    assert!(app.object()["errno"].is_string());
}

#[test]
fn a_root_daemon_that_is_stopped_ends_its_sessions_first() {
    let mut machine = machine();
    let before = machine.snapshot();
    let mut session = machine.session();
    session.say("wait");

    machine.daemon_mut().signal(Signal::TERM);

    assert!(machine.daemon_mut().wait());
    assert!(session.wait());
    machine.assert_as(&before);
    assert!(!Path::new(&machine.socket()).exists());
}

#[test]
fn a_second_root_daemon_does_not_take_the_socket() {
    let machine = machine();

    let output = machine.daemon_command(&[]).output().unwrap();

    assert!(!output.status.success());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("another root daemon"), "{stderr}");
}

#[test]
fn a_root_daemon_of_sudo_serves_one_user_and_ends_with_the_last_session() {
    let mut machine = Machine::without_daemon(Path::new(HELPER));
    let uid = MEMBER.to_string();
    machine.start_daemon_with(&["--sudo"], &[("SUDO_UID", &uid)]);
    fs::set_permissions(machine.socket(), fs::Permissions::from_mode(0o666)).unwrap();

    let refused = machine
        .try_session(OUTSIDER, "/proc/self/ns/net", r#""user""#, STEER)
        .object();
    let mut session = machine.session();
    assert_eq!(refused["reply"]["kind"], "permission");
    session.kill();

    assert!(machine.daemon_mut().wait());
}

#[test]
fn a_binary_that_others_can_replace_does_not_run_under_sudo() {
    let machine = Machine::without_daemon(Path::new(HELPER));
    fs::set_permissions(machine.dir(), fs::Permissions::from_mode(0o777)).unwrap();

    let output = machine
        .daemon_command(&["--sudo"])
        .env("SUDO_UID", MEMBER.to_string())
        .output()
        .unwrap();

    assert!(!output.status.success());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("must belong to root"), "{stderr}");
}

#[test]
fn the_root_daemon_needs_root() {
    let machine = Machine::without_daemon(Path::new(HELPER));
    let daemon = machine.dir().join("tp-daemon").display().to_string();

    let output = machine
        .command(&[
            "setpriv",
            "--reuid",
            "1",
            "--clear-groups",
            "--",
            &daemon,
            "root",
        ])
        .output()
        .unwrap();

    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("needs root"));
}

#[test]
fn a_held_connect_costs_microseconds() {
    let machine = machine();
    let _session = machine.session();

    let seen = machine.app(MEMBER, &["bench", "10.96.1.2:80", "3000"]);

    let median = seen["median_us"].as_f64().unwrap();
    println!("median {median} µs, 99th percentile {} µs", seen["p99_us"]);
    assert!(median < 500.0, "{median} µs");
}

/// A cgroup of one user's; removed when dropped.
struct Cgroup(String);

impl Cgroup {
    fn new(uid: u32) -> Self {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let root = mounts
            .lines()
            .find_map(|line| {
                line.split(' ')
                    .nth(1)
                    .filter(|_| line.contains(" cgroup2 "))
            })
            .unwrap();
        let path = format!("{root}/tpdp-{}-{uid}", std::process::id());
        fs::create_dir(&path).unwrap();
        std::os::unix::fs::chown(&path, Some(uid), None).unwrap();
        Self(path)
    }

    fn path(&self) -> &str {
        &self.0
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        eventually("the cgroup to be empty", Duration::from_secs(2), || {
            fs::remove_dir(&self.0).map_err(|error| error.to_string())
        });
    }
}
