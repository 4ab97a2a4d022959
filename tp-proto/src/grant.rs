//! The command by which an administrator lets a user connect, for messages to that user.

use crate::crd::MANAGER_NAMESPACE;

/// `tp grant …`, as it is typed in a shell.
pub fn command(user: &str, namespace: &str, manager_namespace: &str) -> String {
    with("", user, namespace, manager_namespace)
}

/// `tp grant … --intercept`, as it is typed in a shell.
pub fn intercept_command(user: &str, namespace: &str, manager_namespace: &str) -> String {
    with(" --intercept", user, namespace, manager_namespace)
}

fn with(flag: &str, user: &str, namespace: &str, manager_namespace: &str) -> String {
    let elsewhere = match manager_namespace {
        MANAGER_NAMESPACE => String::new(),
        other => format!(" --manager-namespace {other}"),
    };

    let places = format!("--namespace {namespace}{flag}{elsewhere}");

    match quoted(user) {
        user if user.starts_with('-') => format!("tp grant {places} -- {user}"),
        user => format!("tp grant {user} {places}"),
    }
}

/// Names of namespaces need no quotes; those of users can have any character.
fn quoted(user: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:@/+=,".contains(&byte);
    match !user.is_empty() && user.bytes().all(is_plain) {
        true => user.to_owned(),
        false => format!("'{}'", user.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_can_be_typed_as_it_stands() {
        for (user, manager_namespace, expected) in [
            (
                "alice",
                MANAGER_NAMESPACE,
                "tp grant alice --namespace shop",
            ),
            (
                "system:serviceaccount:ci:robot",
                "tp-2",
                "tp grant system:serviceaccount:ci:robot --namespace shop --manager-namespace tp-2",
            ),
            (
                "Al O'Neil",
                MANAGER_NAMESPACE,
                r"tp grant 'Al O'\''Neil' --namespace shop",
            ),
            ("-x", MANAGER_NAMESPACE, "tp grant --namespace shop -- -x"),
        ] {
            assert_eq!(command(user, "shop", manager_namespace), expected);
        }
        assert_eq!(
            intercept_command("-x", "shop", MANAGER_NAMESPACE),
            "tp grant --namespace shop --intercept -- -x"
        );
    }
}
