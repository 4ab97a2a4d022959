//! `tp uninstall`: removes an installation, in the reverse order.

use std::{
    collections::BTreeSet,
    io::{self, BufRead as _, IsTerminal as _},
    time::Duration,
};

use k8s_openapi::api::{authentication::v1::SelfSubjectReview, core::v1::Pod};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, ListParams, PostParams},
};
use tokio::time::{Instant, sleep};
use tp_proto::{
    crd::{AGENT_NAMESPACE, Intercept, Session},
    fault::{Fault, FaultKind},
};

use super::{
    apply::{remove, remove_with},
    args::UninstallArgs,
    checks,
    cluster::Cluster,
    object::Object,
    rollout::{node_of, unready_nodes},
};
use crate::{
    output::{Format, Output},
    progress::{Progress, note},
};
use found::{Found, path};

mod found;
#[cfg(test)]
mod tests;

const GONE_TIMEOUT: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// What still runs on this machine after the session has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Remaining {
    Nothing,
    /// It is a service, or another user's.
    RootDaemon,
}

/// Removes tp from the cluster. With `everything` it also awaits `end_here`, which ends tp on this
/// machine.
pub(crate) async fn uninstall(
    args: UninstallArgs,
    output: Output,
    end_here: impl Future<Output = Result<Remaining, Fault>>,
) -> anyhow::Result<()> {
    // Before anything is shown: a credential plugin may use the terminal.
    let cluster = Cluster::connect(&args.cluster, None).await?;
    let mut progress = match args.dry_run {
        true => Progress::on_terminal(output),
        false => Progress::new(output),
    };
    progress.step("looking for connections");
    let others = others(&cluster).await?;
    progress.step("looking for what is installed");
    let found = installed(&cluster, &args).await?;
    progress.clear();
    if args.dry_run {
        return print_plan(&found.to_remove(args.everything), output);
    }
    if !others.is_empty() && !args.yes {
        confirm(&others, output)?;
    }

    // No refusal after this line.
    let mut remaining = Remaining::Nothing;
    if args.everything {
        progress.step("ending the connection of this machine");
        remaining = end_here.await?;
    }
    remove_sessions(&cluster, &mut progress).await?;
    // Agents first: they are in the network of pods, which managers are not.
    let agents = found.objects.iter().take_while(|it| is_agents(it)).count();
    let (agents, rest) = found.objects.split_at(agents);
    remove_objects(&cluster, agents, &mut progress).await?;
    pods_gone(&cluster, Pods::Agents, &mut progress).await?;
    remove_objects(&cluster, rest, &mut progress).await?;
    let managers = Pods::Managers(&args.manager.manager_namespace);
    pods_gone(&cluster, managers, &mut progress).await?;
    if args.everything {
        remove_objects(&cluster, &found.lasting, &mut progress).await?;
        objects_gone(&cluster, &found.lasting, &mut progress).await?;
        // Last: one in another's namespace may be refused, and those in tp's namespaces are gone.
        remove_objects(&cluster, &found.granted, &mut progress).await?;
    }
    progress.clear();

    let removed_bindings: Vec<String> = match args.everything {
        true => found.granted.iter().map(path).collect(),
        false => Vec::new(),
    };
    let removed = serde_json::json!({
        "server": cluster.server(),
        "namespace": args.manager.manager_namespace,
        "everything": args.everything,
        "kept_namespaces": if args.everything { found.foreign.as_slice() } else { &[] },
        "removed_bindings": removed_bindings,
        "kept_bindings": found.kept_bindings(args.everything),
        "root_daemon_goes_on": remaining == Remaining::RootDaemon,
    });

    output.print(
        &removed,
        &text(cluster.server(), &found, args.everything, remaining),
    )
}

/// The objects to remove; an error if there are none.
async fn installed(cluster: &Cluster, args: &UninstallArgs) -> Result<Found, Fault> {
    let namespace = &args.manager.manager_namespace;
    // The cluster-wide objects belong to that installation.
    if let Some(other) = checks::other_installation(cluster, namespace).await? {
        let server = cluster.server();
        return Err(Fault::new(
            FaultKind::NotInstalled,
            format!(
                "tp is installed in the namespace {other} of {server}, not in {namespace}: pass \
                 --manager-namespace {other}"
            ),
        ));
    }
    let found = Found::of(cluster, namespace, args.everything).await?;
    if found.to_remove(args.everything).is_empty() {
        return Err(found.absence(cluster, namespace));
    }

    Ok(found)
}

