//! Which variables of a container a handler at the workstation gets.

use std::{fmt, str::FromStr};

use super::{ProcessEnvironment, Variable, is_name, shown};

mod left_out;

/// The wishes of a user. What was excluded at install has not left its node.
///
/// The first that fits a variable decides:
///
/// 1. `--env-set`: the value comes from the workstation, so no other rule concerns it.
/// 2. `--env-exclude`.
/// 3. `--env-include`: the variable is given, though tp leaves it out by itself.
/// 4. What tp leaves out: names that belong to the workstation, and all that could make a program
///    here load or run what a pod chose.
/// 5. Everything else is given.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// `--env-include`
    pub include: Vec<NamePattern>,
    /// `--env-exclude`
    pub exclude: Vec<NamePattern>,
    /// `--env-set`; of one name the last counts, as for flags.
    pub set: Vec<Assignment>,
}

/// A name, or its beginning with a `*` behind. Names are compared to the letter, as Linux does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamePattern {
    text: String,
    is_prefix: bool,
}

/// The value of `--env-set`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment(Variable);

/// Why a variable is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// It describes the machine, the user or the session, and those are others here.
    Workstation,
    /// A shell would run or obey it.
    Shell,
    /// It decides what code a program or a runtime loads.
    Loader,
    /// Its value is a command, or names a file with commands.
    Commands,
    /// `--env-exclude`
    ExcludedByUser,
}

/// The environment of a handler, and what it lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filtered {
    /// What the handler gets from the container and from `--env-set`.
    pub environment: ProcessEnvironment,
    /// Names in the order of the container, each with the reason.
    pub left_out: Vec<(String, Reason)>,
}

/// A flag for the environment that is not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FlagError {
    /// `--env-include ''`, `'A=1'`, `'A*B'`
    #[error("{0:?} is no name of a variable: give a name, or its beginning with a * behind")]
    Pattern(String),
    /// `--env-include '*'`
    #[error("* alone would name every variable: give names, or beginnings with a * behind")]
    Everything,
    /// `--env-set A`; the value is not shown.
    #[error("--env-set needs NAME=VALUE, and {0:?} has no = behind a name")]
    Assignment(String),
    /// The value holds a NUL, which no environment can.
    #[error("the value of {0} holds a NUL byte, which no variable can")]
    Nul(String),
}

impl ProcessEnvironment {
    /// What is left without the variables of these names, and how many are not.
    pub fn without(&self, names: &[NamePattern]) -> (Self, usize) {
        let is_left = |variable: &&Variable| !names.iter().any(|it| it.names(&variable.name));
        let variables: Vec<Variable> = self.iter().filter(is_left).cloned().collect();
        let excluded = self.variables.len() - variables.len();

        (Self { variables }, excluded)
    }
}

impl Filter {
    /// Applies the rules to the environment of a container.
    pub fn apply(&self, container: &ProcessEnvironment) -> Filtered {
        let mut environment = ProcessEnvironment::default();
        let mut left_out = Vec::new();
        for variable in container.iter() {
            if self.sets(&variable.name) {
                continue;
            }
            match self.reason_against(variable) {
                None => environment.insert(&variable.name, &variable.value),
                Some(reason) => left_out.push((shown(&variable.name), reason)),
            }
        }
        for Assignment(variable) in &self.set {
            environment.set(&variable.name, &variable.value);
        }

        Filtered {
            environment,
            left_out,
        }
    }

    fn sets(&self, name: &[u8]) -> bool {
        self.set
            .iter()
            .any(|Assignment(variable)| variable.name == name)
    }

    fn reason_against(&self, variable: &Variable) -> Option<Reason> {
        let names = |patterns: &[NamePattern]| patterns.iter().any(|it| it.names(&variable.name));
        if names(&self.exclude) {
            return Some(Reason::ExcludedByUser);
        }
        if names(&self.include) {
            return None;
        }

        reason_by_itself(variable)
    }
}

fn reason_by_itself(variable: &Variable) -> Option<Reason> {
    // A shell before bash 4.3-025 takes any such value for a function, and runs what is behind it.
    if variable.value.starts_with(b"() {") {
        return Some(Reason::Shell);
    }

    left_out::LEFT_OUT
        .iter()
        .find(|(reason, names)| {
            let has_case = matches!(reason, Reason::Workstation | Reason::Shell);
            names
                .iter()
                .any(|name| fits(name, &variable.name, has_case))
        })
        .map(|(reason, _)| *reason)
}

