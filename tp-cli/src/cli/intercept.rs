//! `tp intercept` and `tp leave`.

use std::{ffi::OsString, path::PathBuf};

use clap::{Args, ValueEnum};
use tp_core::{environment::syntax::Syntax, intercept::ports::PortMapping};

use super::env::EnvironmentFlags;
use crate::{
    cluster_args::{ClusterArgs, ManagerArgs},
    values,
};

const INTERCEPT_EXAMPLES: &str = "\
Examples:
  tp intercept web --port 8080            the only port of web comes to 127.0.0.1:8080
  tp intercept web --port 8080:http       the port that is called http
  tp intercept svc/web -p 8080:80 -p 9090:metrics
                                          two ports, as the service web names them
  tp intercept web --port 3000 -- npm start
                                          run the handler with the workload's environment; the
                                          intercept ends with it
  tp intercept web -p 3000 --env-file web.env
                                          the environment in a file, until the intercept ends

`tp leave NAME` ends an intercept, `tp status` shows them. The user needs the permissions that `tp
grant USER --namespace NAMESPACE --intercept` gives.";

/// Bring the traffic of a workload's ports to this machine
///
/// Connections that the cluster makes to the ports then reach a process on this machine, at full
/// speed and in every pod of the workload; no pod is restarted or changed. When the intercept ends,
/// or this machine is gone for five seconds, the pods serve again by themselves. Connections that
/// are under way stay where they are, unless --take-open ends them.
///
/// Without a connection to the cluster, makes one first. With a command after `--`, runs the
/// command, ends the intercept with it, and exits with its exit code. The command has the
/// environment of the workload, as `tp env` prints it, if the user may create `pods/exec` there;
/// TP_ENV_FILE is the path of a file with it for `docker run --env-file`.
#[derive(Debug, Clone, Args)]
#[command(after_help = INTERCEPT_EXAMPLES)]
pub(crate) struct InterceptArgs {
    /// NAME or KIND/NAME of a deployment, statefulset, daemonset, replicaset, job, pod or service
    ///
    /// With --workload: the name of the intercept.
    #[arg(value_name = "WORKLOAD", required_unless_present = "of_workload")]
    pub(crate) workload: Option<String>,

    /// The workload, where the first argument is the name of the intercept
    #[arg(long = "workload", short = 'w', value_name = "WORKLOAD", hide = true)]
    pub(crate) of_workload: Option<String>,

    /// LOCAL, LOCAL:PORT or LOCAL:NAME; may be given several times
    ///
    /// LOCAL is the port on this machine; what follows is a port of the workload or of its service,
    /// by number or by name. It may be left out if there is only one. Without --port: the only port,
    /// at the same number here.
    #[arg(long = "port", short, value_name = "PORT", value_parser = port)]
    pub(crate) ports: Vec<String>,

    /// What to call the intercept; the workload's name by default
    #[arg(long, value_name = "NAME", value_parser = name)]
    pub(crate) name: Option<String>,

    /// Service whose ports --port names, where several lead to the workload
    #[arg(long, value_name = "SERVICE")]
    pub(crate) service: Option<String>,

    /// Container whose ports --port names
    #[arg(long, value_name = "CONTAINER")]
    pub(crate) container: Option<String>,

    /// Where the local process listens; 127.0.0.1 by default
    #[arg(long, value_name = "HOST")]
    pub(crate) address: Option<String>,

    /// `all` pods of the workload, or the name of one
    #[arg(long, value_name = "all|POD", default_value = "all")]
    pub(crate) replica: String,

    /// Who answers the probes of the kubelet
    #[arg(long, value_enum, default_value_t, value_name = "WHO")]
    pub(crate) probes: Probes,

    /// What a connection meets while nothing listens at the local port
    #[arg(long, value_enum, default_value_t, value_name = "WHAT")]
    pub(crate) when_down: WhenDown,

