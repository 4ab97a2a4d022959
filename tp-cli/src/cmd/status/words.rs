//! Text of `tp status` for counter names.

/// Counted reasons, each with the words after a number of packets or sockets.
const REASONS: [(&str, &str); 21] = [
    // Sockets that were not steered.
    ("udp", "by UDP"),
    ("protocol", "by a protocol other than TCP"),
    ("ipv6", "by IPv6"),
    ("bound_address", "bound to a loopback address"),
    ("bound_device", "bound to a device"),
    ("other_user", "of another user"),
    ("privileged", "of a program with privileges"),
    ("kernel_thread", "of the kernel"),
    ("other_cgroup", "outside the command's cgroup"),
    ("stale_session", "while the session did not answer"),
    ("alias_table_full", "for want of a free alias"),
    ("no_mark", "for want of memory"),
    // Packets that were dropped.
    ("forwarded", "forwarded for others"),
    ("no_socket", "of no socket"),
    ("foreign_socket", "of a socket that is not steered"),
    ("foreign_destination", "to a foreign address"),
    ("foreign_source", "from a foreign address"),
    ("malformed", "malformed"),
    ("unexpected_packet", "of an unexpected kind"),
    ("unasked", "to a socket that is not steered"),
    ("forbidden_reply", "that the session may not send"),
];

/// The reason's text; its name if a newer root daemon counts it.
pub(super) fn reason(name: &str) -> &str {
    match REASONS.iter().find(|(known, _)| *known == name) {
        Some((_, words)) => words,
        None => name,
    }
}

pub(super) fn path(name: &str) -> &str {
    match name {
        "udp" => "UDP, straight to the traffic manager",
        "portforward" => "port-forward, through the API server",
        other => other,
    }
}

/// A time of RFC 3339 without fractions of a second.
pub(super) fn to_the_second(time: &str) -> String {
    match time.split_once('.') {
        Some((seconds, _)) => format!("{seconds}Z"),
        None => time.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_counter_that_is_shown_has_words() {
        const COUNTERS: &str = include_str!("../../../../tp-ebpf-common/src/counter.rs");

        let shown = |line: &&str| line.contains("= Drop \"") || line.contains("= NotSteered \"");
        let names: Vec<&str> = COUNTERS
            .lines()
            .filter(shown)
            .filter_map(|line| line.split('"').nth(1))
            .collect();

        assert_eq!(names.len(), REASONS.len());
        for name in names {
            assert!(REASONS.iter().any(|(known, _)| *known == name), "{name}");
        }
    }

    #[test]
    fn a_reason_without_words_is_shown_as_it_is() {
        assert_eq!(reason("other_user"), "of another user");
        assert_eq!(reason("of_tomorrow"), "of_tomorrow");
    }

    #[test]
    fn times_are_told_to_the_second() {
        for time in ["2026-11-27T04:47:23.476948767Z", "2026-11-27T04:47:23Z"] {
            assert_eq!(to_the_second(time), "2026-11-27T04:47:23Z");
        }
        assert_eq!(to_the_second(""), "");
    }
}
