//! What right an address takes.

use std::net::IpAddr;

use crate::{access::Scope, args::Allow, model::Owner};

/// The right that dialling `address` takes, or why nobody has it.
pub(super) fn scope(
    owner: Owner,
    address: IpAddr,
    session_namespace: &str,
    allow: &[Allow],
) -> Result<Scope, String> {
    match owner {
        Owner::Namespace(namespace) => Ok(Scope::Namespace(namespace)),
        Owner::Unknown => Ok(Scope::AllNamespaces),
        Owner::External => Ok(Scope::External(session_namespace.into())),
        Owner::Node if allow.contains(&Allow::Nodes) => Ok(Scope::AllNamespaces),
        Owner::Node => Err(format!(
            "{address} is a node's: not reached through tp unless it is installed with --allow \
             nodes"
        )),
        Owner::ApiServer if allow.contains(&Allow::ApiServer) => Ok(Scope::AllNamespaces),
        Owner::ApiServer => Err(format!(
            "{address} is the API server's: not reached through tp unless it is installed with \
             --allow api-server"
        )),
        Owner::Nobody => Err(format!("{address} is no address of the cluster's")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(owner: Owner, allow: &[Allow]) -> Result<Scope, String> {
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
    fn an_unknown_address_takes_the_right_in_all_namespaces() {
        assert_eq!(of(Owner::Unknown, &[]), Ok(Scope::AllNamespaces));
    }

    #[test]
    fn the_clusters_own_machines_are_reached_only_when_allowed() {
        assert!(of(Owner::Node, &[]).is_err());
        assert!(of(Owner::ApiServer, &[Allow::Nodes]).is_err());
        assert_eq!(of(Owner::Node, &[Allow::Nodes]), Ok(Scope::AllNamespaces));
        assert!(of(Owner::Nobody, &[Allow::Nodes, Allow::ApiServer]).is_err());
    }
}
