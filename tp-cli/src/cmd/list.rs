//! `tp list`.

use tp_proto::local::{ListRequest, ListResponse};

use crate::{
    cli::ListArgs,
    client,
    output::{Output, table},
};

pub(crate) async fn run(args: ListArgs, output: Output) -> anyhow::Result<()> {
    let mut client = client::require().await?;
    let request = ListRequest {
        namespace: args.namespace.clone().unwrap_or_default(),
    };
    let response = client::ask(client.list(request)).await?;

    output.print(&response, &text(&response, args.namespace.as_deref()))
}

fn text(response: &ListResponse, namespace: Option<&str>) -> String {
    if response.workloads.is_empty() {
        return match namespace {
            Some(namespace) => format!("no workloads in the namespace {namespace}\n"),
            None => "no workloads in the connected namespace\n".into(),
        };
    }
    let rows: Vec<Vec<String>> = response
        .workloads
        .iter()
        .map(|workload| {
            vec![
                workload.kind.clone(),
                workload.name.clone(),
                format!("{}/{}", workload.ready, workload.desired),
                workload.ports.join(","),
            ]
        })
        .collect();

    table(&["KIND", "NAME", "READY", "PORTS"], &rows)
}

#[cfg(test)]
mod tests {
    use tp_proto::local::Workload;

    use super::*;

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
            text(&response, None),
            "KIND        NAME  READY  PORTS\nDeployment  web   2/3    http:80/TCP,8081/TCP\n"
        );
    }

    #[test]
    fn an_empty_namespace_is_said_to_be_empty() {
        let text = text(&ListResponse::default(), Some("shop"));

        assert_eq!(text, "no workloads in the namespace shop\n");
    }
}
