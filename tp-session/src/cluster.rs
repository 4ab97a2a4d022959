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
use tp_kube::{Choice, Chosen, Credential, Shell};
use tp_proto::{
    crd::{
        GROUP, MANAGER_CONFIG_MAP, MANAGER_NAME, MANAGER_NAMESPACE, MANAGER_VERSION_KEY, Session,
        SessionSpec, TUNNEL_PORT, UserInfo,
    },
    fault::{Fault, FaultKind},
    local::ConnectRequest,
};
use tp_transport::{Identity, KeyHash, SessionRef};

use faults::{Doing, api_fault};

mod faults;
mod forward;
mod reason;

/// For one request to the API server.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// Where a session connects to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) context: String,
    pub(super) server: String,
    /// By which the API server is reached; empty if there is none.
    pub(super) proxy: String,
    pub(super) namespace: String,
    pub(super) manager_namespace: String,
    /// Of the kubeconfig.
    pub(super) user: String,
    pub(super) impersonate: Option<String>,
    pub(super) impersonate_groups: Vec<String>,
}

pub(super) struct Cluster {
    pub(super) place: Place,
    client: Client,
}

/// A replica of the manager that has published its key.
#[derive(Debug, Clone)]
pub(super) struct Replica {
    pub(super) pod: String,
    pub(super) key: KeyHash,
}

/// What became of an object that was to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Deletion {
    Done,
    /// There was none.
    Absent,
    Failed,
}

/// What a kubeconfig names, before anybody logs in.
pub(super) struct Named {
    pub(super) place: Place,
    chosen: Chosen,
}

impl Named {
    pub(super) fn read(request: &ConnectRequest) -> Result<Self, Fault> {
        let mut chosen = choice(request).load(tp_kube::Place::Background)?;
        chosen.config.connect_timeout = Some(CONNECT_LIMIT);
        let config = &chosen.config;
        let or = |given: &str, default: &str| {
            if given.is_empty() {
                default.to_owned()
            } else {
                given.to_owned()
            }
        };
        let auth = &config.auth_info;
        let place = Place {
            context: chosen.context.clone(),
            server: chosen.server(),
            proxy: config
                .proxy_url
                .as_ref()
                .map(without_user)
                .unwrap_or_default(),
            namespace: or(&request.namespace, &config.default_namespace),
            manager_namespace: or(&request.manager_namespace, MANAGER_NAMESPACE),
            user: chosen.user.clone(),
            impersonate: auth.impersonate.clone(),
            impersonate_groups: auth.impersonate_groups.clone().unwrap_or_default(),
        };

        Ok(Self { place, chosen })
    }

    /// Whether the shell's variables decide who logs in.
    pub(super) fn has_plugin(&self) -> bool {
        self.chosen.has_plugin()
    }

    pub(super) async fn client(self, request: &ConnectRequest) -> Result<Cluster, Fault> {
        let given = request.shell.as_ref();
        let credential = given.and_then(|shell| Credential::from_bytes(&shell.credential));

        Ok(Cluster {
            place: self.place,
            client: self.chosen.client(credential).await?,
        })
    }
}

