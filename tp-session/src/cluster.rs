//! The API server as this user sees it: kubeconfig, identity, the Session object, port-forwards.

use std::{path::PathBuf, time::Duration};

use hyper::Uri;
use k8s_openapi::api::{
    authentication::v1::SelfSubjectReview,
    core::v1::{ConfigMap, Namespace, Pod},
};
use kube::{
    Api, Client, Resource as _, ResourceExt,
    api::{DeleteParams, PostParams},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::timeout,
};
use tp_kube::{Credential, KubeconfigOptions, LoadedKubeconfig, Shell};
use tp_proto::{
    crd::{
        GROUP, MANAGER_CONFIG_MAP, MANAGER_NAME, MANAGER_NAMESPACE, MANAGER_VERSION_KEY, Session,
        SessionSpec, TUNNEL_PORT, UserInfo,
    },
    fault::{Fault, FaultKind},
    local::ConnectRequest,
};
use tp_transport::{Identity, KeyHash, SessionRef};

pub(super) use faults::is_refusal;
use faults::{Operation, api_fault};

mod faults;
mod forward;
mod intercepts;
mod reason;

/// Bounds one request to the API server.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The cluster, namespace and user of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Destination {
    pub(super) context: String,
    pub(super) server: String,
    /// The proxy before the API server; empty if there is none.
    pub(super) proxy: String,
    pub(super) namespace: String,
    pub(super) manager_namespace: String,
    /// The name of the user in the kubeconfig.
    pub(super) user: String,
    pub(super) impersonate: Option<String>,
    pub(super) impersonate_groups: Vec<String>,
}

pub(super) struct Cluster {
    pub(super) destination: Destination,
    client: Client,
}

/// A replica of the manager that has published its key.
#[derive(Debug, Clone)]
pub(super) struct Replica {
    pub(super) pod: String,
    pub(super) key: KeyHash,
}

/// The result of deleting an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Deletion {
    Done,
    /// The object did not exist.
    Absent,
    Failed,
}

/// The kubeconfig and its destination, before the login.
pub(super) struct ClusterConfig {
    pub(super) destination: Destination,
    kubeconfig: LoadedKubeconfig,
}

impl ClusterConfig {
    pub(super) fn read(request: &ConnectRequest) -> Result<Self, Fault> {
        let mut kubeconfig = kubeconfig_options(request).load(tp_kube::PluginMode::Background)?;
        kubeconfig.config.connect_timeout = Some(CONNECT_TIMEOUT);
        let config = &kubeconfig.config;
        let or = |given: &str, default: &str| {
            if given.is_empty() {
                default.to_owned()
            } else {
                given.to_owned()
            }
        };
        let auth = &config.auth_info;
        let destination = Destination {
            context: kubeconfig.context.clone(),
            server: kubeconfig.server(),
            proxy: config
                .proxy_url
                .as_ref()
                .map(without_user)
                .unwrap_or_default(),
            namespace: or(&request.namespace, &config.default_namespace),
            manager_namespace: or(&request.manager_namespace, MANAGER_NAMESPACE),
            user: kubeconfig.user.clone(),
            impersonate: auth.impersonate.clone(),
            impersonate_groups: auth.impersonate_groups.clone().unwrap_or_default(),
        };

        Ok(Self {
            destination,
            kubeconfig,
        })
    }

    /// Returns whether a credential plugin logs in, which depends on the shell's variables.
    pub(super) fn has_plugin(&self) -> bool {
        self.kubeconfig.has_plugin()
    }

    pub(super) async fn client(self, request: &ConnectRequest) -> Result<Cluster, Fault> {
        let given = request.shell.as_ref();
        let credential = given.and_then(|shell| Credential::from_bytes(&shell.credential));

        Ok(Cluster {
            destination: self.destination,
            client: self.kubeconfig.client(credential).await?,
        })
    }
}

impl Cluster {
    /// Reads the kubeconfig as kubectl does, and runs its credential plugin if the request carries no
    /// credential. Sends nothing to the API server yet.
    pub(super) async fn load(request: &ConnectRequest) -> Result<Self, Fault> {
        ClusterConfig::read(request)?.client(request).await
    }

    /// The user that the API server sees.
    pub(super) async fn user(&self) -> Result<UserInfo, Fault> {
        let api = Api::<SelfSubjectReview>::all(self.client.clone());
        let review = SelfSubjectReview::default();
        let review = self
            .ask(
                Operation::Login,
                api.create(&PostParams::default(), &review),
            )
            .await?;
        let user = review
            .status
            .and_then(|status| status.user_info)
            .unwrap_or_default();

        Ok(UserInfo {
            username: user.username.unwrap_or_default(),
            uid: user.uid.unwrap_or_default(),
            groups: user.groups.unwrap_or_default(),
            extra: user.extra.unwrap_or_default(),
        })
    }

