//! The root daemon in containers that hide, protect or withhold its requirements: it works, or one
//! sentence names what is missing and the flag that provides it.

use serde_json::Value;
use tp_e2e::datapath::{MEMBER, Machine, NAME_SERVERS, Process, STEER};

use crate::HELPER;

/// As Docker mounts it without `--privileged`.
const PROC_SYS_READ_ONLY: &str =
    "mount --bind /proc/sys /proc/sys && mount -o remount,ro,bind /proc/sys";
const WITHOUT_DEVICES: &str = "mount -t tmpfs tmpfs /dev/net";
/// /sys with the mount points, and without the mounted file systems.
const SYS_ALONE: &str = "mount --bind /sys /sys";

/// Root's capabilities in Docker, and the additional ones.
const ADDED: &str = "-all,+chown,+dac_override,+fowner,+fsetid,+kill,+setgid,+setuid,+setpcap,\
                     +net_bind_service,+net_raw,+sys_chroot,+mknod,+audit_write,+setfcap,\
                     +net_admin,+sys_admin";

/// A root daemon in its own mount namespace, after these commands, and with these capability
/// changes.
fn confined(machine: &Machine, commands: &str, bounds: &str) -> Vec<String> {
    let program = machine.dir().join("tp-daemon").display().to_string();
    let script = format!("{commands} && exec \"$@\"");
    let words = ["unshare", "--mount", "--propagation", "private", "sh", "-c"];
    let bounds = ["setpriv", "--bounding-set", bounds, "--"];
    let all = [&words[..], &[&script, "sh"], &bounds, &[&program]];

    all.concat().into_iter().map(str::to_owned).collect()
}

/// Starts such a root daemon.
#[track_caller]
fn start_confined_daemon(machine: &mut Machine, commands: &str, bounds: &str) {
    let launcher = confined(machine, commands, bounds);
    machine.start_daemon_by(&launcher, &["--group", &MEMBER.to_string()]);
}

/// A session of root in the same container, and the report of its application.
#[track_caller]
fn assert_works(machine: &Machine, bounds: &str) {
    let socket = machine.socket();
    let netns = "/proc/self/ns/net";
    let session = ["session", &socket, netns, "\"user\"", STEER, NAME_SERVERS];
    let within = |words: &[&str]| {
        let words = machine.helper_words(0, words);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let bounds = ["setpriv", "--bounding-set", bounds, "--"];
        Process::start(&mut machine.command(&[&bounds, &words[..]].concat()))
    };
    let mut session = within(&session);
    let said = session.object();
    assert_eq!(said["event"], "ready", "{said}");

    let seen = within(&["app", "connect", "10.96.1.2:80"]).object();

    assert_eq!(seen["greeting"], "10.96.1.2:80", "{seen}");
}

/// The error of a root daemon that did not start.
#[track_caller]
fn refusal_to_start(machine: &Machine, commands: &str, bounds: &str) -> String {
    let launcher = confined(machine, commands, bounds);
    let launcher: Vec<&str> = launcher.iter().map(String::as_str).collect();
    let socket = machine.socket();
    let words = [&launcher[..], &["root", "--socket", &socket]].concat();
    let mut daemon = Process::start(&mut machine.command(&words));
    assert!(!daemon.wait(), "it starts:\n{}", daemon.log());

    daemon.last_words()
}

/// The reply to a session that is refused.
#[track_caller]
fn refused_session(machine: &Machine) -> Value {
    let mut session = machine.try_session(MEMBER, "/proc/self/ns/net", r#""user""#, STEER);
    let said = session.object();
    assert_eq!(said["event"], "refused", "{said}");

    said["reply"].clone()
}

#[test]
fn where_proc_sys_is_read_only_and_tun_devices_have_no_file_sessions_open_and_leave_nothing() {
    let mut machine = Machine::without_daemon(HELPER.as_ref());
    let before = machine.snapshot();
    let commands = format!("{PROC_SYS_READ_ONLY} && {WITHOUT_DEVICES}");
    start_confined_daemon(&mut machine, &commands, ADDED);

    assert_works(&machine, ADDED);

    machine.daemon_mut().kill();
    machine.assert_as(&before);
}

#[test]
fn where_no_tun_device_can_be_had_the_flag_that_gives_it_is_told() {
    let mut machine = Machine::without_daemon(HELPER.as_ref());
    start_confined_daemon(&mut machine, WITHOUT_DEVICES, "-mknod");
    let before = machine.snapshot();

    let refused = refused_session(&machine);

    let message = refused["message"].as_str().unwrap_or_default();
    assert!(message.contains("--device /dev/net/tun"), "{refused}");
    machine.assert_as(&before);
}

#[test]
fn what_a_container_lacks_for_a_root_daemon_to_start_is_told_with_its_name() {
    let machine = Machine::without_daemon(HELPER.as_ref());

    for (commands, bounds, words) in [
        ("true", "-net_admin", "`--cap-add NET_ADMIN`"),
        (
            "true",
            "-sys_admin,-net_admin",
            "`--cap-add NET_ADMIN --cap-add SYS_ADMIN`",
        ),
        (SYS_ALONE, "-mknod", "no cgroup v2 hierarchy"),
        (
            "mount -t tmpfs tmpfs /sys",
            "-mknod",
            "/sys/kernel/btf/vmlinux",
        ),
    ] {
        let said = refusal_to_start(&machine, commands, bounds);
        assert!(said.contains(words), "{commands}, {bounds}: {said}");
    }
}
