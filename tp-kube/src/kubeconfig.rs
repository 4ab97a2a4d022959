//! The kubeconfig, read as kubectl reads it.

use std::{fmt, path::PathBuf};

use kube::{
    Client, Config,
    config::{Kubeconfig, KubeconfigError},
};
use tp_proto::fault::{Fault, FaultKind, chain};

use crate::{
    client, config,
    credential::Credential,
    identity,
    login::Login,
    plugin::{Place, Plugin},
    proxy::Environment,
    shell::Shell,
};

/// What is asked for; what is left empty is as the kubeconfig says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Choice {
    /// Of several, what an earlier one says stands. None: the service account of a pod.
    pub kubeconfigs: Vec<PathBuf>,
    pub context: Option<String>,
    pub cluster: Option<String>,
    pub user: Option<String>,
    pub impersonate_user: Option<String>,
    pub impersonate_groups: Vec<String>,
    /// Its variables decide about proxies, and credential plugins inherit them.
    pub shell: Shell,
}

/// What the kubeconfig gives for a [`Choice`].
#[derive(Clone)]
pub struct Chosen {
    pub config: Config,
    /// `in-cluster` for the service account of a pod.
    pub context: String,
    /// Its name in the kubeconfig; empty for the service account of a pod.
    pub user: String,
    plugin: Option<Plugin>,
}

