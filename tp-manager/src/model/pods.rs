//! Pods by their UIDs.

use super::{Model, ObjectName, Pod};

impl Model {
    /// The pod of a namespace with this UID. Looks at all pods there: for what no address tells.
    pub(crate) fn pod_with_uid(&self, namespace: &str, uid: &str) -> Option<(&ObjectName, &Pod)> {
        let first = ObjectName::new(namespace, "");
        let of_namespace = self
            .pods
            .range(first..)
            .take_while(|(name, _)| name.namespace == namespace);

        of_namespace
            .filter(|(_, pod)| !pod.uid.is_empty())
            .find(|(_, pod)| *pod.uid == *uid)
    }
}
