//! Counters, and the names under which people meet them.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CounterKind {
    /// A packet was dropped.
    Drop,
    /// A socket met a steered destination and was left alone.
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
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Stable: scripts match on it.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            pub const fn kind(self) -> CounterKind {
                match self { $(Self::$variant => CounterKind::$kind,)* }
            }
        }
    };
}

counters! {
    Steered = Event "steered",
    Aliases = Event "aliases",
    SynHeld = Event "syn_held",
    SynApproved = Event "syn_approved",

    /// UDP to a steered network that is not a name server.
    Udp = NotSteered "udp",
    /// A stream that is not TCP.
    Protocol = NotSteered "protocol",
    Ipv6 = NotSteered "ipv6",
    /// A loopback address as the source: nothing beyond this machine can be reached from it.
    BoundAddress = NotSteered "bound_address",
    /// Refused with ENETUNREACH, or left alone if it is about a name server.
    BoundDevice = NotSteered "bound_device",
    OtherUser = NotSteered "other_user",
    /// Set-user-id, set-group-id, or capabilities that the session does not have.
    Privileged = NotSteered "privileged",
    KernelThread = NotSteered "kernel_thread",
    OtherCgroup = NotSteered "other_cgroup",
    /// Port 53 while the session shows no sign of life.
    StaleSession = NotSteered "stale_session",
    /// Refused with EPERM, or left alone if it is a name server: no alias is left.
    AliasTableFull = NotSteered "alias_table_full",
    /// The same where the socket has no memory left for its mark.
    NoMark = NotSteered "no_mark",

    Forwarded = Drop "forwarded",
    NoSocket = Drop "no_socket",
    /// From a socket that was not steered.
    ForeignSocket = Drop "foreign_socket",
    ForeignDestination = Drop "foreign_destination",
    ForeignSource = Drop "foreign_source",
    Malformed = Drop "malformed",
    UnexpectedPacket = Drop "unexpected_packet",
    /// To a socket of the workstation that was not steered.
    Unasked = Drop "unasked",
    /// What the session wrote to the TUN is none of the packets it may send.
    ForbiddenReply = Drop "forbidden_reply",
}

impl Counter {
    pub const COUNT: u32 = Self::ALL.len() as u32;
}
