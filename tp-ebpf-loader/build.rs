//! Puts the eBPF objects where the crate can embed them: those that the variables name, else what
//! `cargo xtask ebpf` built, else empty ones that fail when they are loaded.

use std::{env, fs, path::PathBuf};

/// The variable that names the object, and its file.
const OBJECTS: [(&str, &str); 2] = [
    ("TP_EBPF_OBJECT", "tp-ebpf.o"),
    ("TP_EBPF_POD_OBJECT", "tp-ebpf-pod.o"),
];

fn main() {
    for (variable, file) in OBJECTS {
        embed(variable, file);
    }
}

fn embed(variable: &str, file: &str) {
    println!("cargo::rerun-if-env-changed={variable}");

    let manifest_dir = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo"));
    let object = env::var_os(variable).map_or_else(
        || manifest_dir.join("../target/bpf").join(file),
        PathBuf::from,
    );
    println!("cargo::rerun-if-changed={}", object.display());

    let bytes = fs::read(&object).unwrap_or_default();
    if bytes.is_empty() {
        println!(
            "cargo::warning=no eBPF object {file}: run `cargo xtask ebpf` for a working data path"
        );
    }
    let embedded = PathBuf::from(env::var_os("OUT_DIR").expect("set by cargo")).join(file);
    fs::write(embedded, bytes).expect("OUT_DIR is writable");
}
