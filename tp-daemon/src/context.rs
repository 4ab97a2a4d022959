//! What all connections share, and when the root daemon ends.

use std::sync::{Arc, atomic::AtomicBool};

use tp_ebpf_loader::KernelOffsets;

use crate::{
    datapath::{Tuning, living::Living},
    scope::Hierarchy,
};

pub(crate) struct Context {
    pub(crate) offsets: KernelOffsets,
    pub(crate) hierarchy: Hierarchy,
    pub(crate) lifetime: Lifetime,
    pub(crate) tuning: Tuning,
    pub(crate) living: Arc<Living>,
    /// Set once any connection was, or was to become, that of a session.
    pub(crate) has_served: AtomicBool,
}

/// When the server ends by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lifetime {
    UntilStopped,
    /// With the last session, or when none comes.
    WithLastSession,
}
