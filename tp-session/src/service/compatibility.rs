//! Checks whether another `tp connect` asks for the existing connection.

use tp_proto::{
    crd::UserInfo,
    fault::{Fault, FaultKind},
    local::{ConnectRequest, Transport},
};

use super::super::{
    cluster::{ClusterConfig, Destination},
    connection::Connection,
};

/// Variables that differ from shell to shell and mean nothing to a credential plugin.
const TERMINAL_VARIABLES: [&str; 12] = [
    "_",
    "COLUMNS",
    "LINES",
    "OLDPWD",
    "PWD",
    "SHLVL",
    "SSH_TTY",
    "TERM",
    "TMUX",
    "TMUX_PANE",
    "TTY",
    "WINDOWID",
];

/// Refuses a request that differs from `connection`, and says how.
pub(super) async fn check(connection: &Connection, request: &ConnectRequest) -> Result<(), Fault> {
    let wanted = ClusterConfig::read(request)?;
    let mut differences = destination_differences(&connection.destination, &wanted.destination);
    differences.extend(flag_differences(&connection.request, request));
    // The command would silently not be steered.
    if connection.cgroup != connection.request.cgroup && connection.cgroup != request.command_cgroup
    {
        differences.push(format!(
            "another command (not what runs in cgroup {})",
            connection.cgroup
        ));
    }
    if differences.is_empty() && may_be_another(&connection.request, request, wanted.has_plugin()) {
        let wanted = wanted.client(request).await?;
        differences.extend(user_differences(&connection.user, &wanted.user().await?));
    }
    if differences.is_empty() {
        return Ok(());
    }

    Err(refusal(&connection.destination, &differences))
}

/// Returns whether the same names may lead to another user: another file may hold other credentials,
/// and credential plugins read variables of the shell.
fn may_be_another(here: &ConnectRequest, wanted: &ConnectRequest, has_plugin: bool) -> bool {
    let relevant_variables = |request: &ConnectRequest| {
        let mut variables = request.shell.clone().unwrap_or_default().variables;
        variables.retain(|name, _| !TERMINAL_VARIABLES.contains(&name.as_str()));
        variables
    };

    here.kubeconfigs != wanted.kubeconfigs
        || (has_plugin && relevant_variables(here) != relevant_variables(wanted))
}

fn refusal(here: &Destination, differences: &[String]) -> Fault {
    let whom = here.impersonate.as_ref().map(|user| format!(" as {user}"));
    let message = format!(
        "already connected to context {}, namespace {} ({}){}: for {}, run `tp quit` first",
        here.context,
        here.namespace,
        here.server,
        whom.unwrap_or_default(),
        differences.join(" and ")
    );

    Fault::new(FaultKind::AlreadyConnected, message)
}

