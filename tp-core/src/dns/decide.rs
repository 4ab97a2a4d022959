//! Decides whether a name is the cluster's, and answers it from the table.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::rr::{Name, RecordType};

use super::{
    ClusterState, Query, Question, ServiceEntry, Step, Zone, answer,
    query::{Asked, Claim},
    reply,
};

/// Labels before a service's name: `pod-0.web`, `_http._tcp.web`.
const MAX_PREFIX: usize = 2;

/// A name in terms of the cluster, least significant labels first in `prefix`.
struct Target<'a> {
    prefix: &'a [String],
    service: &'a str,
    namespace: &'a str,
    is_ours: bool,
}

impl Zone {
    /// The first step of `query`.
    ///
    /// While the cluster cannot be asked, its table answers nothing: it may have changed, and the
    /// addresses in it lead nowhere. The step is then [`Step::Fail`].
    pub fn decide(&self, query: &Query, cluster: ClusterState) -> Step {
        let Some(asked) = query.asked() else {
            return Step::PassOn;
        };
        match (decide(asked, self), cluster) {
            (Step::Send(_), ClusterState::Unreachable) => Step::Fail(answer::failure(asked)),
            (step, _) => step,
        }
    }
}

fn decide(asked: &Asked, zone: &Zone) -> Step {
    if let Some(address) = asked_address(asked) {
        return decide_pointer(asked, address, zone);
    }
    let labels = labels(asked.name());
    if let Some(namespace) = pod_namespace(&labels, zone) {
        return ask_pod(asked, &labels, namespace, zone);
    }
    if let Some(target) = target(&labels, zone) {
        decide_service(asked, &target, zone)
    } else if is_empty_non_terminal(&labels, zone) {
        Step::Send(answer::addresses(asked, &[], zone))
    } else if is_below(&labels, zone) {
        Step::Send(answer::missing(asked, zone))
    } else {
        Step::PassOn
    }
}

/// The address that a PTR query asks for. A name with fewer labels is a network's.
pub(super) fn asked_address(asked: &Asked) -> Option<IpAddr> {
    if asked.kind() != RecordType::PTR {
        return None;
    }
    let network = asked.name().parse_arpa_name().ok()?;

    (network.prefix_len() == network.max_prefix_len()).then_some(network.addr())
}

pub(super) fn labels(name: &Name) -> Vec<String> {
    name.iter()
        .map(|label| String::from_utf8_lossy(label).to_ascii_lowercase())
        .collect()
}

/// Reads `…service`, `…service.namespace`, `…service.namespace.svc` and the full name.
fn target<'a>(labels: &'a [String], zone: &'a Zone) -> Option<Target<'a>> {
    if let Some(relative) = labels.strip_suffix(zone.domain_labels()) {
        let [prefix @ .., service, namespace, kind] = relative else {
            return None;
        };
        let is_known = kind == "svc" && prefix.len() <= MAX_PREFIX && zone.has_namespace(namespace);
        return is_known.then_some(Target {
            prefix,
            service,
            namespace,
            is_ours: true,
        });
    }
    let claimed = |prefix: &'a [String], service: &'a str, namespace: &'a str| {
        let entry = zone.service(namespace, service)?;
        can_hold(entry, prefix).then_some(Target {
            prefix,
            service,
            namespace,
            is_ours: false,
        })
    };
    if let [prefix @ .., service, namespace, kind] = labels
        && kind == "svc"
        && let Some(target) = claimed(prefix, service, namespace)
    {
        return Some(target);
    }
    if let [prefix @ .., service, namespace] = labels
        && zone.has_short_names(namespace)
        && let Some(target) = claimed(prefix, service, namespace)
    {
        return Some(target);
    }
    let (service, prefix) = labels.split_last()?;

    claimed(prefix, service, zone.connected_namespace())
        .or_else(|| claimed(prefix, service, zone.lender(service)?))
}

/// Returns whether the cluster can have a name that is a service's with `prefix` before it: ports,
/// and the hosts of a headless service. All others are foreign, such as `example.app` beside a
/// service `app`.
fn can_hold(service: &ServiceEntry, prefix: &[String]) -> bool {
    match prefix {
        [] => true,
        [host] => service.addresses.is_empty() && !host.starts_with('_'),
        [port, protocol] => port.starts_with('_') && protocol.starts_with('_'),
        _ => false,
    }
}

