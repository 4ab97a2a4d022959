//! Builds what tp consists of: the workstation's programs, the cluster's programs (statically linked) and their image.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    ebpf,
    image::{Entry, Image},
    paths, run,
};

pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Programs of the workstation.
pub(crate) const WORKSTATION: &[&str] = &["tp", "tp-daemon"];
/// Programs of the cluster; package and program have the same name.
const CLUSTER: &[&str] = &["tp-manager", "tp-agent"];

/// The name of our image. There is no registry behind it.
pub(crate) fn image_reference() -> String {
    format!("localhost/tp:{VERSION}")
}

/// Builds everything in the release profile.
pub(crate) fn build() -> Result<()> {
    ebpf::build()?;
    for program in CLUSTER {
        build_static(program)?;
    }
    // Last, so that what is left in target/release is what `cargo build` would leave there.
    run::status(Command::new("cargo").args([
        "build",
        "--release",
        "--quiet",
        "-p",
        "tp-cli",
        "-p",
        "tp-daemon",
        "-p",
        "tp-manager",
        "-p",
        "tp-agent",
    ]))
}

/// Links a program without any shared library and puts it into target/static.
fn build_static(program: &str) -> Result<()> {
    run::status(Command::new("cargo").args([
        "rustc",
        "--release",
        "--quiet",
        "-p",
        program,
        "--bin",
        program,
        "--",
        "-C",
        "target-feature=+crt-static",
    ]))?;
    let built = paths::release().join(program);
    ensure_static(&built)?;

    let target = paths::statics().join(program);
    fs::create_dir_all(paths::statics())?;
    // Replaced as one: who reads it sees the old or the new one. Stripped: symbols are most of its size.
    let part = target.with_extension("part");
    strip(&built, &part)?;
    fs::rename(&part, &target).with_context(|| format!("writing {}", target.display()))
}

fn ensure_static(program: &Path) -> Result<()> {
    let headers = run::output(
        Command::new("readelf")
            .args(["--program-headers", "--wide"])
            .arg(program),
    )?;
    if headers.contains("INTERP") {
        bail!(
            "{} is linked dynamically: the image has no libraries",
            program.display()
        );
    }
    Ok(())
}

pub(crate) fn strip(source: &Path, target: &Path) -> Result<()> {
    run::output(Command::new("strip").arg("-o").arg(target).arg(source)).map(drop)
}

/// Writes the image of what `build` built.
pub(crate) fn write_image(archive: &Path, notices: &Path) -> Result<()> {
    let mut content: Vec<Entry> = CLUSTER
        .iter()
        .map(|program| Entry::program(paths::statics().join(program), &format!("/{program}")))
        .collect();
    content.push(Entry::document(
        notices,
        "/usr/share/doc/tp/THIRD-PARTY-NOTICES.txt",
    ));
    for licence in licences()? {
        let name = licence
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        content.push(Entry::document(
            &licence,
            &format!("/usr/share/doc/tp/{name}"),
        ));
    }

    Image {
        reference: &image_reference(),
        entrypoint: &["/tp-manager"],
        user: "65532:65532",
        labels: &[
            ("org.opencontainers.image.title", "tp"),
            ("org.opencontainers.image.version", VERSION),
            ("org.opencontainers.image.licenses", "Apache-2.0 OR MIT"),
        ],
        content,
    }
    .write(archive)
}

/// Our own licence files.
pub(crate) fn licences() -> Result<Vec<PathBuf>> {
    let mut files: Vec<PathBuf> = fs::read_dir(paths::workspace())?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("LICENSE"))
        })
        .collect();
    files.sort();
    Ok(files)
}
