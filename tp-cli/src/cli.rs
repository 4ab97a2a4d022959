//! The command line, and nothing else.

use std::{ffi::OsString, path::PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::{
    cluster_args::{ClusterArgs, ManagerArgs},
    exit,
    install::{GrantArgs, InstallArgs, UninstallArgs},
    output::Format,
    values,
};

/// Put this machine on the network of a Kubernetes cluster
///
/// After `tp connect` the programs of this user reach services and pods of the cluster by name
/// and by address, as if they ran in it. tp changes no route to the cluster, no DNS setting, no
/// file of this machine and no pod. `tp quit` leaves the machine as it was before, and so does the
/// end of any process of tp.
#[derive(Debug, Parser)]
#[command(
    name = "tp",
    version = tp_core::VERSION,
    after_help = "`tp help exit-codes` lists the exit codes and the kinds of errors.",
    max_term_width = 100,
    subcommand_required = true,
    arg_required_else_help = true
)]
pub(crate) struct Cli {
    /// How to print results and errors
    #[arg(
        long,
        short,
        global = true,
        value_enum,
        value_name = "FORMAT",
        default_value_t,
        hide_possible_values = true,
        help = "How to print results and errors: text, json or yaml"
    )]
    pub(crate) output: Format,

    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Connect(Box<ConnectArgs>),
    Intercept(Box<InterceptArgs>),
    #[command(visible_alias = "detach")]
    Leave(LeaveArgs),
    Env(EnvArgs),
    Quit(QuitArgs),
    Status(StatusArgs),
    Check(Box<CheckArgs>),
    List(ListArgs),
    Version(VersionArgs),
    GatherLogs(GatherLogsArgs),
    #[command(after_help = INSTALL_EXAMPLES)]
    Install(Box<InstallArgs>),
    #[command(after_help = UNINSTALL_EXAMPLES)]
    Uninstall(Box<UninstallArgs>),
    #[command(after_help = GRANT_EXAMPLES)]
    Grant(Box<GrantArgs>),
    Completions(CompletionsArgs),
    #[command(hide = true)]
    ExitCodes(ExitCodesArgs),
    #[command(name = "__complete", hide = true)]
    Complete(CompleteArgs),
}

mod env;
mod intercept;

pub(crate) use env::EnvArgs;
pub(crate) use intercept::{InterceptArgs, LeaveArgs, Probes, WhenDown};

const INSTALL_EXAMPLES: &str = "\
Examples:
  tp install --image registry.example/tp:0.1.0
  tp install --image registry.example/tp:0.1.0 --replicas 2 --expose loadbalancer
  tp install --image registry.example/tp:0.1.0 --dry-run -o yaml > tp.yaml

Then let users connect:
  tp grant alice --namespace shop";

const GRANT_EXAMPLES: &str = "\
Examples:
  tp grant alice --namespace shop
  tp grant --group developers -n shop -n bank
  tp grant system:serviceaccount:ci:robot -n ci --dry-run -o yaml > grant.yaml";

const UNINSTALL_EXAMPLES: &str = "\
Examples:
  tp uninstall
  tp uninstall --everything --yes";

const CONNECT_EXAMPLES: &str = "\
Examples:
  tp connect                              the current context and its namespace
  tp connect -n shop                      `web` is then the service web of the namespace shop
  tp connect --context staging -- psql -h db.shop -U app
                                          connect, run psql, quit
  tp connect --also-proxy 10.20.0.0/16    reach a network behind the cluster, too
  tp connect --never-proxy 10.96.0.10/32  leave one address of the cluster alone
  tp connect --transport udp              fail rather than send data through the API server

The first connect starts what is missing: the root daemon (through sudo, unless `tp-daemon
install` has installed it as a service) and this user's session. The user needs the permissions
that `tp grant` gives.";

/// Connect to a cluster
///
/// Starts the daemons if needed, connects to the traffic manager of the cluster and steers this
/// user's connections to services and pods into it. Running it again with the same options does
/// nothing; to change cluster, user or options, run `tp quit` first. Ctrl-C while connecting undoes
/// everything.
///
/// With a command after `--`, runs the command while connected and exits with its exit code. A
/// connection that was made for the command ends with it. Standard output is the command's alone,
/// whatever --output says; errors of `tp` itself are printed as --output says.
#[derive(Debug, Clone, Args)]
#[command(after_help = CONNECT_EXAMPLES)]
pub(crate) struct ConnectArgs {
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,

