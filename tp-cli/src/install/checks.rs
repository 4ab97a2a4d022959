//! Checks before anything is applied.

use k8s_openapi::api::{apps::v1::StatefulSet, rbac::v1::ClusterRoleBinding};
use kube::Api;
use tp_core::VERSION;
use tp_proto::{
    crd::MANAGER_NAME,
    fault::{Fault, FaultKind},
};

use super::cluster::Cluster;

/// The first minor version with ValidatingAdmissionPolicy as a stable API.
const OLDEST_MINOR: u32 = 30;

pub(crate) async fn kubernetes_version(cluster: &Cluster) -> Result<(), Fault> {
    let version = cluster
        .client()
        .apiserver_version()
        .await
        .map_err(|error| cluster.fault("ask the API server for its version", &error))?;

    match (number(&version.major), number(&version.minor)) {
        (Some(1), Some(minor)) if minor < OLDEST_MINOR => Err(Fault::new(
            FaultKind::Failed,
            format!(
                "{} runs Kubernetes {}: tp needs 1.{OLDEST_MINOR} or later, which has the \
                 admission policies that prove who is connected",
                cluster.server(),
                version.git_version
            ),
        )),
        _ => Ok(()),
    }
}

/// Refuses to replace newer objects by older ones.
pub(crate) async fn no_downgrade(cluster: &Cluster, namespace: &str) -> Result<(), Fault> {
    let sets: Api<StatefulSet> = Api::namespaced(cluster.client().clone(), namespace);
    let installed = sets
        .get_opt(MANAGER_NAME)
        .await
        .map_err(|error| cluster.fault("look for an earlier installation", &error))?
        .and_then(|set| set.metadata.labels)
        .and_then(|labels| labels.get("app.kubernetes.io/version").cloned());

    match installed {
        Some(installed) if is_newer(&installed, VERSION) => Err(Fault::new(
            FaultKind::Failed,
            format!(
                "{} has tp {installed}, which is newer than this tp {VERSION}: install with \
                 that version, or uninstall first",
                cluster.server()
            ),
        )),
        _ => Ok(()),
    }
}

/// Refuses a second installation: the cluster-wide objects belong to one.
pub(crate) async fn no_other_installation(cluster: &Cluster, namespace: &str) -> Result<(), Fault> {
    match other_installation(cluster, namespace).await? {
        Some(other) => Err(Fault::new(
            FaultKind::Failed,
            format!(
                "tp is installed in namespace {other} of {}: pass --manager-namespace {other}, or \
                 uninstall it there first",
                cluster.server()
            ),
        )),
        None => Ok(()),
    }
}

/// The namespace of an installation that is not in this one.
pub(crate) async fn other_installation(
    cluster: &Cluster,
    namespace: &str,
) -> Result<Option<String>, Fault> {
    let bindings: Api<ClusterRoleBinding> = Api::all(cluster.client().clone());
    let holder = bindings
        .get_opt(MANAGER_NAME)
        .await
        .map_err(|error| cluster.fault("look for an earlier installation", &error))?
        .and_then(|binding| binding.subjects)
        .and_then(|subjects| subjects.into_iter().next())
        .and_then(|subject| subject.namespace);

    Ok(holder.filter(|holder| holder != namespace))
}

/// The leading digits of the text; providers write "34+".
fn number(text: &str) -> Option<u32> {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    text[..end].parse().ok()
}

fn is_newer(left: &str, right: &str) -> bool {
    let parts = |text: &str| -> Vec<u32> { text.split('.').filter_map(number).collect() };
    parts(left) > parts(right)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_by_number() {
        assert!(is_newer("0.10.0", "0.9.9"));
        assert!(is_newer("1.0.0", "0.9.9"));
        assert!(!is_newer("0.1.0", "0.1.0"));
        assert!(!is_newer("0.1.0", "0.2.0"));
    }

    #[test]
    fn a_provider_may_mark_its_minor_version() {
        assert_eq!(number("34+"), Some(34));
        assert_eq!(number(""), None);
    }
}
