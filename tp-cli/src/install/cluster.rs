//! The connection to the API server, and its errors as faults.

use std::time::Duration;

use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use tp_proto::fault::{Fault, FaultKind};

use super::args::ClusterArgs;

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

async fn load(args: &ClusterArgs) -> Result<Config, Fault> {
    let options = KubeConfigOptions {
        context: args.context.clone(),
        ..KubeConfigOptions::default()
    };
    let config_fault = |message: String| Fault::new(FaultKind::Config, message);

    let (kubeconfig, origin) = match &args.kubeconfig {
        Some(path) => (
            Kubeconfig::read_from(path),
            format!("the kubeconfig {}", path.display()),
        ),
        None => (Kubeconfig::read(), "the kubeconfig".to_owned()),
    };
    let kubeconfig = match kubeconfig {
        Ok(kubeconfig) => kubeconfig,
        Err(error) if args.kubeconfig.is_none() && args.context.is_none() => {
            return Config::incluster().map_err(|_| {
                config_fault(format!(
                    "no usable kubeconfig ({}): set KUBECONFIG or pass --kubeconfig FILE",
                    chain(&error)
                ))
            });
        }
        Err(error) => {
            return Err(config_fault(format!(
                "{origin} cannot be read: {}",
                chain(&error)
            )));
        }
    };
    if let Some(context) = &args.context
        && !kubeconfig
            .contexts
            .iter()
            .any(|known| known.name == *context)
    {
        let known: Vec<&str> = kubeconfig
            .contexts
            .iter()
            .map(|context| context.name.as_str())
            .collect();
        return Err(config_fault(format!(
            "context \"{context}\" does not exist in {origin}; known: {}",
            known.join(", ")
        )));
    }

    Config::from_custom_kubeconfig(kubeconfig, &options)
        .await
        .map_err(|error| config_fault(format!("{origin} cannot be used: {}", chain(&error))))
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
