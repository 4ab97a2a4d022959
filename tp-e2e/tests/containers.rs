//! `tp` in CI containers, built by hand: read-only or missing mounts, missing variables and
//! descriptors, a first process that does not reap its children.

use std::{fs, process::Command, time::Duration};

use tp_e2e::{
    cluster::testbed,
    daemons,
    lock::alone,
    netns,
    process::{PATIENCE, run},
    user::Account,
    workstation::{CONNECT_TO_SHOP, READ_WEB, Workstation},
};

/// As Docker mounts it without `--privileged`, and a /dev without the file of TUN devices.
const MOUNTS: &str = "mount --bind /proc/sys /proc/sys && \
                      mount -o remount,ro,bind /proc/sys && \
                      mount -t tmpfs tmpfs /dev/net";
/// Root's capabilities in Docker, and the additional ones.
const CAPABILITIES: &str = "-all,+chown,+dac_override,+fowner,+fsetid,+kill,+setgid,+setuid,\
                            +setpcap,+net_bind_service,+net_raw,+sys_chroot,+mknod,+audit_write,\
                            +setfcap,+net_admin,+sys_admin";
const WITHOUT: [&str; 11] = [
    "env",
    "-u",
    "HOME",
    "-u",
    "USER",
    "-u",
    "TERM",
    "-u",
    "XDG_RUNTIME_DIR",
    "-u",
    "TP_STATE_DIR",
];
/// For daemons to end with their last user.
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// Waits only for its own child: orphans stay zombies.
const REAPS_NOTHING: &str = r#"
import subprocess
connect = ["tp", "connect", "--namespace", "shop"]
page = ["curl", "-sS", "--max-time", "10", "http://web/"]
for _ in range(2):
    for words in (connect, page, ["tp", "quit"], [*connect, "--", *page]):
        subprocess.run(words, check=True, stdin=subprocess.DEVNULL, timeout=60)
"#;

/// Starts nothing.
#[track_caller]
fn root_in_a_container() -> Workstation {
    testbed().install_tp();

    Workstation::without_root_daemon(Account::Root, "dev")
}

/// A command inside a container's mounts, with changed capabilities.
fn contained(workstation: &Workstation, bounds: &str, words: &[&str]) -> Command {
    let script = format!("{MOUNTS} && exec \"$@\"");
    let place = ["sh", "-c", &script, "sh"];
    let limits = ["setpriv", "--bounding-set", bounds, "--"];

    workstation.command(&[&place[..], &limits, words].concat())
}

#[test]
fn where_proc_sys_is_read_only_and_tun_devices_have_no_file_a_command_runs_connected_and_nothing_is_left()
 {
    let _alone = alone();
    let before = netns::idle();
    let workstation = root_in_a_container();
    let words = [&WITHOUT[..], &CONNECT_TO_SHOP, &["--"], &READ_WEB].concat();

    let page = run(&mut contained(&workstation, CAPABILITIES, &words), PATIENCE).expect_success();

    assert!(page.contains("nginx of"), "{page}");
    daemons::assert_none(&workstation, END_TIMEOUT);
    before.assert_restored();
}

#[test]
fn a_container_without_rights_is_told_which_are_missing() {
    let _alone = alone();
    let before = netns::idle();
    let workstation = root_in_a_container();

    for (missing, expected) in [
        ("net_admin", "`--cap-add NET_ADMIN`"),
        ("sys_admin", "`--cap-add SYS_ADMIN`"),
        ("mknod", "`--device /dev/net/tun`"),
    ] {
        let bounds = format!("{CAPABILITIES},-{missing}");
        let refused = run(
            &mut contained(&workstation, &bounds, &CONNECT_TO_SHOP),
            PATIENCE,
        );

        assert!(!refused.status.success(), "{missing}: {refused}");
        assert!(refused.stderr.contains(expected), "{missing}: {refused}");
        assert_eq!(refused.stderr.trim().lines().count(), 1, "{refused}");
        daemons::assert_none(&workstation, END_TIMEOUT);
    }
    before.assert_restored();
}

#[test]
fn without_home_user_terminal_and_input_and_with_nobody_who_reads_tp_connects() {
    let _alone = alone();
    let workstation = Workstation::new(Account::Member, "dev");
    let said = workstation.write_file("said", "");
    // The session's socket is in the usual place, its log is not.
    let script = "{ env -u HOME -u USER -u TERM -u TP_STATE_DIR tp connect --namespace shop \
                  <&- 2>>\"$0\"; echo \"code $?\" >>\"$0\"; } | true";
    let said_to = said.display().to_string();

    workstation
        .run(&["sh", "-c", script, &said_to])
        .expect_success();

    let said = fs::read_to_string(&said).expect("own file");
    assert_eq!(said, "code 0\n");
    assert_eq!(workstation.status()["state"], "connected");
    let page = workstation.read_web();
    assert!(page.contains("nginx of"), "{page}");
}

#[test]
fn under_a_first_process_that_reaps_nothing_tp_connects_again_and_again() {
    let _alone = alone();
    let before = netns::idle();
    let workstation = root_in_a_container();
    let place = ["unshare", "--pid", "--fork", "--mount-proc"];
    let words = [&place[..], &["python3", "-c", REAPS_NOTHING]].concat();

    let pages = workstation.run(&words).expect_success();

    assert_eq!(pages.matches("nginx of").count(), 4, "{pages}");
    daemons::assert_none(&workstation, END_TIMEOUT);
    before.assert_restored();
}
