use std::{fs, path::Path};

use super::*;
use crate::login::Login;

fn plugin(script: &str, change: impl FnOnce(&mut ExecConfig, &mut Shell)) -> Plugin {
    let mut config: ExecConfig = serde_json::from_value(serde_json::json!({
        "apiVersion": DEFAULT_API_VERSION,
        "command": "sh",
        "args": ["-c", script, "secret-argument"],
        "interactiveMode": "IfAvailable",
    }))
    .unwrap();
    let mut shell = Shell::current();
    change(&mut config, &mut shell);

    Plugin::new(config, shell, PluginMode::Background)
}

async fn failure(script: &str) -> String {
    let plugin = plugin(script, |_, _| {});

    plugin.run().await.unwrap_err().to_string()
}

/// A script that returns `token`, expanded by its shell.
fn giving(token: &str) -> String {
    format!(r#"printf '{{"kind": "ExecCredential", "status": {{"token": "%s"}}}}' "{token}""#)
}

async fn token(plugin: &Plugin) -> String {
    plugin.run().await.unwrap().token.unwrap()
}

#[tokio::test]
async fn what_a_credential_plugin_prints_is_not_told() {
    let failed = failure("echo secret-output; echo first >&2; echo log in >&2; exit 3").await;

    let words = "its credential plugin sh failed";
    assert!(failed.starts_with(words), "{failed}");
    assert!(failed.ends_with("3): log in"), "{failed}");
    assert!(!failed.contains("secret"), "{failed}");
}

#[tokio::test]
async fn what_a_credential_plugin_prints_is_not_told_when_it_is_no_credential() {
    for output in [
        "token: secret-1: x: y",
        r#"{\"status\":{\"token\":\"secret-2\""#,
    ] {
        let odd = failure(&format!("echo \"{output}\"")).await;

        assert_eq!(odd, "its credential plugin sh printed no ExecCredential");
    }
}

#[tokio::test]
async fn a_plugin_that_is_not_there_is_named_with_the_hint_of_the_kubeconfig() {
    let plugin = plugin("", |config, _| {
        config.command = Some("/absent/login".to_owned());
        config.install_hint = Some("install it with apt\n".to_owned());
    });

    let failure = plugin.run().await.unwrap_err().to_string();

    assert!(failure.contains("/absent/login cannot be run"), "{failure}");
    assert!(failure.ends_with("; install it with apt"), "{failure}");
}

#[tokio::test]
async fn a_plugin_runs_in_the_shell_that_asked_and_not_in_this_process() {
    let directory = tempfile::tempdir().unwrap();
    let plugin = plugin(
        &giving("$PROFILE,$OWN,$(basename \"$PWD\"),${CARGO_MANIFEST_DIR:-none}"),
        |config, shell| {
            shell.directory = directory.path().to_owned();
            shell.variables.clear();
            for (name, value) in [("PATH", "/usr/bin:/bin"), ("PROFILE", "b"), ("OWN", "no")] {
                shell.variables.insert(name.to_owned(), value.to_owned());
            }
            let own = [("name", "OWN"), ("value", "yes")];
            config.env = Some(vec![
                own.map(|(key, value)| (key.to_owned(), value.to_owned()))
                    .into(),
            ]);
        },
    );

    let name = directory.path().file_name().unwrap().to_str().unwrap();
    assert_eq!(token(&plugin).await, format!("b,yes,{name},none"));
}

#[tokio::test]
async fn a_plugin_is_told_what_it_may_do_and_for_which_version() {
    let script = r#"case "$KUBERNETES_EXEC_INFO" in
        *'"kind":"ExecCredential"'*'client.authentication.k8s.io/v1"'*'"interactive":false'*) ;;
        *) echo "$KUBERNETES_EXEC_INFO" >&2; exit 1;;
    esac; "#;
    let plugin = plugin(&format!("{script}{}", giving("t")), |_, _| {});

    assert_eq!(token(&plugin).await, "t");
}

#[tokio::test]
async fn a_plugin_that_must_ask_is_not_run_where_nobody_hears_it() {
    let plugin = plugin("exit 1", |config, _| {
        config.interactive_mode = Some(ExecInteractiveMode::Always);
    });

    let failure = plugin.run().await.unwrap_err().to_string();

    assert!(failure.contains("interactiveMode: Always"), "{failure}");
    assert!(
        failure.ends_with("`tp quit` and `tp connect` log in again"),
        "{failure}"
    );
}

/// The PID that a script has written to `file`.
async fn process(file: &Path) -> String {
    loop {
        match fs::read_to_string(file) {
            Ok(pid) if pid.ends_with('\n') => return pid.trim().to_owned(),
            _ => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

fn lives(pid: &str) -> bool {
    fs::read_to_string(format!("/proc/{pid}/status"))
        .is_ok_and(|status| !status.contains("State:\tZ"))
}

async fn gone(pid: &str) {
    let gone = async {
        while lives(pid) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(5), gone)
        .await
        .expect("it was killed with the plugin");
}

#[tokio::test]
async fn nothing_is_left_of_a_plugin_that_nobody_waits_for_any_more() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("pid");
    let script = format!("sleep 300 & echo $! >{}; wait", file.display());
    let plugin = plugin(&script, |_, _| {});

    let child = tokio::select! {
        ended = plugin.run() => panic!("{ended:?}"),
        child = process(&file) => child,
    };

    gone(&child).await;
}

#[tokio::test]
async fn what_a_plugin_leaves_running_is_not_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("pid");
    let agent = format!("sleep 300 >/dev/null & echo $! >{}; ", file.display());
    let plugin = plugin(&format!("{agent}{}", giving("t")), |_, _| {});

    let token = timeout(Duration::from_secs(5), token(&plugin)).await;
    let agent = process(&file).await;

    assert_eq!(token.expect("only its output is waited for"), "t");
    assert!(lives(&agent), "it was killed");
    let pid = agent.parse().ok().and_then(Pid::from_raw).unwrap();
    rustix::process::kill_process(pid, Signal::KILL).unwrap();
}

#[tokio::test]
async fn a_login_goes_on_without_the_request_that_needed_it_first() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name).display().to_string();
    let (started, go_on) = (file("started"), file("go-on"));
    let script = format!(
        "echo $$ >>{started}; while ! test -e {go_on}; do sleep 0.01; done; {}",
        giving("t")
    );
    let login = Login::new(plugin(&script, |_, _| {}), None);
    tokio::select! {
        got = login.credential() => panic!("{got:?}"),
        _ = process(Path::new(&started)) => {}
    }

    fs::write(&go_on, "").unwrap();
    let token = login.credential().await.unwrap().token;

    assert_eq!(token.as_deref(), Some("t"));
    let runs = fs::read_to_string(&started).unwrap();
    assert_eq!(runs.lines().count(), 1, "{runs}");
}

#[tokio::test]
async fn nothing_is_left_of_a_login_that_nobody_holds_any_more() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("pid");
    let script = format!("echo $$ >{}; exec sleep 300", file.display());
    let login = Login::new(plugin(&script, |_, _| {}), None);
    let child = tokio::select! {
        got = login.credential() => panic!("{got:?}"),
        child = process(&file) => child,
    };

    drop(login);

    gone(&child).await;
}
