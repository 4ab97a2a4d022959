//! A release, as users get it: unpacked, installed, removed, and run as its service.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;
use tempfile::TempDir;
use tp_e2e::{
    process::{Finished, PATIENCE, run},
    programs::release,
    user::Account,
    workstation::Workstation,
};

/// Files that `tp-daemon install` makes below its root, each with its file in the archive.
const INSTALLED: [(&str, u32, Option<&str>); 9] = [
    ("usr/local/bin/tp", 0o755, Some("tp")),
    ("usr/local/bin/tp-daemon", 0o755, Some("tp-daemon")),
    ("usr/local/bin/tp-session", 0o755, Some("tp-session")),
    (
        "etc/systemd/system/tp-daemon.service",
        0o644,
        Some("tp-daemon.service"),
    ),
    ("etc/systemd/network/05-tp.network", 0o644, None),
    (
        "usr/local/share/bash-completion/completions/tp",
        0o644,
        Some("completions/tp.bash"),
    ),
    (
        "usr/local/share/zsh/site-functions/_tp",
        0o644,
        Some("completions/_tp"),
    ),
    (
        "usr/local/share/fish/vendor_completions.d/tp.fish",
        0o644,
        Some("completions/tp.fish"),
    ),
    ("usr/local/lib/tp/installed.json", 0o644, None),
];

/// The release, unpacked by tar.
struct Unpacked {
    folder: TempDir,
}

impl Unpacked {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        run(
            Command::new("tar")
                .arg("-xzf")
                .arg(release())
                .arg("-C")
                .arg(folder.path()),
            PATIENCE,
        )
        .expect_success();
        Self { folder }
    }

    fn file(&self, name: &str) -> PathBuf {
        let top = format!("tp-{}", env!("CARGO_PKG_VERSION"));
        self.folder.path().join(top).join(name)
    }

    /// Runs tp-daemon with a umask that hides new files from others.
    fn daemon(&self, command: &str, root: &Path) -> Finished {
        run(
            Command::new("sh")
                .args(["-c", "umask 077; exec \"$@\"", "sh"])
                .arg(self.file("tp-daemon"))
                .args([command, "--root"])
                .arg(root),
            PATIENCE,
        )
    }
}

/// A file or folder with its relevant properties.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    mode: u32,
    owner: (u32, u32),
    content: Vec<u8>,
    /// Of files: inode, and time of the last write.
    written: Option<(u64, i64, i64)>,
}

fn tree(root: &Path) -> BTreeMap<PathBuf, Entry> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            let metadata = fs::symlink_metadata(&path).expect("it is there");
            let is_file = metadata.is_file();
            let entry = Entry {
                mode: metadata.permissions().mode(),
                owner: (metadata.uid(), metadata.gid()),
                content: if is_file {
                    fs::read(&path).expect("it can be read")
                } else {
                    Vec::new()
                },
                written: is_file.then(|| (metadata.ino(), metadata.mtime(), metadata.mtime_nsec())),
            };
            if metadata.is_dir() {
                folders.push(path.clone());
            }
            found.insert(
                path.strip_prefix(root).expect("it is below").to_path_buf(),
                entry,
            );
        }
    }
    found
}

/// Reports the first difference, not two trees with whole programs.
#[track_caller]
fn assert_same(now: &BTreeMap<PathBuf, Entry>, before: &BTreeMap<PathBuf, Entry>) {
    for (path, entry) in before {
        assert!(
            now.get(path) == Some(entry),
            "{} is gone or another",
            path.display()
        );
    }
    for path in now.keys() {
        assert!(before.contains_key(path), "{} is new", path.display());
    }
}

