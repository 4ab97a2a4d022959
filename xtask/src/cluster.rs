//! The project's own Kubernetes on this machine: several nodes, and a workstation that reaches
//! nodes but no pods.
//!
//! Everything lives below one folder, in namespaces and control groups whose names begin with
//! `tpt-`, so that it can be removed completely after any crash. No container engine takes part.

use std::{
    fs::{self, File},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};

use crate::{
    dist, packages, paths,
    run::{self, Wait},
    workloads,
};

pub(crate) mod build;
mod control;
mod down;
pub(crate) mod netns;
mod network;
mod node;
mod pki;
mod process;
mod workstation;

pub(crate) use down::down;
pub(crate) use network::Network;
use node::Node;

#[derive(Subcommand)]
pub(crate) enum Action {
    /// Build what is missing and start the cluster; a cluster that runs is left as it is
    Up {
        /// How many nodes
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=9))]
        nodes: u8,
        /// Which addresses nodes, pods and services have
        #[arg(long, value_enum, default_value_t)]
        network: Network,
    },
    /// End the cluster and remove everything it made, also after a crash
    Down,
    /// Tell what runs
    Status,
    /// Run a command as on the workstation: its network, its name server, kubectl and tp on PATH
    Ws(WorkstationArguments),
    /// Import an image into every node: by default that of tp, made of what `cargo xtask build` built
    Image {
        /// A docker-archive or OCI tar file
        archive: Option<PathBuf>,
    },
    /// Deploy the servers that tests talk to, and wait until each serves
    Workloads,
    /// Disturb the way between the workstation and the nodes
    Impair { kind: netns::Impairment },
    /// Limit the rate of the workstation's link, as an access link does; without a rate, undo
    Limit(netns::Limit),
}

#[derive(Args)]
pub(crate) struct WorkstationArguments {
    /// The account of this machine to run as (default: root)
    #[arg(long)]
    user: Option<String>,
    /// Whose kubeconfig: admin, dev, limited or stranger (default: admin for root, else dev)
    #[arg(long)]
    kube: Option<String>,
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// Paths of the running cluster.
pub(crate) struct Layout {
    pub(crate) dir: PathBuf,
}

impl Layout {
    pub(crate) fn new() -> Self {
        Self {
            dir: paths::testbed(),
        }
    }

    fn pki(&self) -> PathBuf {
        self.dir.join("pki")
    }

    fn logs(&self) -> PathBuf {
        self.dir.join("logs")
    }

    pub(crate) fn bin(&self) -> PathBuf {
        self.dir.join("bin")
    }

    fn users(&self) -> PathBuf {
        self.dir.join("users")
    }

    /// A user's kubeconfig.
    pub(crate) fn user(&self, name: &str) -> PathBuf {
        self.users().join(format!("{name}.conf"))
    }

    fn resolv_conf(&self) -> PathBuf {
        self.dir.join("resolv.conf")
    }

    /// Written when the cluster is up; holds the number of its nodes.
    fn marker(&self) -> PathBuf {
        self.dir.join("nodes")
    }

    /// The number of nodes of the running cluster.
    fn nodes(&self) -> Result<u8> {
        fs::read_to_string(self.marker())
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .context("no cluster runs: start one with `cargo xtask cluster up`")
    }

    /// Runs kubectl as the administrator, from the workstation.
    pub(crate) fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        run::output(
            self.kubectl_command()
                .arg("--request-timeout=20s")
                .args(arguments),
        )
    }

    fn kubectl_command(&self) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(netns::entry(netns::WORKSTATION))
            .arg(self.bin().join("kubectl"))
            .env("KUBECONFIG", self.user("admin"))
            .env("HOME", &self.dir);
        command
    }
}

