//! Installs a release: its programs where only root can replace them, the service of the root
//! daemon, its group, and completions. All that is made is recorded first, so that `uninstall`
//! removes exactly that.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};

use crate::group;

const UNIT: &str = "tp-daemon.service";
const UNIT_TEXT: &str = include_str!("../tp-daemon.service");
const GROUP: &str = "tp";
const PROGRAM_DIR: &str = "usr/local/bin";
const UNIT_FILE: &str = "etc/systemd/system/tp-daemon.service";
/// systemd-networkd applies the first file by name that matches; those of administrators usually begin
/// with 10 or more.
const NETWORK_FILE: &str = "etc/systemd/network/05-tp.network";
const NETWORK_TEXT: &str = "\
# systemd-networkd leaves the interfaces of tp alone, also where another file is for all interfaces.
[Match]
Name=tp[0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f]

[Link]
Unmanaged=yes
";
const RECORD: &str = "usr/local/lib/tp/installed.json";
const COMPLETIONS: [(&str, &str); 3] = [
    ("bash", "usr/local/share/bash-completion/completions/tp"),
    ("zsh", "usr/local/share/zsh/site-functions/_tp"),
    ("fish", "usr/local/share/fish/vendor_completions.d/tp.fish"),
];

#[derive(Debug, clap::Args)]
pub(crate) struct InstallArgs {
    /// Put the files below this directory and leave group and service alone, for packagers.
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
}

#[derive(Debug, clap::Args)]
pub(crate) struct UninstallArgs {
    /// The directory that `install` was given.
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
}

/// What `install` made; paths are relative to the root.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    version: String,
    files: Vec<String>,
    /// Innermost last.
    directories: Vec<String>,
    group: bool,
}

pub(crate) fn run(args: InstallArgs) -> anyhow::Result<()> {
    let is_system = args.root == Path::new("/");
    if is_system {
        require_root("install")?;
    }
    // Everybody may read what is installed, whatever root's umask.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    let program = std::env::current_exe().context("cannot find out which program this is")?;
    let source = program.parent().context("this program has no directory")?;
    let mut record = read_record(&args.root)?.unwrap_or_default();
    record.version = tp_core::VERSION.into();

    let files = files(source)?;
    refuse_foreign(&args.root, &files, &record)?;
    for file in &files {
        record.add(&args.root, &file.target);
    }
    record.add(&args.root, RECORD);
    record.group |= is_system && !has_group()?;
    write_record(&args.root, &record)?;

    for file in &files {
        write_file(&args.root.join(&file.target), &file.content, file.mode)?;
    }
    if is_system {
        if !has_group()? {
            run_command("groupadd", &["--system", GROUP])?;
        }
        reload_networkd();
        start_service()?;
    }

    Ok(())
}

pub(crate) fn run_uninstall(args: UninstallArgs) -> anyhow::Result<()> {
    let is_system = args.root == Path::new("/");
    if is_system {
        require_root("uninstall")?;
    }
    let Some(record) = read_record(&args.root)? else {
        println!("tp is not installed here");
        return Ok(());
    };

    if is_system && has_systemd() {
        // Fails if there is no such service, which is as good.
        let _ = run_command("systemctl", &["disable", "--now", "--quiet", UNIT]);
    }
    // The record goes last, so that an interrupted removal can be run again.
    for file in record.files.iter().filter(|file| *file != RECORD) {
        remove_file(&args.root.join(file))?;
    }
    if is_system {
        if has_systemd() {
            run_command("systemctl", &["daemon-reload"])?;
        }
        reload_networkd();
        if record.group && has_group()? {
            run_command("groupdel", &[GROUP])?;
        }
    }
    remove_file(&args.root.join(RECORD))?;
    for directory in record.directories.iter().rev() {
        // Fails if somebody has put something else there.
        let _ = fs::remove_dir(args.root.join(directory));
    }
    println!("tp {} is removed", record.version);

    Ok(())
}

struct File {
    target: String,
    content: Vec<u8>,
    mode: u32,
}

fn files(source: &Path) -> anyhow::Result<Vec<File>> {
    let mut files = Vec::new();
    // `tp` last: it looks for the others.
    for program in ["tp-session", "tp-daemon", "tp"] {
        let path = source.join(program);
        let content = fs::read(&path)
            .with_context(|| format!("cannot read {}: a release has it", path.display()))?;
        files.push(File {
            target: format!("{PROGRAM_DIR}/{program}"),
            content,
            mode: 0o755,
        });
    }
    files.push(File {
        target: UNIT_FILE.into(),
        content: UNIT_TEXT.into(),
        mode: 0o644,
    });
    files.push(File {
        target: NETWORK_FILE.into(),
        content: NETWORK_TEXT.into(),
        mode: 0o644,
    });
    for (shell, target) in COMPLETIONS {
        files.push(File {
            target: target.into(),
            content: completions(&source.join("tp"), shell)?,
            mode: 0o644,
        });
    }

    Ok(files)
}

fn completions(tp: &Path, shell: &str) -> anyhow::Result<Vec<u8>> {
    let output = Command::new(tp)
        .args(["completions", shell])
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {}", tp.display()))?;
    if !output.status.success() {
        bail!("`{} completions {shell}` failed", tp.display());
    }

    Ok(output.stdout)
}

/// Fails if another file is at one of the targets, unless an earlier installation put it there.
fn refuse_foreign(root: &Path, files: &[File], record: &Record) -> anyhow::Result<()> {
    for file in files {
        let path = root.join(&file.target);
        let is_known = record.files.contains(&file.target);
        if !is_known
            && fs::symlink_metadata(&path).is_ok()
            && fs::read(&path).ok().as_deref() != Some(&file.content)
        {
            bail!(
                "{} exists and was not installed by tp: move it away first",
                path.display()
            );
        }
    }

    Ok(())
}

