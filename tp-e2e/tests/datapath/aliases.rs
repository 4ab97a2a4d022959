//! The addresses that stand for others.

use tp_e2e::datapath::MEMBER;

use crate::machine;

#[test]
fn descriptors_close_on_exec_and_the_alias_table_is_read_only() {
    let machine = machine();
    let session = machine.session();

    let facts = &session.greeting["facts"];

    assert_eq!(facts["close_on_exec"], true);
    assert_eq!(facts["nonblocking"], true);
    assert_eq!(facts["alias_table_is_writable"], false);
}

#[test]
fn a_full_alias_table_is_an_error_and_never_a_wrong_address() {
    let machine = machine();
    // Leaves only the small range.
    let taken = machine
        .command(&["ip", "route", "add", "unreachable", "198.18.0.0/16"])
        .status();
    assert!(taken.unwrap().success());
    let mut session = machine.session();
    assert_eq!(session.greeting["bundle"]["alias_base"], "198.19.0.0");
    assert_eq!(session.greeting["bundle"]["alias_count"], 32768);
    let usable = 32768 - 256;

    let seen = machine.app(MEMBER, &["many", "10.100.0.0:7001", "32600"]);
    let known = machine.app(MEMBER, &["connect", "10.100.0.0:80"]);
    let unknown = machine.app(MEMBER, &["connect", "10.101.0.0:80"]);

    assert_eq!(seen["errors"]["ECONNREFUSED"], usable);
    assert_eq!(seen["errors"]["EPERM"], 32600 - usable);
    assert_eq!(known["greeting"], "10.100.0.0:80");
    assert_eq!(unknown["errno"], "EPERM");
    assert_eq!(session.counter("aliases"), usable);
    assert_eq!(session.counter("alias_table_full"), 32600 - usable + 1);
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
    assert_eq!(second.greeting["bundle"]["alias_base"], "198.19.0.0");
    assert_eq!(second.counter("steered"), 1);
    drop(first);
    let after = machine.app(MEMBER, &["connect", "10.112.1.2:80"]);
    assert_eq!(after["greeting"], "10.112.1.2:80");
}
