//! Syntaxes in which an environment is written to a file or to the terminal.
//!
//! A variable either comes out as data, whatever bytes its value has, or is named with the reason.
//! Nothing is filtered here: give the result of [`super::filter`].

use std::{collections::BTreeSet, fmt, str::FromStr};

use super::{ProcessEnvironment, Variable, shown};

mod quote;

/// A value of `--env-syntax`. Names and meanings are those of Telepresence; `json` is also what
/// `--env-json` writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Syntax {
    /// `docker run --env-file`: NAME=VALUE to the end of the line, without quotes
    /// (docs.docker.com/reference/cli/docker/container/run, "env"; docker/cli `pkg/kvfile`).
    #[default]
    Docker,
    /// `env_file` and `.env` of Docker Compose (docs.docker.com/compose/env-file; compose-go
    /// `dotenv/parser.go`).
    Compose,
    /// POSIX shells (POSIX.1-2024 XCU 2.2.2), also bash, dash, zsh, ksh.
    Sh(Visibility),
    /// csh and tcsh (tcsh(1) "Lexical structure", "History substitution").
    Csh(Visibility),
    /// A batch file for `cmd.exe` without delayed expansion, as is its default (`cmd /?`, `set /?`).
    Cmd,
    /// One object of strings (RFC 8259).
    Json,
    /// PowerShell (about_Quoting_Rules, about_Environment_Variables).
    Ps(Visibility),
}

/// Whether a shell hands the variables on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Visibility {
    /// `sh` and `csh`: variables of the shell. `ps`: variables of its process.
    Plain,
    /// `:export`: in `sh` and `csh` for the programs that it starts; in `ps` for the user, which
    /// Windows keeps in the registry.
    Export,
}

/// An environment in a syntax.
#[derive(Clone, PartialEq, Eq)]
pub struct Written {
    /// The content of the file. Bytes, since `sh` holds values that are no text.
    pub text: Vec<u8>,
    /// The variables that the syntax cannot hold, which are not in `text`.
    pub not_held: Vec<NotHeld>,
}

/// A variable that a syntax cannot hold. As a sentence it has no value in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name} cannot be written as {syntax}: {why}")]
pub struct NotHeld {
    /// The variable.
    pub name: String,
    /// The syntax.
    pub syntax: Syntax,
    /// What is in the way.
    pub why: Unfit,
}

/// What is in the way of writing a variable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unfit {
    /// The name has characters that the syntax does not know in names.
    Name,
    /// A shell has a variable of its own of this name, which cannot be set or means something else.
    Reserved,
    /// The syntax ignores case, and an earlier variable differs in nothing else.
    SameAs(String),
    /// The syntax is text, and the value is not UTF-8.
    NotText,
    /// The syntax ends a value with the line.
    LineBreak,
    /// The value has a character that its reader would read as another, or not at all.
    Character(char),
    /// The reader removes a variable that is set to nothing.
    Empty,
    /// The line would be longer than its reader takes.
    TooLong,
}

/// `--env-syntax` with a word that tp does not know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SyntaxError {
    /// No such syntax.
    #[error(
        "--env-syntax {0:?} is not known: use docker, compose, sh, csh, cmd, json or ps, of which \
         sh, csh and ps may have :export behind"
    )]
    Unknown(String),
    /// `docker:export` and the like.
    #[error("--env-syntax {0} has no export: :export fits sh, csh and ps, use {0} without it")]
    NoExport(&'static str),
}