#[test]
fn a_release_is_installed_once_and_removed_without_a_trace() {
    let release = Unpacked::new();
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    fs::create_dir_all(root.join("usr/local/bin")).unwrap();
    fs::create_dir_all(root.join("etc")).unwrap();
    fs::write(root.join("usr/local/bin/other"), "somebody's").unwrap();
    let before = tree(root);

    release.daemon("install", root).expect_success();
    let installed = tree(root);
    for (path, mode, source) in INSTALLED {
        let entry = installed
            .get(Path::new(path))
            .unwrap_or_else(|| panic!("{path} is missing"));
        assert_eq!(entry.mode & 0o7777, mode, "{path}");
        assert_eq!(entry.owner, (0, 0), "{path}");
        if let Some(source) = source {
            let expected = fs::read(release.file(source)).unwrap();
            assert!(
                !expected.is_empty() && entry.content == expected,
                "{path} is not {source}"
            );
        }
    }
    for (path, entry) in &installed {
        let is_expected = before.contains_key(path)
            || INSTALLED
                .iter()
                .any(|(known, ..)| Path::new(known).starts_with(path));
        assert!(is_expected, "nobody expects {}", path.display());
        let is_folder = entry.written.is_none();
        assert!(
            !is_folder || entry.mode & 0o7777 == 0o755,
            "{} is closed",
            path.display()
        );
    }

    release.daemon("install", root).expect_success();
    assert_same(&tree(root), &installed);

    let said = release.daemon("uninstall", root).expect_success();
    assert!(said.contains("is removed"), "{said}");
    assert_same(&tree(root), &before);
    let said = release.daemon("uninstall", root).expect_success();
    assert!(said.contains("not installed"), "{said}");
}

#[test]
fn a_release_of_two_programs_becomes_one_of_three_and_is_removed_whole() {
    let release = Unpacked::new();
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    let before = tree(root);
    release.daemon("install", root).expect_success();
    // As left by a release in which tp-daemon was also the session.
    let session = "usr/local/bin/tp-session";
    fs::remove_file(root.join(session)).unwrap();
    fs::write(root.join("usr/local/bin/tp-daemon"), "an older one").unwrap();
    let record = root.join("usr/local/lib/tp/installed.json");
    let mut made: Value = serde_json::from_slice(&fs::read(&record).unwrap()).unwrap();
    let files = made["files"].as_array_mut().expect("files are listed");
    let known = files.len();
    files.retain(|file| file != session);
    assert_eq!(files.len(), known - 1);
    fs::write(&record, made.to_string()).unwrap();

    release.daemon("install", root).expect_success();
    for program in ["tp", "tp-daemon", "tp-session"] {
        let installed = fs::read(root.join("usr/local/bin").join(program)).unwrap();
        let expected = fs::read(release.file(program)).unwrap();
        assert!(installed == expected, "{program} is not the release's");
    }

    release.daemon("uninstall", root).expect_success();
    assert_same(&tree(root), &before);
}

#[test]
fn a_file_of_somebody_else_is_not_replaced_and_nothing_is_installed() {
    let release = Unpacked::new();
    let root = tempfile::tempdir().unwrap();
    let foreign = root.path().join("usr/local/bin/tp");
    fs::create_dir_all(foreign.parent().unwrap()).unwrap();
    fs::write(&foreign, "another program").unwrap();
    let before = tree(root.path());

    let refused = release.daemon("install", root.path());

    assert_ne!(refused.code(), 0, "{refused}");
    assert!(refused.stderr.contains("usr/local/bin/tp"), "{refused}");
    assert_same(&tree(root.path()), &before);
}

/// Copies of /etc and /usr/local, mounted over them for one process.
const ON_COPIES: &str = "set -e\n\
    mount --bind \"$1/etc\" /etc\n\
    mount --bind \"$1/local\" /usr/local\n\
    mount -t tmpfs tmpfs /run\n\
    shift\n\
    exec \"$@\"";

#[test]
fn a_system_gets_programs_service_and_group_and_loses_them_again() {
    let release = Unpacked::new();
    let copies = tempfile::tempdir().unwrap();
    let copies = copies.path();
    run(
        Command::new("cp").args(["-a", "/etc"]).arg(copies),
        PATIENCE,
    )
    .expect_success();
    fs::create_dir(copies.join("local")).unwrap();
    for name in ["group", "gshadow"] {
        let path = copies.join("etc").join(name);
        let text = fs::read_to_string(&path).unwrap();
        let others: Vec<&str> = text
            .lines()
            .filter(|line| !line.starts_with("tp:"))
            .collect();
        fs::write(&path, others.join("\n") + "\n").unwrap();
    }
    // Without groupadd's own files, and times and inodes of rewritten files.
    let state = || {
        let mut state = tree(copies);
        state.retain(|path, _| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            !name.ends_with('-') && name != ".pwd.lock"
        });
        for name in ["group", "gshadow"] {
            let entry = state.get_mut(&Path::new("etc").join(name)).unwrap();
            entry.written = None;
        }
        state
    };
    let daemon = |command: &str| {
        let mut there = Command::new("unshare");
        there
            .args(["--mount", "--propagation", "private", "sh", "-c", ON_COPIES])
            .arg("sh")
            .arg(copies)
            .arg(release.file("tp-daemon"))
            .arg(command);
        run(&mut there, PATIENCE).expect_success()
    };
    let has_group = || {
        fs::read_to_string(copies.join("etc/group"))
            .unwrap()
            .lines()
            .any(|line| line.starts_with("tp:"))
    };
    let before = state();

    let said = daemon("install");
    assert!(said.contains("is installed"), "{said}");
    assert!(has_group());
    assert!(copies.join("local/bin/tp").exists());
    assert!(copies.join("etc/systemd/system/tp-daemon.service").exists());
    let installed = state();

    daemon("install");
    assert_same(&state(), &installed);

    daemon("uninstall");
    assert!(!has_group());
    assert_same(&state(), &before);
}

