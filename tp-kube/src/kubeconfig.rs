//! The kubeconfig, read as kubectl reads it.

use std::{
    fmt, fs, io,
    os::unix::fs::FileTypeExt as _,
    path::{Path, PathBuf},
};

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
    plugin::{Plugin, PluginMode},
    proxy::Environment,
    shell::Shell,
};

/// Bytes of the largest kubeconfig; one of thousands of clusters is smaller.
const MAX_SIZE: u64 = 64 << 20;

/// Options that select a cluster, named like kubectl's flags; the kubeconfig decides an empty
/// field.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KubeconfigOptions {
    /// Files; where several give a value, the first counts. None: the service account of a pod.
    pub kubeconfigs: Vec<PathBuf>,
    /// `--context`
    pub context: Option<String>,
    /// `--cluster`
    pub cluster: Option<String>,
    /// `--user`
    pub user: Option<String>,
    /// `--as`
    pub impersonate_user: Option<String>,
    /// `--as-group`
    pub impersonate_groups: Vec<String>,
    /// Its variables decide about proxies, and credential plugins inherit them.
    pub shell: Shell,
}

/// The result of [`KubeconfigOptions::load`].
#[derive(Clone)]
pub struct LoadedKubeconfig {
    /// The server, trust and login of the context.
    pub config: Config,
    /// `in-cluster` for the service account of a pod.
    pub context: String,
    /// Its name in the kubeconfig; empty for the service account of a pod.
    pub user: String,
    plugin: Option<Plugin>,
}

impl KubeconfigOptions {
    /// Reads the kubeconfig, without any request. Its credential plugin would run in `mode`.
    ///
    /// # Errors
    ///
    /// [`FaultKind::Config`], naming the files: one cannot be read, or a name is missing from all.
    pub fn load(&self, mode: PluginMode) -> Result<LoadedKubeconfig, Fault> {
        let mut loaded = match self.kubeconfigs.as_slice() {
            [] => in_cluster()?,
            files => self.load_files(files, mode)?,
        };
        let auth = &mut loaded.config.auth_info;
        if self.impersonate_user.is_some() {
            auth.impersonate.clone_from(&self.impersonate_user);
        }
        if !self.impersonate_groups.is_empty() {
            auth.impersonate_groups = Some(self.impersonate_groups.clone());
        }

        Ok(loaded)
    }

    /// The names of all contexts, in the order of the files. A file that cannot be read is skipped.
    pub fn contexts(&self) -> Vec<String> {
        let files = self.kubeconfigs.iter();
        let read = files.filter_map(|file| read(file).ok());
        let mut names = Vec::new();
        for context in read.flat_map(|it| it.contexts) {
            if !names.contains(&context.name) {
                names.push(context.name);
            }
        }

        names
    }

