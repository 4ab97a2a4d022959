//! A machine that the cluster reaches and the workstation does not.

use crate::{
    cluster::testbed,
    process::{PATIENCE, Running, run},
};

/// Within 10.0.0.0/8, which the nodes do not forward for the workstation; outside of the cluster's
/// networks.
pub const ADDED: &str = "10.77.0.1";

/// A server beyond the nodes that the cluster reaches and the workstation does not.
#[derive(Debug)]
pub struct Beyond(pub Running);

impl Beyond {
    #[must_use]
    pub fn start() -> Self {
        let lan = testbed().neighbour();
        let address = format!("{ADDED}/32");
        let mut command = testbed().inside(&lan);
        run(
            command.args(["ip", "address", "replace", &address, "dev", "lo"]),
            PATIENCE,
        )
        .expect_success();
        for node in Self::nodes() {
            let mut command = testbed().inside(&node);
            let via = ["ip", "route", "replace", &address, "via", "172.30.0.210"];
            run(command.args(via), PATIENCE).expect_success();
        }
        let mut server = testbed().inside(&lan);
        server.args(["python3", "-m", "http.server", "--bind", ADDED, "7998"]);
        Self(Running::start(&mut server))
    }

    fn nodes() -> [String; 2] {
        ["1", "2"].map(|node| testbed().namespace(node))
    }
}

impl Drop for Beyond {
    fn drop(&mut self) {
        let address = format!("{ADDED}/32");
        for node in Self::nodes() {
            let mut command = testbed().inside(&node);
            run(command.args(["ip", "route", "del", &address]), PATIENCE);
        }
        let mut command = testbed().inside(&testbed().neighbour());
        run(
            command.args(["ip", "address", "del", &address, "dev", "lo"]),
            PATIENCE,
        );
    }
}
