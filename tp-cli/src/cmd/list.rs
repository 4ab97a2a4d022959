//! `tp list`.

use tp_proto::local::{ListRequest, ListResponse, Workload};

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
            ];
            namespace(workload).into_iter().chain(rest).collect()
        })
        .collect();
    let heading = ["NAMESPACE", "KIND", "NAME", "READY", "PORTS"];

    table(&heading[usize::from(!args.all_namespaces)..], &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(namespace: Option<&str>, all_namespaces: bool) -> ListArgs {
        ListArgs {
            namespace: namespace.map(str::to_owned),
            all_namespaces,
        }
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
            }],
        };

        assert_eq!(
            text(&response, &of(None, false)),
            "KIND        NAME  READY  PORTS\nDeployment  web   2/3    http:80/TCP,8081/TCP\n"
        );
        assert_eq!(
            text(&response, &of(None, true)),
            "NAMESPACE  KIND        NAME  READY  PORTS\n\
             shop       Deployment  web   2/3    http:80/TCP,8081/TCP\n"
        );
    }

    #[test]
    fn an_empty_namespace_is_said_to_be_empty() {
        let text = text(&ListResponse::default(), &of(Some("shop"), false));

        assert_eq!(text, "no workloads in the namespace shop\n");
    }
}
