//! The content of `tp status`.

use std::sync::atomic::{AtomicU64, Ordering};

use tp_proto::local::{
    Connected, Count, DaemonStatus, DatapathStatus, DnsStatus, ManagerStatus, Status,
    TransportStatus,
};
use tp_transport::PathKind;

use super::{connection::Connection, dns::servers, local, shared::Shared};

pub(super) async fn of(connection: &Connection) -> Status {
    connection.look_for_firewall().await;
    connection.look_for_overlaps().await;
    let shared = &connection.shared;
    let up = shared.up();
    let destination = &connection.destination;
    let steered = connection.steered.borrow().clone();
    let reason = shared.reason.borrow().clone();

    Status {
        state: if up.is_some() {
            "connected"
        } else {
            "reconnecting"
        }
        .to_owned(),
        reason,
        user: connection.user.username.clone(),
        context: destination.context.clone(),
        server: destination.server.clone(),
        namespace: destination.namespace.clone(),
        mapped_namespaces: connection.request.mapped_namespaces.clone(),
        connected_since: connection.since.to_string(),
        daemon: Some(DaemonStatus {
            version: connection.daemon_version.clone(),
            pid: connection.daemon_pid,
        }),
        manager: up.as_ref().map(|up| ManagerStatus {
            namespace: destination.manager_namespace.clone(),
            replica: up.replica.clone(),
            version: up.version.clone(),
        }),
        dns: Some(dns(shared).await),
        subnets: steered.networks.iter().map(ToString::to_string).collect(),
        also_proxy: connection.request.also_proxy.clone(),
        never_proxy: connection.request.never_proxy.clone(),
        intercepts: connection.intercepts.status(),
        transport: transport(shared),
        datapath: Some(datapath(connection).await),
        session_pid: std::process::id(),
        notices: connection.notices(),
    }
}

async fn dns(shared: &Shared) -> DnsStatus {
    let counters = &shared.counters;
    let name_servers = shared.name_servers.borrow().clone();

    DnsStatus {
        name_servers: name_servers
            .iter()
            .map(|server| server.ip().to_string())
            .collect(),
        search: shared.zone(tp_core::dns::Zone::search),
        answered: load(&counters.answered),
        asked_in_cluster: load(&counters.asked),
        passed_on: load(&counters.passed_on),
        failed: load(&counters.failed),
        not_covered: servers::not_covered().await,
        outside: shared
            .external
            .steered()
            .iter()
            .map(ToString::to_string)
            .collect(),
    }
}

/// The content of `tp connect`'s output. The path is the current one: UDP is tried in the background,
/// without waiting for its answer.
pub(super) fn connected(connection: &Connection, already: bool) -> Connected {
    let (destination, shared) = (&connection.destination, &connection.shared);
    let (namespaces, services) =
        shared.zone(|zone| (zone.namespaces().count(), zone.service_count()));
    let transport = transport(shared).unwrap_or_else(|| TransportStatus {
        reason: shared.reason.borrow().clone(),
        ..TransportStatus::default()
    });
    // Names of networks that are not steered are known, but lead nowhere.
    let is_reached = !shared.is_ipv6_only();
    let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX) * u32::from(is_reached);

    Connected {
        context: destination.context.clone(),
        server: destination.server.clone(),
        namespace: destination.namespace.clone(),
        already,
        notices: connection.notices(),
        namespaces: count(namespaces),
        services: count(services),
        path: transport.path,
        remote: transport.remote,
        reason: transport.reason,
    }
}

fn transport(shared: &Shared) -> Option<TransportStatus> {
    let up = shared.up()?;
    let (path, stats) = (up.tunnel.path().borrow().clone(), up.tunnel.stats());
    let name = match path.path {
        PathKind::Stream => "portforward",
        PathKind::Udp => "udp",
    };

    Some(TransportStatus {
        path: name.to_owned(),
        reason: path.reason,
        // The far end of a port-forward is the pod.
        remote: path
            .remote
            .map_or_else(|| up.replica.clone(), |remote| remote.to_string()),
        rtt_ms: stats.rtt.as_secs_f64() * 1e3,
        bytes_sent: stats.bytes_sent,
        bytes_received: stats.bytes_received,
        mtu: stats.mtu.into(),
        lost_packets: stats.lost_packets,
        udp_receive_buffer: stats.udp_receive_buffer,
        udp_send_buffer: stats.udp_send_buffer,
        switches: path.switches,
        batching: path.batching.into(),
    })
}

async fn datapath(connection: &Connection) -> DatapathStatus {
    let counters = &connection.shared.counters;
    let kernel = connection.counters().await;
    let counts = |counts: Vec<(String, u64)>| {
        let mut counts: Vec<Count> = counts
            .into_iter()
            .map(|(reason, count)| Count { reason, count })
            .collect();
        counts.sort_by(|a, b| a.reason.cmp(&b.reason));
        counts
    };

    DatapathStatus {
        hooks: connection.datapath.hooks.clone(),
        alias_network: local::of_datapath(&connection.datapath)[0].to_string(),
        aliases: kernel.aliases,
        flows_open: load(&counters.flows_open),
        flows_total: load(&counters.flows_total),
        held_connects: load(&counters.held),
        bytes_sent: load(&counters.splice.sent),
        bytes_received: load(&counters.splice.received),
        drops: counts(kernel.drops),
        not_steered: counts(kernel.not_steered),
        dials: counters.dials(),
        last_failed_dial: counters.last_failed_dial(),
    }
}

fn load(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}
