//! Whatever process dies, and however: the machine is restored within a second, transfers end with
//! an error, and the next connect works.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use tp_e2e::{
    cluster::{Impaired, Impairment, testbed, text},
    daemons::{self, Role},
    lock::alone,
    netns::{self, Snapshot},
    private::PrivateNamespace,
    process::{PATIENCE, Running, eventually, expect_end, lives, run, signal},
    terminal::Terminal,
    transfers::Transfers,
    user::Account,
    workstation::{CONNECT_TO_SHOP, Workstation},
};

/// For an application to get the error of its transfer.
const LOSS_TIMEOUT: Duration = Duration::from_secs(5);
/// For a daemon to end.
const END_TIMEOUT: Duration = Duration::from_secs(10);

#[track_caller]
fn connects_and_reaches_the_cluster(workstation: &Workstation) {
    workstation.connect(&["--namespace", "shop"]);
    workstation.read_web();
}

/// A session, and a snapshot from before it.
fn connected_after_snapshot(account: Account, person: &str) -> (Snapshot, Workstation) {
    let before = netns::idle();
    let mut workstation = Workstation::connected(account, person, "shop", &[]);
    workstation.may_warn();
    (before, workstation)
}

#[test]
fn quitting_leaves_the_machine_as_before() {
    let _alone = alone();
    let before = netns::idle();
    let workstation = Workstation::new(Account::Member, "dev");
    connects_and_reaches_the_cluster(&workstation);
    let pid = workstation.session_pid();

    workstation.tp(&["quit"]).expect_success();

    // Quit returns when it is done: no waiting.
    assert_eq!(Snapshot::take().differences(&before), "");
    assert!(!lives(pid), "the session lives");
}

#[test]
fn connecting_changes_no_route_to_the_cluster_and_no_file_and_no_firewall() {
    let _alone = alone();
    let before = netns::idle();
    let _workstation = Workstation::connected(Account::Member, "dev", "shop", &[]);

    let changes = Snapshot::take().differences(&before);
    for line in changes.lines() {
        let allowed = line.starts_with("links: new")
            || line.starts_with("addresses: new")
            || line.starts_with("eBPF ")
            // The number of the private namespace behind the link.
            || line.starts_with("namespaces: new: nsid")
            || (line.starts_with("routes: new")
                && (is_to_aliases(line)
                    || ["fe80:", "multicast"].iter().any(|own| line.contains(own))));
        assert!(allowed, "{line}\nall changes:\n{changes}");
    }
}

/// Returns whether the route is of a reserved block for aliases, whichever the session chose.
fn is_to_aliases(route: &str) -> bool {
    let network = route
        .split_whitespace()
        .find_map(|word| word.split('/').next()?.parse::<std::net::Ipv4Addr>().ok());

    network.is_some_and(|network| network.octets()[0] >= 240) && route.contains(" dev tp")
}

#[test]
fn quitting_during_transfers_ends_them_in_an_error() {
    let _alone = alone();
    let (before, workstation) = connected_after_snapshot(Account::Member, "dev");
    let transfers = Transfers::start(&workstation);

    workstation.tp(&["quit"]).expect_success();

    before.assert_restored();
    transfers.assert_broken(LOSS_TIMEOUT);
}

#[test]
fn the_machine_is_as_before_when_the_session_is_killed() {
    let _alone = alone();
    let (before, workstation) = connected_after_snapshot(Account::Member, "dev");
    let transfers = Transfers::start(&workstation);

    signal(workstation.session_pid(), Signal::KILL);

    before.assert_restored();
    transfers.assert_broken(LOSS_TIMEOUT);
    workstation.tp(&["status"]).expect_code(3);
    connects_and_reaches_the_cluster(&workstation);
}

#[test]
fn the_machine_is_as_before_when_the_root_daemon_is_killed() {
    let _alone = alone();
    let (before, mut workstation) = connected_after_snapshot(Account::Member, "dev");
    let transfers = Transfers::start(&workstation);

    signal(workstation.root_pid(), Signal::KILL);

    before.assert_restored();
    transfers.assert_broken(LOSS_TIMEOUT);
    workstation.start_root_daemon();
    connects_and_reaches_the_cluster(&workstation);
}

