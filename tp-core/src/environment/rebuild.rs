//! The environment that a pod's specification gives a container: for a process that has written over its
//! own. Less than the process had: what its image sets, and links to services, are not in it.

use super::ProcessEnvironment;

/// A variable of a specification, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpecVariable {
    /// Its name.
    pub name: String,
    /// Where its value comes from.
    pub value: SpecValue,
}

/// The value of a variable in a specification.
#[derive(Clone, PartialEq, Eq)]
pub enum SpecValue {
    /// `value`, in which `$(NAME)` stands for a variable before it.
    Text(String),
    /// A field of the pod, as it is.
    Field(String),
    /// It is kept elsewhere, as in `Secret db`.
    Elsewhere(String),
}

/// Shows no value.
impl std::fmt::Debug for SpecValue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Text(_) => f.write_str("Text"),
            Self::Field(_) => f.write_str("Field"),
            Self::Elsewhere(place) => f.debug_tuple("Elsewhere").field(place).finish(),
        }
    }
}

/// What the specification tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rebuilt {
    /// The variables whose values are known.
    pub environment: ProcessEnvironment,
    /// The others, each with where its value is: `PASSWORD (Secret db)`.
    pub missing: Vec<String>,
}

/// Gives each variable its value, as the kubelet does: of duplicates the last counts.
pub fn rebuild(variables: &[SpecVariable]) -> Rebuilt {
    let mut environment = ProcessEnvironment::default();
    let mut missing: Vec<(&str, String)> = Vec::new();
    for SpecVariable { name, value } in variables {
        let known = match value {
            SpecValue::Text(text) => expanded(text, &environment),
            SpecValue::Field(text) => Ok(text.clone()),
            SpecValue::Elsewhere(place) => Err(place.clone()),
        };
        missing.retain(|(missed, _)| missed != name);
        environment.remove(name.as_bytes());
        match known {
            Ok(text) => environment.insert(name.as_bytes(), text.as_bytes()),
            Err(place) => missing.push((name, place)),
        }
    }

    Rebuilt {
        environment,
        missing: missing
            .into_iter()
            .map(|(name, place)| format!("{name} ({place})"))
            .collect(),
    }
}

/// Replaces `$(NAME)` and `$$` (Kubernetes `third_party/forked/golang/expansion`). A name that is not
/// known may be of a service, or of what is kept elsewhere.
fn expanded(text: &str, environment: &ProcessEnvironment) -> Result<String, String> {
    let mut expanded = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        expanded.push_str(before);
        let reference = after.strip_prefix('(').and_then(|it| it.split_once(')'));
        if let Some((name, behind)) = reference {
            let value = environment.value(name.as_bytes());
            let value = value.and_then(|value| std::str::from_utf8(value).ok());
            expanded.push_str(value.ok_or_else(|| format!("it names {name}"))?);
            rest = behind;
        } else {
            expanded.push('$');
            rest = after.strip_prefix('$').unwrap_or(after);
        }
    }
    expanded.push_str(rest);

    Ok(expanded)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variable(name: &str, value: SpecValue) -> SpecVariable {
        let name = name.into();

        SpecVariable { name, value }
    }

    fn text(name: &str, value: &str) -> SpecVariable {
        variable(name, SpecValue::Text(value.into()))
    }

    #[test]
    fn values_are_those_that_the_kubelet_gives() {
        let rebuilt = rebuild(&[
            text("HOST", "db"),
            variable("POD", SpecValue::Field("web-$(HOST)".into())),
            text("URL", "pg://$(HOST)/$(POD)?a=$$(HOST)&b=$HOST&c=$(HOST"),
            text("HOST", "other"),
            text("END", "$"),
        ]);

        let value = |name: &str| {
            let value = rebuilt.environment.value(name.as_bytes()).unwrap();
            String::from_utf8(value.to_vec()).unwrap()
        };
        assert_eq!(value("HOST"), "other");
        assert_eq!(
            value("URL"),
            "pg://db/web-$(HOST)?a=$(HOST)&b=$HOST&c=$(HOST"
        );
        assert_eq!(value("END"), "$");
        assert_eq!(rebuilt.missing, [""; 0]);
    }

    #[test]
    fn what_is_kept_elsewhere_is_named_and_so_is_what_depends_on_it() {
        let rebuilt = rebuild(&[
            text("KEPT", "1"),
            variable("PASSWORD", SpecValue::Elsewhere("Secret db".into())),
            text("URL", "pg://app:$(PASSWORD)@db"),
            variable("KEPT", SpecValue::Elsewhere("ConfigMap c".into())),
            variable("FOUND", SpecValue::Elsewhere("ConfigMap c".into())),
            text("FOUND", "1"),
        ]);

        assert_eq!(
            rebuilt.missing,
            [
                "PASSWORD (Secret db)",
                "URL (it names PASSWORD)",
                "KEPT (ConfigMap c)"
            ]
        );
        assert_eq!(rebuilt.environment.to_environ(), b"FOUND=1\0");
    }

    #[test]
    fn a_value_is_not_shown() {
        let shown = format!("{:?}", text("A", "hunter2"));

        assert!(!shown.contains("hunter2"), "{shown}");
    }
}
