//! Items that the files of one crate import from each other: imports and paths, each followed to
//! the file that defines the item.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    modules::{Scopes, Tree},
    tokens::{self, Token},
};

/// The longest chain of re-exports that is followed.
const MAX_STEPS: usize = 16;

/// For each pair of files, by number, the items that the first imports from the second.
pub(super) type Imports = BTreeMap<(usize, usize), BTreeSet<String>>;

type Path = Vec<String>;

/// A name that a module imports.
#[derive(Debug)]
struct Use {
    module: Path,
    /// `*` for all names.
    name: String,
    path: Path,
    is_public: bool,
}

/// The parsed content of one file.
#[derive(Debug, Default)]
struct Contents {
    uses: Vec<Use>,
    /// Paths outside of imports, each with its module.
    paths: Vec<(Path, Path)>,
    /// All words outside of imports.
    words: BTreeSet<String>,
    /// All modules of the file, inline ones included.
    modules: BTreeSet<Path>,
}

/// The contents of all files of one tree.
#[derive(Debug, Default)]
struct Index<'a> {
    modules: BTreeMap<Path, usize>,
    names: BTreeMap<(&'a [String], &'a str), &'a [String]>,
}

/// Reads the production code of a tree.
///
/// Importing a module does not count: `use super::a` counts where `a::b` is used. A re-export
/// counts only if its file uses the name itself.
pub(super) fn imports(tree: &Tree<'_>) -> Imports {
    let contents: Vec<Contents> = tree
        .files
        .iter()
        .map(|file| read(&file.module, &file.production))
        .collect();
    let mut index = Index::default();
    for (number, contents) in contents.iter().enumerate() {
        for module in &contents.modules {
            index.modules.insert(module.clone(), number);
        }
        for it in &contents.uses {
            let key = (it.module.as_slice(), it.name.as_str());
            index.names.insert(key, &it.path);
        }
    }

    let mut imports = Imports::new();
    for (number, contents) in contents.iter().enumerate() {
        let taken = contents
            .uses
            .iter()
            .filter(|it| !it.is_public || contents.words.contains(&it.name))
            .map(|it| (&it.module, &it.path));
        let named = contents.paths.iter().map(|(module, path)| (module, path));
        for (module, path) in taken.chain(named) {
            if let Some((file, Some(item))) = index.find(module, path, MAX_STEPS)
                && file != number
            {
                imports.entry((number, file)).or_default().insert(item);
            }
        }
    }

    imports
}

impl Index<'_> {
    /// The file that defines the path's item, and the item, unless it is a module.
    fn find(
        &self,
        module: &[String],
        path: &[String],
        steps: usize,
    ) -> Option<(usize, Option<String>)> {
        let steps = steps.checked_sub(1)?;
        let (mut at, mut rest) = self.begin(module, path)?;
        while let Some((name, after)) = rest.split_first() {
            let child = below(&at, name);
            if self.modules.contains_key(&child) {
                at = child;
                rest = after;
                continue;
            }
            let elsewhere = self.names.get(&(at.as_slice(), name.as_str()));
            let elsewhere = elsewhere.filter(|_| name != "*");
            let followed = elsewhere.and_then(|path| {
                let path: Path = path.iter().chain(after).cloned().collect();
                self.find(&at, &path, steps)
            });
            let file = *self.modules.get(&at)?;
            return match followed {
                Some(found) => Some(found),
                // Its first word is a name of this module, or another package.
                None if at == module && path.first() == Some(name) => None,
                None => Some((file, Some(name.clone()))),
            };
        }

        Some((*self.modules.get(&at)?, None))
    }

    /// The module in which the path begins, and the path from there.
    fn begin<'p>(&self, module: &[String], path: &'p [String]) -> Option<(Path, &'p [String])> {
        let mut at = module.to_vec();
        let mut rest = path;
        while let Some((first, after)) = rest.split_first() {
            match first.as_str() {
                "crate" => at.clear(),
                "self" => {}
                "super" => {
                    at.pop()?;
                }
                _ => break,
            }
            rest = after;
        }

        Some((at, rest))
    }
}

fn below(module: &[String], name: &str) -> Path {
    let mut path = module.to_vec();
    path.push(name.to_owned());

    path
}

