//! The subject of a DNS question, for a program that decides who may ask it.

use std::net::IpAddr;

use hickory_proto::rr::Name;

use super::{
    decide::{asked_address, is_branch, labels},
    query::{Asked, Limit},
    zone,
};

/// The subject of a question.
#[derive(Debug, PartialEq, Eq)]
pub enum Subject {
    /// A name in this namespace.
    In(String),
    /// The name of this address.
    About(IpAddr),
    /// Nothing that only the cluster knows.
    Foreign,
}

/// Reads what `query`, a message in wire format, is about; `None` if it is not a query with one
/// question of the class IN. `cluster_domain` may have a dot at its end.
pub fn subject(query: &[u8], cluster_domain: &str) -> Option<Subject> {
    let asked = Asked::decode(query, Limit::Stream)?;

    Some(match asked_address(&asked) {
        Some(address) => Subject::About(address),
        None => classify(asked.name(), cluster_domain),
    })
}

/// `…NAMESPACE.svc.DOMAIN` and `…NAMESPACE.pod.DOMAIN`.
fn classify(name: &Name, cluster_domain: &str) -> Subject {
    let labels = labels(name);
    let domain = zone::labels(cluster_domain);
    match labels.strip_suffix(domain.as_slice()) {
        Some([.., namespace, kind]) if is_branch(kind) => Subject::In(namespace.clone()),
        _ => Subject::Foreign,
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::{
        op::{Message, MessageType, OpCode, Query},
        rr::{DNSClass, RecordType},
    };

    use super::*;

    fn of(name: &str, record_type: RecordType) -> Option<Subject> {
        let mut message = Message::query();
        let name = Name::from_ascii(name).unwrap();
        message.add_query(Query::query(name, record_type));
        subject(&message.to_vec().unwrap(), "cluster.local")
    }

    #[test]
    fn a_name_belongs_to_its_namespace() {
        let shop = Some(Subject::In("shop".into()));

        assert_eq!(of("web.shop.svc.cluster.local.", RecordType::A), shop);
        assert_eq!(of("WEB.Shop.SVC.cluster.LOCAL.", RecordType::A), shop);
        assert_eq!(of("db-0.db.shop.svc.cluster.local.", RecordType::A), shop);
        assert_eq!(
            of("_pg._tcp.db.shop.svc.cluster.local.", RecordType::SRV),
            shop
        );
        assert_eq!(of("10-1-2-3.shop.pod.cluster.local.", RecordType::A), shop);
    }

    #[test]
    fn other_names_are_foreign() {
        for name in [
            "example.com.",
            "svc.cluster.local.",
            "cluster.local.",
            "web.shop.svc.cluster.local.example.com.",
            "shop.svc.example.local.",
        ] {
            assert_eq!(of(name, RecordType::A), Some(Subject::Foreign), "{name}");
        }
    }

    #[test]
    fn a_reverse_name_is_about_its_address() {
        let about = |text: &str| Some(Subject::About(text.parse().unwrap()));

        assert_eq!(
            of("2.1.96.10.in-addr.arpa.", RecordType::PTR),
            about("10.96.1.2")
        );
        let nibbles = "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa.";
        assert_eq!(of(nibbles, RecordType::PTR), about("fd00::1"));
        assert_eq!(
            of("96.10.in-addr.arpa.", RecordType::PTR),
            Some(Subject::Foreign)
        );
    }

    #[test]
    fn a_packet_that_is_no_query_is_none() {
        assert_eq!(subject(b"hello", "cluster.local"), None);
        let mut response = Message::response(1, OpCode::Query);
        response.metadata.message_type = MessageType::Response;
        assert_eq!(subject(&response.to_vec().unwrap(), "cluster.local"), None);
        let mut chaos = Query::query(Name::from_ascii("version.bind.").unwrap(), RecordType::TXT);
        chaos.set_query_class(DNSClass::CH);
        let mut message = Message::query();
        message.add_query(chaos);
        assert_eq!(subject(&message.to_vec().unwrap(), "cluster.local"), None);
    }
}