    /// Tell the local process who has connected by the PROXY protocol, version 2
    ///
    /// Each connection then begins with a header that has the addresses of client and pod. Without it,
    /// a process of yours is shown the client as its peer, if both are of IPv4 or both of IPv6.
    #[arg(long)]
    pub(crate) proxy_protocol: bool,

    /// End the intercepts that others have of these ports
    ///
    /// The user needs the verb `takeover` on `intercepts.tp.internal` in the namespace.
    #[arg(long)]
    pub(crate) take_over: bool,

    /// File to write the environment of the workload to, for this user alone, until the intercept ends
    #[arg(long, value_name = "FILE", help_heading = "Environment")]
    pub(crate) env_file: Option<PathBuf>,

    /// The same as a JSON object
    #[arg(long, value_name = "FILE", help_heading = "Environment")]
    pub(crate) env_json: Option<PathBuf>,

    /// Syntax of --env-file: docker, compose, sh, csh, cmd, json or ps; sh, csh and ps also with
    /// :export
    #[arg(
        long,
        value_name = "SYNTAX",
        default_value = "docker",
        requires = "env_file",
        help_heading = "Environment"
    )]
    pub(crate) env_syntax: Syntax,

    #[command(flatten)]
    pub(crate) environment: EnvironmentFlags,

    /// End the connections to these ports that the pods have already
    ///
    /// They are reset once, in each pod, as soon as the pod's new connections come here: clients that
    /// keep connections open connect again, and reach this machine. Without it, those connections go
    /// on to the pods, and how many there are is shown. Connections of the pod to itself, and from the
    /// node to a port that is probed by TCP or gRPC, are left alone.
    #[arg(long)]
    pub(crate) take_open: bool,

    /// Let this machine's own calls pass the cluster, too
    ///
    /// Without it, they reach the local process directly. Calls of the local process itself, and of
    /// what it started, always reach the pods.
    #[arg(long)]
    pub(crate) no_local_shortcut: bool,

    /// Namespace of the workload; the connected one by default
    #[arg(long, short, value_name = "NAMESPACE", value_parser = values::namespace_or_none,
          help_heading = "Kubernetes")]
    pub(crate) namespace: Option<String>,

    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,

    #[command(flatten)]
    pub(crate) manager: ManagerArgs,

    /// Command to run while the workload is intercepted
    #[arg(last = true, value_name = "COMMAND", help_heading = "Arguments")]
    pub(crate) command: Vec<OsString>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Probes {
    /// The pod's container: probes by TCP and gRPC are told by the node's addresses
    #[default]
    Container,
    /// The local process
    Local,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum WhenDown {
    /// It is refused, as by a port where nothing listens
    #[default]
    Refuse,
    /// The pod's container serves it
    Container,
}

/// End an intercept
///
/// New connections go to the pods from then on; those under way end as they like.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  tp leave web")]
pub(crate) struct LeaveArgs {
    /// The name of the intercept, as `tp status` shows it
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
}

impl InterceptArgs {
    /// What is intercepted, and the name that the arguments give the intercept.
    pub(crate) fn workload_and_name(&self) -> (String, String) {
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        match &self.of_workload {
            None => (text(&self.workload), text(&self.name)),
            Some(workload) => {
                let name = self.name.as_ref().or(self.workload.as_ref());
                (workload.clone(), name.cloned().unwrap_or_default())
            }
        }
    }

    /// Returns whether the flags name a cluster.
    pub(crate) fn names_a_cluster(&self) -> bool {
        self.cluster.are_given() || self.manager.are_given()
    }
}

fn port(text: &str) -> Result<String, String> {
    match text.parse::<PortMapping>() {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

fn name(text: &str) -> Result<String, String> {
    match values::is_label(text) {
        true => Ok(text.to_owned()),
        false => {
            Err("an intercept is called by at most 63 lower-case letters, digits and `-`".into())
        }
    }
}
