//! The kubeconfig, read as kubectl reads it.

use std::{env, path::PathBuf};

use kube::{
    Config,
    config::{KubeConfigOptions, Kubeconfig, KubeconfigError},
};
use tp_proto::{
    fault::{Fault, FaultKind},
    local::ConnectRequest,
};

use super::faults;

pub(super) async fn config(request: &ConnectRequest) -> Result<(Config, String, String), Fault> {
    let files = match (request.kubeconfig.as_str(), home_kubeconfig()) {
        ("", Some(path)) => path.display().to_string(),
        (given, _) => given.to_owned(),
    };
    let wrong = |error: &dyn std::error::Error| {
        let text = faults::chain(error);
        // What follows the first line shows the file's text.
        let problem = text.lines().next().unwrap_or_default();
        let named = if problem.contains(&files) {
            String::new()
        } else {
            format!(" {files}")
        };
        Fault::new(
            FaultKind::Config,
            format!(
                "the kubeconfig{named} cannot be used: {problem}; repair it or name another with \
                 --kubeconfig"
            ),
        )
    };
    let kubeconfig = if !request.kubeconfig.is_empty() {
        Some(read_list(&request.kubeconfig).map_err(|error| wrong(&error))?)
    } else if let Some(merged) = Kubeconfig::from_env().map_err(|error| wrong(&error))? {
        Some(merged)
    } else {
        match home_kubeconfig().filter(|path| path.exists()) {
            Some(path) => Some(Kubeconfig::read_from(path).map_err(|error| wrong(&error))?),
            None => None,
        }
    };
    let Some(kubeconfig) = kubeconfig else {
        return in_cluster();
    };
    let some = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
    let context = some(&request.context).or_else(|| kubeconfig.current_context.clone());
    check_names(request, &files, &kubeconfig, context.as_deref())?;
    let user = some(&request.user).or_else(|| user_of(&kubeconfig, context.as_deref()?));
    let options = KubeConfigOptions {
        context: context.clone(),
        cluster: some(&request.cluster),
        user: some(&request.user),
    };
    let config = Config::from_custom_kubeconfig(kubeconfig, &options)
        .await
        .map_err(|error| wrong(&error))?;

    Ok((
        config,
        context.unwrap_or_default(),
        user.unwrap_or_default(),
    ))
}

fn user_of(kubeconfig: &Kubeconfig, context: &str) -> Option<String> {
    kubeconfig
        .contexts
        .iter()
        .find(|known| known.name == context)
        .and_then(|known| known.context.as_ref()?.user.clone())
}

/// One file, or several as in KUBECONFIG: what an earlier one says stands.
fn read_list(paths: &str) -> Result<Kubeconfig, KubeconfigError> {
    env::split_paths(paths)
        .map(Kubeconfig::read_from)
        .reduce(|merged, next| merged?.merge(next?))
        .unwrap_or_else(|| Ok(Kubeconfig::default()))
}

fn home_kubeconfig() -> Option<PathBuf> {
    Some(PathBuf::from(env::var_os("HOME")?).join(".kube/config"))
}

fn in_cluster() -> Result<(Config, String, String), Fault> {
    match Config::incluster() {
        Ok(config) => Ok((config, "in-cluster".to_owned(), String::new())),
        Err(_) => Err(Fault::new(
            FaultKind::Config,
            "there is no kubeconfig: set KUBECONFIG or use --kubeconfig FILE",
        )),
    }
}

/// Names that the kubeconfig does not have are refused with those that it has.
fn check_names(
    request: &ConnectRequest,
    files: &str,
    kubeconfig: &Kubeconfig,
    context: Option<&str>,
) -> Result<(), Fault> {
    let known = |what: &str, name: &str, names: Vec<&str>| {
        if names.contains(&name) {
            return Ok(());
        }
        let names = if names.is_empty() {
            "none".to_owned()
        } else {
            names.join(", ")
        };
        let message = format!("the kubeconfig {files} has no {what} {name}: it has {names}");
        Err(Fault::new(FaultKind::Config, message))
    };
    let Some(context) = context else {
        let names: Vec<&str> = kubeconfig
            .contexts
            .iter()
            .map(|it| it.name.as_str())
            .collect();
        return Err(Fault::new(
            FaultKind::Config,
            format!(
                "the kubeconfig {files} has no current context: {}",
                match names.as_slice() {
                    [] => "it has none at all; name another with --kubeconfig".to_owned(),
                    names => format!("choose one with --context ({})", names.join(", ")),
                }
            ),
        ));
    };
    known(
        "context",
        context,
        kubeconfig
            .contexts
            .iter()
            .map(|it| it.name.as_str())
            .collect(),
    )?;
    if !request.cluster.is_empty() {
        let names = kubeconfig
            .clusters
            .iter()
            .map(|it| it.name.as_str())
            .collect();
        known("cluster", &request.cluster, names)?;
    }
    if !request.user.is_empty() {
        let names = kubeconfig
            .auth_infos
            .iter()
            .map(|it| it.name.as_str())
            .collect();
        known("user", &request.user, names)?;
    }

    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_context_is_refused_with_the_known_ones() {
        let kubeconfig: Kubeconfig = serde_json::from_value(serde_json::json!({
            "contexts": [{"name": "prod", "context": {"cluster": "c", "user": "u"}}],
            "clusters": [], "users": [],
        }))
        .unwrap();

        let request = ConnectRequest::default();
        let fault = check_names(&request, "here", &kubeconfig, Some("staging")).unwrap_err();

        assert_eq!(fault.kind, FaultKind::Config);
        assert!(
            fault
                .message
                .contains("kubeconfig here has no context staging: it has prod"),
            "{fault}"
        );
        let fault = check_names(&request, "here", &kubeconfig, None).unwrap_err();
        assert!(
            fault
                .message
                .contains("here has no current context: choose one with --context (prod)"),
            "{fault}"
        );
    }
}
