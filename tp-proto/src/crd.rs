//! The custom resources of the group [`GROUP`].

use std::{collections::BTreeMap, ops::RangeInclusive};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{CustomResource, Resource as _, api::DynamicObject};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `.internal` is reserved for private use.
pub const GROUP: &str = "tp.internal";

/// Default namespace of the manager.
pub const MANAGER_NAMESPACE: &str = "tp-system";
/// Namespace of the agents.
pub const AGENT_NAMESPACE: &str = "tp-agents";
/// StatefulSet, ServiceAccount, ConfigMap and headless Service of the manager.
pub const MANAGER_NAME: &str = "tp-manager";
/// ConfigMap that publishes, per replica (key: pod name), the SHA-256 of its public key, in hex,
/// and the manager's version under [`MANAGER_VERSION_KEY`].
pub const MANAGER_CONFIG_MAP: &str = "tp-manager";
/// The key of that ConfigMap whose value is the manager's version.
pub const MANAGER_VERSION_KEY: &str = "version";

/// ConfigMap in which each replica of the manager says, under its pod's name, which sessions with
/// Intercepts it has. Only managers write it.
pub const SESSIONS_CONFIG_MAP: &str = "tp-manager-sessions";

/// ValidatingAdmissionPolicy, and its binding, that ties `spec.user` to the creator of an object.
pub const POLICY_NAME: &str = "tp-identity";

/// Longest life of a Session that is not renewed: the groups in it may be outdated after that.
pub const SESSION_LIFETIME_SECONDS: i64 = 8 * 3600;
/// The seconds that may be chosen for how long an Intercept without its workstation keeps its ports
/// from others.
pub const RELEASE_SECONDS: RangeInclusive<u64> = 60..=8 * 3600;
/// How often a client renews its Session.
pub const SESSION_RENEWAL_INTERVAL_SECONDS: u64 = 3600;

/// Loopback TCP port of the manager that port-forwards end at (the stream path).
pub const TUNNEL_PORT: u16 = 7070;
/// UDP port of the manager (the UDP path).
pub const UDP_PORT: u16 = 7071;
/// HTTP port of the manager's health probes.
pub const HEALTH_PORT: u16 = 7072;
/// TCP port of the manager that agents connect to.
pub const AGENTS_PORT: u16 = 7073;

/// DaemonSet and ServiceAccount of the agents, in [`AGENT_NAMESPACE`].
pub const AGENT_NAME: &str = "tp-agent";
/// Audience of the tokens that agents show to managers.
pub const MANAGER_AUDIENCE: &str = "tp-manager";

/// A workstation's connection. Made by its user; the admission policy sees to it that `spec.user`
/// is who made it. Deleting it ends the connection within seconds.
#[derive(CustomResource, Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "tp.internal",
    version = "v1alpha1",
    kind = "Session",
    plural = "sessions",
    shortname = "tps",
    category = "tp",
    namespaced,
    status = "SessionStatus",
    printcolumn = r#"{"name":"User","type":"string","jsonPath":".spec.user.username"}"#,
    printcolumn = r#"{"name":"Phase","type":"string","jsonPath":".status.phase"}"#,
    printcolumn = r#"{"name":"Replica","type":"string","jsonPath":".status.replica"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#,
    printcolumn = r#"{"name":"Renews","type":"string","jsonPath":".spec.renews","priority":1}"#
)]
#[serde(rename_all = "camelCase")]
pub struct SessionSpec {
    /// The user who made it.
    pub user: UserInfo,
    /// SHA-256 of the public key (SubjectPublicKeyInfo, DER) of the client's certificate, in hex.
    #[schemars(regex(pattern = r"^[0-9a-f]{64}$"))]
    pub key_hash: String,
    /// Version of the client.
    #[schemars(length(max = 64))]
    pub client_version: String,
    /// UID of the Session, of the same user, namespace and key, that goes on as this one's user
    /// and for another lifetime. Nobody connects with a Session that has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    pub renews: Option<String>,
}

