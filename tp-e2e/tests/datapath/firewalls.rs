//! Firewalls that allow only a VPN or the LAN.

use tp_e2e::datapath::{MEMBER, Machine, Process};

use crate::machine;

#[track_caller]
fn nft(machine: &Machine, rules: &[&str]) {
    for rule in rules {
        let done = machine.command(&["nft", rule]).status();
        assert!(done.is_ok_and(|status| status.success()), "{rule}");
    }
}

#[track_caller]
fn is_noticed(session: &mut Process) -> bool {
    let answer = session.tell("firewall");
    answer["is_noticed"].as_bool().unwrap()
}

#[test]
fn a_firewall_that_drops_what_is_steered_is_noticed_and_one_that_lets_it_out_is_not() {
    let machine = machine();
    let mut session = machine.session();
    assert!(!is_noticed(&mut session), "there is no firewall");

    for verdict in ["drop", "reject", "reject with tcp reset"] {
        nft(
            &machine,
            &[
                "add table inet guard",
                "add chain inet guard output { type filter hook output priority 0; policy accept; }",
                "add rule inet guard output oifname { lo, e0 } accept",
                &format!("add rule inet guard output meta l4proto tcp {verdict}"),
                "add rule inet guard output drop",
            ],
        );
        assert!(is_noticed(&mut session), "{verdict}");

        // As the notice says.
        nft(
            &machine,
            &["insert rule inet guard output oifname \"tp*\" accept"],
        );
        assert!(!is_noticed(&mut session), "{verdict}, and an exception");
        let seen = machine.app(MEMBER, &["connect", "10.96.1.2:80"]);
        assert_eq!(seen["greeting"], "10.96.1.2:80", "{seen}");
        nft(&machine, &["delete table inet guard"]);
    }
}
