//! The process that removes the files of a session that is gone.

#![expect(clippy::unwrap_used, reason = "a failed step fails its test")]

use std::{
    fs,
    io::Write as _,
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::Path,
    process::{Child, Command, Stdio},
};

use tp_session::KEEPER_FLAG;

fn keeper() -> Child {
    Command::new(env!("CARGO_BIN_EXE_tp-session"))
        .arg(KEEPER_FLAG)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap()
}

/// What the session writes when it makes a file.
fn line(path: &Path, inode_of: &Path) -> Vec<u8> {
    let metadata = fs::metadata(inode_of).unwrap();
    let mut line = format!("{} {} ", metadata.dev(), metadata.ino()).into_bytes();
    line.extend_from_slice(path.as_os_str().as_bytes());
    line.push(0);

    line
}

#[test]
fn the_files_of_a_session_that_is_gone_are_removed_and_no_others() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    for name in ["ours", "our\nother file", "replaced", "not ours"] {
        fs::write(path(name), "A=1\n").unwrap();
    }
    let mut keeper = keeper();
    let mut input = keeper.stdin.take().unwrap();
    input
        .write_all(&line(&path("ours"), &path("ours")))
        .unwrap();
    let other = path("our\nother file");
    input.write_all(&line(&other, &other)).unwrap();
    // Somebody has put another file there, and one was never made.
    input
        .write_all(&line(&path("replaced"), &path("not ours")))
        .unwrap();
    input
        .write_all(&line(&path("absent"), &path("ours")))
        .unwrap();
    // The session was killed in the middle of a line.
    let whole = line(&path("not ours"), &path("not ours"));
    input.write_all(&whole[..whole.len() - 5]).unwrap();
    assert!(path("ours").exists());

    drop(input);

    assert!(keeper.wait().unwrap().success());
    let mut left: Vec<_> = fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    left.sort();
    assert_eq!(left, ["not ours", "replaced"]);
}
