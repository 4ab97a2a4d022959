//! Both ends of the data path for tests, without a cluster: a session that decides about SYNs by
//! their destination port, sessions that pass queries on or attack, and applications that report what they saw, one JSON object per line.

use std::env;

mod app;
mod attack;
mod credentials;
mod crowd;
mod packets;
mod passing;
mod root_client;
mod session;
mod sys;

fn main() {
    let words: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["session", rest @ ..] => {
            take_sessions_name();
            session::run(rest);
        }
        ["passing", rest @ ..] => {
            take_sessions_name();
            passing::run(rest);
        }
        ["rogue", rest @ ..] => attack::run(rest),
        ["app", rest @ ..] => app::run(rest),
        _ => panic!("say session or app"),
    }
}

/// As the session of `tp-daemon` does: it is not steered.
fn take_sessions_name() {
    rustix::thread::set_name(c"tp-daemon").expect("a process may name itself");
}