impl Record {
    /// Adds a file that is about to be written, and the directories that it lacks.
    fn add(&mut self, root: &Path, target: &str) {
        if !self.files.iter().any(|known| known == target) {
            self.files.push(target.to_owned());
        }
        let mut missing: Vec<String> = Path::new(target)
            .ancestors()
            .skip(1)
            .take_while(|dir| !dir.as_os_str().is_empty() && !root.join(dir).exists())
            .map(|dir| dir.to_string_lossy().into_owned())
            .filter(|dir| !self.directories.contains(dir))
            .collect();
        missing.reverse();
        self.directories.append(&mut missing);
    }
}

fn read_record(root: &Path) -> anyhow::Result<Option<Record>> {
    let path = root.join(RECORD);
    match fs::read_to_string(&path) {
        Ok(text) => serde_json::from_str(&text)
            .map(Some)
            .with_context(|| format!("cannot read {}", path.display())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

fn write_record(root: &Path, record: &Record) -> anyhow::Result<()> {
    let text = serde_json::to_vec_pretty(record).context("cannot write down what is made")?;

    write_file(&root.join(RECORD), &text, 0o644)
}

/// Replaces the file by rename(2), unless it is right already: a running program keeps its file.
fn write_file(path: &Path, content: &[u8], mode: u32) -> anyhow::Result<()> {
    let is_unchanged = fs::symlink_metadata(path)
        .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o7777 == mode)
        && fs::read(path).is_ok_and(|found| found == content);
    if is_unchanged {
        return Ok(());
    }
    let fail = || format!("cannot write {}", path.display());
    let dir = path.parent().context("a file lies in a directory")?;
    fs::create_dir_all(dir).with_context(fail)?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    fs::write(&new, content).with_context(fail)?;
    fs::set_permissions(&new, fs::Permissions::from_mode(mode)).with_context(fail)?;

    fs::rename(&new, path).with_context(fail)
}

fn remove_file(path: &Path) -> anyhow::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn require_root(role: &str) -> anyhow::Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("this needs root: run `sudo tp-daemon {role}`");
    }

    Ok(())
}

fn has_group() -> anyhow::Result<bool> {
    Ok(group::find(GROUP)?.is_some())
}

fn has_systemd() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// Makes systemd-networkd read its files again. A version that cannot do so reads them at the next
/// boot.
fn reload_networkd() {
    if Path::new("/run/systemd/netif").is_dir() {
        let _ = run_command("networkctl", &["reload"]);
    }
}

fn start_service() -> anyhow::Result<()> {
    let version = tp_core::VERSION;
    if !has_systemd() {
        println!(
            "tp {version} is installed. systemd does not run here: `tp connect` will start the \
             root daemon through sudo."
        );
        return Ok(());
    }
    run_command("systemctl", &["daemon-reload"])?;
    run_command("systemctl", &["enable", "--quiet", UNIT])?;
    // Replaces an older one that runs; its sessions end.
    run_command("systemctl", &["restart", UNIT])?;
    println!(
        "tp {version} is installed and its root daemon runs. Members of the group {GROUP} may use \
         it: `usermod -aG {GROUP} NAME`, then NAME logs in again."
    );

    Ok(())
}

fn run_command(program: &str, args: &[&str]) -> anyhow::Result<()> {
    let line = || format!("{program} {}", args.join(" "));
    let output = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run `{}`", line()))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("`{}` failed: {}", line(), stderr.trim());
    }

    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn installed(root: &Path) -> Vec<File> {
        let files = vec![
            File {
                target: "usr/local/bin/tp".into(),
                content: b"program".to_vec(),
                mode: 0o755,
            },
            File {
                target: UNIT_FILE.into(),
                content: UNIT_TEXT.into(),
                mode: 0o644,
            },
        ];
        let mut record = Record::default();
        for file in &files {
            record.add(root, &file.target);
        }
        record.add(root, RECORD);
        write_record(root, &record).unwrap();
        for file in &files {
            write_file(&root.join(&file.target), &file.content, file.mode).unwrap();
        }

        files
    }

    fn uninstall(root: &Path) {
        run_uninstall(UninstallArgs {
            root: root.to_path_buf(),
        })
        .unwrap();
    }

    #[test]
    fn uninstalling_twice_is_fine() {
        let root = tempfile::tempdir().unwrap();

        installed(root.path());
        uninstall(root.path());
        uninstall(root.path());
    }

    #[test]
    fn a_foreign_file_is_not_overwritten() {
        let root = tempfile::tempdir().unwrap();
        let files = installed(root.path());
        fs::write(root.path().join("usr/local/bin/tp"), "another program").unwrap();

        let known = read_record(root.path()).unwrap().unwrap();

        assert!(refuse_foreign(root.path(), &files, &known).is_ok());
        assert!(refuse_foreign(root.path(), &files, &Record::default()).is_err());
    }

    #[test]
    fn what_networkd_leaves_alone_is_what_bundles_are_called() {
        let pattern = NETWORK_TEXT
            .lines()
            .find_map(|line| line.strip_prefix("Name="))
            .unwrap();

        let digits = pattern.strip_prefix(crate::datapath::LINK_PREFIX).unwrap();
        assert_eq!(digits, "[0-9a-f]".repeat(crate::datapath::LINK_DIGITS));
        assert!(NETWORK_TEXT.ends_with("[Link]\nUnmanaged=yes\n"));
    }

    #[test]
    fn the_unit_starts_the_program_where_it_is_installed() {
        let program = format!("ExecStart=/{PROGRAM_DIR}/tp-daemon root");

        assert!(UNIT_TEXT.lines().any(|line| line == program), "{UNIT_TEXT}");
    }
}
