//! Sessions that carry UDP.

use tp_e2e::datapath::{MEMBER, STEER};

use crate::machine;

#[test]
fn a_session_that_asks_for_udp_gets_it_and_answers_in_the_name_of_the_real_address() {
    let machine = machine();
    let mut session = machine.rogue(r#"{"scope":"user","udp":true}"#, STEER, "[]");

    for (number, flags) in [&[][..], &["connected"], &["mapped"]].iter().enumerate() {
        let target = format!("10.96.3.{number}:5000");
        let mut app = machine.start_app(MEMBER, &[&["udp", &target], *flags].concat());
        let got = session.tell("answer 7");
        let seen = app.object();

        assert_eq!(got["alias"], session.alias(number as u32), "{flags:?}");
        assert_eq!(seen["from"], target, "{flags:?}: {seen}");
        assert_eq!(seen["len"], 7, "{flags:?}");
        if flags.contains(&"connected") {
            assert_eq!(seen["peer"], target);
        }
    }
    let excluded = machine.app(MEMBER, &["udp", "10.96.9.1:5000", "timeout=300"]);

    assert_eq!(excluded["errno"], "EHOSTUNREACH");
    assert_eq!(session.counter("steered"), 3);
    assert_eq!(session.counter("udp"), 0);
}

#[test]
fn a_session_that_does_not_ask_for_udp_counts_it_and_leaves_it_alone() {
    let machine = machine();
    let mut session = machine.rogue(r#"{"scope":"user"}"#, STEER, "[]");

    for flags in [&[][..], &["connected"]] {
        let seen = machine.app(MEMBER, &[&["udp", "10.96.3.1:5000"], flags].concat());
        assert_eq!(seen["errno"], "EHOSTUNREACH", "{flags:?}: {seen}");
    }

    assert_eq!(session.counter("udp"), 2);
    assert_eq!(session.counter("steered"), 0);
    assert_eq!(session.counter("aliases"), 0);
}
