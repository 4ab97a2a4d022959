//! Name servers of a machine under test: a company's server with the behaviour that a test needs,
//! and the resolv.conf that names it.

use std::{fs, time::Duration};

use serde_json::Value;

use crate::{
    cluster::testbed,
    process::{PATIENCE, Running, run},
    user::Account,
    workstation::Workstation,
};

/// The address of a company's name server.
pub const SERVER: &str = "127.0.0.9";

/// A session of a developer whose company has one name server. `words` configure the server, as in
/// [`NameServer::start`]; `conf` is added to resolv.conf.
#[track_caller]
pub fn connected_behind(words: &[&str], conf: &str) -> (Workstation, NameServer, ResolvConf) {
    let workstation = Workstation::new(Account::Member, "dev");
    let server = NameServer::start(&workstation, &[&[SERVER], words].concat());
    let changed = ResolvConf::write(&format!("nameserver {SERVER}\n{conf}"));
    workstation.connect(&["--namespace", "shop"]);

    (workstation, server, changed)
}

/// A name server at the workstation; stopped when dropped. `name_server/main.rs` describes its
/// answers.
#[derive(Debug)]
pub struct NameServer {
    _running: Running,
}

impl NameServer {
    /// `ADDRESS [no-tcp] [wildcard] [answer=ADDRESS]`
    #[track_caller]
    pub fn start(workstation: &Workstation, words: &[&str]) -> Self {
        let words = [&["name-server", "serve"], words].concat();
        let mut running = Running::start(&mut workstation.command_as(Account::Root, &words));
        running.wait_for("ready", Duration::from_secs(10));

        Self { _running: running }
    }
}

/// The report of a resolver of this account: `ADDRESS WAY [half-close] [every=MS] [pace=MS]
/// [timeout=MS] NAME…`.
#[track_caller]
pub fn ask(workstation: &Workstation, account: Account, words: &[&str]) -> Value {
    let words = [&["name-server", "ask"], words].concat();
    let finished = run(&mut workstation.command_as(account, &words), PATIENCE);
    assert!(finished.status.success(), "{finished}");
    finished.json()
}

/// The workstation's resolv.conf with other servers; restored when dropped.
#[derive(Debug)]
pub struct ResolvConf {
    before: String,
}

impl ResolvConf {
    #[track_caller]
    pub fn name(server: &str) -> Self {
        Self::write(&format!("nameserver {server}\n"))
    }

    #[track_caller]
    pub fn write(text: &str) -> Self {
        let path = testbed().resolv_conf();
        let before = fs::read_to_string(&path).expect("there is a resolv.conf");
        fs::write(path, text).expect("the testbed's folder is writable");

        Self { before }
    }
}

impl Drop for ResolvConf {
    fn drop(&mut self) {
        let _ = fs::write(testbed().resolv_conf(), &self.before);
    }
}

/// A route of the workstation; removed when dropped.
#[derive(Debug)]
pub struct Route {
    words: Vec<String>,
}

impl Route {
    /// `route` is in the syntax of `ip route add`.
    #[track_caller]
    pub fn add(words: &str) -> Self {
        let words: Vec<String> = words.split(' ').map(str::to_owned).collect();
        let added: Vec<&str> = words.iter().map(String::as_str).collect();
        let add = [&["ip", "route", "add"], &added[..]].concat();
        testbed().run_inside(&testbed().workstation(), &add);

        Self { words }
    }
}

impl Drop for Route {
    fn drop(&mut self) {
        let _ = testbed()
            .inside(&testbed().workstation())
            .args(["ip", "route", "del"])
            .args(&self.words)
            .status();
    }
}
