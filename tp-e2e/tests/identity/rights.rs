//! Destinations that a session may reach.

use std::time::Duration;

use tokio::time::timeout;
use tp_e2e::cluster::{testbed, text};

use super::support::{Admitted, reached, refused_dial, web};

#[tokio::test]
async fn the_clusters_own_machines_are_out_of_reach_even_for_its_administrator() {
    let admin = Admitted::new("shop", "admin").await;
    let api_server = testbed().service_ip("default", "kubernetes");
    let network = text(&testbed().object("default", "node", "node1")["spec"]["podCIDR"]);
    let bridge = network.replace(".0/24", ".1:10250");

    for target in [
        "172.30.0.11:10250",
        "172.30.0.12:22",
        &bridge,
        "127.0.0.1:7072",
        "169.254.169.254:80",
        &format!("{api_server}:443"),
    ] {
        let refused = refused_dial(&admin.tunnel, target).await;
        assert!(refused.starts_with("Prohibited"), "{target}: {refused}");
    }
}

#[tokio::test]
async fn addresses_outside_the_cluster_take_a_right_of_their_own() {
    let dev = Admitted::new("shop", "dev").await;

    let refused = refused_dial(&dev.tunnel, "192.0.2.77:80").await;

    assert!(refused.starts_with("Prohibited"), "{refused}");
    assert!(refused.contains("external"), "{refused}");
}

#[tokio::test]
async fn a_flow_ends_within_five_seconds_of_its_right() {
    let limited = Admitted::new("team-b", "limited").await;
    let target = web();
    assert!(
        refused_dial(&limited.tunnel, &target)
            .await
            .contains("shop")
    );

    testbed().give_right("e2e-flow", "limited", "shop");
    let flow = reached(&limited.tunnel, &target).await;
    testbed().take_right("e2e-flow", "shop");
    let (_send, mut receive) = flow.split();

    let ended = timeout(Duration::from_secs(5), receive.read_chunk(1024)).await;
    let ended = ended.expect("the flow ends with its right");
    assert!(ended.is_err(), "a reset is expected, not {ended:?}");
}
