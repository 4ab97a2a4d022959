//! `FindWorkload`: the workload that a user names, and the ports of its pods.

use tonic::Status;
use tp_core::intercept::{
    matching::{Choice, MatchError},
    ports::{self, PortMapping},
    workload::WorkloadName,
};
use tp_proto::{
    crd::MAX_INTERCEPT_PORTS,
    tunnel::{FindWorkloadRequest, FindWorkloadResponse, FoundPort, ReadyPod},
};

use crate::model::{FindError, FoundWorkload};

/// Pods that are named in an answer.
const MAX_PODS: usize = 100;

impl From<FindError> for Status {
    fn from(error: FindError) -> Self {
        match error {
            FindError::NotFound(reason) => Self::not_found(reason),
            FindError::Ambiguous(reason) => Self::failed_precondition(reason),
            FindError::Unavailable(reason) => Self::unavailable(reason),
        }
    }
}

/// What a request asks for.
pub(super) struct Wanted {
    pub(super) name: WorkloadName,
    mappings: Vec<PortMapping>,
    choice: Choice,
}

impl Wanted {
    pub(super) fn of(request: &FindWorkloadRequest) -> Result<Self, Status> {
        let invalid = |error: &dyn std::error::Error| Status::invalid_argument(error.to_string());
        let name = request.workload.parse().map_err(|error| invalid(&error))?;
        if request.ports.is_empty() || request.ports.len() > MAX_INTERCEPT_PORTS {
            return Err(Status::invalid_argument(format!(
                "an intercept has from 1 to {MAX_INTERCEPT_PORTS} ports: name them with --port"
            )));
        }
        let mappings = request.ports.iter().map(|port| port.parse());
        let mappings: Vec<PortMapping> = mappings
            .collect::<Result<_, _>>()
            .map_err(|error: ports::PortError| invalid(&error))?;
        ports::check_all(&mappings).map_err(|error| invalid(&error))?;
        let chosen = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());

        Ok(Self {
            name,
            mappings,
            choice: Choice {
                service: chosen(&request.service),
                container: chosen(&request.container),
            },
        })
    }

    pub(super) fn resolve(&self, found: FoundWorkload) -> Result<FindWorkloadResponse, Status> {
        let matched = found.ports.resolve_all(&self.mappings, &self.choice);
        let matched = matched.map_err(|error| match error {
            MatchError::Ambiguous { .. } => Status::failed_precondition(error.to_string()),
            _ => Status::invalid_argument(error.to_string()),
        })?;
        let containers = &found.ports.containers;
        let ports = self.mappings.iter().zip(matched).map(|(mapping, port)| {
            let container = port.container.unwrap_or_default();
            let declared = containers
                .iter()
                .filter(|it| it.name == container)
                .flat_map(|it| &it.ports)
                .find(|it| it.number == port.number);

            FoundPort {
                local: u32::from(mapping.local.get()),
                port: u32::from(port.number),
                name: declared.and_then(|it| it.name.clone()).unwrap_or_default(),
                container,
                services: port
                    .services
                    .into_iter()
                    .map(|(name, port)| format!("{name}:{port}"))
                    .collect(),
            }
        });

        let named = found.ready.iter().take(MAX_PODS);
        let named = named.map(|pod| ReadyPod {
            name: pod.name.clone(),
            node: pod.node.clone(),
        });

        Ok(FindWorkloadResponse {
            ports: ports.collect(),
            kind: found.kind,
            name: found.name,
            ready: u32::try_from(found.ready.len()).unwrap_or(u32::MAX),
            held: Vec::new(),
            pods: named.collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;
    use tp_core::intercept::matching::{
        DeclaredContainer, DeclaredPort, Ports, Protocol, SelectedPort, SelectingService,
        TargetPort,
    };

    use super::*;
    use crate::model::FoundPod;

    fn request(workload: &str, port: &str) -> FindWorkloadRequest {
        FindWorkloadRequest {
            namespace: "shop".into(),
            workload: workload.into(),
            ports: vec![port.into()],
            ..FindWorkloadRequest::default()
        }
    }

    fn pod(name: &str) -> FoundPod {
        FoundPod {
            name: name.into(),
            node: "node-1".into(),
        }
    }

    fn web() -> FoundWorkload {
        let port = DeclaredPort {
            name: Some("http".into()),
            number: 8080,
            ..DeclaredPort::default()
        };
        let container = DeclaredContainer {
            name: "app".into(),
            ports: vec![port],
        };

        FoundWorkload {
            kind: "Deployment".into(),
            name: "web".into(),
            ready: ["web-1", "web-2"].map(pod).into(),
            ports: Ports {
                workload: "deployment/web".into(),
                containers: vec![container],
                services: Vec::new(),
            },
        }
    }

    #[test]
    fn a_named_port_is_found() {
        let found = Wanted::of(&request("web", "3000:http")).unwrap();

        let response = found.resolve(web()).unwrap();

        let port = &response.ports[0];
        assert_eq!((port.local, port.port), (3000, 8080));
        assert_eq!((&*port.container, &*port.name), ("app", "http"));
        assert_eq!((response.ready, &*response.kind), (2, "Deployment"));
        let pod = &response.pods[1];
        assert_eq!((&*pod.name, &*pod.node), ("web-2", "node-1"));
    }

    #[test]
    fn services_are_named_with_the_port_that_leads_in() {
        let mut web = web();
        let service = |name: &str, is_headless| SelectingService {
            name: name.into(),
            ports: vec![SelectedPort {
                name: None,
                number: 80,
                target: TargetPort::Name("http".into()),
                protocol: Protocol::Tcp,
            }],
            is_headless,
        };
        web.ports.services = vec![service("web", false), service("pods", true)];

        let response = Wanted::of(&request("web", "3000:http")).unwrap();
        let response = response.resolve(web).unwrap();

        assert_eq!(response.ports[0].services, ["web:80", "pods:8080"]);
    }

    #[test]
    fn what_is_not_understood_is_an_invalid_argument() {
        for (workload, port) in [
            ("web", "http"),
            ("web", "1:"),
            ("cronjob/x", "80"),
            ("W", "80"),
        ] {
            let refused = Wanted::of(&request(workload, port)).err().unwrap();
            assert_eq!(refused.code(), Code::InvalidArgument, "{workload} {port}");
        }
        let wanted = Wanted::of(&request("web", "80:grpc")).unwrap();
        let refused = wanted.resolve(web()).unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
    }
}
