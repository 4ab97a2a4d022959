//! Every promise of `docs/promises.md` names an existing test, and the documents name existing
//! paths.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use super::{Problem, Source};

const PROMISES: &str = "docs/promises.md";
/// Folder of the programs in `PROGRAM::TEST`.
const PROGRAMS: &str = "tp-e2e/tests";
/// Beginnings of paths in documents.
const PATHS: [&str; 5] = ["tp-", "xtask/", "docs/", "testbed/", ".ci/"];

pub(super) fn check(root: &Path, sources: &[Source]) -> Vec<Problem> {
    let tests = tests_in(sources);
    let mut problems = Vec::new();
    match sources.iter().find(|it| it.path == Path::new(PROMISES)) {
        Some(promises) => problems.extend(check_promises(promises, &tests)),
        None => problems.push(format!("{PROMISES} is missing")),
    }
    for paper in sources
        .iter()
        .filter(|source| source.path.extension().is_some_and(|it| it == "md"))
    {
        problems.extend(check_paths(root, paper));
    }

    problems
}

/// The names of all functions that are tests, with the file of each.
fn tests_in(sources: &[Source]) -> BTreeSet<(&str, &Path)> {
    let mut tests = BTreeSet::new();
    for source in sources.iter().filter(|source| source.is_rust()) {
        let mut is_next = false;
        for line in source.text.lines().map(str::trim) {
            if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
                is_next = true;
            } else if let Some(name) = function(line) {
                if is_next {
                    tests.insert((name, source.path.as_path()));
                }
                is_next = false;
            }
        }
    }

    tests
}

fn function(line: &str) -> Option<&str> {
    let line = line.strip_prefix("pub ").unwrap_or(line);
    let line = line.strip_prefix("async ").unwrap_or(line);
    let name = line.strip_prefix("fn ")?;

    name.split(['(', '<']).next()
}

/// The last cell of each row holds the names of tests in backticks.
fn check_promises(promises: &Source, tests: &BTreeSet<(&str, &Path)>) -> Vec<Problem> {
    let mut problems = Vec::new();
    for line in promises.lines() {
        let row = line.text.trim();
        let Some(cells) = row.strip_prefix('|').and_then(|row| row.strip_suffix('|')) else {
            continue;
        };
        let cell = cells.rsplit('|').next().unwrap_or_default().trim();
        let is_heading = cell == "Test" || cell.chars().all(|c| matches!(c, '-' | ':'));
        if is_heading {
            continue;
        }
        let names: Vec<&str> = in_backticks(cell).collect();
        let at = promises.at(line.number);
        if names.is_empty() {
            problems.push(format!("{at}: a promise names its test"));
        }
        for name in names {
            let exists = home_and_function(name).is_some_and(|(home, function)| {
                let mut homes = tests.iter().filter(|(test, _)| *test == function);
                homes.any(|(_, file)| file.starts_with(&home) || file.with_extension("") == home)
            });
            if !exists {
                problems.push(format!("{at}: there is no test {name}"));
            }
        }
    }

    problems
}

/// The path and function of a test: `PROGRAM::TEST` is in a file or folder of that name, `CRATE
/// TEST` anywhere in the crate.
fn home_and_function(name: &str) -> Option<(PathBuf, &str)> {
    if let Some((program, function)) = name.split_once("::") {
        return Some((Path::new(PROGRAMS).join(program), function));
    }

    let (package, function) = name.split_once(' ')?;
    Some((PathBuf::from(package), function))
}

fn check_paths(root: &Path, paper: &Source) -> Vec<Problem> {
    let mut problems = Vec::new();
    for line in paper.lines() {
        for name in in_backticks(line.text) {
            let is_path = PATHS.iter().any(|start| name.starts_with(start))
                && name.contains('/')
                && name
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '-' | '_'));
            if is_path && !root.join(name).exists() {
                let at = paper.at(line.number);
                problems.push(format!("{at}: {name} does not exist"));
            }
        }
    }

    problems
}

fn in_backticks(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn promises(row: &str) -> Vec<Problem> {
        let text = format!("| Promise | Test |\n|---|---|\n{row}\n");
        let code = |path| Source::new(path, "#[tokio::test]\nasync fn it_holds() {}\nfn b() {}\n");

        let sources = [
            code("tp-e2e/tests/a.rs"),
            code("tp-e2e/tests/folder/part.rs"),
            code("tp-a/src/deep/b.rs"),
        ];
        check_promises(&Source::new(PROMISES, &text), &tests_in(&sources))
    }

    #[test]
    fn a_promise_names_a_test_that_exists() {
        assert!(promises("| it holds | `a::it_holds` |").is_empty());
        assert_eq!(promises("| it holds | `it_does_not` |").len(), 1);
        assert_eq!(promises("| it holds | later |").len(), 1);
        assert_eq!(promises("| it holds | `a::b` |").len(), 1);
    }

    #[test]
    fn a_promise_names_the_program_or_crate_that_has_its_test() {
        assert!(promises("| it holds | `folder::it_holds`, `tp-a it_holds` |").is_empty());
        for elsewhere in ["it_holds", "b::it_holds", "fold::it_holds", "tp-b it_holds"] {
            assert_eq!(promises(&format!("| it holds | `{elsewhere}` |")).len(), 1);
        }
    }

    #[test]
    fn papers_name_paths_that_exist() {
        let paper = Source::new(
            "README.md",
            "see `tp-core/src/nowhere.rs` and `tp connect`\n",
        );

        assert_eq!(check_paths(Path::new("."), &paper).len(), 1);
    }
}
