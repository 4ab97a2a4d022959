//! Objects of the cluster that tests make and remove.

use std::thread;

use crate::{
    cluster::testbed,
    process::{PATIENCE, run},
};

/// Applied objects; deleted when dropped.
#[derive(Debug)]
pub struct Applied(Vec<String>);

impl Applied {
    /// `deletion` are the arguments of `kubectl delete`.
    #[must_use = "the objects are gone with the guard"]
    #[track_caller]
    pub fn new(manifest: &str, deletion: &[&str]) -> Self {
        let applied = Self(deletion.iter().map(|&word| word.to_owned()).collect());
        testbed().kubectl_apply(manifest);

        applied
    }
}

impl Drop for Applied {
    fn drop(&mut self) {
        let mut delete = testbed().kubectl_command(&["delete", "--ignore-not-found"]);
        let deleted = run(delete.arg("--wait=false").args(&self.0), PATIENCE);
        // A second panic would hide the first.
        assert!(thread::panicking() || deleted.status.success(), "{deleted}");
    }
}

/// The subject of a right.
#[derive(Debug, Clone, Copy)]
pub enum Subject<'a> {
    User(&'a str),
    Group(&'a str),
    /// A service account of the namespace `shop`.
    Robot(&'a str),
}

/// A YAML document: the binding of this name that lets a subject reach a namespace.
pub fn right(name: &str, namespace: &str, subject: Subject<'_>) -> String {
    binding(name, namespace, "tp-user", subject)
}

/// A YAML document: the binding of this name that gives a subject a ClusterRole in a namespace.
pub fn binding(name: &str, namespace: &str, role: &str, subject: Subject<'_>) -> String {
    const API: &str = "apiGroup: rbac.authorization.k8s.io";

    let subject = match subject {
        Subject::User(name) => format!("{API}, kind: User, name: \"{name}\""),
        Subject::Group(name) => format!("{API}, kind: Group, name: \"{name}\""),
        Subject::Robot(name) => format!("kind: ServiceAccount, name: {name}, namespace: shop"),
    };
    format!(
        "---\n{{apiVersion: rbac.authorization.k8s.io/v1, kind: RoleBinding, \
         metadata: {{name: {name}, namespace: {namespace}}}, \
         roleRef: {{{API}, kind: ClusterRole, name: {role}}}, subjects: [{{{subject}}}]}}\n"
    )
}

/// A service account of the namespace `shop` that may connect there; gone when dropped.
#[derive(Debug)]
pub struct Robot {
    name: &'static str,
    _applied: Applied,
}

impl Robot {
    #[must_use = "the account is gone with the guard"]
    #[track_caller]
    pub fn make(name: &'static str) -> Self {
        let account = format!(
            "{{apiVersion: v1, kind: ServiceAccount, metadata: {{name: {name}, namespace: shop}}}}\n"
        );
        let (of_account, of_right) = (
            format!("serviceaccount/{name}"),
            format!("rolebinding/{name}"),
        );
        let applied = Applied::new(
            &(account + &right(name, "shop", Subject::Robot(name))),
            &[&of_account, &of_right, "--namespace=shop"],
        );

        Self {
            name,
            _applied: applied,
        }
    }

    /// Its user name at the API server.
    pub fn user(&self) -> String {
        format!("system:serviceaccount:shop:{}", self.name)
    }

    #[track_caller]
    pub fn token(&self) -> String {
        token_of(self.name)
    }
}

/// A token of a service account of the namespace `shop`.
#[track_caller]
pub fn token_of(account: &str) -> String {
    let made = testbed().kubectl(&["create", "token", account, "--namespace=shop"]);

    made.trim().to_owned()
}
