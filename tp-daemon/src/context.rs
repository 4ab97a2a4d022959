//! What all connections share, and when the root daemon ends.

use std::sync::{Arc, atomic::AtomicBool};

use crate::datapath::{Tuning, machine::Machine, quota::Quota};

pub(crate) struct Context {
    pub(crate) machine: Arc<Machine>,
    pub(crate) lifetime: Lifetime,
    pub(crate) tuning: Tuning,
    pub(crate) quota: Arc<Quota>,
    /// True once a session has opened a data path or announced that it will.
    pub(crate) has_served: AtomicBool,
}

/// When the server ends by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lifetime {
    UntilStopped,
    /// With the last session, or when none comes.
    WithLastSession,
}
