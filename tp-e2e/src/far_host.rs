//! A host beyond the nodes that the cluster reaches and the workstation does not.

use std::process::Command;

use crate::{
    cluster::testbed,
    process::{PATIENCE, Running, run},
};

/// Within 10.0.0.0/8, which the nodes do not forward for the workstation; outside of the cluster's
/// networks.
pub const ADDED: &str = "10.77.0.1";

/// An address of that host with a server; removed when dropped.
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
            server: Running::start(base_command().args(server)),
        }
    }

    /// A web server at [`ADDED`], port 7998.
    #[track_caller]
    #[must_use = "the server ends with the guard"]
    pub fn with_pages() -> Self {
        let server = ["python3", "-m", "http.server", "--bind", ADDED, "7998"];

        Self::start(ADDED, &server)
    }

    /// Makes the host vanish silently: it neither receives nor answers any more.
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
            run(base_command().args(words), PATIENCE);
        }
        for node in nodes() {
            let mut command = testbed().inside(&node);
            run(command.args(["ip", "route", "del", &prefix]), PATIENCE);
        }
        let words = ["ip", "address", "del", &prefix, "dev", "lo"];
        run(base_command().args(words), PATIENCE);
    }
}

fn nodes() -> [String; 2] {
    ["1", "2"].map(|node| testbed().namespace(node))
}

fn base_command() -> Command {
    testbed().inside(&testbed().neighbour())
}

#[track_caller]
fn at_the_host(words: &[&str]) {
    testbed().run_inside(&testbed().neighbour(), words);
}
