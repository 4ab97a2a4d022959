//! Puts the eBPF object where the crate can embed it: the one that `TP_EBPF_OBJECT` names, else
//! what `cargo xtask ebpf` built, else an empty one that fails when it is loaded.

use std::{env, fs, path::PathBuf};

fn main() {
    println!("cargo::rerun-if-env-changed=TP_EBPF_OBJECT");

    let manifest_dir = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo"));
    let object = env::var_os("TP_EBPF_OBJECT").map_or_else(
        || manifest_dir.join("../target/bpf/tp-ebpf.o"),
        PathBuf::from,
    );
    println!("cargo::rerun-if-changed={}", object.display());

    let bytes = fs::read(&object).unwrap_or_default();
    if bytes.is_empty() {
        println!("cargo::warning=no eBPF object: run `cargo xtask ebpf` for a working data path");
    }
    let embedded = PathBuf::from(env::var_os("OUT_DIR").expect("set by cargo")).join("tp-ebpf.o");
    fs::write(embedded, bytes).expect("OUT_DIR is writable");
}
