//! Applications that change their user, or pass sockets to another.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::{SocketAddr, TcpStream},
    os::fd::OwnedFd,
    process::{Command, Stdio},
};

use rustix::net::{
    AddressFamily, SocketFlags, SocketType, connect, getpeername, socket_with, sockopt,
};
use serde_json::{Value, json};

use crate::{
    session::say,
    socket::{PATIENCE, canonical, name},
    sys,
};

/// Connects and hands the socket to another program.
pub(crate) fn pass(target: &str, program: &str) -> Value {
    let stream = TcpStream::connect(target).expect("the session approves");
    let output = Command::new(program)
        .args(["app", "inherit"])
        .stdin(OwnedFd::from(stream))
        .output()
        .expect("the program starts");

    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// Reports the peer of standard input, and the own user.
pub(crate) fn inherit() -> Value {
    let peer = getpeername(std::io::stdin()).ok().flatten();
    let peer = peer.and_then(|address| SocketAddr::try_from(address).ok());

    json!({
        "peer": peer.map(canonical),
        "euid": rustix::process::geteuid().as_raw(),
    })
}

/// Runs another application in a user namespace of root, in which that user is root.
pub(crate) fn run_in_roots_user_namespace(uid: &str, words: &[&str]) {
    let mut child = Command::new("/proc/self/exe")
        .args(["app", "unshared"])
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut output = BufReader::new(child.stdout.take().expect("piped"));
    let mut line = String::new();
    output.read_line(&mut line).expect("output is text");
    for map in ["uid_map", "gid_map"] {
        let path = format!("/proc/{}/{map}", child.id());
        fs::write(path, format!("0 {uid} 1")).expect("root may");
    }
    let mut input = child.stdin.take().expect("piped");
    writeln!(input, "mapped").expect("the program reads");
    line.clear();
    output.read_line(&mut line).expect("output is text");
    child.wait().expect("a child can be waited for");

    say(&serde_json::from_str(&line).expect("JSON"));
}

/// Waits in a new user namespace until its root is mapped, and becomes that user.
pub(crate) fn become_root_of_new_users() {
    sys::unshare_users();
    say(&json!({"event": "unshared"}));
    let mut line = String::new();
    std::io::stdin()
        .read_line(&mut line)
        .expect("input is text");
    sys::become_user(0);
}

/// Makes a socket as root, and uses it as another user.
pub(crate) fn connect_after_setuid(uid: u32, target: &str) -> Value {
    let target: SocketAddr = target.parse().expect("an address");
    let socket = socket_with(
        AddressFamily::INET,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .expect("a socket can be made");
    let timeout = Some(PATIENCE);
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, timeout).expect("a bound");
    sys::become_user(uid);
    match connect(&socket, &target) {
        Err(error) => json!({"errno": name(error)}),
        Ok(()) => {
            let mut greeting = String::new();
            let read = BufReader::new(TcpStream::from(socket)).read_line(&mut greeting);
            json!({"errno": null, "read": read.is_ok(), "greeting": greeting.trim_end()})
        }
    }
}
