//! Intercepts as text.

use std::slice;

use tp_proto::local::{Intercept, InterceptPod, InterceptPort};

use super::earlier::earlier_of_all;
use crate::output;

/// The columns of [`row`].
const HEADING: &[&str] = &["NAME", "WORKLOAD", "STATE", "PORTS", "PODS", "CONNECTIONS"];

/// `deployment/web`
pub(in crate::cmd) fn workload(intercept: &Intercept) -> String {
    format!(
        "{}/{}",
        intercept.kind.to_ascii_lowercase(),
        intercept.workload
    )
}

/// What `tp intercept` has made, and what to try next.
pub(super) fn made(intercept: &Intercept) -> String {
    let how = match intercept.state.as_str() {
        "active" => "Intercepted",
        _ => "Intercepting",
    };
    let mut text = format!(
        "{how} {} in namespace {}",
        workload(intercept),
        intercept.namespace
    );
    match intercept.reason.as_str() {
        "" => text.push('\n'),
        reason => text.push_str(&format!(": {reason}\n")),
    }
    for port in &intercept.ports {
        text.push_str(&format!("  {}\n", port_line(port)));
    }
    if intercept.proxy_protocol {
        text.push_str("  connections begin with a header of the PROXY protocol\n");
    }
    for pod in &intercept.pods {
        text.push_str(&format!("  {}\n", pod_line(pod)));
    }
    if let Some(line) = earlier_of_all(intercept) {
        text.push_str(&format!("{line}\n"));
    }
    let example = intercept.ports.iter().find_map(|it| example(intercept, it));
    if let Some(example) = example {
        text.push_str(&format!("Try it: {example}\n"));
    }
    text.push_str(&format!("End it: tp leave {}\n", intercept.name));

    text
}

/// What `tp status` shows: a line each, and below it what is special, or how its several pods are.
pub(in crate::cmd) fn table(intercepts: &[Intercept]) -> String {
    let rows: Vec<Vec<String>> = intercepts.iter().map(row).collect();
    let lines = output::table(HEADING, &rows);
    let mut lines = lines.lines();
    let mut text = format!("{}\n", lines.next().unwrap_or_default());
    for (line, intercept) in lines.zip(intercepts) {
        text.push_str(&format!("{line}\n"));
        if !intercept.reason.is_empty() {
            text.push_str(&format!("  {}\n", intercept.reason));
        }
        let is_special = |pod: &InterceptPod| !pod.is_redirected || !pod.reason.is_empty();
        if intercept.pods.len() > 1 || intercept.pods.iter().any(is_special) {
            for pod in &intercept.pods {
                let connections = connections(slice::from_ref(pod));
                text.push_str(&format!(
                    "  {}; connections: {connections}\n",
                    pod_line(pod)
                ));
            }
        }
        if let Some(line) = earlier_of_all(intercept) {
            text.push_str(&format!("  {line}\n"));
        }
    }

    text
}

fn row(intercept: &Intercept) -> Vec<String> {
    let ports = intercept.ports.iter().map(|port| {
        let silent = if port.is_listening {
            ""
        } else {
            " (nothing listens)"
        };
        format!("{} -> {}{silent}", port.port, port.local)
    });
    let redirected = intercept.pods.iter().filter(|pod| pod.is_redirected);
    let mut all_connections = connections(&intercept.pods);
    if intercept.local > 0 {
        all_connections.push_str(&format!(", {} local", intercept.local));
    }

    vec![
        intercept.name.clone(),
        format!("{}.{}", workload(intercept), intercept.namespace),
        intercept.state.clone(),
        ports.collect::<Vec<_>>().join(", "),
        format!("{}/{}", redirected.count(), intercept.pods.len()),
        all_connections,
    ]
}

/// Those that came here, and where others went.
fn connections(pods: &[InterceptPod]) -> String {
    let sum = |of: fn(&InterceptPod) -> u64| pods.iter().map(of).sum::<u64>();
    let mut text = sum(|pod| pod.to_workstation).to_string();
    for (count, what) in [
        (sum(|pod| pod.to_container), "to the container"),
        (sum(|pod| pod.exempt), "exempt"),
        (sum(|pod| pod.refused), "refused"),
    ] {
        if count > 0 {
            text.push_str(&format!(", {count} {what}"));
        }
    }

    text
}

fn port_line(port: &InterceptPort) -> String {
    let name = match port.name.as_str() {
        "" => String::new(),
        name => format!(" ({name})"),
    };
    let services = match port.services.as_slice() {
        [] => String::new(),
        services => format!(", reached by {}", services.join(", ")),
    };

    format!("port {}{name} -> {}{services}", port.port, port.local)
}

fn pod_line(pod: &InterceptPod) -> String {
    let mut text = format!("pod {}", pod.name);
    if !pod.node.is_empty() {
        text.push_str(&format!(" on {}", pod.node));
    }
    match (pod.is_redirected, pod.reason.as_str()) {
        (true, "") => {}
        (true, reason) => text.push_str(&format!(": {reason}")),
        (false, reason) => text.push_str(&format!(" is not redirected: {reason}")),
    }

    text
}