fn fits(pattern: &str, name: &[u8], has_case: bool) -> bool {
    let is = |text: &[u8], other: &str| match has_case {
        true => text == other.as_bytes(),
        false => text.eq_ignore_ascii_case(other.as_bytes()),
    };

    match pattern.strip_suffix('*') {
        Some(prefix) => name
            .get(..prefix.len())
            .is_some_and(|start| is(start, prefix)),
        None => is(name, pattern),
    }
}

impl NamePattern {
    fn names(&self, name: &[u8]) -> bool {
        if self.is_prefix {
            name.starts_with(self.text.as_bytes())
        } else {
            name == self.text.as_bytes()
        }
    }
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rest = if self.is_prefix { "*" } else { "" };

        write!(f, "{}{rest}", self.text)
    }
}

impl FromStr for NamePattern {
    type Err = FlagError;

    fn from_str(text: &str) -> Result<Self, FlagError> {
        if text == "*" {
            return Err(FlagError::Everything);
        }
        let (name, is_prefix) = match text.strip_suffix('*') {
            Some(prefix) => (prefix, true),
            None => (text, false),
        };
        if !is_name(name.as_bytes()) || name.contains('*') {
            return Err(FlagError::Pattern(shown(text.as_bytes())));
        }

        Ok(Self {
            text: name.to_owned(),
            is_prefix,
        })
    }
}

impl FromStr for Assignment {
    type Err = FlagError;

