//! The files that the rules check.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

const EXTENSIONS: [&str; 10] = [
    "go", "json", "md", "mod", "proto", "rs", "sh", "toml", "yaml", "yml",
];
const NOT_OURS: [&str; 3] = ["target", ".git", ".testbed"];

/// One text file; `path` is relative to the root.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) path: PathBuf,
    pub(super) text: String,
}

impl Source {
    #[cfg(test)]
    pub(super) fn new(path: &str, text: &str) -> Self {
        Self {
            path: path.into(),
            text: text.into(),
        }
    }

    pub(super) fn is_rust(&self) -> bool {
        self.path.extension().is_some_and(|it| it == "rs")
    }

    /// The crate's folder, or another entry of the root.
    pub(super) fn top(&self) -> &str {
        self.path
            .components()
            .next()
            .and_then(|part| part.as_os_str().to_str())
            .unwrap_or_default()
    }

    /// Returns whether the whole file is test code.
    pub(super) fn is_test_file(&self) -> bool {
        self.top() == "tp-e2e"
            || self
                .path
                .components()
                .any(|part| part.as_os_str() == "tests")
            || self.path.file_stem().is_some_and(|stem| stem == "tests")
    }

    /// The number of lines before the module of tests.
    pub(super) fn production_lines(&self) -> usize {
        if self.is_test_file() {
            return 0;
        }
        let lines: Vec<&str> = self.text.lines().collect();

        first_test_line(&lines).unwrap_or(lines.len())
    }

    /// Numbered lines, each marked as production or test code.
    pub(super) fn lines(&self) -> impl Iterator<Item = Line<'_>> {
        let production = self.production_lines();
        self.text
            .lines()
            .enumerate()
            .map(move |(index, text)| Line {
                number: index + 1,
                text,
                is_test: index >= production,
            })
    }

    pub(super) fn at(&self, line: usize) -> String {
        format!("{}:{line}", self.path.display())
    }
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Line<'a> {
    pub(super) number: usize,
    pub(super) text: &'a str,
    pub(super) is_test: bool,
}

impl<'a> Line<'a> {
    /// The line without comments and contents of strings.
    pub(super) fn code(self) -> String {
        let mut code = String::new();
        let mut in_string = false;
        let mut characters = self.text.chars().peekable();
        while let Some(character) = characters.next() {
            match character {
                '\\' if in_string => {
                    characters.next();
                }
                '"' => in_string = !in_string,
                '/' if !in_string && characters.peek() == Some(&'/') => break,
                _ if in_string => {}
                character => code.push(character),
            }
        }

        code
    }

    /// The line, if it is a comment.
    pub(super) fn comment(self) -> Option<&'a str> {
        let trimmed = self.text.trim_start();

        trimmed.starts_with("//").then_some(trimmed)
    }
}

/// The first line from which on all code is for tests: a module with its contents, or declarations
/// of modules at the end of the file.
fn first_test_line(lines: &[&str]) -> Option<usize> {
    (0..lines.len()).find(|&index| {
        let mut after = lines[index + 1..]
            .iter()
            .filter(|line| !line.is_empty() && !line.trim_start().starts_with("#["));
        let is_module = |line: &&str| line.trim_start().starts_with("mod ");

        lines[index].starts_with("#[cfg(test)]")
            && after.next().is_some_and(|line| {
                is_module(line) && (line.ends_with('{') || after.all(is_module))
            })
    })
}

/// Every text file of the workspace, sorted by path.
pub(super) fn read_all(root: &Path) -> Result<Vec<Source>> {
    let mut sources = Vec::new();
    let mut dirs = vec![root.to_path_buf()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).with_context(|| format!("reading {}", dir.display()))? {
            let entry = entry?;
            let path = entry.path();
            let name = entry.file_name();
            if entry.file_type()?.is_dir() {
                if !NOT_OURS.iter().any(|skipped| name == *skipped) {
                    dirs.push(path);
                }
            } else if path
                .extension()
                .is_some_and(|it| EXTENSIONS.iter().any(|known| it == *known))
            {
                let text = fs::read_to_string(&path)
                    .with_context(|| format!("reading {}", path.display()))?;
                let path = path.strip_prefix(root).unwrap_or(&path).to_path_buf();
                sources.push(Source { path, text });
            }
        }
    }
    sources.sort_by(|one, other| one.path.cmp(&other.path));

    Ok(sources)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(text: &str) -> String {
        let line = Line {
            number: 1,
            text,
            is_test: false,
        };

        line.code()
    }

    #[test]
    fn code_is_what_is_neither_comment_nor_string() {
        assert_eq!(code("let a = \"unsafe // {\"; // unsafe"), "let a = ; ");
        assert_eq!(code("// unsafe"), "");
        assert_eq!(code("x(\"a\\\"unsafe\", b)"), "x(, b)");
    }

    #[test]
    fn lines_of_the_test_module_are_not_production() {
        let source = Source::new(
            "tp-core/src/lib.rs",
            "fn a() {}\n\n#[cfg(test)]\nmod tests {\n    fn b() {}\n}\n",
        );

        assert_eq!(source.production_lines(), 2);
        assert_eq!(source.lines().filter(|line| line.is_test).count(), 4);
    }

    #[test]
    fn a_declaration_of_tests_at_the_top_does_not_end_the_production_code() {
        let top = Source::new("a/src/lib.rs", "#[cfg(test)]\nmod tests;\n\nfn a() {}\n");
        let end = "fn a() {}\n\n#[cfg(test)]\n#[path = \"b\"]\nmod b;\n#[cfg(test)]\nmod c;\n";
        let end = Source::new("a/src/lib.rs", end);

        assert_eq!((top.production_lines(), end.production_lines()), (4, 2));
    }

    #[test]
    fn a_helper_for_tests_does_not_end_the_production_code() {
        let source = Source::new("a/src/lib.rs", "#[cfg(test)]\nfn helper() {}\nfn a() {}\n");

        assert_eq!(source.production_lines(), 3);
    }
}