pub(crate) fn perform(action: Action) -> Result<()> {
    match action {
        Action::Up { nodes, network } => up(nodes, network),
        Action::Down => down(),
        Action::Status => status(),
        Action::Ws(arguments) => {
            let layout = Layout::new();
            layout.nodes()?;
            let mut command = workstation::command(
                arguments.user.as_deref(),
                arguments.kube.as_deref(),
                &arguments.command,
            );
            Err(command.exec()).context("starting the command on the workstation")
        }
        Action::Image { archive } => import(&archive.map_or_else(dist::image_only, Ok)?),
        Action::Workloads => deploy_workloads(),
        Action::Impair { kind } => {
            Layout::new().nodes()?;
            netns::impair(kind)
        }
        Action::Limit(limit) => {
            Layout::new().nodes()?;
            netns::limit(&limit)
        }
    }
}

/// A command that runs as root on the workstation.
pub(crate) fn on_workstation(command: &[impl AsRef<str>]) -> Command {
    let command: Vec<String> = command
        .iter()
        .map(|word| word.as_ref().to_owned())
        .collect();
    workstation::command(None, None, &command)
}

/// The network namespace of another node; of this one if it is the only node.
pub(crate) fn node_beside(name: &str) -> Result<String> {
    let layout = Layout::new();
    let others = (1..=layout.nodes()?).filter(|&index| Node::new(&layout, index).name() != name);
    Ok(netns::node(others.min().unwrap_or(1)))
}

/// One cluster per machine, changed by one command at a time.
fn lock() -> Result<File> {
    let path = Path::new("/run/tp-testbed.lock");
    let file = File::create(path)
        .with_context(|| format!("opening {}: the test cluster needs root", path.display()))?;
    file.lock().context("waiting for the test cluster's lock")?;
    Ok(file)
}

pub(crate) fn up(nodes: u8, network: Network) -> Result<()> {
    let lock = lock()?;
    let layout = Layout::new();
    packages::ensure(&[packages::BUILD, packages::CLUSTER])?;
    let programs = build::programs()?;
    let is_the_same = layout.nodes().is_ok_and(|running| running == nodes)
        && Network::current(&layout) == network;
    if is_the_same && is_healthy(&layout) {
        workstation::write_script(&layout, network, &programs)?;
        println!("the cluster is up already: {}", layout.dir.display());
        return Ok(());
    }

    down::remove_all(&layout)?;
    let mut steps = Steps::new();
    // The cluster's programs must not inherit the lock; Rust opens files close-on-exec.
    make_folder(&layout.dir)?;
    fs::create_dir_all(layout.logs())?;
    network.keep(&layout)?;
    workstation::write_script(&layout, network, &programs)?;
    netns::create(network, nodes)?;
    pki::create(&layout, network, nodes)?;
    steps.done("network and certificates");

    control::start(&layout, network, &programs)?;
    steps.done("control plane");

    let members: Vec<Node<'_>> = (1..=nodes).map(|index| Node::new(&layout, index)).collect();
    apply_nodes(&layout, &members)?;
    std::thread::scope(|scope| {
        let starts: Vec<_> = members
            .iter()
            .map(|member| {
                let programs = &programs;
                scope.spawn(move || {
                    let runtime = member.start_runtime(programs)?;
                    member.start_agents(programs, runtime)
                })
            })
            .collect();
        starts
            .into_iter()
            .try_for_each(|start| start.join().expect("starting a node does not panic"))
    })?;
    workstation::start_dns(&layout, network, &programs)?;
    apply_dns(&layout, network)?;
    steps.done("nodes started");

    for member in &members {
        Wait {
            what: &format!("{} to be ready", member.name()),
            within: Duration::from_secs(90),
            log: Some(&member.kubelet_log()),
        }
        .until(|| {
            layout.kubectl(&[
                "wait",
                "--for=condition=Ready",
                "--timeout=5s",
                "node",
                &member.name(),
            ])
        })?;
    }
    Wait {
        what: "the cluster's DNS to serve",
        within: Duration::from_secs(90),
        log: Some(&members[0].kubelet_log()),
    }
    .until(|| {
        layout.kubectl(&[
            "-n",
            "kube-system",
            "rollout",
            "status",
            "deployment/coredns",
            "--timeout=5s",
        ])
    })?;
    Wait {
        what: "the default service account",
        within: Duration::from_secs(30),
        log: None,
    }
    .until(|| layout.kubectl(&["-n", "default", "get", "serviceaccount", "default"]))?;
    run::write(&layout.marker(), nodes.to_string())?;
    steps.done("nodes and DNS ready");
    drop(lock);

    println!(
        "the cluster is up: {nodes} nodes, kubeconfig {}",
        layout.user("admin").display()
    );
    Ok(())
}

