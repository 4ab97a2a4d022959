//! Which open connections were ended already, remembered beyond the redirects of their pods.

use std::{
    collections::BTreeMap,
    sync::Mutex,
    time::{SystemTime, UNIX_EPOCH},
};

use tp_process::sync::lock;

use crate::facts::Facts;

/// Clocks may differ, and an Intercept may wait for an agent for half a minute.
const SLACK_SECONDS: i64 = 45;

/// What was done to the open connections of a port.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct TakenOpen {
    /// No more are ended.
    pub(super) is_over: bool,
    pub(super) ended: u64,
    /// Why some were not, when it was last tried.
    pub(super) obstacle: Option<String>,
}

/// Of all ports, for as long as there are their pods and Intercepts: redirects come and go meanwhile.
#[derive(Default)]
pub(super) struct AllTaken {
    /// In seconds since 1970.
    since: i64,
    /// By UIDs of Intercept and pod, and by port.
    ports: Mutex<BTreeMap<(String, String, u16), TakenOpen>>,
}

impl AllTaken {
    pub(super) fn from_now_on() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);

        Self {
            since: now.map_or(0, |now| now.as_secs() as i64) - SLACK_SECONDS,
            ports: Mutex::default(),
        }
    }

    /// Whether an agent before this one cannot have done it: pod and Intercept `met` later.
    pub(super) fn is_ours(&self, met: i64) -> bool {
        met >= self.since
    }

    pub(super) fn of(&self, intercept: &str, pod: &str, port: u16) -> Option<TakenOpen> {
        let key = (intercept.to_owned(), pod.to_owned(), port);

        lock(&self.ports).get(&key).cloned()
    }

    pub(super) fn set(&self, intercept: &str, pod: &str, port: u16, taken: TakenOpen) {
        let key = (intercept.to_owned(), pod.to_owned(), port);
        lock(&self.ports).insert(key, taken);
    }

    /// Forgets what is of none of these Intercepts and pods.
    pub(super) fn follow(&self, facts: &Facts) {
        lock(&self.ports).retain(|(intercept, pod, _), _| {
            facts.intercepts.contains_key(intercept) && facts.pods.contains_key(pod)
        });
    }
}