impl Session {
    /// A renewal of the Session with this name and UID, collected as garbage with it.
    pub fn renewal(name: &str, uid: &str, spec: SessionSpec) -> Self {
        let spec = SessionSpec {
            renews: Some(uid.to_owned()),
            ..spec
        };
        let mut renewal = Self::new("", spec);
        renewal.metadata.name = None;
        renewal.metadata.generate_name = Some(format!("{name}-"));
        renewal.metadata.owner_references = Some(vec![OwnerReference {
            api_version: Self::api_version(&()).into_owned(),
            kind: Self::kind(&()).into_owned(),
            name: name.to_owned(),
            uid: uid.to_owned(),
            ..OwnerReference::default()
        }]);

        renewal
    }
}

/// The user as the API server knows them (`authentication.k8s.io/v1` UserInfo).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct UserInfo {
    /// Name of the user.
    pub username: String,
    /// Identifier of the user across changes of the name, where the API server has one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
    /// Names of the groups that the user is a member of.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// Further values that the API server's authenticator gives.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub extra: BTreeMap<String, Vec<String>>,
}

/// For people; never an input to a decision.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SessionStatus {
    /// `Connected` or `Disconnected`.
    #[serde(default)]
    pub phase: String,
    /// Pod of the traffic manager that has the connection.
    #[serde(default)]
    pub replica: String,
    /// When the phase began, as RFC 3339 has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
}

/// Traffic of a workload's port that goes to a workstation.
#[derive(CustomResource, Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "tp.internal",
    version = "v1alpha1",
    kind = "Intercept",
    plural = "intercepts",
    shortname = "tpi",
    category = "tp",
    namespaced,
    status = "InterceptStatus",
    printcolumn = r#"{"name":"User","type":"string","jsonPath":".spec.user.username"}"#,
    printcolumn = r#"{"name":"Workload","type":"string","jsonPath":".spec.workload.name"}"#,
    printcolumn = r#"{"name":"Ports","type":"string","jsonPath":".status.ports"}"#,
    printcolumn = r#"{"name":"Phase","type":"string","jsonPath":".status.phase"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct InterceptSpec {
    /// The user who made it.
    pub user: UserInfo,
    /// The Session whose workstation gets the traffic.
    pub session: SessionReference,
    /// The workload whose traffic it is.
    pub workload: WorkloadReference,
    /// What is done with the traffic: `intercept`. A plain field, so that policies can allow some.
    #[serde(default = "intercept")]
    #[schemars(extend("enum" = [INTERCEPT]))]
    pub mode: String,
    /// Container ports.
    #[schemars(length(min = 1, max = MAX_INTERCEPT_PORTS))]
    pub ports: Vec<InterceptPort>,
    /// `all` or the name of one pod of the workload.
    #[serde(default = "all")]
    #[schemars(length(min = 1, max = 253))]
    pub replica: String,
    /// Who answers the probes of the pod: `container` or `local`.
    #[serde(default = "container")]
    #[schemars(extend("enum" = ["container", "local"]))]
    pub probes: String,
    /// What a connection meets while nothing listens at the workstation: `refuse` or `container`.
    #[serde(default = "refuse")]
    #[schemars(extend("enum" = ["refuse", "container"]))]
    pub when_down: String,
    /// Connections to the ports that the pods have already are ended, once. A plain field, so that
    /// policies can forbid it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub take_open: bool,
}

/// Ports of one Intercept at most.
pub const MAX_INTERCEPT_PORTS: usize = 32;
/// Intercepts of one Session at most.
pub const MAX_INTERCEPTS: usize = 200;
/// The [`InterceptSpec::replica`] that stands for every pod.
pub const ALL_PODS: &str = "all";
/// The only [`InterceptSpec::mode`] so far.
pub const INTERCEPT: &str = "intercept";

/// The [`InterceptStatus::phase`] of an Intercept whose ports another user takes over.
pub const TAKEN_OVER: &str = "TakenOver";

/// Why an Intercept is gone that neither its user nor a taker has ended. For people.
pub const ENDED_BY_SOMEBODY: &str =
    "somebody has ended it in the cluster, by deleting its Intercept object";

fn intercept() -> String {
    INTERCEPT.into()
}

fn all() -> String {
    ALL_PODS.into()
}

