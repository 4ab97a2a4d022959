//! `tp list`.

use tp_proto::local::{ListRequest, ListResponse, PortHolder, Workload};

use crate::{
    cli::ListArgs,
    client,
    output::{Output, table},
};

pub(crate) async fn run(args: ListArgs, output: Output) -> anyhow::Result<()> {
    let mut client = client::require().await?;
    let request = ListRequest {
        namespace: args.namespace.clone().unwrap_or_default(),
        all_namespaces: args.all_namespaces,
    };
    let response = client::ask(client.list(request)).await?;

    output.print(&response, &text(&response, &args))
}

fn text(response: &ListResponse, args: &ListArgs) -> String {
    if response.workloads.is_empty() {
        return match &args.namespace {
            Some(namespace) => format!("no workloads in the namespace {namespace}\n"),
            None if args.all_namespaces => {
                "no workloads in any namespace that you may reach\n".into()
            }
            None => "no workloads in the connected namespace\n".into(),
        };
    }
    // Like kubectl, shows the namespace only where there may be several.
    let namespace = |workload: &Workload| {
        let namespace = workload.namespace.clone();
        args.all_namespaces.then_some(namespace)
    };
    let rows: Vec<Vec<String>> = response
        .workloads
        .iter()
        .map(|workload| {
            let rest = [
                workload.kind.clone(),
                workload.name.clone(),
                format!("{}/{}", workload.ready, workload.desired),
                workload.ports.join(","),
                intercepts(&workload.intercepts, args.all_users),
            ];
            namespace(workload).into_iter().chain(rest).collect()
        })
        .collect();
    let heading = ["NAMESPACE", "KIND", "NAME", "READY", "PORTS", "INTERCEPTS"];

    table(&heading[usize::from(!args.all_namespaces)..], &rows)
}

/// The ports that are held, with whose they are.
fn intercepts(holders: &[PortHolder], all_users: bool) -> String {
    let held = holders.iter().map(|holder| {
        let PortHolder {
            port,
            user,
            since,
            own,
        } = holder;
        match (all_users, own) {
            (true, _) => format!("{port} by {user} since {since}"),
            (false, true) => format!("{port} by you"),
            (false, false) => format!("{port} held by {user}"),
        }
    });

    held.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(namespace: Option<&str>, all_namespaces: bool) -> ListArgs {
        ListArgs {
            namespace: namespace.map(str::to_owned),
            all_namespaces,
            all_users: false,
        }
    }

    fn holder(port: u32, user: &str, own: bool) -> PortHolder {
        PortHolder {
            port,
            user: user.into(),
            since: "2026-11-27T09:00:00Z".into(),
            own,
        }
    }

    #[test]
    fn who_holds_a_port_is_shown() {
        let holders = [holder(80, "alice", true), holder(81, "bob", false)];

        assert_eq!(intercepts(&holders, false), "80 by you, 81 held by bob");
        assert_eq!(
            intercepts(&holders, true),
            "80 by alice since 2026-11-27T09:00:00Z, 81 by bob since 2026-11-27T09:00:00Z"
        );
        assert_eq!(intercepts(&[], true), "");
    }

    #[test]
    fn workloads_are_listed_with_ready_replicas_and_ports() {
        let response = ListResponse {
            workloads: vec![Workload {
                kind: "Deployment".into(),
                name: "web".into(),
                namespace: "shop".into(),
                ready: 2,
                desired: 3,
                ports: vec!["http:80/TCP".into(), "8081/TCP".into()],
                intercepts: vec![holder(80, "alice", true)],
            }],
        };

        assert_eq!(
            text(&response, &of(None, false)),
            "KIND        NAME  READY  PORTS                 INTERCEPTS\n\
             Deployment  web   2/3    http:80/TCP,8081/TCP  80 by you\n"
        );
        assert_eq!(
            text(&response, &of(None, true)),
            "NAMESPACE  KIND        NAME  READY  PORTS                 INTERCEPTS\n\
             shop       Deployment  web   2/3    http:80/TCP,8081/TCP  80 by you\n"
        );
    }

    #[test]
    fn an_empty_namespace_is_said_to_be_empty() {
        let text = text(&ListResponse::default(), &of(Some("shop"), false));

        assert_eq!(text, "no workloads in the namespace shop\n");
    }
}
