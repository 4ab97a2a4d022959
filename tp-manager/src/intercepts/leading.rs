//! What leads to intercepted ports: the session tells by it which calls of its own workstation do.

use std::{collections::BTreeSet, net::IpAddr};

use tp_proto::{
    agent::PodPhase,
    tunnel::{InterceptState, LeadingService},
};

use super::{InterceptRecord, Intercepts, serving::Served};
use crate::model::{Model, ObjectName};

impl Intercepts {
    /// Adds to the state of an Intercept the addresses of its pods, and which of the services that the
    /// session named lead to them.
    pub(super) fn add_leading(
        &self,
        state: &mut InterceptState,
        record: &InterceptRecord,
        served: &Served,
    ) {
        let namespace = &record.object.namespace;
        let reports = self.reports_of(record);
        let model = &*self.model.read();
        let pods = reports.into_iter().map(|it| it.report);
        let pods = pods.filter(|report| report.phase() == PodPhase::Redirected);
        let addresses: BTreeSet<IpAddr> = pods
            .filter_map(|report| {
                let pod = model.pod(&ObjectName::new(namespace, report.name))?;
                (*pod.uid == *report.pod).then_some(&pod.addresses)
            })
            .flatten()
            .copied()
            .collect();
        for service in served.services(&record.uid) {
            let name = ObjectName::new(namespace, service);
            let ports = record.spec.ports.iter().map(|it| it.port);
            state.services.extend(ports.filter_map(|port| {
                let is_whole = leads(model, &name, port, &addresses)?;
                Some(LeadingService {
                    name: name.name.clone(),
                    port: port.into(),
                    is_whole,
                })
            }));
        }
        let octets = addresses.iter().map(|address| match address {
            IpAddr::V4(ip) => ip.octets().to_vec().into(),
            IpAddr::V6(ip) => ip.octets().to_vec().into(),
        });
        state.pod_addresses = octets.collect();
    }
}

/// `None` if no endpoint of the service is this port of any of these pods; otherwise, whether all are.
fn leads(model: &Model, service: &ObjectName, port: u16, pods: &BTreeSet<IpAddr>) -> Option<bool> {
    let (mut some, mut all) = (false, true);
    for slice in model.endpoints_of(service) {
        let has_port = slice.ports.contains(&port);
        for address in &slice.addresses {
            let is_ours = has_port && pods.contains(&address.to_canonical());
            some |= is_ours;
            all &= is_ours;
        }
    }

    some.then_some(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Update, endpoints::Endpoints};

    #[test]
    fn a_service_leads_wholly_only_if_all_its_endpoints_are_the_pods_ports() {
        let mut model = Model::default();
        let slices = [
            ("whole", ["10.244.0.1", "10.244.0.2"], 8080),
            ("partly", ["10.244.0.1", "10.244.0.9"], 8080),
            ("other", ["10.244.0.8", "10.244.0.9"], 8080),
            ("another-port", ["10.244.0.1", "10.244.0.2"], 9090),
        ];
        for (service, addresses, port) in slices {
            let slice = Endpoints {
                service: service.into(),
                addresses: addresses.map(|it| it.parse().unwrap()).into(),
                ports: vec![port],
            };
            let name = ObjectName::new("shop", format!("{service}-x"));
            model.update_endpoints(Update::Applied(name, slice));
        }
        let pods = ["10.244.0.1", "10.244.0.2"].map(|it| it.parse().unwrap());
        let pods = BTreeSet::from(pods);
        let leads = |service| leads(&model, &ObjectName::new("shop", service), 8080, &pods);

        assert_eq!(leads("whole"), Some(true));
        assert_eq!(leads("partly"), Some(false));
        assert_eq!(leads("other"), None);
        assert_eq!(leads("another-port"), None);
        assert_eq!(leads("unknown"), None);
    }
}
