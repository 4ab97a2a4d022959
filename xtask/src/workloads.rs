//! The workloads of the test cluster: real servers from Debian packages, and the echo server.
//!
//! Images are built once per machine and cached under a hash of their inputs.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    image::{self, Entry, Image},
    paths, run,
};

/// What deploying needs from the cluster.
pub(crate) trait Site {
    /// Puts a docker-archive image on every node.
    fn import(&self, image: &Path) -> Result<()>;
    /// kubectl, as administrator.
    fn kubectl(&self) -> Command;
}

/// Programs and images of the workloads.
pub(crate) struct Artifacts {
    images: Vec<PathBuf>,
    /// Of the echo server and its client.
    echo_programs: [PathBuf; 2],
}

/// Packages requested from apt, which adds their dependencies.
const PACKAGES: &[&str] = &[
    "amqp-tools",
    "base-files",
    "bash",
    "coreutils",
    "dash",
    "debianutils",
    "findutils",
    "grep",
    "hostname",
    "mariadb-client-core",
    "mariadb-server-core",
    "mawk",
    "nginx-light",
    "postgresql-15",
    "procps",
    "rabbitmq-server",
    "sed",
    "tzdata",
    "util-linux",
];

/// Dependencies that only maintainer scripts, plug-ins and tools need; none of those run here.
const LEFT_OUT: &[&str] = &[
    "adduser",
    "cron",
    "cron-daemon-common",
    "debconf",
    "dpkg",
    "erlang-snmp",
    "gcc-12-base",
    "init-system-helpers",
    "iproute2",
    "libbpf1",
    "libc-l10n",
    "libcap2-bin",
    "libdb5.3",
    "libelf1",
    "libgdbm",
    "libllvm",
    "libmnl0",
    "libperl5",
    "libpython3",
    "libsemanage",
    "libsepol2",
    "libsqlite3-0",
    "libxtables12",
    "libz3-4",
    "locales",
    "logrotate",
    "lsb-base",
    "media-types",
    "netbase",
    "passwd",
    "perl",
    "postgresql-client-common",
    "postgresql-common",
    "python3",
    "sensible-utils",
    "socat",
    "ssl-cert",
    "sysvinit-utils",
    "tar",
    "ucf",
    "usrmerge",
];

/// Files of the packages that nobody reads here.
const STRIPPED: &[&str] = &[
    "./usr/lib/postgresql/15/lib/bitcode/*",
    "./usr/lib/x86_64-linux-gnu/gconv/*",
    "./usr/share/bash-completion/*",
    "./usr/share/doc/*",
    "./usr/share/i18n/*",
    "./usr/share/info/*",
    "./usr/share/locale/*",
    "./usr/share/man/*",
];

/// Part of the hash: raise it when this file treats the packages differently.
const RECIPE: &str = "1";

/// Builds what is missing in the cache.
pub(crate) fn build() -> Result<Artifacts> {
    let (image, echo_programs) = echo()?;
    Ok(Artifacts {
        images: vec![servers()?, image],
        echo_programs,
    })
}

/// Builds, imports and applies the workloads, and waits until each serves its real client.
pub(crate) fn deploy(site: &dyn Site) -> Result<()> {
    let artifacts = build()?;
    for program in &artifacts.echo_programs {
        install(program)?;
    }
    for image in &artifacts.images {
        site.import(image)?;
    }
    let manifests = sources().join("manifests");
    run::output(site.kubectl().arg("apply").arg("-f").arg(&manifests))?;

    for namespace in ["shop", "team-b"] {
        let objects = run::output(site.kubectl().args([
            "get",
            "deployments,statefulsets",
            "--namespace",
            namespace,
            "--output=name",
        ]))?;
        for object in objects.lines() {
            ready(site, namespace, object)?;
        }
    }
    Ok(())
}

/// As [`deploy`], of the echo server alone, which listens on the addresses of every family.
pub(crate) fn deploy_echo(site: &dyn Site) -> Result<()> {
    let (image, _) = echo()?;
    site.import(&image)?;
    let manifests = sources().join("manifests");
    for name in ["00-namespaces.yaml", "echo.yaml"] {
        let manifest = manifests.join(name);
        run::output(site.kubectl().arg("apply").arg("-f").arg(&manifest))?;
    }

    ready(site, "shop", "deployment/echo")
}

