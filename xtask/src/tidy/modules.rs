//! The crates of this repository as trees of module files: the module path of each file in its
//! program or library, and whether it is test code.

use std::path::{Path, PathBuf};

use super::{
    Source,
    tokens::{self, Token},
};

/// The kind of target that a tree is compiled to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    /// A library or a program.
    Production,
    /// Tests, examples.
    Test,
    Build,
}

/// A library, a program, a test program or a build script, with the files of its modules.
#[derive(Debug)]
pub(super) struct Tree<'a> {
    pub(super) target: Target,
    /// The root is first.
    pub(super) files: Vec<File<'a>>,
}

/// A Rust file as a module.
#[derive(Debug)]
pub(super) struct File<'a> {
    pub(super) source: &'a Source,
    /// The module path; empty for the root.
    pub(super) module: Vec<String>,
    pub(super) tokens: Vec<Token<'a>>,
    /// The tokens outside of test code.
    pub(super) production: Vec<Token<'a>>,
}

/// A declaration of a module in another file.
#[derive(Debug, PartialEq, Eq)]
struct Declaration<'a> {
    /// The inline modules around it.
    around: Vec<&'a str>,
    name: &'a str,
    path: Option<&'a str>,
    is_test: bool,
}

/// The trees of all crates, in the order of the roots' paths.
pub(super) fn trees(sources: &[Source]) -> Vec<Tree<'_>> {
    let programs = declared_programs(sources);
    let mut trees = Vec::new();
    for source in sources.iter().filter(|source| source.is_rust()) {
        if let Some(target) = target(&source.path, &programs) {
            let mut files = Vec::new();
            add(sources, source, Vec::new(), false, &mut files);
            trees.push(Tree { target, files });
        }
    }

    trees
}

/// Roots of programs, from the manifests.
fn declared_programs(sources: &[Source]) -> Vec<PathBuf> {
    let mut programs = Vec::new();
    for manifest in sources.iter().filter(|it| it.path.ends_with("Cargo.toml")) {
        let mut section = "";
        for line in manifest.text.lines().map(str::trim) {
            if line.starts_with('[') {
                section = line;
            } else if section == "[[bin]]"
                && let Some(path) = line.strip_prefix("path = ")
            {
                programs.push(manifest.path.with_file_name(path.trim_matches('"')));
            }
        }
    }

    programs
}

/// The target whose root the file is.
fn target(path: &Path, programs: &[PathBuf]) -> Option<Target> {
    let parts: Vec<&str> = path.iter().filter_map(|part| part.to_str()).collect();
    match parts.as_slice() {
        _ if programs.iter().any(|program| program == path) => Some(Target::Production),
        [_, "src", "lib.rs" | "main.rs"] | [_, "src", "bin", _] => Some(Target::Production),
        [_, "build.rs"] => Some(Target::Build),
        [_, "benches" | "examples" | "tests", _]
        | [_, "benches" | "examples" | "tests", _, "main.rs"] => Some(Target::Test),
        _ => None,
    }
}

fn add<'a>(
    sources: &'a [Source],
    source: &'a Source,
    module: Vec<String>,
    is_test: bool,
    files: &mut Vec<File<'a>>,
) {
    let tokens = tokens::tokens(&source.text);
    let declarations = declarations(&tokens);
    let is_root = module.is_empty();
    let production = if is_test {
        Vec::new()
    } else {
        tokens::production(&tokens)
    };
    files.push(File {
        source,
        module: module.clone(),
        tokens,
        production,
    });
    for declaration in declarations {
        let path = path_of(&source.path, is_root, &declaration);
        let Some(child) = sources.iter().find(|source| source.path == path) else {
            continue;
        };
        let mut module = module.clone();
        module.extend(declaration.around.iter().map(|&name| name.to_owned()));
        module.push(declaration.name.to_owned());
        let is_test = is_test || declaration.is_test;
        add(sources, child, module, is_test, files);
    }
}

fn path_of(parent: &Path, is_root: bool, declaration: &Declaration<'_>) -> PathBuf {
    let folder = parent.parent().unwrap_or(parent);
    if let Some(path) = declaration.path {
        return folder.join(path);
    }
    let mut path = if is_root {
        folder.to_path_buf()
    } else {
        parent.with_extension("")
    };
    path.extend(&declaration.around);

    path.join(format!("{}.rs", declaration.name))
}

