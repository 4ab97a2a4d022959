//! Sessions of one user by cgroup.

use std::path::Path;

use serde_json::json;
use tp_e2e::datapath::{MEMBER, Machine, OUTSIDER};

use super::{NARROW, WHO, assert_answers, assert_reaches, assert_reaches_nobody, close, open, who};
use crate::{Cgroup, HELPER, machine};

#[test]
fn processes_reach_the_session_of_their_innermost_cgroup_and_others_the_users_own() {
    let machine = machine();
    let (one, two) = (Cgroup::named(MEMBER, "one"), Cgroup::named(MEMBER, "two"));
    let inner = Cgroup::named(MEMBER, "one/inner");
    let plain = Cgroup::named(MEMBER, "one/plain");
    let elsewhere = r#"{"include":["10.104.0.0/13"]}"#;
    let in_one = open(&machine, 1, MEMBER, &one.scope(), NARROW);
    let _in_two = open(&machine, 2, MEMBER, &two.scope(), NARROW);
    let in_inner = open(&machine, 3, MEMBER, &inner.scope(), elsewhere);
    let users = open(&machine, 4, MEMBER, r#""user""#, NARROW);
    let target = "10.96.1.2:80";
    let assert_reaches_from = |cgroup: &Cgroup, target: &str, number: u8| {
        let seen = cgroup.app(&machine, MEMBER, &["connect", target]);
        assert_eq!(seen["greeting"], format!("{number} {target}"), "{seen}");
        let name = cgroup.app(&machine, MEMBER, &["dns", "127.0.0.53:53", WHO]);
        assert_eq!(name["addresses"][0], who(number), "{name}");
    };

    assert_reaches_from(&one, target, 1);
    assert_reaches_from(&two, target, 2);
    // A cgroup below has no session of its own.
    assert_reaches_from(&plain, target, 1);
    assert_reaches_from(&inner, "10.104.1.2:80", 3);
    let unsteered = inner.app(&machine, MEMBER, &["connect", target]);
    assert_eq!(unsteered["errno"], "EHOSTUNREACH", "{unsteered}");
    assert_reaches(&machine, MEMBER, target, 4);
    assert_answers(&machine, MEMBER, 4);
    // A process of somebody else in the cgroup.
    let of_root = one.app(&machine, 0, &["connect", target]);
    assert_eq!(of_root["errno"], "EHOSTUNREACH", "{of_root}");

    close(users);
    assert_reaches_nobody(&machine, MEMBER, target);
    assert_reaches_from(&two, target, 2);
    close(in_inner);
    assert_reaches_from(&inner, target, 1);

    close(in_one);
    let after = inner.app(&machine, MEMBER, &["connect", target]);
    assert_eq!(after["errno"], "EHOSTUNREACH", "{after}");
}

#[test]
fn one_users_cgroups_of_many_depths_leave_room_for_those_of_others() {
    let machine = machine();
    let mut name = "deep".to_owned();
    // The deepest first, which is removed first.
    let mut cgroups = Vec::new();
    for depth in 0..8 {
        name += if depth == 0 { "" } else { "/more" };
        cgroups.insert(0, Cgroup::named(MEMBER, &name));
    }
    let of_other = Cgroup::named(OUTSIDER, &format!("{name}/other"));
    let _sessions: Vec<_> = (1..)
        .zip(cgroups.iter().rev())
        .map(|(number, cgroup)| open(&machine, number, MEMBER, &cgroup.scope(), NARROW))
        .collect();

    let _other = open(&machine, 9, OUTSIDER, &of_other.scope(), NARROW);

    let target = "10.96.1.2:80";
    let seen = of_other.app(&machine, OUTSIDER, &["connect", target]);
    assert_eq!(seen["greeting"], format!("9 {target}"), "{seen}");
    for (number, cgroup) in (1..).zip(cgroups.iter().rev()).step_by(7) {
        let seen = cgroup.app(&machine, MEMBER, &["connect", target]);
        assert_eq!(seen["greeting"], format!("{number} {target}"), "{seen}");
    }
}

#[test]
fn a_cgroup_is_a_scope_for_a_root_daemon_in_a_container_too() {
    let container = Cgroup::named(0, "container");
    let inner = Cgroup::named(MEMBER, "container/inner");
    // Its root daemon is in the cgroup, and ends before that.
    let mut machine = Machine::without_daemon(Path::new(HELPER));
    let (root, _) = container.path().rsplit_once('/').unwrap();
    let daemon = machine.dir().join("tp-daemon").display().to_string();
    let enter = format!("echo $$ > {}/cgroup.procs; exec \"$@\"", container.path());
    let mount = format!("umount -l {root} && mount -t cgroup2 cgroup2 {root} && exec \"$@\"");
    let words = ["sh", "-c", &enter, "sh", "unshare", "--cgroup", "--mount"];
    let private = [
        "--propagation",
        "private",
        "sh",
        "-c",
        &mount,
        "sh",
        &daemon,
    ];
    let launcher: Vec<String> = words
        .iter()
        .chain(&private)
        .map(|it| (*it).to_owned())
        .collect();
    machine.start_daemon_by(&launcher, &["--group", &MEMBER.to_string()]);
    // As it is called in there.
    let scope = json!({"cgroup": {"path": format!("{root}/inner")}}).to_string();

    let session = open(&machine, 1, MEMBER, &scope, NARROW);

    let target = "10.96.1.2:80";
    let seen = inner.app(&machine, MEMBER, &["connect", target]);
    assert_eq!(seen["greeting"], format!("1 {target}"), "{seen}");
    let outside = container.app(&machine, MEMBER, &["connect", target]);
    assert_eq!(outside["errno"], "EHOSTUNREACH", "{outside}");
    drop(session);
}
