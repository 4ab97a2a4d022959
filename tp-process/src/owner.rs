//! Checks that only root can replace a file that root runs for a user.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

const WRITABLE_BY_OTHERS: u32 = 0o022;
const STICKY: u32 = 0o1000;

/// Finds the first part of `path`, beginning with the file itself, that somebody besides root can
/// replace; `None` if root alone can.
///
/// # Errors
///
/// Those of realpath(3) and lstat(2), such as for a missing file.
pub fn replaceable_part(path: &Path) -> io::Result<Option<PathBuf>> {
    for part in path.canonicalize()?.ancestors() {
        let metadata = fs::symlink_metadata(part)?;
        // In a sticky directory such as /tmp, only a file's owner can replace it.
        let is_sticky = metadata.is_dir() && metadata.mode() & STICKY != 0;
        let is_open = !is_sticky && metadata.mode() & WRITABLE_BY_OTHERS != 0;
        if metadata.uid() != 0 || is_open {
            return Ok(Some(part.to_owned()));
        }
    }

    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_file_is_roots_only_if_all_above_it_is() {
        assert_eq!(replaceable_part(Path::new("/usr/bin/env")).unwrap(), None);

        let dir = tempfile::tempdir().unwrap();
        let above = dir.path().canonicalize().unwrap();
        let file = above.join("release/bin/tp-daemon");
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, "").unwrap();
        fs::set_permissions(&above, fs::Permissions::from_mode(0o777)).unwrap();

        let part = replaceable_part(&file).unwrap().unwrap();
        let is_roots = fs::metadata(&file).unwrap().uid() == 0;
        assert_eq!(part, if is_roots { above } else { file });
    }

    #[test]
    fn what_is_not_there_is_an_error() {
        assert!(replaceable_part(Path::new("/absent/tp-daemon")).is_err());
    }
}
