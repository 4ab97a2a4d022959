//! Both ends of the data path for tests, without a cluster: the session's real relay and DNS
//! service over a tunnel whose far side decides by the port, a session that attacks, and
//! applications that report their results, one JSON object per line.

use std::env;

mod app;
mod attack;
mod calls;
mod clients;
mod credentials;
mod crowd;
mod dials;
mod far_side;
mod names;
mod packets;
mod root_client;
mod session;
mod shown;
mod socket;
mod strays;
mod sys;

fn main() {
    let words: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["session", rest @ ..] => {
            // Like `tp-session`: a process of this name is not steered.
            rustix::thread::set_name(tp_root_api::PROCESS_NAME).expect("a process may name itself");
            session::run(rest);
        }
        ["rogue", rest @ ..] => attack::run(rest),
        ["sessions", rest @ ..] => calls::hold_sessions(rest),
        ["time-programs"] => calls::time_programs(),
        ["requests", rest @ ..] => clients::ask(rest),
        ["openers", rest @ ..] => clients::open_many(rest),
        ["app", rest @ ..] => app::run(rest),
        _ => panic!("say session, rogue, sessions, time-programs, requests, openers or app"),
    }
}
