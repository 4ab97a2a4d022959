//! The flags of `tp install` and `tp uninstall`.

use std::time::Duration;

use clap::{
    Arg, Args, ValueEnum,
    builder::{PossibleValue, PossibleValuesParser, TypedValueParser},
};
use humantime::DurationError;
use tp_core::{environment::filter::NamePattern, intercept::holders::DISCONNECTED_AFTER};
use tp_proto::allow::Allow;

use crate::{
    cluster_args::{ClusterArgs, ManagerArgs},
    values,
};

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(120);
/// A year: an `Instant` plus this must not overflow.
const MAX_TIMEOUT: Duration = Duration::from_secs(365 * 24 * 3600);

/// Put tp into a cluster, or bring what is there to this version and these flags
///
/// Needs the rights of a cluster administrator, once. Everything is applied server-side under the
/// field manager "tp", so running it again changes nothing that is right already. With --dry-run
/// the objects are printed instead, for a repository of manifests.
#[derive(Debug, Clone, Args)]
#[command(mut_arg(ManagerArgs::NAMESPACE, with_short_name))]
pub(crate) struct InstallArgs {
    /// Image of traffic manager and agents, as the cluster's nodes pull it
    ///
    /// A release has it as tp-image.tar. Push that file to a registry of yours.
    #[arg(long, value_name = "REF")]
    pub(crate) image: Option<String>,

    /// When nodes pull the image
    #[arg(long, value_name = "POLICY", default_value = "IfNotPresent")]
    pub(crate) image_pull_policy: PullPolicy,

    #[command(flatten)]
    pub(crate) manager: ManagerArgs,

    /// How many managers serve at once
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=50))]
    pub(crate) replicas: u16,

    /// How workstations reach a manager by UDP; with none, everything goes through the API server
    #[arg(long, value_name = "HOW", default_value = "nodeport")]
    pub(crate) expose: Expose,

    /// Group that may forward a port to the managers, as with `tp grant` (repeatable)
    ///
    /// A Session is still required. In some clouds everybody who has an account there is in the
    /// group system:authenticated.
    #[arg(long, value_name = "GROUP")]
    pub(crate) connect_group: Vec<String>,

    /// Destinations that users may reach although they belong to the cluster itself (repeatable)
    #[arg(long, value_name = "WHAT", value_parser = allow())]
    pub(crate) allow: Vec<Allow>,

    /// Install no agents, and remove those of an earlier installation: nothing is intercepted then
    ///
    /// An agent is a pod on each node, with the rights to enter the network of that node's pods. A
    /// node without one serves its pods as ever.
    #[arg(long)]
    pub(crate) no_agent: bool,

    /// Let workloads of kube-system be intercepted by those who have the right there
    ///
    /// Those of tp itself never are.
    #[arg(long, conflicts_with = "no_agent")]
    pub(crate) allow_system: bool,

    /// The only namespaces whose workloads may be intercepted, whatever rights users have elsewhere
    #[arg(
        long,
        value_name = "NS,...",
        value_delimiter = ',',
        value_parser = values::namespace,
        conflicts_with = "no_agent"
    )]
    pub(crate) intercept_namespaces: Vec<String>,

    /// How long an intercept keeps its ports from others while its workstation is away
    #[arg(
        long,
        value_name = "DURATION",
        default_value = "10m",
        conflicts_with = "no_agent"
    )]
    pub(crate) release_after: Wait,
    /// Variables of containers that never leave their node, whoever asks: NAME, or its beginning with
    /// a * behind
    #[arg(
        long,
        value_name = "NAME,...",
        value_delimiter = ',',
        conflicts_with = "no_agent"
    )]
    pub(crate) env_exclude: Vec<NamePattern>,

    /// Print the objects instead of applying them: as YAML, or with --output json as one List
    #[arg(long)]
    pub(crate) dry_run: bool,

    /// How long to wait until managers and agents are ready, as in 90s or 1m30s; 0 does not wait
    #[arg(
        long,
        value_name = "DURATION",
        num_args = 0..=1,
        default_value = "2m",
        default_missing_value = "2m"
    )]
    pub(crate) wait: Wait,

    // Last: its heading is that of whatever follows.
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
}

