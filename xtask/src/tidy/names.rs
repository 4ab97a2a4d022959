//! A type has a name that no other crate gives to a type of its own.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Problem,
    modules::{Target, Tree},
    tokens::{self, Token},
};

/// Crates that no other depends on.
const APART: [&str; 2] = ["tp-e2e", "xtask"];
/// Type names of several crates. This list only gets shorter.
const KNOWN: [(&str, &[&str]); 8] = [
    ("Access", &["tp-ebpf-loader", "tp-manager"]),
    ("Answer", &["tp-cli", "tp-transport"]),
    ("Flow", &["tp-ebpf", "tp-transport"]),
    ("InstallArgs", &["tp-cli", "tp-daemon"]),
    ("Link", &["tp-core", "tp-transport"]),
    ("Scope", &["tp-manager", "tp-root-api"]),
    ("UninstallArgs", &["tp-cli", "tp-daemon"]),
    ("Verdict", &["tp-core", "tp-ebpf"]),
];

type Crates<'a> = BTreeMap<&'a str, BTreeSet<&'a str>>;

pub(super) fn check(trees: &[Tree<'_>]) -> Vec<Problem> {
    compare(&defined(trees), &KNOWN)
}

fn compare(defined: &Crates<'_>, known: &[(&str, &[&str])]) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (name, crates) in defined.iter().filter(|(_, crates)| crates.len() > 1) {
        let known = known.iter().find(|(known, _)| known == name);
        let is_new = |of: &&&str| known.is_none_or(|(_, crates)| !crates.contains(of));
        if crates.iter().any(|of| is_new(&of)) {
            let crates: Vec<&str> = crates.iter().copied().collect();
            problems.push(format!("{name} is a type of {}", crates.join(" and of ")));
        }
    }
    for (name, crates) in known {
        let is_left = |of: &&&str| !defined.get(name).is_some_and(|it| it.contains(*of));
        for of in crates.iter().filter(is_left) {
            problems.push(format!(
                "{name} is no type of {of}; strike it from the list"
            ));
        }
    }

    problems
}

/// Structs, enums and traits that are `pub` or `pub(crate)`, each with its crates.
fn defined<'a>(trees: &'a [Tree<'_>]) -> Crates<'a> {
    let mut defined = Crates::new();
    for file in trees
        .iter()
        .filter(|tree| tree.target == Target::Production)
        .flat_map(|tree| &tree.files)
        .filter(|file| !APART.contains(&file.source.top()))
    {
        for at in 0..file.production.len() {
            if let Some(name) = defined_at(&file.production[at..]) {
                defined.entry(name).or_default().insert(file.source.top());
            }
        }
    }

    defined
}

fn defined_at<'a>(tokens: &[Token<'a>]) -> Option<&'a str> {
    let (first, mut rest) = tokens.split_first()?;
    if first.text != "pub" {
        return None;
    }
    if rest.first()?.text == "(" {
        if rest.get(1)?.text != "crate" {
            return None;
        }
        rest = &rest[tokens::length_of_group(rest)..];
    }
    if rest.first()?.text == "unsafe" {
        rest = &rest[1..];
    }
    let is_type = ["enum", "struct", "trait", "union"].contains(&rest.first()?.text);

    is_type.then_some(rest.get(1)?.text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::{Source, modules};

    fn problems(one: &str, other: &str, known: &[(&str, &[&str])]) -> Vec<Problem> {
        let sources = [
            Source::new("tp-a/src/lib.rs", one),
            Source::new("tp-b/src/lib.rs", other),
            Source::new("xtask/src/main.rs", one),
        ];

        compare(&defined(&modules::trees(&sources)), known)
    }

    #[test]
    fn two_crates_do_not_have_types_of_one_name() {
        assert_eq!(
            problems("pub struct A;", "pub(crate) enum A {}", &[]),
            ["A is a type of tp-a and of tp-b"]
        );
        assert!(problems("pub struct A;", "pub struct B;", &[]).is_empty());
        for own in ["struct A;", "pub(super) struct A;", "pub fn A() {}"] {
            assert!(problems("pub struct A;", own, &[]).is_empty());
        }
        let for_tests = "#[cfg(test)]\nmod tests { pub struct A; }\n";
        assert!(problems("pub trait A {}", for_tests, &[]).is_empty());
    }

    #[test]
    fn the_list_of_names_only_gets_shorter() {
        let known: [(&str, &[&str]); 1] = [("A", &["tp-a", "tp-b"])];

        assert!(problems("pub struct A;", "pub struct A;", &known).is_empty());
        assert_eq!(
            problems("pub struct A;", "", &known),
            ["A is no type of tp-b; strike it from the list"]
        );
        let shorter: [(&str, &[&str]); 1] = [("A", &["tp-a"])];
        assert_eq!(
            problems("pub struct A;", "pub struct A;", &shorter).len(),
            1
        );
    }
}
