//! Finds the cluster's service networks.

use std::time::Duration;

use ipnet::IpNet;
use k8s_openapi::api::{core::v1::Service, networking::v1::ServiceCIDR};
use kube::{
    Api, Client,
    api::{ListParams, PostParams},
};
use serde_json::json;

use super::SyncedPart;
use crate::model::SharedModel;

const REFRESH_INTERVAL: Duration = Duration::from_secs(60);
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// No service network contains it, so the API server's error names the real one.
const IMPOSSIBLE_IP: &str = "0.0.0.1";
const RANGE_PREFIX: &str = "The range of valid IPs is ";

/// Finds the networks again every minute: some can be added. Runs until it is aborted.
pub(crate) async fn follow(
    client: Client,
    namespace: String,
    model: SharedModel,
    mut synced: SyncedPart,
) {
    loop {
        let pause = match discover(&client, &namespace).await {
            Ok(networks) => {
                tracing::debug!(?networks, "Looked for the service networks");
                // An empty answer keeps the networks found before.
                if !networks.is_empty() {
                    model.update(|model| model.set_service_networks(Some(networks)));
                }
                synced.done();
                REFRESH_INTERVAL
            }
            // A webhook, a quota, or an API server without dry runs: it would refuse again.
            Err(kube::Error::Api(status)) if (400..429).contains(&status.code) => {
                let reason = status.message;
                tracing::info!(reason, "Service networks not found");
                // The networks found before stay.
                synced.done();
                REFRESH_INTERVAL
            }
            Err(error) => {
                tracing::debug!(%error, "Cannot find the service networks");
                RETRY_INTERVAL
            }
        };
        tokio::time::sleep(pause).await;
    }
}

async fn discover(client: &Client, namespace: &str) -> Result<Vec<IpNet>, kube::Error> {
    let ranges: Api<ServiceCIDR> = Api::all(client.clone());
    let mut networks: Vec<IpNet> = match ranges.list(&ListParams::default()).await {
        Ok(list) => list
            .items
            .into_iter()
            .filter_map(|range| range.spec?.cidrs)
            .flatten()
            .filter_map(|network| network.parse().ok())
            .collect(),
        // Before Kubernetes 1.33.
        Err(kube::Error::Api(status)) if status.code == 404 => Vec::new(),
        Err(error) => return Err(error),
    };
    if networks.is_empty() {
        networks = ask_by_error(client, namespace).await?;
    }
    networks.sort();
    networks.dedup();

    Ok(networks)
}

async fn ask_by_error(client: &Client, namespace: &str) -> Result<Vec<IpNet>, kube::Error> {
    let services: Api<Service> = Api::namespaced(client.clone(), namespace);
    let impossible = serde_json::from_value(json!({
        "metadata": {"generateName": "tp-probe-"},
        "spec": {"clusterIP": IMPOSSIBLE_IP, "ports": [{"port": 1}]},
    }))
    .expect("the probe is a Service");
    let params = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    match services.create(&params, &impossible).await {
        Ok(_) => Ok(Vec::new()),
        Err(kube::Error::Api(status)) if status.code == 422 => {
            Ok(network_in(&status.message).into_iter().collect())
        }
        Err(error) => Err(error),
    }
}

fn network_in(message: &str) -> Option<IpNet> {
    let (_, range) = message.split_once(RANGE_PREFIX)?;
    let end = range
        .find(|c: char| !(c.is_ascii_hexdigit() || ".:/".contains(c)))
        .unwrap_or(range.len());
    range[..end].trim_end_matches('.').parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_refusal_of_an_impossible_address_names_the_network() {
        let message = "Service \"x\" is invalid: spec.clusterIPs: Invalid value: [\"0.0.0.1\"]: \
                       failed to allocate IP 0.0.0.1: the provided IP (0.0.0.1) is not in the \
                       valid range. The range of valid IPs is 10.96.0.0/16";

        assert_eq!(network_in(message), Some("10.96.0.0/16".parse().unwrap()));
        assert_eq!(network_in("something else"), None);
    }
}
