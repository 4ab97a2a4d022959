//! The shell that a command was typed in, as far as a kubeconfig and a login depend on it.

use std::{
    collections::BTreeMap,
    env, fmt,
    path::{Path, PathBuf},
};

/// What a command inherits. The program that reads the kubeconfig may live longer than the shell,
/// and have been started by another.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Shell {
    /// Those that are UTF-8.
    pub variables: BTreeMap<String, String>,
    pub directory: PathBuf,
}

impl Shell {
    /// That of this process.
    pub fn current() -> Self {
        let variables = env::vars_os().filter_map(|(name, value)| {
            let name = name.into_string().ok()?;
            Some((name, value.into_string().ok()?))
        });

        Self {
            variables: variables.collect(),
            // Without one only absolute paths lead anywhere.
            directory: env::current_dir().unwrap_or_default(),
        }
    }

    /// The files that kubectl would read in this shell, absolute: those of KUBECONFIG, else that of
    /// the home directory if it is there.
    pub fn kubeconfigs(&self) -> Vec<PathBuf> {
        let listed = self.variable("KUBECONFIG").unwrap_or_default();
        let paths: Vec<PathBuf> = env::split_paths(listed)
            .filter(|path| !path.as_os_str().is_empty())
            .map(|path| self.absolute(&path))
            .collect();
        if paths.is_empty() {
            let home = self.variable("HOME").filter(|home| !home.is_empty());
            return home
                .map(|home| self.absolute(Path::new(home)).join(".kube/config"))
                .filter(|path| path.exists())
                .into_iter()
                .collect();
        }
        let there: Vec<PathBuf> = paths.iter().filter(|path| path.exists()).cloned().collect();

        // kubectl passes over what is missing; where nothing is left, it is missed by name.
        if there.is_empty() { paths } else { there }
    }

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
    use super::*;

    fn shell(variables: &[(&str, &str)]) -> Shell {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());

        Shell {
            variables: variables.iter().map(owned).collect(),
            directory: "/here".into(),
        }
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

        assert_eq!(shell(&[("KUBECONFIG", &list)]).kubeconfigs(), [path]);
    }

    #[test]
    fn where_none_is_there_they_are_missed_and_the_home_directory_is_not_read() {
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir(home.path().join(".kube")).unwrap();
        std::fs::write(home.path().join(".kube/config"), "").unwrap();
        let home = home.path().to_str().unwrap();

        let named = shell(&[("HOME", home), ("KUBECONFIG", "/absent:other")]);
        assert_eq!(named.kubeconfigs(), paths(&["/absent", "/here/other"]));
        let unnamed = shell(&[("HOME", home), ("KUBECONFIG", "")]);
        assert_eq!(
            unnamed.kubeconfigs(),
            [Path::new(home).join(".kube/config")]
        );
        assert_eq!(shell(&[]).kubeconfigs(), paths(&[]));
    }

    #[test]
    fn values_are_not_shown() {
        let shown = format!("{:?}", shell(&[("TOKEN", "secret")]));

        assert!(!shown.contains("secret"), "{shown}");
    }
}
