//! What the program of a pod is told, and what it counts.

/// Intercepted ports of one pod at most: the number of its leases.
pub const MAX_POD_PORTS: u32 = 64;
/// Addresses of the node at most.
pub const MAX_NODE_ADDRESSES: u32 = 64;
/// Addresses of the pod at most.
pub const MAX_OWN_ADDRESSES: u32 = 64;
/// A lease that was renewed longer ago than this, in nanoseconds, is over.
pub const LEASE_OVER_AFTER_NS: u64 = 5_000_000_000;

/// The number of listeners in the map that `sk_lookup` reads.
pub const POD_LISTENERS: u32 = 2;
/// The first of them: for IPv4.
pub const POD_LISTENER4: u32 = 0;
/// The second one: for IPv6.
pub const POD_LISTENER6: u32 = 1;

/// Bits of [`PodPort::flags`].
pub mod pod_port_flags {
    /// The kubelet probes it by TCP or gRPC: connections from the node are left to the container.
    pub const PROBED: u32 = 1;
}

/// An intercepted port. Numbers are in the machine's byte order.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PodPort {
    /// The index of its lease, below [`MAX_POD_PORTS`].
    pub lease: u32,
    /// Bits of [`pod_port_flags`].
    pub flags: u32,
}

/// The lease of a port, as the agent writes it; all zero until then.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lease {
    /// When it was last renewed: nanoseconds of CLOCK_BOOTTIME.
    pub renewed: u64,
    /// A [`PortState`].
    pub state: u32,
    #[doc(hidden)]
    pub _zero: u32,
}

/// What the port does at the workstation. Other numbers count as [`PortState::Container`].
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortState {
    /// The container serves.
    Container = 0,
    /// Somebody listens there: connections are redirected.
    Open = 1,
    /// Nobody listens, and the pod is to refuse as the workstation would.
    Refuse = 2,
}

const _: () = assert!(size_of::<PodPort>() == 8);
const _: () = assert!(size_of::<Lease>() == 16);
const _: () = assert!(core::mem::offset_of!(Lease, renewed) == 0);
const _: () = assert!(core::mem::offset_of!(Lease, state) == 8);

/// Index into the counters of a port: where connections to it went. A SYN that is sent again counts
/// again.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodCounter {
    /// To the workstation.
    Workstation,
    /// To the container, because the lease is over or was never given.
    LeaseOver,
    /// To the container, because nobody listens at the workstation.
    ClosedToContainer,
    /// To the container, from the pod itself: by loopback, or from an address of its own.
    Exempt,
    /// To the container, because the kubelet may have made it.
    Probe,
    /// Refused, because nobody listens at the workstation.
    Refused,
    /// Not as the lease says: the agent has no listener of that family any more, or another program of
    /// the namespace has chosen a socket where the port is to refuse.
    Elsewhere,
}

impl PodCounter {
    /// Every counter, in the order of the map.
    pub const ALL: [Self; 7] = [
        Self::Workstation,
        Self::LeaseOver,
        Self::ClosedToContainer,
        Self::Exempt,
        Self::Probe,
        Self::Refused,
        Self::Elsewhere,
    ];

    /// The number of counters of each port.
    pub const COUNT: u32 = Self::ALL.len() as u32;
}
