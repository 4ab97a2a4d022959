//! Builds the eBPF programs. The only place that knows their toolchain.
//!
//! Stable Rust has no standard library for the BPF target. Debian packages one for its browsers,
//! with a compiler of the same version; a rustup nightly with the `rust-src` component can build
//! one. Debian's is preferred because it is pinned.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result, bail};
use object::{
    build::elf::{Builder, SectionData},
    elf::SHT_STRTAB,
};

use crate::{packages, paths, run, tools::Tool};

/// The programs of the crate, each an object: that of the workstation, and that of pods.
const PROGRAMS: [&str; 2] = ["tp-ebpf", "tp-ebpf-pod"];
const TARGET: &str = "bpfel-unknown-none";
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_CLIPPY: &str = "/usr/bin/clippy-driver";
const DEBIAN_CORE: &str = "/usr/lib/rustlib/bpfel-unknown-none/lib";

const LINKER: Tool = Tool {
    name: "bpf-linker",
    version: "0.13.0",
    arguments: &["--no-default-features", "--features", "llvm-22"],
    environment: &[("LLVM_PREFIX", "/usr/lib/llvm-22")],
};

/// The same, with the LLVM that its own default features choose.
const NIGHTLY_LINKER: Tool = Tool {
    arguments: &[],
    environment: &[],
    ..LINKER
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Toolchain {
    Debian,
    Nightly,
}

impl Toolchain {
    fn linker(self) -> Tool {
        match self {
            Self::Debian => LINKER,
            Self::Nightly => NIGHTLY_LINKER,
        }
    }
}

/// Builds the objects and prints their paths.
pub(crate) fn build_and_tell() -> Result<()> {
    build()?;
    for program in PROGRAMS {
        println!("{}", paths::bpf_object(program).display());
    }
    Ok(())
}

/// Builds `target/bpf/tp-ebpf.o` and `target/bpf/tp-ebpf-pod.o`.
pub(crate) fn build() -> Result<()> {
    let source = paths::workspace().join("tp-ebpf");
    if !source.join("Cargo.toml").exists() {
        bail!("{} has no Cargo.toml: nothing to build", source.display());
    }

    let toolchain = choose(debian_is_complete, nightly_has_sources);
    packages::ensure(&[packages_of(toolchain)]).context(
        "no compiler for eBPF: neither Debian's packages nor a rustup nightly with rust-src",
    )?;
    let linker = toolchain.linker().ensure()?;
    compile(&source, toolchain, &linker)?;

    PROGRAMS.iter().try_for_each(|program| embeddable(program))
}

/// Makes what the loader embeds of a built object.
fn embeddable(program: &str) -> Result<()> {
    let built = paths::target().join(format!("bpf-build/{TARGET}/release/{program}"));
    let object = paths::bpf_object(program);
    let bytes = fs::read(&built).with_context(|| format!("reading {}", built.display()))?;
    let bytes = without_dwarf(&bytes).with_context(|| format!("editing {}", built.display()))?;
    if fs::read(&object).is_ok_and(|old| old == bytes) {
        // Keeps the time stamp of an unchanged object: dependent crates are not rebuilt.
        return Ok(());
    }
    run::write(&object, bytes)
}

/// Removes DWARF, most of the file: kernel and loader read only BTF, which is made of it.
fn without_dwarf(object: &[u8]) -> Result<Vec<u8>> {
    let mut object = Builder::read(object)?;
    for section in &mut object.sections {
        let name = section.name.to_string();
        section.delete = name.starts_with(".debug_") || name.starts_with(".rel.debug_");
    }
    object.delete_orphans();
    // The linker keeps section and symbol names in one table; the writer needs two.
    let names = object.sections.add();
    names.name = ".shstrtab".into();
    names.sh_type = SHT_STRTAB;
    names.data = SectionData::SectionString;
    let mut bytes = Vec::new();
    object.write(&mut bytes)?;

    Ok(bytes)
}

/// Returns whether the next build must first build the linker.
pub(crate) fn linker_is_missing() -> bool {
    choose(debian_is_complete, nightly_has_sources)
        .linker()
        .find()
        .is_none()
}

/// Debian packages that the next build needs: none with a nightly.
pub(crate) fn packages() -> &'static [&'static str] {
    packages_of(choose(debian_is_complete, nightly_has_sources))
}

