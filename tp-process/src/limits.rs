//! Limits of processes that serve many.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the soft limit of open files to the hard one: a flow takes a descriptor, a session several
/// of the root daemon. Shells, systemd and some container engines start programs with a soft limit of
/// 1024.
pub fn raise_descriptors() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let wanted = Rlimit {
        current: maximum,
        maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, wanted) {
        tracing::info!(%error, "Limit of open files not raised");
    }
}