fn is_below(labels: &[String], zone: &Zone) -> bool {
    labels.ends_with(zone.domain_labels())
}

/// True for an empty non-terminal (RFC 8499): it exists, without records.
fn is_empty_non_terminal(labels: &[String], zone: &Zone) -> bool {
    let Some(relative) = labels.strip_suffix(zone.domain_labels()) else {
        return false;
    };
    match relative {
        [] => true,
        [kind] => is_branch(kind),
        [namespace, kind] => is_branch(kind) && zone.has_namespace(namespace),
        _ => false,
    }
}

pub(super) fn is_branch(label: &str) -> bool {
    matches!(label, "svc" | "pod")
}

/// The namespace of `10-244-0-7.shop.pod`, with or without the cluster's domain.
fn pod_namespace<'a>(labels: &'a [String], zone: &Zone) -> Option<&'a str> {
    let relative = labels.strip_suffix(zone.domain_labels()).unwrap_or(labels);
    let [host, namespace, kind] = relative else {
        return None;
    };
    let can_be = is_below(labels, zone) || is_dashed_address(host);

    (kind == "pod" && can_be && zone.has_namespace(namespace)).then_some(namespace)
}

fn is_dashed_address(label: &str) -> bool {
    label.replace('-', ".").parse::<Ipv4Addr>().is_ok()
        || label.replace('-', ":").parse::<Ipv6Addr>().is_ok()
}

fn ask_pod(asked: &Asked, labels: &[String], namespace: &str, zone: &Zone) -> Step {
    let claim = if is_below(labels, zone) {
        Claim::Ours
    } else {
        Claim::Perhaps
    };
    let own = [labels[0].as_str(), namespace, "pod"];

    ask_name(asked, own.into_iter(), claim, zone)
}

fn decide_service(asked: &Asked, target: &Target<'_>, zone: &Zone) -> Step {
    let Some(service) = zone.service(target.namespace, target.service) else {
        return if target.is_ours {
            Step::Send(answer::missing(asked, zone))
        } else {
            Step::PassOn
        };
    };
    let kind = asked.kind();
    let has_addresses = !service.addresses.is_empty();
    if !target.prefix.is_empty() || !has_addresses || kind == RecordType::SRV {
        return ask_service(asked, target, zone);
    }
    let addresses: Vec<IpAddr> = service
        .addresses
        .iter()
        .copied()
        .filter(|address| match kind {
            RecordType::A | RecordType::ANY => reply::is_steered(*address),
            _ => false,
        })
        .collect();

    Step::Send(answer::addresses(asked, &addresses, zone))
}

fn ask_service(asked: &Asked, target: &Target<'_>, zone: &Zone) -> Step {
    let own = [target.service, target.namespace, "svc"];
    let relative = target.prefix.iter().map(String::as_str).chain(own);
    let claim = if target.is_ours {
        Claim::Ours
    } else if target.prefix.is_empty() {
        Claim::Service
    } else {
        Claim::Perhaps
    };

    ask_name(asked, relative, claim, zone)
}

fn ask_name<'a>(
    asked: &Asked,
    relative: impl Iterator<Item = &'a str>,
    claim: Claim,
    zone: &'a Zone,
) -> Step {
    let labels = relative
        .chain(zone.domain_labels().iter().map(String::as_str))
        .map(str::as_bytes);
    match Name::from_labels(labels) {
        Ok(full_name) => Question::step(asked, full_name, asked.kind(), claim),
        Err(_) => Step::PassOn,
    }
}

fn decide_pointer(asked: &Asked, address: IpAddr, zone: &Zone) -> Step {
    if let Some((namespace, service)) = zone.service_at(address) {
        return Step::Send(answer::pointer(asked, namespace, service, zone));
    }
    if !zone.is_cluster_address(address) {
        return Step::PassOn;
    }

    Question::step(asked, asked.name().clone(), asked.kind(), Claim::Perhaps)
}
