//! Whose a DNS question is.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::{
    op::{Message, MessageType, OpCode},
    rr::{Name, RecordType},
};

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Question {
    /// A name in this namespace.
    In(String),
    /// The name of this address.
    About(IpAddr),
    /// Nothing that the cluster alone would know.
    Foreign,
}

/// `None` if this is no query with one question.
pub(super) fn read(query: &[u8], cluster_domain: &str) -> Option<Question> {
    let message = Message::from_vec(query).ok()?;
    if message.metadata.message_type != MessageType::Query
        || message.metadata.op_code != OpCode::Query
    {
        return None;
    }
    let [question] = message.queries.as_slice() else {
        return None;
    };
    if question.query_type() == RecordType::PTR
        && let Some(address) = reverse(question.name())
    {
        return Some(Question::About(address));
    }

    Some(classify(question.name(), cluster_domain))
}

/// `…NAMESPACE.svc.DOMAIN` and `…NAMESPACE.pod.DOMAIN`.
fn classify(name: &Name, cluster_domain: &str) -> Question {
    let labels = labels(name);
    let domain: Vec<String> = cluster_domain
        .split('.')
        .filter(|label| !label.is_empty())
        .map(str::to_ascii_lowercase)
        .collect();
    let Some(inside) = labels.strip_suffix(domain.as_slice()) else {
        return Question::Foreign;
    };
    match inside {
        [.., namespace, kind] if kind == "svc" || kind == "pod" => Question::In(namespace.clone()),
        _ => Question::Foreign,
    }
}

fn labels(name: &Name) -> Vec<String> {
    name.iter()
        .map(|label| String::from_utf8_lossy(label).to_ascii_lowercase())
        .collect()
}

/// The address of `4.3.2.1.in-addr.arpa`, or of the nibbles of `ip6.arpa`.
fn reverse(name: &Name) -> Option<IpAddr> {
    let labels = labels(name);
    let [digits @ .., zone, arpa] = labels.as_slice() else {
        return None;
    };
    if arpa != "arpa" {
        return None;
    }
    match (zone.as_str(), digits.len()) {
        ("in-addr", 4) => {
            let mut octets = [0; 4];
            for (octet, digits) in octets.iter_mut().zip(digits.iter().rev()) {
                *octet = digits.parse().ok()?;
            }
            Some(Ipv4Addr::from(octets).into())
        }
        ("ip6", 32) => {
            let mut value = 0_u128;
            for digit in digits.iter().rev() {
                let [digit] = digit.as_bytes() else {
                    return None;
                };
                let digit = char::from(*digit).to_digit(16)?;
                value = value << 4 | u128::from(digit);
            }
            Some(Ipv6Addr::from(value).into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::Query;

    use super::*;

    fn of(name: &str, record_type: RecordType) -> Option<Question> {
        let mut message = Message::query();
        let name = Name::from_ascii(name).unwrap();
        message.add_query(Query::query(name, record_type));
        read(&message.to_vec().unwrap(), "cluster.local")
    }

    #[test]
    fn a_name_belongs_to_its_namespace() {
        let shop = Some(Question::In("shop".into()));

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
            assert_eq!(of(name, RecordType::A), Some(Question::Foreign), "{name}");
        }
    }

    #[test]
    fn a_reverse_name_is_about_its_address() {
        let about = |text: &str| Some(Question::About(text.parse().unwrap()));

        assert_eq!(
            of("2.1.96.10.in-addr.arpa.", RecordType::PTR),
            about("10.96.1.2")
        );
        let nibbles = "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa.";
        assert_eq!(of(nibbles, RecordType::PTR), about("fd00::1"));
        assert_eq!(
            of("96.10.in-addr.arpa.", RecordType::PTR),
            Some(Question::Foreign)
        );
    }

    #[test]
    fn a_packet_that_is_no_query_is_none() {
        assert_eq!(read(b"hello", "cluster.local"), None);
        let mut response = Message::response(1, OpCode::Query);
        response.metadata.message_type = MessageType::Response;
        assert_eq!(read(&response.to_vec().unwrap(), "cluster.local"), None);
    }
}
