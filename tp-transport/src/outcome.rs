//! The kernel's word on a dial, as the other end of the tunnel is told.

use std::io;

use tp_proto::tunnel::Outcome;

/// The outcome of a dial that the kernel ended with this error.
pub fn dial_outcome(error: &io::Error) -> Outcome {
    const ENFILE: i32 = 23;
    const EMFILE: i32 = 24;

    if let Some(ENFILE | EMFILE) = error.raw_os_error() {
        return Outcome::Exhausted;
    }
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Outcome::Refused,
        io::ErrorKind::HostUnreachable => Outcome::HostUnreachable,
        io::ErrorKind::NetworkUnreachable => Outcome::NetworkUnreachable,
        io::ErrorKind::TimedOut => Outcome::TimedOut,
        // A firewall's "prohibited", or a policy of the pod network.
        io::ErrorKind::PermissionDenied => Outcome::HostUnreachable,
        io::ErrorKind::ConnectionReset => Outcome::Refused,
        io::ErrorKind::AddrNotAvailable => Outcome::Exhausted,
        _ => Outcome::HostUnreachable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_word_is_passed_on() {
        let of = |errno| dial_outcome(&io::Error::from_raw_os_error(errno));

        assert_eq!(of(111), Outcome::Refused);
        assert_eq!(of(113), Outcome::HostUnreachable);
        assert_eq!(of(101), Outcome::NetworkUnreachable);
        assert_eq!(of(110), Outcome::TimedOut);
        assert_eq!(of(24), Outcome::Exhausted);
    }
}
