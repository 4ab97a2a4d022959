//! Files that tests read and write.

use std::{fs, path::Path};

use serde_json::Value;
use tempfile::NamedTempFile;

/// A temporary file with this content.
#[track_caller]
pub fn file_with(content: &str) -> NamedTempFile {
    let file = NamedTempFile::new().expect("a temporary file can be made");
    fs::write(file.path(), content).expect("a temporary file can be written");

    file
}

#[track_caller]
pub fn path_of(file: &NamedTempFile) -> &str {
    file.path().to_str().expect("temporary paths are UTF-8")
}

/// A file in JSON, as the kubeconfigs of the testbed are.
#[track_caller]
pub fn read_json(path: &Path) -> Value {
    let text =
        fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));

    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
