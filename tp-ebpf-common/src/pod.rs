//! The types that may be copied byte for byte between user space and kernel.

use crate::{NameServer, Settings};

// SAFETY: `repr(C)`, integers and byte arrays only, no padding (asserted beside the type).
unsafe impl aya::Pod for Settings {}

// SAFETY: as above.
unsafe impl aya::Pod for NameServer {}
