//! Decides the next step after the cluster's reply.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
};

use hickory_proto::{
    op::{Message, ResponseCode},
    rr::{Name, RData, Record, RecordType},
};

use super::{
    Query, Question, Step, TTL, Zone, answer,
    query::{Asked, Claim},
};

impl Query {
    /// The step that follows when the cluster says `reply`, a message in wire format, to
    /// `question`; an empty reply says that the cluster does not have the name. A further question
    /// follows only the first one.
    ///
    /// Outside of the cluster's domain a reply counts only if the cluster has the name. "No record of
    /// this type" is an answer only for a name with records of another: programs take a name for
    /// missing when one of its two address types is (RFC 4074 section 4.2).
    pub fn answered(&self, question: &Question, reply: &[u8], zone: &Zone) -> Step {
        match self.asked() {
            Some(asked) => conclude(asked, question, reply, zone),
            None => Step::PassOn,
        }
    }

    /// The step that follows when the cluster cannot be asked `question`, or does not reply. A name
    /// that may not be the cluster's passes on.
    pub fn unanswered(&self, question: &Question) -> Step {
        match self.asked() {
            Some(asked) if question.is_ours() => Step::Fail(answer::failure(asked)),
            _ => Step::PassOn,
        }
    }
}

fn conclude(asked: &Asked, question: &Question, reply: &[u8], zone: &Zone) -> Step {
    if reply.is_empty() && question.is_ours() {
        return Step::Send(answer::missing(asked, zone));
    }
    let Ok(reply) = Message::from_vec(reply) else {
        return if question.is_ours() {
            Step::Send(answer::failure(asked))
        } else {
            Step::PassOn
        };
    };
    let has_records = !reply.answers.is_empty();
    let is_empty = !has_records && reply.metadata.response_code == ResponseCode::NoError;
    let answer = || rewritten(asked, question, &reply, zone);
    match &question.claim {
        Claim::Ours => Step::Send(answer()),
        Claim::Empty(answer) if has_records => Step::Send(answer.clone()),
        Claim::Service if has_records || is_empty => Step::Send(answer()),
        Claim::Perhaps if has_records => Step::Send(answer()),
        Claim::Perhaps if is_empty && !is_address_or_pointer(asked) => {
            let claim = Claim::Empty(answer());
            Question::step(asked, question.full_name.clone(), RecordType::A, claim)
        }
        Claim::Service | Claim::Perhaps | Claim::Empty(_) => Step::PassOn,
    }
}

fn is_address_or_pointer(asked: &Asked) -> bool {
    matches!(asked.kind(), RecordType::A | RecordType::PTR)
}

/// The IPv4 addresses in the answer and additional sections of `message`, which is in wire format, at
/// most `most` of them; none if it cannot be decoded.
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

/// True for IPv4 only: an IPv6 address in an answer would bypass the tunnel.
pub(super) fn is_steered(address: IpAddr) -> bool {
    address.is_ipv4()
}

/// `reply` as an answer to the query: with the asked name in place of the full one, and without
/// addresses that bypass the tunnel.
fn rewritten(asked: &Asked, question: &Question, reply: &Message, zone: &Zone) -> Vec<u8> {
    let mut response = answer::response(asked);
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

    answer::bytes(asked, response)
}

/// The first name in the CNAME chain of `answers`. A cluster's DNS that rewrites names may begin
/// with another one than was asked.
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
