//! Manifests: lints from the workspace, versions only at the root, and no dependency that the code
//! does not name.

use std::path::Path;

use super::{
    Problem, Source,
    modules::{self, Target, Tree},
    tokens::Token,
};

const ROOT: &str = "Cargo.toml";
/// Member, dependency, and the macro that names it.
const BY_MACROS: [(&str, &str, &str); 1] = [(
    "tp-proto",
    "serde_json",
    "the derive macro CustomResource of kube",
)];

/// Separate workspaces, for other targets.
const OWN_WORKSPACES: [&str; 2] = ["tp-ebpf", "testbed"];

pub(super) fn check(sources: &[Source], trees: &[Tree<'_>]) -> Vec<Problem> {
    let manifests = sources.iter().filter(|source| {
        source.path.ends_with("Cargo.toml")
            && source.path.components().count() == 2
            && !OWN_WORKSPACES.contains(&source.top())
    });

    let mut problems: Vec<Problem> = manifests.flat_map(check_one).collect();
    problems.extend(check_named(sources, trees));
    problems.extend(check_root(sources));

    problems
}

fn check_one(manifest: &Source) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut section = "";
    let mut has_lints = false;
    for line in manifest.lines() {
        let text = line.text.trim();
        if text.starts_with('[') {
            section = text;
        } else if section == "[lints]" && text == "workspace = true" {
            has_lints = true;
        } else if section.ends_with("dependencies]")
            && !text.is_empty()
            && !text.starts_with('#')
            && !text.contains("workspace = true")
        {
            let at = manifest.at(line.number);
            problems.push(format!(
                "{at}: versions belong into the manifest at the root"
            ));
        }
    }
    if !has_lints {
        problems.push(format!(
            "{}: needs `[lints] workspace = true`",
            manifest.path.display()
        ));
    }

    problems
}

/// A dependency is named by the code that it serves: one of a library or program by production
/// code, one of tests by tests, one of a build script by that script.
fn check_named(sources: &[Source], trees: &[Tree<'_>]) -> Vec<Problem> {
    let mut problems = Vec::new();
    let members = sources.iter().filter(|source| is_of_member(source));
    for manifest in members {
        let folder = manifest.path.parent().unwrap_or(Path::new(""));
        let trees: Vec<&Tree<'_>> = trees
            .iter()
            .filter(|tree| tree.files[0].source.path.starts_with(folder))
            .collect();
        for dependency in dependencies(manifest) {
            let package = dependency.name.replace('-', "_");
            let (is_named, code) = match dependency.section {
                "[dependencies]" => (in_production(&trees, &package), "code that is no test"),
                "[dev-dependencies]" => (in_tests(&trees, &package), "test"),
                "[build-dependencies]" => (in_build(&trees, &package), "build script"),
                _ => continue,
            };
            let exception = BY_MACROS
                .iter()
                .find(|(member, name, _)| *member == manifest.top() && *name == dependency.name);
            let at = manifest.at(dependency.line);
            if let Some((_, name, why)) = exception
                && is_named
            {
                problems.push(format!("{at}: code names {name}, not only {why}"));
            }
            if exception.is_none() && !is_named {
                problems.push(format!("{at}: no {code} names {}", dependency.name));
            }
        }
    }

    problems
}

/// Every version of the root belongs to a dependency of a member.
fn check_root(sources: &[Source]) -> Vec<Problem> {
    let members = sources.iter().filter(|source| is_of_member(source));
    let named: Vec<&str> = members.flat_map(dependencies).map(|it| it.name).collect();
    let root = sources.iter().find(|source| source.path == Path::new(ROOT));
    let of_workspace = root.into_iter().flat_map(|root| {
        dependencies(root).map(|dependency| (root.at(dependency.line), dependency.name))
    });

    of_workspace
        .filter(|(_, name)| !named.contains(name))
        .map(|(at, name)| format!("{at}: no member names {name}"))
        .collect()
}

fn is_of_member(source: &Source) -> bool {
    source.path.ends_with(ROOT) && source.path.components().count() == 2
}

struct Dependency<'a> {
    section: &'a str,
    name: &'a str,
    line: usize,
}

fn dependencies(manifest: &Source) -> impl Iterator<Item = Dependency<'_>> {
    let mut section = "";
    manifest.lines().filter_map(move |line| {
        let text = line.text.trim();
        if text.starts_with('[') {
            section = text;
        }
        let is_dependency = section.ends_with("dependencies]")
            && text.starts_with(|c: char| c.is_ascii_alphanumeric());

        is_dependency.then(|| Dependency {
            section,
            name: text.split(['.', ' ', '=']).next().unwrap_or_default(),
            line: line.number,
        })
    })
}

