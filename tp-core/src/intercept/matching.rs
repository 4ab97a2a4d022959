//! Which port of the pods a `--port` means.
//!
//! Services and containers name the same port in several ways; what is intercepted is the port of
//! the pod, which its containers share with its network namespace (kubernetes.io, "Pods", "Pod
//! networking"). So a number and a protocol are one port, whoever names it. TCP alone so far.

use std::collections::{BTreeMap, BTreeSet};

use super::ports::{PortMapping, WantedPort};

mod refusal;

pub use refusal::{Candidate, MatchError};

/// A protocol of a port, as Kubernetes spells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Protocol {
    /// The default of Kubernetes.
    #[default]
    Tcp,
    /// Not intercepted.
    Udp,
    /// Not intercepted.
    Sctp,
}

/// A container of the workload's pods, in the order of the pod's spec: containers first, then init
/// containers that stay (`restartPolicy: Always`).
#[derive(Debug, Clone, Default)]
pub struct DeclaredContainer {
    /// Its name.
    pub name: String,
    /// `ports`
    pub ports: Vec<DeclaredPort>,
}

/// A port that a container declares. Kubernetes needs no declaration: it names a number.
#[derive(Debug, Clone, Default)]
pub struct DeclaredPort {
    /// `name`
    pub name: Option<String>,
    /// `containerPort`
    pub number: u16,
    /// `protocol`
    pub protocol: Protocol,
}

/// A service that selects the workload's pods.
#[derive(Debug, Clone, Default)]
pub struct SelectingService {
    /// Its name.
    pub name: String,
    /// `ports`
    pub ports: Vec<SelectedPort>,
    /// Its name leads to the pods themselves: no address of its own translates its ports to theirs.
    pub is_headless: bool,
}

/// A port of a service.
#[derive(Debug, Clone)]
pub struct SelectedPort {
    /// `name`
    pub name: Option<String>,
    /// `port`
    pub number: u16,
    /// `targetPort`; where it is not given, Kubernetes sets `port`.
    pub target: TargetPort,
    /// `protocol`
    pub protocol: Protocol,
}

/// `targetPort`
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetPort {
    /// The port of the pod.
    Number(u16),
    /// A declared port.
    Name(String),
}

/// What is known of a workload.
#[derive(Debug, Clone, Default)]
pub struct Ports {
    /// As a sentence names it, such as `deployment/web`.
    pub workload: String,
    /// The containers of its pods.
    pub containers: Vec<DeclaredContainer>,
    /// The services that select its pods.
    pub services: Vec<SelectingService>,
}

/// `--service` and `--container`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Choice {
    /// Only ports of this service.
    pub service: Option<String>,
    /// Only ports of this container, and the container whose environment is meant.
    pub container: Option<String>,
}

/// The port of the pods that is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MatchedPort {
    /// Identifies it: two of one number are the same intercept.
    pub number: u16,
    /// The container that was chosen or declares it; else the only one; else unknown.
    pub container: Option<String>,
    /// Every service that leads to it, with the port at which it does, in order.
    pub services: Vec<(String, u16)>,
}

/// What leads to a port of the pod.
#[derive(Debug, Clone)]
struct Route<'a> {
    /// The port of the pod.
    number: u16,
    /// Who declares it.
    container: Option<&'a str>,
    named_by: NamedBy<'a>,
}

#[derive(Debug, Clone, Copy)]
enum NamedBy<'a> {
    Service {
        name: &'a str,
        port: &'a SelectedPort,
        is_headless: bool,
    },
    Container(&'a DeclaredPort),
}

impl Ports {
    /// The port that each `--port` means, in their order. Two may not mean the same.
    pub fn resolve_all(
        &self,
        mappings: &[PortMapping],
        choice: &Choice,
    ) -> Result<Vec<MatchedPort>, MatchError> {
        let mut matched: Vec<MatchedPort> = Vec::new();
        for mapping in mappings {
            let port = self.resolve(&mapping.wanted, choice)?;
            if matched.iter().any(|other| other.number == port.number) {
                return Err(MatchError::SamePort {
                    workload: self.workload.clone(),
                    number: port.number,
                });
            }
            matched.push(port);
        }

        Ok(matched)
    }

