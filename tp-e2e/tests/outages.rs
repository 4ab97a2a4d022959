//! Outages: flows, names and `tp status` while the manager, the API server or the network is down,
//! and the recovery afterwards.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use tp_e2e::{
    cluster::{Impairment, testbed, text},
    lock::alone,
    process::{Finished, PATIENCE, eventually, kill_if_there, signal},
    transfers::Transfers,
    user::Account,
    workstation::Workstation,
};

/// For the tunnel to find the better path, or another one.
const SWITCH_TIMEOUT: Duration = Duration::from_secs(15);
/// For reconnecting once the destination is back.
const RECONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// For an application to get the loss of its manager: three seconds of silence, not counting those
/// in which a busy machine gave the session no processor.
const LOSS_TIMEOUT: Duration = Duration::from_secs(20);
/// Bytes that the unused path may carry: probes, watches of the API server, handshakes.
const MAX_UNUSED_PATH_BYTES: u64 = 1 << 20;
const SIZE: u64 = 16 << 20;

/// Connects and waits for the preferred path of this transport.
#[track_caller]
fn connected_by(account: Account, person: &str, transport: &str) -> Workstation {
    let flags = ["--transport", transport];
    let mut workstation = Workstation::connected(account, person, "shop", &flags);
    workstation.may_warn();
    let path = match transport {
        "portforward" => "portforward",
        _ => "udp",
    };
    workstation.expect_path(path);
    workstation
}

fn dig_in_full(workstation: &Workstation, name: &str) -> Finished {
    workstation.run(&["dig", "+time=5", "+tries=1", name])
}

/// The output of dig, which must come at once.
#[track_caller]
fn status_of_quick_answer(asked: &Finished) -> String {
    let after = |start: &str| {
        let rest = asked.stdout.split(start).nth(1).unwrap_or_default();
        rest.split([',', ' ', '\n']).next().unwrap_or_default()
    };
    let milliseconds: u64 = after("Query time: ")
        .parse()
        .unwrap_or_else(|_| panic!("no answer: {asked}"));
    assert!(milliseconds < 1000, "{asked}");
    after("status: ").to_owned()
}

#[test]
fn a_killed_manager_breaks_transfers_and_sessions_connect_again() {
    let _alone = alone();
    testbed().install_tp();
    testbed().manager_ready();
    let by_udp = connected_by(Account::Member, "dev", "auto");
    let by_stream = connected_by(Account::Root, "admin", "portforward");
    let transfers = [Transfers::start(&by_udp), Transfers::start(&by_stream)];
    let managers = testbed().managers();
    assert_eq!(managers.len(), 1, "{managers:?}");

    signal(managers[0].0, Signal::KILL);

    for transfers in transfers {
        transfers.assert_broken(LOSS_TIMEOUT);
    }
    testbed().manager_ready();
    for workstation in [&by_udp, &by_stream] {
        workstation.reaches_again(RECONNECT_TIMEOUT);
    }
}

#[test]
fn while_the_api_server_is_away_flows_on_udp_go_on_and_names_resolve() {
    let _alone = alone();
    let by_udp = connected_by(Account::Member, "dev", "auto");
    let by_stream = connected_by(Account::Root, "admin", "portforward");
    let drip = |workstation: &Workstation, seconds: u64| {
        // 64 KiB every 20 ms, at the most.
        let size = (seconds * 50 * 64 * 1024).to_string();
        let words = ["talk", "-mark", "1000", "-seed", &size, "echo:7001", "drip"];
        workstation.start_echo(&[&words[..], &[&size]].concat())
    };
    let mut over_stream = drip(&by_stream, 14);
    over_stream.wait_for("mark", SWITCH_TIMEOUT);

    let away = testbed().impair(Impairment::ApiServerAway);
    // Also dialled while it is away.
    let over_udp = drip(&by_udp, 11).finish(PATIENCE);
    let resolved = dig_in_full(&by_udp, "web.shop");
    let by_name = by_udp.run(&["curl", "-sS", "--max-time", "5", "http://web/"]);
    let unreachable = dig_in_full(&by_stream, "web.shop");
    drop(away);

    let seen = &over_udp.json()["result"];
    assert!(over_udp.elapsed > Duration::from_secs(10), "{over_udp}");
    assert_eq!(seen["end"], "fin", "{over_udp}");
    assert_eq!(seen["matches"], true, "{over_udp}");
    assert_eq!(status_of_quick_answer(&resolved), "NOERROR", "{resolved}");
    assert!(
        resolved
            .stdout
            .contains(&testbed().service_ip("shop", "web")),
        "{resolved}"
    );
    by_name.expect_success();
    status_of_quick_answer(&unreachable);
    // Flows through the API server either went on or ended with an error.
    let finished = over_stream.finish(PATIENCE);
    let seen = &finished.json()["result"];
    let whole =
        seen["end"] == "fin" && seen["matches"] == true && seen["received"] == (14 * 50) << 16;
    let broken = seen["end"] != "fin" && seen["end"] != "timeout";
    assert!(whole || broken, "{finished}");
    for workstation in [&by_udp, &by_stream] {
        workstation.reaches_again(RECONNECT_TIMEOUT);
    }
}

