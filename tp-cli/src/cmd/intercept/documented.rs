//! What programs are told of intercepts is as documented in docs/output.md.

use std::collections::BTreeSet;

use serde_json::Value;
use tp_proto::local::{
    EarlierPeer, InterceptPod, InterceptPort, ListResponse, PortHolder, Workload,
};

use super::*;

const PAGE: &str = include_str!("../../../../docs/output.md");

/// The fields of one section of the page.
fn documented(title: &str) -> BTreeSet<String> {
    let heading = format!("\n## `{title}`\n");
    let (_, rest) = PAGE.split_once(&heading).unwrap();
    let section = rest.split("\n## ").next().unwrap();
    let fields = section.lines().filter_map(|line| {
        let (field, _) = line.strip_prefix("| `")?.split_once("` |")?;
        Some(field.to_owned())
    });

    fields.collect()
}

fn fields(value: &Value, above: &str, found: &mut BTreeSet<String>) {
    for (name, field) in value.as_object().into_iter().flatten() {
        let path = format!("{above}{name}");
        found.insert(path.clone());
        for item in field.as_array().into_iter().flatten() {
            fields(item, &format!("{path}[]."), found);
        }
    }
}

fn printed(value: &impl Serialize) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    fields(&serde_json::to_value(value).unwrap(), "", &mut found);

    found
}

#[test]
fn what_programs_are_told_of_intercepts_is_on_the_page() {
    let intercept = Intercept {
        ports: vec![InterceptPort::default()],
        pods: vec![InterceptPod {
            earlier_from: vec![EarlierPeer::default()],
            ..InterceptPod::default()
        }],
        ..Intercept::default()
    };
    for connected in [None, Some(&Connected::default())] {
        let made = Printed {
            intercept: &intercept,
            connected,
        };
        assert_eq!(printed(&made), documented("tp intercept"));
    }

    let listed = ListResponse {
        workloads: vec![Workload {
            intercepts: vec![PortHolder::default()],
            ..Workload::default()
        }],
    };
    assert_eq!(printed(&listed), documented("tp list"));
}

#[test]
fn a_connection_that_is_made_first_is_told_to_programs_with_its_notices() {
    let connected = Connected {
        context: "lab".into(),
        notices: vec!["names are not covered".into()],
        ..Connected::default()
    };
    let printed = |connected| {
        let intercept = Intercept {
            name: "web".into(),
            ..Intercept::default()
        };
        let intercept = &intercept;
        serde_json::to_value(Printed {
            intercept,
            connected,
        })
        .unwrap()
    };

    let first = printed(Some(&connected));

    assert_eq!(first["name"], "web");
    assert_eq!(first["connected"]["context"], "lab");
    assert_eq!(first["connected"]["notices"][0], "names are not covered");
    assert!(printed(None)["connected"].is_null());
}
