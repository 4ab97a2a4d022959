//! Rules for tests: names are sentences, nothing sleeps to wait, an ignored test says why.

use super::{Problem, Source};
use crate::tidy::source::Line;

/// Lines above a sleep in which a loop makes it a poll.
const LOOP_ABOVE: usize = 15;

pub(super) fn check(sources: &[Source]) -> Vec<Problem> {
    sources
        .iter()
        .filter(|source| source.is_rust())
        .flat_map(check_one)
        .collect()
}

fn check_one(source: &Source) -> Vec<Problem> {
    let mut problems = Vec::new();
    let lines: Vec<Line<'_>> = source.lines().collect();
    for (index, line) in lines.iter().enumerate() {
        let code = line.code();
        let code = code.trim();
        let at = source.at(line.number);
        if code.contains("fn test_") {
            problems.push(format!(
                "{at}: the name of a test is a sentence without test_"
            ));
        }
        if code == "#[ignore]" {
            problems.push(format!("{at}: an ignored test says why"));
        }
        if line.is_test && code.contains("sleep(") && !code.contains("fn ") {
            let above = &lines[index.saturating_sub(LOOP_ABOVE)..index];
            if !above.iter().any(|line| is_loop(&line.code())) && !is_explained(above) {
                problems.push(format!(
                    "{at}: wait for the condition, with a bound, or say above why not"
                ));
            }
        }
    }

    problems
}

/// A comment right above, or the reason given to the lint that also forbids it.
fn is_explained(above: &[Line<'_>]) -> bool {
    above.last().is_some_and(|line| line.comment().is_some())
        || above
            .iter()
            .any(|line| line.text.contains("clippy::disallowed_methods"))
}

fn is_loop(code: &str) -> bool {
    ["loop ", "while ", "for "]
        .iter()
        .any(|keyword| code.trim_start().starts_with(keyword))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(text: &str) -> usize {
        check(&[Source::new("tp-core/tests/a.rs", text)]).len()
    }

    #[test]
    fn names_are_sentences() {
        assert_eq!(problems("#[test]\nfn test_it() {}\n"), 1);
        assert_eq!(problems("#[test]\nfn it_works() {}\n"), 0);
    }

    #[test]
    fn a_sleep_is_no_wait() {
        assert_eq!(problems("a();\ntokio::time::sleep(S).await;\n"), 1);
        assert_eq!(
            problems("a();\n// Time to do the wrong thing.\nsleep(S).await;\n"),
            0
        );
        assert_eq!(
            problems("while !b() {\n    tokio::time::sleep(S).await;\n}\n"),
            0
        );
    }

    #[test]
    fn an_ignored_test_says_why() {
        assert_eq!(problems("#[test]\n#[ignore]\nfn a() {}\n"), 1);
        assert_eq!(
            problems("#[test]\n#[ignore = \"needs a cluster\"]\nfn a() {}\n"),
            0
        );
    }
}