    /// The API server's version of Kubernetes.
    pub(super) async fn version(&self) -> Result<String, Fault> {
        let version = self.ask(Operation::Login, self.client.apiserver_version());

        Ok(version.await?.git_version)
    }

    /// Refuses a namespace that does not exist. For users who may not read it, a later request does.
    pub(super) async fn check_namespace(&self) -> Result<(), Fault> {
        let name = &self.destination.namespace;
        let api = Api::<Namespace>::all(self.client.clone());
        match timeout(REQUEST_TIMEOUT, api.get_metadata(name)).await {
            Ok(Err(kube::Error::Api(status))) if status.code == 404 => Err(Fault::new(
                FaultKind::Config,
                format!(
                    "the namespace {name} does not exist in context {}: choose one with \
                     --namespace (`kubectl get namespaces` lists them)",
                    self.destination.context
                ),
            )),
            _ => Ok(()),
        }
    }

    /// The replicas that have published their keys.
    pub(super) async fn replicas(&self) -> Result<Vec<Replica>, Fault> {
        let api =
            Api::<ConfigMap>::namespaced(self.client.clone(), &self.destination.manager_namespace);
        let map = match self
            .ask(Operation::ReadKeys, api.get(MANAGER_CONFIG_MAP))
            .await
        {
            Err(fault) if fault.kind == FaultKind::NoPermission && self.lacks_tp().await => {
                return Err(faults::not_installed(&self.destination));
            }
            map => map?,
        };
        let data = map.data.unwrap_or_default();
        let replicas: Vec<Replica> = data
            .iter()
            .filter(|(key, _)| *key != MANAGER_VERSION_KEY)
            .filter_map(|(pod, key)| {
                let key = key.parse().ok()?;
                Some(Replica {
                    pod: pod.clone(),
                    key,
                })
            })
            .collect();
        if replicas.is_empty() {
            return Err(self.not_ready(&format!("{MANAGER_NAME}-0")).await);
        }

        Ok(replicas)
    }

    /// Returns whether the API server lacks tp's API group; every authenticated user may list groups.
    /// Without tp, its roles are missing as well, and the first request is forbidden.
    async fn lacks_tp(&self) -> bool {
        match timeout(REQUEST_TIMEOUT, self.client.list_api_groups()).await {
            Ok(Ok(list)) => list.groups.iter().all(|group| group.name != GROUP),
            _ => false,
        }
    }

    /// The fault of a port-forward that failed: the pod is not ready, or else `fault`.
    pub(super) async fn not_forwarded(&self, pod_name: &str, fault: Fault) -> Fault {
        let api = Api::<Pod>::namespaced(self.client.clone(), &self.destination.manager_namespace);
        match timeout(REQUEST_TIMEOUT, api.get_opt(pod_name)).await {
            Ok(Ok(pod)) if !pod.as_ref().is_some_and(reason::is_ready) => {
                self.not_ready(pod_name).await
            }
            _ => fault,
        }
    }

    /// The fault of a manager that does not serve, with the reason in its pod's status.
    pub(super) async fn not_ready(&self, pod_name: &str) -> Fault {
        let namespace = &self.destination.manager_namespace;
        let api = Api::<Pod>::namespaced(self.client.clone(), namespace);
        let reason = match timeout(REQUEST_TIMEOUT, api.get(pod_name)).await {
            Ok(Ok(pod)) => reason::of(&pod),
            Ok(Err(kube::Error::Api(status))) if status.code == 404 => {
                "its pod does not exist".to_owned()
            }
            _ => "its pod cannot be read".to_owned(),
        };
        let message = format!(
            "the traffic manager is not ready: pod {namespace}/{pod_name}: {reason}; see `kubectl \
             -n {namespace} describe pod {pod_name}`, then try again"
        );

        Fault::new(FaultKind::TemporaryFailure, message)
    }

    /// Creates the Session object of a connection.
    pub(super) async fn create_session(
        &self,
        name: &str,
        user: &UserInfo,
        identity: &Identity,
    ) -> Result<SessionRef, Fault> {
        let (key, api) = (identity.key_hash(), self.sessions());
        let make = |user| {
            let (api, object) = (api.clone(), Session::new(name, spec(user, &key)));
            async move { api.create(&PostParams::default(), &object).await }
        };
        let made = self.create(Operation::CreateSession, user, make).await?;

        Ok(SessionRef {
            namespace: self.destination.namespace.clone(),
            uid: made.uid().unwrap_or_default(),
            name: made.name_any(),
        })
    }

