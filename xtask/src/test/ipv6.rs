//! A cluster without IPv4: tp can be installed there, and names the unreachable networks.

use std::time::Duration;

use anyhow::{Result, bail};

use crate::{
    cluster::{self, Network},
    dist, products, run,
};

/// Brings such a cluster up, checks, and takes it down.
pub(super) fn check() -> Result<()> {
    cluster::down()?;
    cluster::up(1, Network::Ipv6)?;
    cluster::import(&dist::image())?;
    let on_workstation = |words: &[&str]| run::output(&mut cluster::on_workstation(words));
    let image = format!("--image={}", products::image_reference());
    let install = ["tp", "install", &image, "--image-pull-policy=Never"];
    on_workstation(&[&install[..], &["--wait=90s"]].concat())?;
    let connect = ["tp", "connect", "--namespace", "kube-system"];
    let connected = on_workstation(&[&connect[..], &["--output", "json"]].concat())?;
    if !connected.contains("IPv6 is not steered yet") {
        bail!("nothing says that an IPv6-only cluster is not reached:\n{connected}");
    }
    let listed = on_workstation(&["tp", "list"])?;
    if !listed.contains("coredns") {
        bail!("the workloads of an IPv6-only cluster are not listed:\n{listed}");
    }
    on_workstation(&["tp", "quit", "--stop-daemons"])?;
    run::Wait {
        what: "no session to be left",
        within: Duration::from_secs(10),
        log: None,
    }
    .until(|| {
        let left = on_workstation(&["kubectl", "get", "sessions.tp.internal", "-A", "-o", "name"])?;
        match left.as_str() {
            "" => Ok(()),
            left => bail!("{left}"),
        }
    })?;
    on_workstation(&["tp", "uninstall", "--everything", "--yes"])?;
    cluster::down()
}
