//! Kernels of Debian, as apt offers them: fetched and unpacked, not installed.

use std::{
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{paths, run};

/// Neither for clouds, which lacks drivers, nor for real time.
const FLAVOUR: &str = "-amd64";

/// A kernel and its modules.
pub(super) struct Kernel {
    /// As `uname -r` shows it.
    pub(super) release: String,
    /// What the package has, by its paths.
    pub(super) root: PathBuf,
}

impl Kernel {
    /// The newest kernel of a series ("6.1") that apt offers, if it offers any.
    pub(super) fn find(series: &str) -> Result<Option<Self>> {
        let mut found = newest(series, &offered(series)?);
        if found.is_none() && run::is_root() {
            update()?;
            found = newest(series, &offered(series)?);
        }

        Ok(found.map(|release| Self {
            root: paths::target().join("vm").join(&release),
            release,
        }))
    }

    pub(super) fn image(&self) -> PathBuf {
        self.root.join("boot/vmlinuz-".to_owned() + &self.release)
    }

    /// Fetches and unpacks it, once.
    pub(super) fn ensure(&self) -> Result<()> {
        // Written last.
        let index = self.modules().join("modules.dep");
        if index.exists() {
            return Ok(());
        }
        remove(&self.root)?;
        let folder = tempfile::tempdir().context("making a folder to download to")?;
        self.unpack(&self.fetch(folder.path())?)?;

        run::logged(
            "depmod",
            Command::new("depmod")
                .arg("-b")
                .arg(&self.root)
                .arg(&self.release),
        )
    }

    /// Downloads the package. The index of apt may be older than the archive.
    fn fetch(&self, folder: &Path) -> Result<PathBuf> {
        let package = format!("linux-image-{}", self.release);
        println!("    fetching {package}");
        let download = || {
            run::logged(
                "vm-kernel",
                Command::new("apt-get")
                    .args(["-q", "download", &package])
                    .current_dir(folder),
            )
        };
        if let Err(refused) = download() {
            if !run::is_root() {
                return Err(refused);
            }
            update()?;
            download()?;
        }
        let mut files = fs::read_dir(folder)?.flatten().map(|entry| entry.path());

        files
            .find(|file| file.extension().is_some_and(|it| it == "deb"))
            .with_context(|| format!("apt-get has not left {package} in {}", folder.display()))
    }

    fn unpack(&self, package: &Path) -> Result<()> {
        fs::create_dir_all(&self.root)?;
        run::logged(
            "vm-kernel",
            Command::new("dpkg-deb")
                .arg("-x")
                .arg(package)
                .arg(&self.root),
        )?;
        // Since Debian 13 the package has them below /usr.
        let lib = self.root.join("lib");
        if !lib.exists() {
            symlink("usr/lib", &lib).with_context(|| format!("making {}", lib.display()))?;
        }
        if !self.modules().is_dir() {
            bail!("{} has no modules", package.display());
        }

        Ok(())
    }

    fn modules(&self) -> PathBuf {
        self.root.join("lib/modules").join(&self.release)
    }

    /// The files of modules and of those that they need, in the order in which they must be loaded.
    pub(super) fn files_of(&self, modules: &[&str]) -> Result<Vec<PathBuf>> {
        let shown = run::output(
            Command::new("modprobe")
                .arg("-d")
                .arg(&self.root)
                .args(["-S", &self.release, "--show-depends", "-a"])
                .args(modules),
        )?;

        Ok(in_order(&shown))
    }
}

/// Names of packages, in no order.
fn offered(series: &str) -> Result<String> {
    run::output(Command::new("apt-cache").args(["pkgnames", &format!("linux-image-{series}.")]))
}

fn update() -> Result<()> {
    run::logged("apt-get", Command::new("apt-get").args(["-q", "update"]))
}

fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.with_context(|| format!("removing {}", folder.display())),
    }
}

/// The release of the newest kernel among the packages.
fn newest(series: &str, packages: &str) -> Option<String> {
    let prefix = format!("{series}.");

    packages
        .lines()
        .filter_map(|package| package.strip_prefix("linux-image-"))
        .filter(|release| {
            let version = release.strip_suffix(FLAVOUR).unwrap_or_default();
            // The name of another flavour comes before that of the architecture.
            let last = version.rsplit('-').next().unwrap_or_default();
            release.starts_with(&prefix) && last.starts_with(|first: char| first.is_ascii_digit())
        })
        .max_by_key(|release| numbers(release))
        .map(str::to_owned)
}

fn numbers(release: &str) -> Vec<u64> {
    release
        .split(|character: char| !character.is_ascii_digit())
        .filter_map(|digits| digits.parse().ok())
        .collect()
}

/// The files that modprobe names, each once. What is built into the kernel has none.
fn in_order(shown: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for line in shown.lines() {
        let file = line.strip_prefix("insmod ").map(str::trim);
        if let Some(file) = file.map(PathBuf::from)
            && !files.contains(&file)
        {
            files.push(file);
        }
    }

    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_kernel_of_a_series_is_taken_and_no_other_flavour() {
        let packages = "linux-image-6.1.0-9-amd64\n\
            linux-image-6.1.0-49-amd64\n\
            linux-image-6.1.0-50-cloud-amd64\n\
            linux-image-6.1.0-50-rt-amd64\n\
            linux-image-6.1.0-50-amd64-dbg\n\
            linux-image-6.1.0-50-amd64-unsigned\n\
            linux-image-6.12-amd64\n\
            linux-image-6.12.99+deb12-amd64\n\
            linux-image-6.12.101+deb12-amd64\n\
            linux-image-6.12.102+deb12-cloud-amd64\n";

        for (series, release) in [
            ("6.1", Some("6.1.0-49-amd64")),
            ("6.12", Some("6.12.101+deb12-amd64")),
            ("6.6", None),
        ] {
            assert_eq!(newest(series, packages).as_deref(), release);
        }
    }

    #[test]
    fn modules_are_loaded_once_each_and_after_those_that_they_need() {
        let shown = "insmod /m/9pnet.ko.xz \n\
            insmod /m/9pnet_virtio.ko.xz \n\
            builtin virtio_pci\n\
            insmod /m/9pnet.ko.xz \n\
            insmod /m/9p.ko.xz \n";

        let files = ["/m/9pnet.ko.xz", "/m/9pnet_virtio.ko.xz", "/m/9p.ko.xz"];
        assert_eq!(in_order(shown), files.map(PathBuf::from));
    }
}