    /// The port that one `--port` means.
    ///
    /// - By number: the port of that number of a service, and the declared port of that number; a
    ///   number that neither has is the port of the pod, declared or not.
    /// - By name: the port of that name of a service or of a container.
    /// - Not named: the only port of the services, or of the containers where there are none.
    pub fn resolve(&self, wanted: &WantedPort, choice: &Choice) -> Result<MatchedPort, MatchError> {
        self.check(choice)?;
        let fitting = self.routes(choice, |route| route.is(wanted));
        let fitting = match wanted {
            WantedPort::Only => prefer(fitting, Route::is_of_service),
            // Who chooses a container, and no service, speaks of the container's ports.
            WantedPort::Number(_) | WantedPort::Name(_) => match choice {
                Choice {
                    service: None,
                    container: Some(_),
                } => prefer(fitting, |route| !route.is_of_service()),
                _ => fitting,
            },
        };
        let routes: Vec<Route<'_>> = fitting.into_iter().filter(Route::is_tcp).collect();
        let numbers: BTreeSet<u16> = routes.iter().map(|route| route.number).collect();
        if numbers.len() > 1 {
            return Err(MatchError::Ambiguous {
                workload: self.workload.clone(),
                wanted: wanted.to_string(),
                candidates: candidates(&routes),
            });
        }
        if let Some(number) = numbers.first() {
            return Ok(self.matched(*number, choice));
        }
        if let Some(error) = self.dangling(wanted, choice) {
            return Err(error);
        }

        match wanted {
            WantedPort::Number(number) => self.undeclared(number.get(), choice),
            WantedPort::Name(_) => Err(self.not_found(wanted, choice)),
            WantedPort::Only => Err(MatchError::NoPort {
                workload: self.workload.clone(),
                choice: choice.clone(),
            }),
        }
    }

    fn check(&self, choice: &Choice) -> Result<(), MatchError> {
        if let Some(service) = &choice.service
            && self.services.iter().all(|it| it.name != *service)
        {
            return Err(MatchError::NoService {
                workload: self.workload.clone(),
                service: service.clone(),
                services: self.services.iter().map(|it| it.name.clone()).collect(),
            });
        }
        if let Some(container) = &choice.container
            && self.containers.iter().all(|it| it.name != *container)
        {
            return Err(MatchError::NoContainer {
                workload: self.workload.clone(),
                container: container.clone(),
                containers: self.containers.iter().map(|it| it.name.clone()).collect(),
            });
        }

        Ok(())
    }