/// How to reach a port from here: a command where it looks like HTTP, else the address.
fn example(intercept: &Intercept, port: &InterceptPort) -> Option<String> {
    let (name, number) = port.services.first()?.split_once(':')?;
    let host = format!("{name}.{}", intercept.namespace);
    let url = |scheme: &str, default: &str| match number == default {
        true => format!("curl {scheme}://{host}"),
        false => format!("curl {scheme}://{host}:{number}"),
    };

    Some(if port.name.starts_with("https") || number == "443" {
        url("https", "443")
    } else if port.name.starts_with("http")
        || matches!(number, "80" | "8080")
        || matches!(port.port, 80 | 8080)
    {
        url("http", "80")
    } else {
        format!("{host}:{number}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn intercept() -> Intercept {
        Intercept {
            name: "web".into(),
            namespace: "shop".into(),
            kind: "Deployment".into(),
            workload: "web".into(),
            state: "active".into(),
            ports: vec![InterceptPort {
                port: 8080,
                name: "http".into(),
                services: vec!["web:80".into()],
                local: "127.0.0.1:3000".into(),
                is_listening: true,
                ..InterceptPort::default()
            }],
            pods: vec![InterceptPod {
                name: "web-1".into(),
                node: "node-1".into(),
                is_redirected: true,
                to_workstation: 7,
                ..InterceptPod::default()
            }],
            ..Intercept::default()
        }
    }

    #[test]
    fn what_was_made_is_said_with_what_to_try_next() {
        assert_eq!(
            made(&intercept()),
            "Intercepted deployment/web in namespace shop\n\
             \x20 port 8080 (http) -> 127.0.0.1:3000, reached by web:80\n\
             \x20 pod web-1 on node-1\n\
             Try it: curl http://web.shop\n\
             End it: tp leave web\n"
        );
    }

    #[test]
    fn that_connections_begin_with_a_header_is_said() {
        let mut intercept = intercept();
        assert!(!made(&intercept).contains("PROXY"));
        intercept.proxy_protocol = true;

        assert!(made(&intercept).contains("a header of the PROXY protocol"));
    }

    #[test]
    fn a_pod_that_is_not_redirected_says_why() {
        let mut intercept = intercept();
        intercept.pods[0].is_redirected = false;
        intercept.pods[0].reason = "it shares the network of its node".into();

        let text = made(&intercept);

        assert!(
            text.contains("pod web-1 on node-1 is not redirected: it shares the network"),
            "{text}"
        );
    }

    #[test]
    fn the_row_counts_pods_and_connections() {
        let mut intercept = intercept();
        intercept.ports[0].is_listening = false;
        intercept.local = 2;

        assert_eq!(
            row(&intercept),
            [
                "web",
                "deployment/web.shop",
                "active",
                "8080 -> 127.0.0.1:3000 (nothing listens)",
                "1/1",
                "7, 2 local"
            ]
        );
    }

    #[test]
    fn only_what_looks_like_http_is_tried_with_curl() {
        let intercept = intercept();
        for (name, number, service, expected) in [
            ("http", 8080, "web:80", "curl http://web.shop"),
            ("", 8080, "web:9000", "curl http://web.shop:9000"),
            ("http-admin", 9000, "web:9000", "curl http://web.shop:9000"),
            ("", 8443, "web:443", "curl https://web.shop"),
            ("https", 8443, "web:8443", "curl https://web.shop:8443"),
            ("postgres", 5432, "web:5432", "web.shop:5432"),
        ] {
            let port = InterceptPort {
                port: number,
                name: name.into(),
                services: vec![service.into()],
                ..InterceptPort::default()
            };

            assert_eq!(example(&intercept, &port).as_deref(), Some(expected));
        }
        assert_eq!(example(&intercept, &InterceptPort::default()), None);
    }

    #[test]
    fn several_pods_and_reasons_are_below_the_line() {
        let mut one = intercept();
        one.name = "one".into();
        let mut two = intercept();
        two.state = "waiting".into();
        two.reason = "there is no tunnel at the moment".into();
        two.pods.push(InterceptPod {
            name: "web-2".into(),
            reason: "it shares the network of its node".into(),
            to_container: 2,
            refused: 1,
            ..InterceptPod::default()
        });

        assert_eq!(
            table(&[one, two]),
            "NAME  WORKLOAD             STATE    PORTS                   PODS  CONNECTIONS\n\
             one   deployment/web.shop  active   8080 -> 127.0.0.1:3000  1/1   7\n\
             web   deployment/web.shop  waiting  8080 -> 127.0.0.1:3000  1/2   7, 2 to the container, \
             1 refused\n\
             \x20 there is no tunnel at the moment\n\
             \x20 pod web-1 on node-1; connections: 7\n\
             \x20 pod web-2 is not redirected: it shares the network of its node; connections: 0, 2 \
             to the container, 1 refused\n"
        );
    }
}
