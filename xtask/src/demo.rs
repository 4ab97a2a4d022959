//! Demonstrates tp on a Kubernetes that it brings up here, or on one that the user names.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    cluster::{self, Layout},
    consent::{Kubernetes, consent, needed},
    dist, packages, paths, products,
    run::{self, Background},
    steps::Steps,
};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Install what is missing without asking
    #[arg(long)]
    yes: bool,
    /// Use this cluster instead of one made for the demonstration
    #[arg(long, value_name = "FILE", requires = "image")]
    kubeconfig: Option<PathBuf>,
    /// What the cluster's nodes call the image of tp, once you have pushed it
    #[arg(long, value_name = "REF", requires = "kubeconfig")]
    image: Option<String>,
}

pub(crate) fn demo(options: &Options) -> Result<()> {
    match (&options.kubeconfig, &options.image) {
        (Some(kubeconfig), Some(image)) => foreign(options, kubeconfig, image),
        _ => own(options),
    }
}

/// The machine that runs the commands of the demonstration.
enum Host<'a> {
    Workstation,
    Here { kubeconfig: &'a Path },
}

impl Host<'_> {
    fn command(&self, words: &[&str]) -> Command {
        match self {
            Self::Workstation => cluster::on_workstation(words),
            Self::Here { kubeconfig } => {
                let program = match words[0] {
                    "tp" => paths::release().join("tp"),
                    other => PathBuf::from(other),
                };
                let mut command = Command::new(program);
                command.args(&words[1..]).env("KUBECONFIG", kubeconfig);
                command
            }
        }
    }

    /// Shows a command and what it prints.
    fn show(&self, words: &[&str]) -> Result<()> {
        println!("\n$ {}", run::in_shell(words));
        let begin = Instant::now();
        run::status(&mut self.command(words))?;
        println!("  ({:.0} ms)", begin.elapsed().as_secs_f64() * 1e3);
        Ok(())
    }
}

fn own(options: &Options) -> Result<()> {
    prepare("demo", options.yes)?;
    tour()?;
    hints();
    Ok(())
}

/// Brings up the project's own cluster with its workloads, and imports the image of tp.
pub(crate) fn prepare(command: &str, yes: bool) -> Result<()> {
    consent(command, Kubernetes::Own, yes)?;
    let mut steps = Steps::new();
    steps.step("packages", "the log it names", || {
        packages::ensure(&needed(command, Kubernetes::Own))
    })?;
    steps.step("programs", "the compiler output above", products::build)?;
    steps.step("image", "target/dist", || dist::image_only().map(drop))?;
    steps.step("cluster up", "the log it names", || {
        cluster::up(2, cluster::Network::Ipv4)
    })?;
    steps.step(
        "workloads",
        "`cargo xtask cluster status`",
        cluster::deploy_workloads,
    )?;
    steps.step("image import", "target/dist/tp-image.tar", || {
        cluster::import(&dist::image())
    })
}

/// Installs tp on the project's own cluster, as a user would.
pub(crate) fn install() -> Result<()> {
    let host = Host::Workstation;
    let image = format!("--image={}", products::image_reference());
    host.show(&[
        "tp",
        "install",
        &image,
        "--image-pull-policy=Never",
        "--wait=90s",
    ])?;
    // An earlier session may run an older program.
    let _ = run::output(&mut host.command(&["tp", "quit"]));
    Ok(())
}

/// The demonstration on the project's own cluster, which is ready.
pub(crate) fn tour() -> Result<()> {
    connected()?;

    intercepted()
}

fn connected() -> Result<()> {
    let host = Host::Workstation;
    install()?;

    println!(
        "\nThe workstation cannot reach the cluster's networks by routing, and its name server knows no cluster:"
    );
    let words = ["curl", "--silent", "--max-time", "2", "http://web.shop/"];
    println!("\n$ {}", run::in_shell(&words));
    let before = run::output(&mut host.command(&words));
    if before.is_ok() {
        bail!("web.shop answers without tp: this would show nothing");
    }
    println!("  (nothing, as it should be)");

    host.show(&["tp", "connect", "--namespace", "shop"])?;
    host.show(&[
        "curl",
        "--silent",
        "--show-error",
        "--max-time",
        "10",
        "http://web/",
    ])?;
    host.show(&[
        "curl",
        "--silent",
        "--show-error",
        "--max-time",
        "10",
        "--output",
        "/dev/null",
        "--write-out",
        "HTTP %{http_code} from %{remote_ip}\n",
        "http://web.shop.svc.cluster.local/",
    ])?;
    host.show(&[
        "psql",
        "--no-psqlrc",
        "postgresql://shop:shop@db/shop",
        "-c",
        "select version()",
    ])?;
    host.show(&[
        "mariadb",
        "--host=mariadb",
        "--user=shop",
        "--password=shop",
        "--execute=select version()",
    ])?;
    println!("\nNames of the company are still the company's:");
    host.show(&["getent", "ahostsv4", "intranet.corp.test"])?;
    host.show(&["tp", "status"])?;
    figures(
        &host,
        &[
            (
                "resolving a service name",
                &["resolve", "web.shop.svc.cluster.local", "200"],
            ),
            ("a new connection", &["connects", "echo:7000", "100"]),
            (
                "a request on a kept connection",
                &["requests", "echo:7000", "300"],
            ),
        ],
    )
}

/// The port of the workstation that an intercept leads to.
const LOCAL_PORT: &str = "8088";