impl InterceptSpec {
    /// Of an object that nobody has changed since it was made, and that is not being deleted. Objects
    /// are read one at a time: a malformed one must not hide others.
    pub fn as_made(object: &DynamicObject) -> Option<Self> {
        let metadata = &object.metadata;
        // The API server increments it with every change of the specification.
        let is_as_made = metadata.generation == Some(1);
        if metadata.deletion_timestamp.is_some() || !is_as_made {
            return None;
        }

        Self::deserialize(object.data.get("spec")?).ok()
    }

    /// The one pod that it is of; `None` for all.
    pub fn pod(&self) -> Option<&str> {
        Some(self.replica.as_str()).filter(|replica| *replica != ALL_PODS)
    }
}

fn container() -> String {
    "container".into()
}

fn refuse() -> String {
    "refuse".into()
}

fn tcp() -> String {
    "TCP".into()
}

/// A port of a workload's containers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct InterceptPort {
    /// Number of the port in the pod.
    #[schemars(range(min = 1))]
    pub port: u16,
    /// `TCP`.
    #[serde(default = "tcp")]
    #[schemars(extend("enum" = ["TCP"]))]
    pub protocol: String,
    /// The container whose port it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub container: Option<String>,
    /// Name of the port in the container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub name: Option<String>,
}

/// For people; never an input to a decision.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct InterceptStatus {
    /// `Waiting`, `Active`, `Quiet` while its workstation is not heard, `Disconnected` once that has no
    /// connection any more, `Held` by another Intercept, or `TakenOver`, just before it is deleted.
    #[serde(default)]
    pub phase: String,
    /// The ports in one line: a column of kubectl shows no list.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub ports: String,
    /// Pods whose traffic goes to the workstation.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pods: Vec<String>,
    /// Who holds the ports, or took them over, if not this Intercept's user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holder: Option<String>,
    /// When the phase began, as RFC 3339 has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
}

/// Names the Session that an Intercept belongs to; it must be of the same user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SessionReference {
    /// Namespace of the Session.
    pub namespace: String,
    /// Name of the Session.
    pub name: String,
    /// UID of the Session.
    pub uid: String,
}

/// Names a workload in the namespace of the object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadReference {
    /// Such as `Deployment`.
    pub kind: String,
    /// Name of the workload.
    pub name: String,
}

#[cfg(test)]
mod tests {
    use kube::CustomResourceExt as _;
    use serde_json::{Value, json};

    use super::*;

    fn spec_schema() -> Value {
        let definition = serde_json::to_value(Intercept::crd()).expect("plain data");

        definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"].clone()
    }

    #[test]
    fn the_schema_of_an_intercept_bounds_its_ports_and_names_its_choices() {
        let spec = &spec_schema()["properties"];

        assert_eq!(spec["ports"]["minItems"], 1, "{spec}");
        assert_eq!(spec["ports"]["maxItems"], 32, "{spec}");
        let port = &spec["ports"]["items"]["properties"]["port"];
        assert_eq!(port["minimum"], json!(1.0), "{spec}");
        assert_eq!(spec["mode"]["enum"], json!(["intercept"]), "{spec}");
        assert_eq!(spec["mode"]["default"], "intercept", "{spec}");
        assert_eq!(spec["probes"]["enum"], json!(["container", "local"]));
        assert_eq!(spec["whenDown"]["enum"], json!(["refuse", "container"]));
        assert_eq!(spec["takeOpen"]["type"], "boolean", "{spec}");
    }

    #[test]
    fn an_intercept_of_one_port_is_one_of_all_replicas() {
        let spec: InterceptSpec = serde_json::from_value(json!({
            "user": {"username": "alice"},
            "session": {"namespace": "shop", "name": "s", "uid": "1"},
            "workload": {"kind": "Deployment", "name": "web"},
            "ports": [{"port": 8080}],
        }))
        .expect("all else has a default");

        assert_eq!(spec.mode, INTERCEPT);
        assert_eq!(spec.replica, "all");
        assert_eq!(spec.probes, "container");
        assert_eq!(spec.when_down, "refuse");
        assert!(!spec.take_open);
        assert_eq!(spec.ports[0].protocol, "TCP");
    }
}
