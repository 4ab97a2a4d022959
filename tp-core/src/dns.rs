//! Decides who answers a DNS query: the table, the cluster, or the server that was asked.
//!
//! A name is ours only if the cluster has it; below the cluster's own domain "does not exist" is an
//! answer too. Every other query passes on unchanged.
//!
//! [`Query::decode`] reads a query; [`Zone::decide`] gives its first [`Step`]. After a step
//! [`Step::AskCluster`], [`Query::answered`] or [`Query::unanswered`] gives the next one.

mod answer;
mod decide;
mod query;
mod reply;
mod subject;
mod zone;

use hickory_proto::{
    op::{self, Message, ResponseCode},
    rr::{Name, RecordType},
};

pub use query::{Limit, Query, Question};
pub use reply::addresses;
pub use subject::{Subject, subject};
pub use zone::{ServiceEntry, Zone};

/// TTL of answers, in seconds: a disconnect must not leave stale names behind.
pub const TTL: u32 = 5;

/// The next step for a query. Messages are in wire format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Send this message to the resolver: it answers the query.
    Send(Vec<u8>),
    /// Send this message to the resolver: SERVFAIL, because the cluster cannot be asked.
    Fail(Vec<u8>),
    /// Ask the cluster this, then call [`Query::answered`] or [`Query::unanswered`].
    AskCluster(Question),
    /// Send the query, as it is, to the server that it was meant for.
    PassOn,
}

/// Reachability of the cluster's DNS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClusterState {
    /// There is a tunnel.
    Reachable,
    /// There is no tunnel: a question would fail.
    Unreachable,
}

/// Existence of a name, as another DNS server reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// It has an address.
    Exists,
    /// It has none, or there is no such name.
    Missing,
}

/// A query for the IPv4 address of `name` in wire format; `None` if that is not a name (RFC 1035
/// section 3.1). `name` is a full name, with or without a dot at its end.
pub fn question(name: &str) -> Option<Vec<u8>> {
    let mut name = Name::from_ascii(name).ok()?;
    name.set_fqdn(true);
    let mut query = Message::query();
    query.metadata.recursion_desired = true;
    query.add_query(op::Query::query(name, RecordType::A));

    query.to_vec().ok()
}

/// Reads from `answer` whether the name of `query` exists, both in wire format; `None` if `answer`
/// has another identifier or question, or a code other than NOERROR and NXDOMAIN.
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

#[cfg(test)]
mod tests;
