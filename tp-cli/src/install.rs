//! `tp install`, `tp grant` and `tp uninstall`: the objects of tp in a cluster.
//!
//! Manifests are YAML templates in `install/manifests`, applied server-side, so that a second run
//! converges and other field managers keep what is theirs. Nothing secret passes through here.

mod apply;
mod args;
mod checks;
pub(crate) mod cluster;
mod grant;
#[cfg(test)]
mod lab;
mod manifests;
mod object;
pub(crate) mod rollout;
mod uninstall;

use anyhow::Context as _;
use tp_core::VERSION;
use tp_kube::Credential;

pub(crate) use args::{InstallArgs, UninstallArgs};
pub(crate) use grant::{GrantArgs, grant};
pub(crate) use uninstall::{Remaining, uninstall};

use crate::{
    output::{Format, Output, print_all},
    progress::Progress,
};
use cluster::Cluster;
use manifests::Parameters;

/// Applies all objects, removes those of earlier flags, and waits.
///
/// `credential`: from an earlier login.
pub(crate) async fn install(
    args: InstallArgs,
    credential: Option<Credential>,
    output: Output,
) -> anyhow::Result<()> {
    let parameters = Parameters::from_args(&args)?;
    let objects = manifests::render(&parameters);
    if args.dry_run {
        return print(&objects, output);
    }

    // Before anything is shown: a credential plugin may use the terminal.
    let cluster = Cluster::connect(&args.cluster, credential).await?;
    let mut progress = Progress::new(output);
    progress.step("asking the API server for its version");
    checks::kubernetes_version(&cluster).await?;
    checks::no_downgrade(&cluster, &parameters.namespace).await?;
    checks::no_other_installation(&cluster, &parameters.namespace).await?;

    let foreign = apply::apply(&cluster, &objects, &parameters, &mut progress).await?;
    let mut without_agent = Vec::new();
    if !args.wait.0.is_zero() {
        without_agent = rollout::wait(&cluster, &parameters, args.wait.0, &mut progress).await?;
    }
    progress.clear();

    let namespace = &parameters.namespace;
    let installed = serde_json::json!({
        "version": VERSION,
        "server": cluster.server(),
        "namespace": namespace,
        "image": parameters.image,
        "replicas": parameters.replicas,
        "agents": parameters.agents.is_some(),
        "nodes_without_agent": without_agent,
        "kept_namespaces": foreign,
    });
    let mut text = format!(
        "tp {VERSION} is installed in {} (namespace {namespace}).\n\
         Let somebody use it in a namespace:\n  \
         tp grant USER --namespace NAMESPACE\n\
         Then, on their machine: tp connect\n",
        cluster.server(),
    );
    for name in &foreign {
        text.push_str(&format!(
            "Namespace {name} was there before tp and stays as it is, with its Pod Security.\n"
        ));
    }
    if parameters.agents.is_none() {
        text.push_str("There are no agents: nothing is intercepted.\n");
    }
    if !without_agent.is_empty() {
        text.push_str(&format!(
            "Nodes that are not Ready have no agent yet: {}\n",
            without_agent.join(", ")
        ));
    }

    output.print(&installed, &text)
}

/// Prints the objects, for a repository of manifests.
fn print(objects: &[object::Object], output: Output) -> anyhow::Result<()> {
    if output.format() == Format::Json {
        let items: Vec<_> = objects.iter().map(|object| &object.value).collect();
        return output.object(&serde_json::json!({
            "apiVersion": "v1",
            "kind": "List",
            "items": items,
        }));
    }
    let mut text = String::new();
    for object in objects {
        text.push_str("---\n");
        text.push_str(&serde_norway::to_string(&object.value).context("cannot print YAML")?);
    }

    print_all(&text)
}