#[test]
fn without_a_tunnel_cluster_names_fail_at_once_and_all_others_resolve() {
    let _alone = alone();
    let workstation = connected_by(Account::Member, "dev", "auto");
    let web = format!("{}:80", testbed().service_ip("shop", "web"));
    let cut = testbed().impair(Impairment::NothingPasses);

    // Before and after the session notices.
    let early = dig_in_full(&workstation, "intranet.corp.test");
    let lost = eventually("the loss to be noticed", SWITCH_TIMEOUT, || {
        let status = workstation.status();
        if status["state"] == "reconnecting" {
            Ok(status)
        } else {
            Err(status["state"].to_string())
        }
    });
    let late = dig_in_full(&workstation, "intranet.corp.test");
    let absent = dig_in_full(&workstation, "absent.corp.test");
    let ours = ["web.shop", "web.shop.svc.cluster.local", "web"]
        .map(|name| dig_in_full(&workstation, name));
    let connect = workstation.echo(&["connect", "-timeout", "5s", &web]);
    drop(cut);

    for company in [early, late] {
        assert_eq!(status_of_quick_answer(&company), "NOERROR", "{company}");
        assert!(company.stdout.contains("192.0.2.10"), "{company}");
    }
    status_of_quick_answer(&absent);
    for name in ours {
        assert_eq!(status_of_quick_answer(&name), "SERVFAIL", "{name}");
    }
    assert_eq!(connect["error"], "EHOSTUNREACH", "{connect}");
    assert!(connect["elapsed_ms"].as_f64() < Some(1000.0), "{connect}");
    assert_ne!(text(&lost["reason"]), "", "{lost}");
    workstation.reaches_again(RECONNECT_TIMEOUT);
}

/// Bytes that the session has sent and received over connections to the API server.
#[track_caller]
fn over_the_api_server(workstation: &Workstation) -> u64 {
    let session = format!("pid={},", workstation.session_pid());
    let ss = ["ss", "-tinpHO", "dst", "172.30.0.11:6443"];
    testbed()
        .run_inside(&testbed().workstation(), &ss)
        .lines()
        .filter(|line| line.contains(&session))
        .flat_map(str::split_whitespace)
        .filter_map(|word| {
            let counted = word
                .strip_prefix("bytes_sent:")
                .or_else(|| word.strip_prefix("bytes_received:"));
            counted?.parse::<u64>().ok()
        })
        .sum()
}

#[test]
fn where_udp_is_demanded_the_port_forward_carries_no_data_and_losing_udp_is_an_error() {
    let _alone = alone();
    // The measurement works.
    let by_stream = connected_by(Account::Root, "admin", "portforward");
    let before = over_the_api_server(&by_stream);
    assert_eq!(by_stream.exchange(SIZE)["matches"], true);
    let carried = over_the_api_server(&by_stream) - before;
    assert!(carried > 2 * SIZE, "{carried}");
    drop(by_stream);

    let workstation = connected_by(Account::Member, "dev", "udp");
    let before = over_the_api_server(&workstation);
    let seen = workstation.exchange(SIZE);
    assert_eq!(
        (&seen["matches"], &seen["end"]),
        (&true.into(), &"fin".into()),
        "{seen}"
    );
    let transfers = Transfers::start(&workstation);
    let lost = testbed().impair(Impairment::UdpLost);
    transfers.assert_broken(LOSS_TIMEOUT);
    let web = format!("{}:80", testbed().service_ip("shop", "web"));
    let refused = workstation.echo(&["connect", "-timeout", "10s", &web]);
    let status = workstation.status();
    // Ended connections are no longer counted: early ones may be missing.
    let carried = over_the_api_server(&workstation).saturating_sub(before);
    drop(lost);

    assert!(carried < MAX_UNUSED_PATH_BYTES, "{carried} bytes of {SIZE}");
    assert_ne!(refused["error"], "", "{refused}");
    assert_eq!(status["state"], "reconnecting", "{status}");
    assert_ne!(text(&status["reason"]), "", "{status}");
    workstation.reaches_again(RECONNECT_TIMEOUT);
}

/// Restores one replica, also after a failure.
struct TwoReplicas;

