//! The manager's table, from the wire to what names are decided by.

use std::net::IpAddr;

use ipnet::IpNet;
use tp_core::dns::ServiceEntry;
use tp_proto::tunnel::{Service, Snapshot};

pub(super) fn entry(service: &Service) -> ServiceEntry {
    ServiceEntry {
        addresses: service
            .cluster_ips
            .iter()
            .filter_map(|bytes| address(bytes))
            .collect(),
    }
}

pub(super) fn networks(snapshot: &Snapshot) -> Vec<IpNet> {
    let texts = snapshot
        .service_networks
        .iter()
        .chain(&snapshot.pod_networks);
    texts.filter_map(|text| text.parse().ok()).collect()
}

/// 4 or 16 bytes in network order.
pub(super) fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(<[u8; 4]>::try_from(bytes).ok()?.into()),
        16 => Some(<[u8; 16]>::try_from(bytes).ok()?.into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_other_lengths_are_left_out() {
        let service = Service {
            cluster_ips: vec![vec![10, 96, 1, 2].into(), vec![1, 2, 3].into()],
            ..Service::default()
        };

        assert_eq!(
            entry(&service).addresses,
            ["10.96.1.2".parse::<IpAddr>().unwrap()]
        );
    }
}
