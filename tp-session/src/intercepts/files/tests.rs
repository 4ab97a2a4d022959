use std::{os::unix::fs::MetadataExt as _, thread};

use tempfile::TempDir;

use super::*;

/// Files in a directory, and a keeper that removes nothing.
struct Desk {
    dir: TempDir,
    keeper: PathBuf,
}

impl Desk {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let keeper = dir.path().join("keeper");
        fs::write(&keeper, "#!/bin/sh\nexec cat > /dev/null\n").unwrap();
        fs::set_permissions(&keeper, Permissions::from_mode(0o700)).unwrap();

        Self { dir, keeper }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn file(&self, name: &str) -> NewFile {
        NewFile {
            path: self.path(name).display().to_string(),
            content: b"TOKEN=hunter2\n".to_vec(),
        }
    }

    fn make(&self, files: &[NewFile]) -> Result<KeptFiles, Fault> {
        // Another test's fork may still have the script open for writing.
        loop {
            match KeptFiles::make(files, &self.keeper) {
                Err(fault) if fault.message.contains("Text file busy") => thread::yield_now(),
                made => return made,
            }
        }
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir.path()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.filter(|name| name != "keeper").collect();
        names.sort();

        names
    }
}

#[test]
fn a_file_is_its_users_alone_and_is_removed_with_the_intercept() {
    let desk = Desk::new();

    let kept = desk
        .make(&[desk.file("a.env"), desk.file("b.json")])
        .unwrap();

    assert_eq!(desk.names(), ["a.env", "b.json"]);
    let metadata = fs::metadata(desk.path("a.env")).unwrap();
    assert_eq!(metadata.mode() & 0o7777, 0o600);
    assert_eq!(fs::read(desk.path("a.env")).unwrap(), b"TOKEN=hunter2\n");
    drop(kept);
    assert_eq!(desk.names(), [""; 0]);
}

#[tokio::test]
async fn whoever_still_knows_the_intercept_holds_up_neither_its_files_nor_their_keeper() {
    let desk = Desk::new();
    let kept = Arc::new(desk.make(&[desk.file("a.env")]).unwrap());
    assert!(lock(&kept.on_disk).keeper.is_some());

    remove_all(vec![Arc::clone(&kept)]).await;

    assert_eq!(desk.names(), [""; 0]);
    assert!(lock(&kept.on_disk).keeper.is_none());
    // What is at its path then is somebody else's.
    fs::write(desk.path("a.env"), "another").unwrap();
    drop(kept);
    assert_eq!(desk.names(), ["a.env"]);
}

#[test]
fn a_file_in_memory_has_a_path_for_its_user_until_the_intercept_ends() {
    let file = NewFile {
        path: String::new(),
        content: b"A=1\n".to_vec(),
    };
    let kept = KeptFiles::make(&[file], Path::new("/nowhere")).unwrap();
    let path = kept.paths[0].clone();

    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
    // Each reader begins at the beginning.
    for _ in 0..2 {
        assert_eq!(fs::read(&path).unwrap(), b"A=1\n");
    }
    let write = OpenOptions::new().append(true).open(&path);
    assert!(write.and_then(|mut file| file.write_all(b"B=2")).is_err());
    drop(kept);
    assert!(fs::read(&path).is_err() || fs::read(&path).unwrap() != b"A=1\n");
}

#[test]
fn no_file_of_somebody_else_is_replaced_or_removed() {
    let desk = Desk::new();
    fs::write(desk.path("mine"), "precious").unwrap();

    let refused = desk.make(&[desk.file("a.env"), desk.file("mine")]);

    let fault = refused.unwrap_err();
    assert_eq!(fault.kind, FaultKind::Usage);
    assert!(
        fault.message.contains("mine: there is a file already"),
        "{fault}"
    );
    // None of several, and no draft.
    assert_eq!(desk.names(), ["mine"]);
    assert_eq!(fs::read_to_string(desk.path("mine")).unwrap(), "precious");

    let kept = desk.make(&[desk.file("a.env")]).unwrap();
    fs::remove_file(desk.path("a.env")).unwrap();
    fs::write(desk.path("a.env"), "another").unwrap();
    drop(kept);
    assert_eq!(desk.names(), ["a.env", "mine"]);
}

#[test]
fn a_directory_that_is_not_there_and_a_keeper_that_does_not_start_are_told() {
    let desk = Desk::new();
    let fault = desk.make(&[desk.file("absent/a.env")]).unwrap_err();
    assert!(fault.message.contains("absent/a.env"), "{fault}");

    let fault = KeptFiles::make(&[desk.file("a.env")], Path::new("/nowhere")).unwrap_err();
    assert!(fault.message.contains("cannot be started"), "{fault}");
    assert_eq!(desk.names(), [""; 0]);
}

#[test]
fn what_is_asked_for_is_bounded() {
    let file = |path: &str, size| NewFile {
        path: path.into(),
        content: vec![b'x'; size],
    };

    assert!(check(&[file("", MAX_FILE), file("/a", 0)]).is_ok());
    assert!(check(&[file("", MAX_FILE + 1)]).is_err());
    assert!(check(&[file("a.env", 1)]).is_err());
    assert!(check(&vec![file("", 1); MAX_FILES + 1]).is_err());
    let shown = format!("{:?}", file("/a", 3));
    assert!(shown.contains("/a") && !shown.contains("120"), "{shown}");
}
