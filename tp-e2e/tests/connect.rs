//! TCP connections to the cluster: their beginnings and ends are those of the far side.

use std::{fs, os::unix::fs::PermissionsExt as _, process::Command, time::Duration};

use tp_e2e::{
    cluster::{testbed, text},
    process::eventually,
    user::Account,
    workstation::Workstation,
};

/// `O_CLOEXEC`, as /proc shows it.
const CLOSE_ON_EXEC: u32 = 0o2_000_000;

const MEBI: u64 = 1 << 20;

#[test]
fn every_form_of_a_service_name_reaches_the_service() {
    let workstation = Workstation::shared();

    for name in [
        "web",
        "web.shop",
        "web.shop.svc",
        "web.shop.svc.cluster.local",
        "web.shop.svc.cluster.local.",
    ] {
        let url = format!("http://{name}/whoami");
        let said = workstation
            .run(&["curl", "-sS", "--max-time", "10", &url])
            .expect_success();

        assert!(said.starts_with("client "), "{name}: {said}");
    }
}

#[test]
fn a_service_is_reached_by_its_cluster_address() {
    let target = format!("{}:7001", testbed().service_ip("shop", "echo"));

    let seen = Workstation::shared().echo(&["talk", &target, "peer"]);

    assert_eq!(seen["end"], "fin", "{seen}");
    assert!(text(&seen["text"]).contains("\"local\""), "{seen}");
}

#[test]
fn a_pod_is_reached_by_its_own_address() {
    let target = format!("{}:7001", testbed().pod_ip("shop", "cell"));

    let seen = Workstation::shared().echo(&["talk", &target, "peer"]);

    assert!(text(&seen["text"]).contains(&target), "{seen}");
}

#[test]
fn getpeername_shows_the_cluster_address() {
    let target = format!("{}:7000", testbed().service_ip("shop", "echo"));
    let workstation = Workstation::shared();

    for flags in [
        &["-blocking"][..],
        &[],
        &["-mapped"],
        &["-mapped", "-blocking"],
    ] {
        let seen = workstation.echo(&[&["connect"], flags, &[&target]].concat());

        assert_eq!(seen["error"], "", "{flags:?}: {seen}");
        let expected = if flags.contains(&"-mapped") {
            format!("[::ffff:{}]:7000", target.trim_end_matches(":7000"))
        } else {
            target.clone()
        };
        assert_eq!(seen["peer"], expected, "{flags:?}");
    }
}

#[test]
fn a_closed_port_of_a_service_is_refused_at_once() {
    assert_connection_refused(&format!("{}:81", testbed().service_ip("shop", "web")));
}

#[test]
fn a_closed_port_of_a_pod_is_refused_at_once() {
    assert_connection_refused(&format!("{}:9", testbed().pod_ip("shop", "cell")));
}

#[test]
fn a_service_without_endpoints_is_refused_at_once() {
    assert_connection_refused(&format!("{}:80", testbed().service_ip("shop", "nobody")));
}

#[track_caller]
fn assert_connection_refused(target: &str) {
    for flags in [
        &["-blocking"][..],
        &[],
        &["-mapped"],
        &["-mapped", "-blocking"],
    ] {
        let seen = Workstation::shared().echo(&[&["connect"], flags, &[target]].concat());

        assert_eq!(seen["error"], "ECONNREFUSED", "{flags:?}: {seen}");
        assert!(
            seen["elapsed_ms"].as_f64() < Some(1000.0),
            "{flags:?}: {seen}"
        );
    }
}

#[test]
fn an_address_without_a_host_is_unreachable() {
    let pod = testbed().pod_ip("shop", "cell");
    let network = pod.rsplit_once('.').map_or("", |(network, _)| network);
    let target = format!("{network}.250:80");

    for flags in [&["-blocking"][..], &[]] {
        let seen = Workstation::shared().echo(&[&["connect"], flags, &[&target]].concat());

        assert_eq!(seen["error"], "EHOSTUNREACH", "{flags:?}: {seen}");
    }
}

#[test]
fn a_half_close_leaves_the_other_direction_open() {
    let size = (3 * MEBI).to_string();
    let workstation = Workstation::shared();

    let echoed = workstation.exchange(3 * MEBI);
    assert_eq!(echoed["end"], "fin", "{echoed}");
    assert_eq!(echoed["received"], 3 * MEBI, "{echoed}");
    assert_eq!(echoed["matches"], true, "{echoed}");

    // The server answers only after it has seen the end.
    let sunk = workstation.echo(&["talk", "-send", &size, "-half-close", "echo:7001", "sink"]);
    assert_eq!(sunk["end"], "fin", "{sunk}");
    assert!(
        text(&sunk["text"]).contains(&format!("\"received\":{size}")),
        "{sunk}"
    );
}

