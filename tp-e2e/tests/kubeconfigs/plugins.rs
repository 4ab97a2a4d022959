//! Credential plugins: `client.authentication.k8s.io`.

use std::{fs, time::Duration};

use rustix::process::Signal;
use serde_json::json;
use tp_e2e::process::{PATIENCE, Running, eventually, expect_end, run, signal};

use super::{
    login::{END_TIMEOUT, Login},
    support::user,
};

#[test]
fn a_plugin_runs_once_for_a_login() {
    let login = Login::new("give 1", "IfAvailable");

    login.both("a plugin").expect_success("a plugin");
    assert_eq!(login.runs().len(), 2, "once for kubectl, once for tp");
}

#[test]
fn tokens_that_live_for_seconds_and_differ_each_time_serve() {
    let script = r#"
        give $((1 + $(wc -l <"$here/runs") % 2)) \
            ", \"expirationTimestamp\": \"$(date -u -d '+3 seconds' +%Y-%m-%dT%H:%M:%SZ)\""
    "#;
    let login = Login::new(script, "IfAvailable");

    for round in 0..3 {
        login
            .both("short")
            .expect_success(&format!("round {round}"));
    }
}

#[test]
fn a_plugin_asks_on_the_terminal_of_the_command() {
    let script = r#"
        echo "To sign in enter the code ABCD" >&2
        read -r code </dev/tty
        [ "$code" = "ABCD" ] && give 1
    "#;
    let login = Login::new(script, "IfAvailable");

    let mut terminal = login.on_a_terminal(&[]);
    terminal.wait_for("enter the code ABCD", PATIENCE);
    terminal.enter("ABCD");

    let (code, screen) = terminal.finish(PATIENCE);
    assert_eq!(code, Some(0), "{screen}");
    assert_eq!(login.runs().len(), 1, "{screen}");
    // Connecting again finds the connection, without a login.
    login.connect(&[]).expect_success();
    assert_eq!(login.runs().len(), 1);
    login.desk.tp(&["quit"], &[]).expect_success();
}

#[test]
fn nothing_is_left_of_a_login_that_is_interrupted() {
    // Ctrl-C signals the plugin as well, and the kernel hangs up the terminal when `tp` ends: only
    // `tp` can end a plugin that ignores both.
    let script = r#"
        trap '' INT HUP
        echo "waiting for you" >&2
        exec sleep 300
    "#;
    let login = Login::new(script, "IfAvailable");

    for (is_by_terminal, expected) in [(true, 130), (false, 143)] {
        let mut terminal = login.on_a_terminal(&[]);
        terminal.wait_for("waiting for you", PATIENCE);
        match is_by_terminal {
            true => terminal.interrupt(),
            false => signal(login.process("parent"), Signal::TERM),
        }

        let (code, screen) = terminal.finish(PATIENCE);
        assert_eq!(code, Some(expected), "{screen}");
        expect_end("the plugin", login.runs().pop().unwrap(), END_TIMEOUT);
        login.desk.tp(&["status"], &[]).expect_code(3);
    }
}

#[test]
fn nothing_is_left_of_a_login_without_a_terminal_that_is_interrupted() {
    let script = r#"
        sleep 300 &
        echo "$!" >"$here/child"
        wait
    "#;
    let login = Login::new(script, "IfAvailable");

    let connect = login.start(&[]);
    let child = login.process("child");
    signal(login.process("parent"), Signal::TERM);

    connect.finish(PATIENCE).expect_code(143);
    expect_end("the plugin", login.runs().pop().unwrap(), END_TIMEOUT);
    expect_end("what the plugin runs", child, END_TIMEOUT);
    login.desk.tp(&["status"], &[]).expect_code(3);
}

#[test]
fn a_plugin_that_must_ask_is_refused_where_there_is_no_terminal() {
    let login = Login::new("give 1", "Always");

    login.both("Always").expect_refusal(
        "Always",
        78,
        &["login.sh", "interactiveMode: Always", "terminal"],
    );
    assert_eq!(login.runs().len(), 0);
}

#[test]
fn a_plugin_that_fails_is_named_and_its_words_are_seen() {
    let login = Login::new(
        "echo secret; echo 'log in with robotctl' >&2; exit 3",
        "Never",
    );

    let both = login.both("a failure");
    let said = both.tp.stderr.clone();
    both.expect_refusal("a failure", 78, &["login.sh", "log in with robotctl"]);
    assert!(!said.contains("secret"), "{said}");
}

#[test]
fn what_is_written_down_comes_before_a_plugin() {
    let mut login = Login::new("give 1", "IfAvailable");
    let token = login.text("token-1");
    let certificate = user(&mut login.desk.kubeconfig()).clone();
    let plugin = user(&mut login.kubeconfig).clone();
    let empty = json!({
        "token": "",
        "tokenFile": "",
        "username": "",
        "client-certificate": "",
        "client-key": "",
    });

    for (name, written, runs) in [
        ("a token", json!({"token": token}), 0),
        ("a file with a token", json!({"tokenFile": "token-1"}), 0),
        ("a certificate", certificate, 0),
        ("an empty token", json!({"token": ""}), 2),
        ("empty fields", empty, 2),
    ] {
        login.forget_runs();
        let fields = [&plugin, &written].map(|it| it.as_object().unwrap().clone());
        *user(&mut login.kubeconfig) = fields.into_iter().flatten().collect();

        login.both(name).expect_success(name);
        assert_eq!(login.runs().len(), runs, "{name}: kubectl's and tp's");
    }
}

#[test]
fn on_one_core_a_slow_credential_plugin_stalls_nothing() {
    // The plugin resolves a name, which the session that runs it answers.
    let script = r#"
        getent hosts web.shop >"$here/resolved-$(wc -l <"$here/runs")"
        sleep 3
        give 1
    "#;
    let login = Login::new(script, "IfAvailable");
    let flags = login.flags();
    // A variable that may select another user: the session logs in itself to find out.
    let connect = |shell: &str| {
        let words = ["taskset", "-c", "0", "tp", "connect", "--namespace", "shop"];
        let words = [&words[..], &flags.each_ref().map(String::as_str)].concat();
        login.desk.command(&words, &[("TP_TEST_SHELL", shell)])
    };
    run(&mut connect("first"), PATIENCE).expect_success();
    let workstation = &login.desk.workstation;
    let status = fs::read_to_string(format!("/proc/{}/status", workstation.session_pid()));
    assert!(status.unwrap().contains("Cpus_allowed_list:\t0\n"));

    let mut second = Running::start(&mut connect("second"));
    eventually("the plugin to run", PATIENCE, || match login.runs().len() {
        2 => Ok(()),
        runs => Err(format!("{runs} runs")),
    });
    let mut rounds = 0;
    while !second.has_ended() {
        for name in ["web.shop", "intranet.corp.test"] {
            let found = workstation.run(&["taskset", "-c", "0", "getent", "hosts", name]);
            assert!(found.status.success(), "{found}");
            assert!(found.elapsed < Duration::from_secs(1), "{found}");
        }
        rounds += 1;
    }

    assert!(rounds > 2, "{rounds} rounds while the plugin slept");
    second.finish(PATIENCE).expect_success();
    assert_ne!(login.text("resolved-2"), "");
}
