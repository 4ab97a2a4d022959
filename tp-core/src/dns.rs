//! Who answers a DNS query: the table, the cluster, or the server that was asked.
//!
//! A name is ours only if the cluster has it; below the cluster's own domain that something does
//! not exist is an answer too. Everything else passes on untouched.

mod answer;
mod zone;

use std::net::IpAddr;

use hickory_proto::{
    op::{Message, MessageType, OpCode, Query, ResponseCode},
    rr::{DNSClass, Name, RecordType},
};

pub use answer::{Limit, failure, rewritten};
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
    /// Ask the cluster this message, then [`rewritten`] gives the answer to send.
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
    pub full_name: Name,
    /// Whether the name lies below the cluster's domain: then nobody else is asked when the
    /// cluster does not have it.
    pub is_ours: bool,
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
    if question.query_type() == RecordType::PTR
        && let Ok(network) = question.name().parse_arpa_name()
    {
        return decide_pointer(&message, network.addr(), zone, limit);
    }
    let name = question.name().to_lowercase();
    let labels: Vec<String> = name
        .iter()
        .map(|label| String::from_utf8_lossy(label).into_owned())
        .collect();
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

/// Reads `…service`, `…service.namespace`, `…service.namespace.svc` and the full name.
fn target<'a>(labels: &'a [String], zone: &'a Zone) -> Option<Target<'a>> {
    let domain = zone.domain_labels();
    let is_ours = labels.len() > domain.len() && labels.ends_with(domain);
    let relative = if is_ours {
        &labels[..labels.len() - domain.len()]
    } else {
        labels
    };
    if let [prefix @ .., service, namespace, kind] = relative
        && kind == "svc"
        && prefix.len() <= MAX_PREFIX
    {
        return zone.has_namespace(namespace).then_some(Target {
            prefix,
            service,
            namespace,
            is_ours,
        });
    }
    if is_ours {
        return None;
    }
    if let [prefix @ .., service, namespace] = relative
        && prefix.len() <= MAX_PREFIX
        && zone.service(namespace, service).is_some()
    {
        return Some(Target {
            prefix,
            service,
            namespace,
            is_ours,
        });
    }
    let [prefix @ .., service] = relative else {
        return None;
    };
    let namespace = zone.connected_namespace();
    zone.service(namespace, service)?;
    // A service named like a top-level domain must not claim all of it.
    if prefix.len() > MAX_PREFIX {
        return None;
    }

    Some(Target {
        prefix,
        service,
        namespace,
        is_ours,
    })
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
    match relative {
        [_, namespace, kind] if kind == "pod" && zone.has_namespace(namespace) => Some(namespace),
        _ => None,
    }
}

fn ask_pod(
    message: &Message,
    question: &Query,
    labels: &[String],
    namespace: &str,
    zone: &Zone,
) -> Decision {
    let is_ours = is_below(labels, zone);
    let own = [labels[0].as_str(), namespace, "pod"];

    ask_name(message, question, own.into_iter(), is_ours, zone)
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
            RecordType::A => address.is_ipv4(),
            RecordType::AAAA => address.is_ipv6(),
            RecordType::ANY => true,
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

    ask_name(message, question, relative, target.is_ours, zone)
}

fn ask_name<'a>(
    message: &Message,
    question: &Query,
    relative: impl Iterator<Item = &'a str>,
    is_ours: bool,
    zone: &'a Zone,
) -> Decision {
    let labels = relative
        .chain(zone.domain_labels().iter().map(String::as_str))
        .map(str::as_bytes);
    let Ok(full_name) = Name::from_labels(labels) else {
        return Decision::PassOn;
    };
    let mut query = Message::query();
    query.metadata.id = message.metadata.id;
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(full_name.clone(), question.query_type()));
    let Ok(message) = query.to_vec() else {
        return Decision::PassOn;
    };

    Decision::AskCluster(Question {
        message,
        full_name,
        is_ours,
    })
}

fn decide_pointer(message: &Message, address: IpAddr, zone: &Zone, limit: Limit) -> Decision {
    if let Some((namespace, service)) = zone.service_at(address) {
        return Decision::Answer(answer::pointer(message, namespace, service, zone, limit));
    }
    if !zone.is_cluster_address(address) {
        return Decision::PassOn;
    }
    let Some(question) = message.queries.first() else {
        return Decision::PassOn;
    };
    let mut query = Message::query();
    query.metadata.id = message.metadata.id;
    query.metadata.recursion_desired = true;
    query.add_query(question.clone());
    match query.to_vec() {
        Ok(message) => Decision::AskCluster(Question {
            message,
            full_name: question.name().clone(),
            is_ours: false,
        }),
        Err(_) => Decision::PassOn,
    }
}

/// What is sent when the cluster was asked and does not have the name; `None` if the query passes
/// on.
pub fn not_in_cluster(
    query: &[u8],
    question: &Question,
    zone: &Zone,
    limit: Limit,
) -> Option<Vec<u8>> {
    let (message, _) = parse(query).filter(|_| question.is_ours)?;

    Some(answer::missing(&message, zone, limit))
}

/// What is sent when the cluster cannot be asked.
pub fn unreachable_cluster(query: &[u8], limit: Limit) -> Option<Vec<u8>> {
    failure(query, ResponseCode::ServFail, limit)
}

#[cfg(test)]
mod tests;
