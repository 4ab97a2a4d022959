//! Shape of the source files: size, unsafe code, opening comments, no `mod.rs`, clocks.

use super::{Problem, Source};

const MAX_LINES: usize = 500;

/// Places for unsafe code: files, and folders with a slash at the end.
const UNSAFE: [&str; 8] = [
    "tp-agentd/tests/",
    "tp-ebpf/",
    "tp-ebpf-common/src/pod.rs",
    "tp-ebpf-loader/",
    "tp-daemon/src/sys.rs",
    "tp-process/src/sys.rs",
    "tp-session/src/sys",
    "tp-e2e/",
];
/// Crates whose root cannot forbid it, because they have a file above.
const NOT_FORBIDDEN: [&str; 7] = [
    "tp-daemon",
    "tp-e2e",
    "tp-ebpf",
    "tp-ebpf-common",
    "tp-ebpf-loader",
    "tp-process",
    "tp-session",
];
/// The crate that gets the time as an argument.
const PURE: &str = "tp-core";
const CLOCKS: [&str; 2] = ["Instant::now", "SystemTime::now"];

pub(super) fn check(sources: &[Source]) -> Vec<Problem> {
    let mut problems = Vec::new();
    for source in sources.iter().filter(|source| source.is_rust()) {
        let path = source.path.display();
        let lines = source.production_lines();
        if lines > MAX_LINES {
            problems.push(format!(
                "{path}: {lines} lines without tests, more than {MAX_LINES}"
            ));
        }
        if source.path.ends_with("mod.rs") {
            problems.push(format!(
                "{path}: a module is foo.rs beside foo/, not mod.rs"
            ));
        }
        if needs_opening(source, sources) && !has_opening(source) {
            problems.push(format!("{path}: needs a `//!` that says what it owns"));
        }
        if is_root(source)
            && !NOT_FORBIDDEN.contains(&source.top())
            && !source.text.contains("#![forbid(unsafe_code)]")
        {
            problems.push(format!("{path}: needs #![forbid(unsafe_code)]"));
        }
        if is_orphan(source, sources) {
            problems.push(format!("{path}: no module names it, so nobody compiles it"));
        }
        problems.extend(check_lines(source));
    }

    problems
}

fn check_lines(source: &Source) -> Vec<Problem> {
    let mut problems = Vec::new();
    let path = source.path.to_string_lossy();
    let may_be_unsafe = UNSAFE.iter().any(|allowed| path.starts_with(allowed));
    for line in source.lines() {
        let code = line.code();
        let is_unsafe = code
            .split(|c: char| !(c.is_alphanumeric() || c == '_'))
            .any(|word| word == "unsafe");
        if is_unsafe && !may_be_unsafe {
            let at = source.at(line.number);
            problems.push(format!("{at}: unsafe code belongs into the listed files"));
        }
        if source.top() == PURE && !line.is_test && CLOCKS.iter().any(|clock| code.contains(clock))
        {
            let at = source.at(line.number);
            problems.push(format!("{at}: {PURE} gets the time as an argument"));
        }
    }

    problems
}

fn is_root(source: &Source) -> bool {
    source.path.components().count() == 3
        && (source.path.ends_with("src/lib.rs") || source.path.ends_with("src/main.rs"))
}

/// A file below `src` that no parent declares as its module.
fn is_orphan(source: &Source, sources: &[Source]) -> bool {
    let Some((folder, name)) = source.path.parent().zip(source.path.file_stem()) else {
        return false;
    };
    let is_below_src = folder
        .components()
        .nth(1)
        .is_some_and(|part| part.as_os_str() == "src");
    let is_program = is_root(source) || folder.ends_with("src/bin");
    let declaration = format!("mod {};", name.to_string_lossy());
    let mut parents = sources.iter().filter(|other| {
        other.path == folder.with_extension("rs")
            || (folder.ends_with("src")
                && (other.path == folder.join("main.rs") || other.path == folder.join("lib.rs")))
    });

    is_below_src && !is_program && !parents.any(|parent| parent.text.contains(&declaration))
}

/// A root, or a module with children.
fn needs_opening(source: &Source, sources: &[Source]) -> bool {
    let children = source.path.with_extension("");

    is_root(source)
        || sources
            .iter()
            .any(|other| other.path.starts_with(&children))
}

fn has_opening(source: &Source) -> bool {
    source
        .text
        .lines()
        .find(|line| !line.is_empty() && !line.starts_with("#!"))
        .is_some_and(|line| line.starts_with("//! "))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: &str = "//! Owns it.\n\n#![forbid(unsafe_code)]\n";

    #[test]
    fn a_file_has_a_size() {
        let long = "fn a() {}\n".repeat(MAX_LINES + 1);
        let tests = format!("#[cfg(test)]\nmod tests {{\n{long}}}\n");

        assert_eq!(check(&[Source::new("tp-core/build.rs", &long)]).len(), 1);
        assert!(check(&[Source::new("tp-core/build.rs", &tests)]).is_empty());
    }

    #[test]
    fn unsafe_code_has_an_address() {
        let text = "// unsafe is a word here\nunsafe { a() }\n";

        assert_eq!(
            check_lines(&Source::new("tp-manager/src/a.rs", text)),
            ["tp-manager/src/a.rs:2: unsafe code belongs into the listed files"]
        );
        assert!(check_lines(&Source::new("tp-daemon/src/sys.rs", text)).is_empty());
    }

    #[test]
    fn a_root_and_a_parent_say_what_they_own() {
        let root = Source::new("tp-core/src/lib.rs", "#![forbid(unsafe_code)]\nmod a;\n");
        let parent = Source::new("tp-core/src/a.rs", "mod b;\n");
        let child = Source::new("tp-core/src/a/b.rs", "fn b() {}\n");

        assert_eq!(check(&[root, parent, child]).len(), 2);
        assert!(check(&[Source::new("tp-core/src/lib.rs", ROOT)]).is_empty());
    }

    #[test]
    fn a_file_that_no_module_names_is_found() {
        let root = format!("{ROOT}mod a;\n");
        let root = || Source::new("tp-core/src/lib.rs", &root);
        let a = || Source::new("tp-core/src/a.rs", "");
        let b = || Source::new("tp-core/src/b.rs", "");

        assert!(check(&[root(), a()]).is_empty());
        assert_eq!(
            check(&[root(), a(), b()]),
            ["tp-core/src/b.rs: no module names it, so nobody compiles it"]
        );
    }

    #[test]
    fn the_pure_crate_reads_no_clock() {
        let source = Source::new("tp-core/src/a.rs", "let now = Instant::now();\n");

        assert_eq!(check_lines(&source).len(), 1);
    }
}