    fn from_str(text: &str) -> Result<Self, FlagError> {
        let no_assignment = || FlagError::Assignment(shown(text.as_bytes()));
        let (name, value) = text.split_once('=').ok_or_else(no_assignment)?;
        if !is_name(name.as_bytes()) {
            // What is behind the = may be a secret.
            return Err(FlagError::Assignment(format!(
                "{}=…",
                shown(name.as_bytes())
            )));
        }
        if value.contains('\0') {
            return Err(FlagError::Nul(shown(name.as_bytes())));
        }

        Ok(Self(Variable {
            name: name.into(),
            value: value.into(),
        }))
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Workstation => "the workstation has its own",
            Self::Shell => "a shell would run or obey it",
            Self::Loader => "it decides what code a program loads",
            Self::Commands => "programs run what it says",
            Self::ExcludedByUser => "excluded by --env-exclude",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patterns(texts: &[&str]) -> Vec<NamePattern> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn container(names: &[&str]) -> ProcessEnvironment {
        names.iter().map(|name| (*name, "pod")).collect()
    }

    fn given(filtered: &Filtered) -> Vec<String> {
        let variables = filtered.environment.iter();

        variables.map(|it| shown(&it.name)).collect()
    }

    #[test]
    fn what_could_run_code_or_is_the_workstations_is_left_out() {
        let names = [
            "PATH",
            "HOME",
            "USER",
            "SHELL",
            "PWD",
            "HOSTNAME",
            "TMPDIR",
            "TERM",
            "LANG",
            "LD_PRELOAD",
            "LD_LIBRARY_PATH",
            "BASH_ENV",
            "ENV",
            "IFS",
            "GIT_SSH_COMMAND",
            "SSH_ASKPASS",
            "PYTHONPATH",
            "PYTHONSTARTUP",
            "PYTHONHOME",
            "PYTHONINSPECT",
            "PYTHONWARNINGS",
            "PYTHONBREAKPOINT",
            "NODE_OPTIONS",
            "NODE_PATH",
            "JAVA_TOOL_OPTIONS",
            "_JAVA_OPTIONS",
            "JDK_JAVA_OPTIONS",
            "CLASSPATH",
            "RUBYOPT",
            "RUBYLIB",
            "PERL5OPT",
            "PERL5LIB",
            "PERLLIB",
            "PERL5DB",
            "BASH_FUNC_ls%%",
            "SHELLOPTS",
            "PS4",
            "PROMPT_COMMAND",
            "GLIBC_TUNABLES",
            "DYLD_INSERT_LIBRARIES",
            "DOTNET_STARTUP_HOOKS",
            "LESSOPEN",
            "LUA_INIT_5_4",
            "RUSTC_WRAPPER",
            "LC_ALL",
            "GOCACHEPROG",
            "GOAUTH",
            "PKG_CONFIG",
            "COREPACK_NPM_REGISTRY",
            "UV_INDEX_URL",
            "BUN_OPTIONS",
            "AWS_PAGER",
            "KUBECTL_EXTERNAL_DIFF",
            "FZF_DEFAULT_OPTS",
            "TP_ROOT_SOCKET",
            "npm_config_script_shell",
            "Npm_Config_Registry",
            "ComSpec",
            "ld_preload",
        ];

        let filtered = Filter::default().apply(&container(&names));

        assert_eq!(given(&filtered), <[String; 0]>::default());
        assert_eq!(filtered.left_out.len(), names.len());
    }

    #[test]
    fn what_an_application_is_configured_by_is_given() {
        let names = [
            "DATABASE_URL",
            "KUBERNETES_SERVICE_HOST",
            "WEB_PORT_80_TCP",
            "TZ",
            "HTTP_PROXY",
            "AWS_REGION",
            "PYTHONUNBUFFERED",
            "NODE_ENV",
            "JAVA_VERSION",
            "ENVIRONMENT",
            "SSHD_PORT",
            "GITHUB_TOKEN",
            "LANGUAGE_MODEL",
            "LESSON",
            "PATHS",
            "ASPNETCORE_URLS",
            "PKG_CONFIGURED",
            "BUNDLED",
            "path_prefix",
            "npm",
            "env",
            "home",
            "UV_THREADPOOL_SIZE",
            "TP_API_KEY",
        ];

        let filtered = Filter::default().apply(&container(&names));

        assert_eq!(given(&filtered), names);
    }

    #[test]
    fn a_function_of_an_old_bash_is_left_out_under_any_name() {
        let container = [("X", "() { :;}; id"), ("Y", "() z")].into_iter().collect();

        let filtered = Filter::default().apply(&container);

        assert_eq!(given(&filtered), ["Y"]);
        assert_eq!(filtered.left_out, [("X".to_owned(), Reason::Shell)]);
    }

    #[test]
    fn the_first_rule_that_fits_decides() {
        let filter = Filter {
            include: patterns(&["PATH", "LD_*", "HOME", "LANG"]),
            exclude: patterns(&["LANG", "APP_*", "SECRET", "ROOT_*"]),
            set: ["TERM=dumb", "ROOT_KEY=mine", "APP_A=1", "NEW=2", "NEW=3"]
                .map(|text| text.parse().unwrap())
                .into(),
        };
        let names = [
            "PATH",
            "LD_PRELOAD",
            "HOME",
            "LANG",
            "APP_A",
            "APP_B",
            "SECRET",
            "ROOT_KEY",
            "ROOT_CA",
            "TERM",
            "USER",
            "OTHER",
        ];

        let filtered = filter.apply(&container(&names));

        assert_eq!(
            given(&filtered),
            [
                "PATH",
                "LD_PRELOAD",
                "HOME",
                "OTHER",
                "TERM",
                "ROOT_KEY",
                "APP_A",
                "NEW"
            ]
        );
        assert_eq!(
            filtered.environment.value(b"ROOT_KEY"),
            Some(b"mine".as_slice())
        );
        assert_eq!(filtered.environment.value(b"NEW"), Some(b"3".as_slice()));
        let expected = [
            ("LANG", Reason::ExcludedByUser),
            ("APP_B", Reason::ExcludedByUser),
            ("SECRET", Reason::ExcludedByUser),
            ("ROOT_CA", Reason::ExcludedByUser),
            ("USER", Reason::Workstation),
        ];
        assert_eq!(
            filtered.left_out,
            expected.map(|(name, why)| (name.to_owned(), why))
        );
    }

    #[test]
    fn what_was_excluded_at_install_is_gone() {
        let environment = container(&["A", "DB_PASSWORD", "DB_HOST", "B"]);

        let (left, excluded) = environment.without(&patterns(&["DB_*", "B", "C"]));

        assert_eq!(left, container(&["A"]));
        assert_eq!(excluded, 3);
        assert_eq!(patterns(&["DB_*"])[0].to_string(), "DB_*");
    }

    #[test]
    fn flags_that_are_not_understood_are_refused_without_their_value() {
        for text in ["", "A=1", "A*B", "**", "A\0"] {
            assert!(matches!(
                text.parse::<NamePattern>(),
                Err(FlagError::Pattern(_))
            ));
        }
        assert_eq!("*".parse::<NamePattern>(), Err(FlagError::Everything));
        assert_eq!(
            "NAME".parse::<Assignment>().map_err(|it| it.to_string()),
            Err("--env-set needs NAME=VALUE, and \"NAME\" has no = behind a name".to_owned())
        );
        let nameless = "=hunter2".parse::<Assignment>().unwrap_err().to_string();
        assert!(!nameless.contains("hunter2"));
        assert_eq!(
            "A=b\0".parse::<Assignment>(),
            Err(FlagError::Nul("A".to_owned()))
        );
    }
}