impl TwoReplicas {
    fn begin() -> Self {
        testbed().install_tp_and_wait(&["--replicas=2"]);
        Self
    }
}

impl Drop for TwoReplicas {
    fn drop(&mut self) {
        testbed().install_tp_and_wait(&[]);
    }
}

#[test]
fn with_two_replicas_the_other_serves_within_seconds_when_one_is_drained() {
    let _alone = alone();
    testbed().install_tp();
    let _two = TwoReplicas::begin();
    let workstation = connected_by(Account::Member, "dev", "auto");
    let replica = text(&workstation.status()["manager"]["replica"]);
    let transfers = Transfers::start(&workstation);

    testbed().kubectl(&[
        "delete",
        "pod",
        &replica,
        "--namespace=tp-system",
        "--wait=false",
    ]);

    transfers.assert_broken(LOSS_TIMEOUT);
    workstation.reaches_again(Duration::from_secs(10));
    let status = workstation.status();
    assert_ne!(status["manager"]["replica"], replica, "{status}");
}

/// A stopped process, continued when dropped.
struct Stopped(u32);

impl Stopped {
    fn begin(pid: u32) -> Self {
        signal(pid, Signal::STOP);
        Self(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        kill_if_there(self.0, Signal::CONT);
    }
}

#[test]
fn people_are_spread_over_the_replicas_and_one_that_hangs_costs_a_second() {
    let _alone = alone();
    testbed().install_tp();
    let _two = TwoReplicas::begin();
    let workstation = Workstation::new(Account::Member, "dev");
    let connect = || {
        let begun = Instant::now();
        workstation.connect(&["--namespace", "shop"]);
        let took = begun.elapsed();
        let replica = text(&workstation.status()["manager"]["replica"]);
        workstation.tp(&["quit"]).expect_success();
        (replica, took)
    };

    let served: BTreeSet<String> = (0..12).map(|_| connect().0).collect();
    assert_eq!(served.len(), 2, "{served:?}");

    let managers = testbed().managers();
    let (hanging, name) = managers.first().expect("there are two");
    let stopped = Stopped::begin(*hanging);
    for _ in 0..8 {
        let (replica, took) = connect();
        assert_ne!(replica, *name);
        assert!(took < Duration::from_secs(4), "{took:?}");
    }
    drop(stopped);
    testbed().manager_ready();
}

/// Scaled as by an autoscaler: the roles name only the replicas of the installation.
#[test]
fn a_replica_that_the_user_may_not_reach_is_left_to_others() {
    let _alone = alone();
    testbed().install_tp();
    let _two = TwoReplicas;
    let all = "statefulset/tp-manager";
    for words in [
        ["scale", all, "--replicas=2", "--namespace=tp-system"],
        ["rollout", "status", all, "--namespace=tp-system"],
    ] {
        testbed().kubectl(&words);
    }
    eventually("the key of the second replica", PATIENCE, || {
        let keys = testbed().object("tp-system", "configmap", "tp-manager");
        match keys["data"]["tp-manager-1"].is_string() {
            true => Ok(()),
            false => Err(keys["data"].to_string()),
        }
    });
    let workstation = Workstation::new(Account::Member, "dev");

    for _ in 0..8 {
        workstation.connect(&["--namespace", "shop"]);
        let status = workstation.status();
        assert_eq!(status["manager"]["replica"], "tp-manager-0", "{status}");
        workstation.tp(&["quit"]).expect_success();
    }
}

#[test]
fn who_quits_while_connecting_again_leaves_no_session_object() {
    let _alone = alone();
    testbed().install_tp();
    testbed().manager_ready();
    let sessions = || {
        let listed = ["get", "sessions.tp.internal", "-n", "shop", "-o", "name"];
        let listed = testbed().kubectl(&listed);
        listed.lines().map(str::to_owned).collect::<BTreeSet<_>>()
    };
    // Sessions of clients that other tests have killed.
    let others = sessions();
    let workstation = connected_by(Account::Member, "dev", "auto");
    let first = sessions();
    let managers = testbed().managers();
    // Stopped replicas neither delete Sessions nor answer.
    let stopped: Vec<Stopped> = managers
        .iter()
        .map(|(pid, _)| Stopped::begin(*pid))
        .collect();
    eventually(
        "an attempt to connect again",
        RECONNECT_TIMEOUT,
        || match sessions() {
            now if now.is_subset(&first) => Err(format!("{now:?}")),
            _ => Ok(()),
        },
    );

    workstation.tp(&["quit"]).expect_success();

    let left = &sessions() - &others;
    assert_eq!(left, BTreeSet::new());
    drop(stopped);
    testbed().manager_ready();
}
