//! `tp status`.

use std::process::ExitCode;

use tp_proto::{
    fault::FaultKind,
    local::{Count, DatapathStatus, DnsStatus, Status, StatusRequest, TransportStatus},
};

use crate::{
    client,
    output::{Block, Output, bytes},
    state::ConnectionState,
};

mod words;

const TRY_INTERCEPT: &str =
    "Next: `tp list` shows the workloads, `tp intercept WORKLOAD --port PORT` brings one here\n";
const TRY_LEAVE: &str = "Next: `tp leave NAME` ends an intercept, `tp quit` all of them\n";

/// More would fill a screen.
const MAX_SUBNETS: usize = 32;

pub(crate) async fn run(output: Output) -> anyhow::Result<ExitCode> {
    let status = match client::find().await? {
        Some(mut session) => client::ask(session.status(StatusRequest {})).await?,
        None => disconnected(),
    };
    output.print(&status, &text(&status))?;

    Ok(match ConnectionState::of(&status) {
        ConnectionState::Disconnected => ExitCode::from(FaultKind::NotConnected.exit_code()),
        ConnectionState::Connecting
        | ConnectionState::Connected
        | ConnectionState::Reconnecting
        | ConnectionState::Other => ExitCode::SUCCESS,
    })
}

pub(crate) fn disconnected() -> Status {
    Status {
        state: ConnectionState::DISCONNECTED.into(),
        reason: format!(
            "no session runs{}; `tp connect` starts one",
            client::elsewhere()
        ),
        ..Status::default()
    }
}

fn text(status: &Status) -> String {
    let mut session = Block::new("Session")
        .line("State", &status.state)
        .line("Reason", &status.reason)
        .line("User", &status.user)
        .line("Context", &status.context)
        .line("Server", &status.server)
        .line("Namespace", &status.namespace)
        .line("Mapped namespaces", status.mapped_namespaces.join(", "))
        .line(
            "Connected since",
            words::to_the_second(&status.connected_since),
        );
    if status.session_pid != 0 {
        session = session.line("Process", status.session_pid.to_string());
    }
    let mut text = session.finish();
    if let Some(daemon) = &status.daemon {
        text.push_str(
            &Block::new("Root daemon")
                .line("Version", &daemon.version)
                .line("Process", daemon.pid.to_string())
                .finish(),
        );
    }
    if let Some(manager) = &status.manager {
        text.push_str(
            &Block::new("Traffic manager")
                .line("Namespace", &manager.namespace)
                .line("Replica", &manager.replica)
                .line("Version", &manager.version)
                .finish(),
        );
    }
    if let Some(transport) = &status.transport {
        text.push_str(&transport_text(transport));
    }
    if let Some(dns) = &status.dns {
        text.push_str(&dns_text(dns));
    }
    if let Some(datapath) = &status.datapath {
        text.push_str(&datapath_text(status, datapath));
    }
    if ConnectionState::of(status) != ConnectionState::Disconnected {
        text.push_str(&match status.intercepts.as_slice() {
            [] => format!("Intercepts: none\n{TRY_INTERCEPT}"),
            intercepts => {
                let table = super::intercept::table(intercepts);
                format!("Intercepts:\n{table}{TRY_LEAVE}")
            }
        });
    }

    text
}

fn transport_text(transport: &TransportStatus) -> String {
    let mut block = Block::new("Transport")
        .line("Path", words::path(&transport.path))
        .line("Reason", &transport.reason)
        .line("Remote", &transport.remote);
    if transport.rtt_ms > 0.0 {
        block = block.line("Round trip", format!("{:.2} ms", transport.rtt_ms));
    }
    block = block.line(
        "Traffic",
        format!(
            "{} sent, {} received",
            bytes(transport.bytes_sent),
            bytes(transport.bytes_received)
        ),
    );
    if transport.mtu > 0 {
        block = block.line("Packet size", transport.mtu.to_string());
    }
    if !transport.batching.is_empty() {
        block = block.line("Batching", &transport.batching);
    }
    if transport.lost_packets > 0 {
        block = block.line("Lost packets", transport.lost_packets.to_string());
    }
    if transport.udp_receive_buffer > 0 {
        block = block.line(
            "UDP buffers",
            format!(
                "{} receive, {} send",
                bytes(transport.udp_receive_buffer),
                bytes(transport.udp_send_buffer)
            ),
        );
    }
    if transport.switches > 0 {
        block = block.line("Path changes", transport.switches.to_string());
    }

    block.finish()
}

fn dns_text(dns: &DnsStatus) -> String {
    Block::new("DNS")
        .line("Name servers", dns.name_servers.join(", "))
        .line("Search", dns.search.join(", "))
        .line(
            "Queries",
            format!(
                "{} answered, {} asked in the cluster, {} passed on, {} failed",
                dns.answered, dns.asked_in_cluster, dns.passed_on, dns.failed
            ),
        )
        .line("Lead outside", dns.outside.join(", "))
        .line("Not covered", dns.not_covered.join("; "))
        .finish()
}

