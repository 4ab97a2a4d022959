//! The manager's table, as a session keeps it: applies events to its names.
//!
//! Kept with the messages, so that one test covers both ends.

use std::{collections::BTreeSet, mem, net::IpAddr};

use ipnet::IpNet;
use tp_core::dns::{ServiceEntry, Zone};

use crate::tunnel::{Service, Snapshot, table_event::Event};

/// Assembles a snapshot that comes in parts, so that no name is missing meanwhile.
#[derive(Debug, Default)]
pub struct SnapshotAssembler(Option<Snapshot>);

impl SnapshotAssembler {
    /// Takes an event and returns the one to apply next: the same, or a snapshot once it is
    /// complete.
    pub fn take(&mut self, event: Event) -> Option<Event> {
        match (event, &mut self.0) {
            (Event::Snapshot(snapshot), begun) if snapshot.services_follow => {
                *begun = Some(snapshot);
                return None;
            }
            (Event::Replaced(frame), Some(begun)) => {
                let namespaces: BTreeSet<&String> = frame.namespaces.iter().collect();
                let mut services = mem::take(&mut begun.services);
                services.retain(|service| namespaces.contains(&service.namespace));
                *begun = Snapshot { services, ..frame };
            }
            (Event::ServiceApplied(service), Some(begun)) => begun.services.push(service),
            (Event::ServiceRemoved(name), Some(begun)) => begun
                .services
                .retain(|it| (&it.namespace, &it.name) != (&name.namespace, &name.name)),
            (event @ Event::Snapshot(_), begun) => {
                *begun = None;
                return Some(event);
            }
            (event, _) => return Some(event),
        }

        let complete = self.0.take_if(|begun| !begun.services_follow);
        complete.map(Event::Snapshot)
    }
}

/// Applies an event of the manager to `zone`.
pub fn apply(zone: &mut Zone, event: Event) {
    match event {
        Event::Snapshot(snapshot) => {
            let networks = networks(&snapshot);
            zone.replace(snapshot.namespaces, networks);
            for service in snapshot.services {
                zone.apply(&service.namespace, &service.name, entry(&service));
            }
        }
        Event::Replaced(frame) => {
            let networks = networks(&frame);
            zone.set_frame(frame.namespaces, networks);
        }
        Event::ServiceApplied(service) => {
            zone.apply(&service.namespace, &service.name, entry(&service));
        }
        Event::ServiceRemoved(name) => zone.remove(&name.namespace, &name.name),
        // Concerns the tunnel, not names.
        Event::Candidates(_) => {}
    }
}

fn entry(service: &Service) -> ServiceEntry {
    ServiceEntry {
        addresses: service
            .cluster_ips
            .iter()
            .filter_map(|bytes| address(bytes))
            .collect(),
    }
}

fn networks(snapshot: &Snapshot) -> Vec<IpNet> {
    let texts = snapshot
        .service_networks
        .iter()
        .chain(&snapshot.pod_networks);
    texts.filter_map(|text| text.parse().ok()).collect()
}

/// The address of 4 or 16 bytes in network order; `None` for another length.
pub fn address(bytes: &[u8]) -> Option<IpAddr> {
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
