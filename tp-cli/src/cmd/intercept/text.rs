//! Intercepts as text.

use tp_proto::local::{Intercept, InterceptPod, InterceptPort};

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
    for pod in &intercept.pods {
        text.push_str(&format!("  {}\n", pod_line(pod)));
    }
    let service = intercept
        .ports
        .iter()
        .find_map(|port| port.services.first());
    if let Some(service) = service {
        text.push_str(&format!(
            "Try it: curl http://{}\n",
            url_host(service, &intercept.namespace)
        ));
    }
    text.push_str(&format!("End it: tp leave {}\n", intercept.name));

    text
}

/// Its line in `tp status`.
pub(in crate::cmd) fn row(intercept: &Intercept) -> Vec<String> {
    let ports = intercept.ports.iter().map(|port| {
        let silent = if port.is_listening {
            ""
        } else {
            " (nothing listens)"
        };
        format!("{} -> {}{silent}", port.port, port.local)
    });
    let redirected = intercept.pods.iter().filter(|pod| pod.is_redirected);
    let connections: u64 = intercept.pods.iter().map(|pod| pod.to_workstation).sum();

    vec![
        intercept.name.clone(),
        format!("{}.{}", workload(intercept), intercept.namespace),
        match intercept.reason.as_str() {
            "" => intercept.state.clone(),
            reason => format!("{}: {reason}", intercept.state),
        },
        ports.collect::<Vec<_>>().join(", "),
        format!("{}/{}", redirected.count(), intercept.pods.len()),
        connections.to_string(),
    ]
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

/// `web:80` as a host for curl.
fn url_host(service: &str, namespace: &str) -> String {
    match service.split_once(':') {
        Some((name, "80")) => format!("{name}.{namespace}"),
        Some((name, port)) => format!("{name}.{namespace}:{port}"),
        None => format!("{service}.{namespace}"),
    }
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

        assert_eq!(
            row(&intercept),
            [
                "web",
                "deployment/web.shop",
                "active",
                "8080 -> 127.0.0.1:3000 (nothing listens)",
                "1/1",
                "7"
            ]
        );
    }
}
