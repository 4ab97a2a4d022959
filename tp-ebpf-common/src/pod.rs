//! The types that may be copied byte for byte between user space and kernel.

use crate::{
    AliasUse, CandidateKey, GuardKey, Lease, NameServer, PodPort, ScopeKey, ScopeSessions,
    SessionEntry, Settings, ShownClient,
};

macro_rules! pod {
    ($($type:ty),+ $(,)?) => {
        // SAFETY: `repr(C)`, integers and byte arrays only, no padding (asserted beside each type).
        $(unsafe impl aya::Pod for $type {})+
    };
}

pod!(
    AliasUse,
    CandidateKey,
    GuardKey,
    Lease,
    NameServer,
    PodPort,
    ScopeKey,
    ScopeSessions,
    SessionEntry,
    Settings,
    ShownClient,
);