fn declarations<'a>(tokens: &[Token<'a>]) -> Vec<Declaration<'a>> {
    let mut found = Vec::new();
    let mut scopes = Scopes::default();
    let mut path = None;
    let mut is_test = false;
    for (at, token) in tokens.iter().enumerate() {
        scopes.step(&tokens[at..]);
        if tokens::is_for_tests(&tokens[at..]) {
            is_test = true;
        }
        match (token.text, tokens.get(at + 1), tokens.get(at + 2)) {
            ("path", Some(is), Some(value)) if is.text == "=" => {
                path = Some(value.text.trim_matches('"'));
            }
            ("mod", Some(name), Some(end)) if end.text == ";" => found.push(Declaration {
                around: scopes.around().collect(),
                name: name.text,
                path: path.take(),
                is_test,
            }),
            (";" | "{" | "}", _, _) => (path, is_test) = (None, false),
            _ => {}
        }
    }

    found
}

/// The inline modules around a token.
#[derive(Debug, Default)]
pub(super) struct Scopes<'a> {
    depth: usize,
    open: Vec<(usize, &'a str)>,
}

impl<'a> Scopes<'a> {
    /// Advances to the first of the tokens.
    pub(super) fn step(&mut self, tokens: &[Token<'a>]) {
        match tokens {
            [word, name, brace, ..] if word.text == "mod" && brace.text == "{" => {
                self.open.push((self.depth, name.text));
            }
            [token, ..] if token.text == "{" => self.depth += 1,
            [token, ..] if token.text == "}" => {
                self.depth = self.depth.saturating_sub(1);
                self.open.retain(|(depth, _)| *depth < self.depth);
            }
            _ => {}
        }
    }

    pub(super) fn around(&self) -> impl Iterator<Item = &'a str> {
        self.open.iter().map(|(_, name)| *name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(sources: &[Source]) -> Vec<(String, String, bool)> {
        let mut found = Vec::new();
        for tree in trees(sources) {
            for file in tree.files {
                let path = file.source.path.display().to_string();
                let is_test = file.production.is_empty() && !file.tokens.is_empty();
                found.push((path, file.module.join("::"), is_test));
            }
        }

        found
    }

    fn file(path: &str, module: &str, is_test: bool) -> (String, String, bool) {
        (path.into(), module.into(), is_test)
    }

    #[test]
    fn every_file_is_a_module_of_its_root() {
        let sources = [
            Source::new("tp-a/src/lib.rs", "mod b;\nmod x { mod y; }\n"),
            Source::new("tp-a/src/b.rs", "pub mod c;\n"),
            Source::new("tp-a/src/b/c.rs", ""),
            Source::new("tp-a/src/x/y.rs", ""),
        ];

        let expected = [
            file("tp-a/src/lib.rs", "", false),
            file("tp-a/src/b.rs", "b", false),
            file("tp-a/src/b/c.rs", "b::c", false),
            file("tp-a/src/x/y.rs", "x::y", false),
        ];
        assert_eq!(files(&sources), expected);
    }

    #[test]
    fn a_module_for_tests_is_test_code_with_its_children() {
        let declared = "#[cfg(test)]\n#[path = \"b/tests.rs\"]\nmod tests;\nmod b;\n";
        let sources = [
            Source::new("tp-a/src/main.rs", declared),
            Source::new("tp-a/src/b.rs", ""),
            Source::new("tp-a/src/b/tests.rs", "mod world;\n"),
            Source::new("tp-a/src/b/tests/world.rs", "fn world() {}\n"),
        ];

        let tests: Vec<bool> = files(&sources).into_iter().map(|it| it.2).collect();
        assert_eq!(tests, [false, true, true, false]);
    }

    #[test]
    fn a_program_may_be_where_the_manifest_says() {
        let sources = [
            Source::new("tp-a/Cargo.toml", "[[bin]]\npath = \"x/main.rs\"\n"),
            Source::new("tp-a/x/main.rs", "mod y;\n"),
            Source::new("tp-a/x/y.rs", ""),
        ];

        assert_eq!(files(&sources).len(), 2);
        assert_eq!(trees(&sources)[0].target, Target::Production);
    }
}