/// Applies the cluster's DNS, at its address in this network.
fn apply_dns(layout: &Layout, network: Network) -> Result<()> {
    let source = paths::testbed_sources().join("coredns.yaml");
    let text =
        fs::read_to_string(&source).with_context(|| format!("reading {}", source.display()))?;
    let text = text
        .replace("${name-server}", network.name_server())
        .replace("${cluster-dns}", network.cluster_dns());
    let file = layout.dir.join("coredns.yaml");
    run::write(&file, text)?;
    layout
        .kubectl(&["apply", "-f", &file.display().to_string()])
        .map(drop)
}

fn apply_nodes(layout: &Layout, members: &[Node<'_>]) -> Result<()> {
    let list = serde_json::json!({
        "apiVersion": "v1",
        "kind": "List",
        "items": members.iter().map(Node::object).collect::<Vec<_>>(),
    });
    let file = layout.dir.join("nodes.json");
    run::write(&file, list.to_string())?;
    layout
        .kubectl(&["create", "-f", &file.display().to_string()])
        .map(drop)
}

/// Makes a folder that others can traverse but not list.
fn make_folder(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("creating {}", path.display()))
}

fn is_healthy(layout: &Layout) -> bool {
    let ready = layout.kubectl(&[
        "wait",
        "--for=condition=Ready",
        "--timeout=3s",
        "node",
        "--all",
    ]);
    ready.is_ok()
}

pub(crate) fn import(archive: &Path) -> Result<()> {
    let layout = Layout::new();
    let nodes = layout.nodes()?;
    if !archive.exists() {
        bail!(
            "{} does not exist: name a docker-archive or OCI tar file",
            archive.display()
        );
    }
    for index in 1..=nodes {
        Node::new(&layout, index).import(archive)?;
    }
    Ok(())
}

impl workloads::Site for Layout {
    fn import(&self, image: &Path) -> Result<()> {
        import(image)
    }

    fn kubectl(&self) -> Command {
        self.kubectl_command()
    }
}

/// Brings up the echo server alone.
pub(crate) fn deploy_echo() -> Result<()> {
    let layout = Layout::new();
    layout.nodes()?;
    workloads::deploy_echo(&layout)
}

/// Brings up the servers of tests and the demonstration.
pub(crate) fn deploy_workloads() -> Result<()> {
    let layout = Layout::new();
    layout.nodes()?;
    workloads::deploy(&layout)
}

fn status() -> Result<()> {
    let layout = Layout::new();
    let nodes = layout.nodes()?;
    println!("{nodes} nodes, state in {}", layout.dir.display());
    print!("{}", layout.kubectl(&["get", "nodes", "-o", "wide"])?);
    print!(
        "{}",
        layout.kubectl(&["get", "pods", "--all-namespaces", "-o", "wide"])?
    );
    Ok(())
}

/// Prints the duration of each part.
struct Steps {
    last: Instant,
}

impl Steps {
    fn new() -> Self {
        Self {
            last: Instant::now(),
        }
    }

    fn done(&mut self, what: &str) {
        println!("  {what} ({:.1} s)", self.last.elapsed().as_secs_f64());
        self.last = Instant::now();
    }
}