/// Installs a program of the tests where they look for it.
fn install(program: &Path) -> Result<()> {
    let folder = paths::testbed().join("bin");
    let target = folder.join(program.file_name().context("a program has a name")?);
    fs::create_dir_all(folder)?;
    // Replaced by a rename: an earlier test may still execute it.
    let part = target.with_extension("part");
    fs::copy(program, &part).with_context(|| format!("copying {}", program.display()))?;
    fs::rename(&part, &target).with_context(|| format!("writing {}", target.display()))
}

fn ready(site: &dyn Site, namespace: &str, object: &str) -> Result<()> {
    let wait = run::output(site.kubectl().args([
        "rollout",
        "status",
        object,
        "--namespace",
        namespace,
        "--timeout=120s",
    ]));
    let Err(error) = wait else { return Ok(()) };

    let app = object.rsplit('/').next().unwrap_or(object);
    let told = |command: &mut Command| run::output(command).unwrap_or_else(|e| format!("{e:#}"));
    let selector = format!("--selector=app={app}");
    let pods = told(
        site.kubectl()
            .args(["get", "pods", "--namespace", namespace, &selector]),
    );
    let logs =
        told(
            site.kubectl()
                .args(["logs", "--tail=25", "--namespace", namespace, &selector]),
        );
    bail!("{object} in {namespace} does not become ready: {error:#}\n{pods}\n{logs}")
}

fn sources() -> PathBuf {
    paths::testbed_sources().join("workloads")
}

/// The echo server's image, and the programs: server and client.
fn echo() -> Result<(PathBuf, [PathBuf; 2])> {
    let sources = paths::testbed_sources().join("echo");
    let key = fingerprint(sources.clone(), &[RECIPE])?;
    let folder = paths::cache().join(format!("echo-{key}"));
    let archive = folder.join("image.tar");
    let programs = ["echo-server", "echo-client"].map(|program| folder.join(program));
    if archive.is_file() && programs.iter().all(|program| program.is_file()) {
        return Ok((archive, programs));
    }

    println!("building the echo server");
    fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    for program in ["server", "client"] {
        run::logged(
            "echo",
            Command::new("go")
                .current_dir(&sources)
                .env("CGO_ENABLED", "0")
                .args([
                    "build",
                    "-trimpath",
                    "-buildvcs=false",
                    "-ldflags=-s -w",
                    "-o",
                ])
                .arg(folder.join(format!("echo-{program}")))
                .arg(format!("./{program}")),
        )?;
    }
    complete(&archive, |part| {
        Image {
            reference: "localhost/tp-testbed/echo:1",
            entrypoint: &["/echo-server"],
            user: "65532:65532",
            labels: &[],
            content: vec![Entry::program(folder.join("echo-server"), "/echo-server")],
        }
        .write(part)
    })?;
    Ok((archive, programs))
}

/// One image with all real servers; the pod's command chooses one.
fn servers() -> Result<PathBuf> {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let codename = release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .unwrap_or("unknown");
    let mut inputs = vec![RECIPE, codename];
    inputs.extend(PACKAGES.iter().chain(LEFT_OUT).chain(STRIPPED));
    let key = fingerprint(sources().join("root"), &inputs)?;
    let archive = paths::cache().join(format!("workloads-{key}.tar"));
    if archive.is_file() {
        return Ok(archive);
    }

    println!("building the image of nginx, PostgreSQL, MariaDB and RabbitMQ");
    let begin = Instant::now();
    fs::create_dir_all(paths::cache())
        .with_context(|| format!("creating {}", paths::cache().display()))?;
    let scratch = tempfile::tempdir_in(paths::cache()).context("making a folder to build in")?;
    let packages = download(scratch.path())?;
    let root = unpack(scratch.path(), &packages)?;
    let layer = scratch.path().join("layer.tar");
    run::output(
        Command::new("tar")
            .args([
                "--create",
                "--numeric-owner",
                "--owner=0",
                "--group=0",
                "--sort=name",
            ])
            .arg("--file")
            .arg(&layer)
            .arg("--directory")
            .arg(&root)
            .arg("."),
    )?;
    complete(&archive, |part| {
        Image {
            reference: "localhost/tp-testbed/workloads:1",
            entrypoint: &[],
            user: "",
            labels: &[],
            content: Vec::new(),
        }
        .write_around(File::open(&layer)?, part)
    })?;
    println!(
        "built it in {:.0} s: {} packages, {} MiB",
        begin.elapsed().as_secs_f64(),
        packages.len(),
        fs::metadata(&archive)?.len() >> 20
    );
    Ok(archive)
}