#[test]
fn the_machine_is_as_before_when_both_are_killed() {
    let _alone = alone();
    let (before, mut workstation) = connected_after_snapshot(Account::Member, "dev");
    let transfers = Transfers::start(&workstation);
    let (session, root) = (workstation.session_pid(), workstation.root_pid());

    signal(root, Signal::KILL);
    signal(session, Signal::KILL);

    before.assert_restored();
    transfers.assert_broken(LOSS_TIMEOUT);
    workstation.start_root_daemon();
    connects_and_reaches_the_cluster(&workstation);
}

#[test]
fn the_machine_is_as_before_when_a_session_of_root_is_killed() {
    let _alone = alone();
    let (before, workstation) = connected_after_snapshot(Account::Root, "admin");
    let transfers = Transfers::start(&workstation);

    signal(workstation.session_pid(), Signal::KILL);

    before.assert_restored();
    transfers.assert_broken(LOSS_TIMEOUT);
}

#[test]
fn a_session_whose_relay_or_dns_service_dies_says_so_and_ends_its_connection() {
    let _alone = alone();
    type Death = fn(&PrivateNamespace);
    let deaths: [(&str, Death); 2] = [
        ("the relay", PrivateNamespace::delete_tun),
        ("the DNS service", PrivateNamespace::abort_udp),
    ];
    for (part, die) in deaths {
        let (before, workstation) = connected_after_snapshot(Account::Member, "dev");
        let pid = workstation.session_pid();
        let transfers = Transfers::start(&workstation);

        die(&PrivateNamespace::of(pid));

        before.assert_restored();
        transfers.assert_broken(LOSS_TIMEOUT);
        let status = workstation.tp(&["status", "--output", "json"]);
        let reason = format!("{part} of the session has ended");
        assert_eq!(status.json()["state"], "disconnected", "{status}");
        assert!(text(&status.json()["reason"]).contains(&reason), "{status}");
        let log = workstation.session_log();
        assert!(log.contains(&reason), "{log}");
        connects_and_reaches_the_cluster(&workstation);
    }
}

/// A firewall tool, a network manager or a user: without its interface a session would steer
/// connections, and the machine's own queries, into a black hole.
#[test]
fn an_interface_that_another_program_changes_ends_the_connection_with_a_reason() {
    let _alone = alone();
    for change in [
        "ip link set dev LINK down",
        "ip address flush dev LINK",
        "ip route flush table local dev LINK root 240.0.0.0/4",
        "ip link delete dev LINK",
    ] {
        let (before, workstation) = connected_after_snapshot(Account::Member, "dev");
        let transfers = Transfers::start(&workstation);
        let link = own_link(&workstation);

        on_the_workstation(&change.replace("LINK", &link));

        transfers.assert_broken(LOSS_TIMEOUT);
        before.assert_restored();
        let status = workstation.tp(&["status", "--output", "json"]);
        assert_eq!(status.json()["state"], "disconnected", "{change}: {status}");
        let reason = text(&status.json()["reason"]);
        assert!(
            reason.contains("was changed by another program"),
            "{change}: {reason}"
        );
        workstation
            .run(&["getent", "ahostsv4", "intranet.corp.test"])
            .expect_success();
        connects_and_reaches_the_cluster(&workstation);
    }
}

#[track_caller]
fn on_the_workstation(command: &str) -> String {
    let words: Vec<&str> = command.split(' ').collect();

    testbed().run_inside(&testbed().workstation(), &words)
}

/// The interface of the route to the aliases.
fn own_link(workstation: &Workstation) -> String {
    let network = text(&workstation.status()["datapath"]["alias_network"]);
    let route = on_the_workstation(&format!("ip route show table local {network}"));
    let words: Vec<_> = route.split_whitespace().collect();
    let at = words.iter().position(|word| *word == "dev");

    words[at.expect("the route names an interface") + 1].to_owned()
}

/// A user's last log-out removes the runtime directory, with the socket.
#[test]
fn a_session_whose_socket_is_gone_ends() {
    let _alone = alone();
    let (before, workstation) = connected_after_snapshot(Account::Member, "dev");
    let pid = workstation.session_pid();
    let socket = workstation.session_socket();

    std::fs::remove_dir_all(socket.parent().expect("it has a directory"))
        .expect("the directory is there");

    expect_end("the session", pid, END_TIMEOUT);
    before.assert_restored();
    connects_and_reaches_the_cluster(&workstation);
}