/// Confines a program as the unit's service does; setpriv does the rest.
const CONFINE: &str = r#"
import ctypes, os, platform, socket, struct, sys

unit = dict(line.strip().split("=", 1) for line in open(sys.argv[1]) if "=" in line)
assert unit["MemoryDenyWriteExecute"] == unit["NoNewPrivileges"] == "yes"
libc = ctypes.CDLL(None, use_errno=True)

def prctl(*arguments):
    full = [ctypes.c_ulong(it) for it in arguments + (0,) * (5 - len(arguments))]
    if libc.prctl(*full) != 0:
        sys.exit(f"prctl{arguments}: {os.strerror(ctypes.get_errno())}")

families = [getattr(socket, name) for name in unit["RestrictAddressFamilies"].split()]
call = {"x86_64": 41, "aarch64": 198}[platform.machine()]
count = len(families)
steps = [(0x20, 0, 0, 0), (0x15, 0, count + 2, call), (0x20, 0, 0, 16)]
steps += [(0x15, count - at, 0, int(family)) for at, family in enumerate(families)]
steps += [(0x06, 0, 0, 0x00050000 | 97), (0x06, 0, 0, 0x7FFF0000)]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
program = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(steps), ctypes.addressof(code)))
prctl(38, 1)
prctl(65, 1)
prctl(22, 2, ctypes.addressof(program))

kept = ["+" + name[4:].lower() for name in unit["CapabilityBoundingSet"].split()]
os.execvp("setpriv", ["setpriv", "--bounding-set", ",".join(["-all"] + kept), "--"] + sys.argv[2:])
"#;

/// Checks that the confinement works.
const TRY_FORBIDDEN: &str = "
import mmap, socket
for attempt in (lambda: mmap.mmap(-1, 4096, prot=7), lambda: socket.socket(socket.AF_VSOCK)):
    try:
        attempt()
    except OSError:
        continue
    raise SystemExit('nothing is taken away')
";

#[test]
fn the_root_daemon_works_with_what_its_service_leaves_it() {
    let release = Unpacked::new();
    let unit = release.file("tp-daemon.service");
    let script = release.file("confine.py");
    fs::write(&script, CONFINE).unwrap();
    let confine = ["python3", script.to_str().unwrap(), unit.to_str().unwrap()];
    let control = [&confine[..], &["python3", "-c", TRY_FORBIDDEN]].concat();
    run(Command::new(control[0]).args(&control[1..]), PATIENCE).expect_success();

    let mut workstation = Workstation::without_root_daemon(Account::Member, "dev");
    tp_e2e::cluster::testbed().install_tp();
    workstation.start_root_daemon_below("tp", &confine);
    workstation.connect(&["--namespace", "shop"]);
    let status = fs::read_to_string(format!("/proc/{}/status", workstation.root_pid())).unwrap();
    for line in ["NoNewPrivs:\t1", "Seccomp:\t2"] {
        assert!(status.contains(line), "{line:?} is missing in {status}");
    }

    let page = workstation
        .run(&["curl", "-sS", "http://web.shop/"])
        .expect_success();
    assert!(page.contains("nginx of"), "{page}");
    workstation.assert_closed_port_refuses();
    workstation.run(&["dig", "web.shop"]).expect_success();
    // Connects another session of the same root daemon.
    workstation.tp(&["quit"]).expect_success();
    workstation.connect(&["--namespace", "team-b"]);
    let own = workstation.echo(&["talk", "echo:7001", "peer"]);
    assert_eq!(own["end"], "fin", "{own}");
}