    /// Creates an object whose user the API server compares with the caller. A credential renewed since
    /// `user` was read is another user to it: every token has its own ID.
    async fn create<K, F>(
        &self,
        operation: Operation,
        user: &UserInfo,
        make: impl Fn(UserInfo) -> F,
    ) -> Result<K, Fault>
    where
        F: Future<Output = Result<K, kube::Error>>,
    {
        let refusal = match self.ask(operation.clone(), make(user.clone())).await {
            Err(fault) if faults::is_of_policy(&fault) => fault,
            made => return made,
        };
        let now = self.user().await?;
        if now == *user || now.username != user.username {
            return Err(refusal);
        }

        self.ask(operation, make(now)).await
    }

    pub(super) async fn delete_session(&self, name: &str) -> Deletion {
        let (api, how) = (self.sessions(), DeleteParams::default());
        match timeout(CONNECT_TIMEOUT, api.delete(name, &how)).await {
            Ok(Ok(_)) => Deletion::Done,
            Ok(Err(kube::Error::Api(status))) if status.code == 404 => Deletion::Absent,
            Ok(Err(error)) => {
                tracing::info!(%error, name, "Session object could not be deleted");
                Deletion::Failed
            }
            Err(_) => {
                tracing::info!(name, "Session object could not be deleted in time");
                Deletion::Failed
            }
        }
    }

    /// Creates a renewal of a connection's Session object.
    pub(super) async fn renew_session(
        &self,
        session: &SessionRef,
        user: UserInfo,
        key: &KeyHash,
    ) -> Result<SessionRef, Fault> {
        let api = self.sessions();
        let make = |user| {
            let renewal = Session::renewal(&session.name, &session.uid, spec(user, key));
            let api = api.clone();
            async move { api.create(&PostParams::default(), &renewal).await }
        };
        let made = self.create(Operation::CreateSession, &user, make).await?;

        Ok(SessionRef {
            namespace: session.namespace.clone(),
            uid: made.uid().unwrap_or_default(),
            name: made.name_any(),
        })
    }

    /// Opens a byte stream to the manager's tunnel port.
    pub(super) async fn port_forward(
        &self,
        pod: &str,
    ) -> Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static, Fault> {
        let pods = Pod::url_path(&(), Some(&self.destination.manager_namespace));
        self.ask(
            Operation::PortForward(pod.to_owned()),
            forward::open(&self.client, &pods, pod, TUNNEL_PORT),
        )
        .await
    }

    fn sessions(&self) -> Api<Session> {
        Api::namespaced(self.client.clone(), &self.destination.namespace)
    }

    async fn ask<T>(
        &self,
        operation: Operation,
        request: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, Fault> {
        match timeout(REQUEST_TIMEOUT, request).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(api_fault(&operation, &self.destination, error)),
            Err(_) => Err(faults::silent(&self.destination, REQUEST_TIMEOUT)),
        }
    }
}

fn kubeconfig_options(request: &ConnectRequest) -> KubeconfigOptions {
    let some = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());

    let shell = request.shell.clone().unwrap_or_default();

    KubeconfigOptions {
        kubeconfigs: request.kubeconfigs.iter().map(PathBuf::from).collect(),
        context: some(&request.context),
        cluster: some(&request.cluster),
        user: some(&request.user),
        impersonate_user: some(&request.impersonate_user),
        impersonate_groups: request.impersonate_groups.clone(),
        shell: Shell::new(shell.variables, shell.directory.into()),
    }
}

/// A URL without the user and password that may stand in it.
fn without_user(url: &Uri) -> String {
    let url = url.to_string();
    let Some((scheme, rest)) = url.split_once("://") else {
        return url;
    };
    let address = rest.rsplit_once('@').map_or(rest, |(_, address)| address);

    format!("{scheme}://{address}")
}

fn spec(user: UserInfo, key: &KeyHash) -> SessionSpec {
    SessionSpec {
        user,
        key_hash: key.to_string(),
        client_version: tp_core::VERSION.to_owned(),
        renews: None,
    }
}

/// The name of the Session object of a connection with this key.
pub(super) fn session_name(user: &UserInfo, identity: &Identity) -> String {
    let key = identity.key_hash().to_string();

    format!("{}-{}", slug(&user.username), &key[..10])
}

/// The part of a user name that may stand in an object's name (RFC 1123 label).
fn slug(username: &str) -> String {
    let mut slug: String = username
        .to_ascii_lowercase()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .take(40)
        .collect();
    slug = slug.trim_matches('-').to_owned();
    if slug.is_empty() {
        "user".to_owned()
    } else {
        slug
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_user_name_gives_an_object_name() {
        assert_eq!(slug("Alice@Example.com"), "alice-example-com");
        assert_eq!(
            slug("system:serviceaccount:ci:robot"),
            "system-serviceaccount-ci-robot"
        );
        assert_eq!(slug("é"), "user");
    }
}