impl Syntax {
    /// Writes each variable that the syntax can hold, in order, and names the others.
    pub fn write(self, environment: &ProcessEnvironment) -> Written {
        let mut lines = Vec::new();
        let mut not_held = Vec::new();
        let mut folded = BTreeSet::new();
        for variable in environment.iter() {
            match self.line(variable, &mut folded) {
                Ok(line) => lines.push(line),
                Err(why) => not_held.push(NotHeld {
                    name: shown(&variable.name),
                    syntax: self,
                    why,
                }),
            }
        }
        let (open, between, close): (&[u8], &[u8], &[u8]) = match self {
            Self::Json if lines.is_empty() => (b"{", b"", b"}\n"),
            Self::Json => (b"{\n", b",\n", b"\n}\n"),
            // The end of a line for cmd.exe, which reads batch files line by line.
            Self::Cmd => (b"", b"\r\n", b"\r\n"),
            Self::Docker | Self::Compose | Self::Sh(_) | Self::Csh(_) | Self::Ps(_) => {
                (b"", b"\n", b"\n")
            }
        };
        let close = if lines.is_empty() && self != Self::Json {
            b""
        } else {
            close
        };

        Written {
            text: [open, &lines.join(between), close].concat(),
            not_held,
        }
    }

    fn line(self, variable: &Variable, folded: &mut BTreeSet<String>) -> Result<Vec<u8>, Unfit> {
        let Ok(name) = std::str::from_utf8(&variable.name) else {
            return Err(Unfit::Name);
        };
        if !self.is_fit(name) {
            return Err(Unfit::Name);
        }
        if self.is_reserved(name) {
            return Err(Unfit::Reserved);
        }
        // Names in Windows are equal without regard to case: the later would replace the earlier.
        let ignores_case = matches!(self, Self::Cmd | Self::Ps(_));
        if ignores_case && folded.contains(&name.to_ascii_lowercase()) {
            return Err(Unfit::SameAs(name.to_ascii_lowercase()));
        }
        let line = self.assignment(name, &variable.value)?;
        if ignores_case {
            folded.insert(name.to_ascii_lowercase());
        }

        Ok(line)
    }

    fn assignment(self, name: &str, bytes: &[u8]) -> Result<Vec<u8>, Unfit> {
        if let Self::Sh(scope) = self {
            let before = match scope {
                Visibility::Plain => "",
                Visibility::Export => "export ",
            };
            return Ok([before.as_bytes(), name.as_bytes(), b"=", &quote::sh(bytes)].concat());
        }
        let value = std::str::from_utf8(bytes).map_err(|_| Unfit::NotText)?;

        Ok(match self {
            Self::Docker => quote::docker(name, value)?,
            Self::Compose => format!("{name}={}", quote::compose(value)),
            Self::Csh(Visibility::Plain) => format!("set {name}={}", quote::csh(value)?),
            Self::Csh(Visibility::Export) => format!("setenv {name} {}", quote::csh(value)?),
            Self::Cmd => quote::cmd(name, value)?,
            Self::Json => format!("  {}: {}", quote::json(name), quote::json(value)),
            Self::Ps(Visibility::Plain) => format!("${{Env:{name}}} = {}", quote::ps(value)?),
            Self::Ps(Visibility::Export) => format!(
                "[Environment]::SetEnvironmentVariable('{name}', ({}), 'User')",
                quote::ps(value)?
            ),
            Self::Sh(_) => unreachable!("sh was written above"),
        }
        .into_bytes())
    }

    /// Whether the reader takes this for a name.
    fn is_fit(self, name: &str) -> bool {
        match self {
            Self::Docker => {
                !name.starts_with(['#', '\u{feff}'])
                    && !name.chars().any(|c| c.is_whitespace() || c.is_control())
            }
            Self::Json => true,
            // POSIX.1-2024 XBD 3.216 "Name"; csh takes an underscore for a letter.
            Self::Sh(_) | Self::Csh(_) => is_word(name, ""),
            Self::Compose | Self::Cmd | Self::Ps(_) => is_word(name, ".-"),
        }
    }

    fn is_reserved(self, name: &str) -> bool {
        match self {
            Self::Sh(_) => OF_SH.contains(&name),
            Self::Csh(Visibility::Plain) => OF_CSH.contains(&name),
            Self::Docker | Self::Compose | Self::Csh(Visibility::Export) | Self::Cmd => false,
            Self::Json | Self::Ps(_) => false,
        }
    }
}

