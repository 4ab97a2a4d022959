//! Who answers a DNS query: the table, the cluster, or the server that was asked.
//!
//! A name is ours only if the cluster has it; below the cluster's own domain that something does
//! not exist is an answer too. Everything else passes on untouched.

mod answer;
mod reply;
mod subject;
mod zone;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::{
    op::{Message, MessageType, OpCode, Query, ResponseCode},
    rr::{DNSClass, Name, RecordType},
};

pub use answer::{Limit, failure};
pub use reply::{Conclusion, addresses, conclude};
pub use subject::{Subject, subject};
pub use zone::{ServiceEntry, Zone};

/// How long an answer may be kept, in seconds: a disconnect must not leave stale names behind.
pub const TTL: u32 = 5;

/// Labels before a service's name: `pod-0.web`, `_http._tcp.web`.
const MAX_PREFIX: usize = 2;

/// What becomes of a query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// The table decides; this is the message to send.
    Answer(Vec<u8>),
    /// Ask the cluster this message, then [`conclude`] says what becomes of the query.
    AskCluster(Question),
    /// Send the query, as it is, to the server that it was meant for.
    PassOn,
}

/// A query that only the cluster can answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// The message to ask, with the full name.
    pub message: Vec<u8>,
    /// The full name that stands for the asked one.
    full_name: Name,
    claim: Claim,
}

/// What is known of a name before the cluster is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Claim {
    /// It lies below the cluster's domain: nobody else is asked, whatever the cluster says.
    Ours,
    /// It is that of a service: it exists, with whatever records.
    Service,
    /// It lies below a service, where the cluster may or may not have it.
    Perhaps,
    /// The cluster has no such record of it. Whether it has the name at all, its addresses tell;
    /// if so this is the answer.
    Empty(Vec<u8>),
}

impl Question {
    /// Whether nobody but the cluster may be asked.
    pub fn is_ours(&self) -> bool {
        self.claim == Claim::Ours
    }
}

/// A name in terms of the cluster, least significant labels first in `prefix`.
struct Target<'a> {
    prefix: &'a [String],
    service: &'a str,
    namespace: &'a str,
    is_ours: bool,
}

/// Decides who answers `query`, a message in wire format.
pub fn decide(query: &[u8], zone: &Zone, limit: Limit) -> Decision {
    let Some((message, question)) = parse(query) else {
        return Decision::PassOn;
    };
    if let Some(address) = asked_address(&question) {
        return decide_pointer(&message, address, zone, limit);
    }
    let labels = labels(question.name());
    if let Some(namespace) = pod_namespace(&labels, zone) {
        return ask_pod(&message, &question, &labels, namespace, zone);
    }
    let Some(target) = target(&labels, zone) else {
        return if is_node(&labels, zone) {
            Decision::Answer(answer::addresses(
                &message,
                question.name(),
                &[],
                zone,
                limit,
            ))
        } else if is_below(&labels, zone) {
            Decision::Answer(answer::missing(&message, zone, limit))
        } else {
            Decision::PassOn
        };
    };

    decide_service(&message, &question, &target, zone, limit)
}

/// Whether the answer to `query` is ours to give, also while the cluster cannot be asked.
pub fn is_claimed(query: &[u8], zone: &Zone) -> bool {
    decide(query, zone, Limit::Stream) != Decision::PassOn
}

fn parse(query: &[u8]) -> Option<(Message, Query)> {
    let message = Message::from_vec(query).ok()?;
    let is_query = message.metadata.message_type == MessageType::Query
        && message.metadata.op_code == OpCode::Query;
    let [question] = message.queries.as_slice() else {
        return None;
    };
    if !is_query || question.query_class() != DNSClass::IN {
        return None;
    }
    let question = question.clone();

    Some((message, question))
}

/// The address whose name is asked for. A name of fewer labels is that of a network.
fn asked_address(question: &Query) -> Option<IpAddr> {
    if question.query_type() != RecordType::PTR {
        return None;
    }
    let network = question.name().parse_arpa_name().ok()?;

    (network.prefix_len() == network.max_prefix_len()).then_some(network.addr())
}

fn labels(name: &Name) -> Vec<String> {
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
}

/// Whether the cluster may have a name that is a service's with `prefix` before it: ports, and the
/// hosts of a headless service. All others are somebody else's, such as `example.app` beside a
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

