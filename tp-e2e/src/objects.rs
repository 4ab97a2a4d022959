//! All objects of the cluster, to be compared before and after.

use std::{collections::BTreeMap, fs, path::PathBuf};

use serde_json::Value;

use crate::cluster::Testbed;

/// Objects by name, without fields that change by themselves.
pub type Objects = BTreeMap<String, Value>;

/// Kinds that the cluster itself recreates.
const RESTLESS: [&str; 4] = ["Endpoints", "EndpointSlice", "Node", "Pod"];

impl Testbed {
    pub fn objects(&self) -> Objects {
        let kinds = self.kubectl(&["api-resources", "--verbs=list", "--output=name"]);
        let kinds: Vec<&str> = kinds
            .lines()
            .filter(|kind| !kind.starts_with("events") && !kind.starts_with("leases."))
            .filter(|kind| *kind != "componentstatuses")
            .collect();
        let list = self.kubectl(&[
            "get",
            &kinds.join(","),
            "--all-namespaces",
            "--output=json",
            "--ignore-not-found",
        ]);
        let mut list: Value = serde_json::from_str(&list).expect("kubectl prints JSON");
        let items = list["items"].as_array_mut().expect("a list has items");
        items.iter_mut().map(titled).collect()
    }

    /// The cluster before the first installation of tp, without what changes by itself.
    ///
    /// The first installation of any test stores it.
    #[track_caller]
    pub fn objects_before_tp(&self) -> Objects {
        let file = self.before_tp();
        let text = fs::read_to_string(&file).unwrap_or_else(|error| {
            panic!(
                "{}: {error}: tp came to this cluster before any test could look at it; start a \
                 new one: `cargo xtask cluster down`",
                file.display()
            )
        });
        serde_json::from_str(&text).expect("the tests wrote it")
    }

    pub(crate) fn keep_objects_before_tp(&self) {
        let file = self.before_tp();
        let kinds = "customresourcedefinitions";
        let ours = ["get", kinds, "sessions.tp.internal", "--ignore-not-found"];
        if file.exists() || !self.kubectl(&ours).is_empty() {
            return;
        }
        let objects = lasting(self.objects());
        let text = serde_json::to_string(&objects).expect("objects are JSON");
        fs::write(file, text).expect("the testbed's folder is writable");
    }

    fn before_tp(&self) -> PathBuf {
        self.dir().join("before-tp.json")
    }
}

fn titled(object: &mut Value) -> (String, Value) {
    let metadata = &object["metadata"];
    let title = format!(
        "{} {} {} {}",
        object["apiVersion"], object["kind"], metadata["namespace"], metadata["name"]
    );
    if let Some(fields) = object.as_object_mut() {
        fields.remove("status");
    }
    if let Some(metadata) = object["metadata"].as_object_mut() {
        for changing in ["generation", "managedFields", "resourceVersion"] {
            metadata.remove(changing);
        }
        if let Some(annotations) = metadata
            .get_mut("annotations")
            .and_then(Value::as_object_mut)
        {
            // The time of a controller's last check, not a result.
            annotations.remove("endpoints.kubernetes.io/last-change-trigger-time");
        }
    }

    (title, object.take())
}

/// Removes objects of restless kinds and of the tests themselves.
pub fn lasting(mut objects: Objects) -> Objects {
    objects.retain(|_, object| {
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        !name.starts_with("e2e-") && !RESTLESS.iter().any(|kind| object["kind"] == *kind)
    });
    objects
}

/// One line for each object that is added, removed or changed; empty if there is none.
pub fn differences(before: &Objects, after: &Objects) -> String {
    let mut text = String::new();
    for (title, was) in before {
        match after.get(title) {
            None => text += &format!("{title} is gone\n"),
            Some(is) if is != was => text += &format!("{title} was {was} and is {is}\n"),
            Some(_) => {}
        }
    }
    for title in after.keys().filter(|title| !before.contains_key(*title)) {
        text += &format!("{title} is left\n");
    }
    text
}
