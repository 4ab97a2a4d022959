//! Aliases: addresses that stand for others.

use std::{
    net::Ipv4Addr,
    path::Path,
    time::{Duration, Instant},
};

use tp_e2e::{
    datapath::{MEMBER, Machine},
    process::eventually,
};

use crate::{HELPER, WEB, WEB_ADDRESS, machine};

/// Aliases of a machine of [`with_few_aliases`].
const FEW: u32 = 256;
const QUARANTINE: Duration = Duration::from_millis(1500);

#[test]
fn descriptors_do_not_block_and_the_alias_table_is_read_only() {
    let machine = machine();
    let session = machine.session();

    let facts = &session.greeting["facts"];

    assert_eq!(facts["nonblocking"], true);
    assert_eq!(facts["alias_table_is_writable"], false);
}

#[test]
fn a_full_alias_table_is_an_error_and_never_a_wrong_address() {
    let mut machine = Machine::without_daemon(Path::new(HELPER));
    machine.start_daemon(&["--group", &MEMBER.to_string(), "--alias-count", "4096"]);
    let mut session = machine.session();
    assert_eq!(session.greeting["bundle"]["alias_count"], 4096);
    let usable = 4096 - 256;

    let seen = machine.app(MEMBER, &["many", "10.100.0.0:7001", "4000"]);
    let known = machine.app(MEMBER, &["connect", "10.100.0.0:80"]);
    let unknown = machine.app(MEMBER, &["connect", "10.101.0.0:80"]);

    assert_eq!(seen["errors"]["ECONNREFUSED"], usable);
    assert_eq!(seen["errors"]["EPERM"], 4000 - usable);
    assert_eq!(known["greeting"], "10.100.0.0:80");
    assert_eq!(unknown["errno"], "EPERM");
    assert_eq!(session.counter("aliases"), usable);
    assert_eq!(session.counter("alias_table_full"), 4000 - usable + 1);
}

#[test]
fn two_sessions_have_their_own_aliases() {
    let machine = machine();
    let other = r#"{"include":["10.112.0.0/12"],"exclude":[]}"#;
    let first = machine.session();
    let mut second = machine.session_of(MEMBER, r#""user""#, other);

    let through_first = machine.app(MEMBER, &["connect", "10.96.1.2:80"]);
    let through_second = machine.app(MEMBER, &["connect", "10.112.1.2:80"]);

    assert_eq!(through_first["greeting"], "10.96.1.2:80");
    assert_eq!(through_second["greeting"], "10.112.1.2:80");
    assert_ne!(first.alias(0), second.alias(0));
    assert_eq!(second.counter("steered"), 1);
    drop(first);
    let after = machine.app(MEMBER, &["connect", "10.112.1.2:80"]);
    assert_eq!(after["greeting"], "10.112.1.2:80");
}

#[test]
fn aliases_stand_for_other_addresses_after_a_quarantine_and_never_while_somebody_has_them() {
    let machine = with_few_aliases();
    let mut session = machine.session();
    let mut held = machine.start_app(MEMBER, &["crowd", "10.96.1.0:80", "20"]);
    assert_eq!(held.object()["greeted"], 20);
    let mut late = machine.start_app(MEMBER, &["late", "172.31.0.53:53", WEB]);
    assert_eq!(late.object()["event"], "sent");

    let seen = machine.app(MEMBER, &["many", "10.100.0.0:7001", "300"]);
    let left = FEW - 21;
    assert_eq!(seen["errors"]["ECONNREFUSED"], left);
    assert_eq!(seen["errors"]["EPERM"], 300 - left);
    assert_eq!(session.counter("alias_table_full"), u64::from(300 - left));
    assert_eq!(session.counter("aliases"), u64::from(FEW));

    // Two programs on two processors connect to the same, ever new addresses.
    let mut greeted = 0;
    let mut next = u32::from(Ipv4Addr::new(10, 101, 0, 0));
    eventually(
        "all aliases to be new thrice",
        Duration::from_secs(60),
        || {
            let first = format!("{}:80", Ipv4Addr::from(next));
            next += 100;
            let mut other = machine.start_app(MEMBER, &["many", &first, "100"]);
            for seen in [
                machine.app(MEMBER, &["many", &first, "100"]),
                other.object(),
            ] {
                assert_eq!(seen["wrong"], 0, "{seen}");
                greeted += seen["greeted"].as_u64().unwrap();
            }
            if greeted > 2 * 3 * u64::from(FEW) {
                Ok(())
            } else {
                Err(format!("{greeted} connections"))
            }
        },
    );

    assert_eq!(held.tell("still")["right"], 20);
    let late = late.tell("read");
    assert_eq!(late["from"], "172.31.0.53:53");
    assert_eq!(late["addresses"][0], WEB_ADDRESS);
    assert!(session.counter("aliases") <= u64::from(FEW));
}

#[test]
fn a_table_full_of_open_connections_stays_full_until_they_are_closed() {
    let machine = with_few_aliases();
    let _session = machine.session();
    let all = FEW.to_string();
    let mut held = machine.start_app(MEMBER, &["crowd", "10.100.0.0:80", &all]);
    assert_eq!(held.object()["greeted"], FEW);
    let connect = |target: &str| machine.app(MEMBER, &["connect", target]);

    let full = Instant::now();
    while full.elapsed() < 3 * QUARANTINE {
        assert_eq!(connect("10.101.0.1:80")["errno"], "EPERM");
        assert_eq!(connect("10.100.0.7:80")["greeting"], "10.100.0.7:80");
        assert_eq!(held.tell("still")["right"], FEW);
    }
    held.kill();

    eventually("an alias to be free", Duration::from_secs(10), || {
        let seen = connect("10.101.0.1:80");
        (seen["greeting"] == "10.101.0.1:80")
            .then_some(())
            .ok_or_else(|| seen.to_string())
    });
}

pub(crate) fn with_few_aliases() -> Machine {
    with_few_aliases_and(QUARANTINE)
}

pub(crate) fn with_few_aliases_and(quarantine: Duration) -> Machine {
    let mut machine = Machine::without_daemon(Path::new(HELPER));
    let group = MEMBER.to_string();
    let count = (FEW + 256).to_string();
    let quarantine = quarantine.as_millis().to_string();
    machine.start_daemon(&[
        "--group",
        &group,
        "--alias-count",
        &count,
        "--alias-quarantine",
        &quarantine,
    ]);

    machine
}
