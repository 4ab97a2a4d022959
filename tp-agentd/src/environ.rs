//! An environment on its way to the agent: bytes in a sealed file in memory.

use std::{
    fs::File,
    io::{self, Seek as _, Write as _},
    os::fd::OwnedFd,
};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

/// Returns whether each entry has a name and `=`. A process that writes its title over its environment
/// leaves other text, or nothing. `placed` is the length that the kernel placed; without it nothing is
/// no environment: of a process that is about to start a program, none can be read.
pub(crate) fn is_intact(environ: &[u8], placed: Option<u64>) -> bool {
    if placed.map_or(environ.is_empty(), |placed| placed != environ.len() as u64) {
        return false;
    }
    let Some(entries) = environ.strip_suffix(b"\0") else {
        return environ.is_empty();
    };

    entries
        .split(|byte| *byte == 0)
        .all(|entry| entry.iter().position(|byte| *byte == b'=').unwrap_or(0) > 0)
}

/// A file that nobody can change, at its beginning.
pub(crate) fn sealed(bytes: &[u8]) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut file = File::from(memfd_create("environ", flags)?);
    file.write_all(bytes)?;
    file.rewind()?;
    let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    fcntl_add_seals(&file, seals)?;

    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_environment_that_was_written_over_is_recognised() {
        assert!(is_intact(b"A=1\0B=\0C=x=y\0", None));
        assert!(is_intact(b"A=1\0", Some(4)));
        assert!(is_intact(b"", Some(0)));
        assert!(!is_intact(b"", None));
        assert!(!is_intact(b"", Some(4)));
        assert!(!is_intact(b"nginx: master process\0\0\0", None));
        assert!(!is_intact(b"A=1\0\0", None));
        assert!(!is_intact(b"A=1\0=x\0", None));
        assert!(!is_intact(b"A=1", None));
    }

    #[test]
    fn what_is_handed_out_cannot_be_changed() {
        let fd = sealed(b"A=1\0").unwrap();
        let mut file = File::from(fd);

        assert!(file.write_all(b"x").is_err());
        file.rewind().unwrap();
        assert_eq!(io::read_to_string(file).unwrap(), "A=1\0");
    }
}
