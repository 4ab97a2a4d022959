//! Watches Kubernetes objects and writes the model.
//!
//! Knows Kubernetes and the model, nothing of sessions or of the wire.

mod convert;
pub(crate) mod find;
pub(crate) mod networks;
pub(crate) mod workloads;

use std::{collections::BTreeMap, time::Duration};

use futures::{StreamExt as _, TryStream, TryStreamExt as _, future::BoxFuture};
use k8s_openapi::api::{
    core::v1::{Namespace, Node, Pod, Service},
    discovery::v1::EndpointSlice,
};
use kube::{
    Api, Client,
    api::{DeleteParams, Preconditions},
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event, watcher},
    },
};
use serde::de::DeserializeOwned;
use tokio::{sync::watch, time::interval};

use crate::model::{Model, SharedModel, Update};

/// The shortest time between changes of the networks of pods, where each pod may be one.
const NETWORKS_INTERVAL: Duration = Duration::from_secs(1);
const WATCH_TIMEOUT_SECONDS: u32 = 15;
/// Bounds the API server's silence while it owes an answer, or the end of a watch.
pub(crate) const READ_TIMEOUT: Duration = Duration::from_secs(20);
/// Events applied together: networks are derived once for them.
const MAX_BURST: usize = 256;

/// The tasks that keep the model; each runs until it is aborted.
pub(crate) fn tasks(
    client: &Client,
    model: &SharedModel,
    synced: &Synced,
) -> Vec<BoxFuture<'static, ()>> {
    let all = watch_config;
    model.update(|model| model.set_networks_interval(NETWORKS_INTERVAL));

    vec![
        Box::pin(settle(model.clone())),
        Box::pin(follow(
            stream::<Namespace>(Api::all(client.clone()), all()),
            convert::namespace,
            Model::update_namespaces,
            model.clone(),
            synced.part(),
        )),
        Box::pin(follow(
            stream::<Service>(Api::all(client.clone()), all()),
            convert::service,
            Model::update_services,
            model.clone(),
            synced.part(),
        )),
        Box::pin(follow(
            stream::<Pod>(Api::all(client.clone()), all()),
            convert::pod,
            Model::update_pods,
            model.clone(),
            synced.part(),
        )),
        Box::pin(follow(
            stream::<Node>(Api::all(client.clone()), all()),
            convert::node,
            Model::update_nodes,
            model.clone(),
            synced.part(),
        )),
        Box::pin(follow(
            stream::<EndpointSlice>(Api::all(client.clone()), all()),
            convert::endpoints,
            Model::update_endpoints,
            model.clone(),
            synced.part(),
        )),
    ]
}

/// Derives networks that were deferred.
async fn settle(model: SharedModel) {
    let mut tick = interval(NETWORKS_INTERVAL);
    loop {
        tick.tick().await;
        model.update(|_| {});
    }
}

/// Watches are short, so that a dead connection is noticed when its watch should have ended
/// (kube-runtime gives it five seconds more).
pub(crate) fn watch_config() -> watcher::Config {
    watcher::Config::default().timeout(WATCH_TIMEOUT_SECONDS)
}

/// Deletion of the object with this UID alone: another may have its name.
pub(crate) fn only(uid: &str) -> DeleteParams {
    DeleteParams {
        preconditions: Some(Preconditions {
            uid: Some(uid.to_owned()),
            resource_version: None,
        }),
        ..DeleteParams::default()
    }
}

fn stream<K>(
    api: Api<K>,
    config: watcher::Config,
) -> impl TryStream<Ok = Event<K>, Error = watcher::Error> + Send + 'static
where
    K: kube::Resource + Clone + std::fmt::Debug + DeserializeOwned + Send + 'static,
    K::DynamicType: Default,
{
    watcher(api, config).default_backoff()
}

/// Applies a watch to the model. `convert` gives an object's name, and its value if the model needs
/// it.
async fn follow<O, K, V>(
    events: impl TryStream<Ok = Event<O>, Error = watcher::Error> + Send + 'static,
    convert: fn(&O) -> (K, Option<V>),
    apply: impl Fn(&mut Model, Update<K, V>) + Send + Sync,
    model: SharedModel,
    synced: SyncedPart,
) where
    K: Ord + Send,
    V: Send,
    O: Send,
{
    let change = |updates: Vec<Update<K, V>>| {
        model.update(|model| updates.into_iter().for_each(|it| apply(model, it)));
    };

    follow_with(events, convert, change, synced).await;
}

