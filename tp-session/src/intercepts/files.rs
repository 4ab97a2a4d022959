//! Files that an intercept has: made with it, readable for its user alone, removed with it.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Write as _},
    mem,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use tokio::time::timeout;
use tp_process::sync::lock;
use tp_proto::{
    fault::{Fault, FaultKind},
    local::{KeepFilesRequest, NewFile},
};

use super::{
    super::keeper::{FileIdentity, Keeper},
    EntryPhase, OwnIntercepts, unknown,
};

#[cfg(test)]
mod tests;

/// Of one intercept.
const MAX_FILES: usize = 8;
/// Bytes of one file.
const MAX_FILE: usize = 1 << 20;
/// Readable and writable for the user alone.
const MODE: u32 = 0o600;
/// Bounds the wait for a disk.
const REMOVE_TIMEOUT: Duration = Duration::from_secs(2);

/// Files of an intercept; removed when dropped.
#[derive(Debug, Default)]
pub(super) struct KeptFiles {
    paths: Vec<PathBuf>,
    on_disk: Mutex<DiskFiles>,
    /// They are gone with the process, whatever ends it.
    in_memory: Vec<OwnedFd>,
}

/// Removed when dropped, which may take as long as a disk takes.
#[derive(Debug, Default)]
struct DiskFiles {
    files: Vec<(PathBuf, FileIdentity)>,
    /// While they are open, no other file has their identity.
    open: Vec<File>,
    keeper: Option<Keeper>,
}

impl KeptFiles {
    /// Makes all files or none. `keeper` is the program that removes them if this one is killed.
    fn make(files: &[NewFile], keeper: &Path) -> Result<Self, Fault> {
        let mut kept = Self::default();
        let mut on_disk = DiskFiles::default();
        for file in files {
            let path = match file.path.as_str() {
                "" => kept.make_in_memory(&file.content).map_err(|error| {
                    let message = format!("a file in memory cannot be made: {error}");
                    Fault::new(FaultKind::Failed, message)
                })?,
                path => on_disk.make(Path::new(path), &file.content, keeper)?,
            };
            kept.paths.push(path);
        }
        kept.on_disk = Mutex::new(on_disk);

        Ok(kept)
    }

    fn make_in_memory(&mut self, content: &[u8]) -> io::Result<PathBuf> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let mut file = File::from(memfd_create("tp-env", flags)?);
        file.set_permissions(Permissions::from_mode(MODE))?;
        file.write_all(content)?;
        let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
        fcntl_add_seals(&file, seals)?;
        let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
        self.in_memory.push(file.into());

        Ok(path.into())
    }

    /// Those on disk are gone then, those in memory when the last clone of their entry is.
    fn remove(&self) {
        drop(mem::take(&mut *lock(&self.on_disk)));
    }
}

impl DiskFiles {
    /// Whoever sees the file sees it whole.
    fn make(&mut self, path: &Path, content: &[u8], keeper: &Path) -> Result<PathBuf, Fault> {
        let failed = |error: io::Error| {
            let (kind, why) = match error.kind() {
                io::ErrorKind::AlreadyExists => (
                    FaultKind::Usage,
                    "there is a file already, and tp would remove it with the intercept: name \
                     another, or remove it"
                        .to_owned(),
                ),
                _ => (FaultKind::Failed, error.to_string()),
            };
            Fault::new(kind, format!("cannot make {}: {why}", path.display()))
        };
        let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(failed(io::ErrorKind::IsADirectory.into()));
        };
        let random: String = (0..8).map(|_| fastrand::alphanumeric()).collect();
        let mut draft = std::ffi::OsString::from(".");
        draft.push(name);
        draft.push(format!(".{random}"));
        let draft = directory.join(draft);
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(MODE);
        let mut file = options.open(&draft).map_err(failed)?;
        let identity = FileIdentity::of(&file.metadata().map_err(failed)?);
        self.files.push((draft.clone(), identity.clone()));
        self.tell(keeper, [&draft, path], &identity)
            .map_err(|error| {
                let message = format!("the process that removes files cannot be started: {error}");
                Fault::new(FaultKind::Failed, message)
            })?;
        file.write_all(content).map_err(failed)?;
        // Unlike a rename it replaces nothing.
        self.open.push(file);
        fs::hard_link(&draft, path).map_err(failed)?;
        self.files.push((path.to_owned(), identity));
        fs::remove_file(&draft).map_err(failed)?;