fn destination_differences(here: &Destination, wanted: &Destination) -> Vec<String> {
    [
        difference("context", &here.context, &wanted.context),
        difference("API server", &here.server, &wanted.server),
        difference("namespace", &here.namespace, &wanted.namespace),
        difference(
            "--manager-namespace",
            &here.manager_namespace,
            &wanted.manager_namespace,
        ),
        difference("user", &here.user, &wanted.user),
        difference(
            "--as",
            here.impersonate.as_deref().unwrap_or_default(),
            wanted.impersonate.as_deref().unwrap_or_default(),
        ),
        difference(
            "--as-group",
            &list(&here.impersonate_groups),
            &list(&wanted.impersonate_groups),
        ),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// A flag that is not given does not differ.
fn flag_differences(here: &ConnectRequest, wanted: &ConnectRequest) -> Vec<String> {
    let asked = |what, here: &str, wanted: &str, default: &str| {
        difference(what, here, wanted).filter(|_| wanted != default)
    };
    [
        asked(
            "--mapped-namespaces",
            &list(&here.mapped_namespaces),
            &list(&wanted.mapped_namespaces),
            "",
        ),
        asked(
            "--also-proxy",
            &list(&here.also_proxy),
            &list(&wanted.also_proxy),
            "",
        ),
        asked(
            "--never-proxy",
            &list(&here.never_proxy),
            &list(&wanted.never_proxy),
            "",
        ),
        asked(
            "--transport",
            transport(here.transport()),
            transport(wanted.transport()),
            transport(Transport::Auto),
        ),
        asked("cgroup", &here.cgroup, &wanted.cgroup, ""),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn user_differences(here: &UserInfo, wanted: &UserInfo) -> Vec<String> {
    [
        difference("user", &here.username, &wanted.username),
        difference("groups", &list(&here.groups), &list(&wanted.groups)),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn difference(what: &str, here: &str, wanted: &str) -> Option<String> {
    let said = |text| if str::is_empty(text) { "none" } else { text };

    (here != wanted).then(|| format!("{what} {} (not {})", said(wanted), said(here)))
}

/// The order of names means nothing.
fn list(names: &[String]) -> String {
    let mut names: Vec<&str> = names.iter().map(String::as_str).collect();
    names.sort_unstable();
    names.dedup();

    names.join(",")
}

fn transport(transport: Transport) -> &'static str {
    match transport {
        Transport::Auto => "auto",
        Transport::Udp => "udp",
        Transport::Portforward => "portforward",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn destination() -> Destination {
        Destination {
            context: "lab".into(),
            server: "https://192.0.2.1:6443".into(),
            proxy: String::new(),
            namespace: "shop".into(),
            manager_namespace: "tp-system".into(),
            user: "dev".into(),
            impersonate: None,
            impersonate_groups: Vec::new(),
        }
    }

    #[test]
    fn every_part_of_a_place_counts() {
        let other = Destination {
            context: "prod".into(),
            server: "https://192.0.2.2:6443".into(),
            proxy: String::new(),
            namespace: "team-b".into(),
            manager_namespace: "elsewhere".into(),
            user: "bob".into(),
            impersonate: Some("jane".into()),
            impersonate_groups: vec!["ops".into()],
        };

        assert!(destination_differences(&destination(), &destination()).is_empty());
        assert_eq!(
            destination_differences(&destination(), &other),
            [
                "context prod (not lab)",
                "API server https://192.0.2.2:6443 (not https://192.0.2.1:6443)",
                "namespace team-b (not shop)",
                "--manager-namespace elsewhere (not tp-system)",
                "user bob (not dev)",
                "--as jane (not none)",
                "--as-group ops (not none)",
            ]
        );
    }

    #[test]
    fn every_flag_counts_and_the_order_of_its_values_does_not() {
        let here = ConnectRequest {
            also_proxy: vec!["10.1.0.0/16".into(), "10.2.0.0/16".into()],
            ..ConnectRequest::default()
        };
        let mut wanted = here.clone();
        wanted.also_proxy.reverse();
        assert!(flag_differences(&here, &wanted).is_empty());

        wanted.also_proxy.pop();
        wanted.never_proxy = vec!["10.3.0.1/32".into()];
        wanted.mapped_namespaces = vec!["shop".into()];
        wanted.set_transport(Transport::Udp);
        assert_eq!(
            flag_differences(&here, &wanted),
            [
                "--mapped-namespaces shop (not none)",
                "--also-proxy 10.2.0.0/16 (not 10.1.0.0/16,10.2.0.0/16)",
                "--never-proxy 10.3.0.1/32 (not none)",
                "--transport udp (not auto)",
            ]
        );
        assert!(flag_differences(&wanted, &ConnectRequest::default()).is_empty());
    }

    #[test]
    fn a_refusal_names_the_connection_the_difference_and_the_remedy() {
        let fault = refusal(&destination(), &["user bob (not dev)".into()]);

        assert_eq!(fault.kind, FaultKind::AlreadyConnected);
        assert_eq!(
            fault.message,
            "already connected to context lab, namespace shop (https://192.0.2.1:6443): for user \
             bob (not dev), run `tp quit` first"
        );
    }
}
