//! The messages we send (RFC 1035 section 4, RFC 6891 for EDNS).

use std::net::IpAddr;

use hickory_proto::{
    op::{Edns, Message, OpCode, ResponseCode},
    rr::{
        Name, RData, Record,
        rdata::{A, AAAA, PTR, SOA},
    },
};

use super::{TTL, Zone, parse};

/// Payload that we take ourselves, below every usual MTU (DNS flag day 2020).
const EDNS_PAYLOAD: u16 = 1232;
/// Without EDNS (RFC 1035 section 2.3.4).
const CLASSIC_PAYLOAD: u16 = 512;

/// How long a message may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// What the query allows, 512 bytes without EDNS; a longer message is truncated.
    Datagram,
    /// 64 KiB: TCP.
    Stream,
}

pub(super) fn addresses(
    query: &Message,
    name: &Name,
    addresses: &[IpAddr],
    zone: &Zone,
    limit: Limit,
) -> Vec<u8> {
    let mut response = response(query);
    for address in addresses {
        let data = match address {
            IpAddr::V4(v4) => RData::A(A(*v4)),
            IpAddr::V6(v6) => RData::AAAA(AAAA(*v6)),
        };
        response.add_answer(Record::from_rdata(name.clone(), TTL, data));
    }
    if addresses.is_empty() {
        response.add_authority(authority(zone));
    }

    bytes(query, response, limit)
}

pub(super) fn pointer(
    query: &Message,
    namespace: &str,
    service: &str,
    zone: &Zone,
    limit: Limit,
) -> Vec<u8> {
    let mut response = response(query);
    let target = format!(
        "{service}.{namespace}.svc.{}.",
        zone.domain_labels().join(".")
    );
    if let (Some(question), Ok(target)) = (query.queries.first(), Name::from_ascii(target)) {
        let name = question.name().clone();
        response.add_answer(Record::from_rdata(name, TTL, RData::PTR(PTR(target))));
    }

    bytes(query, response, limit)
}

/// NXDOMAIN.
pub(super) fn missing(query: &Message, zone: &Zone, limit: Limit) -> Vec<u8> {
    let mut response = response(query);
    response.metadata.response_code = ResponseCode::NXDomain;
    response.add_authority(authority(zone));

    bytes(query, response, limit)
}

/// An answer without records; `None` for what is no query.
pub fn failure(query: &[u8], code: ResponseCode, limit: Limit) -> Option<Vec<u8>> {
    let (query, _) = parse(query)?;
    let mut response = response(&query);
    response.metadata.response_code = code;

    Some(bytes(&query, response, limit))
}

pub(super) fn response(query: &Message) -> Message {
    let mut response = Message::response(query.metadata.id, OpCode::Query);
    response.metadata.recursion_desired = query.metadata.recursion_desired;
    response.metadata.recursion_available = true;
    response.metadata.authoritative = true;
    response.add_queries(query.queries.iter().cloned());
    if query.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(EDNS_PAYLOAD);
        response.set_edns(edns);
    }

    response
}

/// How long that there is nothing may be kept (RFC 2308).
pub(super) fn authority(zone: &Zone) -> Record {
    let domain = zone.domain_labels().join(".");
    let name = |text: String| Name::from_ascii(text).unwrap_or_default();
    let ttl = i32::try_from(TTL).unwrap_or(i32::MAX);
    let soa = SOA::new(
        name(format!("ns.dns.{domain}.")),
        name(format!("hostmaster.{domain}.")),
        1,
        ttl,
        ttl,
        ttl,
        TTL,
    );

    Record::from_rdata(name(format!("{domain}.")), TTL, RData::SOA(soa))
}

pub(super) fn bytes(query: &Message, response: Message, limit: Limit) -> Vec<u8> {
    let most = match limit {
        Limit::Datagram => query.edns.as_ref().map_or(CLASSIC_PAYLOAD, |edns| {
            edns.max_payload().clamp(CLASSIC_PAYLOAD, EDNS_PAYLOAD)
        }),
        Limit::Stream => u16::MAX,
    };
    match response.to_vec() {
        Ok(message) if message.len() <= usize::from(most) => message,
        // Empty only if not even the question can be written, which was read from the wire.
        Ok(_) | Err(_) => response.truncate().to_vec().unwrap_or_default(),
    }
}
