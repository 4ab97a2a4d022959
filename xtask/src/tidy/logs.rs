//! Log messages are of one form: a noun and what happened to it, without an article.

use super::{Problem, Source};

const LEVELS: [&str; 5] = ["error!(", "warn!(", "info!(", "debug!(", "trace!("];
const ARTICLES: [&str; 3] = ["A ", "An ", "The "];

pub(super) fn check(sources: &[Source]) -> Vec<Problem> {
    let mut problems = Vec::new();
    for source in sources.iter().filter(|source| source.is_rust()) {
        let mut is_within = false;
        for line in source.lines().filter(|line| !line.is_test) {
            let begun = line.text.split("tracing::").nth(1).unwrap_or_default();
            is_within |= LEVELS.iter().any(|level| begun.starts_with(level));
            let message = line.text.split('"').nth(1).unwrap_or_default();
            if is_within && ARTICLES.iter().any(|article| message.starts_with(article)) {
                let at = source.at(line.number);
                problems.push(format!(
                    "{at}: a log message begins with a noun or a verb, not with an article"
                ));
            }
            is_within &= !line.text.trim_end().ends_with([';', ',']) || !line.text.contains(')');
        }
    }

    problems
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
        assert_eq!(problems("tracing::info!(name, \"Flow ended\");\n"), 0);
        assert_eq!(
            problems("tracing::info!(\"Flow ended\");\nlet a = \"A word\";\n"),
            0
        );
    }
}
