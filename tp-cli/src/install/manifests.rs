//! The objects of an installation.
//!
//! A template's `${name}` becomes the parameter of that name: a whole scalar takes its value and
//! type, an element of a list that stands for a list is spliced in.

use std::collections::BTreeMap;

use kube::CustomResourceExt as _;
use serde::Deserialize as _;
use serde_json::{Value, json};
use tp_core::VERSION;
use tp_proto::{
    allow::Allow,
    crd::{AGENT_NAMESPACE, Intercept, MANAGER_NAME, Session},
    fault::{Fault, FaultKind},
};

use super::{
    args::{Expose, InstallArgs, PullPolicy},
    object::Object,
};
use crate::values;

const NAMESPACES: &str = include_str!("manifests/namespaces.yaml");
const USERS: &str = include_str!("manifests/users.yaml");
const POLICIES: &str = include_str!("manifests/policies.yaml");
const ACCESS: &str = include_str!("manifests/access.yaml");
const MANAGER: &str = include_str!("manifests/manager.yaml");
const UDP: &str = include_str!("manifests/udp.yaml");
const DISRUPTION: &str = include_str!("manifests/disruption.yaml");

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

        Ok(Self {
            namespace: namespace.clone(),
            image,
            image_pull_policy: args.image_pull_policy,
            replicas: args.replicas,
            expose: args.expose,
            connect_groups: args.connect_group.clone(),
            allow: args.allow.clone(),
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
        let arguments: Vec<String> = self
            .allow
            .iter()
            .map(|allow| format!("--allow={}", allow.as_str()))
            .collect();

        BTreeMap::from([
            ("namespace", json!(self.namespace)),
            ("image", json!(self.image)),
            ("image-pull-policy", json!(self.image_pull_policy.as_str())),
            ("replicas", json!(self.replicas)),
            ("version", json!(VERSION)),
            ("pods", json!(pods)),
            ("connect-groups", json!(subjects)),
            ("arguments", json!(arguments)),
        ])
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
mod tests {
    use super::*;

    fn parameters() -> Parameters {
        Parameters {
            image: "registry.example.com/tp:1".into(),
            replicas: 2,
            expose: Expose::NodePort,
            connect_groups: vec!["developers".into()],
            allow: vec![Allow::Nodes],
            ..Parameters::for_removal("net")
        }
    }

    fn find<'a>(objects: &'a [Object], title: &str) -> &'a Value {
        let found = objects.iter().find(|object| object.title() == title);
        &found.unwrap_or_else(|| panic!("no {title}")).value
    }

    #[test]
    fn no_placeholder_is_left() {
        for object in render(&parameters()) {
            assert!(
                !object.value.to_string().contains("${"),
                "{}",
                object.title()
            );
        }
    }

    #[test]
    fn parameters_reach_the_stateful_set() {
        let objects = render(&parameters());
        let spec = &find(&objects, "StatefulSet net/tp-manager")["spec"];

        assert_eq!(spec["replicas"], 2);
        let container = &spec["template"]["spec"]["containers"][0];
        assert_eq!(container["image"], "registry.example.com/tp:1");
        assert_eq!(container["args"], json!(["--allow=nodes"]));
    }

    #[test]
    fn port_forwards_are_granted_by_pod_name() {
        let objects = render(&parameters());
        let role = find(&objects, "Role net/tp-connect");

        assert_eq!(
            role["rules"][2]["resourceNames"],
            json!(["tp-manager-0", "tp-manager-1"])
        );
        let binding = find(&objects, "RoleBinding net/tp-connect");
        assert_eq!(binding["subjects"][0]["name"], "developers");
    }

    #[test]
    fn each_replica_has_an_address_of_its_own_only_when_exposed() {
        let exposed = render(&parameters());
        find(&exposed, "Service net/tp-manager-1");

        let mut hidden = parameters();
        hidden.expose = Expose::None;
        assert!(
            render(&hidden)
                .iter()
                .all(|object| object.name() != "tp-manager-1")
        );
    }

    #[test]
    fn everything_is_labelled() {
        for object in render(&parameters()) {
            assert_eq!(object.value["metadata"]["labels"][MANAGED_BY], "tp");
        }
    }

    #[test]
    fn without_an_image_one_sentence_says_what_to_do() {
        use clap::Parser as _;

        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            install: InstallArgs,
        }
        let args = Line::parse_from(["tp"]).install;

        let fault = Parameters::from_args(&args).unwrap_err();

        assert_eq!(fault.kind, FaultKind::Usage);
        assert!(fault.message.starts_with("--image is missing: push"));
    }
}