        Ok(path.to_owned())
    }

    fn tell(
        &mut self,
        program: &Path,
        paths: [&Path; 2],
        identity: &FileIdentity,
    ) -> io::Result<()> {
        if self.keeper.is_none() {
            self.keeper = Some(Keeper::start(program)?);
        }
        let Some(keeper) = &mut self.keeper else {
            return Err(io::ErrorKind::NotConnected.into());
        };

        paths
            .into_iter()
            .try_for_each(|path| keeper.keep(path, identity))
    }
}

impl Drop for DiskFiles {
    fn drop(&mut self) {
        for (path, identity) in &self.files {
            if let Err(error) = identity.remove(path) {
                tracing::warn!(path = %path.display(), %error, "File of an intercept not removed");
            }
        }
    }
}

/// Returns when they are removed, or a disk is slow: they are removed nevertheless. To be called without
/// a lock.
pub(super) async fn remove_all(all: Vec<Arc<KeptFiles>>) {
    if all.is_empty() {
        return;
    }
    let removal = tokio::task::spawn_blocking(move || all.iter().for_each(|files| files.remove()));
    if timeout(REMOVE_TIMEOUT, removal).await.is_err() {
        tracing::warn!("Files of intercepts not removed in time");
    }
}

impl OwnIntercepts {
    /// Makes files that are removed when the intercept ends, in whatever way; returns their paths.
    pub(in super::super) async fn keep_files(
        &self,
        request: KeepFilesRequest,
    ) -> Result<Vec<String>, Fault> {
        let KeepFilesRequest { intercept, files } = request;
        check(&files)?;
        let wanted = {
            let entries = self.entries.borrow();
            let entry = entries.get(&intercept);
            let entry = entry.filter(|entry| entry.phase == EntryPhase::Standing);
            let entry =
                entry.ok_or_else(|| Fault::new(FaultKind::Usage, unknown(&intercept, &entries)))?;
            Arc::clone(&entry.wanted)
        };
        // What a disk does may take long.
        let made = tokio::task::spawn_blocking(move || {
            KeptFiles::make(&files, Path::new("/proc/self/exe"))
        });
        let made = made.await.map_err(|error| {
            Fault::new(FaultKind::Failed, format!("files were not made: {error}"))
        })??;
        let paths = made.paths.iter().map(|path| path.display().to_string());
        let (paths, made) = (paths.collect(), Arc::new(made));
        let mut is_kept = false;
        self.update(&wanted, |entry| {
            let count: usize = entry.files.iter().map(|it| it.paths.len()).sum();
            let is_standing = entry.phase == EntryPhase::Standing;
            is_kept = is_standing && count + made.paths.len() <= MAX_FILES;
            if is_kept {
                entry.files.push(Arc::clone(&made));
            }
        });
        if is_kept {
            return Ok(paths);
        }
        remove_all(vec![made]).await;
        let message = format!("the intercept {intercept} was ended meanwhile, or has enough files");

        Err(Fault::new(FaultKind::Failed, message))
    }

    /// Removes the files of all intercepts.
    pub(super) async fn remove_files(&self) {
        let mut files = Vec::new();
        self.entries.send_if_modified(|entries| {
            for entry in entries.values_mut() {
                files.append(&mut entry.files);
            }
            false
        });
        remove_all(files).await;
    }
}

fn check(files: &[NewFile]) -> Result<(), Fault> {
    let usage = |message: String| Fault::new(FaultKind::Usage, message);
    if files.len() > MAX_FILES {
        return Err(usage(format!("an intercept has at most {MAX_FILES} files")));
    }
    for file in files {
        if !file.path.is_empty() && !Path::new(&file.path).is_absolute() {
            return Err(usage(format!("{} is no absolute path", file.path)));
        }
        if file.content.len() > MAX_FILE {
            return Err(usage(format!("a file has at most {MAX_FILE} bytes")));
        }
    }

    Ok(())
}
