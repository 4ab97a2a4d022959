//! Both ends of the data path for tests, without a cluster: a session that decides about SYNs by
//! their destination port, and applications that report what they saw, one JSON object per line.

use std::env;

mod app;
mod packets;
mod root_client;
mod session;
mod sys;

fn main() {
    let words: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["session", rest @ ..] => session::run(rest),
        ["app", rest @ ..] => app::run(rest),
        _ => panic!("say session or app"),
    }
}
