//! The kubeconfig, read as kubectl reads it.

use std::{
    env,
    path::{Path, PathBuf},
};

use kube::{
    Client, Config, Error,
    client::AuthError,
    config::{KubeConfigOptions, Kubeconfig, KubeconfigError},
};
use tp_proto::fault::{Fault, FaultKind, chain};

/// What is asked for; what is left empty is as the kubeconfig says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Choice {
    /// Of several, what an earlier one says stands. None: those of the environment, else that of
    /// the home directory, else the service account of a pod.
    pub kubeconfigs: Vec<PathBuf>,
    pub context: Option<String>,
    pub cluster: Option<String>,
    pub user: Option<String>,
    pub impersonate_user: Option<String>,
    pub impersonate_groups: Vec<String>,
}

/// What the kubeconfig gives for a [`Choice`].
#[derive(Debug, Clone)]
pub struct Chosen {
    pub config: Config,
    /// `in-cluster` for the service account of a pod.
    pub context: String,
    /// Its name in the kubeconfig; empty for the service account of a pod.
    pub user: String,
}

/// The files that KUBECONFIG names; empty without it.
pub fn of_environment() -> Vec<PathBuf> {
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

impl Choice {
    /// Reads the kubeconfig; asks nobody. Errors are of [`FaultKind::Config`] and name the files.
    pub async fn load(&self) -> Result<Chosen, Fault> {
        let mut chosen = match self.files() {
            files if files.is_empty() => in_cluster()?,
            files => self.of_files(&files).await?,
        };
        let auth = &mut chosen.config.auth_info;
        if self.impersonate_user.is_some() {
            auth.impersonate.clone_from(&self.impersonate_user);
        }
        if !self.impersonate_groups.is_empty() {
            auth.impersonate_groups = Some(self.impersonate_groups.clone());
        }

        Ok(chosen)
    }

    fn files(&self) -> Vec<PathBuf> {
        if !self.kubeconfigs.is_empty() {
            return self.kubeconfigs.clone();
        }
        let named = of_environment();
        if !named.is_empty() {
            return named;
        }

        env::var_os("HOME")
            .map(|home| Path::new(&home).join(".kube/config"))
            .filter(|path| path.exists())
            .into_iter()
            .collect()
    }

    async fn of_files(&self, files: &[PathBuf]) -> Result<Chosen, Fault> {
        let names: Vec<String> = files
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        let names = names.join(":");
        let wrong = |error: KubeconfigError| unusable(&names, &error);
        let kubeconfig = files
            .iter()
            .map(Kubeconfig::read_from)
            .reduce(|merged, next| merged?.merge(next?))
            .unwrap_or_else(|| Ok(Kubeconfig::default()))
            .map_err(wrong)?;
        let context = self.check_names(&kubeconfig, &names)?;
        let user = self.user.clone().or_else(|| user_of(&kubeconfig, &context));
        let options = KubeConfigOptions {
            context: Some(context.clone()),
            cluster: self.cluster.clone(),
            user: self.user.clone(),
        };
        let config = Config::from_custom_kubeconfig(kubeconfig, &options)
            .await
            .map_err(wrong)?;

        Ok(Chosen {
            config,
            context,
            user: user.unwrap_or_default(),
        })
    }

    /// Refuses names that the kubeconfig does not have, with those that it has. Returns the
    /// context.
    fn check_names(&self, kubeconfig: &Kubeconfig, files: &str) -> Result<String, Fault> {
        let contexts: Vec<&str> = kubeconfig
            .contexts
            .iter()
            .map(|it| it.name.as_str())
            .collect();
        let clusters = kubeconfig.clusters.iter().map(|it| it.name.as_str());
        let users = kubeconfig.auth_infos.iter().map(|it| it.name.as_str());
        let context = self
            .context
            .as_ref()
            .or(kubeconfig.current_context.as_ref())
            .filter(|context| !context.is_empty());
        let Some(context) = context else {
            let remedy = match contexts.as_slice() {
                [] => "it has none at all; name another with --kubeconfig".to_owned(),
                names => format!("choose one with --context ({})", names.join(", ")),
            };
            let message = format!("the kubeconfig {files} has no current context: {remedy}");
            return Err(Fault::new(FaultKind::Config, message));
        };

        for (what, wanted, known) in [
            ("context", Some(context), contexts),
            ("cluster", self.cluster.as_ref(), clusters.collect()),
            ("user", self.user.as_ref(), users.collect()),
        ] {
            if let Some(wanted) = wanted
                && !known.contains(&wanted.as_str())
            {
                let known = match known.as_slice() {
                    [] => "none".to_owned(),
                    names => names.join(", "),
                };
                let message =
                    format!("the kubeconfig {files} has no {what} {wanted}: it has {known}");
                return Err(Fault::new(FaultKind::Config, message));
            }
        }

        Ok(context.clone())
    }
}

impl Chosen {
    /// The API server, as a person knows it.
    pub fn server(&self) -> String {
        let server = self.config.cluster_url.to_string();
        server.trim_end_matches('/').to_owned()
    }

    /// The client that `build` makes; it runs the credential plugin if there is one.
    pub fn client(
        self,
        build: impl FnOnce(Config) -> Result<Client, Error>,
    ) -> Result<Client, Fault> {
        let plugin = self.config.auth_info.exec.as_ref();
        let plugin = plugin.and_then(|plugin| plugin.command.clone());
        build(self.config).map_err(|error| {
            let why = why_unusable(&error, &plugin.unwrap_or_default());
            let message = format!("context {} cannot be used: {why}", self.context);
            Fault::new(FaultKind::Config, message)
        })
    }
}

fn unusable(files: &str, error: &KubeconfigError) -> Fault {
    let text = chain(error);
    // What follows the first line shows the file's text.
    let problem = text.lines().next().unwrap_or_default();
    let named = if problem.contains(files) {
        String::new()
    } else {
        format!(" {files}")
    };
    let message = format!(
        "the kubeconfig{named} cannot be used: {problem}; repair it or name another with \
         --kubeconfig"
    );

    Fault::new(FaultKind::Config, message)
}

/// In its own words; of a credential plugin that failed only the last of what it told people. Its
/// arguments and its output may hold what is to stay secret.
fn why_unusable(error: &Error, plugin: &str) -> String {
    let out = match error {
        Error::Auth(AuthError::AuthExecRun { out, .. }) => out,
        // Its own text quotes what the plugin printed.
        Error::Auth(AuthError::AuthExecParse(_)) => {
            return format!("its credential plugin {plugin} printed no ExecCredential");
        }
        Error::Auth(AuthError::AuthExecStart(error)) => {
            return format!("its credential plugin {plugin} cannot be run: {error}");
        }
        other => return chain(other),
    };
    let words = String::from_utf8_lossy(&out.stderr);
    let last = words.lines().rfind(|line| !line.trim().is_empty());

    format!(
        "its credential plugin {plugin} failed ({}): {}",
        out.status,
        last.unwrap_or("it said nothing").trim()
    )
}

fn user_of(kubeconfig: &Kubeconfig, context: &str) -> Option<String> {
    kubeconfig
        .contexts
        .iter()
        .find(|known| known.name == context)
        .and_then(|known| known.context.as_ref()?.user.clone())
}

fn in_cluster() -> Result<Chosen, Fault> {
    let config = Config::incluster().map_err(|_| {
        Fault::new(
            FaultKind::Config,
            "there is no kubeconfig: set KUBECONFIG or use --kubeconfig FILE",
        )
    })?;

    Ok(Chosen {
        config,
        context: "in-cluster".to_owned(),
        user: String::new(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn kubeconfig() -> Value {
        json!({
            "current-context": "prod",
            "contexts": [{"name": "prod", "context": {"cluster": "c", "user": "u"}}],
            "clusters": [
                {"name": "c", "cluster": {"server": "https://192.0.2.1:6443"}},
                {"name": "other", "cluster": {"server": "https://192.0.2.2:6443"}},
            ],
            "users": [{"name": "u", "user": {}}],
        })
    }

    /// A folder with a kubeconfig, and the choice of it.
    fn written(kubeconfig: &Value) -> (tempfile::TempDir, Choice) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("k");
        std::fs::write(&path, kubeconfig.to_string()).unwrap();
        let choice = Choice {
            kubeconfigs: vec![path],
            ..Choice::default()
        };
        (dir, choice)
    }

    #[tokio::test]
    async fn unknown_names_are_refused_with_the_known_ones_and_the_file() {
        let (dir, choice) = written(&kubeconfig());
        let text = |text: &str| Some(text.to_owned());
        choice.load().await.unwrap();

        for (context, cluster, user, words) in [
            (
                text("staging"),
                None,
                None,
                "no context staging: it has prod",
            ),
            (None, text("mars"), None, "no cluster mars: it has c, other"),
            (None, None, text("nobody"), "no user nobody: it has u"),
        ] {
            let choice = Choice {
                context,
                cluster,
                user,
                ..choice.clone()
            };
            let fault = choice.load().await.unwrap_err();
            assert_eq!(fault.kind, FaultKind::Config);
            assert!(fault.message.contains(words), "{fault}");
            let file = dir.path().join("k").display().to_string();
            assert!(fault.message.contains(&file), "{fault}");
        }
    }

    #[tokio::test]
    async fn without_a_current_context_the_known_ones_are_told() {
        let mut config = kubeconfig();
        config["current-context"] = json!("");
        let (_dir, choice) = written(&config);

        let fault = choice.load().await.unwrap_err();

        let words = "has no current context: choose one with --context (prod)";
        assert!(fault.message.contains(words), "{fault}");
    }

    #[tokio::test]
    async fn the_choice_replaces_what_the_context_says() {
        let (_dir, choice) = written(&kubeconfig());
        let choice = Choice {
            cluster: Some("other".to_owned()),
            impersonate_user: Some("jane".to_owned()),
            impersonate_groups: vec!["ops".to_owned()],
            ..choice
        };

        let chosen = choice.load().await.unwrap();

        assert_eq!(chosen.server(), "https://192.0.2.2:6443");
        assert_eq!((&*chosen.context, &*chosen.user), ("prod", "u"));
        let auth = chosen.config.auth_info;
        assert_eq!(auth.impersonate.as_deref(), Some("jane"));
        assert_eq!(auth.impersonate_groups, Some(vec!["ops".to_owned()]));
    }

    /// Why a plugin that runs this script gives no client.
    async fn fault_of_plugin(script: &str) -> Fault {
        let mut config = kubeconfig();
        config["users"][0]["user"] = json!({"exec": {
            "apiVersion": "client.authentication.k8s.io/v1",
            "command": "sh",
            "args": ["-c", script, "secret-word"],
            "interactiveMode": "Never",
        }});
        let (_dir, choice) = written(&config);

        let chosen = choice.load().await.unwrap();
        match chosen.client(Client::try_from) {
            Err(fault) => fault,
            Ok(_) => panic!("a plugin that fails gives no client"),
        }
    }

    #[tokio::test]
    async fn what_a_credential_plugin_prints_is_not_told() {
        let script = "echo secret-output; echo first >&2; echo log in >&2; exit 3";
        let fault = fault_of_plugin(script).await;

        assert!(
            fault.message.contains("credential plugin sh failed"),
            "{fault}"
        );
        assert!(fault.message.ends_with("log in"), "{fault}");
        assert!(!fault.message.contains("secret"), "{fault}");
    }

    #[tokio::test]
    async fn what_a_credential_plugin_prints_is_not_told_when_it_is_no_credential() {
        for output in [
            "token: secret-1: x: y",
            r#"{\"status\":{\"token\":\"secret-2\""#,
        ] {
            let fault = fault_of_plugin(&format!("echo \"{output}\"")).await;

            let words = "its credential plugin sh printed no ExecCredential";
            assert!(fault.message.ends_with(words), "{fault}");
        }
    }
}
