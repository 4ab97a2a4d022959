//! Paths of the kubeconfigs for a session: it is another process, with other descriptors and
//! another directory, and reads them again to renew itself.

use std::{
    fs,
    os::unix::fs::FileTypeExt as _,
    path::{Path, PathBuf},
};

use tp_kube::KubeconfigOptions;
use tp_proto::fault::{Fault, FaultKind};

/// Absolute paths of the kubeconfigs. Refuses pipes, which a session cannot read twice.
pub(crate) fn for_session(options: &KubeconfigOptions) -> Result<Vec<String>, Fault> {
    options
        .kubeconfigs
        .iter()
        .map(|path| utf8(&lasting(path)?))
        .collect()
}

fn lasting(path: &Path) -> Result<PathBuf, Fault> {
    if !path.is_absolute() {
        let message = format!(
            "the path {} leads nowhere: the current directory is gone",
            path.display()
        );
        return Err(Fault::new(FaultKind::Config, message));
    }
    // The session reports a missing file.
    let Ok(found) = fs::metadata(path) else {
        return Ok(path.to_owned());
    };
    // The file behind /dev/stdin or /dev/fd/3 may have a name.
    let is_own = path.starts_with("/dev") || path.starts_with("/proc");
    let named = match is_own {
        true => fs::canonicalize(path).ok(),
        false => Some(path.to_owned()),
    };
    match named {
        Some(named) if !found.file_type().is_fifo() => Ok(named),
        _ => {
            let message = format!(
                "the kubeconfig {} can be read once, and a session reads its kubeconfig again to renew \
                 itself: write it to a file and name that with --kubeconfig",
                path.display()
            );
            Err(Fault::new(FaultKind::Config, message))
        }
    }
}

pub(crate) fn utf8(path: &Path) -> Result<String, Fault> {
    path.to_str().map(str::to_owned).ok_or_else(|| {
        let message = format!("the path {} is not UTF-8", path.display());
        Fault::new(FaultKind::Config, message)
    })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    fn asked(kubeconfigs: &[&Path]) -> Result<Vec<String>, Fault> {
        let kubeconfigs = kubeconfigs.iter().map(|it| it.to_path_buf()).collect();
        for_session(&KubeconfigOptions {
            kubeconfigs,
            ..KubeconfigOptions::default()
        })
    }

    fn descriptor(of: &impl AsRawFd) -> PathBuf {
        format!("/dev/fd/{}", of.as_raw_fd()).into()
    }

    #[test]
    fn what_can_be_read_once_is_refused_by_its_name() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let (pipe, _writer) = std::io::pipe().unwrap();
        let nameless = tempfile::tempfile().unwrap();
        for path in [descriptor(&pipe), descriptor(&nameless)] {
            let refusal = asked(&[file.path(), &path]).unwrap_err();

            assert_eq!(refusal.kind, FaultKind::Config);
            let named = format!("the kubeconfig {} can be read once", path.display());
            assert!(refusal.message.starts_with(&named), "{refusal}");
        }
    }

    #[test]
    fn a_file_behind_a_descriptor_is_called_by_its_name() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_str().unwrap().to_owned();

        assert_eq!(asked(&[&descriptor(&file)]).unwrap(), [path]);
    }

    #[test]
    fn other_paths_stay_as_they_are() {
        for path in ["/dev/null", "/absent/config", "/dev/absent"] {
            assert_eq!(asked(&[Path::new(path)]).unwrap(), [path]);
        }
    }

    #[test]
    fn without_a_current_directory_a_relative_path_is_refused() {
        assert!(asked(&[Path::new("config")]).is_err());
    }
}
