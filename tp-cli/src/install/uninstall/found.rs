//! The objects of an installation and the bindings of its users.

use k8s_openapi::api::{
    core::v1::Service,
    policy::v1::PodDisruptionBudget,
    rbac::v1::{ClusterRoleBinding, RoleBinding},
};
use kube::{
    Api, ResourceExt,
    api::{DynamicObject, ListParams, ObjectList},
};
use tp_proto::fault::{Fault, FaultKind};

use crate::install::{
    apply::is_ours,
    cluster::Cluster,
    grant::{CONNECT_ROLE, INTERCEPT_ROLE, USER_ROLE},
    manifests::{self, Parameters, SELECTOR},
    object::Object,
};

/// Each field is in the order of removal.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Removed by every `tp uninstall`.
    pub(super) objects: Vec<Object>,
    /// Definitions, and namespaces that tp made: other objects may depend on them.
    pub(super) lasting: Vec<Object>,
    /// Named like an object of tp, but made by somebody else.
    pub(super) others: Vec<Object>,
    /// Namespaces that were there before tp.
    pub(super) foreign: Vec<String>,
    /// Bindings of `tp grant`.
    pub(super) granted: Vec<Object>,
    /// Bindings to roles of tp that somebody else made.
    pub(super) bound: Vec<Object>,
    /// This user may not list bindings: the two fields above are unknown.
    pub(super) are_bindings_hidden: bool,
}

impl Found {
    /// Without `everything` bindings stay, so the right to list them is not needed.
    pub(super) async fn of(
        cluster: &Cluster,
        namespace: &str,
        everything: bool,
    ) -> Result<Self, Fault> {
        let mut found = Self::default();
        let known = manifests::render(&Parameters::for_removal(namespace));
        for object in known.into_iter().rev() {
            let Some(there) = read(cluster, &object).await? else {
                continue;
            };
            match object.kind() {
                "Namespace" if !is_ours(&there) => found.foreign.push(object.name().to_owned()),
                _ if !is_ours(&there) => found.others.push(object),
                "Namespace" | "CustomResourceDefinition" => found.lasting.push(object),
                _ => found.objects.push(object),
            }
        }
        found.add_replicas(cluster, namespace).await?;
        match found.add_bindings(cluster, namespace).await {
            Err(fault) if fault.kind == FaultKind::NoPermission && !everything => {
                found.are_bindings_hidden = true;
            }
            added => added?,
        }

        Ok(found)
    }

    /// Adds the objects of each replica, found by label.
    async fn add_replicas(&mut self, cluster: &Cluster, namespace: &str) -> Result<(), Fault> {
        let client = cluster.client();
        let labelled = ListParams::default().labels(SELECTOR);
        let services = Api::<Service>::namespaced(client.clone(), namespace);
        let services = services
            .list(&labelled)
            .await
            .map_err(|error| cluster.fault("list the Services of tp", &error))?;
        let budgets = Api::<PodDisruptionBudget>::namespaced(client.clone(), namespace);
        let budgets = budgets
            .list(&labelled)
            .await
            .map_err(|error| cluster.fault("list the PodDisruptionBudgets of tp", &error))?;

        let services = names(&services).map(|name| ("v1", "Service", name));
        let budgets = names(&budgets).map(|name| ("policy/v1", "PodDisruptionBudget", name));
        for (version, kind, name) in services.chain(budgets) {
            let is_known = |object: &Object| object.kind() == kind && object.name() == name;
            if !self.objects.iter().chain(&self.others).any(is_known) {
                let object = Object::named(version, kind, Some(namespace), &name);
                self.objects.push(object);
            }
        }

        Ok(())
    }

    async fn add_bindings(&mut self, cluster: &Cluster, namespace: &str) -> Result<(), Fault> {
        const VERSION: &str = "rbac.authorization.k8s.io/v1";

        let all = ListParams::default();
        let bindings = Api::<RoleBinding>::all(cluster.client().clone());
        let bindings = bindings
            .list(&all)
            .await
            .map_err(|error| cluster.fault("list the RoleBindings", &error))?;
        for binding in bindings {
            let (place, name) = (binding.namespace().unwrap_or_default(), binding.name_any());
            let is_of_tp = match binding.role_ref.name.as_str() {
                USER_ROLE | INTERCEPT_ROLE => binding.role_ref.kind == "ClusterRole",
                // The installation itself has a binding of this name.
                CONNECT_ROLE => {
                    binding.role_ref.kind == "Role" && place == namespace && name != CONNECT_ROLE
                }
                _ => false,
            };
            if !is_of_tp {
                continue;
            }
            let object = Object::named(VERSION, "RoleBinding", Some(&place), &name);
            match is_ours(&binding) {
                true => self.granted.push(object),
                false => self.bound.push(object),
            }
        }

        let bindings = Api::<ClusterRoleBinding>::all(cluster.client().clone());
        let bindings = bindings
            .list(&all)
            .await
            .map_err(|error| cluster.fault("list the ClusterRoleBindings", &error))?;
        let bound = bindings
            .iter()
            .filter(|binding| [USER_ROLE, INTERCEPT_ROLE].contains(&binding.role_ref.name.as_str()))
            .map(|binding| Object::named(VERSION, "ClusterRoleBinding", None, &binding.name_any()));
        self.bound.extend(bound);

        Ok(())
    }

    /// The objects to remove.
    pub(super) fn to_remove(&self, everything: bool) -> Vec<&Object> {
        let more = everything.then(|| self.lasting.iter().chain(&self.granted));

        self.objects
            .iter()
            .chain(more.into_iter().flatten())
            .collect()
    }

    /// The bindings that remain: a removed namespace takes even foreign ones with it.
    pub(super) fn kept_bindings(&self, everything: bool) -> Vec<String> {
        if !everything {
            return self.granted.iter().chain(&self.bound).map(path).collect();
        }
        let goes = |namespace: &str| {
            self.lasting
                .iter()
                .any(|object| object.kind() == "Namespace" && object.name() == namespace)
        };

        self.bound
            .iter()
            .filter(|binding| !binding.namespace().is_some_and(goes))
            .map(path)
            .collect()
    }

    /// The error when there is nothing to remove.
    pub(super) fn absence(&self, cluster: &Cluster, namespace: &str) -> Fault {
        let left: Vec<String> = self
            .to_remove(true)
            .into_iter()
            .map(Object::title)
            .collect();
        let left = match left.as_slice() {
            [] => "there is nothing to remove".to_owned(),
            left => format!(
                "`tp uninstall --everything` removes what is left of it: {}",
                left.join(", ")
            ),
        };
        let server = cluster.server();

        Fault::new(
            FaultKind::NotInstalled,
            format!("tp is not installed in the namespace {namespace} of {server}: {left}"),
        )
    }
}

/// NAMESPACE/NAME, or NAME of a cluster-wide object.
pub(super) fn path(object: &Object) -> String {
    match object.namespace() {
        Some(namespace) => format!("{namespace}/{}", object.name()),
        None => object.name().to_owned(),
    }
}

pub(super) async fn read(
    cluster: &Cluster,
    object: &Object,
) -> Result<Option<DynamicObject>, Fault> {
    object
        .api(cluster)
        .get_opt(object.name())
        .await
        .map_err(|error| cluster.fault(&format!("read {}", object.title()), &error))
}

fn names<K: kube::Resource + Clone>(list: &ObjectList<K>) -> impl Iterator<Item = String> {
    list.iter().map(ResourceExt::name_any)
}