fn text(server: &str, found: &Found, everything: bool, remaining: Remaining) -> String {
    let paths = |bindings: &[Object]| bindings.iter().map(path).collect::<Vec<_>>().join(", ");
    let mut text = format!("tp is removed from {server}.\n");
    if !found.others.is_empty() {
        let titles: Vec<String> = found.others.iter().map(Object::title).collect();
        text.push_str(&format!(
            "These are called as tp's are, and stay, since tp did not make them: {}\n",
            titles.join(", ")
        ));
    }
    if found.are_bindings_hidden {
        text.push_str("Bindings of `tp grant` stay, which this user may not list.\n");
    }
    if everything {
        for namespace in &found.foreign {
            text.push_str(&format!(
                "Namespace {namespace} was there before tp and stays.\n"
            ));
        }
        let kept = found.kept_bindings(everything);
        if !kept.is_empty() {
            text.push_str(&format!(
                "Bindings to roles of tp that `tp grant` did not make stay: {}\n",
                kept.join(", ")
            ));
        }
    } else {
        if !found.granted.is_empty() {
            text.push_str(&format!(
                "Bindings that `tp grant` made stay, and count again when tp is installed again: \
                 {}\n",
                paths(&found.granted)
            ));
        }
        if !found.bound.is_empty() {
            text.push_str(&format!(
                "Other bindings to roles of tp stay: {}\n",
                paths(&found.bound)
            ));
        }
    }
    if remaining == Remaining::RootDaemon {
        text.push_str(
            "The root daemon of this machine keeps running, since this user may not end it: `sudo \
             tp-daemon uninstall` removes the service.\n",
        );
    }

    text
}

/// Prints the objects that would be removed, besides Sessions.
fn print_plan(objects: &[&Object], output: Output) -> anyhow::Result<()> {
    let titles: Vec<String> = objects.iter().map(|object| object.title()).collect();
    let text: String = titles.iter().map(|title| format!("{title}\n")).collect();

    output.print(&serde_json::json!({ "remove": titles }), &text)
}

/// The other connected users.
async fn others(cluster: &Cluster) -> Result<BTreeSet<String>, Fault> {
    let reviews: Api<SelfSubjectReview> = Api::all(cluster.client().clone());
    let review = reviews
        .create(&PostParams::default(), &SelfSubjectReview::default())
        .await
        .map_err(|error| cluster.fault("ask who you are", &error))?;
    let own = review
        .status
        .and_then(|status| status.user_info)
        .and_then(|user| user.username)
        .unwrap_or_default();
    let sessions = sessions(cluster).await?;

    Ok(sessions
        .into_iter()
        .map(|session| session.spec.user.username)
        .filter(|user| *user != own)
        .collect())
}

/// Every Session; none where the kind does not exist.
async fn sessions(cluster: &Cluster) -> Result<Vec<Session>, Fault> {
    let sessions: Api<Session> = Api::all(cluster.client().clone());
    match sessions.list(&ListParams::default()).await {
        Ok(list) => Ok(list.items),
        Err(error) if is_unknown(&error) => Ok(Vec::new()),
        Err(error) => Err(cluster.fault("list the Sessions", &error)),
    }
}