/// Gives the changes of a watch to `change`, several at a time.
pub(crate) async fn follow_with<O, K, V>(
    events: impl TryStream<Ok = Event<O>, Error = watcher::Error> + Send + 'static,
    convert: fn(&O) -> (K, Option<V>),
    change: impl Fn(Vec<Update<K, V>>) + Send + Sync,
    mut synced: SyncedPart,
) where
    K: Ord + Send,
    V: Send,
    O: Send,
{
    let mut listing = BTreeMap::new();
    let mut bursts = std::pin::pin!(events.into_stream().ready_chunks(MAX_BURST));
    while let Some(burst) = bursts.next().await {
        let updates = burst.into_iter().filter_map(|event| match event {
            Ok(event) => update(event, convert, &mut listing),
            Err(error) => {
                // The watch goes on by itself; the API server may be away.
                tracing::debug!(%error, "Watch interrupted");
                None
            }
        });
        let updates: Vec<_> = updates.collect();
        let is_listed = updates.iter().any(|it| matches!(it, Update::Replaced(_)));
        if !updates.is_empty() {
            change(updates);
        }
        if is_listed {
            synced.done();
        }
    }
}

/// Converts an event. The objects of a listing are gathered until it is complete.
fn update<O, K: Ord, V>(
    event: Event<O>,
    convert: fn(&O) -> (K, Option<V>),
    listing: &mut BTreeMap<K, V>,
) -> Option<Update<K, V>> {
    match event {
        Event::Init => {
            listing.clear();
            None
        }
        Event::InitApply(object) => {
            if let (name, Some(value)) = convert(&object) {
                listing.insert(name, value);
            }
            None
        }
        Event::InitDone => Some(Update::Replaced(std::mem::take(listing))),
        Event::Apply(object) => Some(match convert(&object) {
            (name, Some(value)) => Update::Applied(name, value),
            (name, None) => Update::Removed(name),
        }),
        Event::Delete(object) => Some(Update::Removed(convert(&object).0)),
    }
}

/// Counts the listings that are not complete yet.
#[derive(Debug, Clone)]
pub(crate) struct Synced {
    missing: watch::Sender<usize>,
}

impl Synced {
    pub(crate) fn new() -> Self {
        Self {
            missing: watch::Sender::new(0),
        }
    }

    pub(crate) fn part(&self) -> SyncedPart {
        self.missing.send_modify(|missing| *missing += 1);
        SyncedPart {
            missing: Some(self.missing.clone()),
        }
    }

    pub(crate) fn is_complete(&self) -> bool {
        *self.missing.borrow() == 0
    }
}

#[derive(Debug)]
pub(crate) struct SyncedPart {
    missing: Option<watch::Sender<usize>>,
}

impl SyncedPart {
    pub(crate) fn done(&mut self) {
        if let Some(missing) = self.missing.take() {
            missing.send_modify(|missing| *missing -= 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knowledge_is_complete_when_every_part_is() {
        let synced = Synced::new();
        let (mut first, mut second) = (synced.part(), synced.part());

        first.done();
        first.done();
        assert!(!synced.is_complete());
        second.done();
        assert!(synced.is_complete());
    }

    #[tokio::test]
    async fn objects_of_an_interrupted_listing_do_not_linger() {
        let namespace = |name: &str| Namespace {
            metadata: kube::api::ObjectMeta {
                name: Some(name.into()),
                ..Default::default()
            },
            ..Default::default()
        };
        let events = futures::stream::iter([
            Ok(Event::Init),
            Ok(Event::InitApply(namespace("half"))),
            Err(watcher::Error::NoResourceVersion),
            Ok(Event::Init),
            Ok(Event::InitApply(namespace("shop"))),
            Ok(Event::InitDone),
            Ok(Event::Apply(namespace("bank"))),
        ]);
        let model = SharedModel::new();
        let synced = Synced::new();

        follow(
            events,
            convert::namespace,
            Model::update_namespaces,
            model.clone(),
            synced.part(),
        )
        .await;

        let names: Vec<String> = model.read().namespaces().map(String::from).collect();
        assert_eq!(names, ["bank", "shop"]);
        assert!(synced.is_complete());
    }
}
