//! Credential plugins that log in as another user in another shell.

use std::fs;

use tp_e2e::{
    process::{PATIENCE, Running, eventually},
    workstation::Workstation,
};

use super::login::Login;

/// A session that was started in a shell with these variables.
#[track_caller]
fn start_session(login: &Login, variables: &[(&str, &str)]) -> Running {
    let mut session = Running::start(&mut login.desk.command(&["tp-session"], variables));
    let socket = login.desk.workstation.session_socket();
    eventually("the session to listen", PATIENCE, || {
        assert!(!session.has_ended(), "the session has ended");
        if socket.exists() {
            Ok(())
        } else {
            Err(format!("there is no {}", socket.display()))
        }
    });

    session
}

#[track_caller]
fn assert_connected_to(workstation: &Workstation, session: &Running) {
    assert_eq!(workstation.session_pid(), session.pid());
}

#[test]
fn a_plugin_goes_by_the_shell_that_asks() {
    // An expired credential makes the session run the plugin as well.
    let script = r#"
        echo "$AWS_PROFILE" >>"$here/profiles"
        [ "$AWS_PROFILE" = robot ] || exit 1
        give 1 ', "expirationTimestamp": "2020-01-01T00:00:00Z"'
    "#;
    let login = Login::new(script, "IfAvailable");
    // A session ends with the failed command, so no `tp connect` leaves one for the next.
    let session = start_session(&login, &[("AWS_PROFILE", "nobody")]);

    login.connect(&[("AWS_PROFILE", "robot")]).expect_success();
    assert_connected_to(&login.desk.workstation, &session);
    let profiles = login.text("profiles");
    assert!(profiles.lines().count() > 1, "the session's own run");
    assert!(profiles.lines().all(|it| it == "robot"), "{profiles}");

    // While connected, only the session runs the plugin, with this shell's variables.
    login.forget_runs();
    let other = login.connect(&[("AWS_PROFILE", "nobody")]);
    assert_eq!(other.code(), 78, "{other}");
    assert!(!login.runs().is_empty());
    assert_connected_to(&login.desk.workstation, &session);
    login.desk.tp(&["quit"], &[]).expect_success();
}

#[test]
fn another_user_of_the_same_name_takes_part_in_no_connection_of_the_first() {
    // The command's credential has expired, and the session's plugin waits, so that the attempt is
    // still running when the next one starts.
    let script = r#"
        if [ "$AWS_PROFILE" = second ]; then give other; exit; fi
        if [ ! -e "$here/begun" ]; then
            touch "$here/begun"
            give 1 ', "expirationTimestamp": "2020-01-01T00:00:00Z"'
            exit
        fi
        touch "$here/waits"
        until [ -e "$here/go" ]; do sleep 0.02; done
        give 1
    "#;
    let login = Login::new(script, "IfAvailable");
    let difference =
        "user system:serviceaccount:shop:default (not system:serviceaccount:shop:robot)";

    let first = login.start(&[("AWS_PROFILE", "first")]);
    eventually("the session to log in", PATIENCE, || {
        if login.path("waits").exists() {
            Ok(())
        } else {
            Err(login.desk.workstation.session_log())
        }
    });
    let mut second = login.on_a_terminal(&[("AWS_PROFILE", "second")]);
    // The session reports progress only to participants of the attempt.
    second.wait_for("reading the kubeconfig", PATIENCE);
    fs::write(login.path("go"), "").unwrap();

    first.finish(PATIENCE).expect_success();
    let (code, screen) = second.finish(PATIENCE);
    assert_eq!(code, Some(4), "{screen}");
    assert!(screen.contains(difference), "{screen}");

    // The same when the connection exists.
    let refused = login.connect(&[("AWS_PROFILE", "second")]);
    assert_eq!(refused.code(), 4, "{refused}");
    assert!(refused.stderr.contains(difference), "{refused}");
    login.connect(&[("AWS_PROFILE", "first")]).expect_success();
    login.desk.tp(&["quit"], &[]).expect_success();
}
