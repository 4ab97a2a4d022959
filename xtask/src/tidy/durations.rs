//! A constant that is a duration says by the end of its name what happens after that time.

use std::collections::BTreeSet;

use super::{
    Problem,
    modules::{Target, Tree},
    tokens::Token,
};

/// Crates that are test code.
const TESTS: [&str; 1] = ["tp-e2e"];
/// Ends of names.
const SUFFIXES: [&str; 6] = [
    "TIMEOUT", "INTERVAL", "AFTER", "BACKOFF", "DELAY", "LIFETIME",
];
/// Constants with other names: file, constant, and why. This list only gets shorter.
const KNOWN: [(&str, &str, &str); 3] = [
    (
        "tp-core/src/credit.rs",
        "MIN_ROUND_TRIP",
        "a bound of a measured round-trip time",
    ),
    (
        "tp-transport/src/congestion/bbr.rs",
        "ALLOWANCE",
        "time that the congestion window covers beyond the round trip",
    ),
    (
        "tp-transport/src/congestion/bbr.rs",
        "MAX_ALLOWANCE",
        "time that aggregated ACKs may add to the round trip",
    ),
];

pub(super) fn check(trees: &[Tree<'_>]) -> Vec<Problem> {
    compare(trees, &KNOWN)
}

fn compare(trees: &[Tree<'_>], known: &[(&str, &str, &str)]) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut met = BTreeSet::new();
    for file in trees
        .iter()
        .filter(|tree| tree.target == Target::Production)
        .flat_map(|tree| &tree.files)
        .filter(|file| !TESTS.contains(&file.source.top()))
    {
        for (at, token) in file.production.iter().enumerate() {
            let Some(name) = duration(&file.production[at..]) else {
                continue;
            };
            if has_suffix(name) {
                continue;
            }
            let path = file.source.path.display().to_string();
            if let Some((of, it, _)) = known.iter().find(|(of, it, _)| *of == path && *it == name) {
                met.insert((*of, *it));
                continue;
            }
            let at = file.source.at(token.line);
            problems.push(format!(
                "{at}: the duration {name} has a name that is or ends in {}",
                SUFFIXES.join(", ")
            ));
        }
    }
    for (of, name, _) in known
        .iter()
        .filter(|(of, name, _)| !met.contains(&(*of, *name)))
    {
        problems.push(format!(
            "{of} has no duration {name} without a suffix; strike it from the list"
        ));
    }

    problems
}

/// The name of a constant or static with which the tokens begin, if its type is `Duration`, with or
/// without a path.
fn duration<'a>(tokens: &[Token<'a>]) -> Option<&'a str> {
    let [kind, name, colon, rest @ ..] = tokens else {
        return None;
    };
    if !["const", "static"].contains(&kind.text) || colon.text != ":" {
        return None;
    }
    let end = rest
        .iter()
        .position(|token| !token.is_word() && token.text != "::")?;
    let is_duration = rest[..end]
        .last()
        .is_some_and(|token| token.text == "Duration");

    is_duration.then_some(name.text)
}

fn has_suffix(name: &str) -> bool {
    SUFFIXES.iter().any(|suffix| {
        name.strip_suffix(suffix)
            .is_some_and(|noun| noun.is_empty() || noun.ends_with('_'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::{Source, modules};

    fn problems(path: &str, text: &str, known: &[(&str, &str, &str)]) -> Vec<Problem> {
        compare(&modules::trees(&[Source::new(path, text)]), known)
    }

    fn count(text: &str) -> usize {
        problems("tp-a/src/lib.rs", text, &[]).len()
    }

    #[test]
    fn a_duration_has_one_of_the_suffixes() {
        assert_eq!(
            problems("tp-a/src/lib.rs", "\nconst LOOK: Duration = D;\n", &[]),
            [
                "tp-a/src/lib.rs:2: the duration LOOK has a name that is or ends in TIMEOUT, \
                 INTERVAL, AFTER, BACKOFF, DELAY, LIFETIME"
            ]
        );
        for named in [
            "const TIMEOUT: Duration = D;",
            "pub const POLL_INTERVAL: Duration = D;",
            "pub(crate) const MAX_RETRY_BACKOFF: std::time::Duration = D;",
        ] {
            assert_eq!(count(named), 0, "{named}");
        }
        for unnamed in [
            "pub(super) static LOOK: Duration = D;",
            "const LOOK: std::time::Duration = D;",
            "fn a() { const LOOK: Duration = D; }",
            "impl A { const LOOK: Duration = D; }",
            "const THEREAFTER: Duration = D;",
        ] {
            assert_eq!(count(unnamed), 1, "{unnamed}");
        }
    }

    #[test]
    fn other_constants_have_any_name() {
        for other in [
            "const LOOK: u64 = 1;",
            "const LOOKS: [Duration; 2] = [D, D];",
            "const LOOK: Option<Duration> = None;",
            "const fn look(pause: Duration) {}",
            "fn look<const N: usize>(pause: Duration) {}",
            "let look: Duration = D;",
        ] {
            assert_eq!(count(other), 0, "{other}");
        }
    }

    #[test]
    fn durations_of_tests_have_any_name() {
        let text = "const LOOK: Duration = D;\n";
        let in_module = format!("#[cfg(test)]\nmod tests {{ {text} }}\n");

        assert_eq!(count(&in_module), 0);
        for path in ["tp-e2e/src/lib.rs", "tp-a/tests/b.rs"] {
            assert!(problems(path, text, &[]).is_empty(), "{path}");
        }
    }

    #[test]
    fn the_list_of_durations_only_gets_shorter() {
        let known = [("tp-a/src/lib.rs", "LOOK", "a term of the protocol")];
        let check = |text| problems("tp-a/src/lib.rs", text, &known);

        assert!(check("const LOOK: Duration = D;").is_empty());
        assert_eq!(
            check("const LOOK_INTERVAL: Duration = D;"),
            ["tp-a/src/lib.rs has no duration LOOK without a suffix; strike it from the list"]
        );
    }
}
