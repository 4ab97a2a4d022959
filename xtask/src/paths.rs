//! Paths of the checkout and of the machine.

use std::{
    env,
    path::{Path, PathBuf},
};

/// The root of the checkout.
pub(crate) fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask is a folder of the workspace")
        .to_path_buf()
}

pub(crate) fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from)
}

pub(crate) fn release() -> PathBuf {
    target().join("release")
}

/// Statically linked programs for the image.
pub(crate) fn statics() -> PathBuf {
    target().join("static")
}

/// Where the eBPF object of this program of tp-ebpf goes.
pub(crate) fn bpf_object(program: &str) -> PathBuf {
    target().join(format!("bpf/{program}.o"))
}

pub(crate) fn dist() -> PathBuf {
    target().join("dist")
}

/// Logs of a command's long steps.
pub(crate) fn logs() -> PathBuf {
    target().join("xtask-logs")
}

pub(crate) fn testbed_sources() -> PathBuf {
    workspace().join("testbed")
}

/// State of the running test cluster. Outside the checkout: paths of unix sockets have at most 108
/// bytes.
pub(crate) fn testbed() -> PathBuf {
    env::var_os("TP_TESTBED_DIR")
        .map_or_else(|| PathBuf::from("/var/tmp/tp-testbed"), PathBuf::from)
}

/// Programs and images built from pinned inputs, shared by the machine's checkouts.
pub(crate) fn cache() -> PathBuf {
    env::var_os("TP_TESTBED_CACHE")
        .map_or_else(|| PathBuf::from("/var/tmp/tp-testbed-cache"), PathBuf::from)
}
