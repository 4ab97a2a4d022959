//! Builds the eBPF programs. The only place that knows their toolchain.
//!
//! Stable Rust has no standard library for the BPF target. Debian packages one, with a compiler of the same version, for
//! its browsers; a rustup nightly with the `rust-src` component can build one. Debian's is preferred because it is pinned.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result, bail};

use crate::{packages, paths, run, tools::Tool};

const TARGET: &str = "bpfel-unknown-none";
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
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

#[derive(Clone, Copy)]
enum Toolchain {
    Debian,
    Nightly,
}

/// Builds the object, and says where it is.
pub(crate) fn build_and_tell() -> Result<()> {
    build()?;
    println!("{}", paths::bpf_object().display());
    Ok(())
}

/// Builds `target/bpf/tp-ebpf.o`.
pub(crate) fn build() -> Result<()> {
    let source = paths::workspace().join("tp-ebpf");
    if !source.join("Cargo.toml").exists() {
        bail!("{} has no Cargo.toml: nothing to build", source.display());
    }

    let toolchain = choose()?;
    let linker = match toolchain {
        Toolchain::Debian => LINKER.ensure()?,
        Toolchain::Nightly => NIGHTLY_LINKER.ensure()?,
    };
    compile(&source, toolchain, &linker)?;

    let built = paths::target().join(format!("bpf-build/{TARGET}/release/tp-ebpf"));
    let object = paths::bpf_object();
    let bytes = fs::read(&built).with_context(|| format!("reading {}", built.display()))?;
    if fs::read(&object).is_ok_and(|old| old == bytes) {
        // Same bytes, same time stamp: what embeds the object is not built again.
        return Ok(());
    }
    run::write(&object, bytes)
}

/// Whether the next build has to build the linker first.
pub(crate) fn linker_is_missing() -> bool {
    LINKER.find().is_none()
}

fn choose() -> Result<Toolchain> {
    let debian = Path::new(DEBIAN_RUSTC).exists() && Path::new(DEBIAN_CORE).is_dir();
    if debian && packages::missing(&[packages::BPF]).is_ok_and(|missing| missing.is_empty()) {
        return Ok(Toolchain::Debian);
    }
    if nightly_has_sources() {
        return Ok(Toolchain::Nightly);
    }

    packages::ensure(&[packages::BPF]).context(
        "no compiler for eBPF: neither Debian's packages nor a rustup nightly with rust-src",
    )?;
    Ok(Toolchain::Debian)
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
    let mut cargo = Command::new("cargo");
    match toolchain {
        Toolchain::Debian => {
            cargo
                .arg("build")
                // The packages carry a stable compiler; BPF needs unstable features of it.
                .env("RUSTC_BOOTSTRAP", "1")
                .env("RUSTC", DEBIAN_RUSTC);
        }
        Toolchain::Nightly => {
            cargo.args(["+nightly", "build", "-Z", "build-std=core"]);
        }
    }

    run::status(
        cargo
            .args(["--release", "--quiet", "--target", TARGET])
            .current_dir(source)
            .env("CARGO_TARGET_DIR", paths::target().join("bpf-build"))
            .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", linker)
            // Flags meant for the host's programs do not fit this target.
            .env_remove("RUSTFLAGS")
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            .env_remove("RUSTC_WRAPPER"),
    )
}