fn in_production(trees: &[&Tree<'_>], package: &str) -> bool {
    files(trees, Target::Production).any(|file| mentions(&file.production, package) > 0)
}

fn in_tests(trees: &[&Tree<'_>], package: &str) -> bool {
    files(trees, Target::Test).any(|file| mentions(&file.tokens, package) > 0)
        || files(trees, Target::Production)
            .any(|file| mentions(&file.tokens, package) > mentions(&file.production, package))
}

fn in_build(trees: &[&Tree<'_>], package: &str) -> bool {
    files(trees, Target::Build).any(|file| mentions(&file.tokens, package) > 0)
}

fn files<'a>(
    trees: &'a [&Tree<'a>],
    target: Target,
) -> impl Iterator<Item = &'a modules::File<'a>> {
    let trees = trees.iter().filter(move |tree| tree.target == target);

    trees.flat_map(|tree| &tree.files)
}

/// Counts the paths that begin with the package and the imports that name it alone.
fn mentions(tokens: &[Token<'_>], package: &str) -> usize {
    let text = |at: usize| tokens.get(at).map_or("", |token| token.text);
    let is_mention = |at: usize| {
        let before = at.checked_sub(1).map_or("", text);
        let is_first = before != "::" || !tokens[at.saturating_sub(2)].is_word();

        text(at) == package && is_first && (text(at + 1) == "::" || before == "use")
    };

    (0..tokens.len()).filter(|&at| is_mention(at)).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_without_the_lints_of_the_workspace_is_refused() {
        let manifest = Source::new("tp-core/Cargo.toml", "[package]\n[dependencies]\n");

        assert_eq!(check_one(&manifest).len(), 1);
    }

    #[test]
    fn a_version_outside_the_root_is_refused() {
        let text = "[lints]\nworkspace = true\n[dev-dependencies]\nrand = \"0.10\"\n\
                    bytes.workspace = true\n";
        let manifest = Source::new("tp-core/Cargo.toml", text);

        assert_eq!(
            check_one(&manifest),
            ["tp-core/Cargo.toml:4: versions belong into the manifest at the root"]
        );
    }

    fn named(sources: &[Source]) -> Vec<Problem> {
        check_named(sources, &modules::trees(sources))
    }

    fn member(manifest: &str, files: &[(&str, &str)]) -> Vec<Source> {
        let mut sources = vec![Source::new("tp-a/Cargo.toml", manifest)];
        for (path, text) in files {
            sources.push(Source::new(path, text));
        }

        sources
    }

    #[test]
    fn a_dependency_that_no_code_names_is_refused() {
        let manifest = "[dependencies]\ntokio-util.workspace = true\n";
        let check = |code: &str| named(&member(manifest, &[("tp-a/src/lib.rs", code)]));

        assert!(check("use tokio_util::x;\n").is_empty());
        assert!(check("fn a() { tokio_util::b(); }\n").is_empty());
        let elsewhere = "#[cfg(test)]\nmod tests { use tokio_util::x; }\n";
        for code in ["// tokio_util::x\n", "fn tokio_util() {}\n", elsewhere] {
            assert_eq!(
                check(code),
                ["tp-a/Cargo.toml:2: no code that is no test names tokio-util"]
            );
        }
    }

    #[test]
    fn what_a_macro_names_may_not_be_named_by_code_too() {
        let check = |code| {
            let manifest = "[dependencies]\nserde_json.workspace = true\n";
            let manifest = Source::new("tp-proto/Cargo.toml", manifest);
            named(&[manifest, Source::new("tp-proto/src/lib.rs", code)])
        };

        assert!(check("").is_empty());
        assert_eq!(check("use serde_json::Value;\n").len(), 1);
    }

    #[test]
    fn a_dependency_of_tests_is_named_by_a_test() {
        let manifest = "[dev-dependencies]\nhttp.workspace = true\n";
        let check = |path: &str, code: &str| {
            let root = ("tp-a/src/lib.rs", "#[cfg(test)]\nmod tests;\n");
            named(&member(manifest, &[root, (path, code)]))
        };

        assert!(check("tp-a/src/tests.rs", "use http::x;\n").is_empty());
        assert!(check("tp-a/tests/b.rs", "use http::x;\n").is_empty());
        assert_eq!(check("tp-a/src/main.rs", "use http::x;\n").len(), 1);
    }

    #[test]
    fn a_dependency_of_the_build_script_is_named_by_it() {
        let manifest = "[build-dependencies]\nprotox.workspace = true\n";
        let check = |path| named(&member(manifest, &[(path, "protox::compile();\n")]));

        assert!(check("tp-a/build.rs").is_empty());
        assert_eq!(check("tp-a/src/lib.rs").len(), 1);
    }

    #[test]
    fn a_dependency_of_the_workspace_is_one_of_a_member() {
        let root = "[workspace.dependencies]\nbytes = \"1\"\nrand = \"0.10\"\n";
        let mut sources = member("[dependencies]\nbytes.workspace = true\n", &[]);
        sources.push(Source::new(ROOT, root));

        assert_eq!(check_root(&sources), ["Cargo.toml:3: no member names rand"]);
    }
}
