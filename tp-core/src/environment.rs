//! The environment of a process in a pod: read from its bytes, filtered for a handler at the
//! workstation, written in the syntax that a shell or a tool reads.
//!
//! It holds secrets: no type here shows a value with `Debug` or in an error, only names.

use std::fmt;

pub mod filter;
pub mod rebuild;
pub mod syntax;

/// A variable. Linux knows neither names nor values as text, so both are bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct Variable {
    /// Not empty, without `=` and NUL.
    pub name: Vec<u8>,
    /// Without NUL.
    pub value: Vec<u8>,
}

/// Variables in the order of their process, each name once.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct ProcessEnvironment {
    variables: Vec<Variable>,
}

/// What `/proc/PID/environ` holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Environ {
    /// What the process was started with.
    Intact {
        /// Its variables.
        environment: ProcessEnvironment,
        /// Entries that `getenv` never finds: without `=`, or without a name.
        ignored: usize,
    },
    /// The process wrote its title over it, so that nothing in it can be relied on.
    Overwritten(Evidence),
}

/// How it is seen that a process overwrote its environ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Evidence {
    /// It begins with text that is no variable: the end of a title longer than the arguments.
    BeginsWithText,
    /// It begins or ends with NULs or spaces, with which titles are padded.
    Padded,
    /// Its last byte is no NUL, with which the kernel ends each entry.
    NotTerminated,
}

impl fmt::Debug for Variable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Variable")
            .field("name", &shown(&self.name))
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for ProcessEnvironment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.variables).finish()
    }
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BeginsWithText => "it begins with text that is no variable",
            Self::Padded => "it begins or ends with padding",
            Self::NotTerminated => "its last variable has no end",
        })
    }
}

impl Environ {
    /// Reads the bytes of `/proc/PID/environ`, all of them (proc_pid_environ(5)).
    ///
    /// The kernel writes them once, at `execve`: NAME=VALUE, each with one NUL behind. Programs that
    /// change their title move their variables away and write over the arguments and, without a gap,
    /// over this: setproctitle of nginx (`src/os/unix/ngx_setproctitle.c`), PostgreSQL
    /// (`src/backend/utils/misc/ps_status.c`, `PS_USE_CLOBBER_ARGV`) and libbsd clear the rest with
    /// NULs, others with spaces. A program that clears the value of a secret in place leaves NULs
    /// between intact entries, and is not taken for one of these.
    pub fn parse(bytes: &[u8]) -> Self {
        if bytes.is_empty() {
            return Self::Intact {
                environment: ProcessEnvironment::default(),
                ignored: 0,
            };
        }
        if let Some(evidence) = overwritten(bytes) {
            return Self::Overwritten(evidence);
        }
        let mut environment = ProcessEnvironment::default();
        let mut ignored = 0;
        let entries = bytes.strip_suffix(b"\0").unwrap_or(bytes);
        for entry in entries.split(|byte| *byte == 0) {
            match split(entry) {
                Some((name, value)) => environment.insert(name, value),
                None => ignored += 1,
            }
        }

        Self::Intact {
            environment,
            ignored,
        }
    }
}

impl ProcessEnvironment {
    /// The variables in order.
    pub fn iter(&self) -> impl Iterator<Item = &Variable> {
        self.variables.iter()
    }

    /// The value of a variable, as `getenv` returns it.
    pub fn value(&self, name: &[u8]) -> Option<&[u8]> {
        self.iter()
            .find(|variable| variable.name == name)
            .map(|variable| variable.value.as_slice())
    }

    /// Reads what [`Self::to_environ`] wrote.
    pub fn from_environ(bytes: &[u8]) -> Self {
        let entries = bytes.split(|byte| *byte == 0);

        entries.filter_map(split).collect()
    }

    /// The variables as the kernel shows them: NAME=VALUE, each with one NUL behind.
    pub fn to_environ(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for Variable { name, value } in &self.variables {
            bytes.extend_from_slice(&[name, b"=".as_slice(), value, b"\0"].concat());
        }

        bytes
    }

    /// Adds a variable at the end unless there is one of this name: of duplicates the first counts,
    /// as for `getenv`.
    pub(crate) fn insert(&mut self, name: &[u8], value: &[u8]) {
        if self.value(name).is_none() {
            self.variables.push(Variable {
                name: name.to_vec(),
                value: value.to_vec(),
            });
        }
    }

    fn set(&mut self, name: &[u8], value: &[u8]) {
        self.remove(name);
        self.insert(name, value);
    }

    fn remove(&mut self, name: &[u8]) {
        self.variables.retain(|variable| variable.name != name);
    }
}

/// From pairs, the first of a name counts; what cannot be a variable is left out.
impl<N: AsRef<[u8]>, V: AsRef<[u8]>> FromIterator<(N, V)> for ProcessEnvironment {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(pairs: I) -> Self {
        let mut environment = Self::default();
        for (name, value) in pairs {
            let (name, value) = (name.as_ref(), value.as_ref());
            if is_name(name) && !value.contains(&0) {
                environment.insert(name, value);
            }
        }

        environment
    }
}

fn overwritten(bytes: &[u8]) -> Option<Evidence> {
    let Some(entries) = bytes.strip_suffix(b"\0") else {
        return Some(if bytes.ends_with(b" ") {
            Evidence::Padded
        } else {
            Evidence::NotTerminated
        });
    };
    let first = entries.split(|byte| *byte == 0).next().unwrap_or_default();
    let last = entries.rsplit(|byte| *byte == 0).next().unwrap_or_default();
    // The first entry of a container is set by its runtime or by its image: PATH, HOSTNAME. Spaces
    // in its name are those of a title with a `=` in an argument.
    let is_variable =
        split(first).is_some_and(|(name, _)| !name.iter().any(u8::is_ascii_whitespace));
    if is_blank(first) || is_blank(last) {
        Some(Evidence::Padded)
    } else if !is_variable {
        Some(Evidence::BeginsWithText)
    } else {
        None
    }
}

fn is_blank(entry: &[u8]) -> bool {
    entry.iter().all(|byte| *byte == b' ')
}

fn split(entry: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = entry.iter().position(|byte| *byte == b'=')?;
    let (name, value) = (entry.get(..at)?, entry.get(at + 1..)?);

    (!name.is_empty()).then_some((name, value))
}

fn is_name(name: &[u8]) -> bool {
    !name.is_empty() && !name.contains(&b'=') && !name.contains(&0)
}

/// A name as it may stand in a sentence: control characters and bytes that are no text are escaped.
fn shown(name: &[u8]) -> String {
    String::from_utf8_lossy(name)
        .chars()
        .flat_map(|c| {
            let escaped = c.is_control().then(|| c.escape_default());
            let plain = (!c.is_control()).then_some(c);
            escaped.into_iter().flatten().chain(plain)
        })
        .collect()
}

#[cfg(test)]
mod tests;
