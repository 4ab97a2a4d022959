//! A host beyond the nodes, which the cluster reaches and the workstation does not.

use std::process::Command;

use crate::{
    cluster::testbed,
    process::{PATIENCE, Running, run},
};

/// Within 10.0.0.0/8, which the nodes do not forward for the workstation; outside of the cluster's
/// networks.
pub const ADDED: &str = "10.77.0.1";

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
        at_the_host(&["ip", "address", "replace", &prefix, "dev", "lo"]);
        for node in nodes() {
            let via = ["ip", "route", "replace", &prefix, "via", "172.30.0.210"];
            testbed().run_inside(&node, &via);
        }

        Self {
            address: address.into(),
            server: Running::start(place().args(server)),
        }
    }

    /// A web server at [`ADDED`], port 7998.
    #[track_caller]
    #[must_use = "the server ends with the guard"]
    pub fn with_pages() -> Self {
        let server = ["python3", "-m", "http.server", "--bind", ADDED, "7998"];

        Self::start(ADDED, &server)
    }

    /// The host vanishes without a word: it neither hears nor answers any more.
    #[track_caller]
    pub fn vanish(&self) {
        let address = &self.address;
        for rule in [["INPUT", "-d"], ["OUTPUT", "-s"]] {
            let [chain, side] = rule;
            at_the_host(&["iptables", "-I", chain, side, address, "-j", "DROP"]);
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
fn at_the_host(words: &[&str]) {
    testbed().run_inside(&testbed().neighbour(), words);
}