/// A name on the way to others: it exists, without records.
fn is_node(labels: &[String], zone: &Zone) -> bool {
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

fn is_branch(label: &str) -> bool {
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

fn ask_pod(
    message: &Message,
    question: &Query,
    labels: &[String],
    namespace: &str,
    zone: &Zone,
) -> Decision {
    let claim = if is_below(labels, zone) {
        Claim::Ours
    } else {
        Claim::Perhaps
    };
    let own = [labels[0].as_str(), namespace, "pod"];

    ask_name(message, question, own.into_iter(), claim, zone)
}

fn decide_service(
    message: &Message,
    question: &Query,
    target: &Target<'_>,
    zone: &Zone,
    limit: Limit,
) -> Decision {
    let Some(service) = zone.service(target.namespace, target.service) else {
        return if target.is_ours {
            Decision::Answer(answer::missing(message, zone, limit))
        } else {
            Decision::PassOn
        };
    };
    let kind = question.query_type();
    let has_addresses = !service.addresses.is_empty();
    if !target.prefix.is_empty() || !has_addresses || kind == RecordType::SRV {
        return ask(message, question, target, zone);
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

    Decision::Answer(answer::addresses(
        message,
        question.name(),
        &addresses,
        zone,
        limit,
    ))
}

fn ask(message: &Message, question: &Query, target: &Target<'_>, zone: &Zone) -> Decision {
    let own = [target.service, target.namespace, "svc"];
    let relative = target.prefix.iter().map(String::as_str).chain(own);
    let claim = if target.is_ours {
        Claim::Ours
    } else if target.prefix.is_empty() {
        Claim::Service
    } else {
        Claim::Perhaps
    };

    ask_name(message, question, relative, claim, zone)
}

fn ask_name<'a>(
    message: &Message,
    question: &Query,
    relative: impl Iterator<Item = &'a str>,
    claim: Claim,
    zone: &'a Zone,
) -> Decision {
    let labels = relative
        .chain(zone.domain_labels().iter().map(String::as_str))
        .map(str::as_bytes);
    match Name::from_labels(labels) {
        Ok(full_name) => ask_for(message, full_name, question.query_type(), claim)
            .map_or(Decision::PassOn, Decision::AskCluster),
        Err(_) => Decision::PassOn,
    }
}

fn ask_for(message: &Message, full_name: Name, kind: RecordType, claim: Claim) -> Option<Question> {
    let mut query = Message::query();
    query.metadata.id = message.metadata.id;
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(full_name.clone(), kind));

    Some(Question {
        message: query.to_vec().ok()?,
        full_name,
        claim,
    })
}

fn decide_pointer(message: &Message, address: IpAddr, zone: &Zone, limit: Limit) -> Decision {
    if let Some((namespace, service)) = zone.service_at(address) {
        return Decision::Answer(answer::pointer(message, namespace, service, zone, limit));
    }
    if !zone.is_cluster_address(address) {
        return Decision::PassOn;
    }
    message
        .queries
        .first()
        .and_then(|it| ask_for(message, it.name().clone(), it.query_type(), Claim::Perhaps))
        .map_or(Decision::PassOn, Decision::AskCluster)
}

/// Whether a name exists, as a server of others says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// It has an address.
    Exists,
    Missing,
}

/// A query for the IPv4 address of `name`; `None` if that can be no name.
pub fn question(name: &str) -> Option<Vec<u8>> {
    let mut name = Name::from_ascii(name).ok()?;
    name.set_fqdn(true);
    let mut query = Message::query();
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(name, RecordType::A));

    query.to_vec().ok()
}

/// What `answer` says to `query`; `None` if it is no answer to it, or a failure.
pub fn presence(query: &[u8], answer: &[u8]) -> Option<Presence> {
    let query = Message::from_vec(query).ok()?;
    let answer = Message::from_vec(answer).ok()?;
    if answer.metadata.id != query.metadata.id || answer.queries != query.queries {
        return None;
    }
    match answer.metadata.response_code {
        ResponseCode::NoError if !answer.answers.is_empty() => Some(Presence::Exists),
        ResponseCode::NoError | ResponseCode::NXDomain => Some(Presence::Missing),
        _ => None,
    }
}

/// What is sent when the cluster cannot be asked.
pub fn unreachable_cluster(query: &[u8], limit: Limit) -> Option<Vec<u8>> {
    failure(query, ResponseCode::ServFail, limit)
}

#[cfg(test)]
mod tests;
