//! Counters, and their names in outputs.

/// The kind of event that a counter counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CounterKind {
    /// A packet was dropped.
    Drop,
    /// A socket to a steered destination was left alone.
    NotSteered,
    /// Everything else.
    Event,
}

macro_rules! counters {
    ($($(#[$doc:meta])* $variant:ident = $kind:ident $name:literal,)*) => {
        /// Index into the counter map.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Counter {
            $($(#[$doc])* $variant,)*
        }

        impl Counter {
            /// Every counter, in the order of the counter map.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The name in outputs; stable, because scripts match on it.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// The kind of the event.
            pub const fn kind(self) -> CounterKind {
                match self { $(Self::$variant => CounterKind::$kind,)* }
            }
        }
    };
}

counters! {
    /// A socket, or a datagram to a name server, received an alias.
    Steered = Event "steered",
    /// A fresh or free alias was given to an address.
    Aliases = Event "aliases",
    /// A SYN went to the TUN.
    SynHeld = Event "syn_held",
    /// A SYN came back from the TUN.
    SynApproved = Event "syn_approved",

    /// UDP to a steered network that is not a name server.
    Udp = NotSteered "udp",
    /// A stream that is not TCP.
    Protocol = NotSteered "protocol",
    /// An IPv6 address of a steered network.
    Ipv6 = NotSteered "ipv6",
    /// A loopback address as the source: nothing beyond this machine can be reached from it.
    BoundAddress = NotSteered "bound_address",
    /// Refused with ENETUNREACH, or left alone if it is about a name server.
    BoundDevice = NotSteered "bound_device",
    /// A task of another user than the session's.
    OtherUser = NotSteered "other_user",
    /// Set-user-id, set-group-id, or capabilities that the session does not have.
    Privileged = NotSteered "privileged",
    /// A task of the kernel itself, such as an NFS mount's.
    KernelThread = NotSteered "kernel_thread",
    /// A task outside of the session's cgroup.
    OtherCgroup = NotSteered "other_cgroup",
    /// Port 53 while the session's heartbeat is stale.
    StaleSession = NotSteered "stale_session",
    /// Refused with EPERM, or left alone if it is a name server: no alias is left.
    AliasTableFull = NotSteered "alias_table_full",
    /// The same where the socket has no memory left for its mark.
    NoMark = NotSteered "no_mark",

    /// To an alias, from another interface of this machine.
    Forwarded = Drop "forwarded",
    /// To an alias, from no socket.
    NoSocket = Drop "no_socket",
    /// From a socket that was not steered.
    ForeignSocket = Drop "foreign_socket",
    /// To an address that packets in this direction must not have.
    ForeignDestination = Drop "foreign_destination",
    /// From an address that packets in this direction must not have.
    ForeignSource = Drop "foreign_source",
    /// Not a whole IPv4, TCP, UDP or ICMP header.
    Malformed = Drop "malformed",
    /// Of a kind that does not pass here.
    UnexpectedPacket = Drop "unexpected_packet",
    /// To a socket of the workstation that was not steered.
    Unasked = Drop "unasked",
    /// The session may not send such a packet.
    ForbiddenReply = Drop "forbidden_reply",
}

impl Counter {
    /// The number of elements of the counter map.
    pub const COUNT: u32 = Self::ALL.len() as u32;
}
