//! Users without rights: each is refused, with the reason.

use std::time::Duration;

use tp_e2e::{
    cluster::{testbed, text},
    process::{PATIENCE, eventually, run},
    user::Account,
    workstation::Workstation,
};

/// For a granted or revoked right to take effect.
const RIGHTS_TIMEOUT: Duration = Duration::from_secs(5);

#[test]
fn a_user_sees_and_reaches_only_namespaces_they_have_a_right_to() {
    let workstation = Workstation::connected(Account::Member, "limited", "team-b", &[]);

    let own = workstation.echo(&["talk", "echo:7001", "peer"]);
    assert_eq!(own["end"], "fin", "{own}");
    for name in [
        "web.shop",
        "web.shop.svc.cluster.local",
        "cell-0.cells.shop.svc.cluster.local",
    ] {
        let hidden = workstation.echo(&["resolve", name]);
        assert_ne!(hidden["error"], "", "{name}: {hidden}");
    }
    let targets = [
        format!("{}:80", testbed().service_ip("shop", "web")),
        format!("{}:7000", testbed().pod_ip("shop", "cell")),
    ];
    for target in &targets {
        let closed = workstation.echo(&["connect", target]);
        assert_ne!(closed["error"], "", "{target}: {closed}");
        assert!(
            closed["elapsed_ms"].as_f64() < Some(3000.0),
            "{target}: {closed}"
        );
    }
    let status = workstation.status();
    assert!(
        status["datapath"]["dials"]
            .to_string()
            .contains("prohibited"),
        "{status}"
    );
    let why = text(&status["datapath"]["last_failed_dial"]);
    assert!(why.contains("the user may not"), "{why}");
    let listed = workstation.tp(&["list", "--namespace", "shop"]);
    assert_eq!(listed.code(), 77, "{listed}");
}

#[test]
fn rights_given_and_taken_while_connected_count_within_five_seconds() {
    let workstation = Workstation::connected(Account::Member, "limited", "team-b", &[]);
    let target = format!("{}:80", testbed().service_ip("shop", "web"));
    let reaches = || workstation.echo(&["connect", "-timeout", "2s", &target])["error"] == "";
    assert!(!reaches());

    testbed().give_right("e2e-for-a-while", "limited", "shop");
    let given = std::panic::catch_unwind(|| {
        eventually("the new right to count", RIGHTS_TIMEOUT, || {
            if reaches() {
                Ok(())
            } else {
                Err("not reached".into())
            }
        });
    });
    testbed().take_right("e2e-for-a-while", "shop");
    assert!(given.is_ok(), "the new right did not count");

    eventually("the right to be gone", RIGHTS_TIMEOUT, || {
        if reaches() {
            Err("still reached".into())
        } else {
            Ok(())
        }
    });
}

#[test]
fn a_stranger_to_the_cluster_is_told_which_rule_is_missing() {
    let workstation = Workstation::new(Account::Member, "stranger");

    let refused = workstation.tp(&["connect", "--namespace", "shop"]);

    assert_eq!(refused.code(), 77, "{refused}");
    assert!(refused.stderr.contains("sessions"), "{refused}");
    assert!(refused.stderr.contains("shop"), "{refused}");
    workstation.tp(&["status"]).expect_code(3);
}

/// Revokes the grant, also after a failure.
struct Granted<'a>(&'a str);

impl Drop for Granted<'_> {
    fn drop(&mut self) {
        for (purpose, namespace) in [("use", "shop"), ("connect", "tp-system")] {
            let name = format!("tp-{purpose}-user-{}", self.0);
            let namespace = format!("--namespace={namespace}");
            let delete = ["delete", "rolebinding", "--ignore-not-found"];
            testbed().kubectl(&[&delete[..], &[&name, &namespace]].concat());
        }
    }
}

/// Port-forwards to the manager need a grant, until this is dropped.
struct OnlyGranted;

impl OnlyGranted {
    fn begin() -> Self {
        let delete = ["delete", "rolebinding", "e2e-connect", "-n", "tp-system"];
        testbed().kubectl(&delete);
        Self
    }
}

impl Drop for OnlyGranted {
    fn drop(&mut self) {
        testbed().everybody_may_reach_the_manager();
    }
}

#[test]
fn a_refused_connect_names_the_command_that_grants_it() {
    let _connect = OnlyGranted::begin();
    let workstation = Workstation::new(Account::Member, "stranger");
    let _granted = Granted("stranger");
    let granting = "tp grant stranger --namespace shop";

    let refused = workstation.tp(&["connect", "--namespace", "shop"]);
    assert_eq!(refused.code(), 77, "{refused}");
    assert!(
        refused.stderr.contains(&format!("`{granting}`")),
        "{refused}"
    );

    let grant = |words: &str| {
        let words: Vec<&str> = words.split(' ').collect();
        let mut grant = workstation.command_as(Account::Root, &words);
        run(
            grant.env("KUBECONFIG", testbed().kubeconfig("admin")),
            PATIENCE,
        )
    };
    let nowhere = grant(&format!("{granting} --namespace absent"));
    assert_eq!(nowhere.code(), 1, "{nowhere}");
    assert!(nowhere.stderr.contains("nothing was granted"), "{nowhere}");
    let refused = workstation.tp(&["connect", "--namespace", "shop"]);
    assert_eq!(refused.code(), 77, "nothing was: {refused}");
    grant(granting).expect_success();

    eventually("the right to count", RIGHTS_TIMEOUT, || {
        let connected = workstation.tp(&["connect", "--namespace", "shop"]);
        match connected.status.success() {
            true => Ok(()),
            false => Err(connected.to_string()),
        }
    });
}