    fn load_files(&self, files: &[PathBuf], mode: PluginMode) -> Result<LoadedKubeconfig, Fault> {
        let names: Vec<String> = files
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        let names = names.join(":");
        let wrong = |error: KubeconfigError| unusable(&names, &error);
        let kubeconfig = files
            .iter()
            .map(|file| {
                let mut read = read(file)?;
                // An empty one would hide that of the next file.
                read.current_context.take_if(|name| name.is_empty());
                drop_directory_paths(&mut read);
                Ok(read)
            })
            .reduce(|merged, next| merged?.merge(next?))
            .unwrap_or_else(|| Ok(Kubeconfig::default()))
            .map_err(wrong)?;
        let name = self.check_names(&kubeconfig, &names)?;
        let context = find_named(&kubeconfig.contexts, |it| {
            (it.name == name).then_some(&it.context)
        });
        let context = context.unwrap_or_default();
        let cluster_name = self.cluster.as_ref().unwrap_or(&context.cluster);
        let cluster = find_named(&kubeconfig.clusters, |it| {
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
        // As for kubectl, an unknown user is one without credentials.
        let credentials = find_named(&kubeconfig.auth_infos, |it| {
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

        let plugin = plugin(&mut config, &self.shell, mode);

        Ok(LoadedKubeconfig {
            config,
            context: name,
            user,
            plugin,
        })
    }

    /// Refuses unknown names, listing the known ones. Returns the name of the context.
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

/// Other fields may be secrets, and a proxy's URL holds its password.
impl fmt::Debug for LoadedKubeconfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoadedKubeconfig")
            .field("context", &self.context)
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

impl LoadedKubeconfig {
    /// The URL of the API server, for display.
    pub fn server(&self) -> String {
        let server = self.config.cluster_url.to_string();
        server.trim_end_matches('/').to_owned()
    }

    /// Tells whether logging in takes a credential plugin.
    pub fn has_plugin(&self) -> bool {
        self.plugin.is_some()
    }

    /// Runs the credential plugin, if there is one.
    ///
    /// # Errors
    ///
    /// [`FaultKind::Config`], with the plugin's own message.
    pub async fn log_in(&self) -> Result<Option<Credential>, Fault> {
        let Some(plugin) = &self.plugin else {
            return Ok(None);
        };
        let credential = plugin.run().await;

        credential
            .map(Some)
            .map_err(|why| unusable_context(&self.context, &why.to_string()))
    }

    /// Makes the client. Runs the credential plugin, if there is one, unless `credential` is given.
    ///
    /// # Errors
    ///
    /// [`FaultKind::Config`]: the plugin failed, or certificates, keys or a proxy cannot be used.
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
        // That of a login changes; it is checked here because later errors are only logged.
        let identity = identity::of(&shown)
            .map_err(|wrong| unusable_context(&context, &format!("user {user}: {wrong}")))?
            .filter(|_| login.is_none());
        let auth = &mut self.config.auth_info;
        // Otherwise kube would read it as well.
        auth.client_certificate = None;
        auth.client_certificate_data = None;
        auth.client_key = None;
        auth.client_key_data = None;

        client::client(self.config, identity, login)
            .map_err(|error| unusable_context(&context, &chain(&error)))
    }
}

/// Reads one file, unless it is too large: a device may have no end.
fn read(file: &Path) -> Result<Kubeconfig, KubeconfigError> {
    let is_refused = fs::metadata(file).is_ok_and(|found| {
        let kind = found.file_type();
        let is_endless = kind.is_char_device() && file != Path::new("/dev/null");
        is_endless || kind.is_block_device() || found.len() > MAX_SIZE
    });
    if is_refused {
        let why = format!("it is a device, or larger than {} MiB", MAX_SIZE >> 20);
        let error = io::Error::new(io::ErrorKind::FileTooLarge, why);
        return Err(KubeconfigError::ReadConfig(error, file.to_owned()));
    }

    Kubeconfig::read_from(file)
}

/// kube turns an empty path into the directory of the kubeconfig, with a slash; kubectl ignores an
/// empty path (kube-client 5.0.0, `config/file_config.rs`).
fn drop_directory_paths(kubeconfig: &mut Kubeconfig) {
    let clusters = kubeconfig.clusters.iter_mut();
    let authorities = clusters
        .filter_map(|it| it.cluster.as_mut())
        .map(|it| &mut it.certificate_authority);
    let users = kubeconfig.auth_infos.iter_mut();
    let files = users.filter_map(|it| it.auth_info.as_mut()).flat_map(|it| {
        [
            &mut it.client_certificate,
            &mut it.client_key,
            &mut it.token_file,
        ]
    });
    for path in authorities.chain(files) {
        path.take_if(|path| path.ends_with('/'));
    }
}

/// Takes the credential plugin out of `config`, unless static credentials override it.
fn plugin(config: &mut Config, shell: &Shell, mode: PluginMode) -> Option<Plugin> {
    let auth = &mut config.auth_info;
    let plugin = auth.exec.take()?;
    // As for kubectl, static credentials come first (client-go, `plugin/pkg/client/auth/exec`).
    let has_certificate = (auth.client_certificate.is_some()
        || auth.client_certificate_data.is_some())
        && (auth.client_key.is_some() || auth.client_key_data.is_some());
    let has_token = auth.token.is_some() || auth.token_file.is_some();
    let has_static_credentials = has_token || has_certificate || auth.username.is_some();

    (!has_static_credentials).then(|| Plugin::new(plugin, shell.clone(), mode))
}

fn unusable_context(context: &str, why: &str) -> Fault {
    let message = format!("context {context} cannot be used: {why}");

    Fault::new(FaultKind::Config, message)
}

fn unusable(files: &str, error: &KubeconfigError) -> Fault {
    let text = chain(error);
    // The lines after the first quote the file.
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

/// The value of the first item that `is_wanted` selects.
fn find_named<N, T: Clone>(named: &[N], is_wanted: impl Fn(&N) -> Option<&Option<T>>) -> Option<T> {
    named.iter().find_map(is_wanted)?.clone()
}

fn in_cluster() -> Result<LoadedKubeconfig, Fault> {
    let config = Config::incluster().map_err(|_| {
        Fault::new(
            FaultKind::Config,
            "there is no kubeconfig: set KUBECONFIG or use --kubeconfig FILE",
        )
    })?;

    Ok(LoadedKubeconfig {
        config,
        context: "in-cluster".to_owned(),
        user: String::new(),
        plugin: None,
    })
}

#[cfg(test)]
mod tests;
