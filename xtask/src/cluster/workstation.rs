//! The workstation: a network namespace with a name server of its own, and the script that runs a command there.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::Path,
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result};

use super::{Layout, build::Programs, netns, network::Network, process::Daemon};
use crate::{
    paths,
    run::{self, Wait},
};

/// Names of a company's resolver, which no cluster has to answer.
fn corefile(network: Network) -> String {
    format!(
        ".:53 {{
    bind {}
    hosts {{
        192.0.2.10 intranet.corp.test
        {} neighbour.corp.test
        ttl 1
    }}
}}
",
        network.name_server(),
        network.neighbour()
    )
}

pub(super) fn command(user: Option<&str>, kube: Option<&str>, command: &[String]) -> Command {
    let mut ws = Command::new(Layout::new().bin().join("ws"));
    if let Some(user) = user {
        ws.args(["--user", user]);
    }
    if let Some(kube) = kube {
        ws.args(["--kube", kube]);
    }
    ws.arg("--").args(command);
    ws
}

/// Writes the workstation's files: resolv.conf, kubectl and the script `ws`.
pub(super) fn write_script(layout: &Layout, network: Network, programs: &Programs) -> Result<()> {
    run::write(
        &layout.resolv_conf(),
        format!("nameserver {}\n", network.name_server()),
    )?;
    link(&programs.kube, &layout.bin().join("kubectl"))?;
    link(&layout.user("admin"), &layout.dir.join("admin.conf"))?;

    let script = format!(
        r#"#!/bin/sh
# Runs a command as on the workstation: ws [--user ACCOUNT] [--kube PERSON] [--] COMMAND...
set -eu
dir='{dir}'
user=root kube=
while [ $# -gt 0 ]; do
    case $1 in
    --user) user=$2; shift 2 ;;
    --kube) kube=$2; shift 2 ;;
    --) shift; break ;;
    *) break ;;
    esac
done
if [ "$user" = root ]; then
    # A home of its own: kubectl keeps a cache there, and the user's ~/.kube is none of our business.
    KUBECONFIG=$dir/users/${{kube:-admin}}.conf HOME=$dir/home/root
    mkdir -p "$HOME"
else
    kube=${{kube:-dev}}
    home=$dir/home/$user
    if [ ! -f "$home/$kube.conf" ] || [ "$dir/users/$kube.conf" -nt "$home/$kube.conf" ]; then
        mkdir -p "$dir/home"
        install -d -m 0700 -o "$user" -g "$(id -g "$user")" "$home"
        install -m 0600 -o "$user" -g "$(id -g "$user")" "$dir/users/$kube.conf" "$home/$kube.conf.$$"
        mv "$home/$kube.conf.$$" "$home/$kube.conf"
    fi
    KUBECONFIG=$home/$kube.conf HOME=$home USER=$user LOGNAME=$user
    export USER LOGNAME
    set -- setpriv --reuid="$user" --regid="$(id -g "$user")" --init-groups -- "$@"
fi
programs=${{TP_BIN_DIR:-'{release}'}}
if [ "$user" != root ]; then
    # The checkout may lie below a folder that others may not enter.
    mkdir -p "$dir/programs"
    for name in tp tp-daemon tp-session; do
        [ -f "$programs/$name" ] || continue
        cmp -s "$programs/$name" "$dir/programs/$name" && continue
        install -m 0755 "$programs/$name" "$dir/programs/$name.$$"
        mv "$dir/programs/$name.$$" "$dir/programs/$name"
    done
    programs=$dir/programs
fi
PATH=$programs:$dir/bin:$PATH
export KUBECONFIG HOME PATH
unset XDG_RUNTIME_DIR XDG_STATE_HOME XDG_CONFIG_HOME XDG_CACHE_HOME
# A mount namespace of its own, so that resolv.conf is the workstation's. Not `ip netns exec`: it hides control groups.
exec nsenter --net=/run/netns/{workstation} unshare --mount --propagation private \
    sh -c 'mount --bind "$0" /etc/resolv.conf && exec "$@"' "$dir/resolv.conf" "$@"
"#,
        dir = layout.dir.display(),
        release = paths::release().display(),
        workstation = netns::WORKSTATION,
    );
    let path = layout.bin().join("ws");
    run::write(&path, script)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

fn link(target: &Path, name: &Path) -> Result<()> {
    fs::create_dir_all(name.parent().expect("links are in a folder"))?;
    if name.is_symlink() {
        fs::remove_file(name)?;
    }
    symlink(target, name).with_context(|| format!("linking {}", name.display()))
}

/// Starts the company's name server and waits until it answers.
pub(super) fn start_dns(layout: &Layout, network: Network, programs: &Programs) -> Result<()> {
    let config = layout.dir.join("Corefile");
    run::write(&config, corefile(network))?;
    let dns = Daemon {
        namespace: netns::WORKSTATION,
        name: "company-dns",
        command: vec![
            programs.coredns.display().to_string(),
            "-conf".to_owned(),
            config.display().to_string(),
        ],
    };
    dns.start(layout)?;
    Wait {
        what: "the company's name server to answer",
        within: Duration::from_secs(20),
        log: Some(&dns.log(layout)),
    }
    .until(|| {
        run::output(&mut command(
            None,
            None,
            &["getent", "hosts", "intranet.corp.test"].map(str::to_owned),
        ))
    })
    .map(drop)
}