/// Downloads the packages and their dependencies from the machine's package sources.
fn download(scratch: &Path) -> Result<Vec<PathBuf>> {
    let status = scratch.join("status");
    run::write(&status, "")?;
    let resolve = || {
        run::output(
            Command::new("apt-get")
                .arg("-o")
                .arg(format!("Dir::State::status={}", status.display()))
                .args(["-y", "--no-install-recommends", "--print-uris", "install"])
                .args(PACKAGES),
        )
    };
    let resolved = resolve().or_else(|_| {
        run::logged("apt-get", Command::new("apt-get").args(["-q", "update"]))?;
        resolve()
    })?;

    // Lines: 'URI' FILE SIZE HASH; the file's name begins with the package's.
    let names: Vec<&str> = resolved
        .lines()
        .filter(|line| line.starts_with('\''))
        .filter_map(|line| line.split_whitespace().nth(1)?.split('_').next())
        .filter(|name| !LEFT_OUT.iter().any(|prefix| left_out(name, prefix)))
        .collect();
    let folder = scratch.join("packages");
    fs::create_dir_all(&folder)?;
    run::logged(
        "workloads-download",
        Command::new("apt-get")
            .current_dir(&folder)
            .args(["-q", "-o", "APT::Sandbox::User=root", "download"])
            .args(&names),
    )?;

    let mut files = fs::read_dir(&folder)?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<Vec<_>>>()?;
    files.sort();
    if files.len() != names.len() {
        bail!(
            "apt-get downloaded {} of {} packages",
            files.len(),
            names.len()
        );
    }
    Ok(files)
}

/// Returns whether a package matches an entry of [`LEFT_OUT`]: that name, alone or followed by a
/// version or a part.
fn left_out(name: &str, entry: &str) -> bool {
    name.strip_prefix(entry).is_some_and(|rest| {
        rest.is_empty()
            || rest.starts_with(['-', '.'])
            || rest.starts_with(|c: char| c.is_ascii_digit())
    })
}

/// Unpacks the packages into a root file system and adds our own files. Maintainer scripts do not
/// run: the few accounts and links that they would make are among our files.
fn unpack(scratch: &Path, packages: &[PathBuf]) -> Result<PathBuf> {
    let root = scratch.join("root");
    for folder in ["bin", "sbin", "lib", "lib64"] {
        fs::create_dir_all(root.join("usr").join(folder))?;
        std::os::unix::fs::symlink(format!("usr/{folder}"), root.join(folder))?;
    }
    fs::create_dir_all(root.join("var"))?;
    fs::create_dir_all(root.join("run"))?;
    std::os::unix::fs::symlink("/run", root.join("var/run"))?;

    for package in packages {
        let contents = scratch.join("contents.tar");
        let file = run::create(&contents)?;
        let status = Command::new("dpkg-deb")
            .arg("--fsys-tarfile")
            .arg(package)
            .stdout(file)
            .status()
            .context("dpkg-deb does not start")?;
        if !status.success() {
            bail!("dpkg-deb cannot read {}", package.display());
        }
        run::output(
            Command::new("tar")
                .args(["--extract", "--keep-directory-symlink", "--file"])
                .arg(&contents)
                .args(
                    STRIPPED
                        .iter()
                        .map(|pattern| format!("--exclude={pattern}")),
                )
                .arg("--directory")
                .arg(&root),
        )?;
    }
    run::output(
        Command::new("cp")
            .args(["--recursive", "--preserve=mode"])
            .arg(format!("{}/.", sources().join("root").display()))
            .arg(&root),
    )?;
    std::os::unix::fs::symlink("mawk", root.join("usr/bin/awk"))?;
    fs::create_dir_all(root.join("srv"))?;
    Ok(root)
}

/// Writes a cached file atomically: later runs trust that it is complete.
fn complete(archive: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let part = archive.with_extension("part");
    write(&part)?;
    fs::rename(&part, archive).with_context(|| format!("writing {}", archive.display()))
}

fn fingerprint(folder: PathBuf, words: &[&str]) -> Result<String> {
    let mut digest = image::tree_digest(&[folder], words)?;
    digest.truncate(16);
    Ok(digest)
}
