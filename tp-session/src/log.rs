//! A log that stays small, whatever is logged and however long the session runs.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

/// Largest log file, in bytes.
const MAX_FILE_SIZE: u64 = 4 << 20;
/// The number of older files that are kept; `session.log.1` is the youngest.
const MAX_OLD_FILES: u32 = 4;

/// A log file that is rotated when it is full.
#[derive(Debug)]
pub(crate) struct LogFile {
    path: PathBuf,
    file: File,
    length: u64,
    limit: u64,
}

impl LogFile {
    pub(crate) fn open(path: PathBuf) -> io::Result<Self> {
        Self::with_limit(path, MAX_FILE_SIZE)
    }

    fn with_limit(path: PathBuf, limit: u64) -> io::Result<Self> {
        let file = append_to(&path)?;
        let length = file.metadata()?.len();

        Ok(Self {
            path,
            file,
            length,
            limit,
        })
    }

    fn rotate(&mut self) -> io::Result<()> {
        for age in (0..MAX_OLD_FILES).rev() {
            // A missing file is no error.
            match fs::rename(aged(&self.path, age), aged(&self.path, age + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        self.file = append_to(&self.path)?;
        self.length = 0;

        Ok(())
    }
}

impl Write for LogFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let more = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        if self.length > 0 && self.length.saturating_add(more) > self.limit {
            self.rotate()?;
        }
        let written = self.file.write(bytes)?;
        self.length += u64::try_from(written).unwrap_or_default();

        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn append_to(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).open(path)
}

fn aged(path: &Path, age: u32) -> PathBuf {
    if age == 0 {
        return path.to_owned();
    }
    let mut path = path.as_os_str().to_owned();
    path.push(format!(".{age}"));

    path.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINES: usize = 1000;

    fn line(number: usize) -> String {
        format!("this is line {number:04}\n")
    }

    #[test]
    fn a_log_of_a_session_stays_within_its_bound() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("session.log");
        let limit = 1000;

        let mut log = LogFile::with_limit(path.clone(), limit).unwrap();
        for number in 0..LINES {
            log.write_all(line(number).as_bytes()).unwrap();
        }
        // One that starts again goes on in the same file.
        let mut log = LogFile::with_limit(path.clone(), limit).unwrap();
        log.write_all(line(LINES).as_bytes()).unwrap();

        let files = fs::read_dir(dir.path()).unwrap().map(Result::unwrap);
        let sizes: Vec<u64> = files.map(|file| file.metadata().unwrap().len()).collect();
        assert_eq!(sizes.len(), 5);
        assert!(sizes.iter().all(|size| *size <= limit), "{sizes:?}");
        let newest = fs::read_to_string(&path).unwrap();
        assert!(newest.ends_with(&line(LINES)), "{newest}");
        let before = fs::read_to_string(aged(&path, 1)).unwrap();
        let first_of_newest = newest.lines().next().unwrap();
        let number: usize = first_of_newest[13..].parse().unwrap();
        assert!(before.ends_with(&line(number - 1)), "a line is lost");
    }
}
