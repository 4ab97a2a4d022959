//! The connection to the API server, and its errors as faults.

use std::{env, path::PathBuf, time::Duration};

use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig, KubeconfigError},
};
use tp_proto::fault::{Fault, FaultKind};

use crate::cli::ClusterArgs;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

pub(crate) struct Cluster {
    client: Client,
    server: String,
}

impl Cluster {
    pub(crate) async fn connect(args: &ClusterArgs) -> Result<Self, Fault> {
        let mut config = load(args).await?;
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        config.read_timeout = Some(ANSWER_TIMEOUT);
        let server = config.cluster_url.to_string();
        let client = Client::try_from(config).map_err(|error| {
            Fault::new(
                FaultKind::Config,
                format!("the kubeconfig cannot be used: {}", chain(&error)),
            )
        })?;

        Ok(Self {
            client,
            server: server.trim_end_matches('/').to_owned(),
        })
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    pub(crate) fn server(&self) -> &str {
        &self.server
    }

    /// What an error of the API server means to the person who waits for `deed`.
    pub(crate) fn fault(&self, deed: &str, error: &kube::Error) -> Fault {
        match error {
            kube::Error::Api(status) if status.code == 401 => Fault::new(
                FaultKind::NoPermission,
                format!(
                    "{} does not accept the credentials of the kubeconfig: log in again",
                    self.server
                ),
            ),
            kube::Error::Api(status) if status.is_forbidden() => Fault::new(
                FaultKind::NoPermission,
                format!(
                    "cannot {deed}: {}; ask an administrator of the cluster",
                    status.message
                ),
            ),
            kube::Error::Api(status) => Fault::new(
                FaultKind::Failed,
                format!("cannot {deed}: {}", status.message),
            ),
            kube::Error::Service(_) | kube::Error::HyperError(_) => Fault::new(
                FaultKind::Unavailable,
                format!(
                    "the API server {} does not answer ({}): check the network and the context",
                    self.server,
                    chain(error)
                ),
            ),
            error => Fault::new(
                FaultKind::Failed,
                format!("cannot {deed}: {}", chain(error)),
            ),
        }
    }
}

/// What KUBECONFIG names; empty without it.
pub(crate) fn kubeconfigs_of_environment() -> Vec<PathBuf> {
    let Some(list) = env::var_os("KUBECONFIG") else {
        return Vec::new();
    };
    let mut paths: Vec<PathBuf> = env::split_paths(&list)
        .filter(|path| !path.as_os_str().is_empty())
        .collect();
    if paths.len() > 1 {
        // As kubectl does; one that stands alone is missed by name.
        paths.retain(|path| path.exists());
    }

    paths
}

/// The files to read: as told, else of the environment, else that of the home directory.
fn files(args: &ClusterArgs) -> Vec<PathBuf> {
    if let Some(path) = &args.kubeconfig {
        return vec![path.clone()];
    }
    let named = kubeconfigs_of_environment();
    if !named.is_empty() {
        return named;
    }

    env::var_os("HOME")
        .map(|home| PathBuf::from(home).join(".kube/config"))
        .filter(|path| path.exists())
        .into_iter()
        .collect()
}

async fn load(args: &ClusterArgs) -> Result<Config, Fault> {
    let files = files(args);
    let mut config = if files.is_empty() {
        Config::incluster().map_err(|_| {
            Fault::new(
                FaultKind::Config,
                "there is no kubeconfig: set KUBECONFIG or use --kubeconfig FILE",
            )
        })?
    } else {
        of_files(&files, args).await?
    };
    if args.impersonate_user.is_some() {
        config
            .auth_info
            .impersonate
            .clone_from(&args.impersonate_user);
    }
    if !args.impersonate_groups.is_empty() {
        config.auth_info.impersonate_groups = Some(args.impersonate_groups.clone());
    }

    Ok(config)
}

async fn of_files(files: &[PathBuf], args: &ClusterArgs) -> Result<Config, Fault> {
    let names: Vec<String> = files
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    let names = names.join(":");
    let wrong = |error: KubeconfigError| {
        let text = chain(&error);
        // What follows the first line shows the file's text.
        let problem = text.lines().next().unwrap_or_default();
        let message = format!(
            "the kubeconfig {names} cannot be used: {problem}; repair it or name another with \
             --kubeconfig"
        );
        Fault::new(FaultKind::Config, message)
    };
    let kubeconfig = files
        .iter()
        .map(Kubeconfig::read_from)
        .reduce(|merged, next| merged?.merge(next?))
        .unwrap_or_else(|| Ok(Kubeconfig::default()))
        .map_err(wrong)?;
    check_names(&kubeconfig, &names, args)?;
    let options = KubeConfigOptions {
        context: args.context.clone(),
        cluster: args.cluster.clone(),
        user: args.user.clone(),
    };

    Config::from_custom_kubeconfig(kubeconfig, &options)
        .await
        .map_err(wrong)
}

/// Names that the kubeconfig does not have are refused with those that it has.
fn check_names(kubeconfig: &Kubeconfig, files: &str, args: &ClusterArgs) -> Result<(), Fault> {
    let contexts: Vec<&str> = kubeconfig
        .contexts
        .iter()
        .map(|it| it.name.as_str())
        .collect();
    let clusters = kubeconfig.clusters.iter().map(|it| it.name.as_str());
    let users = kubeconfig.auth_infos.iter().map(|it| it.name.as_str());
    let context = args
        .context
        .as_deref()
        .or(kubeconfig.current_context.as_deref());
    if context.is_none_or(str::is_empty) {
        let message = format!(
            "the kubeconfig {files} has no current context: choose one with --context ({})",
            or_none(&contexts)
        );
        return Err(Fault::new(FaultKind::Config, message));
    }

    for (what, wanted, known) in [
        ("context", context, contexts),
        ("cluster", args.cluster.as_deref(), clusters.collect()),
        ("user", args.user.as_deref(), users.collect()),
    ] {
        if let Some(wanted) = wanted
            && !known.contains(&wanted)
        {
            let message = format!(
                "the kubeconfig {files} has no {what} {wanted}: it has {}",
                or_none(&known)
            );
            return Err(Fault::new(FaultKind::Config, message));
        }
    }

    Ok(())
}

fn or_none(names: &[&str]) -> String {
    if names.is_empty() {
        "none".to_owned()
    } else {
        names.join(", ")
    }
}

/// An error and its causes, each said once.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }

    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn kubeconfig() -> Kubeconfig {
        serde_json::from_value(json!({
            "current-context": "prod",
            "contexts": [{"name": "prod", "context": {"cluster": "c", "user": "u"}}],
            "clusters": [{"name": "c", "cluster": {"server": "https://192.0.2.1:6443"}}],
            "users": [{"name": "u", "user": {}}],
        }))
        .unwrap()
    }

