//! A public function of a library is named by another file.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use super::{
    Problem, Source,
    modules::{Target, Tree},
    tokens::{self, Token},
};

/// Crates that others depend on.
const LIBRARIES: [&str; 12] = [
    "tp-agent-api",
    "tp-core",
    "tp-ebpf-common",
    "tp-ebpf-loader",
    "tp-ipc",
    "tp-kube",
    "tp-packet",
    "tp-process",
    "tp-proto",
    "tp-root-api",
    "tp-sock-diag",
    "tp-transport",
];
/// Functions that no other file names: crate and function. This list only gets shorter.
const KNOWN: [(&str, &str); 0] = [];

pub(super) fn check(sources: &[Source], trees: &[Tree<'_>]) -> Vec<Problem> {
    compare(sources, trees, &KNOWN)
}

fn compare(sources: &[Source], trees: &[Tree<'_>], known: &[(&str, &str)]) -> Vec<Problem> {
    let files = files_with(sources);
    let mut problems = Vec::new();
    let mut met = BTreeSet::new();
    for file in trees
        .iter()
        .filter(|tree| tree.target == Target::Production)
        .flat_map(|tree| &tree.files)
        .filter(|file| LIBRARIES.contains(&file.source.top()))
    {
        for (at, token) in file.production.iter().enumerate() {
            let Some(name) = public_function(&file.production[at..]) else {
                continue;
            };
            if files
                .get(name)
                .is_some_and(|files| files.iter().any(|it| *it != file.source.path))
            {
                continue;
            }
            let function = (file.source.top(), name);
            if known.contains(&function) {
                met.insert(function);
            } else {
                let at = file.source.at(token.line);
                problems.push(format!("{at}: no other file names the public {name}"));
            }
        }
    }
    for (of, name) in known.iter().filter(|function| !met.contains(*function)) {
        problems.push(format!(
            "{of} has no public {name} that no other file names; strike it from the list"
        ));
    }

    problems
}

/// The files that call, import or name each function, up to two.
fn files_with(sources: &[Source]) -> BTreeMap<&str, BTreeSet<&Path>> {
    let mut files: BTreeMap<&str, BTreeSet<&Path>> = BTreeMap::new();
    let rust = sources.iter().filter(|source| source.is_rust());
    for source in rust {
        let tokens = tokens::tokens(&source.text);
        let text = |at: Option<usize>| at.and_then(|at| tokens.get(at)).map_or("", |it| it.text);
        let mut is_import = false;
        for (at, token) in tokens.iter().enumerate() {
            is_import = token.text == "use" || (is_import && token.text != ";");
            let before = text(at.checked_sub(1));
            let is_called = ["(", "::"].contains(&text(Some(at + 1))) && before != "fn";
            if is_import || is_called || before == "::" {
                let files = files.entry(token.text).or_default();
                if files.len() < 2 {
                    files.insert(&source.path);
                }
            }
        }
    }

    files
}

fn public_function<'a>(tokens: &[Token<'a>]) -> Option<&'a str> {
    let (first, rest) = tokens.split_first()?;
    let is_qualifier = |token: &&Token<'_>| ["async", "const", "unsafe"].contains(&token.text);
    let mut rest = rest.iter().skip_while(is_qualifier);

    (first.text == "pub" && rest.next()?.text == "fn").then_some(rest.next()?.text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::modules;

    fn problems(code: &str, other: (&str, &str), known: &[(&str, &str)]) -> Vec<Problem> {
        let sources = [
            Source::new("tp-core/src/lib.rs", code),
            Source::new(other.0, other.1),
        ];

        compare(&sources, &modules::trees(&sources), known)
    }

    #[test]
    fn a_public_function_is_named_by_another_file() {
        let code = "// a\npub const fn one() {}\nfn two() { one() }\n";
        let other = "tp-e2e/tests/a.rs";

        assert_eq!(
            problems(code, (other, "// one"), &[]),
            ["tp-core/src/lib.rs:2: no other file names the public one"]
        );
        for named in [
            "tp_core::one();",
            "use a::{one, b};",
            "it.one()",
            "map(A::one)",
        ] {
            assert!(problems(code, (other, named), &[]).is_empty());
        }
        for other_thing in ["fn one() {}", "self.one = one;"] {
            assert_eq!(problems(code, (other, other_thing), &[]).len(), 1);
        }
        assert!(problems("pub(crate) fn one() {}", (other, ""), &[]).is_empty());
        assert!(problems("", ("tp-cli/src/main.rs", "pub fn one() {}"), &[]).is_empty());
    }

    #[test]
    fn the_list_of_functions_only_gets_shorter() {
        let known = [("tp-core", "one")];
        let code = "pub async fn one() {}";
        let other = "tp-cli/src/main.rs";

        assert!(problems(code, (other, ""), &known).is_empty());
        assert_eq!(problems(code, (other, "one()"), &known).len(), 1);
    }
}