    /// Namespace whose services answer to their bare names
    ///
    /// Without it: the namespace of the context, then `default`.
    #[arg(long, short, value_name = "NAMESPACE", value_parser = values::namespace_or_none,
          help_heading = "Kubernetes")]
    pub(crate) namespace: Option<String>,

    #[command(flatten)]
    pub(crate) manager: ManagerArgs,

    /// Namespaces whose names resolve, separated by commas; all that the user may reach by default
    #[arg(
        long,
        value_name = "NAMESPACES",
        value_delimiter = ',',
        value_parser = values::namespace_or_none,
        help_heading = "Network"
    )]
    pub(crate) mapped_namespaces: Vec<String>,

    /// Further networks to reach through the cluster, in CIDR notation, separated by commas
    ///
    /// The user needs the permission to create `sessions/external` for networks that are not the
    /// cluster's own.
    #[arg(long, value_name = "CIDR", value_delimiter = ',', value_parser = values::network,
        help_heading = "Network")]
    pub(crate) also_proxy: Vec<String>,

    /// Networks to leave alone, in CIDR notation, separated by commas
    ///
    /// The longest match wins. A network that equals or contains one of the cluster's leaves that
    /// one alone.
    #[arg(long, value_name = "CIDR", value_delimiter = ',', value_parser = values::network,
        help_heading = "Network")]
    pub(crate) never_proxy: Vec<String>,

    /// How data travels to the cluster
    #[arg(
        long,
        value_enum,
        default_value_t,
        value_name = "TRANSPORT",
        help_heading = "Network"
    )]
    pub(crate) transport: Transport,

    /// Install tp in the cluster first if it is not there
    ///
    /// On a terminal this is offered when it is missing.
    #[arg(long, requires = "image", help_heading = "Installation")]
    pub(crate) install: bool,

    /// Image of the traffic manager, for --install
    #[arg(
        long,
        value_name = "REFERENCE",
        requires = "install",
        help_heading = "Installation"
    )]
    pub(crate) image: Option<String>,

    /// Command to run connected
    #[arg(last = true, value_name = "COMMAND", help_heading = "Arguments")]
    pub(crate) command: Vec<OsString>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Transport {
    /// UDP when it answers, otherwise the port-forward through the API server
    #[default]
    Auto,
    /// UDP only: no data on the port-forward
    #[value(alias = "quic")]
    Udp,
    /// The port-forward only
    Portforward,
}

/// End the connection
///
/// Returns when the machine is as it was before connecting. Succeeds also without a connection.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  tp quit\n  tp quit --stop-daemons")]
pub(crate) struct QuitArgs {
    /// Wait for the root daemon to end as well, if `tp connect` started it
    ///
    /// A root daemon that runs as a service goes on: `systemctl stop tp-daemon` ends it.
    #[arg(long, short)]
    pub(crate) stop_daemons: bool,
}

const STATUS_HELP: &str = "\
Examples:
  tp status
  tp status -o json | jq -r .transport.path
  tp status || tp connect

Without a session the state is `disconnected` and the exit code 3.";

/// Show the connection: where to, by which path, what is steered
#[derive(Debug, Args)]
#[command(after_help = STATUS_HELP)]
pub(crate) struct StatusArgs {}

const CHECK_HELP: &str = "\
Examples:
  tp check
  tp check --context staging -n shop
  tp check -o json | jq '.checks[] | select(.state != \"ok\")'

The exit code is 1 when a check failed, and 0 when there are only warnings.";

/// Check what connecting needs: kernel, root daemon, resolver, API server, rights, UDP
///
/// Prints a line for each, with what to do about a warning or a failure. Needs no root and changes
/// nothing. While connected, checks that connection and each UDP address of its traffic manager.
/// Otherwise checks the cluster that `tp connect` would connect to with the same flags.
#[derive(Debug, Clone, Args)]
#[command(after_help = CHECK_HELP)]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,

    /// Namespace to connect to
    ///
    /// Without it: the namespace of the context, then `default`.
    #[arg(long, short, value_name = "NAMESPACE", value_parser = values::namespace_or_none,
          help_heading = "Kubernetes")]
    pub(crate) namespace: Option<String>,

    #[command(flatten)]
    pub(crate) manager: ManagerArgs,
}

impl CheckArgs {
    /// Returns whether the flags name a cluster or a namespace.
    pub(crate) fn name_a_destination(&self) -> bool {
        self.cluster.are_given() || self.namespace.is_some() || self.manager.are_given()
    }
}

/// List the workloads of one namespace, or of all, with their ready replicas, ports and intercepts
///
/// Who intercepts which port is shown to users who may do so themselves.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tp list\n  tp list -A\n  tp list --all-users\n  tp list -n shop -o json"
)]
pub(crate) struct ListArgs {
    /// Namespace; the connected one by default
    #[arg(long, short, value_name = "NAMESPACE", value_parser = values::namespace_or_none)]
    pub(crate) namespace: Option<String>,

    /// All namespaces that the user may reach
    #[arg(long, short = 'A', conflicts_with = "namespace")]
    pub(crate) all_namespaces: bool,

    /// Show of each intercept whose it is, and since when
    #[arg(long)]
    pub(crate) all_users: bool,
}

/// Show the versions of client, session, root daemon and traffic manager
///
/// Works without a connection; what does not run, or is not known, is left out.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  tp version\n  tp version -o json")]
pub(crate) struct VersionArgs {}

