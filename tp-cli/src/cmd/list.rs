//! `tp list`.

use tp_core::intercept::workload::WorkloadName;
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

    let mut text = table(&heading[usize::from(!args.all_namespaces)..], &rows);
    if let Some(next) = response.workloads.iter().find_map(|it| example(it, args)) {
        text.push_str(&format!("Intercept one: {next}\n"));
    }

    text
}

/// The command that intercepts a port of the workload that nobody has.
fn example(workload: &Workload, args: &ListArgs) -> Option<String> {
    let name = format!("{}/{}", workload.kind.to_lowercase(), workload.name);
    name.parse::<WorkloadName>().ok()?;
    let free = workload.ports.iter().find_map(|port| {
        let number = port.strip_suffix("/TCP")?;
        let number: u32 = number.rsplit(':').next()?.parse().ok()?;
        let is_held = workload.intercepts.iter().any(|it| it.port == number);
        (!is_held).then_some(number)
    })?;
    let port = match workload.ports.len() {
        1 => "8080".to_owned(),
        _ => format!("8080:{free}"),
    };
    let elsewhere = args.all_namespaces || args.namespace.is_some();
    let namespace = match elsewhere {
        true => format!(" --namespace {}", workload.namespace),
        false => String::new(),
    };

    Some(format!("tp intercept {name} --port {port}{namespace}"))
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
            (true, true) => format!("{port} by {user} (you) since {since}"),
            (true, false) => format!("{port} by {user} since {since}"),
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
            "80 by alice (you) since 2026-11-27T09:00:00Z, 81 by bob since 2026-11-27T09:00:00Z"
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
             Deployment  web   2/3    http:80/TCP,8081/TCP  80 by you\n\
             Intercept one: tp intercept deployment/web --port 8080:8081\n"
        );
        assert_eq!(
            text(&response, &of(None, true)),
            "NAMESPACE  KIND        NAME  READY  PORTS                 INTERCEPTS\n\
             shop       Deployment  web   2/3    http:80/TCP,8081/TCP  80 by you\n\
             Intercept one: tp intercept deployment/web --port 8080:8081 --namespace shop\n"
        );
    }

    #[test]
    fn what_is_proposed_can_be_intercepted() {
        let workload = |kind: &str, ports: &[&str], intercepts: &[PortHolder]| Workload {
            kind: kind.into(),
            name: "web".into(),
            namespace: "shop".into(),
            ports: ports.iter().map(|port| (*port).to_owned()).collect(),
            intercepts: intercepts.to_vec(),
            ..Workload::default()
        };
        let of = |workload: &Workload| example(workload, &of(None, false));

        assert_eq!(
            of(&workload("StatefulSet", &["http:80/TCP"], &[])).as_deref(),
            Some("tp intercept statefulset/web --port 8080")
        );
        assert_eq!(
            of(&workload("Pod", &["dns:53/UDP", "81/TCP"], &[])).as_deref(),
            Some("tp intercept pod/web --port 8080:81")
        );
        for (kind, ports, intercepts) in [
            (
                "Deployment",
                &["80/TCP"][..],
                &[holder(80, "bob", false)][..],
            ),
            ("Deployment", &["53/UDP"], &[]),
            ("Deployment", &[], &[]),
            ("CronJob", &["80/TCP"], &[]),
        ] {
            assert_eq!(
                of(&workload(kind, ports, intercepts)),
                None,
                "{kind} {ports:?}"
            );
        }
    }

    #[test]
    fn an_empty_namespace_is_said_to_be_empty() {
        let text = text(&ListResponse::default(), &of(Some("shop"), false));

        assert_eq!(text, "no workloads in the namespace shop\n");
    }
}