impl InstallArgs {
    /// The default of every other flag.
    pub(crate) fn with_image(cluster: ClusterArgs, manager: ManagerArgs, image: String) -> Self {
        Self {
            cluster,
            image: Some(image),
            image_pull_policy: PullPolicy::IfNotPresent,
            manager,
            replicas: 1,
            expose: Expose::NodePort,
            connect_group: Vec::new(),
            allow: Vec::new(),
            no_agent: false,
            allow_system: false,
            intercept_namespaces: Vec::new(),
            release_after: Wait(DISCONNECTED_AFTER),
            env_exclude: Vec::new(),
            dry_run: false,
            wait: Wait(DEFAULT_TIMEOUT),
        }
    }
}

/// Take tp out of a cluster, ending every connection
///
/// This removes the agents and the traffic manager from the cluster; what was intercepted is served by
/// its containers again. To end only a connection of this machine, use `tp quit`; there are no agents
/// in pods to remove.
///
/// Custom resource definitions, namespaces and the bindings that `tp grant` made stay; --everything
/// removes them as well. Namespaces that were there before tp always stay, and bindings that somebody
/// else made stay with their namespaces.
#[derive(Debug, Clone, Args)]
#[command(mut_arg(ManagerArgs::NAMESPACE, with_short_name))]
pub(crate) struct UninstallArgs {
    #[command(flatten)]
    pub(crate) manager: ManagerArgs,

    /// Leave the cluster as it was before, and end what `tp connect` started on this machine
    ///
    /// Ends the session, and the root daemon unless it runs as a service, which `sudo tp-daemon
    /// uninstall` removes.
    #[arg(long)]
    pub(crate) everything: bool,

    /// Tell what would be removed instead of removing it
    #[arg(long)]
    pub(crate) dry_run: bool,

    /// Do not ask, even when others are connected
    #[arg(long, short = 'y')]
    pub(crate) yes: bool,

    // Last: its heading is that of whatever follows.
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
}