const GATHER_HELP: &str = "\
Examples:
  tp gather-logs
  tp gather-logs --file /tmp/report.tar.gz

The archive holds the logs of session and root daemon, status, versions, and facts about the
machine (kernel, distribution, name servers, routes). Tokens, passwords, certificates and keys are
removed, and kubeconfigs are never read. Names of services and addresses remain: look through the
archive before it leaves your hands.";

/// Collect logs and facts for a report into one archive
#[derive(Debug, Args)]
#[command(after_help = GATHER_HELP)]
pub(crate) struct GatherLogsArgs {
    /// Archive to write; tp-logs-TIME.tar.gz in this directory by default
    #[arg(long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
}

const COMPLETIONS_HELP: &str = "\
Examples:
  tp completions bash > /etc/bash_completion.d/tp
  tp completions zsh > ~/.zfunc/_tp
  tp completions fish > ~/.config/fish/completions/tp.fish

Contexts are completed from the kubeconfig, namespaces while connected.";

/// Print the completion script of a shell
#[derive(Debug, Args)]
#[command(after_help = COMPLETIONS_HELP)]
pub(crate) struct CompletionsArgs {
    /// bash, zsh or fish
    #[arg(value_name = "SHELL", value_parser = shell, hide_possible_values = true)]
    pub(crate) shell: Shell,
}

/// List the exit codes and the kinds of errors
#[derive(Debug, Args)]
#[command(after_help = exit::CODES)]
pub(crate) struct ExitCodesArgs {}

/// Names for a completion script
#[derive(Debug, Args)]
pub(crate) struct CompleteArgs {
    /// Whose names
    #[arg(value_enum)]
    pub(crate) names: Names,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Names {
    /// Of the kubeconfig
    Contexts,
    /// That the user may reach, while connected
    Namespaces,
    /// Of the connected namespace
    Workloads,
    /// Of this session
    Intercepts,
}

fn shell(name: &str) -> Result<Shell, String> {
    match name {
        "bash" => Ok(Shell::Bash),
        "zsh" => Ok(Shell::Zsh),
        "fish" => Ok(Shell::Fish),
        _ => Err("known shells are bash, zsh and fish".into()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn connect(line: &str) -> ConnectArgs {
        match Cli::try_parse_from(line.split(' ')).unwrap().command {
            Command::Connect(args) => *args,
            command => panic!("{command:?}"),
        }
    }

    #[test]
    fn the_tree_of_commands_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_and_flag_is_documented() {
        for command in Cli::command().get_subcommands() {
            assert!(command.get_about().is_some(), "{}", command.get_name());
            for arg in command.get_arguments() {
                assert!(
                    arg.get_help().is_some(),
                    "{} {}",
                    command.get_name(),
                    arg.get_id()
                );
            }
        }
    }

    #[test]
    fn exit_codes_are_a_topic_of_their_own() {
        let help = |words: &[&str]| {
            let shown = Cli::try_parse_from(words).unwrap_err();
            assert!(!shown.use_stderr(), "{words:?}");
            shown.to_string()
        };

        let whole = help(&["tp", "--help"]);
        let topic = help(&["tp", "help", "exit-codes"]);

        assert!(topic.contains(exit::CODES), "{topic}");
        assert!(!whole.contains("already_connected"), "{whole}");
        assert!(whole.contains("tp help exit-codes"), "{whole}");
    }

    #[test]
    fn lists_are_separated_by_commas_or_repeated() {
        let args =
            connect("tp connect --also-proxy 10.20.1.2/16,192.0.2.1 --mapped-namespaces a,b");

        assert_eq!(args.also_proxy, ["10.20.0.0/16", "192.0.2.1/32"]);
        assert_eq!(args.mapped_namespaces, ["a", "b"]);
    }

    #[test]
    fn what_follows_two_dashes_is_the_command() {
        let args = connect("tp connect -n shop -- curl -o json http://web");

        assert_eq!(args.namespace.as_deref(), Some("shop"));
        assert_eq!(args.command, ["curl", "-o", "json", "http://web"]);
    }

    #[test]
    fn a_wrong_network_is_a_usage_error_that_names_it() {
        let error = Cli::try_parse_from(["tp", "connect", "--also-proxy", "10.0.0.0/99"]);
        let error = error.unwrap_err();

        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("10.0.0.0/99"), "{error}");
    }

    #[test]
    fn groups_are_impersonated_only_with_a_user() {
        let error = Cli::try_parse_from(["tp", "connect", "--as-group", "dev"]).unwrap_err();

        assert!(error.to_string().contains("--as <USER>"), "{error}");
    }

    #[test]
    fn an_unknown_shell_is_refused_with_the_known_ones() {
        let error = Cli::try_parse_from(["tp", "completions", "tcsh"]).unwrap_err();

        assert!(error.to_string().contains("bash, zsh and fish"), "{error}");
    }
}
