//! `tp gather-logs`.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::Context as _;
use flate2::{Compression, write::GzEncoder};
use serde::Serialize;
use tp_proto::local::StatusRequest;

use crate::{cli::GatherLogsArgs, client, output::Output, redact::redact, root_daemon};

/// Bytes taken from the end of each log.
const LOG_BYTES: u64 = 8 * 1024 * 1024;
const JOURNAL_LINES: &str = "20000";
/// Facts about the machine that explain most failures.
const FACTS: [(&str, &str); 8] = [
    ("os-release", "/etc/os-release"),
    ("kernel", "/proc/version"),
    ("resolv.conf", "/etc/resolv.conf"),
    ("nsswitch.conf", "/etc/nsswitch.conf"),
    ("routes", "/proc/net/route"),
    ("interfaces", "/proc/net/dev"),
    ("mounts", "/proc/self/mounts"),
    ("cgroup", "/proc/self/cgroup"),
];

#[derive(Debug, Serialize)]
struct Gathered {
    file: PathBuf,
    entries: Vec<String>,
}

pub(crate) async fn run(args: GatherLogsArgs, output: Output) -> anyhow::Result<()> {
    let stamp = jiff::Timestamp::now()
        .strftime("%Y%m%dT%H%M%SZ")
        .to_string();
    let name = format!("tp-logs-{stamp}");
    let path = args.file.unwrap_or_else(|| format!("{name}.tar.gz").into());
    let path = std::path::absolute(&path)?;

    let mut entries = vec![
        ("status.json".to_owned(), status().await),
        (
            "versions.json".to_owned(),
            serde_json::to_string_pretty(&super::version::versions().await)?,
        ),
        (
            "root-daemon.txt".to_owned(),
            format!("{:?}\n", root_daemon::hello()),
        ),
    ];
    entries.extend(logs_in(&tp_ipc::state_dir()));
    entries.extend(journal());
    for (name, path) in FACTS {
        if let Ok(text) = fs::read_to_string(path) {
            entries.push((format!("facts/{name}"), text));
        }
    }

    write(&path, &name, &entries)?;
    let gathered = Gathered {
        entries: entries.into_iter().map(|(name, _)| name).collect(),
        file: path,
    };

    output.print(&gathered, &format!("{}\n", gathered.file.display()))
}

async fn status() -> String {
    let status = match client::find().await {
        Ok(Some(mut session)) => client::ask(session.status(StatusRequest {})).await,
        Ok(None) => Ok(super::status::disconnected()),
        Err(fault) => Err(fault),
    };

    match status {
        Ok(status) => serde_json::to_string_pretty(&status).expect("a status has a JSON form"),
        Err(fault) => format!("{fault}\n"),
    }
}

/// The ends of all logs in a directory.
fn logs_in(dir: &Path) -> Vec<(String, String)> {
    let Ok(files) = fs::read_dir(dir) else {
        return Vec::new();
    };
    let mut logs: Vec<(String, String)> = files
        .filter_map(Result::ok)
        .filter_map(|file| {
            let name = file.file_name().into_string().ok()?;
            let is_log = name.contains("log") && file.file_type().ok()?.is_file();
            let text = is_log.then(|| end_of(&file.path()))?.ok()?;
            Some((format!("logs/{name}"), text))
        })
        .collect();
    logs.sort();

    logs
}

fn end_of(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_BYTES)))?;
    let mut bytes = Vec::new();
    file.take(LOG_BYTES).read_to_end(&mut bytes)?;

    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The service's journal, as far as this user may read it.
fn journal() -> Option<(String, String)> {
    let result = Command::new("journalctl")
        .args([
            "--unit",
            "tp-daemon",
            "--no-pager",
            "--quiet",
            "--lines",
            JOURNAL_LINES,
        ])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&result.stdout).into_owned();

    (!text.trim().is_empty()).then(|| ("logs/journal.log".to_owned(), text))
}

/// Writes the archive, readable by its owner only, with secrets removed from every entry.
fn write(path: &Path, top: &str, entries: &[(String, String)]) -> anyhow::Result<()> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("cannot write {}", path.display()))?;
    let mut archive = tar::Builder::new(GzEncoder::new(file, Compression::default()));
    let modified = u64::try_from(jiff::Timestamp::now().as_second()).unwrap_or(0);
    for (name, text) in entries {
        let text = redact(text);
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(modified);
        archive
            .append_data(&mut header, format!("{top}/{name}"), text.as_bytes())
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    archive
        .into_inner()
        .and_then(GzEncoder::finish)
        .and_then(|file| file.sync_all())
        .with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use flate2::read::GzDecoder;

    use super::*;

    #[test]
    fn no_entry_of_the_archive_holds_a_secret() {
        let dir = tempfile::tempdir().unwrap();
        let log = "INFO Connected\nDEBUG Asked header=\"Authorization: Bearer opaque-token\"\n\
                   -----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n";
        fs::write(dir.path().join("session.log"), log).unwrap();
        fs::write(dir.path().join("config"), "client-key-data: TUhj").unwrap();
        let path = dir.path().join("out.tar.gz");

        write(&path, "top", &logs_in(dir.path())).unwrap();

        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let mut archive = tar::Archive::new(GzDecoder::new(File::open(&path).unwrap()));
        let mut names = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            names.push(entry.path().unwrap().display().to_string());
            assert!(text.contains("Connected"), "{text}");
            for secret in ["opaque-token", "MIIB", "TUhj"] {
                assert!(!text.contains(secret), "{text}");
            }
        }
        assert_eq!(names, ["top/logs/session.log"]);
    }

    #[test]
    fn only_the_end_of_a_long_log_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("long.log");
        let file = File::create(&path).unwrap();
        file.set_len(LOG_BYTES + 100).unwrap();

        let text = end_of(&path).unwrap();

        assert_eq!(text.len() as u64, LOG_BYTES);
    }
}
