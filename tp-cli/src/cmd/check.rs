//! `tp check`: checks each requirement of `tp connect`, with a remedy for what is missing.
//!
//! The session checks what only it can see (the resolver, its sockets, the tunnel); it is started
//! for that, and ends again. Nothing here needs root or changes anything.

use std::process::ExitCode;

use serde::Serialize;
use tp_kube::PluginMode;
use tp_proto::{
    fault::{Fault, FaultKind},
    local::{Check, CheckRequest, CheckResponse, Status, StatusRequest},
};

use crate::{
    cli::CheckArgs,
    client::{self, Session},
    install::cluster::kubeconfig_options,
    output::Output,
    progress::Progress,
    spawn::{self, Started},
};

mod cluster;
mod machine;
mod steering;

#[derive(Debug, Serialize)]
struct Checked {
    checks: Vec<Check>,
}

pub(crate) async fn run(args: CheckArgs, output: Output) -> anyhow::Result<ExitCode> {
    let mut progress = Progress::on_terminal(output);
    progress.step("checking this machine");
    let mut checks = machine::checks();
    let response = of_session(&mut progress).await;
    let is_connected = response
        .as_ref()
        .is_ok_and(|response| response.is_connected);
    match response {
        Ok(response) => {
            checks.extend_from_slice(&response.checks);
            if is_connected {
                checks.extend(another_connection(&args).await);
                progress.step("asking for a name of the cluster");
                checks.push(steering::check(&response).await);
            }
        }
        Err(fault) => checks.push(Check::failed("session", fault.message, "")),
    }
    if !is_connected {
        // A credential plugin may use the terminal.
        progress.clear();
        checks.extend(cluster::checks(&args).await);
        checks.push(Check::ok(
            "connection",
            "there is none: UDP and firewalls of this machine are checked only while connected",
        ));
    }
    progress.clear();
    let checked = Checked { checks };
    output.print(&checked, &text(&checked.checks))?;

    Ok(match checked.checks.iter().any(Check::has_failed) {
        true => ExitCode::from(FaultKind::Failed.exit_code()),
        false => ExitCode::SUCCESS,
    })
}

/// A warning if the flags name another connection than the current one.
async fn another_connection(args: &CheckArgs) -> Option<Check> {
    if !args.name_a_destination() {
        return None;
    }
    let status = match client::find().await {
        Ok(Some(mut session)) => client::ask(session.status(StatusRequest {})).await,
        Ok(None) | Err(_) => return None,
    };
    let loaded =
        kubeconfig_options(&args.cluster).and_then(|options| options.load(PluginMode::Foreground));
    let server = loaded.map(|loaded| loaded.server());
    if matches!((status, server), (Ok(status), Ok(server)) if is_named(args, &status, &server)) {
        return None;
    }

    Some(Check::warning(
        "connection",
        "what was checked is the connection that there is, and the flags name another",
        "`tp quit`, then check again",
    ))
}

/// Returns whether the connection is the one that the flags name. A status does not tell the
/// kubeconfig user of `--user` nor the groups of `--as-group`.
fn is_named(args: &CheckArgs, status: &Status, server: &str) -> bool {
    let cluster = &args.cluster;
    let is = |flag: &Option<String>, connected: &str| {
        flag.as_deref().is_none_or(|flag| flag == connected)
    };
    let manager = status.manager.as_ref().map(|manager| &manager.namespace);

    cluster.user.is_none()
        && cluster.impersonate_groups.is_empty()
        && server == status.server
        && is(&cluster.context, &status.context)
        && is(&cluster.impersonate_user, &status.user)
        && is(&args.namespace, &status.namespace)
        && manager.is_none_or(|manager| *manager == args.manager.manager_namespace)
}

/// The session's checks. A session started for them ends afterwards.
async fn of_session(progress: &mut Progress) -> Result<CheckResponse, Fault> {
    let (mut session, is_ours) = match client::find().await? {
        Some(session) => (session, false),
        None => (start(progress).await?, true),
    };
    progress.step("asking the session");
    let response = client::ask(session.check(CheckRequest {})).await;
    if is_ours {
        // A session that does not end now ends when unused.
        let _ = client::leave(session).await;
    }

    response
}

async fn start(progress: &mut Progress) -> Result<Session, Fault> {
    let mut started = Started::default();
    let session = spawn::session(progress, &mut started).await;
    if session.is_err() {
        started.end().await;
    }

    session.map_err(|error| match error.downcast::<Fault>() {
        Ok(fault) => fault,
        Err(error) => Fault::new(FaultKind::Failed, format!("{error:#}")),
    })
}

/// One line per check: state, name, finding, remedy.
fn text(checks: &[Check]) -> String {
    let width = |of: fn(&Check) -> &str| checks.iter().map(|it| of(it).len()).max().unwrap_or(0);
    let (state, name) = (width(|it| &it.state), width(|it| &it.name));
    let lines = checks.iter().map(|check| {
        let remedy = match check.remedy.as_str() {
            "" => String::new(),
            remedy => format!(": {remedy}"),
        };
        format!(
            "{:<state$}  {:<name$}  {}{remedy}\n",
            check.state, check.name, check.message
        )
    });

    lines.collect()
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use tp_proto::local::ManagerStatus;

    use super::*;
    use crate::cli::{Cli, Command};

    #[test]
    fn flags_that_name_what_is_connected_are_no_reason_to_warn() {
        let status = Status {
            context: "lab".into(),
            server: "https://192.0.2.1:6443".into(),
            namespace: "shop".into(),
            user: "dev".into(),
            manager: Some(ManagerStatus {
                namespace: "tp-system".into(),
                ..ManagerStatus::default()
            }),
            ..Status::default()
        };
        let named = |flags: &str, server: &str| {
            let line = format!("tp check {flags}");
            match Cli::try_parse_from(line.split_whitespace())
                .unwrap()
                .command
            {
                Command::Check(args) => is_named(&args, &status, server),
                command => panic!("{command:?}"),
            }
        };

        for flags in [
            "-n shop",
            "-n shop --context lab",
            "--as dev",
            "--manager-namespace tp-system",
        ] {
            assert!(named(flags, &status.server), "{flags}");
        }
        for flags in [
            "-n bank",
            "--context other",
            "--as jane",
            "--user dev",
            "--as dev --as-group ops",
            "--manager-namespace net",
        ] {
            assert!(!named(flags, &status.server), "{flags}");
        }
        assert!(!named("--kubeconfig other", "https://192.0.2.2:6443"));
    }

    #[test]
    fn each_check_is_a_line_with_its_remedy() {
        let checks = [
            Check::ok("kernel", "Linux 6.12.1"),
            Check::failed(
                "tun",
                "/dev/net/tun does not exist",
                "load it with `sudo modprobe tun`",
            ),
            Check::warning("udp buffers", "the kernel gives 208 KiB", ""),
        ];

        assert_eq!(
            text(&checks),
            "\
ok       kernel       Linux 6.12.1
failed   tun          /dev/net/tun does not exist: load it with `sudo modprobe tun`
warning  udp buffers  the kernel gives 208 KiB
"
        );
    }
}
