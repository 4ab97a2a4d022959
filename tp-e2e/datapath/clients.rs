//! Clients of the root daemon that are no sessions: they ask, and tell the replies.

use std::io::BufRead as _;

use serde_json::{Value, json};

use crate::{root_client::RootClient, session::say};

const OWN_NETNS: &str = "/proc/self/ns/net";

/// `SOCKET`: forwards the request of each line over one connection, and tells the reply. An "open"
/// carries the network namespace.
pub(crate) fn ask(words: &[&str]) {
    let [socket] = words else {
        panic!("requests SOCKET");
    };
    let root = RootClient::connect(socket).expect("the root daemon listens");
    for line in std::io::stdin().lock().lines() {
        let line = line.expect("input is text");
        let request: Value = serde_json::from_str(&line).expect("a request");
        let netns = (request["request"] == "open").then_some(OWN_NETNS);
        // What came with the reply is closed again.
        let (reply, _) = root.ask(&request, netns);
        say(&json!({"event": "reply", "reply": reply}));
    }
}

/// `SOCKET OPEN COUNT`: opens that many bundles, each over its own connection, as far as it is let,
/// and keeps them until the input ends.
pub(crate) fn open_many(words: &[&str]) {
    let [socket, open, count] = words else {
        panic!("openers SOCKET OPEN COUNT");
    };
    let mut open: Value = serde_json::from_str(open).expect("JSON");
    open["request"] = "open".into();
    let mut kept = Vec::new();
    let mut refused = Value::Null;
    for _ in 0..count.parse().expect("a number") {
        let root = RootClient::connect(socket).expect("the root daemon listens");
        let (reply, descriptors) = root.ask(&open, Some(OWN_NETNS));
        if reply["reply"] != "opened" {
            refused = reply;
            break;
        }
        kept.push((root, descriptors));
    }
    say(&json!({"opened": kept.len(), "refused": refused}));
    let _ = std::io::stdin().lock().lines().count();
}
