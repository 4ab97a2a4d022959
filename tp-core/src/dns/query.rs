//! A query, decoded once, and the question to the cluster that it becomes.

use hickory_proto::{
    op::{self, Message, MessageType, OpCode},
    rr::{DNSClass, Name, RecordType},
};

use super::Step;

/// UDP payload size that we announce, below every usual MTU (DNS flag day 2020).
pub(super) const EDNS_PAYLOAD: u16 = 1232;
/// Without EDNS (RFC 1035 section 2.3.4).
const CLASSIC_PAYLOAD: u16 = 512;

/// The length limit of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// What the query allows: 512 bytes (RFC 1035 section 2.3.4), or with EDNS as much as it says
    /// (RFC 6891 section 6.2.3), up to 1232 bytes. A longer answer is truncated: it has the flag TC
    /// and no records.
    Datagram,
    /// 65535 bytes: TCP (RFC 1035 section 4.2.2).
    Stream,
}

/// A message to a name server, with all that later steps need of it.
///
/// It may be anything: a message that is not a query with one question of the class IN has the step
/// [`Step::PassOn`].
#[derive(Debug)]
pub struct Query {
    message: Vec<u8>,
    /// `None`: it is always passed on.
    asked: Option<Asked>,
}

impl Query {
    /// Decodes `message`, which is in wire format (RFC 1035 section 4.1), without the length that
    /// precedes it on TCP. Its answer may be as long as `limit` says.
    pub fn decode(message: Vec<u8>, limit: Limit) -> Self {
        let asked = Asked::decode(&message, limit);

        Self { message, asked }
    }

    /// The message as it came.
    pub fn message(&self) -> &[u8] {
        &self.message
    }

    pub(super) fn asked(&self) -> Option<&Asked> {
        self.asked.as_ref()
    }
}

/// The parts of a query that its answers repeat or depend on.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) id: u16,
    pub(super) recursion_desired: bool,
    pub(super) question: op::Query,
    pub(super) has_edns: bool,
    /// Length of the longest answer, in bytes.
    pub(super) max_length: u16,
}

impl Asked {
    pub(super) fn decode(message: &[u8], limit: Limit) -> Option<Self> {
        let message = Message::from_vec(message).ok()?;
        let is_query = message.metadata.message_type == MessageType::Query
            && message.metadata.op_code == OpCode::Query;
        let [question] = message.queries.as_slice() else {
            return None;
        };
        if !is_query || question.query_class() != DNSClass::IN {
            return None;
        }
        let max_length = match limit {
            Limit::Datagram => message.edns.as_ref().map_or(CLASSIC_PAYLOAD, |edns| {
                edns.max_payload().clamp(CLASSIC_PAYLOAD, EDNS_PAYLOAD)
            }),
            Limit::Stream => u16::MAX,
        };

        Some(Self {
            id: message.metadata.id,
            recursion_desired: message.metadata.recursion_desired,
            question: question.clone(),
            has_edns: message.edns.is_some(),
            max_length,
        })
    }

    pub(super) fn name(&self) -> &Name {
        self.question.name()
    }

    pub(super) fn kind(&self) -> RecordType {
        self.question.query_type()
    }
}

/// A question that only the cluster can answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// The message to ask, in wire format, with the full name and the identifier of the query.
    pub message: Vec<u8>,
    /// The full name that stands for the asked one.
    pub(super) full_name: Name,
    pub(super) claim: Claim,
}

/// The state of a name before the cluster is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Claim {
    /// It lies below the cluster's domain: no other server is asked, whatever the cluster says.
    Ours,
    /// It is a service's: it exists, with or without records.
    Service,
    /// It lies below a service, where the cluster may or may not have it.
    Perhaps,
    /// The cluster has no such record of it. Asked for its addresses, the cluster shows whether it
    /// has the name; if so this is the answer.
    Empty(Vec<u8>),
}

impl Question {
    /// True if only the cluster may be asked.
    pub fn is_ours(&self) -> bool {
        self.claim == Claim::Ours
    }

    /// The step that asks for the records `kind` of `full_name`, which stands for the asked name.
    pub(super) fn step(asked: &Asked, full_name: Name, kind: RecordType, claim: Claim) -> Step {
        let mut query = Message::query();
        query.metadata.id = asked.id;
        query.metadata.recursion_desired = true;
        query.add_query(op::Query::query(full_name.clone(), kind));
        let Ok(message) = query.to_vec() else {
            return Step::PassOn;
        };

        Step::AskCluster(Self {
            message,
            full_name,
            claim,
        })
    }
}
