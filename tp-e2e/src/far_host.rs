//! A host beyond the nodes, which the cluster reaches and the workstation does not.

use std::process::Command;

use crate::{
    cluster::testbed,
    process::{PATIENCE, Running, run},
};

/// An address of that host, for as long as this lives, and what serves there.
#[derive(Debug)]
pub struct FarHost {
    address: String,
    pub server: Running,
}

impl FarHost {
    /// `address` is within 10.0.0.0/8, which the nodes do not forward for the workstation, and
    /// outside of the cluster's networks.
    #[track_caller]
    pub fn start(address: &str, server: &[&str]) -> Self {
        let prefix = format!("{address}/32");
        in_place(&["ip", "address", "replace", &prefix, "dev", "lo"]);
        for node in nodes() {
            let mut command = testbed().inside(&node);
            let via = ["ip", "route", "replace", &prefix, "via", "172.30.0.210"];
            run(command.args(via), PATIENCE).expect_success();
        }

        Self {
            address: address.into(),
            server: Running::start(place().args(server)),
        }
    }

    /// The host vanishes without a word: it neither hears nor answers any more.
    #[track_caller]
    pub fn vanish(&self) {
        let address = &self.address;
        for rule in [["INPUT", "-d"], ["OUTPUT", "-s"]] {
            let [chain, side] = rule;
            in_place(&["iptables", "-I", chain, side, address, "-j", "DROP"]);
        }
    }
}

impl Drop for FarHost {
    fn drop(&mut self) {
        let address = &self.address;
        let prefix = format!("{address}/32");
        for rule in [["INPUT", "-d"], ["OUTPUT", "-s"]] {
            let [chain, side] = rule;
            // Fails where the host has not vanished.
            let words = ["iptables", "-D", chain, side, address, "-j", "DROP"];
            run(place().args(words), PATIENCE);
        }
        for node in nodes() {
            let mut command = testbed().inside(&node);
            run(command.args(["ip", "route", "del", &prefix]), PATIENCE);
        }
        let words = ["ip", "address", "del", &prefix, "dev", "lo"];
        run(place().args(words), PATIENCE);
    }
}

fn nodes() -> [String; 2] {
    ["1", "2"].map(|node| testbed().namespace(node))
}

fn place() -> Command {
    testbed().inside(&testbed().neighbour())
}

#[track_caller]
fn in_place(words: &[&str]) {
    run(place().args(words), PATIENCE).expect_success();
}
