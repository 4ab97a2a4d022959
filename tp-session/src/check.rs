//! The checks of `tp check` on this machine's resolver and sockets, and on the connection.

use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use tokio::time::timeout;
use tp_proto::{
    fault::Fault,
    local::{Check, CheckResponse},
};
use tp_transport::{CandidateStatus, PathKind, UdpFacts, udp_facts};

use super::{
    connection::Connection,
    dns::servers,
    shared::{ActiveTunnel, Shared},
};

/// Well within the time-out of `tp check`.
const API_TIMEOUT: Duration = Duration::from_secs(5);
const API_SERVER: &str = "api server";
/// As many as a person reads.
const MAX_CANDIDATES: usize = 8;

/// Checks this machine, and `connection` if there is one.
pub(super) async fn of(connection: Option<&Connection>) -> CheckResponse {
    let Some(connection) = connection else {
        let mut checks = resolver(servers::not_covered().await);
        checks.extend(sockets());
        return CheckResponse {
            checks,
            ..CheckResponse::default()
        };
    };
    let shared = &connection.shared;
    let up = shared.up();
    let look = async {
        match &up {
            Some(up) => up.tunnel.survey_candidates().await,
            None => Vec::new(),
        }
    };
    let (not_covered, api_server, found) =
        tokio::join!(servers::not_covered(), api_server(connection), look);
    let mut checks = resolver(not_covered);
    checks.extend(sockets());
    checks.extend(api_server);
    checks.push(manager(shared, up.as_ref()));
    if let Some(up) = &up {
        checks.extend(udp(up, &found));
    }
    let known = shared.zone(|zone| zone.a_service().map(known));
    let (known_name, known_address) = known.unwrap_or_default();

    let name_server = shared
        .name_servers
        .borrow()
        .first()
        .map(|it| it.ip().to_string());

    CheckResponse {
        checks,
        known_name,
        known_address,
        name_server: name_server.unwrap_or_default(),
        is_connected: true,
    }
}

fn known((name, address): (String, Ipv4Addr)) -> (String, String) {
    (name, address.to_string())
}

/// A sentence states a fact and, behind a colon, its consequence or remedy.
fn resolver(not_covered: Vec<String>) -> Vec<Check> {
    const NAME: &str = "resolver";

    if not_covered.is_empty() {
        let servers: Vec<String> = servers::current()
            .iter()
            .map(|server| server.ip().to_string())
            .collect();
        let message = format!("queries to {} are read while connected", servers.join(", "));
        return vec![Check::ok(NAME, message)];
    }
    let warnings = not_covered.iter().map(|sentence| {
        let (message, remedy) = sentence.split_once(": ").unwrap_or((sentence, ""));
        Check::warning(NAME, message, remedy)
    });

    warnings.collect()
}

fn sockets() -> Vec<Check> {
    match udp_facts() {
        Ok(facts) => vec![buffers(&facts), batches(&facts)],
        Err(error) => vec![Check::failed(
            "udp buffers",
            format!("this machine gives no UDP socket ({error})"),
            "",
        )],
    }
}

fn buffers(facts: &UdpFacts) -> Check {
    const NAME: &str = "udp buffers";

    let UdpFacts {
        receive_buffer,
        send_buffer,
        wanted_buffer,
        ..
    } = facts;
    let kib = |bytes: u64| format!("{} KiB", bytes >> 10);
    if receive_buffer.min(send_buffer) >= wanted_buffer {
        return Check::ok(NAME, format!("{} in each direction", kib(*wanted_buffer)));
    }
    let message = format!(
        "the kernel gives {} to receive and {} to send, of the {} that fast links need",
        kib(*receive_buffer),
        kib(*send_buffer),
        kib(*wanted_buffer)
    );
    let remedy = format!(
        "`sudo sysctl -w net.core.rmem_max={wanted_buffer} net.core.wmem_max={wanted_buffer}`, \
         then connect again"
    );

    Check::warning(NAME, message, &remedy)
}

/// Checks the kernel; a path reports on its own batches.
fn batches(facts: &UdpFacts) -> Check {
    const NAME: &str = "udp batches";

    match facts.batch {
        ..=1 => Check::warning(
            NAME,
            "the kernel takes UDP packets one by one only, which costs processor time",
            "a kernel with UDP segmentation offload (4.18 or later) takes several at once",
        ),
        batch => Check::ok(NAME, format!("the kernel takes {batch} packets at once")),
    }
}