/// Brings the traffic of a deployment to the workstation, and back.
fn intercepted() -> Result<()> {
    let host = Host::Workstation;
    println!("\nA process on the workstation:");
    let page = "<title>web, from the workstation</title>\n";
    let words = page_server("demo", page, LOCAL_PORT)?;
    println!("\n$ {} &", run::in_shell(&words));
    let _server = Background::start(&mut cluster::on_workstation(&words))?;

    shown_intercept(&host)
}

/// The words of an HTTP server that serves one page at a port of the loopback interface.
pub(crate) fn page_server(folder: &str, page: &str, port: &str) -> Result<Vec<String>> {
    let folder = paths::target().join(folder);
    run::write(&folder.join("index.html"), page)?;
    let folder = folder.display().to_string();
    let words = ["python3", "-m", "http.server", port, "--bind", "127.0.0.1"];
    let words = words.into_iter().chain(["--directory", &folder]);

    Ok(words.map(str::to_owned).collect())
}

fn shown_intercept(host: &Host<'_>) -> Result<()> {
    let layout = Layout::new();
    let node = layout.kubectl(&[
        "-n",
        "shop",
        "get",
        "pods",
        "--selector=app=web",
        "-o",
        "jsonpath={.items[0].spec.nodeName}",
    ])?;
    let address = layout.kubectl(&[
        "-n",
        "shop",
        "get",
        "service",
        "web",
        "-o",
        "jsonpath={.spec.clusterIP}",
    ])?;
    let caller = cluster::node_beside(node.trim())?;
    let ask = || -> Result<()> {
        let url = format!("http://{}/", address.trim());
        let words = ["curl", "--silent", "--show-error", "--max-time", "10", &url];
        println!("\non a node of the cluster $ {}", run::in_shell(&words));
        let mut command = Command::new("nsenter");
        run::status(command.arg(cluster::netns::entry(&caller)).args(words))
    };
    host.show(&[
        "tp",
        "intercept",
        "web",
        "--port",
        &format!("{LOCAL_PORT}:http"),
    ])?;
    ask()?;
    host.show(&["tp", "leave", "web"])?;

    ask()
}

/// A few figures; `cargo xtask bench` is for real ones.
fn figures(host: &Host<'_>, loads: &[(&str, &[&str])]) -> Result<()> {
    println!("\nA few figures:");
    let xtask = run::own_program()?.display().to_string();
    for (what, words) in loads {
        let all = [&[xtask.as_str(), "probe"], *words].concat();
        let text = run::output(&mut host.command(&all))?;
        let mut samples: Vec<f64> =
            serde_json::from_str(&text).with_context(|| format!("reading figures of {what}"))?;
        samples.sort_by(f64::total_cmp);
        let Some(median) = samples.get(samples.len() / 2) else {
            bail!("there are no figures of {what}");
        };
        let count = samples.len();
        println!("  {what}: {:.2} ms (median of {count})", median / 1e3);
    }
    Ok(())
}

/// Suggestions for the user: a command, and below it what it does.
const HINTS: [(&str, &str); 4] = [
    (
        "cargo xtask cluster ws bash",
        "a shell on that workstation: kubectl, tp, curl http://web/",
    ),
    (
        "cargo xtask cluster ws --user nobody tp status",
        "the same machine as another user sees it: not connected",
    ),
    (
        "cargo xtask cluster impair udp-drop",
        "block the direct path by UDP; `cargo xtask cluster impair none` opens it again",
    ),
    (
        "cargo xtask bench",
        "figures beside plain routing and kubectl port-forward",
    ),
];

fn hints() {
    println!("\nTry more, from this folder:");
    for (command, about) in HINTS {
        println!("  {command}\n      {about}");
    }
    println!(
        "Remove it:\n  cargo xtask cluster down\n      everything but the caches in {} and {}",
        paths::cache().display(),
        paths::target().display()
    );
}

fn foreign(options: &Options, kubeconfig: &Path, image: &str) -> Result<()> {
    if !kubeconfig.exists() {
        bail!(
            "{} does not exist: pass the kubeconfig of your cluster",
            kubeconfig.display()
        );
    }
    consent("demo", Kubernetes::Foreign, options.yes)?;
    let mut steps = Steps::new();
    steps.step("packages", "the log it names", || {
        packages::ensure(&needed("demo", Kubernetes::Foreign))
    })?;
    steps.step("programs", "the compiler output above", products::build)?;
    let archive = steps.step("image", "target/dist", dist::image_only)?;
    println!(
        "\nThe image has to be where your cluster finds it. One of these pushes it:\n  \
         skopeo copy docker-archive:{archive} docker://{image}\n  \
         docker load -i {archive} && docker tag {ours} {image} && docker push {image}",
        archive = archive.display(),
        ours = products::image_reference(),
    );

    let host = Host::Here { kubeconfig };
    let image = format!("--image={image}");
    host.show(&["tp", "install", &image, "--wait=90s"]).context(
        "tp could not be installed; if the pods cannot pull the image, push it as shown above and run this again",
    )?;
    host.show(&["tp", "connect"])?;
    host.show(&["getent", "ahostsv4", "kubernetes.default.svc.cluster.local"])?;
    host.show(&["tp", "list"])?;
    host.show(&["tp", "status"])?;
    figures(
        &host,
        &[(
            "resolving a service name",
            &["resolve", "kubernetes.default.svc.cluster.local", "100"],
        )],
    )?;
    println!(
        "\nYou are connected: services of your cluster answer by name on this machine.\n\
         Disconnect with `{tp} quit`; remove tp from the cluster with `{tp} uninstall --everything`.",
        tp = paths::release().join("tp").display()
    );
    Ok(())
}