/// Variables that bash does not let be set, or loses what they are set to (bash(1) "Shell
/// Variables"), and OPTIND, of which dash takes numbers alone.
const OF_SH: [&str; 24] = [
    "_",
    "BASHOPTS",
    "BASHPID",
    "BASH_ARGC",
    "BASH_ARGV",
    "BASH_ARGV0",
    "BASH_COMMAND",
    "BASH_LINENO",
    "BASH_SOURCE",
    "BASH_SUBSHELL",
    "BASH_VERSINFO",
    "DIRSTACK",
    "EPOCHREALTIME",
    "EPOCHSECONDS",
    "EUID",
    "FUNCNAME",
    "GROUPS",
    "HISTCMD",
    "LINENO",
    "OPTIND",
    "PPID",
    "RANDOM",
    "SHELLOPTS",
    "UID",
];
/// Variables that mean something to csh (tcsh(1) "Special shell variables"), among them those that
/// it copies to another variable of the environment, such as `path`.
const OF_CSH: [&str; 26] = [
    "_",
    "afsuser",
    "argv",
    "autologout",
    "cdpath",
    "command",
    "cwd",
    "dirstack",
    "echo",
    "euid",
    "gid",
    "group",
    "histchars",
    "home",
    "owd",
    "path",
    "prompt",
    "savehist",
    "shell",
    "shlvl",
    "status",
    "tcsh",
    "term",
    "uid",
    "user",
    "verbose",
];

/// A letter or underscore, then those, digits or one of `others`.
fn is_word(name: &str, others: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || c == '_' || others.contains(c))
}

impl FromStr for Syntax {
    type Err = SyntaxError;

    fn from_str(text: &str) -> Result<Self, SyntaxError> {
        let (word, scope) = match text.strip_suffix(":export") {
            Some(word) => (word, Visibility::Export),
            None => (text, Visibility::Plain),
        };
        let syntax = match word {
            "docker" => Self::Docker,
            "compose" => Self::Compose,
            "sh" => Self::Sh(scope),
            "csh" => Self::Csh(scope),
            "cmd" => Self::Cmd,
            "json" => Self::Json,
            "ps" => Self::Ps(scope),
            _ => return Err(SyntaxError::Unknown(shown(text.as_bytes()))),
        };
        match (syntax, scope) {
            (Self::Sh(_) | Self::Csh(_) | Self::Ps(_), _) | (_, Visibility::Plain) => Ok(syntax),
            (_, Visibility::Export) => Err(SyntaxError::NoExport(syntax.word())),
        }
    }
}

impl Syntax {
    fn word(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Compose => "compose",
            Self::Sh(_) => "sh",
            Self::Csh(_) => "csh",
            Self::Cmd => "cmd",
            Self::Json => "json",
            Self::Ps(_) => "ps",
        }
    }
}

/// As it is given to `--env-syntax`.
impl fmt::Display for Syntax {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())?;
        match self {
            Self::Sh(Visibility::Export)
            | Self::Csh(Visibility::Export)
            | Self::Ps(Visibility::Export) => f.write_str(":export"),
            Self::Docker | Self::Compose | Self::Cmd | Self::Json => Ok(()),
            Self::Sh(Visibility::Plain)
            | Self::Csh(Visibility::Plain)
            | Self::Ps(Visibility::Plain) => Ok(()),
        }
    }
}

/// Without the text, which holds secrets.
impl fmt::Debug for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Written")
            .field("not_held", &self.not_held)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name => f.write_str("the name has characters that it does not know in names"),
            Self::Reserved => f.write_str("shells have a variable of their own of that name"),
            Self::SameAs(other) => write!(f, "it ignores case, and {other} is written already"),
            Self::NotText => f.write_str("the value is not UTF-8"),
            Self::LineBreak => f.write_str("the value has a line break"),
            Self::Character(c) => write!(f, "the value has U+{:04X}", u32::from(*c)),
            Self::Empty => f.write_str("the value is empty, and would remove the variable"),
            Self::TooLong => f.write_str("the value is too long"),
        }
    }
}

#[cfg(test)]
mod tests;
