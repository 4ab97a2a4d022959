//! Where the managers are, and the keys that they publish.

use std::{net::SocketAddr, time::Duration};

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::{
    Api, Client,
    runtime::{WatchStreamExt as _, watcher::watcher},
};
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tp_proto::crd::{AGENTS_PORT, MANAGER_CONFIG_MAP};

use super::{Change, REQUEST_TIMEOUT, changes, watch_config};
use crate::facts::{ManagerAddress, ManagerFacts};

const SELECTOR: &str = "app.kubernetes.io/component=manager";
/// A manager publishes its key soon after its pod has an address.
const REREAD_INTERVAL: Duration = Duration::from_secs(5);
/// Between reads of the keys.
const PAUSE_INTERVAL: Duration = Duration::from_millis(500);

/// Runs until it is aborted. `outdated` resolves when keys should be read again.
pub(crate) async fn follow<F: Future<Output = ()> + Send>(
    client: Client,
    namespace: String,
    outdated: impl Fn() -> F + Send,
    facts: watch::Sender<ManagerFacts>,
) {
    let pods: Api<Pod> = Api::namespaced(client.clone(), &namespace);
    let keys: Api<ConfigMap> = Api::namespaced(client, &namespace);
    let mut changes = std::pin::pin!(changes(
        watcher(pods, watch_config().labels(SELECTOR)).default_backoff()
    ));
    let mut known: Vec<Pod> = Vec::new();
    let mut tick = interval(REREAD_INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            Some(change) = changes.next() => take(&mut known, change),
            () = outdated() => {}
            _ = tick.tick() => {}
        }
        let read = timeout(REQUEST_TIMEOUT, keys.get_opt(MANAGER_CONFIG_MAP)).await;
        match read {
            Ok(Ok(keys)) => {
                let managers = addresses(&known, &keys.unwrap_or_default());
                facts.send_if_modified(|current| {
                    let is_new = *current != managers;
                    *current = managers;
                    is_new
                });
            }
            Ok(Err(error)) => tracing::debug!(%error, "Keys of managers are not known"),
            Err(_) => tracing::debug!("Keys of managers are not known in time"),
        }
        sleep(PAUSE_INTERVAL).await;
    }
}

fn take(known: &mut Vec<Pod>, change: Change<Pod>) {
    let mut remove = |pod: &Pod| known.retain(|it| it.metadata.name != pod.metadata.name);
    match change {
        Change::All(pods) => *known = pods,
        Change::Applied(pod) => {
            remove(&pod);
            known.push(pod);
        }
        Change::Deleted(pod) => remove(&pod),
    }
}

/// Managers that have both an address and a key.
fn addresses(pods: &[Pod], keys: &ConfigMap) -> ManagerFacts {
    let managers = pods.iter().filter_map(|pod| {
        let name = pod.metadata.name.clone()?;
        let ip = pod.status.as_ref()?.pod_ip.as_ref()?.parse().ok()?;
        let key = keys.data.as_ref()?.get(&name)?.parse().ok()?;
        let address = SocketAddr::new(ip, AGENTS_PORT);

        Some((name, ManagerAddress { address, key }))
    });

    managers.collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_manager_needs_an_address_and_a_key() {
        let pod = |name: &str, status| -> Pod {
            let pod = json!({"metadata": {"name": name}, "status": status});
            serde_json::from_value(pod).unwrap()
        };
        let pods = [
            pod("tp-manager-0", json!({"podIP": "10.244.1.9"})),
            pod("tp-manager-1", json!({"podIP": "fd00::9"})),
            pod("tp-manager-2", json!({})),
        ];
        let key = "ab".repeat(32);
        let data = json!({"tp-manager-0": key, "tp-manager-2": key, "version": "1"});
        let keys = serde_json::from_value(json!({"data": data})).unwrap();

        let managers = addresses(&pods, &keys);

        assert_eq!(managers.len(), 1);
        let manager = managers["tp-manager-0"];
        assert_eq!(manager.address.to_string(), "10.244.1.9:7073");
    }
}
