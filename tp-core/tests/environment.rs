//! The environments that tp writes, read by the programs that they are for.

#![expect(clippy::unwrap_used, reason = "helpers beside tests")]

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    process::{self, Command},
};

use tp_core::environment::{Environ, ProcessEnvironment, filter::Filter, syntax::Syntax};

/// Values with all that shells and tools know: none may do anything.
const VALUES: [&[u8]; 23] = [
    b"",
    b"plain",
    b" spaces  around ",
    b"it's",
    b"it's $HOME ${HOME} \\$HOME $$",
    b"'",
    b"''\\''",
    b"\"double\"",
    b"$(echo ran >&2)${HOME}$HOME$$",
    b"`echo ran >&2`",
    b"!! !x ^a^b^",
    b"%PATH% %%",
    b"a\nb\n\nA1='evil'\nexport A2=evil\n",
    b"a\r\nb\r",
    b"tab\tbell\x07escape\x1b[31m",
    b"\\ \\\\ \\n \\' \\\" \\",
    b"# no comment # at all",
    b"a=b=c; echo ran >&2 & | < > ( ) { } [ ] * ? ~",
    b"~/x:~root",
    b"-n -e",
    "é ’ ‘ “ ” 😀 \u{feff}".as_bytes(),
    b"EOF\nE\n",
    b"');echo ran >&2;('",
];

#[test]
fn posix_shells_read_what_was_written() {
    let mut environment = hostile(&VALUES);
    environment.extend(
        hostile(&[b"\xff\xfe no text \x80", b"a'\xc3"])
            .into_iter()
            .map(|(name, value)| (format!("BYTES_{name}"), value)),
    );
    for shell in ["sh", "bash", "dash", "busybox"]
        .into_iter()
        .filter(|it| is_installed(it))
    {
        for syntax in ["sh", "sh:export"] {
            let file = written(syntax, &environment, 0);
            let script = "set -a; . \"$1\"; exec env -0";
            let mut command = Command::new(shell);
            if shell == "busybox" {
                command.arg("sh");
            }
            command.args(["-c", script, "sh"]).arg(&file.0);

            let read = environ_of(&mut command);

            assert_same(&environment, &read, &format!("{shell} {syntax}"));
        }
    }
}

#[test]
fn a_plain_shell_file_hands_nothing_on() {
    let environment = hostile(&[b"x"]);
    let file = written("sh", &environment, 0);

    let read = environ_of(
        Command::new("sh")
            .args(["-c", ". \"$1\"; exec env -0", "sh"])
            .arg(&file.0),
    );

    assert!(read.value(b"A0").is_none());
}

#[test]
fn an_interactive_bash_substitutes_no_history() {
    if !is_installed("bash") {
        return;
    }
    let environment = hostile(&[b"!! !x !$ ^a^b", b"it's !!", b"\\!"]);
    let file = written("sh:export", &environment, 0);
    let script = fs::read_to_string(&file.0).unwrap();
    // Read as if it were typed, with history expansion.
    let typed = TemporaryFile::with(format!("set -H -o history\n{script}exec env -0\n").as_bytes());

    let read = environ_of(Command::new("bash").arg("--norc").arg(&typed.0));

    assert_same(&environment, &read, "bash with history");
}

#[test]
fn other_readers_read_what_was_written() {
    let text: Vec<&[u8]> = VALUES.to_vec();
    let environment = hostile(&text);
    let file = written("json", &environment, 0);
    let python = "import json,sys; d=json.load(open(sys.argv[1],encoding='utf-8'))\n\
        sys.stdout.buffer.write(b''.join((k+'='+v).encode()+b'\\0' for k,v in d.items()))";
    let node = "const d=JSON.parse(require('fs').readFileSync(process.argv[1],'utf8'));\
        process.stdout.write(Object.entries(d).map(([k,v])=>k+'='+v+'\\0').join(''))";
    for (program, flag, script) in [("python3", "-c", python), ("node", "-e", node)] {
        if is_installed(program) {
            let read = environ_of(Command::new(program).args([flag, script]).arg(&file.0));

            assert_same(&environment, &read, program);
        }
    }
}

#[test]
fn csh_and_powershell_read_what_was_written() {
    let held: Vec<&[u8]> = VALUES
        .into_iter()
        .filter(|it| !it.contains(&b'\r'))
        .collect();
    let environment = hostile(&held);
    for shell in ["csh", "tcsh"].into_iter().filter(|it| is_installed(it)) {
        let file = written("csh:export", &environment, 0);
        let script = format!("source {}; exec env -0", file.0.display());

        let read = environ_of(Command::new(shell).args(["-f", "-c", &script]));

        assert_same(&environment, &read, shell);
    }
    let held: Vec<&[u8]> = VALUES.into_iter().filter(|it| !it.is_empty()).collect();
    let environment = hostile(&held);
    if is_installed("pwsh") {
        let file = written("ps", &environment, 0);
        let script = format!(". {}; env -0", file.0.display());

        let read = environ_of(Command::new("pwsh").args(["-NoProfile", "-Command", &script]));

        assert_same(&environment, &read, "pwsh");
    }
}

#[test]
fn docker_and_compose_files_are_read_by_their_rules() {
    let environment = hostile(&VALUES);
    // Three values of the list have line breaks.
    let file = written("docker", &environment, 3);
    let read = read_as_docker_does(&fs::read(&file.0).unwrap());
    for (name, value) in read {
        assert_eq!(environment.get(&name), Some(&value), "docker {name}");
    }
    let file = written("compose", &environment, 0);
    let read = read_as_compose_does(&fs::read_to_string(&file.0).unwrap());
    for (name, value) in &environment {
        let expected = std::str::from_utf8(value).unwrap();
        assert_eq!(
            read.get(name).map(String::as_str),
            Some(expected),
            "compose {name}"
        );
    }
}