#[test]
fn a_reset_by_the_server_is_a_reset_after_all_its_bytes() {
    let workstation = Workstation::shared();

    let now = workstation.echo(&["talk", "echo:7001", "reset-now"]);
    assert_eq!(now["end"], "reset", "{now}");

    let size = "100000";
    let later = workstation.echo(&["talk", "-expect", size, "-poke", "echo:7001", "reset", size]);
    assert_eq!(later["received"], 100_000, "{later}");
    assert_eq!(later["matches"], true, "{later}");
    assert_eq!(later["end"], "reset", "{later}");
}

#[test]
fn a_reset_by_the_application_is_a_reset_for_the_server() {
    let workstation = Workstation::shared();
    // One pod, so that the second connection reaches the server of the first.
    let target = format!("{}:7001", testbed().pod_ip("shop", "cell"));

    workstation.echo(&[
        "talk", "-send", "10", "-expect", "10", "-abort", &target, "echo", "abort",
    ]);
    workstation.echo(&[
        "talk",
        "-send",
        "10",
        "-half-close",
        &target,
        "echo",
        "close",
    ]);

    for (tag, end) in [("abort", "reset"), ("close", "fin")] {
        eventually("the server to see the end", Duration::from_secs(5), || {
            let said = text(&workstation.echo(&["talk", &target, "report", tag])["text"]);
            if said.contains(&format!("\"end\":\"{end}\"")) {
                Ok(())
            } else {
                Err(said)
            }
        });
    }
}

#[test]
fn large_transfers_arrive_whole_in_both_directions() {
    let size = (96 * MEBI).to_string();
    let workstation = Workstation::shared();

    let down = workstation.echo(&["talk", "-seed", &size, "echo:7001", "source", &size]);
    assert_eq!(down["received"], 96 * MEBI, "{down}");
    assert_eq!(down["matches"], true, "{down}");
    assert_eq!(down["end"], "fin", "{down}");

    let both = workstation.exchange(96 * MEBI);
    assert_eq!(both["sent"], 96 * MEBI, "{both}");
    assert_eq!(both["received"], 96 * MEBI, "{both}");
    assert_eq!(both["matches"], true, "{both}");
    assert_eq!(both["end"], "fin", "{both}");
}

#[test]
fn a_server_that_speaks_first_is_heard() {
    let seen = Workstation::shared().echo(&["talk", "-half-close", "echo:7003"]);

    assert!(text(&seen["text"]).starts_with("220 "), "{seen}");
    assert_eq!(seen["end"], "fin", "{seen}");
}

#[test]
fn many_connections_at_once_all_arrive() {
    let target = format!("{}:7000", testbed().service_ip("shop", "echo"));
    let client = testbed().echo_client().display().to_string();
    let script = format!("seq 200 | xargs -P 40 -I_ {client} connect {target}");

    let said = Workstation::shared()
        .run(&["sh", "-c", &script])
        .expect_success();

    let connected = said
        .lines()
        .filter(|line| line.contains("\"error\":\"\""))
        .count();
    assert_eq!(connected, 200, "{said}");
}

#[test]
fn requests_of_every_protocol_get_their_answers() {
    let workstation = Workstation::shared();

    let one = workstation.echo(&["http", "http://echo:8080/one"]);
    assert_eq!(
        (&one["status"], &one["protocol"]),
        (&200.into(), &"HTTP/1.1".into()),
        "{one}"
    );
    let two = workstation.echo(&["http", "-h2c", "http://echo:8080/two"]);
    assert_eq!(
        (&two["status"], &two["protocol"]),
        (&200.into(), &"HTTP/2.0".into()),
        "{two}"
    );
    let socket = workstation.echo(&["ws", "ws://echo.shop:8080/ws", "hello"]);
    assert_eq!(socket["text"], "hello", "{socket}");
    let calls = workstation.echo(&["grpc", "echo.shop:9090"]);
    assert_eq!(calls["messages"], 10, "{calls}");
    assert_eq!(calls["error"], "", "{calls}");
}

#[test]
fn a_process_of_another_user_is_not_steered() {
    let target = format!("{}:7000", testbed().service_ip("shop", "echo"));
    let workstation = Workstation::shared();

    for account in [Account::Outsider, Account::Root] {
        let seen = workstation.echo_as(account, &["connect", "-timeout", "2s", &target]);
        assert_ne!(seen["error"], "", "{account:?}: {seen}");
        let name = workstation.echo_as(account, &["resolve", "echo.shop.svc.cluster.local"]);
        assert_ne!(name["error"], "", "{account:?}: {name}");
    }
}

