//! The control plane: etcd, API server, controller manager and scheduler, all on the first node.

use std::time::Duration;

use anyhow::Result;

use super::{Layout, build::Programs, network::Network, process::Daemon};
use crate::run::Wait;

pub(crate) fn start(layout: &Layout, network: Network, programs: &Programs) -> Result<()> {
    let api = api_server(layout, network, programs);
    etcd(layout, programs).start(layout)?;
    api.start(layout)?;
    Wait {
        what: "the API server to be ready",
        within: Duration::from_secs(90),
        log: Some(&api.log(layout)),
    }
    .until(|| layout.kubectl(&["get", "--raw", "/readyz"]))?;

    controller_manager(layout, network, programs).start(layout)?;
    scheduler(layout, programs).start(layout)?;
    Ok(())
}

fn daemon<'a>(name: &'a str, programs: &Programs, arguments: &[String]) -> Daemon<'a> {
    let mut command = vec![programs.kube.display().to_string(), name.to_owned()];
    command.extend_from_slice(arguments);
    Daemon {
        namespace: "tpt-1",
        name,
        command,
    }
}

fn etcd(layout: &Layout, programs: &Programs) -> Daemon<'static> {
    daemon(
        "etcd",
        programs,
        &[
            format!("--data-dir={}", layout.dir.join("etcd").display()),
            "--listen-client-urls=http://127.0.0.1:2379".to_owned(),
            "--advertise-client-urls=http://127.0.0.1:2379".to_owned(),
            "--listen-peer-urls=http://127.0.0.1:2380".to_owned(),
            // No data outlives the cluster.
            "--unsafe-no-fsync".to_owned(),
        ],
    )
}

fn api_server(layout: &Layout, network: Network, programs: &Programs) -> Daemon<'static> {
    let pki = |name: &str| layout.pki().join(name).display().to_string();
    daemon(
        "kube-apiserver",
        programs,
        &[
            "--etcd-servers=http://127.0.0.1:2379".to_owned(),
            format!("--bind-address={}", network.unspecified()),
            format!("--advertise-address={}", network.node(1)),
            format!(
                "--service-cluster-ip-range={}",
                network.of_each(Network::services)
            ),
            format!("--tls-cert-file={}", pki("apiserver.crt")),
            format!("--tls-private-key-file={}", pki("apiserver.key")),
            format!("--client-ca-file={}", pki("ca.crt")),
            format!(
                "--kubelet-client-certificate={}",
                pki("apiserver-client.crt")
            ),
            format!("--kubelet-client-key={}", pki("apiserver-client.key")),
            format!("--kubelet-certificate-authority={}", pki("ca.crt")),
            // No DNS has the nodes' names.
            "--kubelet-preferred-address-types=InternalIP".to_owned(),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            format!("--service-account-key-file={}", pki("sa.pub")),
            format!("--service-account-signing-key-file={}", pki("sa.key")),
            "--authorization-mode=Node,RBAC".to_owned(),
            "--enable-admission-plugins=NodeRestriction".to_owned(),
            "--allow-privileged=true".to_owned(),
        ],
    )
}

fn controller_manager(layout: &Layout, network: Network, programs: &Programs) -> Daemon<'static> {
    let pki = |name: &str| layout.pki().join(name).display().to_string();
    daemon(
        "kube-controller-manager",
        programs,
        &[
            format!("--kubeconfig={}", pki("controller-manager.conf")),
            format!("--service-account-private-key-file={}", pki("sa.key")),
            format!("--root-ca-file={}", pki("ca.crt")),
            format!("--cluster-cidr={}", network.of_each(Network::pods)),
            "--allocate-node-cidrs=true".to_owned(),
            "--use-service-account-credentials=true".to_owned(),
            format!("--cluster-signing-cert-file={}", pki("ca.crt")),
            format!("--cluster-signing-key-file={}", pki("ca.key")),
            "--leader-elect=false".to_owned(),
        ],
    )
}

fn scheduler(layout: &Layout, programs: &Programs) -> Daemon<'static> {
    daemon(
        "kube-scheduler",
        programs,
        &[
            format!(
                "--kubeconfig={}",
                layout.pki().join("scheduler.conf").display()
            ),
            "--leader-elect=false".to_owned(),
        ],
    )
}