#[test]
fn a_hung_session_takes_no_foreign_name_down() {
    let _alone = alone();
    let (before, workstation) = connected_after_snapshot(Account::Member, "dev");
    let pid = workstation.session_pid();

    signal(pid, Signal::STOP);
    let begin = Instant::now();
    let mut ask =
        workstation.command(&["dig", "+short", "+time=1", "+tries=4", "intranet.corp.test"]);
    let found = run(&mut ask, Duration::from_secs(10));
    let elapsed = begin.elapsed();
    let target = format!("{}:7000", testbed().service_ip("shop", "echo"));
    let hung = workstation.echo(&["connect", "-timeout", "2s", &target]);
    signal(pid, Signal::KILL);

    // dig also prints failed queries on standard output.
    assert_eq!(found.stdout.lines().last(), Some("192.0.2.10"), "{found}");
    // Two seconds until the hooks let go, and the repetition of the pending query.
    assert!(elapsed < Duration::from_millis(3500), "{elapsed:?}");
    assert_ne!(hung["error"], "", "{hung}");
    before.assert_restored();
}

#[test]
fn an_application_that_outlives_the_session_can_connect_elsewhere() {
    let _alone = alone();
    let (before, workstation) = connected_after_snapshot(Account::Member, "dev");
    signal(workstation.session_pid(), Signal::KILL);
    before.assert_restored();

    let found = workstation.run(&["dig", "+short", "+time=2", "+tries=1", "intranet.corp.test"]);

    assert_eq!(found.stdout.trim(), "192.0.2.10", "{found}");
}

#[test]
fn a_root_daemon_outlives_the_terminal_that_it_was_started_on() {
    let _alone = alone();
    let before = netns::idle();
    let workstation = Workstation::without_root_daemon(Account::Root, "admin");
    let on_a_terminal = ["setsid", "--ctty", "--wait"];
    let daemon = ["tp-daemon", "root", "--sudo", "--detach"];
    let mut command = workstation.command(&[&on_a_terminal[..], &daemon].concat());

    // As with sudo's `use_pty`: when the command returns, its terminal is hung up.
    let terminal = Terminal::start(command.env("SUDO_UID", "0"));
    let (code, screen) = terminal.finish(PATIENCE);
    assert_eq!(code, Some(0), "{screen}");

    eventually(
        "the root daemon to listen",
        PATIENCE,
        || match workstation.root_socket().exists() {
            true => Ok(()),
            false => Err("there is no socket".to_owned()),
        },
    );
    let daemon = daemons::only(&workstation, Role::Root);
    connects_and_reaches_the_cluster(&workstation);
    assert_eq!(workstation.root_pid(), daemon);
    workstation.tp(&["quit"]).expect_success();
    expect_end("the root daemon", daemon, END_TIMEOUT);
    before.assert_restored();
}

/// A `tp connect` that hangs: the API server does not answer.
fn connecting() -> (Snapshot, Workstation, Impaired, Running) {
    let before = netns::idle();
    let workstation = Workstation::new(Account::Member, "dev");
    let away = testbed().impair(Impairment::ApiServerAway);
    let connecting = workstation.start(&CONNECT_TO_SHOP);
    workstation.expect_soon("connecting");

    (before, workstation, away, connecting)
}

#[test]
fn a_command_that_is_interrupted_while_connecting_leaves_nothing() {
    let _alone = alone();
    let (before, _workstation, _away, connecting) = connecting();

    signal(connecting.pid(), Signal::INT);

    let finished = connecting.finish(Duration::from_secs(20));
    assert_eq!(finished.code(), 130, "{finished}");
    before.assert_restored();
}

#[test]
fn a_command_that_is_interrupted_while_its_session_hangs_says_that_it_may_go_on() {
    let _alone = alone();
    let (before, workstation, _away, connecting) = connecting();
    let session = daemons::only(&workstation, Role::Session);

    signal(session, Signal::STOP);
    signal(connecting.pid(), Signal::INT);

    let finished = connecting.finish(Duration::from_secs(30));
    signal(session, Signal::CONT);
    assert_eq!(finished.code(), 130, "{finished}");
    assert!(finished.stderr.contains("may go on"), "{finished}");
    // Once continued, it notices that it is unused.
    expect_end("the session", session, END_TIMEOUT);
    before.assert_restored();
}
