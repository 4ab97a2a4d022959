//! Names of the cluster with addresses outside its networks.

use std::time::{Duration, Instant};

use serde_json::Value;
use tp_e2e::{
    applied::Applied,
    far_host::{ADDED, FarHost},
    user::Account,
    workstation::Workstation,
};

/// A headless service with a manual endpoint.
fn legacy_service() -> Applied {
    Applied::new(
        &format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: e2e-legacy, namespace: shop}}, \
             spec: {{clusterIP: None, ports: [{{port: 7998}}]}}}}\n---\n\
             {{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, \
             metadata: {{name: e2e-legacy-1, namespace: shop, \
             labels: {{kubernetes.io/service-name: e2e-legacy}}}}, \
             addressType: IPv4, ports: [{{port: 7998}}], \
             endpoints: [{{addresses: [{ADDED}], conditions: {{ready: true}}}}]}}"
        ),
        &[
            "--namespace=shop",
            "service/e2e-legacy",
            "endpointslice/e2e-legacy-1",
        ],
    )
}

fn outside(workstation: &Workstation) -> Value {
    workstation.status()["dns"]["outside"].clone()
}

/// Connects to shop, where the name has the added address.
#[track_caller]
fn connected_where_the_name_leads_outside(account: Account, person: &str) -> Workstation {
    let workstation = Workstation::connected(account, person, "shop", &[]);
    workstation.expect_address("e2e-legacy.shop", ADDED);
    workstation
}

#[test]
fn a_name_that_leads_outside_is_reached_through_the_cluster_by_who_may() {
    let mut beyond = FarHost::with_pages();
    let _legacy = legacy_service();
    let workstation = connected_where_the_name_leads_outside(Account::Root, "admin");

    let page = workstation
        .run(&[
            "curl",
            "-sS",
            "--max-time",
            "5",
            "http://e2e-legacy.shop:7998/",
        ])
        .expect_success();

    assert!(page.contains("Directory listing"), "{page}");
    assert_eq!(outside(&workstation), serde_json::json!([ADDED]));
    // The request came from the cluster, not from this machine.
    beyond.server.wait_for("10.244.", Duration::from_secs(5));
}

#[test]
fn a_name_that_leads_outside_is_refused_at_once_to_who_may_not() {
    let _beyond = FarHost::with_pages();
    let _legacy = legacy_service();
    let workstation = connected_where_the_name_leads_outside(Account::Member, "dev");

    let begin = Instant::now();
    let said = workstation.run(&[
        "curl",
        "-sS",
        "--max-time",
        "10",
        "http://e2e-legacy.shop:7998/",
    ]);
    let took = begin.elapsed();

    assert_ne!(said.code(), 0, "{said}");
    assert!(took < Duration::from_secs(5), "{took:?}: {said}");
    let failed = workstation.status()["datapath"]["last_failed_dial"].to_string();
    assert!(failed.contains("external"), "{failed}");
}
