//! The right that dialling an address takes.

use std::net::IpAddr;

use tp_proto::{allow::Allow, tunnel::Outcome};

use crate::{access::Scope, model::Owner};

/// Why nothing is dialled, and the outcome that the application sees.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct DialRefusal {
    pub(super) outcome: Outcome,
    pub(super) reason: String,
}

impl DialRefusal {
    pub(super) fn new(outcome: Outcome, reason: impl Into<String>) -> Self {
        Self {
            outcome,
            reason: reason.into(),
        }
    }

    fn prohibited(reason: String) -> Self {
        Self::new(Outcome::Prohibited, reason)
    }

    pub(super) fn without(scope: &Scope) -> Self {
        Self::prohibited(format!("the user may not {}", scope.right()))
    }
}

/// The right that dialling `address` takes, or why it may not be dialled.
pub(super) fn scope(
    owner: Owner,
    address: IpAddr,
    session_namespace: &str,
    allow: &[Allow],
) -> Result<Scope, DialRefusal> {
    match owner {
        Owner::Namespace(namespace) => Ok(Scope::Namespace(namespace)),
        Owner::Service { leads_to, .. } => {
            for (endpoint, owner) in leads_to {
                scope(owner, endpoint, session_namespace, allow).map_err(|refusal| {
                    DialRefusal {
                        reason: format!("{address} leads to an endpoint: {}", refusal.reason),
                        ..refusal
                    }
                })?;
            }
            // Covers the rights that all of them take.
            Ok(Scope::AllNamespaces)
        }
        // The network is a guess: the address may be that of a neighbour of the pods.
        Owner::Neighbour => Ok(Scope::AllNamespaces),
        Owner::External => Ok(Scope::External(session_namespace.into())),
        Owner::Node if allow.contains(&Allow::Nodes) => Ok(Scope::AllNamespaces),
        Owner::Node => Err(DialRefusal::prohibited(format!(
            "{address} is a node's: not reached through tp unless it is installed with --allow \
             nodes"
        ))),
        Owner::ApiServer if allow.contains(&Allow::ApiServer) => Ok(Scope::AllNamespaces),
        Owner::ApiServer => Err(DialRefusal::prohibited(format!(
            "{address} is the API server's: not reached through tp unless it is installed with \
             --allow api-server"
        ))),
        // Bridges and tunnels of nodes have addresses there that the Kubernetes API does not show.
        Owner::Unknown => Err(DialRefusal::new(
            Outcome::HostUnreachable,
            format!("{address} is in the cluster's networks, and no pod or service has it"),
        )),
        Owner::Nobody => Err(DialRefusal::prohibited(format!(
            "{address} is no address of the cluster's"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(owner: Owner, allow: &[Allow]) -> Result<Scope, DialRefusal> {
        scope(owner, "192.0.2.1".parse().unwrap(), "shop", allow)
    }

    #[test]
    fn a_service_takes_a_right_in_its_own_namespace() {
        let bank = Scope::Namespace("bank".into());

        assert_eq!(of(Owner::Namespace("bank".into()), &[]), Ok(bank));
    }

    #[test]
    fn an_address_outside_takes_a_right_in_the_sessions_namespace() {
        assert_eq!(of(Owner::External, &[]), Ok(Scope::External("shop".into())));
    }

    #[test]
    fn an_address_that_nobody_has_is_unreachable() {
        let refusal = of(Owner::Unknown, &[Allow::Nodes]).unwrap_err();

        assert_eq!(refusal.outcome, Outcome::HostUnreachable);
    }

    #[test]
    fn a_service_takes_what_its_endpoints_take() {
        let to = |owners: &[Owner], allow: &[Allow]| {
            let endpoint = "192.0.2.7".parse().unwrap();
            let leads_to = owners.iter().map(|owner| (endpoint, owner.clone()));
            let service = Owner::Service {
                namespace: "shop".into(),
                leads_to: leads_to.collect(),
            };
            of(service, allow)
        };
        let other = Owner::Namespace("bank".into());

        assert_eq!(
            to(std::slice::from_ref(&other), &[]),
            Ok(Scope::AllNamespaces)
        );
        assert_eq!(
            to(&[Owner::Node], &[Allow::Nodes]),
            Ok(Scope::AllNamespaces)
        );
        for forbidden in [Owner::Node, Owner::ApiServer, Owner::Nobody] {
            let refusal = to(&[other.clone(), forbidden], &[]).unwrap_err();
            assert_eq!(refusal.outcome, Outcome::Prohibited);
            assert!(refusal.reason.contains("192.0.2.7"), "{refusal:?}");
        }
    }

    #[test]
    fn the_clusters_own_machines_are_reached_only_when_allowed() {
        assert!(of(Owner::Node, &[]).is_err());
        assert!(of(Owner::ApiServer, &[Allow::Nodes]).is_err());
        assert_eq!(of(Owner::Node, &[Allow::Nodes]), Ok(Scope::AllNamespaces));
        assert!(of(Owner::Nobody, &[Allow::Nodes, Allow::ApiServer]).is_err());
    }
}
