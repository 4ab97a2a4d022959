//! Checks that the tests leave the user's `~/.kube` alone.

use std::{
    collections::BTreeMap,
    env, fs, io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use anyhow::{Result, bail};

/// Files of a folder, each with its modification time.
pub(super) struct Untouched {
    folder: PathBuf,
    before: BTreeMap<PathBuf, SystemTime>,
}

impl Untouched {
    /// Records `~/.kube`.
    pub(super) fn kube() -> Result<Self> {
        let home = env::var_os("HOME").map_or_else(|| PathBuf::from("/"), PathBuf::from);
        Self::folder(home.join(".kube"))
    }

    fn folder(folder: PathBuf) -> Result<Self> {
        let mut before = BTreeMap::new();
        collect(&folder, &mut before)?;
        Ok(Self { folder, before })
    }

    /// Fails if anything has changed.
    pub(super) fn check(&self) -> Result<()> {
        let mut now = BTreeMap::new();
        collect(&self.folder, &mut now)?;
        let differs = |path: &&PathBuf| self.before.get(*path) != now.get(*path);
        if let Some(path) = self.before.keys().chain(now.keys()).find(differs) {
            bail!("the tests have changed {}", path.display());
        }
        Ok(())
    }
}

fn collect(path: &Path, into: &mut BTreeMap<PathBuf, SystemTime>) -> io::Result<()> {
    let meta = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        meta => meta?,
    };
    into.insert(path.to_path_buf(), meta.modified()?);
    if meta.is_dir() {
        for entry in fs::read_dir(path)? {
            collect(&entry?.path(), into)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_file_in_a_folder_is_seen() {
        let home = tempfile::tempdir().unwrap();
        let absent = Untouched::folder(home.path().join(".kube")).unwrap();
        absent.check().unwrap();

        fs::create_dir_all(home.path().join(".kube/cache")).unwrap();
        assert!(absent.check().is_err());

        let present = Untouched::folder(home.path().join(".kube")).unwrap();
        present.check().unwrap();
        fs::write(home.path().join(".kube/cache/servers"), "").unwrap();
        let error = present.check().unwrap_err().to_string();
        assert!(error.contains(".kube/cache"), "{error}");
    }
}