#[test]
fn a_user_outside_the_group_cannot_use_the_root_daemon() {
    let owner = Workstation::shared();
    let mut outsider = Workstation::without_root_daemon(Account::Outsider, "dev");
    outsider.may_warn();
    let socket = owner.root_socket().to_str().unwrap().to_owned();

    let mut command = outsider.command(&["tp", "connect", "--namespace", "shop"]);
    let refused = run(command.env("TP_ROOT_SOCKET", &socket), PATIENCE);

    assert_eq!(refused.code(), 77, "{refused}");
    assert!(refused.stderr.contains("group tp"), "{refused}");
}

#[test]
fn the_socket_of_a_session_serves_its_own_user_only() {
    let workstation = Workstation::shared();
    let socket = workstation.session_socket();
    let socket = socket.to_str().expect("the testbed's path is UTF-8");
    // Root can enter every folder, and is refused by the session itself.
    for (account, is_served) in [
        (workstation.account(), true),
        (Account::Member, false),
        (Account::Root, false),
    ] {
        let ask = ["curl", "-sS", "--max-time", "5", "--http2-prior-knowledge"];
        let there = ["--unix-socket", socket, "http://session/"];
        let asked = workstation.run_as(account, &[&ask[..], &there].concat());

        assert_eq!(asked.status.success(), is_served, "{account:?}: {asked}");
    }
}

#[test]
fn nobody_else_can_use_the_alias_range() {
    let workstation = Workstation::shared();
    // An open connection shows its alias in the machine's list of sockets.
    let mut held = workstation.start_echo(&["talk", "-mark", "10", "-send", "10", "echo:7000"]);
    held.wait_for("mark", PATIENCE);
    let network = text(&workstation.status()["datapath"]["alias_network"]);
    let prefix = network.split(".0").next().unwrap().to_owned();
    let sockets = testbed().run_inside(&testbed().workstation(), &["ss", "-tnH"]);
    let address = sockets
        .split_whitespace()
        .find(|word| word.starts_with(&prefix) && word.ends_with(":7000"))
        .unwrap_or_else(|| panic!("no alias of {network} in\n{sockets}"))
        .to_owned();
    let reached = |account: Account| {
        workstation.echo_as(account, &["connect", "-timeout", "1s", &address])["error"] == ""
    };

    // An alias works only for steered sockets, such as the held one.
    assert!(!reached(workstation.account()), "the user's own programs");
    assert!(!reached(Account::Outsider), "another user");
    assert!(!reached(Account::Root), "root");

    // A neighbour that routes the range to this machine, and a machine that forwards.
    let namespace = testbed().workstation();
    testbed().run_inside(&namespace, &["sysctl", "-qw", "net.ipv4.ip_forward=1"]);
    let route = ["ip", "route", "replace", &network, "via", "172.30.0.200"];
    testbed().run_inside(&testbed().neighbour(), &route);
    let mut command = testbed().inside(&testbed().neighbour());
    command
        .arg(testbed().echo_client())
        .args(["connect", "-timeout", "1s", &address]);
    let from_neighbour = run(&mut command, PATIENCE).json()["result"]["error"] == "";
    for (name, words) in [
        (testbed().neighbour(), ["ip", "route", "del", &network]),
        (namespace, ["sysctl", "-q", "-w", "net.ipv4.ip_forward=0"]),
    ] {
        testbed().run_inside(&name, &words);
    }

    assert!(!from_neighbour, "a forwarded packet");
}

#[test]
fn two_sessions_of_one_user_are_one() {
    let workstation = Workstation::connected(Account::Root, "admin", "shop", &[]);
    let pid = workstation.session_pid();

    let again = workstation.connect(&["--namespace", "shop"]);

    assert!(again.stdout.contains("Already connected"), "{again}");
    assert_eq!(workstation.session_pid(), pid);
}

#[test]
fn whose_session_is_deleted_is_told_so_and_connects_no_more_by_itself() {
    let mut workstation = Workstation::new(Account::Member, "limited");
    workstation.may_warn();
    workstation.connect(&["--namespace", "team-b"]);
    let of_team = ["sessions.tp.internal", "--namespace=team-b"];

    testbed().kubectl(&[&["delete", "--all"], &of_team[..]].concat());

    workstation.expect_soon("disconnected");
    let status = workstation.tp(&["status"]);
    assert!(status.stdout.contains("Session object"), "{status}");
    let left = testbed().kubectl(&[&["get", "--output=name"], &of_team[..]].concat());
    assert_eq!(left, "");
    workstation.connect(&["--namespace", "team-b"]);
}
