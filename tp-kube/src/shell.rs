//! The shell that a command was typed in, as far as a kubeconfig and a login depend on it.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    ffi::OsString,
    fmt,
    path::{Path, PathBuf},
};

use tp_proto::fault::{Fault, FaultKind};

/// The environment and directory that a command inherits. The program that reads the kubeconfig may
/// outlive the shell, or be started by another.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Shell {
    /// Those that are UTF-8.
    pub variables: BTreeMap<String, String>,
    /// Empty if there is none: then only absolute paths work.
    pub directory: PathBuf,
    /// Names of variables that are not UTF-8.
    non_utf8_variables: BTreeSet<String>,
}

impl Shell {
    /// From the variables and working directory that another program sent.
    pub fn new(variables: BTreeMap<String, String>, directory: PathBuf) -> Self {
        Self {
            variables,
            directory,
            non_utf8_variables: BTreeSet::new(),
        }
    }

    /// The shell of this process.
    pub fn current() -> Self {
        let mut shell = Self::new(BTreeMap::new(), env::current_dir().unwrap_or_default());
        shell.read_variables(env::vars_os());

        shell
    }

    fn read_variables(&mut self, variables: impl Iterator<Item = (OsString, OsString)>) {
        for (name, value) in variables {
            let Ok(name) = name.into_string() else {
                continue;
            };
            match value.into_string() {
                Ok(value) => drop(self.variables.insert(name, value)),
                Err(_) => drop(self.non_utf8_variables.insert(name)),
            }
        }
    }

    /// The files that kubectl would read in this shell, absolute: those of KUBECONFIG, else
    /// `~/.kube/config` if it exists.
    ///
    /// # Errors
    ///
    /// [`FaultKind::Config`], if a variable is not UTF-8: another file would lead to another
    /// cluster.
    pub fn kubeconfigs(&self) -> Result<Vec<PathBuf>, Fault> {
        self.check("KUBECONFIG")?;
        let listed = self.variable("KUBECONFIG").unwrap_or_default();
        let paths: Vec<PathBuf> = env::split_paths(listed)
            .filter(|path| !path.as_os_str().is_empty())
            .map(|path| self.absolute(&path))
            .collect();
        if paths.is_empty() {
            self.check("HOME")?;
            let home = self.variable("HOME").filter(|home| !home.is_empty());
            let path = home.map(|home| self.absolute(Path::new(home)).join(".kube/config"));
            return Ok(path.filter(|path| path.exists()).into_iter().collect());
        }
        let existing: Vec<PathBuf> = paths.iter().filter(|path| path.exists()).cloned().collect();

        // kubectl skips missing files; if all are missing, its error names them.
        Ok(if existing.is_empty() { paths } else { existing })
    }

    fn check(&self, variable: &str) -> Result<(), Fault> {
        if !self.non_utf8_variables.contains(variable) {
            return Ok(());
        }
        let message = format!(
            "the environment variable {variable} is not UTF-8, so its path is not taken: name the \
             kubeconfig with --kubeconfig"
        );

        Err(Fault::new(FaultKind::Config, message))
    }

    /// The path as seen from the shell's directory.
    pub fn absolute(&self, path: &Path) -> PathBuf {
        self.directory.join(path)
    }

    pub(crate) fn variable(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str)
    }
}

/// Values may be secrets.
impl fmt::Debug for Shell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shell")
            .field("directory", &self.directory)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt as _;

    use super::*;

    fn shell(variables: &[(&str, &str)]) -> Shell {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());

        Shell::new(variables.iter().map(owned).collect(), "/here".into())
    }

    fn paths(paths: &[&str]) -> Vec<PathBuf> {
        paths.iter().map(PathBuf::from).collect()
    }

    #[test]
    fn of_several_files_those_that_are_missing_are_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("there");
        std::fs::write(&path, "").unwrap();
        let list = format!("/absent:{}:", path.display());

        assert_eq!(
            shell(&[("KUBECONFIG", &list)]).kubeconfigs().unwrap(),
            [path]
        );
    }

    #[test]
    fn where_none_is_there_they_are_missed_and_the_home_directory_is_not_read() {
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir(home.path().join(".kube")).unwrap();
        std::fs::write(home.path().join(".kube/config"), "").unwrap();
        let home = home.path().to_str().unwrap();

        let named = shell(&[("HOME", home), ("KUBECONFIG", "/absent:other")]);
        assert_eq!(
            named.kubeconfigs().unwrap(),
            paths(&["/absent", "/here/other"])
        );
        let unnamed = shell(&[("HOME", home), ("KUBECONFIG", "")]);
        assert_eq!(
            unnamed.kubeconfigs().unwrap(),
            [Path::new(home).join(".kube/config")]
        );
        assert_eq!(shell(&[]).kubeconfigs().unwrap(), paths(&[]));
    }

    #[test]
    fn a_variable_that_is_not_utf_8_does_not_lead_to_another_file() {
        let odd = |name: &str| {
            let mut shell = shell(&[]);
            shell.read_variables(
                [(name.into(), OsString::from_vec(b"/caf\xe9".to_vec()))].into_iter(),
            );
            shell.kubeconfigs()
        };

        for name in ["KUBECONFIG", "HOME"] {
            let fault = odd(name).unwrap_err();
            assert!(fault.message.contains(name), "{fault}");
        }
        assert_eq!(odd("OTHER").unwrap(), paths(&[]));
    }

    #[test]
    fn values_are_not_shown() {
        let shown = format!("{:?}", shell(&[("TOKEN", "secret")]));

        assert!(!shown.contains("secret"), "{shown}");
    }
}