/// Checks the API server, with the session's login.
async fn api_server(connection: &Connection) -> Vec<Check> {
    match timeout(API_TIMEOUT, ask_api_server(connection)).await {
        Ok(Ok(checks)) => checks,
        Ok(Err(fault)) => vec![Check::failed(API_SERVER, fault.message, "")],
        Err(_) => vec![Check::failed(
            API_SERVER,
            format!(
                "{} does not answer within {} s",
                connection.destination.server,
                API_TIMEOUT.as_secs()
            ),
            "check the network; what is connected goes on by UDP meanwhile",
        )],
    }
}

async fn ask_api_server(connection: &Connection) -> Result<Vec<Check>, Fault> {
    let cluster = connection.cluster();
    let server = &connection.destination.server;
    let user = cluster.user().await?;
    // The connection is open by now, so this measures one round trip.
    let asked = Instant::now();
    let version = cluster.version().await?;
    let took = asked.elapsed();

    Ok(vec![
        Check::ok(
            API_SERVER,
            format!("{server}, Kubernetes {version}, {}", milliseconds(took)),
        ),
        Check::ok("login", format!("known as {}", user.username)),
    ])
}

fn manager(shared: &Shared, up: Option<&ActiveTunnel>) -> Check {
    const NAME: &str = "traffic manager";

    let Some(up) = up else {
        let reason = shared.reason.borrow().clone();
        let message = format!("there is no tunnel at the moment: {reason}");
        return Check::failed(NAME, message, "");
    };
    let rtt = milliseconds(up.tunnel.stats().rtt);

    Check::ok(
        NAME,
        format!("{} of version {}, {rtt}", up.replica, up.version),
    )
}

fn udp(up: &ActiveTunnel, found: &[CandidateStatus]) -> Vec<Check> {
    const NAME: &str = "udp";

    let path = up.tunnel.path().borrow().clone();
    if found.is_empty() {
        return vec![Check::warning(
            NAME,
            format!("data takes the port-forward: {}", path.reason),
            "`tp install --expose nodeport` opens a port of the nodes, `tp connect --transport \
             auto` uses it",
        )];
    }
    let in_use = path.remote.filter(|_| path.path == PathKind::Udp);
    let mut checks: Vec<Check> = found
        .iter()
        .take(MAX_CANDIDATES)
        .map(|candidate| {
            let address = candidate.address;
            match candidate.rtt {
                Some(rtt) if in_use == Some(address) => {
                    Check::ok(NAME, format!("{address}, {}, in use", milliseconds(rtt)))
                }
                Some(rtt) => Check::ok(NAME, format!("{address}, {}", milliseconds(rtt))),
                None => Check::warning(
                    NAME,
                    format!("{address} does not answer"),
                    "a firewall between here and there must let UDP to this port pass, and its \
                     answers; other ways are used meanwhile",
                ),
            }
        })
        .collect();
    if in_use.is_some() && !path.batching.is_empty() {
        checks.push(Check::warning(
            "udp path",
            format!("packets are sent one by one: {}", path.batching),
            "",
        ));
    }

    checks
}

fn milliseconds(time: Duration) -> String {
    format!("round trip {:.1} ms", time.as_secs_f64() * 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_buffers_are_a_warning_with_the_sysctl_that_helps() {
        let facts = UdpFacts {
            receive_buffer: 212_992,
            send_buffer: 4 << 20,
            wanted_buffer: 4 << 20,
            batch: 64,
        };

        let small = buffers(&facts);
        let large = buffers(&UdpFacts {
            receive_buffer: 4 << 20,
            ..facts
        });

        assert_eq!(small.state, "warning");
        assert!(small.message.contains("208 KiB to receive"), "{small:?}");
        assert!(small.remedy.contains("rmem_max=4194304"), "{small:?}");
        assert_eq!(
            large,
            Check::ok("udp buffers", "4096 KiB in each direction")
        );
    }

    #[test]
    fn what_is_not_covered_is_told_apart_from_what_helps() {
        let sentence = "queries to the IPv6 name server fe80::1 are not read, and it is asked \
                        first: cluster names do not resolve";

        let checks = resolver(vec![sentence.to_owned()]);

        assert_eq!(checks.len(), 1);
        assert_eq!(checks[0].state, "warning");
        assert!(checks[0].message.ends_with("asked first"), "{checks:?}");
        assert_eq!(checks[0].remedy, "cluster names do not resolve");
        assert!(resolver(Vec::new())[0].message.starts_with("queries to "));
    }

    #[tokio::test]
    async fn a_machine_without_a_connection_is_checked_as_far_as_it_goes() {
        let checked = of(None).await;

        let names: Vec<&str> = checked.checks.iter().map(|it| it.name.as_str()).collect();
        for name in ["resolver", "udp buffers", "udp batches"] {
            assert!(names.contains(&name), "{names:?}");
        }
        assert_eq!(checked.known_name, "");
    }
}
