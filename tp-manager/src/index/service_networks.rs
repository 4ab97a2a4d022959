//! The service network of clusters whose API server has no ServiceCIDR objects (before 1.33).

use ipnet::IpNet;
use k8s_openapi::api::{core::v1::Service, networking::v1::ServiceCIDR};
use kube::{
    Api, Client,
    api::{ListParams, PostParams},
};
use serde_json::json;

/// Whether the API server has ServiceCIDR objects.
pub(super) async fn served(client: &Client) -> bool {
    let api = Api::<ServiceCIDR>::all(client.clone());
    api.list_metadata(&ListParams::default().limit(1)).await.is_ok()
}

/// Asks, without creating anything, for an address that no service network holds: the refusal
/// names the valid ones. Empty if it does not.
pub(super) async fn probe(client: &Client) -> Vec<IpNet> {
    let service: Service = match serde_json::from_value(json!({
        "metadata": {"generateName": "tp-probe-"},
        "spec": {"clusterIP": "192.0.2.1", "ports": [{"port": 1}]},
    })) {
        Ok(service) => service,
        Err(_) => return Vec::new(),
    };
    let api = Api::<Service>::default_namespaced(client.clone());
    let dry_run = PostParams { dry_run: true, ..PostParams::default() };
    match api.create(&dry_run, &service).await {
        Ok(_) => Vec::new(),
        Err(error) => networks_in(&error.to_string()),
    }
}

/// "… The range of valid IPs is 10.96.0.0/16,fd00::/112"
fn networks_in(text: &str) -> Vec<IpNet> {
    text.split(|c: char| c.is_whitespace() || ",;\"'()".contains(c))
        .filter_map(|word| word.trim_end_matches('.').parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_read_from_the_refusal() {
        let text = "Service \"x\" is invalid: spec.clusterIPs: Invalid value: [\"192.0.2.1\"]: failed to allocate IP \
                    192.0.2.1: the provided IP (192.0.2.1) is not in the valid range. The range of valid IPs is 10.96.0.0/16.";

        assert_eq!(networks_in(text), ["10.96.0.0/16".parse::<IpNet>().unwrap()]);
    }
}