/// Alias for commands whose only namespace is the manager's: the flag was called --namespace.
fn with_short_name(manager_namespace: Arg) -> Arg {
    manager_namespace.alias("namespace")
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum PullPolicy {
    #[value(name = "Always", alias = "always")]
    Always,
    #[value(name = "IfNotPresent", alias = "ifnotpresent")]
    IfNotPresent,
    #[value(name = "Never", alias = "never")]
    Never,
}

impl PullPolicy {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Always => "Always",
            Self::IfNotPresent => "IfNotPresent",
            Self::Never => "Never",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Expose {
    /// A port of every node
    #[value(name = "nodeport")]
    NodePort,
    /// An address of its own per manager
    #[value(name = "loadbalancer")]
    LoadBalancer,
    /// Not at all
    None,
}

/// Parses --allow; completions and the help list the values.
fn allow() -> impl TypedValueParser<Value = Allow> {
    let about = |allow| match allow {
        Allow::Nodes => "Addresses of nodes, and of pods that share them",
        Allow::ApiServer => "The API server's Service",
    };
    let value = |allow: Allow| PossibleValue::new(allow.as_str()).help(about(allow));

    PossibleValuesParser::new(Allow::ALL.map(value)).try_map(|text| text.parse::<Allow>())
}

/// A duration as people write it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wait(pub(crate) Duration);

impl std::str::FromStr for Wait {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_number = !text.is_empty() && text.bytes().all(|it| it.is_ascii_digit());
        let parsed = if is_number {
            humantime::parse_duration(&format!("{text}s"))
        } else {
            humantime::parse_duration(text)
        };
        match parsed {
            Ok(wait) => Ok(Self(wait.min(MAX_TIMEOUT))),
            // An integer that overflows. A fraction overflows only by too many digits.
            Err(DurationError::NumberOverflow) if !text.contains('.') => Ok(Self(MAX_TIMEOUT)),
            Err(_) => {
                Err("expected a duration such as 90s, 5m or 1m30s, or a number of seconds".into())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory as _, Parser as _};

    use super::*;
    use crate::cli::{Cli, Command};

    #[test]
    fn a_wait_is_numbers_with_units_or_seconds() {
        for (text, seconds) in [
            ("90s", 90),
            ("5m", 300),
            ("2h", 7200),
            ("1m30s", 90),
            ("1h 5min", 3900),
            ("0", 0),
            ("0s", 0),
            ("007", 7),
            ("18446744073709551615", MAX_TIMEOUT.as_secs()),
            ("18446744073709551615h", MAX_TIMEOUT.as_secs()),
        ] {
            assert_eq!(
                text.parse(),
                Ok(Wait(Duration::from_secs(seconds))),
                "{text}"
            );
        }
        for text in ["", " ", "s", "soon", "5x", "-5s", "5s,", "0.5ns"] {
            let refused = text.parse::<Wait>().unwrap_err();

            assert!(refused.contains("90s"), "{text}: {refused}");
        }
    }

    #[test]
    fn a_wait_may_follow_its_flag() {
        let minutes = Wait(Duration::from_secs(120));
        for (flags, expected) in [
            ("--wait 90s", Wait(Duration::from_secs(90))),
            ("--wait=90s", Wait(Duration::from_secs(90))),
            ("--wait", minutes),
            ("--wait --replicas 2", minutes),
            ("--replicas 2", minutes),
        ] {
            let line = format!("tp install --image x {flags}");
            let command = Cli::try_parse_from(line.split(' ')).unwrap().command;
            let Command::Install(args) = command else {
                panic!("{command:?}");
            };

            assert_eq!(args.wait, expected, "{flags}");
        }
    }

    #[test]
    fn what_may_be_allowed_is_listed_and_read() {
        let tp = Cli::command();
        let install = tp.find_subcommand("install").unwrap();
        let flag = install.get_arguments().find(|it| it.get_id() == "allow");
        let values = flag.unwrap().get_possible_values();
        let told = |value: &PossibleValue| value.get_help().is_some();
        assert!(values.iter().all(told) && values.len() == Allow::ALL.len());

        let line = "tp install --image x --allow nodes --allow api-server";
        let command = Cli::try_parse_from(line.split(' ')).unwrap().command;
        let Command::Install(args) = command else {
            panic!("{command:?}");
        };
        assert_eq!(args.allow, Allow::ALL);
        assert!(Cli::try_parse_from(["tp", "install", "--allow", "pods"]).is_err());
    }

    #[test]
    fn each_command_takes_the_managers_namespace_by_one_name() {
        let named = |line: &str| match Cli::try_parse_from(line.split(' ')).unwrap().command {
            Command::Install(args) => args.manager.manager_namespace,
            Command::Uninstall(args) => args.manager.manager_namespace,
            Command::Grant(args) => args.manager.manager_namespace,
            Command::Connect(args) => args.manager.manager_namespace,
            Command::Check(args) => args.manager.manager_namespace,
            command => panic!("{command:?}"),
        };
        for command in ["install", "uninstall", "grant a -n b", "connect", "check"] {
            let line = format!("tp {command} --manager-namespace net");
            assert_eq!(named(&line), "net", "{line}");
        }
        // The former name of the flag in these commands.
        for command in ["install", "uninstall"] {
            assert_eq!(named(&format!("tp {command} --namespace net")), "net");
        }
    }

    #[test]
    fn each_flag_stands_under_its_own_heading() {
        let tp = Cli::command();
        for (command, flag, heading) in [
            ("install", "image", None),
            ("install", "wait", None),
            ("install", ManagerArgs::NAMESPACE, Some("Kubernetes")),
            ("install", "context", Some("Kubernetes")),
            ("uninstall", "everything", None),
            ("grant", "group", None),
            ("grant", "kubeconfig", Some("Kubernetes")),
        ] {
            let command = tp.find_subcommand(command).unwrap();
            let argument = command.get_arguments().find(|it| it.get_id() == flag);

            assert_eq!(argument.unwrap().get_help_heading(), heading, "{flag}");
        }
    }
}
