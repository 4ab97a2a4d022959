//! `tp uninstall`: what an installation made, in the reverse order.

use std::{
    collections::BTreeSet,
    io::{self, BufRead as _, IsTerminal as _},
    time::Duration,
};

use k8s_openapi::api::{
    authentication::v1::SelfSubjectReview,
    core::v1::{Namespace, Pod, Service},
    policy::v1::PodDisruptionBudget,
    rbac::v1::{ClusterRoleBinding, RoleBinding},
};
use kube::{
    Api, ResourceExt as _,
    api::{DynamicObject, ListParams, PostParams},
};
use tokio::time::{Instant, sleep};
use tp_core::VERSION;
use tp_proto::{
    crd::{Intercept, Session},
    fault::{Fault, FaultKind},
};

use super::{
    apply::remove,
    args::UninstallArgs,
    cluster::Cluster,
    manifests::{self, MANAGED_BY, Parameters, SELECTOR},
    object::Object,
};
use crate::{
    output::{Format, Output},
    progress::{Progress, note},
};

const GONE_TIMEOUT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(200);
/// Kinds that plain `tp uninstall` keeps: others' objects may depend on them.
const KEPT: [&str; 2] = ["Namespace", "CustomResourceDefinition"];

/// What runs on this machine after the session has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Left {
    Nothing,
    /// As a service, or of somebody else.
    RootDaemon,
}

/// Removes tp from the cluster; with it, if everything is to go, what runs on this machine, which
/// `end_here` ends.
pub(crate) async fn uninstall(
    args: UninstallArgs,
    output: Output,
    end_here: impl Future<Output = Result<Left, Fault>>,
) -> anyhow::Result<()> {
    let objects = manifests::render(&Parameters::for_removal(&args.manager.manager_namespace));
    if args.dry_run {
        return tell(&objects, args.everything, output);
    }

    // Before anything is shown: a credential plugin may use the terminal.
    let cluster = Cluster::connect(&args.cluster, None).await?;
    let mut progress = Progress::new(output);
    progress.step("looking for connections");
    let others = others(&cluster).await?;
    if !others.is_empty() && !args.yes {
        progress.clear();
        confirm(&others, output)?;
    }

    // From here on nothing is refused any more.
    let mut left = Left::Nothing;
    if args.everything {
        progress.step("ending the connection of this machine");
        left = end_here.await?;
    }
    remove_sessions(&cluster, &mut progress).await?;
    remove_objects(&cluster, &objects, args.everything, &mut progress).await?;
    remove_replicas(&cluster, &args.manager.manager_namespace, &mut progress).await?;
    let kept = if args.everything {
        remove_kept(&cluster, &objects, &mut progress).await?
    } else {
        Vec::new()
    };
    let dangling = bindings_to_tp_user(&cluster).await;
    progress.clear();

    let mut text = format!("tp {VERSION} is removed from {}.\n", cluster.server());
    for namespace in &kept {
        text.push_str(&format!(
            "Namespace {namespace} was there before tp and stays.\n"
        ));
    }
    if !dangling.is_empty() {
        text.push_str(&format!(
            "Bindings to the ClusterRole tp-user, made by administrators, stay: {}\n",
            dangling.join(", ")
        ));
    }
    if left == Left::RootDaemon {
        text.push_str(
            "The root daemon of this machine is not this user's to end and goes on: `sudo \
             tp-daemon uninstall` removes the service.\n",
        );
    }
    let removed = serde_json::json!({
        "server": cluster.server(),
        "namespace": args.manager.manager_namespace,
        "everything": args.everything,
        "kept_namespaces": kept,
        "kept_bindings": dangling,
        "root_daemon_goes_on": left == Left::RootDaemon,
    });

    output.print(&removed, &text)
}

/// What would be removed, besides Sessions and what depends on the number of replicas.
fn tell(objects: &[Object], everything: bool, output: Output) -> anyhow::Result<()> {
    let titles: Vec<String> = objects
        .iter()
        .rev()
        .filter(|object| everything || !KEPT.contains(&object.kind()))
        .map(Object::title)
        .collect();
    let text: String = titles.iter().map(|title| format!("{title}\n")).collect();

    output.print(&serde_json::json!({ "remove": titles }), &text)
}

/// Who else is connected.
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
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(Vec::new()),
        Err(error) => Err(cluster.fault("list the Sessions", &error)),
    }
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