/// Debian packages that the lints need.
pub(crate) fn lint_packages() -> &'static [&'static str] {
    match choose(debian_is_complete, nightly_has_sources) {
        Toolchain::Debian => packages::BPF_LINTS,
        Toolchain::Nightly => &[],
    }
}

fn packages_of(toolchain: Toolchain) -> &'static [&'static str] {
    match toolchain {
        Toolchain::Debian => packages::BPF,
        Toolchain::Nightly => &[],
    }
}

/// Debian's if it is installed, or if there is no nightly either and its packages must be
/// installed.
fn choose(debian: impl Fn() -> bool, nightly: impl Fn() -> bool) -> Toolchain {
    if !debian() && nightly() {
        Toolchain::Nightly
    } else {
        Toolchain::Debian
    }
}

fn debian_is_complete() -> bool {
    Path::new(DEBIAN_RUSTC).exists()
        && Path::new(DEBIAN_CORE).is_dir()
        && packages::missing(&[packages::BPF]).is_ok_and(|missing| missing.is_empty())
}

fn nightly_has_sources() -> bool {
    run::output(Command::new("rustc").args(["+nightly", "--print", "sysroot"])).is_ok_and(
        |sysroot| {
            Path::new(sysroot.trim())
                .join("lib/rustlib/src/rust/library/core")
                .is_dir()
        },
    )
}

fn compile(source: &Path, toolchain: Toolchain, linker: &Path) -> Result<()> {
    run::status(
        cargo("build", source, toolchain).env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", linker),
    )
}

/// Runs the toolchain's clippy, with warnings denied.
pub(crate) fn lint() -> Result<()> {
    let source = paths::workspace().join("tp-ebpf");
    let toolchain = choose(debian_is_complete, nightly_has_sources);
    let mut check = match toolchain {
        Toolchain::Debian => {
            packages::ensure(&[packages::BPF_LINTS])?;
            let mut check = cargo("check", &source, toolchain);
            check
                .env("RUSTC_WORKSPACE_WRAPPER", DEBIAN_CLIPPY)
                // Passes arguments as `cargo clippy` does.
                .env(
                    "CLIPPY_ARGS",
                    "-D__CLIPPY_HACKERY__warnings__CLIPPY_HACKERY__",
                );
            check
        }
        Toolchain::Nightly => {
            let mut clippy = cargo("clippy", &source, toolchain);
            clippy.args(["--", "-D", "warnings"]);
            clippy
        }
    };
    run::status(&mut check)
}

fn cargo(command: &str, source: &Path, toolchain: Toolchain) -> Command {
    let mut cargo = run::cargo();
    match toolchain {
        Toolchain::Debian => {
            cargo
                .arg(command)
                // The packaged compiler is stable; BPF needs its unstable features.
                .env("RUSTC_BOOTSTRAP", "1")
                .env("RUSTC", DEBIAN_RUSTC);
        }
        Toolchain::Nightly => {
            cargo.args(["+nightly", command, "-Z", "build-std=core"]);
        }
    }

    cargo
        .args(["--release", "--quiet", "--target", TARGET])
        .current_dir(source)
        .env("CARGO_TARGET_DIR", paths::target().join("bpf-build"))
        // Flags for the host do not fit this target.
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("RUSTC_WRAPPER");
    cargo
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nightly_with_sources_needs_no_packages() {
        let chosen = |debian: bool, nightly: bool| choose(|| debian, || nightly);

        assert_eq!(chosen(true, true), Toolchain::Debian);
        assert_eq!(chosen(false, false), Toolchain::Debian);
        assert_eq!(chosen(false, true), Toolchain::Nightly);
        assert!(packages_of(Toolchain::Nightly).is_empty());
    }
}
