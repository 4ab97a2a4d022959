//! `tp connect`.

use std::{
    io::{self, BufRead, IsTerminal, Write},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;
use tokio::time::{Instant, sleep};
use tp_kube::{Credential, KubeconfigOptions, PluginMode};
use tp_proto::{
    fault::{Fault, FaultKind},
    local::{self, ConnectRequest},
};

use crate::{
    cli::{ConnectArgs, Transport},
    client,
    exit::Interrupted,
    install::{self, InstallArgs},
    kubeconfig,
    output::{Format, Output},
    progress::{Progress, note},
    signals::Signals,
};

mod attempt;
mod cgroup;
mod command;

pub(super) use self::{
    attempt::Attempt, cgroup::CommandCgroup, command::run as run_command, command::run_changed,
};
pub(super) use tp_proto::local::Connected;

/// A new installation may refuse for so long.
const NEW_INSTALLATION_TIMEOUT: Duration = Duration::from_secs(30);
const RETRY_INTERVAL: Duration = Duration::from_millis(500);

pub(crate) async fn run(args: ConnectArgs, output: Output) -> anyhow::Result<ExitCode> {
    let cgroup = CommandCgroup::of(&args.command);
    let mut signals = Signals::catch().context("cannot catch signals")?;
    let mut progress = Progress::on_terminal(output);
    let mut attempt = Attempt::default();

    let result = tokio::select! {
        signal = signals.next() => Err(Interrupted { signal, is_undone: false }.into()),
        result = connect(&args, cgroup.as_ref(), output, &mut progress, &mut attempt) => result,
    };
    let connected = match result {
        Ok(connected) => connected,
        Err(error) => return Err(undo(attempt, error, &mut progress).await),
    };
    progress.clear();
    for notice in &connected.notices {
        note(&format!("note: {notice}"));
    }

    if args.command.is_empty() {
        output.print(&connected, &format!("{}\n", summary(&connected)))?;
        return Ok(ExitCode::SUCCESS);
    }
    if output.format() == Format::Text {
        note(&summary(&connected));
    }
    enter(cgroup.as_ref())?;
    let code = run_command(&args.command, &mut signals).await;
    attempt.give_up().await;

    Ok(ExitCode::from(code?))
}

/// Gives up what a failed command has begun; an interrupted one says whether that succeeded.
pub(super) async fn undo(
    attempt: Attempt,
    mut error: anyhow::Error,
    progress: &mut Progress,
) -> anyhow::Error {
    progress.step("undoing");
    let is_undone = attempt.give_up().await;
    progress.clear();
    if let Some(interrupted) = error.downcast_mut::<Interrupted>() {
        interrupted.is_undone = is_undone;
    }

    error
}

/// Moves this process into the cgroup of its command, if that has one.
pub(super) fn enter(cgroup: Option<&CommandCgroup>) -> anyhow::Result<()> {
    let Some(cgroup) = cgroup else { return Ok(()) };

    cgroup
        .enter()
        .with_context(|| format!("cannot enter cgroup {}", cgroup.path()))
}

/// Logs in where that needs the user, and connects.
pub(super) async fn connect(
    args: &ConnectArgs,
    cgroup: Option<&CommandCgroup>,
    output: Output,
    progress: &mut Progress,
    attempt: &mut Attempt,
) -> anyhow::Result<Connected> {
    let options = install::cluster::kubeconfig_options(&args.cluster)?;
    let mut request = request(args, &options)?;
    if let Some(cgroup) = cgroup {
        request.command_cgroup = cgroup.path();
    }
    log_in(&options, &mut request, progress).await?;

    establish(args, &request, output, progress, attempt).await
}

/// Runs the credential plugin here, where it can prompt the user.
async fn log_in(
    options: &KubeconfigOptions,
    request: &mut ConnectRequest,
    progress: &mut Progress,
) -> Result<(), Fault> {
    // The session reports errors of the kubeconfig.
    let Ok(loaded) = options.load(PluginMode::Foreground) else {
        return Ok(());
    };
    if !loaded.has_plugin() || client::is_connected().await {
        return Ok(());
    }
    progress.clear();
    let credential = loaded.log_in().await?;
    if let (Some(credential), Some(shell)) = (credential, &mut request.shell) {
        shell.credential = credential.to_bytes();
        // The credential belongs to this context and user, even if the current context has changed.
        request.context = loaded.context;
        request.user = loaded.user;
    }

    Ok(())
}

/// Connects; installs tp first if it is missing and the user agrees.
async fn establish(
    args: &ConnectArgs,
    request: &ConnectRequest,
    output: Output,
    progress: &mut Progress,
    attempt: &mut Attempt,
) -> anyhow::Result<Connected> {
    let error = match attempt.connect(request, progress).await {
        Ok(connected) => return Ok(connected),
        Err(error) => error,
    };
    let Some(fault) = kind_of(&error, FaultKind::NotInstalled) else {
        return Err(error);
    };
    progress.clear();
    let Some(image) = image_to_install(args, fault)? else {
        return Err(error);
    };
    let shell = request.shell.as_ref();
    let credential = shell.and_then(|shell| Credential::from_bytes(&shell.credential));
    install::install(install_args(args, image), credential, output.silent()).await?;

    connect_to_new(request, progress, attempt).await
}

/// The policy of a new installation takes effect after a moment; until then every session is
/// refused.
async fn connect_to_new(
    request: &ConnectRequest,
    progress: &mut Progress,
    attempt: &mut Attempt,
) -> anyhow::Result<Connected> {
    let end = Instant::now() + NEW_INSTALLATION_TIMEOUT;
    loop {
        match attempt.connect(request, progress).await {
            Err(error)
                if kind_of(&error, FaultKind::TemporaryFailure).is_some()
                    && Instant::now() + RETRY_INTERVAL < end =>
            {
                sleep(RETRY_INTERVAL).await;
            }
            result => return result,
        }
    }
}

fn kind_of(error: &anyhow::Error, kind: FaultKind) -> Option<&Fault> {
    error
        .downcast_ref()
        .filter(|fault: &&Fault| fault.kind == kind)
}

/// The image to install, from --install or from a prompt on a terminal.
fn image_to_install(args: &ConnectArgs, fault: &Fault) -> anyhow::Result<Option<String>> {
    if args.install {
        return Ok(args.image.clone());
    }
    if !(io::stdin().is_terminal() && io::stderr().is_terminal()) {
        return Ok(None);
    }
    note(&fault.message);
    let mut stderr = io::stderr().lock();
    write!(
        stderr,
        "To install it, name the image of the traffic manager (empty: do not install): "
    )?;
    stderr.flush()?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    let image = answer.trim();

    Ok((!image.is_empty()).then(|| image.to_owned()))
}

fn install_args(args: &ConnectArgs, image: String) -> InstallArgs {
    InstallArgs::with_image(args.cluster.clone(), args.manager.clone(), image)
}

/// Destination, reachable namespaces and services, and path.
pub(super) fn summary(connected: &Connected) -> String {
    let Connected { path, remote, .. } = connected;
    let some = |number: u32, what: &str| {
        let plural = if number == 1 { "" } else { "s" };
        format!("{number} {what}{plural}")
    };
    let why = match connected.reason.as_str() {
        "" => String::new(),
        reason => format!(" ({reason})"),
    };
    let how = match path.as_str() {
        "udp" => format!("by UDP to {remote}"),
        "portforward" => format!("through the port-forward to {remote}{why}"),
        _ => format!("when there is a tunnel again{why}"),
    };

    format!(
        "{}\n{} and {} can be reached, {how}",
        sentence(connected),
        some(connected.namespaces, "namespace"),
        some(connected.services, "service"),
    )
}

fn sentence(connected: &Connected) -> String {
    format!(
        "{} to context {}, namespace {} ({})",
        if connected.already {
            "Already connected"
        } else {
            "Connected"
        },
        connected.context,
        connected.namespace,
        connected.server
    )
}

fn request(args: &ConnectArgs, options: &KubeconfigOptions) -> anyhow::Result<ConnectRequest> {
    let cluster = &args.cluster;
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    // An empty value is no namespace: a script's variable may be empty.
    let mapped = args.mapped_namespaces.iter();

    Ok(ConnectRequest {
        kubeconfigs: kubeconfig::for_session(options)?,
        shell: Some(local::Shell {
            // Only a plugin may need the directory.
            directory: kubeconfig::utf8(&options.shell.directory).unwrap_or_default(),
            variables: options.shell.variables.clone(),
            credential: Vec::new(),
        }),
        context: text(&cluster.context),
        cluster: text(&cluster.cluster),
        user: text(&cluster.user),
        impersonate_user: text(&cluster.impersonate_user),
        impersonate_groups: cluster.impersonate_groups.clone(),
        namespace: text(&args.namespace),
        mapped_namespaces: mapped.filter(|name| !name.is_empty()).cloned().collect(),
        also_proxy: args.also_proxy.clone(),
        never_proxy: args.never_proxy.clone(),
        transport: match args.transport {
            Transport::Auto => local::Transport::Auto,
            Transport::Udp => local::Transport::Udp,
            Transport::Portforward => local::Transport::Portforward,
        }
        .into(),
        manager_namespace: args.manager.manager_namespace.clone(),
        cgroup: String::new(),
        for_command: !args.command.is_empty(),
        command_cgroup: String::new(),
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use clap::{CommandFactory as _, Parser};

    use super::*;
    use crate::cli::{Cli, Command};

    fn request_of(line: &str) -> ConnectRequest {
        match Cli::try_parse_from(line.split(' ')).unwrap().command {
            Command::Connect(args) => {
                let options = install::cluster::kubeconfig_options(&args.cluster).unwrap();
                request(&args, &options).unwrap()
            }
            command => panic!("{command:?}"),
        }
    }

    #[test]
    fn a_relative_kubeconfig_is_sent_as_an_absolute_path() {
        let request = request_of("tp connect --kubeconfig some/config");

        let here = std::env::current_dir().unwrap();
        assert_eq!(
            request.kubeconfigs,
            [here.join("some/config").to_str().unwrap()]
        );
    }

    #[test]
    fn flags_reach_the_session() {
        let request = request_of(
            "tp connect --kubeconfig /k --context c --cluster l --user u --as jane --as-group dev \
             --as-group ops -n shop --transport udp --manager-namespace m",
        );

        assert!(!request.for_command);
        assert!(request_of("tp connect -- true").for_command);

        assert_eq!(request.context, "c");
        assert_eq!(request.cluster, "l");
        assert_eq!(request.user, "u");
        assert_eq!(request.impersonate_user, "jane");
        assert_eq!(request.impersonate_groups, ["dev", "ops"]);
        assert_eq!(request.namespace, "shop");
        assert_eq!(request.transport(), local::Transport::Udp);
        assert_eq!(request.manager_namespace, "m");
    }

    #[test]
    fn the_installation_gets_the_flags_of_connect() {
        let line = "tp connect --kubeconfig /k --context c --cluster l --user u --as jane \
                    --as-group dev --manager-namespace m --install --image localhost/tp:1";
        let Command::Connect(args) = Cli::try_parse_from(line.split_whitespace())
            .unwrap()
            .command
        else {
            panic!("another command");
        };

        let install = install_args(&args, "localhost/tp:1".into());

        assert_eq!(install.manager.manager_namespace, "m");
        assert_eq!(install.image.as_deref(), Some("localhost/tp:1"));
        let cluster = &install.cluster;
        assert_eq!(cluster.kubeconfig.as_deref(), Some(Path::new("/k")));
        assert_eq!(cluster.context.as_deref(), Some("c"));
        assert_eq!(cluster.cluster.as_deref(), Some("l"));
        assert_eq!(cluster.user.as_deref(), Some("u"));
        assert_eq!(cluster.impersonate_user.as_deref(), Some("jane"));
        assert_eq!(cluster.impersonate_groups, ["dev"]);
    }

    #[test]
    fn connecting_twice_is_said_to_be_so() {
        let connected = Connected {
            context: "lab".into(),
            server: "https://192.0.2.1:6443".into(),
            namespace: "shop".into(),
            already: true,
            ..Connected::default()
        };

        assert_eq!(
            sentence(&connected),
            "Already connected to context lab, namespace shop (https://192.0.2.1:6443)"
        );
    }
    #[test]
    fn a_second_line_says_what_can_be_reached_and_how() {
        let second =
            |connected: &Connected| summary(connected).split_once('\n').unwrap().1.to_owned();
        let mut connected = Connected {
            namespaces: 12,
            services: 84,
            path: "udp".into(),
            remote: "172.30.0.11:31234".into(),
            ..Connected::default()
        };
        assert_eq!(
            second(&connected),
            "12 namespaces and 84 services can be reached, by UDP to 172.30.0.11:31234"
        );

        connected.namespaces = 1;
        connected.services = 1;
        connected.path = "portforward".into();
        connected.remote = "tp-manager-0".into();
        connected.reason = "no answer by UDP from 172.30.0.11:31234".into();
        assert_eq!(
            second(&connected),
            "1 namespace and 1 service can be reached, through the port-forward to tp-manager-0 \
             (no answer by UDP from 172.30.0.11:31234)"
        );

        connected.path = String::new();
        connected.reason = "the replica does not answer on any path".into();
        assert!(second(&connected).contains("when there is a tunnel again (the replica"));
    }

    #[test]
    fn the_transport_has_the_words_of_the_status() {
        for (word, expected) in [
            ("udp", local::Transport::Udp),
            ("portforward", local::Transport::Portforward),
            // The former name.
            ("quic", local::Transport::Udp),
        ] {
            let request = request_of(&format!("tp connect --transport {word}"));
            assert_eq!(request.transport(), expected, "{word}");
        }
        let connect = Cli::command();
        let connect = connect.find_subcommand("connect").unwrap();
        let help = connect.clone().render_long_help().to_string();
        assert!(!help.contains("quic"), "{help}");
    }
}