/// First of all, while the managers still tell the clients.
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
        Err(kube::Error::Api(status)) if status.is_not_found() => Vec::new(),
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
    everything: bool,
    progress: &mut Progress,
) -> Result<(), Fault> {
    for object in objects.iter().rev() {
        let kept = KEPT.contains(&object.kind());
        if kept && !(everything && object.kind() == "CustomResourceDefinition") {
            continue;
        }
        progress.step(&format!("removing {}", object.title()));
        remove(cluster, &object.api(cluster), object.kind(), object.name()).await?;
    }

    Ok(())
}

/// What depends on the number of replicas, found by label; then waits for the last pod.
async fn remove_replicas(
    cluster: &Cluster,
    namespace: &str,
    progress: &mut Progress,
) -> Result<(), Fault> {
    let client = cluster.client();
    let list = ListParams::default().labels(SELECTOR);
    let services: Api<Service> = Api::namespaced(client.clone(), namespace);
    let found = services
        .list(&list)
        .await
        .map_err(|error| cluster.fault("list the Services of tp", &error))?;
    for service in found {
        remove(cluster, &services, "Service", &service.name_any()).await?;
    }
    let budgets: Api<PodDisruptionBudget> = Api::namespaced(client.clone(), namespace);
    let found = budgets
        .list(&list)
        .await
        .map_err(|error| cluster.fault("list the PodDisruptionBudgets of tp", &error))?;
    for budget in found {
        remove(cluster, &budgets, "PodDisruptionBudget", &budget.name_any()).await?;
    }

    progress.step("waiting for the managers to end");
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let managers = ListParams::default()
        .labels("app.kubernetes.io/name=tp,app.kubernetes.io/component=manager");
    let deadline = Instant::now() + GONE_TIMEOUT;
    loop {
        let left = pods
            .list(&managers)
            .await
            .map_err(|error| cluster.fault("list the pods of tp", &error))?;
        let Some(pod) = left.items.first() else {
            return Ok(());
        };
        still_there(deadline, "Pod", &pod.name_any())?;
        sleep(POLL).await;
    }
}

/// Removes namespaces, and waits until they and the definitions are gone. Returns the namespaces
/// that are not ours.
async fn remove_kept(
    cluster: &Cluster,
    objects: &[Object],
    progress: &mut Progress,
) -> Result<Vec<String>, Fault> {
    let namespaces: Api<Namespace> = Api::all(cluster.client().clone());
    let mut foreign = Vec::new();
    for object in objects.iter().filter(|object| object.kind() == "Namespace") {
        let found = namespaces
            .get_opt(object.name())
            .await
            .map_err(|error| cluster.fault(&format!("read {}", object.title()), &error))?;
        match found {
            Some(found) if found.labels().get(MANAGED_BY).is_some_and(|by| by == "tp") => {
                remove(cluster, &namespaces, "Namespace", object.name()).await?;
            }
            Some(_) => foreign.push(object.name().to_owned()),
            None => {}
        }
    }

    let deadline = Instant::now() + GONE_TIMEOUT;
    for object in objects.iter().filter(|object| {
        KEPT.contains(&object.kind()) && !foreign.iter().any(|name| name == object.name())
    }) {
        progress.step(&format!("waiting until {} is gone", object.title()));
        while is_there(cluster, object).await? {
            still_there(deadline, object.kind(), object.name())?;
            sleep(POLL).await;
        }
    }

    Ok(foreign)
}

async fn is_there(cluster: &Cluster, object: &Object) -> Result<bool, Fault> {
    let found: Option<DynamicObject> = object
        .api(cluster)
        .get_opt(object.name())
        .await
        .map_err(|error| cluster.fault(&format!("read {}", object.title()), &error))?;

    Ok(found.is_some())
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

/// Bindings that administrators made, as NAMESPACE/NAME; told, not touched.
async fn bindings_to_tp_user(cluster: &Cluster) -> Vec<String> {
    let client = cluster.client();
    let everything = ListParams::default();
    let bindings: Api<RoleBinding> = Api::all(client.clone());
    let cluster_bindings: Api<ClusterRoleBinding> = Api::all(client.clone());

    let mut names = Vec::new();
    if let Ok(list) = bindings.list(&everything).await {
        let ours = list
            .into_iter()
            .filter(|binding| binding.role_ref.name == "tp-user");
        names.extend(ours.map(|binding| {
            let namespace = binding.namespace().unwrap_or_default();
            format!("{namespace}/{}", binding.name_any())
        }));
    }
    if let Ok(list) = cluster_bindings.list(&everything).await {
        let ours = list
            .into_iter()
            .filter(|binding| binding.role_ref.name == "tp-user");
        names.extend(ours.map(|binding| binding.name_any()));
    }

    names
}
