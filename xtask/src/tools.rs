//! Cargo tools that are not Debian packages: each pinned, each installed once per machine.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::{paths, run};

/// Checks licences, sources and security problems of dependencies.
pub(crate) const DENY: Tool = Tool {
    name: "cargo-deny",
    version: "0.20.2",
    arguments: &[],
    environment: &[],
};

pub(crate) struct Tool {
    pub(crate) name: &'static str,
    pub(crate) version: &'static str,
    pub(crate) arguments: &'static [&'static str],
    pub(crate) environment: &'static [(&'static str, &'static str)],
}

impl Tool {
    fn folder(&self, root: &Path) -> PathBuf {
        root.join("tools")
            .join(format!("{}-{}", self.name, self.version))
    }

    /// Finds the pinned version on PATH, in the machine's cache or in this checkout.
    pub(crate) fn find(&self) -> Option<PathBuf> {
        let mut candidates: Vec<PathBuf> = run::which(self.name).into_iter().collect();
        for root in [paths::cache(), paths::target()] {
            candidates.push(self.folder(&root).join("bin").join(self.name));
        }

        candidates.into_iter().find(|program| {
            run::output(Command::new(program).arg("--version"))
                .is_ok_and(|text| text.split_whitespace().nth(1) == Some(self.version))
        })
    }

    /// Finds the tool, or builds and installs it.
    pub(crate) fn ensure(&self) -> Result<PathBuf> {
        if let Some(program) = self.find() {
            return Ok(program);
        }

        let root = if fs::create_dir_all(paths::cache().join("tools")).is_ok() {
            paths::cache()
        } else {
            paths::target()
        };
        let folder = self.folder(&root);
        println!(
            "building {} {} (a few minutes, once per machine)",
            self.name, self.version
        );
        let build = tempfile::tempdir().context("making a folder to build in")?;
        run::logged(
            self.name,
            run::cargo()
                .args(["install", self.name, "--version", self.version, "--locked"])
                .args(self.arguments)
                .arg("--root")
                .arg(&folder)
                .env("CARGO_TARGET_DIR", build.path())
                .envs(self.environment.iter().copied()),
        )?;

        Ok(folder.join("bin").join(self.name))
    }
}
