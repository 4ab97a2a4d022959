//! `Session` objects made without `tp`.

use serde_json::{Value, json};
use tp_transport::SessionRef;

use crate::cluster::{Testbed, text};

/// A `Session` of this user for the key with this hash.
pub fn session_object(namespace: &str, user: &Value, key_hash: &str) -> Value {
    json!({
        "apiVersion": "tp.internal/v1alpha1",
        "kind": "Session",
        "metadata": {"generateName": "e2e-", "namespace": namespace},
        "spec": {
            "user": user,
            "keyHash": key_hash,
            "clientVersion": env!("CARGO_PKG_VERSION"),
        },
    })
}

/// The client's reference to a `Session` that the API server has made.
#[track_caller]
pub fn session_ref(object: &Value) -> SessionRef {
    let metadata = &object["metadata"];

    SessionRef {
        namespace: text(&metadata["namespace"]),
        name: text(&metadata["name"]),
        uid: text(&metadata["uid"]),
    }
}

impl Testbed {
    /// A person's identity at the API server; the flags are kubectl's.
    #[track_caller]
    pub fn whoami(&self, person: &str, flags: &[&str]) -> Value {
        let words = ["auth", "whoami", "--output=json"];
        let review = self.kubectl_as(person, &[&words, flags].concat()).json();

        review["status"]["userInfo"].clone()
    }

    /// The hash of the first manager's key.
    #[track_caller]
    pub fn manager_key(&self) -> String {
        let keys = self.object("tp-system", "configmap", "tp-manager");

        text(&keys["data"]["tp-manager-0"])
    }
}
