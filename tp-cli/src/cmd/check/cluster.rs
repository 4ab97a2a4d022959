//! The API server and what is installed behind it, asked as `tp connect` would ask.

use std::time::{Duration, Instant};

use k8s_openapi::api::{
    authentication::v1::SelfSubjectReview,
    authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec},
    core::v1::{ConfigMap, Namespace, Pod},
};
use kube::{Api, api::PostParams};
use tokio::time::timeout;
use tp_proto::{
    crd::{GROUP, MANAGER_CONFIG_MAP, MANAGER_NAME, MANAGER_VERSION_KEY},
    fault::{Fault, FaultKind},
    grant,
    local::Check,
    version,
};

use crate::{
    cli::CheckArgs,
    install::{self, cluster::Cluster, rollout::is_ready},
    kubeconfig,
};

#[cfg(test)]
mod tests;

/// For all requests after the login.
const TIMEOUT: Duration = Duration::from_secs(20);
const API_SERVER: &str = "api server";
const MANAGER: &str = "traffic manager";

pub(super) async fn checks(args: &CheckArgs) -> Vec<Check> {
    // Read once more besides the login, as a session would.
    let options = install::cluster::kubeconfig_options(&args.cluster);
    if let Err(fault) = options.and_then(|options| kubeconfig::for_session(&options)) {
        return vec![Check::failed("kubeconfig", fault.message, "")];
    }
    let cluster = match Cluster::connect(&args.cluster, None).await {
        Ok(cluster) => cluster,
        Err(fault) => return vec![Check::failed("kubeconfig", fault.message, "")],
    };
    let named = args.namespace.as_deref().filter(|name| !name.is_empty());
    let namespace = named.unwrap_or_else(|| cluster.client().default_namespace());
    let manager_namespace = &args.manager.manager_namespace;
    let asked = timeout(TIMEOUT, ask(&cluster, namespace, manager_namespace));

    asked.await.unwrap_or_else(|_| {
        let message = format!(
            "{} did not answer all questions within {} s",
            cluster.server(),
            TIMEOUT.as_secs()
        );
        vec![Check::failed(API_SERVER, message, "check the network")]
    })
}

async fn ask(cluster: &Cluster, namespace: &str, manager_namespace: &str) -> Vec<Check> {
    let (user, mut checks) = match login(cluster).await {
        Ok((user, found)) => (user, Vec::from(found)),
        Err(fault) => {
            // Without it no other check is possible.
            return vec![Check::failed(API_SERVER, fault.message, "")];
        }
    };
    let absent = absent_namespace(cluster, namespace).await;
    let command = grant::command(&user, namespace, manager_namespace);
    let remedy = format!("an administrator runs `{command}`");
    let sessions = ResourceAttributes {
        group: Some(GROUP.to_owned()),
        resource: Some("sessions".to_owned()),
        ..attributes(namespace, "create")
    };
    let forwards = ResourceAttributes {
        resource: Some("pods".to_owned()),
        subresource: Some("portforward".to_owned()),
        name: Some(format!("{MANAGER_NAME}-0")),
        ..attributes(manager_namespace, "create")
    };
    match absent {
        Some(absent) => checks.push(absent),
        None => {
            let what = format!("connect to the namespace {namespace}");
            checks.push(right(cluster, &what, sessions, &remedy).await);
        }
    }
    let what = format!("forward a port to the traffic manager in {manager_namespace}");
    checks.push(right(cluster, &what, forwards, &remedy).await);
    checks.push(manager(cluster, manager_namespace).await);

    checks
}

/// The user's name at the API server, and the round-trip time to it.
async fn login(cluster: &Cluster) -> Result<(String, [Check; 2]), Fault> {
    let reviews = Api::<SelfSubjectReview>::all(cluster.client().clone());
    let review = reviews
        .create(&PostParams::default(), &SelfSubjectReview::default())
        .await
        .map_err(|error| cluster.fault("ask the API server who you are", &error))?;
    let user = review
        .status
        .and_then(|status| status.user_info?.username)
        .unwrap_or_default();
    // The connection is open: this measures one round trip.
    let asked = Instant::now();
    let version = cluster
        .client()
        .apiserver_version()
        .await
        .map_err(|error| cluster.fault("ask the API server for its version", &error))?;
    let took = asked.elapsed().as_secs_f64() * 1e3;

    let server = Check::ok(
        API_SERVER,
        format!(
            "{}, Kubernetes {}, round trip {took:.1} ms",
            cluster.server(),
            version.git_version
        ),
    );
    let login = Check::ok("login", format!("known as {user}"));

    Ok((user, [server, login]))
}

