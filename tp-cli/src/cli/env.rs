//! `tp env`, and the flags of an environment.

use clap::Args;
use tp_core::environment::{
    filter::{Assignment, Filter, NamePattern},
    syntax::Syntax,
};

use crate::values;

const ENV_EXAMPLES: &str = "\
Examples:
  tp env web                              as `docker run --env-file` reads it
  eval \"$(tp env web --env-syntax sh:export)\"
                                          into this shell
  tp env web --container app --env-syntax json

The user needs the permission to create `pods/exec` in the namespace.";

/// Print the environment of a workload
///
/// It is that of the first process of a container, in a pod that is Ready. What a program at this
/// machine must not have is left out: the machine's own names, such as PATH, and what could make a
/// program here run what a pod chose. A variable that the syntax cannot hold is named on standard
/// error, and so is one that is left out.
#[derive(Debug, Clone, Args)]
#[command(after_help = ENV_EXAMPLES)]
pub(crate) struct EnvArgs {
    /// NAME or KIND/NAME of a deployment, statefulset, daemonset, replicaset, job, pod or service
    #[arg(value_name = "WORKLOAD")]
    pub(crate) workload: String,

    /// Container; by default the one that kubectl takes
    #[arg(long, short, value_name = "CONTAINER")]
    pub(crate) container: Option<String>,

    /// docker, compose, sh, csh, cmd, json or ps; sh, csh and ps also with :export
    #[arg(long, value_name = "SYNTAX", default_value = "docker")]
    pub(crate) env_syntax: Syntax,

    #[command(flatten)]
    pub(crate) environment: EnvironmentFlags,

    /// Namespace of the workload; the connected one by default
    #[arg(long, short, value_name = "NAMESPACE", value_parser = values::namespace_or_none,
          help_heading = "Kubernetes")]
    pub(crate) namespace: Option<String>,
}

/// Which variables of a workload come to this machine.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct EnvironmentFlags {
    /// Variable to take over though tp leaves it out: NAME, or its beginning with a * behind
    #[arg(
        long,
        value_name = "NAME",
        value_delimiter = ',',
        help_heading = "Environment"
    )]
    env_include: Vec<NamePattern>,

    /// Variable to leave out: NAME, or its beginning with a * behind
    #[arg(
        long,
        value_name = "NAME",
        value_delimiter = ',',
        help_heading = "Environment"
    )]
    env_exclude: Vec<NamePattern>,

    /// Variable to set, whatever the workload has
    #[arg(long, value_name = "NAME=VALUE", help_heading = "Environment")]
    env_set: Vec<Assignment>,
}

impl EnvironmentFlags {
    pub(crate) fn filter(&self) -> Filter {
        Filter {
            include: self.env_include.clone(),
            exclude: self.env_exclude.clone(),
            set: self.env_set.clone(),
        }
    }

    /// A flag that was given.
    pub(crate) fn any(&self) -> Option<&'static str> {
        let flags = [
            ("--env-include", self.env_include.is_empty()),
            ("--env-exclude", self.env_exclude.is_empty()),
            ("--env-set", self.env_set.is_empty()),
        ];
        let given = flags.iter().find(|(_, is_empty)| !is_empty);

        given.map(|(flag, _)| *flag)
    }
}
