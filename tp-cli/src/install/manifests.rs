//! The objects of an installation.
//!
//! A template's `${name}` becomes the parameter of that name: a whole scalar takes its value and
//! type, an element of a list that stands for a list is spliced in.

use std::{collections::BTreeMap, time::Duration};

use kube::CustomResourceExt as _;
use serde::Deserialize as _;
use serde_json::{Value, json};
use tp_core::{VERSION, environment::filter::NamePattern, intercept::holders::DISCONNECTED_AFTER};
use tp_proto::{
    allow::Allow,
    crd::{AGENT_NAMESPACE, Intercept, MANAGER_NAME, RELEASE_SECONDS, Session},
    fault::{Fault, FaultKind},
};

use super::{
    args::{Expose, InstallArgs, PullPolicy, Wait},
    object::Object,
};
use crate::values;

const NAMESPACES: &str = include_str!("manifests/namespaces.yaml");
const USERS: &str = include_str!("manifests/users.yaml");
const POLICIES: &str = include_str!("manifests/policies.yaml");
const ACCESS: &str = include_str!("manifests/access.yaml");
const MANAGER: &str = include_str!("manifests/manager.yaml");
const AGENTS: &str = include_str!("manifests/agents.yaml");
const UDP: &str = include_str!("manifests/udp.yaml");
const DISRUPTION: &str = include_str!("manifests/disruption.yaml");

/// Where the cluster's own workloads are.
const SYSTEM_NAMESPACE: &str = "kube-system";

/// Label of the objects of an installation.
pub(crate) const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
pub(crate) const SELECTOR: &str = "app.kubernetes.io/managed-by=tp,app.kubernetes.io/part-of=tp";

#[derive(Debug, Clone)]
pub(crate) struct Parameters {
    pub(crate) namespace: String,
    pub(crate) image: String,
    pub(crate) image_pull_policy: PullPolicy,
    pub(crate) replicas: u16,
    pub(crate) expose: Expose,
    pub(crate) connect_groups: Vec<String>,
    pub(crate) allow: Vec<Allow>,
    /// How long an intercept keeps its ports from others while its workstation is away.
    pub(crate) release_after: Duration,
    /// `None` without agents.
    pub(crate) agents: Option<AgentParameters>,
}

/// What agents may redirect, besides the rights of who asks.
#[derive(Debug, Clone, Default)]
pub(crate) struct AgentParameters {
    pub(crate) allow_system: bool,
    /// Empty: all.
    pub(crate) namespaces: Vec<String>,
    /// Of variables that are handed to nobody.
    pub(crate) excluded_names: Vec<NamePattern>,
}

impl Parameters {
    pub(crate) fn from_args(args: &InstallArgs) -> Result<Self, Fault> {
        let usage = |message: String| Fault::new(FaultKind::Usage, message);
        let image = args.image.clone().ok_or_else(|| {
            usage(
                "--image is missing: push tp-image.tar to a registry that the cluster's nodes \
                 reach and pass its name there, as in --image registry.example.com/tp:VERSION; the \
                 nodes of kind, minikube, k3d and k3s take the file itself, which README shows, \
                 and call it localhost/tp:VERSION"
                    .replace("VERSION", VERSION),
            )
        })?;
        if image.is_empty() || image.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Err(usage(format!(
                "--image {image:?} is no image reference: expected REGISTRY/NAME:TAG"
            )));
        }
        let namespace = &args.manager.manager_namespace;
        if !values::is_label(namespace) {
            return Err(usage(format!(
                "--manager-namespace {namespace:?} is no namespace name: expected lower-case \
                 letters, digits and hyphens"
            )));
        }
        if namespace == AGENT_NAMESPACE {
            return Err(usage(format!(
                "--manager-namespace {AGENT_NAMESPACE} is where agents live: choose another"
            )));
        }
        let Wait(release_after) = args.release_after;
        if !RELEASE_SECONDS.contains(&release_after.as_secs()) {
            return Err(usage(format!(
                "--release-after {} is out of range: expected one minute to eight hours",
                humantime::format_duration(release_after)
            )));
        }
        let agents = (!args.no_agent)
            .then(|| AgentParameters::from_args(args).map_err(usage))
            .transpose()?;

        Ok(Self {
            namespace: namespace.clone(),
            image,
            image_pull_policy: args.image_pull_policy,
            replicas: args.replicas,
            expose: args.expose,
            connect_groups: args.connect_group.clone(),
            allow: args.allow.clone(),
            release_after,
            agents,
        })
    }

    /// For objects that depend only on the namespace.
    pub(crate) fn for_removal(namespace: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            image: String::new(),
            image_pull_policy: PullPolicy::IfNotPresent,
            replicas: 1,
            expose: Expose::None,
            connect_groups: Vec::new(),
            allow: Vec::new(),
            release_after: DISCONNECTED_AFTER,
            agents: Some(AgentParameters::default()),
        }
    }

    fn values(&self) -> Values {
        let pods: Vec<String> = (0..self.replicas).map(pod_name).collect();
        let subjects: Vec<Value> = self
            .connect_groups
            .iter()
            .map(|group| {
                json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": group})
            })
            .collect();
        let allowed = self.allow.iter();
        let allowed = allowed.map(|allow| format!("--allow={}", allow.as_str()));
        let seconds = self.release_after.as_secs();
        let release = (self.release_after != DISCONNECTED_AFTER)
            .then(|| format!("--release-after-seconds={seconds}"));
        let arguments: Vec<String> = allowed.chain(release).collect();

        let agent_arguments = self.agents.as_ref().map(AgentParameters::arguments);

        BTreeMap::from([
            ("namespace", json!(self.namespace)),
            ("image", json!(self.image)),
            ("image-pull-policy", json!(self.image_pull_policy.as_str())),
            ("replicas", json!(self.replicas)),
            ("version", json!(VERSION)),
            ("pods", json!(pods)),
            ("connect-groups", json!(subjects)),
            ("arguments", json!(arguments)),
            (
                "agent-arguments",
                json!(agent_arguments.unwrap_or_default()),
            ),
        ])
    }
}

