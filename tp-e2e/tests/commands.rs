//! Output and exit codes of the commands.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use serde_json::Value;
use tp_e2e::{
    cluster::testbed,
    files::read_json,
    process::{PATIENCE, eventually, run},
    terminal::Terminal,
    user::Account,
    workstation::Workstation,
};

#[track_caller]
fn has(value: &Value, names: &[&str]) {
    for name in names {
        assert!(value.get(name).is_some(), "{name} is missing in {value}");
    }
}

#[test]
fn status_tells_what_people_and_programs_look_for() {
    let workstation = Workstation::shared();
    workstation
        .run(&["curl", "-sS", "http://web/"])
        .expect_success();

    let status = workstation.status();

    assert_eq!(status["state"], "connected", "{status}");
    assert_eq!(status["user"], "dev", "{status}");
    assert_eq!(status["namespace"], "shop", "{status}");
    has(
        &status,
        &[
            "reason",
            "context",
            "server",
            "mapped_namespaces",
            "connected_since",
            "daemon",
            "manager",
            "dns",
            "subnets",
            "also_proxy",
            "never_proxy",
            "intercepts",
            "transport",
            "datapath",
            "session_pid",
        ],
    );
    has(&status["manager"], &["namespace", "replica", "version"]);
    has(
        &status["dns"],
        &[
            "name_servers",
            "search",
            "answered",
            "passed_on",
            "failed",
            "not_covered",
        ],
    );
    has(
        &status["transport"],
        &[
            "path",
            "reason",
            "remote",
            "rtt_ms",
            "bytes_sent",
            "bytes_received",
            "mtu",
            "switches",
        ],
    );
    has(
        &status["datapath"],
        &[
            "hooks",
            "alias_network",
            "aliases",
            "flows_open",
            "flows_total",
            "drops",
            "not_steered",
            "dials",
            "last_failed_dial",
        ],
    );
    let subnets = status["subnets"].to_string();
    assert!(subnets.contains("10.96.0.0/16"), "{subnets}");
    assert!(subnets.contains("10.244."), "{subnets}");
    let hooks = status["datapath"]["hooks"].to_string();
    assert!(
        hooks.contains("connect4") && hooks.contains("connect6"),
        "{hooks}"
    );
    assert!(
        status["datapath"]["flows_total"].as_u64() > Some(0),
        "{status}"
    );
    assert_eq!(status["dns"]["name_servers"][0], "172.30.0.53", "{status}");
}

#[test]
fn status_is_text_for_people_and_yaml_for_others() {
    let workstation = Workstation::shared();

    let text = workstation.tp(&["status"]).expect_success();
    for word in [
        "connected",
        "dev",
        "shop",
        "172.30.0.11:6443",
        "10.96.0.0/16",
    ] {
        assert!(text.contains(word), "{word:?} is missing in\n{text}");
    }
    let yaml = workstation.tp(&["status", "-o", "yaml"]).expect_success();
    assert!(
        yaml.lines().any(|line| line == "state: connected"),
        "{yaml}"
    );
}

#[test]
fn status_without_a_session_is_disconnected() {
    let workstation = Workstation::without_root_daemon(Account::Member, "dev");

    let status = workstation.tp(&["status", "-o", "json"]);

    assert_eq!(status.code(), 3, "{status}");
    assert_eq!(status.json()["state"], "disconnected", "{status}");
}