impl Choice {
    /// Reads the kubeconfig; asks nobody. Errors are of [`FaultKind::Config`] and name the files.
    ///
    /// `place` is where its credential plugin would run.
    pub fn load(&self, place: Place) -> Result<Chosen, Fault> {
        let mut chosen = match self.kubeconfigs.as_slice() {
            [] => in_cluster()?,
            files => self.of_files(files, place)?,
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

    fn of_files(&self, files: &[PathBuf], place: Place) -> Result<Chosen, Fault> {
        let names: Vec<String> = files
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        let names = names.join(":");
        let wrong = |error: KubeconfigError| unusable(&names, &error);
        let kubeconfig = files
            .iter()
            .map(|file| {
                let mut read = Kubeconfig::read_from(file)?;
                // Else it would hide that of the next file.
                read.current_context.take_if(|name| name.is_empty());
                Ok(read)
            })
            .reduce(|merged, next| merged?.merge(next?))
            .unwrap_or_else(|| Ok(Kubeconfig::default()))
            .map_err(wrong)?;
        let name = self.check_names(&kubeconfig, &names)?;
        let context = found(&kubeconfig.contexts, |it| {
            (it.name == name).then_some(&it.context)
        });
        let context = context.unwrap_or_default();
        let cluster_name = self.cluster.as_ref().unwrap_or(&context.cluster);
        let cluster = found(&kubeconfig.clusters, |it| {
            (it.name == *cluster_name).then_some(&it.cluster)
        });
        let cluster = cluster.ok_or_else(|| {
            let message = format!(
                "the kubeconfig {names} has no cluster {cluster_name}, which its context {name} \
                 names: repair it or choose another with --context"
            );
            Fault::new(FaultKind::Config, message)
        })?;
        let user = self.user.clone().or(context.user).unwrap_or_default();
        // As kubectl has it, a user that is not there is one without credentials.
        let credentials = found(&kubeconfig.auth_infos, |it| {
            (it.name == user).then_some(&it.auth_info)
        });
        let proxies = Environment::read(|name| self.shell.variable(name).map(str::to_owned));
        let config = config::of(&cluster, credentials.unwrap_or_default(), &proxies);
        let mut config = config.map_err(|wrong| {
            let message = format!("the kubeconfig {names}: cluster {cluster_name}: {wrong}");
            Fault::new(FaultKind::Config, message)
        })?;
        if let Some(namespace) = context.namespace.filter(|it| !it.is_empty()) {
            config.default_namespace = namespace;
        }

        let plugin = plugin(&mut config, &self.shell, place);

        Ok(Chosen {
            config,
            context: name,
            user,
            plugin,
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

/// The rest may be secrets, and a proxy's URL holds its password.
impl fmt::Debug for Chosen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chosen")
            .field("context", &self.context)
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

impl Chosen {
    /// The API server, as a person knows it.
    pub fn server(&self) -> String {
        let server = self.config.cluster_url.to_string();
        server.trim_end_matches('/').to_owned()
    }

    /// Whether it takes a program to log in.
    pub fn has_plugin(&self) -> bool {
        self.plugin.is_some()
    }

    /// Runs the credential plugin, if there is one.
    pub async fn log_in(&self) -> Result<Option<Credential>, Fault> {
        let Some(plugin) = &self.plugin else {
            return Ok(None);
        };
        let credential = plugin.run().await;

        credential
            .map(Some)
            .map_err(|why| unusable_context(&self.context, &why.to_string()))
    }

    /// The client. Runs the credential plugin, if there is one and no `credential` of it.
    pub async fn client(mut self, credential: Option<Credential>) -> Result<Client, Fault> {
        let (context, user) = (self.context, self.user);
        let login = self.plugin.map(|plugin| Login::new(plugin, credential));
        let mut shown = self.config.auth_info.clone();
        if let Some(login) = &login {
            let credential = login.credential().await;
            let credential =
                credential.map_err(|why| unusable_context(&context, &why.to_string()))?;
            credential.identify(&mut shown);
        }
        // That of a login changes, and is checked here because nobody is told later.
        let identity = identity::of(&shown)
            .map_err(|wrong| unusable_context(&context, &format!("user {user}: {wrong}")))?
            .filter(|_| login.is_none());
        let auth = &mut self.config.auth_info;
        // Else kube would read it as well.
        auth.client_certificate = None;
        auth.client_certificate_data = None;
        auth.client_key = None;
        auth.client_key_data = None;

        client::client(self.config, identity, login)
            .map_err(|error| unusable_context(&context, &chain(&error)))
    }
}

/// Takes the credential plugin out of `config`, where it counts.
fn plugin(config: &mut Config, shell: &Shell, place: Place) -> Option<Plugin> {
    let auth = &mut config.auth_info;
    let plugin = auth.exec.take()?;
    // As for kubectl, what is written down comes first (client-go, `plugin/pkg/client/auth/exec`).
    let has_certificate = (auth.client_certificate.is_some()
        || auth.client_certificate_data.is_some())
        && (auth.client_key.is_some() || auth.client_key_data.is_some());
    let has_token = auth.token.is_some() || auth.token_file.is_some();
    let is_written = has_token || has_certificate || auth.username.is_some();

    (!is_written).then(|| Plugin::new(plugin, shell.clone(), place))
}

fn unusable_context(context: &str, why: &str) -> Fault {
    let message = format!("context {context} cannot be used: {why}");

    Fault::new(FaultKind::Config, message)
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

/// What stands under the first name that `is_wanted` knows.
fn found<N, T: Clone>(named: &[N], is_wanted: impl Fn(&N) -> Option<&Option<T>>) -> Option<T> {
    named.iter().find_map(is_wanted)?.clone()
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
        plugin: None,
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

    #[test]
    fn unknown_names_are_refused_with_the_known_ones_and_the_file() {
        let (dir, choice) = written(&kubeconfig());
        let text = |text: &str| Some(text.to_owned());
        choice.load(Place::Background).unwrap();

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
            let fault = choice.load(Place::Background).unwrap_err();
            assert_eq!(fault.kind, FaultKind::Config);
            assert!(fault.message.contains(words), "{fault}");
            let file = dir.path().join("k").display().to_string();
            assert!(fault.message.contains(&file), "{fault}");
        }
    }

    #[test]
    fn without_a_current_context_the_known_ones_are_told() {
        let mut config = kubeconfig();
        config["current-context"] = json!("");
        let (_dir, choice) = written(&config);

        let fault = choice.load(Place::Background).unwrap_err();

        let words = "has no current context: choose one with --context (prod)";
        assert!(fault.message.contains(words), "{fault}");
    }

    #[test]
    fn the_choice_replaces_what_the_context_says() {
        let (_dir, choice) = written(&kubeconfig());
        let choice = Choice {
            cluster: Some("other".to_owned()),
            impersonate_user: Some("jane".to_owned()),
            impersonate_groups: vec!["ops".to_owned()],
            ..choice
        };

        let chosen = choice.load(Place::Background).unwrap();

        assert_eq!(chosen.server(), "https://192.0.2.2:6443");
        assert_eq!((&*chosen.context, &*chosen.user), ("prod", "u"));
        let auth = chosen.config.auth_info;
        assert_eq!(auth.impersonate.as_deref(), Some("jane"));
        assert_eq!(auth.impersonate_groups, Some(vec!["ops".to_owned()]));
    }

    fn with(field: &str, value: Value) -> (tempfile::TempDir, Choice) {
        let mut config = kubeconfig();
        config["clusters"][0]["cluster"][field] = value;
        written(&config)
    }

    #[test]
    fn a_server_without_a_scheme_is_http_as_for_kubectl() {
        let (_dir, choice) = with("server", json!("192.0.2.1:8080"));

        assert_eq!(
            choice.load(Place::Background).unwrap().server(),
            "http://192.0.2.1:8080"
        );
    }

    #[test]
    fn a_field_that_cannot_be_used_is_named_with_the_file_and_the_cluster() {
        let secret = "https://me:secret@proxy";
        for (field, value) in [
            ("server", "unix:///x"),
            ("proxy-url", "proxy:3128"),
            ("proxy-url", &*format!("{secret}:99999")),
            ("certificate-authority", "/nowhere/ca.pem"),
            ("certificate-authority-data", "?"),
            ("certificate-authority-data", "bm90aGluZw=="),
        ] {
            let (dir, choice) = with(field, json!(value));

            let fault = choice.load(Place::Background).unwrap_err();

            assert_eq!(fault.kind, FaultKind::Config);
            let file = dir.path().join("k").display().to_string();
            for words in [&file, "cluster c", field] {
                assert!(fault.message.contains(words), "{words}: {fault}");
            }
            assert!(!fault.message.contains("secret"), "{fault}");
        }
    }

    #[test]
    fn one_damaged_certificate_does_not_spoil_a_bundle() {
        let good = rcgen::generate_simple_self_signed(["ca".to_owned()])
            .unwrap()
            .cert;
        let damaged = "-----BEGIN CERTIFICATE-----\nbm90aGluZw==\n-----END CERTIFICATE-----\n";
        let bundle = format!("{damaged}{}{damaged}", good.pem());
        let (dir, choice) = with("certificate-authority", json!("ca.pem"));
        std::fs::write(dir.path().join("ca.pem"), bundle).unwrap();

        let chosen = choice.load(Place::Background).unwrap();

        assert_eq!(chosen.config.root_cert, Some(vec![good.der().to_vec()]));
    }

    #[test]
    fn a_context_whose_cluster_is_missing_says_so() {
        let mut config = kubeconfig();
        config["contexts"][0]["context"]["cluster"] = json!("gone");
        let (_dir, choice) = written(&config);

        let fault = choice.load(Place::Background).unwrap_err();

        let words = "has no cluster gone, which its context prod names";
        assert!(fault.message.contains(words), "{fault}");
    }

    #[tokio::test]
    async fn a_plugin_that_fails_is_told_with_the_context() {
        let mut config = kubeconfig();
        config["users"][0]["user"] = json!({"exec": {
            "apiVersion": "client.authentication.k8s.io/v1",
            "command": "false",
            "interactiveMode": "Never",
        }});
        let (_dir, choice) = written(&config);

        let chosen = choice.load(Place::Background).unwrap();
        assert!(chosen.has_plugin());
        let Err(fault) = chosen.client(None).await else {
            panic!("a plugin that fails gives no client");
        };

        assert_eq!(fault.kind, FaultKind::Config);
        let words = "context prod cannot be used: its credential plugin false failed";
        assert!(fault.message.starts_with(words), "{fault}");
    }

    #[test]
    fn what_is_written_down_comes_before_a_plugin() {
        let mut config = kubeconfig();
        config["users"][0]["user"] = json!({"token": "t", "exec": {"command": "false"}});
        let (_dir, choice) = written(&config);

        assert!(!choice.load(Place::Background).unwrap().has_plugin());
    }
}
