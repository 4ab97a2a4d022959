//! Rules of this workspace that no other tool checks. Each problem names the file, the line and the
//! rule; all checks run, so that one run shows everything.

use std::path::Path;

use anyhow::{Result, bail};

use crate::paths;
use source::Source;

mod callers;
mod circles;
mod deps;
mod durations;
mod imports;
mod layout;
mod logs;
mod manifests;
mod modules;
mod names;
mod promises;
mod reach;
mod source;
mod test_rules;
mod tokens;
mod words;

/// A violation of a rule, as one line.
type Problem = String;

pub(crate) fn run() -> Result<()> {
    check(&paths::workspace())
}

fn check(root: &Path) -> Result<()> {
    let sources = source::read_all(root)?;
    let trees = modules::trees(&sources);
    let metadata = deps::metadata(root)?;

    let mut problems = deps::check(&metadata);
    problems.extend(reach::check(&reach::Tree::of(root)?));
    problems.extend(deps::check_imports(&sources));
    problems.extend(manifests::check(&sources, &trees));
    problems.extend(layout::check(&sources));
    problems.extend(test_rules::check(&sources));
    problems.extend(words::check(&sources));
    problems.extend(logs::check(&sources));
    problems.extend(circles::check(&trees));
    problems.extend(names::check(&trees));
    problems.extend(durations::check(&trees));
    problems.extend(callers::check(&sources, &trees));
    problems.extend(promises::check(root, &sources));

    if problems.is_empty() {
        println!("tidy: {} files, every rule holds", sources.len());
        return Ok(());
    }
    for problem in &problems {
        eprintln!("{problem}");
    }
    bail!("{} rules are broken", problems.len())
}
