//! Log messages have one form: a noun and what happened to it, without an article.

use super::{Problem, Source};

const LEVELS: [&str; 5] = ["error!(", "warn!(", "info!(", "debug!(", "trace!("];
const ARTICLES: [&str; 3] = ["A ", "An ", "The "];

pub(super) fn check(sources: &[Source]) -> Vec<Problem> {
    let mut problems = Vec::new();
    for source in sources.iter().filter(|source| source.is_rust()) {
        // The number of open parentheses of a call.
        let mut open = 0;
        for line in source.lines().filter(|line| !line.is_test) {
            let mut text = line.text;
            if open == 0 {
                let Some(call) = call(text) else { continue };
                text = call;
            }
            for (at, part) in text.split('"').enumerate() {
                let is_string = at % 2 == 1;
                if is_string && ARTICLES.iter().any(|article| part.starts_with(article)) {
                    let at = source.at(line.number);
                    problems.push(format!(
                        "{at}: a log message begins with a noun or a verb, not with an article"
                    ));
                }
                if !is_string {
                    open += part.matches('(').count();
                    open = open.saturating_sub(part.matches(')').count());
                }
            }
        }
    }

    problems
}

/// The rest of a line after the name of a log macro.
fn call(line: &str) -> Option<&str> {
    let (_, begun) = line.split_once("tracing::")?;
    let level = LEVELS.iter().find(|level| begun.starts_with(**level))?;

    Some(&begun[level.len() - 1..])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(text: &str) -> usize {
        check(&[Source::new("tp-manager/src/a.rs", text)]).len()
    }

    #[test]
    fn a_message_has_no_article() {
        assert_eq!(problems("tracing::info!(name, \"A flow ended\");\n"), 1);
        assert_eq!(
            problems("tracing::warn!(\n    %error,\n    \"The watch ended\"\n);\n"),
            1
        );
        assert_eq!(
            problems("tracing::error!(error = format!(\"{e:#}\"), \"The end\");\n"),
            1
        );
        assert_eq!(
            problems("tracing::warn!(\n    error = chain(&error),\n    \"The end\"\n);\n"),
            1
        );
        assert_eq!(problems("tracing::info!(name, \"Flow ended\");\n"), 0);
        assert_eq!(
            problems("tracing::info!(\"Flow ended\");\nlet a = \"A word\";\n"),
            0
        );
    }
}
