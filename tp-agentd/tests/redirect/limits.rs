//! What keeps the program, and what it keeps, from more than it is for.

use std::{fs, os::unix::fs::symlink, process::Command, thread};

use rustix::{process::Uid, thread::set_thread_uid};
use tp_agent_api::{AgentRequest, PROTOCOL};

use crate::stage::{Connected, Stage};

const AGENT_USER: u32 = 65532;

fn hello() -> AgentRequest {
    AgentRequest::Hello {
        version: String::new(),
        protocol: PROTOCOL,
    }
}

/// Connects as another user.
fn connect_as(stage: &Stage, user: u32) -> Connected {
    let socket = stage.socket();
    thread::scope(|scope| {
        let connected = scope.spawn(|| {
            set_thread_uid(Uid::from_raw(user)).unwrap();
            Connected::to(&socket)
        });
        connected.join().unwrap()
    })
}

#[test]
#[ignore = "needs root"]
fn the_agents_user_is_served_and_no_other() {
    let stage = Stage::new("k");

    let agent = connect_as(&stage, AGENT_USER);
    assert!(agent.try_request(&hello(), &[]).is_some());
    let other = connect_as(&stage, AGENT_USER + 1);
    assert!(other.try_request(&hello(), &[]).is_none());
}

#[test]
#[ignore = "needs root"]
fn a_link_in_the_place_of_the_socket_is_not_followed() {
    let stage = Stage::new("l");
    let dir = tempfile::tempdir().unwrap();
    let (socket, target) = (dir.path().join("agentd.sock"), dir.path().join("target"));
    for exists in [false, true] {
        if exists {
            fs::write(&target, "kept").unwrap();
        } else {
            symlink(&target, &socket).unwrap();
        }
        let output = Command::new(env!("CARGO_BIN_EXE_tp-agentd"))
            .arg("--proc")
            .arg(stage.proc_dir())
            .arg("--socket")
            .arg(&socket)
            .output()
            .unwrap();

        let message = String::from_utf8(output.stderr).unwrap();
        assert!(message.contains("cannot listen at"), "{message}");
        assert_eq!(target.exists(), exists);
    }
    assert_eq!(fs::read_to_string(&target).unwrap(), "kept");
}