/// Returns whether the API server does not know the kind. It may say so in plain text, without a
/// reason.
fn is_unknown(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

fn confirm(others: &BTreeSet<String>, output: Output) -> Result<(), Fault> {
    let names: Vec<&str> = others.iter().map(String::as_str).collect();
    let connected = format!("others are connected: {}", names.join(", "));
    if output.format() != Format::Text || !io::stdin().is_terminal() {
        return Err(Fault::new(
            FaultKind::Failed,
            format!("{connected}; pass --yes to end their connections"),
        ));
    }
    note(&format!("{connected}. End their connections? [y/N]"));
    let mut answer = String::new();
    let read = io::stdin().lock().read_line(&mut answer);
    if read.is_ok() && matches!(answer.trim(), "y" | "Y" | "yes") {
        Ok(())
    } else {
        Err(Fault::new(
            FaultKind::Failed,
            "nothing was removed, because others are connected",
        ))
    }
}

/// First, while the managers can still inform the clients.
async fn remove_sessions(cluster: &Cluster, progress: &mut Progress) -> Result<(), Fault> {
    progress.step("ending connections");
    let client = cluster.client();
    for session in sessions(cluster).await? {
        let namespace = session.namespace().unwrap_or_default();
        let api: Api<Session> = Api::namespaced(client.clone(), &namespace);
        remove(cluster, &api, "Session", &session.name_any()).await?;
    }
    let intercepts: Api<Intercept> = Api::all(client.clone());
    let list = match intercepts.list(&ListParams::default()).await {
        Ok(list) => list.items,
        Err(error) if is_unknown(&error) => Vec::new(),
        Err(error) => return Err(cluster.fault("list the Intercepts", &error)),
    };
    for intercept in list {
        let namespace = intercept.namespace().unwrap_or_default();
        let api: Api<Intercept> = Api::namespaced(client.clone(), &namespace);
        remove(cluster, &api, "Intercept", &intercept.name_any()).await?;
    }

    Ok(())
}

async fn remove_objects(
    cluster: &Cluster,
    objects: &[Object],
    progress: &mut Progress,
) -> Result<(), Fault> {
    for object in objects {
        progress.step(&format!("removing {}", object.title()));
        remove(cluster, &object.api(cluster), object.kind(), object.name()).await?;
    }

    Ok(())
}

fn is_agents(object: &Object) -> bool {
    object.kind() == "DaemonSet"
}

/// The pods of tp.
#[derive(Clone, Copy)]
enum Pods<'a> {
    Agents,
    /// In this namespace.
    Managers(&'a str),
}

impl<'a> Pods<'a> {
    fn component(self) -> &'static str {
        match self {
            Self::Agents => "agent",
            Self::Managers(_) => "manager",
        }
    }

    fn namespace(self) -> &'a str {
        match self {
            Self::Agents => AGENT_NAMESPACE,
            Self::Managers(namespace) => namespace,
        }
    }
}

/// Waits for the end of the last of these pods.
async fn pods_gone(
    cluster: &Cluster,
    pods: Pods<'_>,
    progress: &mut Progress,
) -> Result<(), Fault> {
    let component = pods.component();
    progress.step(&format!("waiting for the {component}s to end"));
    let api: Api<Pod> = Api::namespaced(cluster.client().clone(), pods.namespace());
    let labelled = ListParams::default().labels(&format!(
        "app.kubernetes.io/name=tp,app.kubernetes.io/component={component}"
    ));
    let deadline = Instant::now() + GONE_TIMEOUT;
    loop {
        let remaining = api
            .list(&labelled)
            .await
            .map_err(|error| cluster.fault("list the pods of tp", &error))?;
        let Some(pod) = remaining.items.first() else {
            return Ok(());
        };
        if matches!(pods, Pods::Agents) {
            forget_unreachable(cluster, &api, &remaining.items).await?;
        }
        still_there(deadline, "Pod", &pod.name_any())?;
        sleep(POLL_INTERVAL).await;
    }
}

/// Removes the pods of nodes that are not Ready, whose kubelet may never say that they have ended. It ends
/// them when it is back.
async fn forget_unreachable(cluster: &Cluster, api: &Api<Pod>, pods: &[Pod]) -> Result<(), Fault> {
    let unready = unready_nodes(cluster).await;
    let unreachable = pods
        .iter()
        .filter(|pod| node_of(pod).is_some_and(|node| unready.contains(node)));
    for pod in unreachable {
        remove_with(cluster, api, "Pod", &pod.name_any(), &at_once()).await?;
    }

    Ok(())
}

fn at_once() -> DeleteParams {
    DeleteParams::background().grace_period(0)
}

async fn objects_gone(
    cluster: &Cluster,
    objects: &[Object],
    progress: &mut Progress,
) -> Result<(), Fault> {
    let deadline = Instant::now() + GONE_TIMEOUT;
    for object in objects {
        progress.step(&format!("waiting until {} is gone", object.title()));
        while found::read(cluster, object).await?.is_some() {
            still_there(deadline, object.kind(), object.name())?;
            sleep(POLL_INTERVAL).await;
        }
    }

    Ok(())
}

fn still_there(deadline: Instant, kind: &str, name: &str) -> Result<(), Fault> {
    if Instant::now() < deadline {
        return Ok(());
    }

    Err(Fault::new(
        FaultKind::TemporaryFailure,
        format!(
            "{kind} {name} is still being removed after {} s: look at its finalizers, then run \
             this again",
            GONE_TIMEOUT.as_secs()
        ),
    ))
}
