//! The result of a dial, and the signal that the application gets.

/// The result of a dial by the far side's kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Verdict {
    /// The target accepted the connection.
    Connected,
    /// ECONNREFUSED
    Refused,
    /// EHOSTUNREACH
    HostUnreachable,
    /// ENETUNREACH
    NetworkUnreachable,
    /// ETIMEDOUT: the target stayed silent.
    TimedOut,
    /// The user may not reach the target.
    Prohibited,
    /// No resources for the dial, at either end.
    Exhausted,
}

/// The signal that ends the application's `connect()`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// The SYN goes on to the listener.
    Accept,
    /// A RST: ECONNREFUSED.
    Reset,
    /// ICMP destination unreachable with this code (RFC 792, RFC 1812 section 5.2.7.1).
    Unreachable(u8),
    /// Nothing: the application's own time-out decides.
    Silence,
}

/// ICMP code "net unreachable": Linux reports ENETUNREACH.
pub const NET_UNREACHABLE: u8 = 0;
/// ICMP code "host unreachable": Linux reports EHOSTUNREACH.
pub const HOST_UNREACHABLE: u8 = 1;
/// ICMP code "port unreachable": Linux reports ECONNREFUSED.
pub const PORT_UNREACHABLE: u8 = 3;
/// ICMP code "destination network unknown": ENETUNREACH, also for a UDP socket without IP_RECVERR,
/// to which Linux does not report the codes 0 and 1.
pub const NET_UNKNOWN: u8 = 6;
/// ICMP code "communication administratively prohibited": Linux reports EHOSTUNREACH.
pub const PROHIBITED: u8 = 13;

impl Verdict {
    /// The signal with which the application's `connect()` ends as the dial did.
    pub fn signal(self) -> Signal {
        match self {
            Self::Connected => Signal::Accept,
            Self::Refused => Signal::Reset,
            Self::HostUnreachable | Self::Exhausted => Signal::Unreachable(HOST_UNREACHABLE),
            Self::NetworkUnreachable => Signal::Unreachable(NET_UNREACHABLE),
            Self::TimedOut => Signal::Silence,
            Self::Prohibited => Signal::Unreachable(PROHIBITED),
        }
    }

    /// The name under which `tp status` counts it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Connected => "connected",
            Self::Refused => "refused",
            Self::HostUnreachable => "host unreachable",
            Self::NetworkUnreachable => "network unreachable",
            Self::TimedOut => "timed out",
            Self::Prohibited => "prohibited",
            Self::Exhausted => "exhausted",
        }
    }
}