#[test]
fn a_setuid_program_is_not_steered() {
    let workstation = Workstation::shared();
    let target = format!("{}:7000", testbed().service_ip("shop", "echo"));

    for owner in [Account::Root, Account::Outsider] {
        owner.ensure();
        let program = workstation.home().join(format!("setuid-{}", owner.name()));
        fs::copy(testbed().echo_client(), &program).unwrap();
        owner.own(&program);
        fs::set_permissions(&program, fs::Permissions::from_mode(0o4755)).unwrap();
        let program = program.to_str().unwrap();

        let seen = workstation
            .run(&[program, "connect", "-timeout", "2s", &target])
            .json();
        assert_ne!(seen["result"]["error"], "", "{owner:?}: {seen}");
        let name = workstation
            .run(&[program, "resolve", "echo.shop.svc.cluster.local"])
            .json();
        assert_ne!(name["result"]["error"], "", "{owner:?}: {name}");
    }
}

#[test]
fn root_may_connect_as_well() {
    let workstation = Workstation::connected(Account::Root, "admin", "team-b", &[]);

    let seen = workstation.echo(&["talk", "echo:7001", "peer"]);

    assert_eq!(seen["end"], "fin", "{seen}");
}

#[test]
fn traffic_that_is_not_the_clusters_goes_its_own_way() {
    let workstation = Workstation::shared();
    let neighbour = format!("/run/netns/{}", testbed().neighbour());
    let mut server = Command::new("nsenter");
    server.arg(format!("--net={neighbour}")).args([
        "python3",
        "-m",
        "http.server",
        "--bind",
        "172.30.0.210",
        "7999",
    ]);
    let _server = tp_e2e::process::Running::start(&mut server);

    let seen = eventually("the neighbour to listen", Duration::from_secs(5), || {
        let seen = workstation.echo(&["connect", "172.30.0.210:7999"]);
        if seen["error"] == "" {
            Ok(seen)
        } else {
            Err(seen.to_string())
        }
    });

    assert!(text(&seen["local"]).starts_with("172.30.0.200:"), "{seen}");
}

#[test]
fn never_proxy_leaves_an_address_alone_and_also_proxy_adds_one() {
    let workstation = Workstation::new(Account::Root, "admin");
    let web = testbed().service_ip("shop", "web");
    let lone = format!("{}:7000", testbed().service_ip("shop", "echo"));
    workstation.connect(&[
        "--namespace",
        "shop",
        "--never-proxy",
        &web,
        "--also-proxy",
        "192.0.2.0/24",
    ]);

    let left = workstation.echo(&["connect", "-timeout", "2s", &format!("{web}:80")]);
    assert_ne!(left["error"], "", "{left}");
    let dials = &workstation.status()["datapath"]["dials"];
    assert_eq!(dials.as_array().map(Vec::len), Some(0), "{dials}");
    // The address has no host, in the cluster or here: only the steering counts.
    let before = workstation.status();
    assert_eq!(before["datapath"]["aliases"], 0, "{before}");
    workstation.echo(&["connect", "-timeout", "2s", "192.0.2.77:80"]);
    let asked = workstation.status();
    assert_eq!(asked["datapath"]["aliases"], 1, "{asked}");
    let steered = workstation.echo(&["connect", &lone]);
    assert_eq!(steered["error"], "", "{steered}");
    let status = workstation.status();
    assert_eq!(status["also_proxy"][0], "192.0.2.0/24", "{status}");
    assert!(status["never_proxy"].to_string().contains(&web), "{status}");
}

#[test]
fn programs_that_a_daemon_starts_inherit_none_of_its_descriptors() {
    let workstation = Workstation::shared();

    for pid in [workstation.session_pid(), workstation.root_pid()] {
        let mut seen = 0;
        for entry in fs::read_dir(format!("/proc/{pid}/fdinfo")).unwrap() {
            let entry = entry.unwrap();
            let number: u32 = entry.file_name().to_str().unwrap().parse().unwrap();
            // A descriptor that was closed meanwhile is inherited by nobody.
            let Ok(info) = fs::read_to_string(entry.path()) else {
                continue;
            };
            let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
            let flags = u32::from_str_radix(flags.unwrap().trim(), 8).unwrap();
            seen += 1;
            assert!(
                number <= 2 || flags & CLOSE_ON_EXEC != 0,
                "process {pid}, descriptor {number}: {info}"
            );
        }
        assert!(seen > 3, "process {pid} has {seen} descriptors");
    }
}

#[test]
fn a_second_person_has_a_connection_of_their_own() {
    let one = Workstation::shared();
    let other = Workstation::connected(Account::Root, "admin", "team-b", &[]);

    let of_one = one.echo(&["resolve", "echo"]);
    let of_other = other.echo(&["resolve", "echo"]);

    assert_eq!(
        of_one["addresses"][0],
        testbed().service_ip("shop", "echo"),
        "{of_one}"
    );
    assert_eq!(
        of_other["addresses"][0],
        testbed().service_ip("team-b", "echo"),
        "{of_other}"
    );
    drop(other);
    one.read_web();
}
