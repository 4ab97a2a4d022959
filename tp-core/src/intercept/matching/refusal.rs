//! Why a `--port` means no port of the pods, or more than one.

use std::fmt;

use super::Choice;
use crate::intercept::listed;

/// A refusal: one sentence with what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MatchError {
    /// Several ports fit.
    #[error(
        "{wanted} of {workload} may mean {}: choose with --port LOCAL:PORT, --service or \
         --container",
        listed(candidates)
    )]
    Ambiguous {
        /// The workload.
        workload: String,
        /// As the user named it.
        wanted: String,
        /// What fits, by number.
        candidates: Vec<Candidate>,
    },
    /// No port of that name, or of that number within the choice.
    #[error(
        "{wanted} is none of {}{}",
        whose(workload, choice),
        there_are(candidates)
    )]
    NotFound {
        /// The workload.
        workload: String,
        /// As the user named it.
        wanted: String,
        /// Where it was looked for.
        choice: Choice,
        /// What there is.
        candidates: Vec<Candidate>,
    },
    /// No port is named, and there is none.
    #[error(
        "{} has no TCP port that is declared: name one with --port LOCAL:PORT",
        whose(workload, choice)
    )]
    NoPort {
        /// The workload.
        workload: String,
        /// Where it was looked for.
        choice: Choice,
    },
    /// The port is one of UDP or SCTP.
    #[error("{wanted} of {workload} is not TCP: tp intercepts TCP ports so far, choose another")]
    NotTcp {
        /// The workload.
        workload: String,
        /// As the user named it.
        wanted: String,
    },
    /// The service leads to a named port that nobody declares.
    #[error(
        "port {port} of service {service} leads to the port named {target}, which no container of \
         {workload} declares: name the container's port by number, as in --port LOCAL:8080"
    )]
    NoTarget {
        /// The workload.
        workload: String,
        /// The service.
        service: String,
        /// Its port.
        port: u16,
        /// `targetPort`
        target: String,
    },
    /// `--service` names none that selects the pods.
    #[error(
        "service {service} does not select the pods of {workload}{}",
        names(services)
    )]
    NoService {
        /// The workload.
        workload: String,
        /// As it was named.
        service: String,
        /// Those that do.
        services: Vec<String>,
    },
    /// `--container` names none.
    #[error("{workload} has no container {container}{}", names(containers))]
    NoContainer {
        /// The workload.
        workload: String,
        /// As it was named.
        container: String,
        /// Those that there are.
        containers: Vec<String>,
    },
    /// Two `--port` mean one port.
    #[error("two --port mean port {number} of the pods of {workload}: leave one of them out")]
    SamePort {
        /// The workload.
        workload: String,
        /// The port of the pod.
        number: u16,
    },
}

/// A port of the pods, with all that name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The port of the pod.
    pub number: u16,
    /// Who names it, in words.
    pub named_by: Vec<String>,
}

impl Candidate {
    pub(super) fn new(number: u16) -> Self {
        Self {
            number,
            named_by: Vec::new(),
        }
    }

    pub(super) fn add_service(&mut self, service: &str, port: u16) {
        self.named_by.push(format!("service {service}:{port}"));
    }

    pub(super) fn add_container(&mut self, container: &str, name: Option<&str>) {
        let name = name.map(|name| format!(" {name}")).unwrap_or_default();

        self.named_by.push(format!("container {container}{name}"));
    }
}

impl fmt::Display for Candidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.number, self.named_by.join(", "))
    }
}

fn whose(workload: &str, choice: &Choice) -> String {
    match (&choice.service, &choice.container) {
        (None, None) => workload.to_owned(),
        (Some(service), None) => format!("service {service} of {workload}"),
        (None, Some(container)) => format!("container {container} of {workload}"),
        (Some(service), Some(container)) => {
            format!("service {service} and container {container} of {workload}")
        }
    }
}

fn there_are(candidates: &[Candidate]) -> String {
    if candidates.is_empty() {
        ", which has no TCP port that is declared: name one by number".to_owned()
    } else {
        format!(": there is {}", listed(candidates))
    }
}

fn names(all: &[String]) -> String {
    if all.is_empty() {
        ", and none does: leave it out".to_owned()
    } else {
        format!(": use {}", listed(all))
    }
}
