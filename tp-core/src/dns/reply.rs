//! What becomes of a query when the cluster has replied.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
};

use hickory_proto::{
    op::{Message, Query, ResponseCode},
    rr::{Name, RData, Record, RecordType},
};

use super::{Claim, Limit, Question, TTL, Zone, answer, ask_for, parse};

/// What becomes of a query after the cluster's reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Conclusion {
    /// The message to send.
    Answer(Vec<u8>),
    /// Ask the cluster this as well. A further question follows only the first one.
    Ask(Question),
    /// The cluster does not have the name: send the query, as it is, to the server that it was
    /// meant for.
    PassOn,
}

/// What becomes of `query` when the cluster says `reply` to `question`; an empty reply says that
/// the cluster does not have the name.
///
/// For a name that is not below the cluster's domain the cluster counts only if it has it. That
/// there is no record of the asked type is an answer only for a name that has others: programs take
/// a name for missing when one of its two address types is (RFC 4074 section 4.2).
pub fn conclude(
    query: &[u8],
    question: &Question,
    reply: &[u8],
    zone: &Zone,
    limit: Limit,
) -> Conclusion {
    let Some((message, asked)) = parse(query) else {
        return Conclusion::PassOn;
    };
    if reply.is_empty() && question.is_ours() {
        return Conclusion::Answer(answer::missing(&message, zone, limit));
    }
    let Ok(reply) = Message::from_vec(reply) else {
        let failure = answer::failure(query, ResponseCode::ServFail, limit);
        return failure
            .filter(|_| question.is_ours())
            .map_or(Conclusion::PassOn, Conclusion::Answer);
    };
    let has_records = !reply.answers.is_empty();
    let is_empty = !has_records && reply.metadata.response_code == ResponseCode::NoError;
    let answer = || rewritten(&message, &asked, question, &reply, zone, limit);
    match &question.claim {
        Claim::Ours => Conclusion::Answer(answer()),
        Claim::Empty(answer) if has_records => Conclusion::Answer(answer.clone()),
        Claim::Service if has_records || is_empty => Conclusion::Answer(answer()),
        Claim::Perhaps if has_records => Conclusion::Answer(answer()),
        Claim::Perhaps if is_empty && !is_address_or_pointer(&asked) => {
            let claim = Claim::Empty(answer());
            let name = question.full_name.clone();
            ask_for(&message, name, RecordType::A, claim)
                .map_or(Conclusion::PassOn, Conclusion::Ask)
        }
        Claim::Service | Claim::Perhaps | Claim::Empty(_) => Conclusion::PassOn,
    }
}

fn is_address_or_pointer(asked: &Query) -> bool {
    matches!(asked.query_type(), RecordType::A | RecordType::PTR)
}

/// The IPv4 addresses that `message` gives, at most `most` of them.
pub fn addresses(message: &[u8], most: usize) -> Vec<Ipv4Addr> {
    let Ok(message) = Message::from_vec(message) else {
        return Vec::new();
    };
    let records = message.answers.iter().chain(&message.additionals);
    let addresses = records.filter_map(|record| match &record.data {
        RData::A(address) => Some(address.0),
        _ => None,
    });

    addresses.take(most).collect()
}

/// Only IPv4 is: an IPv6 address in an answer would lead past the tunnel.
pub(super) fn is_steered(address: IpAddr) -> bool {
    address.is_ipv4()
}

/// `reply` as an answer to `query`: the asked name stands where the full one was, and no address
/// that does not lead into the tunnel.
fn rewritten(
    query: &Message,
    asked: &Query,
    question: &Question,
    reply: &Message,
    zone: &Zone,
    limit: Limit,
) -> Vec<u8> {
    let mut response = answer::response(query);
    response.metadata.response_code = reply.metadata.response_code;
    let full_name = first_owner(&reply.answers, &question.full_name);
    let kept = |records: &[Record]| -> Vec<Record> {
        records
            .iter()
            .filter(|record| record.record_type() != RecordType::AAAA)
            .cloned()
            .map(|record| renamed(record, &full_name, asked.name()))
            .collect()
    };
    response.add_answers(kept(&reply.answers));
    response.add_authorities(kept(&reply.authorities));
    response.add_additionals(kept(&reply.additionals));
    let is_empty = response
        .answers
        .iter()
        .all(|record| record.record_type() == RecordType::CNAME);
    if is_empty && response.authorities.is_empty() {
        response.add_authority(answer::authority(zone));
    }

    answer::bytes(query, response, limit)
}

/// The name that the chain of `answers` begins with. A cluster's DNS that rewrites names may not
/// begin with the one that was asked.
fn first_owner(answers: &[Record], full_name: &Name) -> Name {
    if answers.iter().any(|record| record.name == *full_name) {
        return full_name.clone();
    }
    let targets: BTreeSet<&Name> = answers
        .iter()
        .filter_map(|record| match &record.data {
            RData::CNAME(target) => Some(&target.0),
            _ => None,
        })
        .collect();
    let first = answers
        .iter()
        .map(|record| &record.name)
        .find(|name| !targets.contains(name));

    first.unwrap_or(full_name).clone()
}

fn renamed(mut record: Record, full_name: &Name, asked: &Name) -> Record {
    if record.name == *full_name {
        record.name = asked.clone();
    }
    record.ttl = record.ttl.min(TTL);
    if let RData::SOA(soa) = &mut record.data {
        soa.minimum = soa.minimum.min(TTL);
    }

    record
}