/// A failed check if the namespace does not exist: the API server grants rights in absent ones.
async fn absent_namespace(cluster: &Cluster, namespace: &str) -> Option<Check> {
    let namespaces = Api::<Namespace>::all(cluster.client().clone());

    // A user who may not read namespaces skips this check.
    matches!(namespaces.get_opt(namespace).await, Ok(None)).then(|| {
        Check::failed(
            "namespace",
            format!("there is no namespace {namespace} in {}", cluster.server()),
            "name another one with --namespace",
        )
    })
}

fn attributes(namespace: &str, verb: &str) -> ResourceAttributes {
    ResourceAttributes {
        namespace: Some(namespace.to_owned()),
        verb: Some(verb.to_owned()),
        ..ResourceAttributes::default()
    }
}

async fn right(
    cluster: &Cluster,
    what: &str,
    attributes: ResourceAttributes,
    remedy: &str,
) -> Check {
    const NAME: &str = "rights";

    let reviews = Api::<SelfSubjectAccessReview>::all(cluster.client().clone());
    let review = SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec {
            resource_attributes: Some(attributes),
            ..SelfSubjectAccessReviewSpec::default()
        },
        ..SelfSubjectAccessReview::default()
    };
    match reviews.create(&PostParams::default(), &review).await {
        Ok(review) if review.status.as_ref().is_some_and(|it| it.allowed) => {
            Check::ok(NAME, format!("you may {what}"))
        }
        Ok(_) => Check::failed(NAME, format!("you may not {what}"), remedy),
        Err(error) => {
            let fault = cluster.fault("ask for your rights", &error);
            Check::failed(NAME, fault.message, "")
        }
    }
}

async fn manager(cluster: &Cluster, namespace: &str) -> Check {
    let maps = Api::<ConfigMap>::namespaced(cluster.client().clone(), namespace);
    let data = match maps.get_opt(MANAGER_CONFIG_MAP).await {
        Ok(Some(map)) => map.data.unwrap_or_default(),
        Ok(None) => return not_installed(cluster, namespace),
        Err(error) => {
            let fault = cluster.fault("read the traffic manager's keys", &error);
            // Without the installation its roles do not exist.
            return match fault.kind {
                FaultKind::NoPermission if lacks_group(cluster).await => {
                    not_installed(cluster, namespace)
                }
                _ => Check::failed(MANAGER, fault.message, ""),
            };
        }
    };
    let installed = data.get(MANAGER_VERSION_KEY).cloned().unwrap_or_default();
    if let Err(fault) = version::check("the traffic manager", &installed) {
        return Check::failed(MANAGER, fault.message, "");
    }
    let pods = Api::<Pod>::namespaced(cluster.client().clone(), namespace);
    let (mut ready, mut refusal) = (Vec::new(), None);
    for name in data.keys().filter(|key| *key != MANAGER_VERSION_KEY) {
        match pods.get_opt(name).await {
            Ok(pod) if pod.as_ref().is_some_and(is_ready) => ready.push(name.as_str()),
            Ok(_) => {}
            Err(error) => {
                refusal = Some(cluster.fault("look at the traffic manager's pods", &error));
            }
        }
    }
    match (ready.as_slice(), refusal) {
        ([], Some(fault)) => Check::failed(MANAGER, fault.message, ""),
        ([], None) => Check::failed(
            MANAGER,
            format!("version {installed} is installed in {namespace}, and no pod of it is ready"),
            &format!("see `kubectl -n {namespace} get pods`"),
        ),
        (names, _) => Check::ok(
            MANAGER,
            format!("version {installed}, ready: {}", names.join(", ")),
        ),
    }
}

fn not_installed(cluster: &Cluster, namespace: &str) -> Check {
    Check::failed(
        MANAGER,
        format!(
            "tp is not installed in the namespace {namespace} of {}",
            cluster.server()
        ),
        "an administrator runs `tp install --image REF`, or name another one with \
         --manager-namespace",
    )
}

async fn lacks_group(cluster: &Cluster) -> bool {
    let groups = cluster.client().list_api_groups().await;

    groups.is_ok_and(|list| list.groups.iter().all(|group| group.name != GROUP))
}