#[test]
fn list_shows_the_workloads_of_the_connected_namespace() {
    let workstation = Workstation::shared();

    let listed = workstation.tp(&["list", "-o", "json"]);

    let workloads = listed.json()["workloads"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let names: BTreeSet<&str> = workloads
        .iter()
        .filter_map(|w| w["name"].as_str())
        .collect();
    assert_eq!(
        names,
        BTreeSet::from(["cell", "db", "echo", "mariadb", "rabbitmq", "web"]),
        "{listed}"
    );
    let cell = workloads
        .iter()
        .find(|w| w["name"] == "cell")
        .unwrap_or(&Value::Null);
    assert_eq!(
        (&cell["ready"], &cell["desired"]),
        (&2.into(), &2.into()),
        "{cell}"
    );
    let web = workloads
        .iter()
        .find(|w| w["name"] == "web")
        .unwrap_or(&Value::Null);
    assert!(web["ports"].to_string().contains("80"), "{web}");

    let text = workstation
        .tp(&["list", "--namespace", "team-b"])
        .expect_success();
    assert!(text.contains("echo") && !text.contains("mariadb"), "{text}");

    let all = workstation.tp(&["list", "-A"]).expect_success();
    let (table, next) = all.trim_end().rsplit_once('\n').expect("lines");
    assert!(next.starts_with("Intercept one: tp intercept "), "{all}");
    let rows: BTreeSet<&str> = table
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    assert_eq!(
        rows,
        BTreeSet::from(["NAMESPACE", "shop", "team-b"]),
        "{all}"
    );
}

#[test]
fn version_names_every_part() {
    let workstation = Workstation::shared();
    let own = env!("CARGO_PKG_VERSION");

    let version = workstation.tp(&["version", "-o", "json"]);

    for part in ["client", "session", "root_daemon", "manager"] {
        assert_eq!(version.json()[part], own, "{part}: {version}");
    }
    let text = workstation.tp(&["version"]).expect_success();
    assert!(text.matches(own).count() >= 4, "{text}");
}

#[test]
fn version_works_without_a_connection() {
    let workstation = Workstation::without_root_daemon(Account::Outsider, "stranger");

    let text = workstation.tp(&["version"]).expect_success();

    assert!(text.contains(env!("CARGO_PKG_VERSION")), "{text}");
}

#[test]
fn gathered_logs_hold_no_secret() {
    let workstation = Workstation::shared();
    let archive = workstation.state_dir().join("logs.tar.gz");
    let archive = archive.to_str().expect("the testbed's path is UTF-8");

    workstation
        .tp(&["gather-logs", "--file", archive])
        .expect_success();

    let names = workstation.run(&["tar", "-tzf", archive]).expect_success();
    assert!(names.contains("status"), "{names}");
    assert!(names.contains("log"), "{names}");
    let all = workstation.run(&["tar", "-xzOf", archive]).expect_success();
    let config = std::fs::read_to_string(workstation.kubeconfig()).expect("the kubeconfig exists");
    for line in config.lines().filter(|line| line.contains("-data: ")) {
        let secret = line.split("-data: ").nth(1).unwrap_or_default();
        assert!(!all.contains(secret), "the archive holds {line:.40}");
    }
    assert!(!all.contains("PRIVATE KEY"), "the archive holds a key");
    std::fs::remove_file(archive).expect("the archive exists");
}

#[test]
fn gathered_logs_hold_no_secret_that_others_printed() {
    const SECRET: &str = "hush-3c1f9a";
    let mut workstation = Workstation::new(Account::Member, "dev");
    workstation.may_warn();
    // An exec plugin that fails and prints its token to standard error.
    let mut config = read_json(workstation.kubeconfig());
    let token = format!("echo '{{\"status\":{{\"token\":\"{SECRET}\"}}}}'");
    let plugin = format!("{token}; {token} >&2; echo log in first >&2; exit 1");
    config["users"][0]["user"] = serde_json::json!({"exec": {
        "apiVersion": "client.authentication.k8s.io/v1", "command": "sh", "args": ["-c", plugin],
        "interactiveMode": "Never", "provideClusterInfo": false,
    }});
    let file = workstation.write_file("plugin.conf", &config.to_string());
    let file = file.to_str().expect("the testbed's path is UTF-8");
    let refused = workstation.tp(&["connect", "--namespace=shop", "--kubeconfig", file]);
    assert_eq!(refused.code(), 78, "{refused}");
    // The plugin's own output above is for the user who ran it.
    let sentence = refused.sentence();
    assert!(sentence.contains("plugin sh failed"), "{refused}");
    assert!(!sentence.contains(SECRET), "{refused}");
    // Text that quoted servers, proxies and kubeconfigs could have left there.
    for (log, lines) in [
        (
            "root.log",
            "harmless\nproxy http://dev:<>@proxy:3128 refuses\nx-api-key: <>\ntoken:\n  <>\n",
        ),
        (
            "session.log.old",
            "AWS_SECRET_ACCESS_KEY=<>\ngot k8s-aws-v1.<>\n\"password\": \"two <>\"\n",
        ),
    ] {
        let log = workstation.state_dir().join(log);
        std::fs::write(log, lines.replace("<>", SECRET)).expect("own folders are writable");
    }

    let archive = workstation.state_dir().join("archive.tar.gz");
    let archive = archive.to_str().expect("the testbed's path is UTF-8");
    workstation
        .tp(&["gather-logs", "--file", archive])
        .expect_success();

    let all = workstation.run(&["tar", "-xzOf", archive]).expect_success();
    assert!(all.contains("harmless"), "the planted logs are in it");
    assert!(!all.contains(SECRET), "{all}");
}

#[test]
fn a_command_runs_connected_and_its_exit_code_is_the_commands() {
    let workstation = Workstation::new(Account::Member, "dev");
    let connect = ["connect", "--namespace", "shop", "--"];

    let page = workstation
        .tp(&[&connect[..], &["curl", "-sS", "http://web/"]].concat())
        .expect_success();
    assert!(page.contains("nginx of"), "{page}");
    let failed = workstation.tp(&[&connect[..], &["sh", "-c", "exit 42"]].concat());
    assert_eq!(failed.code(), 42, "{failed}");

    // The connection was for the command alone.
    workstation.tp(&["status"]).expect_code(3);
}

/// As some supervisors and CI agents start programs.
#[test]
fn the_exit_code_arrives_also_where_the_signal_of_a_childs_end_is_ignored() {
    let workstation = Workstation::new(Account::Member, "dev");
    let ignoring = "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); \
                    os.execvp(sys.argv[1], sys.argv[1:])";
    let connect = ["tp", "connect", "--namespace", "shop", "--"];
    let words = [
        &["/usr/bin/python3", "-c", ignoring],
        &connect[..],
        &["sh", "-c", "exit 42"],
    ]
    .concat();

    workstation.run(&words).expect_code(42);
}

/// The terminal sends its signal to `tp` and to the command alike.
#[test]
fn an_interrupt_of_the_terminal_reaches_the_command_once_whatever_standard_input_is() {
    let workstation = Workstation::new(Account::Member, "dev");
    // Blocked signals stay pending; within this second no other may arrive.
    let command = "import signal, sys\n\
        interrupt = {signal.SIGINT}\n\
        signal.pthread_sigmask(signal.SIG_BLOCK, interrupt)\n\
        print('ready', flush=True)\n\
        signal.sigwait(interrupt)\n\
        sys.exit(1 if signal.sigtimedwait(interrupt, 1) else 42)";
    let on_its_own_terminal = ["setsid", "--ctty", "--wait"];
    let without_input = ["sh", "-c", "exec \"$0\" \"$@\" </dev/null"];
    let connect = ["tp", "connect", "--namespace", "shop", "--"];
    let words = [
        &on_its_own_terminal[..],
        &without_input,
        &connect,
        &["/usr/bin/python3", "-c", command],
    ]
    .concat();

    let mut terminal = Terminal::start(&mut workstation.command(&words));
    terminal.wait_for("ready", PATIENCE);
    terminal.interrupt();

    let (code, screen) = terminal.finish(PATIENCE);
    assert_eq!(code, Some(42), "{screen}");
}

#[test]
fn a_command_leaves_a_connection_that_was_there() {
    let workstation = Workstation::shared();

    workstation
        .tp(&["connect", "--namespace", "shop", "--", "true"])
        .expect_success();

    assert_eq!(workstation.status()["state"], "connected");
}

#[test]
fn impersonation_connects_as_somebody_else() {
    let workstation = Workstation::connected(
        Account::Root,
        "admin",
        "team-b",
        &["--as", "limited", "--as-group", "devs-limited"],
    );

    assert_eq!(workstation.status()["user"], "limited");
    let own = workstation.echo(&["talk", "echo:7001", "peer"]);
    assert_eq!(own["end"], "fin", "{own}");
    let hidden = workstation.echo(&["resolve", "web.shop"]);
    assert_ne!(hidden["error"], "", "{hidden}");
}

#[test]
fn connecting_reports_where_to() {
    let workstation = Workstation::new(Account::Root, "admin");

    let connected = workstation.connect(&["--namespace", "shop", "-o", "json"]);

    let connected = connected.json();
    assert_eq!(connected["namespace"], "shop", "{connected}");
    assert_eq!(connected["already"], false, "{connected}");
    has(&connected, &["context", "server"]);
    let quit = workstation.tp(&["quit", "-o", "json"]);
    assert_eq!(quit.json()["state"], "disconnected", "{quit}");
}

#[test]
fn connecting_says_what_can_be_reached_and_how() {
    let workstation = Workstation::new(Account::Member, "dev");
    let second = |printed: &str| printed.lines().nth(1).unwrap_or_default().to_owned();

    let connected = workstation.connect(&["--namespace", "shop"]);
    let line = second(&connected.stdout);
    assert!(line.starts_with("2 namespaces and "), "{connected}");
    assert!(
        line.contains(", by UDP to ") || line.contains(", through the port-forward to tp-manager-"),
        "{connected}"
    );

    eventually("the path by UDP", PATIENCE, || {
        let again = workstation.connect(&["--namespace", "shop", "-o", "json"]);
        let again = again.json();
        if again["path"] == "udp" {
            Ok(())
        } else {
            Err(again.to_string())
        }
    });
    let again = workstation.connect(&["--namespace", "shop"]);
    let status = workstation.status();
    let remote = status["transport"]["remote"].as_str().unwrap_or_default();
    let expected = format!(" can be reached, by UDP to {remote}");
    assert!(second(&again.stdout).ends_with(&expected), "{again}");
}

#[test]
fn a_grant_for_a_namespace_that_does_not_exist_leaves_nothing() {
    let workstation = Workstation::new(Account::Root, "admin");

    let refused = workstation.tp(&["grant", "e2e-nowhere", "--namespace", "no-such"]);

    assert_eq!(refused.code(), 1, "{refused}");
    assert!(refused.stderr.contains("no-such"), "{refused}");
    let bindings = testbed().kubectl(&["get", "rolebindings", "--all-namespaces", "-o", "name"]);
    assert!(!bindings.contains("e2e-nowhere"), "{bindings}");
}

#[test]
fn quitting_does_not_wait_for_a_root_daemon_that_stays() {
    let mut workstation = Workstation::new(Account::Root, "admin");
    // Its socket is root's alone, as that of a root daemon that ends with its last session.
    workstation.start_root_daemon_for("no-such-group");
    workstation.connect(&["--namespace", "shop"]);

    let begin = Instant::now();
    workstation.tp(&["quit"]).expect_success();

    let elapsed = begin.elapsed();
    assert!(elapsed < Duration::from_secs(3), "{elapsed:?}");
}

#[test]
fn help_is_there_for_every_command_and_fast() {
    let workstation = Workstation::without_root_daemon(Account::Member, "dev");
    for command in [
        "connect",
        "quit",
        "status",
        "check",
        "list",
        "version",
        "gather-logs",
        "install",
        "grant",
        "uninstall",
        "completions",
    ] {
        let mut help = workstation.command(&["tp", command, "--help"]);
        let said = run(&mut help, Duration::from_secs(5)).expect_success();
        assert!(said.len() > 200, "{command}: {said}");
    }
    let script = workstation.tp(&["completions", "bash"]).expect_success();
    assert!(script.contains("gather-logs"), "{script}");
}

#[test]
fn normal_use_logs_no_warning() {
    let workstation = Workstation::connected(Account::Member, "dev", "shop", &[]);
    workstation
        .run(&["curl", "-sS", "http://web/"])
        .expect_success();
    workstation.assert_closed_port_refuses();
    workstation.run(&["getent", "hosts", "absent.corp.test"]);
    workstation.tp(&["quit"]).expect_success();

    workstation.assert_quiet();
    assert!(
        !workstation.session_log().is_empty(),
        "the session has a log"
    );
}
