//! A process that removes files when its session is gone, even if that was killed. It is started before
//! the first of the files has any content, and is told by its input of those that it may remove.

use std::{
    fs, io,
    io::{Read as _, Write as _},
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
};

/// What makes this program the keeper.
pub const KEEPER_FLAG: &str = "--keep-files";
/// More of its input is not read.
const MAX_INPUT: u64 = 1 << 20;

/// A file by its identity: another one at its path is somebody else's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FileIdentity {
    device: u64,
    inode: u64,
}

impl FileIdentity {
    pub(super) fn of(metadata: &fs::Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
        }
    }

    /// Removes the file, if it is still there.
    pub(super) fn remove(&self, path: &Path) -> io::Result<()> {
        let found = fs::symlink_metadata(path);
        match found {
            Ok(metadata) if Self::of(&metadata) == *self => fs::remove_file(path),
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// The session's end, to be dropped when the files are removed. When it is lost with its process, the
/// keeper removes what is left of them.
#[derive(Debug)]
pub(super) struct Keeper {
    input: Option<ChildStdin>,
    process: Child,
}

impl Keeper {
    /// Starts this very program once more, or another one.
    pub(super) fn start(program: &Path) -> io::Result<Self> {
        let mut process = Command::new(program)
            .arg(KEEPER_FLAG)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let input = process.stdin.take();

        Ok(Self { input, process })
    }

    /// Tells of a file. What is written is read though this process may be gone by then.
    pub(super) fn keep(&mut self, path: &Path, file: &FileIdentity) -> io::Result<()> {
        let Some(input) = &mut self.input else {
            return Err(io::ErrorKind::BrokenPipe.into());
        };
        let FileIdentity { device, inode } = file;
        let mut line = format!("{device} {inode} ").into_bytes();
        line.extend_from_slice(path.as_os_str().as_bytes());
        line.push(0);

        input.write_all(&line)
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.input.take());
        // The files are gone by then. A stopped process must hold nobody up.
        let ended = self.process.kill().and_then(|()| self.process.wait());
        if let Err(error) = ended {
            tracing::debug!(%error, "Keeper of files not ended");
        }
    }
}

/// Removes the files that it was told of when its input ends: `DEVICE INODE PATH`, each with a NUL
/// behind.
///
/// # Errors
///
/// If a file is still there that should not be.
pub fn keep_files(input: impl io::Read) -> io::Result<()> {
    let mut bytes = Vec::new();
    // What was read before a failure counts.
    let read = input.take(MAX_INPUT).read_to_end(&mut bytes);
    let mut result = read.map(drop);
    for (file, path) in bytes.split(|byte| *byte == 0).filter_map(parsed) {
        // One that cannot be removed leaves the others.
        result = result.and(file.remove(&path));
    }

    result
}

fn parsed(line: &[u8]) -> Option<(FileIdentity, PathBuf)> {
    let mut words = line.splitn(3, |byte| *byte == b' ');
    let mut number = || std::str::from_utf8(words.next()?).ok()?.parse().ok();
    let (device, inode) = (number()?, number()?);
    let path = std::ffi::OsStr::from_bytes(words.next()?);

    Some((FileIdentity { device, inode }, path.into()))
}
