//! Commands with their output, as one text.

use std::{env, fmt::Write as _, fs, path::PathBuf};

use tp_e2e::{cluster::testbed, process::Finished, user::Account, workstation::Workstation};

/// Output that depends on the machine, not on `tp`: lists in JSON, lines of text.
const OF_THE_MACHINE: [&str; 4] = [
    "\"not_covered\"",
    "\"notices\"",
    "  Not covered ",
    "  Notes ",
];

pub(crate) struct Transcript<'a> {
    workstation: &'a Workstation,
    numbers_vary: bool,
    text: String,
}

impl<'a> Transcript<'a> {
    pub(crate) fn of(workstation: &'a Workstation) -> Self {
        Self {
            workstation,
            numbers_vary: false,
            text: String::new(),
        }
    }

    /// Masks numbers in the output of later commands.
    pub(crate) fn numbers_vary(&mut self) {
        self.numbers_vary = true;
    }

    #[track_caller]
    pub(crate) fn tp(&mut self, words: &[&str]) {
        let words = [&["tp"], words].concat();
        self.run(self.workstation.account(), &words);
    }

    #[track_caller]
    pub(crate) fn run(&mut self, account: Account, words: &[&str]) {
        let finished = self.workstation.run_as(account, words);
        let told = self.without_places(&words.join(" "));
        let answer = self.masked(&finished);
        let _ = writeln!(self.text, "$ {told}\n{answer}[{}]\n", finished.code());
    }

    fn masked(&self, finished: &Finished) -> String {
        let mut text = String::new();
        for (sign, stream) in [(' ', &finished.stdout), ('!', &finished.stderr)] {
            let stream = self.without_places(stream);
            let mut lines = stream.lines();
            while let Some(line) = lines.next() {
                let of_the_machine = OF_THE_MACHINE
                    .iter()
                    .find(|part| line.trim_start().starts_with(part.trim_start()));
                if of_the_machine.is_none() {
                    let _ = writeln!(text, "{sign} {}", self.without_numbers(line));
                } else if line.ends_with('[') {
                    lines.find(|line| line.trim_start().starts_with(']'));
                }
            }
        }

        text
    }

    fn without_places(&self, text: &str) -> String {
        let home = self.workstation.home().display().to_string();
        let testbed = testbed().dir().display().to_string();

        text.replace(&home, "HOME")
            .replace(&testbed, "TESTBED")
            .replace(env!("CARGO_PKG_VERSION"), "VERSION")
    }

    fn without_numbers(&self, line: &str) -> String {
        if !self.numbers_vary {
            return line.to_owned();
        }
        let mut text = String::new();
        for character in without_links(line).chars() {
            match character.is_ascii_digit() {
                true if text.ends_with('N') => {}
                true => text.push('N'),
                false => text.push(character),
            }
        }

        text
    }

    #[track_caller]
    pub(crate) fn assert_is(self, name: &str) {
        let manifest = env::var_os("CARGO_MANIFEST_DIR").expect("cargo and xtask set it");
        let path = PathBuf::from(manifest).join(format!("tests/transcripts/{name}.txt"));
        if env::var("TP_GOLDEN").is_ok_and(|it| it == "write") {
            fs::write(&path, &self.text).expect("the checkout is writable");
            return;
        }
        let golden =
            fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));

        for (number, (is, was)) in self.text.lines().zip(golden.lines()).enumerate() {
            let command = self.text.lines().take(number + 1).collect::<Vec<_>>();
            let command = command.iter().rev().find(|line| line.starts_with('$'));
            assert_eq!(is, was, "{name}.txt:{}, {command:?}", number + 1);
        }
        let lines = |text: &str| text.lines().count();
        assert_eq!(lines(&self.text), lines(&golden), "lines of {name}.txt");
    }
}

/// Names of interfaces end in eight hexadecimal digits by chance.
fn without_links(line: &str) -> String {
    let is_link = |word: &str| {
        word.strip_prefix("tp").is_some_and(|digits| {
            digits.len() == 8 && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
        })
    };

    line.split_inclusive(|character: char| !character.is_ascii_alphanumeric())
        .map(|part| {
            let end = part
                .find(|character: char| !character.is_ascii_alphanumeric())
                .unwrap_or(part.len());
            match is_link(&part[..end]) {
                true => format!("LINK{}", &part[end..]),
                false => part.to_owned(),
            }
        })
        .collect()
}