    fn refused(kubeconfig: &Kubeconfig, args: &ClusterArgs) -> String {
        let fault = check_names(kubeconfig, "/home/dev/k", args).unwrap_err();
        assert_eq!(fault.kind, FaultKind::Config);

        fault.message
    }

    #[test]
    fn unknown_names_are_refused_with_the_known_ones_and_the_file() {
        let text = |text: &str| Some(text.to_owned());
        let none = ClusterArgs::default();
        check_names(&kubeconfig(), "/home/dev/k", &none).unwrap();

        for (args, words) in [
            (
                ClusterArgs {
                    context: text("staging"),
                    ..none.clone()
                },
                "no context staging: it has prod",
            ),
            (
                ClusterArgs {
                    cluster: text("mars"),
                    ..none.clone()
                },
                "no cluster mars: it has c",
            ),
            (
                ClusterArgs {
                    user: text("nobody"),
                    ..none.clone()
                },
                "no user nobody: it has u",
            ),
        ] {
            let message = refused(&kubeconfig(), &args);
            assert!(message.contains(words), "{message}");
            assert!(message.contains("/home/dev/k"), "{message}");
        }
        let message = refused(&Kubeconfig::default(), &none);
        assert!(message.contains("no current context"), "{message}");
    }

    #[tokio::test]
    async fn the_installation_goes_where_the_flags_say_as_whom_they_say() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("k");
        let mut text = serde_json::to_value(kubeconfig()).unwrap();
        text["clusters"].as_array_mut().unwrap().push(json!({
            "name": "other", "cluster": {"server": "https://192.0.2.2:6443"},
        }));
        std::fs::write(&path, text.to_string()).unwrap();

        let args = ClusterArgs {
            kubeconfig: Some(path),
            cluster: Some("other".into()),
            impersonate_user: Some("jane".into()),
            impersonate_groups: vec!["ops".into()],
            ..ClusterArgs::default()
        };
        let config = load(&args).await.unwrap();

        assert_eq!(config.cluster_url.host(), Some("192.0.2.2"));
        assert_eq!(config.auth_info.impersonate.as_deref(), Some("jane"));
        assert_eq!(
            config.auth_info.impersonate_groups,
            Some(vec!["ops".into()])
        );
    }
}