fn read(module: &[String], tokens: &[Token<'_>]) -> Contents {
    let mut contents = Contents::default();
    contents.modules.insert(module.to_vec());
    let mut scopes = Scopes::default();
    let mut at = 0;
    while at < tokens.len() {
        scopes.step(&tokens[at..]);
        let mut scope = module.to_vec();
        scope.extend(scopes.around().map(str::to_owned));
        if tokens[at].text == "use" && tokens[at + 1..].first().is_some_and(|it| it.text != "<") {
            let is_public = at > 0 && is_public(&tokens[..at]);
            let mut found = Vec::new();
            at += 1 + read_use(&tokens[at + 1..], &[], &mut found);
            contents
                .uses
                .extend(found.into_iter().map(|(name, path)| Use {
                    module: scope.clone(),
                    name,
                    path,
                    is_public,
                }));
            continue;
        }
        contents.modules.insert(scope.clone());
        let path = read_path(&tokens[at..]);
        contents.words.extend(path.iter().cloned());
        // Skips the whole path, with the signs between the words.
        at += (path.len() * 2).max(2) - 1;
        if path.len() > 1 {
            contents.paths.push((scope, path));
        }
    }

    contents
}

/// Returns whether `pub` or `pub(…)` precedes an import.
fn is_public(before: &[Token<'_>]) -> bool {
    let text = |back: usize| before.iter().rev().nth(back).map_or("", |token| token.text);

    text(0) == "pub" || (text(0) == ")" && (text(3) == "pub" || text(4) == "pub"))
}

/// Reads the names of one import and the path of each; returns the number of tokens.
fn read_use(tokens: &[Token<'_>], before: &[String], found: &mut Vec<(String, Path)>) -> usize {
    let text = |at: usize| tokens.get(at).map_or(";", |token| token.text);
    let mut path = before.to_vec();
    let mut at = 0;
    loop {
        match text(at) {
            "::" => at += 1,
            "{" => {
                let end = at + tokens::length_of_group(&tokens[at..]);
                at += 1;
                while at < end - 1 {
                    at += read_use(&tokens[at..end - 1], &path, found);
                    at += usize::from(text(at) == ",");
                }
                return end;
            }
            "*" => {
                path.push("*".to_owned());
                found.push(("*".to_owned(), path));
                return at + 1;
            }
            "as" => {
                found.push((text(at + 1).to_owned(), path));
                return at + 2;
            }
            "," | ";" | "}" => {
                let name = path.last().cloned().unwrap_or_default();
                found.push((name, path));
                return at;
            }
            "self" if !path.is_empty() => at += 1,
            word => {
                path.push(word.to_owned());
                at += 1;
            }
        }
    }
}

/// The words here that `::` connects.
fn read_path(tokens: &[Token<'_>]) -> Path {
    let mut path = Path::new();
    for pair in tokens.chunks(2) {
        if !pair[0].is_word() {
            break;
        }
        path.push(pair[0].text.to_owned());
        if pair.get(1).is_none_or(|sign| sign.text != "::") {
            break;
        }
    }

    path
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::{Source, modules};

    /// As `FROM TO ITEM`, with the stems of the files.
    fn found(files: &[(&str, &str)]) -> Vec<String> {
        let sources: Vec<Source> = files
            .iter()
            .map(|(path, text)| Source::new(&format!("tp-a/src/{path}.rs"), text))
            .collect();
        let tree = modules::trees(&sources).remove(0);
        let stem = |number: usize| {
            let path = &tree.files[number].source.path;
            path.file_stem().unwrap().to_str().unwrap().to_owned()
        };
        let mut found = Vec::new();
        for ((from, to), items) in imports(&tree) {
            for item in items {
                found.push(format!("{} {} {item}", stem(from), stem(to)));
            }
        }

        found
    }

    #[test]
    fn an_import_is_of_the_file_that_has_the_item() {
        let a = "use crate::{\n    b::{self, X, c::Y as Z},\n    b::c::*,\n};\nb::run();\n";
        let files = [
            ("main", "mod a;\nmod b;\n"),
            ("a", a),
            ("b", "mod c;\n"),
            ("b/c", ""),
        ];

        assert_eq!(found(&files), ["a b X", "a b run", "a c *", "a c Y"]);
    }

    #[test]
    fn a_path_in_code_is_an_import() {
        let files = [
            ("main", "mod a;\nmod b;\n"),
            ("a", "fn a() { crate::b::x::<u8>(super::Y) }\n"),
            ("b", ""),
        ];

        assert_eq!(found(&files), ["a main Y", "a b x"]);
    }

    #[test]
    fn a_re_export_is_followed_and_is_no_import_by_itself() {
        let found = |code: &str| {
            let a = format!("mod b;\npub(crate) use b::X;\n{code}");
            found(&[("main", "mod a;\nuse a::X;\n"), ("a", &a), ("a/b", "")])
        };

        assert_eq!(found(""), ["main b X"]);
        assert_eq!(found("fn f(x: X) {}\n"), ["main b X", "a b X"]);
    }

    #[test]
    fn packages_and_tests_are_no_imports() {
        let a = "use std::io;\nio::x();\nSelf::y();\nb::z();\n\
                 #[cfg(test)]\nmod tests { use crate::b::X; }\n";
        let files = [("main", "mod a;\nmod b;\n"), ("a", a), ("b", "")];

        assert_eq!(found(&files), [""; 0]);
    }

    #[test]
    fn a_module_in_a_file_has_its_own_parent() {
        let a = "pub mod inner { use super::{X, super::b::Y}; }\n";
        let files = [
            ("main", "mod a;\nmod b;\nuse a::inner::Z;\n"),
            ("a", a),
            ("b", ""),
        ];

        assert_eq!(found(&files), ["main a Z", "a b Y"]);
    }
}