impl AgentParameters {
    /// An error is the sentence for the user.
    fn from_args(args: &InstallArgs) -> Result<Self, String> {
        let namespaces = args.intercept_namespaces.clone();
        let refused =
            |name: &&String| **name == args.manager.manager_namespace || **name == AGENT_NAMESPACE;
        if let Some(name) = namespaces.iter().find(refused) {
            return Err(format!(
                "--intercept-namespaces names {name}, which is of tp itself: nothing there is ever \
                 intercepted"
            ));
        }
        if !args.allow_system && namespaces.iter().any(|name| name == SYSTEM_NAMESPACE) {
            return Err(format!(
                "--intercept-namespaces names {SYSTEM_NAMESPACE}, where nothing is intercepted \
                 without --allow-system"
            ));
        }

        Ok(Self {
            allow_system: args.allow_system,
            namespaces,
            excluded_names: args.env_exclude.clone(),
        })
    }

    /// Of the program `tp-agent`.
    fn arguments(&self) -> Vec<String> {
        let system = self.allow_system.then(|| "--allow-system".to_owned());
        let namespaces = (!self.namespaces.is_empty())
            .then(|| format!("--intercept-namespaces={}", self.namespaces.join(",")));

        let names: Vec<String> = self
            .excluded_names
            .iter()
            .map(ToString::to_string)
            .collect();
        let names = (!names.is_empty()).then(|| format!("--env-exclude={}", names.join(",")));

        system.into_iter().chain(namespaces).chain(names).collect()
    }
}

type Values = BTreeMap<&'static str, Value>;

/// Every object, in the order of applying.
pub(crate) fn render(parameters: &Parameters) -> Vec<Object> {
    let values = parameters.values();
    let mut objects = Vec::new();
    objects.extend(template(NAMESPACES, &values));
    objects.extend(definitions());
    objects.extend(template(POLICIES, &values));
    objects.extend(template(USERS, &values));
    objects.extend(template(ACCESS, &values));
    if parameters.replicas > 1 {
        objects.extend(template(DISRUPTION, &values));
    }
    let service_type = match parameters.expose {
        Expose::NodePort => Some("NodePort"),
        Expose::LoadBalancer => Some("LoadBalancer"),
        Expose::None => None,
    };
    if let Some(service_type) = service_type {
        for ordinal in 0..parameters.replicas {
            let mut values = values.clone();
            values.insert("pod", json!(pod_name(ordinal)));
            values.insert("service-type", json!(service_type));
            objects.extend(template(UDP, &values));
        }
    }
    objects.extend(template(MANAGER, &values));
    // Last: removed in the reverse order, they end before the managers.
    if parameters.agents.is_some() {
        objects.extend(template(AGENTS, &values));
    }
    for object in &mut objects {
        add_labels(&mut object.value);
    }

    objects
}

pub(crate) fn pod_name(ordinal: u16) -> String {
    format!("{MANAGER_NAME}-{ordinal}")
}

fn definitions() -> impl Iterator<Item = Object> {
    [Session::crd(), Intercept::crd()]
        .into_iter()
        .map(|definition| Object {
            value: serde_json::to_value(definition).expect("definitions are plain data"),
        })
}

fn template(text: &str, values: &Values) -> Vec<Object> {
    serde_norway::Deserializer::from_str(text)
        .map(|document| {
            let value = Value::deserialize(document).expect("manifests are well formed");
            Object {
                value: fill(value, values),
            }
        })
        .collect()
}

fn fill(value: Value, values: &Values) -> Value {
    match value {
        Value::String(text) => fill_text(&text, values),
        Value::Array(items) => {
            let filled = items.into_iter().flat_map(|item| {
                let stands_for_a_list = item.as_str().and_then(placeholder).is_some();
                match fill(item, values) {
                    Value::Array(items) if stands_for_a_list => items,
                    item => vec![item],
                }
            });
            Value::Array(filled.collect())
        }
        Value::Object(fields) => Value::Object(
            fields
                .into_iter()
                .map(|(name, field)| (name, fill(field, values)))
                .collect(),
        ),
        other => other,
    }
}

fn fill_text(text: &str, values: &Values) -> Value {
    if let Some(value) = placeholder(text).and_then(|name| values.get(name)) {
        return value.clone();
    }
    let filled = values.iter().fold(text.to_owned(), |text, (name, value)| {
        match value.as_str() {
            Some(value) => text.replace(&format!("${{{name}}}"), value),
            None => text,
        }
    });
    Value::String(filled)
}

fn placeholder(text: &str) -> Option<&str> {
    let name = text.strip_prefix("${")?.strip_suffix('}')?;
    (!name.contains('$')).then_some(name)
}

pub(crate) fn add_labels(value: &mut Value) {
    let labels = &mut value["metadata"]["labels"];
    for (name, text) in [
        ("app.kubernetes.io/name", "tp"),
        ("app.kubernetes.io/part-of", "tp"),
        (MANAGED_BY, "tp"),
    ] {
        labels[name] = json!(text);
    }
}

#[cfg(test)]
mod tests;
