//! Which versions work together: one minor version apart.

use tp_core::VERSION;

use crate::fault::{Fault, FaultKind};

/// Refuses `whose` version ("the traffic manager") if this program does not work with it.
///
/// # Errors
///
/// Of [`FaultKind::Failed`], naming both versions.
pub fn check(whose: &str, version: &str) -> Result<(), Fault> {
    check_pair(whose, version, VERSION)
}

/// Refuses a root daemon of this version unless it speaks `ours` of its protocol.
///
/// # Errors
///
/// Of [`FaultKind::Failed`], saying what to do.
pub fn check_root_protocol(version: &str, theirs: u32, ours: u32) -> Result<(), Fault> {
    if theirs == ours {
        return Ok(());
    }

    Err(Fault::new(
        FaultKind::Failed,
        format!(
            "the root daemon (version {version}, protocol {theirs}) does not understand this tp \
             (version {VERSION}, protocol {ours}): run `sudo tp-daemon install` of this release; one that \
             `tp connect` has started itself ends with `tp quit --stop-daemons`"
        ),
    ))
}

fn check_pair(whose: &str, theirs: &str, ours: &str) -> Result<(), Fault> {
    let is_near = match (major_minor(theirs), major_minor(ours)) {
        (Some((their_major, their_minor)), Some((our_major, our_minor))) => {
            their_major == our_major && their_minor.abs_diff(our_minor) <= 1
        }
        _ => false,
    };
    if is_near {
        return Ok(());
    }
    let theirs = if theirs.is_empty() { "unknown" } else { theirs };

    Err(Fault::new(
        FaultKind::Failed,
        format!(
            "{whose} has version {theirs} and this tp {ours}: they work together up to one \
             minor version apart, so bring the older one to the version of the other"
        ),
    ))
}

fn major_minor(version: &str) -> Option<(u64, u64)> {
    let mut parts = version.split('.');

    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_minor_version_apart_works_and_no_more() {
        let works = |theirs| check_pair("the manager", theirs, "1.4.2").is_ok();

        for near in ["1.4.2", "1.4.9", "1.3.0", "1.5.0-rc.1"] {
            assert!(works(near), "{near}");
        }
        for far in ["1.2.9", "1.6.0", "0.4.2", "2.4.2", "", "1", "one.two"] {
            assert!(!works(far), "{far}");
        }
        assert!(check("the manager", VERSION).is_ok());
    }

    #[test]
    fn a_version_too_far_is_told_with_both() {
        let fault = check_pair("the traffic manager", "0.4.0", "0.1.0").unwrap_err();

        assert!(fault.message.contains("the traffic manager"), "{fault}");
        assert!(fault.message.contains("0.4.0"), "{fault}");
        assert!(fault.message.contains("0.1.0"), "{fault}");
    }

    #[test]
    fn a_root_daemon_of_another_protocol_is_told_with_what_to_do() {
        assert!(check_root_protocol("0.1.0", 2, 2).is_ok());

        let fault = check_root_protocol("0.0.9", 1, 2).unwrap_err();
        assert!(fault.message.contains("0.0.9"), "{fault}");
        assert!(fault.message.contains("sudo tp-daemon install"), "{fault}");
    }
}
