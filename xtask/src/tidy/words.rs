//! Words that must not be in the repository.

use super::{Problem, Source};

/// Folders that only one machine has. Split, so that this file does not hold them.
const PLACES: [&str; 2] = [concat!("/wo", "rk/"), concat!("/Us", "ers/")];
/// Notes, which must name an issue.
const NOTES: [&str; 3] = [
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("X", "XX"),
];
/// Words about the past; comments describe the current code.
const TIMES: [&str; 3] = ["previously", "used to be", "anymore"];

pub(super) fn check(sources: &[Source]) -> Vec<Problem> {
    let mut problems = Vec::new();
    for source in sources {
        for line in source.lines() {
            let at = source.at(line.number);
            if let Some(place) = PLACES.iter().find(|place| line.text.contains(*place)) {
                problems.push(format!("{at}: {place} is a place of one machine"));
            }
            if NOTES.iter().any(|note| has_word(line.text, note)) && !line.text.contains('#') {
                problems.push(format!("{at}: a note needs the number of an issue"));
            }
            if source.is_rust()
                && let Some(comment) = line.comment()
                && let Some(word) = TIMES.iter().find(|word| comment.contains(*word))
            {
                problems.push(format!("{at}: a comment is timeless, without \"{word}\""));
            }
        }
    }

    problems
}

fn has_word(text: &str, word: &str) -> bool {
    text.split(|c: char| !c.is_alphanumeric())
        .any(|part| part == word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(text: &str) -> usize {
        check(&[Source::new("tp-core/src/a.rs", text)]).len()
    }

    #[test]
    fn places_of_one_machine_are_found() {
        assert_eq!(problems(&format!("let a = \"{}x\";\n", PLACES[0])), 1);
        assert_eq!(problems("mod work;\n"), 0);
    }

    #[test]
    fn a_note_names_its_issue() {
        assert_eq!(problems(&format!("// {}: later\n", NOTES[0])), 1);
        assert_eq!(problems(&format!("// {} #12: later\n", NOTES[0])), 0);
    }

    #[test]
    fn comments_are_timeless() {
        assert_eq!(problems("// previously a map\n"), 1);
        assert_eq!(problems("let previously = 1;\n"), 0);
    }
}
