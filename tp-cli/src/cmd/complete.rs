//! `tp __complete`: names for the completion scripts, one a line.
//!
//! Runs on a key press: it asks no cluster but by the session, runs no plugin, and prints only names.

use std::time::Duration;

use tokio::{task::spawn_blocking, time::timeout};
use tp_proto::local::{ListRequest, NamespacesRequest, StatusRequest};

use crate::{
    cli::{CompleteArgs, Names},
    client,
    cluster_args::ClusterArgs,
    install::cluster,
    output::print_all,
};

const TIMEOUT: Duration = Duration::from_millis(300);

pub(crate) async fn run(args: &CompleteArgs) {
    let names = async {
        match args.names {
            Names::Contexts => contexts().await,
            Names::Namespaces => namespaces().await,
            Names::Workloads => workloads().await,
            Names::Intercepts => intercepts().await,
        }
    };
    let names = timeout(TIMEOUT, names).await.unwrap_or_default();
    let plain = names.iter().filter(|name| is_plain(name));
    let lines: String = plain.map(|name| format!("{name}\n")).collect();
    // The shell may have closed the pipe.
    let _ = print_all(&lines);
}

/// Returns whether shells read it literally: the scripts put names on the command line unquoted,
/// and kubeconfigs come from others.
fn is_plain(name: &str) -> bool {
    let is_plain = |it: char| it.is_alphanumeric() || "@:/._=+-".contains(it);

    !name.is_empty() && name.chars().all(is_plain)
}

/// Contexts of the kubeconfigs that kubectl would read here. One may be a silent pipe.
async fn contexts() -> Vec<String> {
    let read = spawn_blocking(|| {
        let options = cluster::kubeconfig_options(&ClusterArgs::default());

        options.map(|options| options.contexts())
    });

    read.await.ok().and_then(Result::ok).unwrap_or_default()
}

/// Namespaces that the session knows, if it runs.
async fn namespaces() -> Vec<String> {
    let Ok(Some(mut session)) = client::find().await else {
        return Vec::new();
    };
    let response = client::ask(session.namespaces(NamespacesRequest {})).await;

    response.map(|it| it.namespaces).unwrap_or_default()
}

/// Workloads of the connected namespace.
async fn workloads() -> Vec<String> {
    let Ok(Some(mut session)) = client::find().await else {
        return Vec::new();
    };
    let response = client::ask(session.list(ListRequest::default())).await;
    let workloads = response.map(|it| it.workloads).unwrap_or_default();
    let mut names: Vec<String> = workloads.into_iter().map(|it| it.name).collect();
    // Sorted; two kinds may share a name.
    names.dedup();

    names
}

/// Intercepts of the session.
async fn intercepts() -> Vec<String> {
    let Ok(Some(mut session)) = client::find().await else {
        return Vec::new();
    };
    let status = client::ask(session.status(StatusRequest {})).await;
    let intercepts = status.map(|it| it.intercepts).unwrap_or_default();

    intercepts.into_iter().map(|it| it.name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_a_shell_would_read_otherwise_are_left_out() {
        for plain in [
            "arn:aws:eks:eu-west-1:1:cluster/shop",
            "dev@kind",
            "a_b=c+d",
        ] {
            assert!(is_plain(plain), "{plain}");
        }
        for other in [
            "",
            "my lab",
            "$(touch x)",
            "a;b",
            "`a`",
            "a\tb",
            "a*",
            "~a",
            "a'b",
        ] {
            assert!(!is_plain(other), "{other}");
        }
    }
}
