//! Programs of incompatible versions name the conflict.

use std::{fs, io, os::unix::fs::PermissionsExt as _, thread};

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept, bind,
    listen, recv, send, socket_with,
};
use tp_e2e::{cluster::testbed, user::Account, workstation::Workstation};

const OTHER: &str = "0.77.0";

/// A root daemon that only answers hello, of the first protocol, until the test ends.
fn root_daemon_of(workstation: &Workstation, version: &str) -> io::Result<()> {
    let socket = socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    bind(&socket, &SocketAddrUnix::new(workstation.root_socket())?)?;
    listen(&socket, 8)?;
    fs::set_permissions(workstation.root_socket(), fs::Permissions::from_mode(0o666))?;
    let hello = format!(r#"{{"reply":"hello","version":"{version}","pid":1}}"#);
    thread::spawn(move || {
        let mut connections = Vec::new();
        while let Ok(connection) = accept(&socket) {
            let mut request = [0; 1024];
            if recv(&connection, &mut request, RecvFlags::empty()).is_ok() {
                let _ = send(&connection, hello.as_bytes(), SendFlags::NOSIGNAL);
            }
            connections.push(connection);
        }
    });

    Ok(())
}

#[test]
fn a_root_daemon_of_another_version_is_told_with_both_versions() {
    testbed().install_tp();
    let mut workstation = Workstation::without_root_daemon(Account::Member, "dev");
    workstation.may_warn();
    root_daemon_of(&workstation, OTHER).unwrap();

    let refused = workstation.tp(&["connect", "--namespace", "shop"]);

    let words = ["the root daemon", OTHER, env!("CARGO_PKG_VERSION")];
    refused.assert_refused_in_one_line(1, &words);
    workstation.tp(&["status"]).expect_code(3);
    // Incompatible versions can still be printed.
    let versions = workstation.tp(&["version"]).expect_success();
    assert!(versions.contains(OTHER), "{versions}");
}

#[test]
fn a_root_daemon_that_does_not_understand_the_session_is_told_with_what_to_do() {
    testbed().install_tp();
    let mut workstation = Workstation::without_root_daemon(Account::Member, "dev");
    workstation.may_warn();
    root_daemon_of(&workstation, env!("CARGO_PKG_VERSION")).unwrap();

    let refused = workstation.tp(&["connect", "--namespace", "shop"]);

    let words = ["the root daemon", "sudo tp-daemon install"];
    refused.assert_refused_in_one_line(1, &words);
    workstation.tp(&["status"]).expect_code(3);
}
