//! No circles of imports among the files of one crate.
//!
//! A child may use what its parent has while the parent uses the child: that is how a module with
//! children shares its errors and helpers. So a circle is not reported if all its files are in the
//! folder of one of them and it goes through that one. Children among themselves, and modules
//! beside each other, form no circle.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{
    Problem,
    imports::{self, Imports},
    modules::{Target, Tree},
};

/// Imports that close a circle: the file, and the one from which it imports. This list only gets
/// shorter.
const KNOWN: [(&str, &str); 0] = [];

/// An import: the numbers of the two files.
type Edge = (usize, usize);
type Edges = BTreeSet<Edge>;

pub(super) fn check(trees: &[Tree<'_>]) -> Vec<Problem> {
    compare(trees, &KNOWN)
}

fn compare(trees: &[Tree<'_>], known: &[(&str, &str)]) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut met = BTreeSet::new();
    for tree in trees {
        if tree.target != Target::Production {
            continue;
        }
        let imports = imports::imports(tree);
        let all: Edges = imports.keys().copied().collect();
        let is_known = |&(from, to): &Edge| {
            let edge = (path(tree, from), path(tree, to));
            known
                .iter()
                .position(|&(from, to)| edge == (from.into(), to.into()))
        };
        met.extend(knots(tree, &all).iter().flatten().filter_map(is_known));
        let others = all.into_iter().filter(|edge| is_known(edge).is_none());
        for circle in circles(tree, &imports, others.collect()) {
            problems.push(describe(tree, &imports, &circle));
        }
    }
    for (at, (from, to)) in known.iter().enumerate() {
        if !met.contains(&at) {
            problems.push(format!(
                "{from}: what it takes from {to} closes no circle; strike it from the list"
            ));
        }
    }

    problems
}

fn path(tree: &Tree<'_>, file: usize) -> String {
    tree.files[file].source.path.display().to_string()
}

fn describe(tree: &Tree<'_>, imports: &Imports, circle: &[usize]) -> Problem {
    let mut steps = Vec::new();
    for (at, &from) in circle.iter().enumerate() {
        let to = circle[(at + 1) % circle.len()];
        let items: Vec<&str> = imports[&(from, to)].iter().map(String::as_str).collect();
        let to = path(tree, to);
        steps.push(format!("takes {} from {to}", items.join(", ")));
    }

    let first = path(tree, circle[0]);
    format!("{first}: a circle: it {}", steps.join(", which "))
}

/// Circles, the shortest first; each remains when the first import of the others is removed. A
/// circle begins with the import of the fewest items: the easiest to avoid.
fn circles(tree: &Tree<'_>, imports: &Imports, mut edges: Edges) -> Vec<Vec<usize>> {
    let mut found = Vec::new();
    loop {
        let knots = knots(tree, &edges);
        let ways = knots.iter().flat_map(|knot| {
            let ways = knot.iter().map(|&(from, to)| shortest_way(knot, to, from));
            ways.flatten().filter(|way| !has_parent(tree, way))
        });
        let order = |way: &Vec<usize>| {
            let paths: Vec<String> = way.iter().map(|&file| path(tree, file)).collect();
            (way.len(), paths)
        };
        let Some(mut circle) = ways.min_by_key(order) else {
            return found;
        };
        let next = |at: usize| circle[(at + 1) % circle.len()];
        let items = |&at: &usize| imports[&(circle[at], next(at))].len();
        let first = (0..circle.len()).min_by_key(items).unwrap_or(0);
        edges.remove(&(circle[first], next(first)));
        circle.rotate_left(first);
        found.push(circle);
    }
}

/// The imports that form circles, in sets without a common file.
fn knots(tree: &Tree<'_>, edges: &Edges) -> Vec<Edges> {
    let mut knots = Vec::new();
    let mut pending = mutual(edges);
    while let Some(knot) = pending.pop() {
        let files: BTreeSet<usize> = knot.iter().map(|(from, _)| *from).collect();
        match files.iter().find(|&&file| holds(tree, file, &files)) {
            Some(parent) => {
                let others = knot.iter().filter(|(_, to)| to != parent);
                pending.extend(mutual(&others.copied().collect()));
            }
            None => knots.push(knot),
        }
    }

    knots
}

fn has_parent(tree: &Tree<'_>, files: &[usize]) -> bool {
    files.iter().any(|&file| holds(tree, file, files))
}

/// Returns whether all files are in the folder of `parent`, itself included.
fn holds<'a>(tree: &Tree<'_>, parent: usize, files: impl IntoIterator<Item = &'a usize>) -> bool {
    let parent = &tree.files[parent].module;

    files
        .into_iter()
        .all(|&file| tree.files[file].module.starts_with(parent))
}

/// The edges within each set of files that all reach each other.
fn mutual(edges: &Edges) -> Vec<Edges> {
    let mut reached: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
    for &(from, _) in edges {
        reached.entry(from).or_insert_with(|| reach(edges, from));
    }
    let is_mutual = |one: usize, other: usize| {
        let leads = |from, to| reached.get(&from).is_some_and(|it| it.contains(&to));
        leads(one, other) && leads(other, one)
    };
    let mut knots: Vec<Edges> = Vec::new();
    for &(from, to) in edges.iter().filter(|(from, to)| is_mutual(*from, *to)) {
        let knot = knots
            .iter_mut()
            .find(|knot| knot.first().is_some_and(|(one, _)| is_mutual(*one, from)));
        match knot {
            Some(knot) => {
                knot.insert((from, to));
            }
            None => knots.push(BTreeSet::from([(from, to)])),
        }
    }

    knots
}

fn reach(edges: &Edges, from: usize) -> BTreeSet<usize> {
    let mut reached = BTreeSet::new();
    let mut pending = vec![from];
    while let Some(file) = pending.pop() {
        for &(_, to) in edges.range((file, 0)..=(file, usize::MAX)) {
            if reached.insert(to) {
                pending.push(to);
            }
        }
    }

    reached
}

/// The shortest path from one file to another, both included.
fn shortest_way(edges: &Edges, from: usize, to: usize) -> Option<Vec<usize>> {
    let mut before = BTreeMap::from([(from, from)]);
    let mut pending = VecDeque::from([from]);
    while let Some(file) = pending.pop_front() {
        if file == to {
            let mut way = vec![file];
            while let Some(&file) = way.last()
                && file != from
            {
                way.push(before[&file]);
            }
            way.reverse();
            return Some(way);
        }
        for &(_, next) in edges.range((file, 0)..=(file, usize::MAX)) {
            before.entry(next).or_insert_with(|| {
                pending.push_back(next);
                file
            });
        }
    }

    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::{Source, modules};

    fn sources(files: &[(&str, &str)]) -> Vec<Source> {
        files
            .iter()
            .map(|(path, text)| Source::new(&format!("tp-a/src/{path}.rs"), text))
            .collect()
    }

    fn problems(files: &[(&str, &str)]) -> Vec<Problem> {
        compare(&modules::trees(&sources(files)), &[])
    }

    #[test]
    fn modules_beside_each_other_form_no_circle() {
        let files = [
            ("main", "mod a;\nmod b;\nmod c;\n"),
            ("a", "use crate::b::{X, Y};\n"),
            ("b", "use super::c::Z;\n"),
            ("c", "fn c() { crate::a::run() }\n"),
        ];

        assert_eq!(
            problems(&files),
            [
                "tp-a/src/b.rs: a circle: it takes Z from tp-a/src/c.rs, which takes run from \
                 tp-a/src/a.rs, which takes X, Y from tp-a/src/b.rs"
            ]
        );
        assert!(problems(&files[..3]).is_empty());
    }

    #[test]
    fn a_child_may_use_what_its_parent_has() {
        let files = [
            ("main", "mod a;\nfn main() { a::a() }\n"),
            ("a", "mod b;\nmod c;\nfn a() { b::b(); c::c() }\n"),
            ("a/b", "use super::{Error, c::C};\n"),
            ("a/c", "use crate::{a::Error, Main};\n"),
        ];

        assert!(problems(&files).is_empty());
    }

    #[test]
    fn children_form_no_circle_among_themselves() {
        let files = [
            ("main", "mod a;\n"),
            ("a", "mod b;\nmod c;\nfn a() { b::b(); c::c() }\n"),
            ("a/b", "use super::{Error, c::C};\n"),
            ("a/c", "use super::{Error, b::B};\n"),
        ];

        let found = problems(&files);
        assert_eq!(found.len(), 1);
        assert!(found[0].starts_with("tp-a/src/a/b.rs: a circle"));
    }

    #[test]
    fn a_parent_forms_no_circle_with_another_through_its_child() {
        let files = [
            ("main", "mod a;\nmod d;\n"),
            ("a", "mod b;\nuse crate::d::D;\n"),
            ("a/b", "use super::Error;\n"),
            ("d", "use crate::a::b::B;\n"),
        ];

        assert_eq!(problems(&files).len(), 1);
    }

    #[test]
    fn the_list_of_circles_only_gets_shorter() {
        let check = |b| {
            let root = ("main", "mod a;\nmod b;\n");
            let known = [("tp-a/src/a.rs", "tp-a/src/b.rs")];
            let sources = sources(&[root, ("a", "use crate::b::X;\n"), ("b", b)]);
            compare(&modules::trees(&sources), &known)
        };

        assert!(check("use crate::a::Y;\n").is_empty());
        assert_eq!(
            check(""),
            [
                "tp-a/src/a.rs: what it takes from tp-a/src/b.rs closes no circle; \
              strike it from the list"
            ]
        );
    }
}