    /// All that leads to a port, within the choice, and fits.
    fn routes(&self, choice: &Choice, fits: impl Fn(&Route<'_>) -> bool) -> Vec<Route<'_>> {
        let of_services = self.services.iter().flat_map(|service| {
            service.ports.iter().filter_map(|port| {
                let number = self.target(port)?;
                Some(Route {
                    number,
                    container: self.declaring(number, port.protocol),
                    named_by: NamedBy::Service {
                        name: &service.name,
                        port,
                        is_headless: service.is_headless,
                    },
                })
            })
        });
        let of_containers = self.containers.iter().flat_map(|container| {
            container.ports.iter().map(|port| Route {
                number: port.number,
                container: Some(&container.name),
                named_by: NamedBy::Container(port),
            })
        });

        of_services
            .chain(of_containers)
            .filter(|route| route.is_within(choice) && fits(route))
            .collect()
    }

    /// The port of the pod behind a service's: of several that declare a name the first, as
    /// `FindPort` of Kubernetes has it (`pkg/api/v1/pod/util.go`).
    fn target(&self, port: &SelectedPort) -> Option<u16> {
        match &port.target {
            TargetPort::Number(number) => Some(*number),
            TargetPort::Name(name) => self
                .containers
                .iter()
                .flat_map(|container| &container.ports)
                .find(|it| it.name.as_ref() == Some(name) && it.protocol == port.protocol)
                .map(|it| it.number),
        }
    }

    fn declaring(&self, number: u16, protocol: Protocol) -> Option<&str> {
        let declares = |it: &DeclaredPort| it.number == number && it.protocol == protocol;

        self.containers
            .iter()
            .find(|container| container.ports.iter().any(declares))
            .map(|container| container.name.as_str())
    }

    fn matched(&self, number: u16, choice: &Choice) -> MatchedPort {
        let declaring = self.declaring(number, Protocol::Tcp);
        let only = match self.containers.as_slice() {
            [container] => Some(container.name.as_str()),
            _ => None,
        };
        let container = choice.container.as_deref().or(declaring).or(only);
        let leads = |route: &Route<'_>| route.number == number && route.is_tcp();
        let routes = self.routes(&Choice::default(), leads);

        MatchedPort {
            number,
            container: container.map(str::to_owned),
            services: routes
                .iter()
                .filter_map(|route| match route.named_by {
                    NamedBy::Service {
                        name, is_headless, ..
                    } if is_headless => Some((name.to_owned(), number)),
                    NamedBy::Service { name, port, .. } => Some((name.to_owned(), port.number)),
                    NamedBy::Container(_) => None,
                })
                .collect(),
        }
    }

    /// A number that nothing names: the port of the pod, unless a service was chosen, or it is
    /// declared for another protocol, or by another container than the chosen one.
    fn undeclared(&self, number: u16, choice: &Choice) -> Result<MatchedPort, MatchError> {
        let is_number = |route: &Route<'_>| route.has_number(number);
        let elsewhere = self.routes(&Choice::default(), is_number);
        let of_choice = self.routes(choice, is_number);
        if of_choice.iter().any(|route| !route.is_tcp()) {
            return Err(MatchError::NotTcp {
                workload: self.workload.clone(),
                wanted: format!("port {number}"),
            });
        }
        let is_declared = elsewhere
            .iter()
            .any(|it| it.number == number && it.is_tcp());
        if choice.service.is_some() || (choice.container.is_some() && is_declared) {
            return Err(MatchError::NotFound {
                workload: self.workload.clone(),
                wanted: format!("port {number}"),
                choice: choice.clone(),
                candidates: candidates(&self.routes(choice, |route| route.is_tcp())),
            });
        }

        Ok(self.matched(number, choice))
    }

    /// A service's port that is meant, and leads to a name that no container declares.
    fn dangling(&self, wanted: &WantedPort, choice: &Choice) -> Option<MatchError> {
        let is_chosen =
            |it: &&SelectingService| choice.service.as_ref().is_none_or(|name| *name == it.name);
        self.services.iter().filter(is_chosen).find_map(|service| {
            let port = service.ports.iter().find(|port| {
                let is_wanted = match wanted {
                    WantedPort::Only => true,
                    WantedPort::Number(number) => port.number == number.get(),
                    WantedPort::Name(name) => port.name.as_deref() == Some(name.as_str()),
                };
                is_wanted && port.protocol == Protocol::Tcp && self.target(port).is_none()
            })?;
            let TargetPort::Name(target) = &port.target else {
                return None;
            };

            Some(MatchError::NoTarget {
                workload: self.workload.clone(),
                service: service.name.clone(),
                port: port.number,
                target: target.clone(),
            })
        })
    }

    fn not_found(&self, wanted: &WantedPort, choice: &Choice) -> MatchError {
        if self.routes(choice, |route| route.is(wanted)).is_empty() {
            return MatchError::NotFound {
                workload: self.workload.clone(),
                wanted: wanted.to_string(),
                choice: choice.clone(),
                candidates: candidates(&self.routes(choice, |route| route.is_tcp())),
            };
        }

        MatchError::NotTcp {
            workload: self.workload.clone(),
            wanted: wanted.to_string(),
        }
    }
}

impl Route<'_> {
    fn is(&self, wanted: &WantedPort) -> bool {
        match wanted {
            WantedPort::Only => self.is_tcp(),
            WantedPort::Number(number) => self.has_number(number.get()),
            WantedPort::Name(name) => self.name() == Some(name.as_str()),
        }
    }

    /// Whether its service or container calls it by this number.
    fn has_number(&self, number: u16) -> bool {
        match self.named_by {
            NamedBy::Service { port, .. } => port.number == number || self.number == number,
            NamedBy::Container(port) => port.number == number,
        }
    }

    fn name(&self) -> Option<&str> {
        match self.named_by {
            NamedBy::Service { port, .. } => port.name.as_deref(),
            NamedBy::Container(port) => port.name.as_deref(),
        }
    }

    fn is_of_service(&self) -> bool {
        matches!(self.named_by, NamedBy::Service { .. })
    }

    fn is_tcp(&self) -> bool {
        let protocol = match self.named_by {
            NamedBy::Service { port, .. } => port.protocol,
            NamedBy::Container(port) => port.protocol,
        };

        protocol == Protocol::Tcp
    }

    /// A chosen service leaves its own ports. A chosen container leaves what it declares, and what
    /// a service leads to that no container declares.
    fn is_within(&self, choice: &Choice) -> bool {
        let is_of_service = match (self.named_by, &choice.service) {
            (_, None) => true,
            (NamedBy::Service { name, .. }, Some(service)) => name == service,
            (NamedBy::Container(_), Some(_)) => false,
        };
        let is_of_container = match (&choice.container, self.container) {
            (None, _) => true,
            (Some(chosen), Some(container)) => chosen == container,
            (Some(_), None) => true,
        };

        is_of_service && is_of_container
    }
}

/// Those preferred, where there are any. Of all ports those that services lead to are: others, such
/// as those for metrics, are not what clients call.
fn prefer<'a>(routes: Vec<Route<'a>>, is_preferred: impl Fn(&Route<'a>) -> bool) -> Vec<Route<'a>> {
    if routes.iter().any(&is_preferred) {
        routes.into_iter().filter(is_preferred).collect()
    } else {
        routes
    }
}

/// One for each port of the pod, with all that lead to it.
fn candidates(routes: &[Route<'_>]) -> Vec<Candidate> {
    let mut candidates: BTreeMap<u16, Candidate> = BTreeMap::new();
    for route in routes {
        let candidate = candidates
            .entry(route.number)
            .or_insert_with(|| Candidate::new(route.number));
        match route.named_by {
            NamedBy::Service { name, port, .. } => candidate.add_service(name, port.number),
            NamedBy::Container(port) => {
                candidate.add_container(route.container.unwrap_or_default(), port.name.as_deref());
            }
        }
    }

    candidates.into_values().collect()
}

#[cfg(test)]
mod tests;
