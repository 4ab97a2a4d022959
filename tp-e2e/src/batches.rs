//! Thousands of objects, made or changed by several kubectl at once: each does 50 a second.

use serde_json::{Value, json};
use tempfile::NamedTempFile;

use crate::{
    cluster::testbed,
    files::file_with,
    process::{PATIENCE, Running},
};

/// A running kubectl, with a file that lives as long.
#[derive(Debug)]
pub struct Batch {
    kubectl: Running,
    _file: NamedTempFile,
}

impl Batch {
    /// `kubectl WORDS --filename FILE`, with all `objects` in the file.
    #[track_caller]
    pub fn start(words: &[&str], objects: &[Value]) -> Self {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        let file = file_with(&list.to_string());
        let mut command = testbed().kubectl_command(words);
        command.arg("--filename").arg(file.path());

        Self {
            kubectl: Running::start(&mut command),
            _file: file,
        }
    }

    /// Waits for the end; returns the output.
    #[track_caller]
    pub fn finish(self) -> String {
        self.kubectl.finish(PATIENCE).expect_success()
    }
}

/// Runs `count` batches like [`Batch::start`] to their end.
#[track_caller]
pub fn in_batches(count: usize, words: &[&str], objects: &[Value]) {
    let parts = objects.chunks(objects.len().div_ceil(count));
    let batches: Vec<Batch> = parts.map(|part| Batch::start(words, part)).collect();
    for batch in batches {
        batch.finish();
    }
}
