//! The messages we send (RFC 1035 section 4, RFC 6891 for EDNS).

use std::net::IpAddr;

use hickory_proto::{
    op::{Edns, Message, OpCode, ResponseCode},
    rr::{
        Name, RData, Record,
        rdata::{A, AAAA, PTR, SOA},
    },
};

use super::{
    Query, TTL, Zone,
    query::{Asked, EDNS_PAYLOAD},
};

impl Query {
    /// SERVFAIL as the answer, for a query that could not even be passed on; `None` if the message
    /// is not a query with one question of the class IN.
    pub fn failure(&self) -> Option<Vec<u8>> {
        self.asked().map(failure)
    }
}

/// An answer with `addresses`; if empty, one without records (NODATA, RFC 2308).
pub(super) fn addresses(asked: &Asked, addresses: &[IpAddr], zone: &Zone) -> Vec<u8> {
    let mut response = response(asked);
    for address in addresses {
        let data = match address {
            IpAddr::V4(v4) => RData::A(A(*v4)),
            IpAddr::V6(v6) => RData::AAAA(AAAA(*v6)),
        };
        response.add_answer(Record::from_rdata(asked.name().clone(), TTL, data));
    }
    if addresses.is_empty() {
        response.add_authority(authority(zone));
    }

    bytes(asked, response)
}

/// An answer with a PTR record to the name of a service.
pub(super) fn pointer(asked: &Asked, namespace: &str, service: &str, zone: &Zone) -> Vec<u8> {
    let mut response = response(asked);
    let target = format!(
        "{service}.{namespace}.svc.{}.",
        zone.domain_labels().join(".")
    );
    if let Ok(target) = Name::from_ascii(target) {
        let name = asked.name().clone();
        response.add_answer(Record::from_rdata(name, TTL, RData::PTR(PTR(target))));
    }

    bytes(asked, response)
}

/// NXDOMAIN.
pub(super) fn missing(asked: &Asked, zone: &Zone) -> Vec<u8> {
    let mut response = response(asked);
    response.metadata.response_code = ResponseCode::NXDomain;
    response.add_authority(authority(zone));

    bytes(asked, response)
}

/// SERVFAIL, without records.
pub(super) fn failure(asked: &Asked) -> Vec<u8> {
    let mut response = response(asked);
    response.metadata.response_code = ResponseCode::ServFail;

    bytes(asked, response)
}

pub(super) fn response(asked: &Asked) -> Message {
    let mut response = Message::response(asked.id, OpCode::Query);
    response.metadata.recursion_desired = asked.recursion_desired;
    response.metadata.recursion_available = true;
    response.metadata.authoritative = true;
    response.add_query(asked.question.clone());
    if asked.has_edns {
        let mut edns = Edns::new();
        edns.set_max_payload(EDNS_PAYLOAD);
        response.set_edns(edns);
    }

    response
}

/// The SOA record that limits negative caching (RFC 2308).
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

pub(super) fn bytes(asked: &Asked, response: Message) -> Vec<u8> {
    match response.to_vec() {
        Ok(message) if message.len() <= usize::from(asked.max_length) => message,
        // Empty only if not even the question can be written, which was read from the wire.
        Ok(_) | Err(_) => response.truncate().to_vec().unwrap_or_default(),
    }
}
