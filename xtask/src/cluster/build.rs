//! Builds the cluster's programs from `testbed/`, once per machine and state of the sources.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    image::{Entry, Image, tree_digest},
    paths, run,
};

/// The release in `testbed/kube/go.mod`; the programs report it as their version.
pub(crate) const KUBERNETES: &str = "1.34.4";
pub(crate) const PAUSE_IMAGE: &str = "localhost/testbed-pause:1";
const COREDNS_IMAGE: &str = "localhost/testbed-coredns:1";

/// The programs and images of a cluster.
pub(crate) struct Programs {
    /// etcd, the Kubernetes components and kubectl in one program.
    pub(crate) kube: PathBuf,
    pub(crate) coredns: PathBuf,
    pub(crate) pause_image: PathBuf,
    pub(crate) coredns_image: PathBuf,
}

/// Returns whether `programs` must compile.
pub(crate) fn is_needed() -> Result<bool> {
    Ok(!output("kube", &kube_digest()?).exists())
}

/// Finds the programs in the cache or builds them.
pub(crate) fn programs() -> Result<Programs> {
    if run::which("go").is_none() {
        bail!("go is not on PATH: the test cluster is compiled from Go modules");
    }
    let sources = paths::testbed_sources();

    let kube = cached("kube", &kube_digest()?, |target| {
        println!(
            "building Kubernetes {KUBERNETES} (about 6 minutes on two cores, once per machine)"
        );
        go_build(&sources.join("kube"), target, &kube_flags(), "1")
    })?;
    let coredns_digest = tree_digest(&[sources.join("coredns")], &[])?;
    let coredns = cached("coredns", &coredns_digest, |target| {
        go_build(&sources.join("coredns"), target, "-s -w", "0")
    })?;
    let pause_source = sources.join("pause.c");
    let pause_digest = tree_digest(std::slice::from_ref(&pause_source), &[])?;
    let pause = cached("pause", &pause_digest, |target| {
        run::output(
            Command::new("gcc")
                .args(["-static", "-Os", "-Wall", "-o"])
                .arg(target)
                .arg(&pause_source),
        )
        .map(drop)
    })?;

    Ok(Programs {
        pause_image: single("pause.tar", PAUSE_IMAGE, "/pause", &pause, &pause_digest)?,
        coredns_image: single(
            "coredns.tar",
            COREDNS_IMAGE,
            "/coredns",
            &coredns,
            &coredns_digest,
        )?,
        kube,
        coredns,
    })
}

fn kube_flags() -> String {
    let mut parts = KUBERNETES.split('.');
    let (major, minor) = (parts.next().unwrap_or("1"), parts.next().unwrap_or("0"));
    let package = "k8s.io/component-base/version";
    format!(
        "-s -w -X {package}.gitVersion=v{KUBERNETES} -X {package}.gitMajor={major} -X {package}.gitMinor={minor}"
    )
}

fn kube_digest() -> Result<String> {
    tree_digest(&[paths::testbed_sources().join("kube")], &[&kube_flags()])
}

fn output(name: &str, digest: &str) -> PathBuf {
    paths::cache().join(format!("bin/{name}-{}", &digest[..16]))
}

/// The cached file, made by `build` if it is missing. Appears atomically.
pub(crate) fn cached(
    name: &str,
    digest: &str,
    build: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let target = output(name, digest);
    if target.exists() {
        return Ok(target);
    }
    let folder = target.parent().expect("the cache has folders");
    fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;

    let unfinished = tempfile::Builder::new()
        .prefix("unfinished-")
        .tempdir_in(folder)?;
    let path = unfinished.path().join(name);
    build(&path).with_context(|| format!("building {name}"))?;
    fs::rename(&path, &target).with_context(|| format!("storing {}", target.display()))?;
    Ok(target)
}

fn go_build(module: &Path, target: &Path, linker_flags: &str, cgo: &str) -> Result<()> {
    let name = target.file_name().expect("the target is a file");
    run::logged(
        &format!("go-build-{}", name.to_string_lossy()),
        Command::new("go")
            .args([
                "build",
                "-trimpath",
                "-buildvcs=false",
                "-mod=readonly",
                "-ldflags",
                linker_flags,
                "-o",
            ])
            .arg(target)
            .arg(".")
            .current_dir(module)
            .env("CGO_ENABLED", cgo),
    )
}

fn single(
    name: &str,
    reference: &str,
    path: &str,
    program: &Path,
    digest: &str,
) -> Result<PathBuf> {
    cached(name, digest, |target| {
        Image {
            reference,
            entrypoint: &[path],
            user: "",
            labels: &[],
            content: vec![Entry::program(program, path)],
        }
        .write(target)
    })
}
