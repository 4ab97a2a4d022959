//! The connection to the API server, and its errors as faults.

use std::time::Duration;

use kube::Client;
use tp_kube::{Credential, KubeconfigOptions, PluginMode, Shell};
use tp_proto::fault::{Fault, FaultKind, chain};

use crate::cluster_args::ClusterArgs;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

pub(crate) struct Cluster {
    client: Client,
    server: String,
}

impl Cluster {
    /// Logs in, unless `credential` is from an earlier login.
    pub(crate) async fn connect(
        args: &ClusterArgs,
        credential: Option<Credential>,
    ) -> Result<Self, Fault> {
        Self::connect_within(args, credential, ANSWER_TIMEOUT).await
    }

    /// `answer`: how long the API server may stay silent.
    async fn connect_within(
        args: &ClusterArgs,
        credential: Option<Credential>,
        answer: Duration,
    ) -> Result<Self, Fault> {
        let mut loaded = kubeconfig_options(args)?.load(PluginMode::Foreground)?;
        loaded.config.connect_timeout = Some(CONNECT_TIMEOUT);
        loaded.config.read_timeout = Some(answer);

        Ok(Self {
            server: loaded.server(),
            client: loaded.client(credential).await?,
        })
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    pub(crate) fn server(&self) -> &str {
        &self.server
    }

    /// An error of the API server as a fault; `operation` is what the user wanted.
    pub(crate) fn fault(&self, operation: &str, error: &kube::Error) -> Fault {
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
                    "cannot {operation}: {}; ask an administrator of the cluster",
                    status.message
                ),
            ),
            kube::Error::Api(status) => Fault::new(
                FaultKind::Failed,
                format!("cannot {operation}: {}", status.message),
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
                format!("cannot {operation}: {}", chain(error)),
            ),
        }
    }
}

/// The kubeconfig options of the flags and of this shell.
pub(crate) fn kubeconfig_options(args: &ClusterArgs) -> Result<KubeconfigOptions, Fault> {
    let shell = Shell::current();
    let some = |flag: &Option<String>| flag.clone().filter(|text| !text.is_empty());

    Ok(KubeconfigOptions {
        kubeconfigs: match &args.kubeconfig {
            Some(path) => vec![shell.absolute(path)],
            None => shell.kubeconfigs()?,
        },
        context: some(&args.context),
        cluster: some(&args.cluster),
        user: some(&args.user),
        impersonate_user: some(&args.impersonate_user),
        impersonate_groups: args.impersonate_groups.clone(),
        shell,
    })
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use clap::Parser as _;
    use serde_json::json;
    use tokio::net::TcpListener;

    use super::*;
    use crate::cli::{Cli, Command};

    /// Longer than all retries of one request.
    const TIMEOUT: Duration = Duration::from_secs(10);

    #[test]
    fn the_installation_goes_where_the_flags_say_as_whom_they_say() {
        let line = "tp install --kubeconfig k --context staging --cluster other --user u --as jane \
                    --as-group ops --as-group dev";
        let Command::Install(args) = Cli::try_parse_from(line.split_whitespace())
            .unwrap()
            .command
        else {
            panic!("another command");
        };

        let text = |text: &str| Some(text.to_owned());
        let expected = KubeconfigOptions {
            kubeconfigs: vec![std::env::current_dir().unwrap().join("k")],
            context: text("staging"),
            cluster: text("other"),
            user: text("u"),
            impersonate_user: text("jane"),
            impersonate_groups: vec!["ops".to_owned(), "dev".to_owned()],
            shell: Shell::current(),
        };
        assert_eq!(kubeconfig_options(&args.cluster).unwrap(), expected);
    }

    #[tokio::test]
    async fn an_api_server_that_accepts_and_says_nothing_is_given_up() {
        let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let server = format!("http://{}", silent.local_addr().unwrap());
        let kubeconfig = tempfile::NamedTempFile::new().unwrap();
        let config = json!({
            "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "clusters": [{"name": "c", "cluster": {"server": server}}],
            "users": [{"name": "u", "user": {}}],
        });
        std::fs::write(kubeconfig.path(), config.to_string()).unwrap();
        let args = ClusterArgs {
            kubeconfig: Some(kubeconfig.path().to_owned()),
            ..ClusterArgs::default()
        };
        let answer = Duration::from_millis(100);
        let cluster = Cluster::connect_within(&args, None, answer).await.unwrap();

        let asked = tokio::time::timeout(TIMEOUT, cluster.client().apiserver_version()).await;

        let error = asked.expect("an end within the bound").unwrap_err();
        let fault = cluster.fault("ask for the version", &error);
        assert_eq!(fault.kind, FaultKind::Unavailable, "{fault}");
        assert!(fault.message.contains(&server), "{fault}");
    }
}
