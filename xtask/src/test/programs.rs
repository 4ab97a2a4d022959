//! Test programs, built with the whole workspace and run one after the other.

use std::{path::PathBuf, process::Command};

use anyhow::{Result, bail};

use crate::{
    paths,
    products::{self, Artifact},
    run,
};

pub(super) struct TestProgram {
    executable: PathBuf,
    name: String,
    folder: PathBuf,
}

impl TestProgram {
    pub(super) fn is_end_to_end(&self) -> bool {
        self.folder.ends_with("tp-e2e")
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    fn run(&self, arguments: &[&str]) -> Result<()> {
        self.run_with(arguments, &[])
    }

    pub(super) fn run_with(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Result<()> {
        let package = self.folder.file_name().unwrap_or_default();
        println!("    {} of {}", self.name, package.display());
        run::status(
            self.command()
                .args(arguments)
                .envs(environment.iter().copied()),
        )
    }

    /// The program with its folder and its environment.
    pub(super) fn command(&self) -> Command {
        let mut command = Command::new(&self.executable);
        command
            .current_dir(&self.folder)
            .env("CARGO_MANIFEST_DIR", &self.folder)
            .env("TP_BIN_DIR", paths::release())
            .env("TP_IMAGE", products::image_reference())
            .env("TP_TESTBED", paths::testbed());

        command
    }

    /// The names of its tests.
    pub(super) fn tests(&self) -> Result<Vec<String>> {
        let listed = run::output(self.command().args(["--list", "--format", "terse"]))?;
        let names = listed
            .lines()
            .filter_map(|line| line.strip_suffix(": test"));

        Ok(names.map(str::to_owned).collect())
    }
}

/// Builds all in one cargo run, so that all have the same features.
pub(super) fn build() -> Result<Vec<TestProgram>> {
    let messages = run::output(products::cargo(&["test"])?.args([
        "--lib",
        "--bins",
        "--tests",
        "--quiet",
        "--no-run",
        "--message-format=json-render-diagnostics",
    ]))?;
    let tests = Artifact::all(&messages)?
        .into_iter()
        .filter(Artifact::is_tests)
        .filter_map(|artifact| {
            Some(TestProgram {
                executable: artifact.executable?,
                name: artifact.target.name,
                folder: artifact.manifest_path.parent()?.to_path_buf(),
            })
        })
        .collect();
    Ok(tests)
}

/// Runs all programs, even when one fails.
pub(super) fn run_all<'a>(
    tests: impl Iterator<Item = &'a TestProgram>,
    arguments: &[&str],
) -> Result<()> {
    let mut failed = Vec::new();
    for test in tests {
        if test.run(arguments).is_err() {
            failed.push(test.name.as_str());
        }
    }
    if !failed.is_empty() {
        bail!("tests failed in {}", failed.join(", "));
    }
    Ok(())
}