fn datapath_text(status: &Status, datapath: &DatapathStatus) -> String {
    Block::new("Network")
        .line("Subnets", networks(&status.subnets))
        .line("Also proxied", status.also_proxy.join(", "))
        .line("Never proxied", status.never_proxy.join(", "))
        .line("Hooks", datapath.hooks.join(", "))
        .line(
            "Aliases",
            format!("{} of {}", datapath.aliases, datapath.alias_network),
        )
        .line(
            "Flows",
            format!(
                "{} open, {} in total, {} being dialled",
                datapath.flows_open, datapath.flows_total, datapath.held_connects
            ),
        )
        .line(
            "Payload",
            format!(
                "{} sent, {} received",
                bytes(datapath.bytes_sent),
                bytes(datapath.bytes_received)
            ),
        )
        .line("Dials", counts(&datapath.dials))
        .line("Last failed dial", &datapath.last_failed_dial)
        .line("Dropped packets", counts(&datapath.drops))
        .line("Not steered", counts(&datapath.not_steered))
        .line("Notes", status.notices.join("; "))
        .finish()
}

/// The first `MAX_SUBNETS`; other formats have all.
fn networks(networks: &[String]) -> String {
    let shown = networks.len().min(MAX_SUBNETS);
    let mut text = networks[..shown].join(", ");
    if shown < networks.len() {
        text.push_str(&format!(" and {} more", networks.len() - shown));
    }

    text
}

fn counts(counts: &[Count]) -> String {
    let counts: Vec<String> = counts
        .iter()
        .filter(|count| count.count > 0)
        .map(|count| format!("{} {}", count.count, words::reason(&count.reason)))
        .collect();

    counts.join(", ")
}

#[cfg(test)]
mod tests {
    use tp_proto::local::Intercept;

    use super::*;

    fn connected() -> Status {
        Status {
            state: "connected".into(),
            connected_since: "2026-11-27T04:47:23.476948767Z".into(),
            user: "dev".into(),
            context: "lab".into(),
            namespace: "shop".into(),
            subnets: vec!["10.96.0.0/16".into(), "10.244.0.0/16".into()],
            transport: Some(TransportStatus {
                path: "portforward".into(),
                reason: "no answer from 172.30.0.11:30071 by UDP".into(),
                rtt_ms: 1.25,
                ..TransportStatus::default()
            }),
            datapath: Some(DatapathStatus {
                hooks: vec!["cgroup/connect4".into()],
                alias_network: "198.18.0.0/16".into(),
                last_failed_dial: "10.96.1.2:81: Connection refused (os error 111)".into(),
                drops: vec![
                    Count {
                        reason: "foreign_socket".into(),
                        count: 3,
                    },
                    Count {
                        reason: "forwarded".into(),
                        count: 0,
                    },
                ],
                not_steered: vec![Count {
                    reason: "other_user".into(),
                    count: 1,
                }],
                ..DatapathStatus::default()
            }),
            ..Status::default()
        }
    }

    #[test]
    fn the_text_says_which_path_is_used_and_why() {
        let text = text(&connected());

        assert!(
            text.contains("port-forward, through the API server"),
            "{text}"
        );
        assert!(
            text.contains("no answer from 172.30.0.11:30071 by UDP"),
            "{text}"
        );
        assert!(text.contains("Round trip        : 1.25 ms"), "{text}");
    }

    #[test]
    fn the_text_says_why_the_last_dial_failed() {
        let text = text(&connected());

        assert!(
            text.contains("Last failed dial  : 10.96.1.2:81: Connection refused"),
            "{text}"
        );
    }

    #[test]
    fn reasons_that_never_happened_are_left_out() {
        let text = text(&connected());

        assert!(
            text.contains("Dropped packets   : 3 of a socket that is not steered\n"),
            "{text}"
        );
        assert!(!text.contains("forwarded"), "{text}");
        assert!(!text.contains("Dials"), "{text}");
    }

    #[test]
    fn the_text_has_words_and_times_for_people() {
        let text = text(&connected());

        assert!(
            text.contains("Not steered       : 1 of another user\n"),
            "{text}"
        );
        assert!(
            text.contains("Connected since   : 2026-11-27T04:47:23Z\n"),
            "{text}"
        );
    }

    #[test]
    fn the_text_ends_with_what_to_try_next() {
        let mut status = connected();
        assert!(text(&status).ends_with(&format!("Intercepts: none\n{TRY_INTERCEPT}")));

        status.intercepts.push(Intercept::default());
        let text_with_one = text(&status);
        assert!(
            text_with_one.contains("\nIntercepts:\nNAME"),
            "{text_with_one}"
        );
        assert!(text_with_one.ends_with(TRY_LEAVE), "{text_with_one}");
        assert!(!text(&disconnected()).contains("Next:"));
    }

    #[test]
    fn programs_get_names_and_times_as_the_session_tells_them() {
        let json = serde_json::to_value(connected()).unwrap();

        assert_eq!(json["connected_since"], "2026-11-27T04:47:23.476948767Z");
        assert_eq!(json["datapath"]["not_steered"][0]["reason"], "other_user");
    }

    #[test]
    fn the_json_of_a_disconnected_machine_has_every_field() {
        let json = serde_json::to_value(disconnected()).unwrap();

        assert_eq!(json["state"], "disconnected");
        for field in [
            "user",
            "context",
            "server",
            "namespace",
            "dns",
            "subnets",
            "intercepts",
        ] {
            assert!(json.get(field).is_some(), "{field}");
        }
    }
}
