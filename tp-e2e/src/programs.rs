//! The programs under test, and other files of the checkout, where every account can use them.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use crate::cluster::testbed;

/// The programs under test, in a folder that only root can change and everybody can use.
pub fn programs() -> &'static Path {
    static PROGRAMS: OnceLock<PathBuf> = OnceLock::new();
    PROGRAMS.get_or_init(|| {
        let folder = testbed().dir().join("tp");
        fs::create_dir_all(&folder).expect("the testbed's folder is writable: run as root");
        for name in ["tp", "tp-daemon", "tp-session", "name-server"] {
            let built = built().join(name);
            assert!(
                built.exists(),
                "{} is missing: build the programs with `cargo build --release`",
                built.display()
            );
            install(&built, &folder);
        }
        folder
    })
}

/// A file of the checkout where every account can read it: the checkout may lie below a folder
/// that others may not enter.
#[track_caller]
pub fn readable_by_all(file: &Path) -> PathBuf {
    install(file, programs())
}

/// Copies a file, unless it is there already.
#[track_caller]
fn install(file: &Path, folder: &Path) -> PathBuf {
    let bytes = fs::read(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let name = file.file_name().expect("a file has a name");
    let installed = folder.join(name);
    if fs::read(&installed).is_ok_and(|old| old == bytes) {
        return installed;
    }
    // Replaced by a rename: the old program may still run, and another test may read it.
    let part = folder.join(format!("{}.{}", name.display(), std::process::id()));
    fs::write(&part, bytes).expect("the testbed's folder is writable");
    fs::set_permissions(&part, fs::Permissions::from_mode(0o755)).expect("an own file");
    fs::rename(&part, &installed).expect("files move within a folder");

    installed
}

/// The folder of the programs: TP_BIN_DIR, or cargo's of the release profile.
fn built() -> PathBuf {
    if let Some(folder) = std::env::var_os("TP_BIN_DIR") {
        return PathBuf::from(folder);
    }
    let test = std::env::current_exe().expect("a test has a program");
    test.ancestors()
        .find(|folder| folder.ends_with("release") || folder.ends_with("debug"))
        .and_then(Path::parent)
        .expect("test programs are in cargo's target folder")
        .join("release")
}

/// The archive of the release that `cargo xtask dist` or `test` made of these programs.
#[track_caller]
pub fn release() -> PathBuf {
    let archive = built().with_file_name("dist").join(format!(
        "tp-{}-linux-{}.tar.gz",
        env!("CARGO_PKG_VERSION"),
        std::env::consts::ARCH
    ));
    assert!(
        archive.exists(),
        "{} is missing: make it with `cargo xtask dist`",
        archive.display()
    );
    archive
}