impl Cluster {
    /// Reads the kubeconfig, as kubectl would, and runs its credential plugin if the request has
    /// nothing of it; asks nobody yet.
    pub(super) async fn load(request: &ConnectRequest) -> Result<Self, Fault> {
        Named::read(request)?.client(request).await
    }
    /// Who the API server says we are.
    pub(super) async fn user(&self) -> Result<UserInfo, Fault> {
        let api = Api::<SelfSubjectReview>::all(self.client.clone());
        let review = SelfSubjectReview::default();
        let review = self
            .ask(Doing::Login, api.create(&PostParams::default(), &review))
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

    /// Which Kubernetes the API server runs.
    pub(super) async fn version(&self) -> Result<String, Fault> {
        let version = self.ask(Doing::Login, self.client.apiserver_version());

        Ok(version.await?.git_version)
    }

    /// Refuses a namespace that does not exist; who may not look is told later, by what they do.
    pub(super) async fn check_namespace(&self) -> Result<(), Fault> {
        let name = &self.place.namespace;
        let api = Api::<Namespace>::all(self.client.clone());
        match timeout(REQUEST_LIMIT, api.get_metadata(name)).await {
            Ok(Err(kube::Error::Api(status))) if status.code == 404 => Err(Fault::new(
                FaultKind::Config,
                format!(
                    "the namespace {name} does not exist in context {}: choose one with \
                     --namespace (`kubectl get namespaces` lists them)",
                    self.place.context
                ),
            )),
            _ => Ok(()),
        }
    }

    /// The replicas that serve.
    pub(super) async fn replicas(&self) -> Result<Vec<Replica>, Fault> {
        let api = Api::<ConfigMap>::namespaced(self.client.clone(), &self.place.manager_namespace);
        let map = match self.ask(Doing::ReadKeys, api.get(MANAGER_CONFIG_MAP)).await {
            Err(fault) if fault.kind == FaultKind::NoPermission && self.lacks_tp().await => {
                return Err(faults::not_installed(&self.place));
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

    /// Whether the API server does not know our group, which everybody who is logged in may look
    /// up: where tp never was, its roles are not either, and the first question is forbidden.
    async fn lacks_tp(&self) -> bool {
        match timeout(REQUEST_LIMIT, self.client.list_api_groups()).await {
            Ok(Ok(list)) => list.groups.iter().all(|group| group.name != GROUP),
            _ => false,
        }
    }

    /// Why no port is forwarded to a pod: it is not ready, or else `fault`.
    pub(super) async fn not_forwarded(&self, pod_name: &str, fault: Fault) -> Fault {
        let api = Api::<Pod>::namespaced(self.client.clone(), &self.place.manager_namespace);
        match timeout(REQUEST_LIMIT, api.get_opt(pod_name)).await {
            Ok(Ok(pod)) if !pod.as_ref().is_some_and(reason::is_ready) => {
                self.not_ready(pod_name).await
            }
            _ => fault,
        }
    }

    /// Why the manager does not serve, in its pod's own words.
    pub(super) async fn not_ready(&self, pod_name: &str) -> Fault {
        let namespace = &self.place.manager_namespace;
        let api = Api::<Pod>::namespaced(self.client.clone(), namespace);
        let reason = match timeout(REQUEST_LIMIT, api.get(pod_name)).await {
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

    /// Makes the Session object of a connection.
    pub(super) async fn create_session(
        &self,
        name: &str,
        user: &UserInfo,
        identity: &Identity,
    ) -> Result<SessionRef, Fault> {
        let key = identity.key_hash();
        let make = |user| Session::new(name, spec(user, &key));
        let made = self.create(user, make).await?;

        Ok(SessionRef {
            namespace: self.place.namespace.clone(),
            uid: made.uid().unwrap_or_default(),
            name: made.name_any(),
        })
    }

    /// Creates what the API server compares with who asks. A credential that was renewed since
    /// `user` was asked for is somebody else's to it: tokens have numbers of their own.
    async fn create(
        &self,
        user: &UserInfo,
        make: impl Fn(UserInfo) -> Session,
    ) -> Result<Session, Fault> {
        let (api, how) = (self.sessions(), PostParams::default());
        let object = make(user.clone());
        let refusal = match self
            .ask(Doing::CreateSession, api.create(&how, &object))
            .await
        {
            Err(fault) if faults::is_of_policy(&fault) => fault,
            made => return made,
        };
        let now = self.user().await?;
        if now == *user || now.username != user.username {
            return Err(refusal);
        }

        self.ask(Doing::CreateSession, api.create(&how, &make(now)))
            .await
    }

    pub(super) async fn delete_session(&self, name: &str) -> Deletion {
        let (api, how) = (self.sessions(), DeleteParams::default());
        match timeout(CONNECT_LIMIT, api.delete(name, &how)).await {
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

    /// Makes what renews the Session object of a connection.
    pub(super) async fn renew_session(
        &self,
        session: &SessionRef,
        user: UserInfo,
        key: &KeyHash,
    ) -> Result<SessionRef, Fault> {
        let make = |user| Session::renewal(&session.name, &session.uid, spec(user, key));
        let made = self.create(&user, make).await?;

        Ok(SessionRef {
            namespace: session.namespace.clone(),
            uid: made.uid().unwrap_or_default(),
            name: made.name_any(),
        })
    }

    /// A byte stream to the manager's link port.
    pub(super) async fn port_forward(
        &self,
        pod: &str,
    ) -> Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static, Fault> {
        let pods = Pod::url_path(&(), Some(&self.place.manager_namespace));
        self.ask(
            Doing::PortForward(pod.to_owned()),
            forward::open(&self.client, &pods, pod, TUNNEL_PORT),
        )
        .await
    }

    fn sessions(&self) -> Api<Session> {
        Api::namespaced(self.client.clone(), &self.place.namespace)
    }

    async fn ask<T>(
        &self,
        doing: Doing,
        request: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, Fault> {
        match timeout(REQUEST_LIMIT, request).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(api_fault(&doing, &self.place, error)),
            Err(_) => Err(faults::silent(&self.place, REQUEST_LIMIT)),
        }
    }
}

fn choice(request: &ConnectRequest) -> Choice {
    let some = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());

    let shell = request.shell.clone().unwrap_or_default();

    Choice {
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
