//! Builds tp: the workstation's programs, the cluster's programs (statically linked) and their
//! image.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use crate::{
    ebpf,
    image::{Entry, Image},
    paths, run,
    wrapper::STATIC_CRATES,
};

pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Programs of the workstation.
pub(crate) const WORKSTATION: &[&str] = &["tp", "tp-daemon", "tp-session"];
/// Programs of the cluster; package and program have the same name.
const CLUSTER: &[&str] = &["tp-manager", "tp-agent", "tp-agentd"];

/// The name of our image, which is in no registry.
pub(crate) fn image_reference() -> String {
    format!("localhost/tp:{VERSION}")
}

/// Builds all in the release profile, and puts the cluster's programs into target/static.
pub(crate) fn build() -> Result<()> {
    ebpf::build()?;
    let output = run::output(cargo(&["build"])?.args([
        "--bins",
        "--quiet",
        "--message-format=json-render-diagnostics",
    ]))?;

    fs::create_dir_all(paths::statics())?;
    let artifacts = Artifact::all(&output)?;
    for program in CLUSTER {
        let built = artifacts
            .iter()
            .filter(|artifact| artifact.target.name == *program)
            .find_map(|artifact| artifact.executable.as_ref())
            .with_context(|| format!("cargo built no {program}"))?;
        ensure_static(built)?;

        // Replaced by a rename: a reader sees the old or the new file. Stripped: symbols are most
        // of the size.
        let target = paths::statics().join(program);
        let part = target.with_extension("part");
        strip(built, &part)?;
        fs::rename(&part, &target).with_context(|| format!("writing {}", target.display()))?;
    }
    Ok(())
}

/// A cargo command for the whole workspace: other packages would mean other features, and compile
/// all dependencies again. It links the cluster's programs statically whatever else it builds:
/// without the wrapper the workspace would be compiled again as well.
pub(crate) fn cargo(command: &[&str]) -> Result<Command> {
    let crates: Vec<String> = CLUSTER.iter().map(|name| name.replace('-', "_")).collect();
    let mut cargo = run::cargo();
    cargo
        .args(command)
        .args(["--release", "--workspace"])
        .current_dir(paths::workspace())
        .env("RUSTC_WORKSPACE_WRAPPER", run::own_program()?)
        .env(STATIC_CRATES, crates.join(","));
    Ok(cargo)
}

/// A cargo artifact, from its JSON messages.
#[derive(Deserialize)]
pub(crate) struct Artifact {
    pub(crate) target: Target,
    pub(crate) profile: Profile,
    pub(crate) executable: Option<PathBuf>,
    pub(crate) manifest_path: PathBuf,
}

#[derive(Deserialize)]
pub(crate) struct Target {
    pub(crate) name: String,
    /// Whether it has tests: `--bins` builds a test program of each binary, also of those with `test = false`.
    pub(crate) test: bool,
}

#[derive(Deserialize)]
pub(crate) struct Profile {
    pub(crate) test: bool,
}

impl Artifact {
    /// Whether it is a program of tests.
    pub(crate) fn is_tests(&self) -> bool {
        self.profile.test && self.target.test
    }

    /// Parses cargo's output.
    pub(crate) fn all(messages: &str) -> Result<Vec<Self>> {
        messages
            .lines()
            .filter(|line| line.contains(r#""reason":"compiler-artifact""#))
            .map(|line| serde_json::from_str(line).context("reading a message of cargo"))
            .collect()
    }
}

pub(crate) fn ensure_static(program: &Path) -> Result<()> {
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

/// Writes the image of the built programs.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_binary_without_tests_is_no_program_of_tests() -> Result<()> {
        let message = |has_tests: bool, as_test: bool| {
            let message = serde_json::json!({
                "reason": "compiler-artifact",
                "manifest_path": "/tp-e2e/Cargo.toml",
                "target": { "name": "datapath", "test": has_tests },
                "profile": { "test": as_test },
                "executable": "/target/datapath",
            });
            message.to_string()
        };
        let messages = [
            message(true, true),
            message(false, true),
            message(true, false),
        ];
        let artifacts = Artifact::all(&messages.join("\n"))?;
        let programs: Vec<bool> = artifacts.iter().map(Artifact::is_tests).collect();
        assert_eq!(programs, [true, false, false]);

        Ok(())
    }
}