#[test]
fn the_environ_of_a_process_goes_through_filter_and_shell() {
    let bytes = b"PATH=/pod/bin\0A=$(id)\0LD_PRELOAD=/x.so\0DROP=1\0A=second\0B=\0";
    let Environ::Intact { environment, .. } = Environ::parse(bytes) else {
        panic!("it is intact");
    };
    let filter = Filter {
        exclude: vec!["DR*".parse().unwrap()],
        set: vec!["C=it's".parse().unwrap()],
        ..Filter::default()
    };

    let filtered = filter.apply(&environment);
    let written = Syntax::default().write(&filtered.environment);

    assert_eq!(
        String::from_utf8(written.text).unwrap(),
        "A=$(id)\nB=\nC=it's\n"
    );
    let left_out: Vec<&str> = filtered
        .left_out
        .iter()
        .map(|(name, _)| name.as_str())
        .collect();
    assert_eq!(left_out, ["PATH", "LD_PRELOAD", "DROP"]);
    assert_eq!(environment.value(b"PATH"), Some(b"/pod/bin".as_slice()));
}

type Pairs = BTreeMap<String, Vec<u8>>;

fn hostile(values: &[&[u8]]) -> Pairs {
    let named = values.iter().enumerate();

    named
        .map(|(at, value)| (format!("A{at}"), value.to_vec()))
        .collect()
}

struct TemporaryFile(PathBuf);

impl TemporaryFile {
    fn with(text: &[u8]) -> Self {
        use std::sync::atomic::{AtomicU32, Ordering};

        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("tp-environment-{}-{number}", process::id());
        let path = std::env::temp_dir().join(name).with_extension("ps1");
        fs::write(&path, text).unwrap();

        Self(path)
    }
}

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        _ = fs::remove_file(&self.0);
    }
}

fn written(syntax: &str, pairs: &Pairs, not_held: usize) -> TemporaryFile {
    let environment: ProcessEnvironment = pairs.iter().collect();
    let written = syntax.parse::<Syntax>().unwrap().write(&environment);
    assert_eq!(written.not_held.len(), not_held, "{syntax}: {written:?}");

    TemporaryFile::with(&written.text)
}

/// What a program that ends in `env -0` prints; it must say nothing else.
fn environ_of(command: &mut Command) -> ProcessEnvironment {
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && errors.is_empty(),
        "{command:?}: {errors}"
    );
    let Environ::Intact { environment, .. } = Environ::parse(&output.stdout) else {
        panic!("{command:?} printed no environment");
    };

    environment
}

fn assert_same(expected: &Pairs, read: &ProcessEnvironment, reader: &str) {
    for (name, value) in expected {
        let read = read.value(name.as_bytes()).map(String::from_utf8_lossy);
        assert_eq!(
            read,
            Some(String::from_utf8_lossy(value)),
            "{reader}: {name}"
        );
    }
}

fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();

    std::env::split_paths(&path).any(|folder| folder.join(program).exists())
}

/// docker/cli `pkg/kvfile`: lines as `bufio.ScanLines` cuts them, blanks before the name and lines
/// of comment ignored, all behind the first `=` is the value.
fn read_as_docker_does(text: &[u8]) -> Pairs {
    let lines = text.split(|byte| *byte == b'\n');
    let lines = lines.map(|line| line.strip_suffix(b"\r").unwrap_or(line).trim_ascii_start());

    lines
        .filter(|line| !line.is_empty() && !line.starts_with(b"#"))
        .map(|line| {
            let at = line.iter().position(|byte| *byte == b'=').unwrap();
            let name = String::from_utf8(line[..at].to_vec()).unwrap();
            (name, line[at + 1..].to_vec())
        })
        .collect()
}

/// compose-go `dotenv/parser.go` for values in quotes: `\` before the quote is taken away wherever
/// it stands, in double quotes the shell's escapes count, then `$$` is a `$` and any other `$`
/// would be interpolated.
fn read_as_compose_does(text: &str) -> BTreeMap<String, String> {
    let mut read = BTreeMap::new();
    let mut rest = text;
    while let Some((name, behind)) = rest.split_once('=') {
        let quote = behind.chars().next().unwrap();
        let mut raw = String::new();
        let mut chars = behind[1..].char_indices();
        let mut end = None;
        while let Some((at, c)) = chars.next() {
            match c {
                '\\' => match chars.next().unwrap().1 {
                    next if next == quote => raw.push(quote),
                    next => raw.extend(['\\', next]),
                },
                c if c == quote => {
                    end = Some(at + 2);
                    break;
                }
                other => raw.push(other),
            }
        }
        let value = if quote == '"' {
            interpolated(&raw)
        } else {
            raw
        };
        read.insert(name.to_owned(), value);
        rest = behind[end.unwrap()..].strip_prefix('\n').unwrap();
    }
    assert!(rest.is_empty());

    read
}

fn interpolated(raw: &str) -> String {
    let mut escaped = String::new();
    let mut chars = raw.chars();
    while let Some(c) = chars.next() {
        match (c, c == '\\') {
            (_, true) => match chars.next().unwrap() {
                'n' => escaped.push('\n'),
                'r' => escaped.push('\r'),
                '\\' => escaped.push('\\'),
                other => panic!("an escape that is never written: {other}"),
            },
            (c, false) => escaped.push(c),
        }
    }
    let halves: Vec<&str> = escaped.split("$$").collect();
    assert!(
        halves.iter().all(|it| !it.contains('$')),
        "a $ would be interpolated"
    );

    halves.join("$")
}
