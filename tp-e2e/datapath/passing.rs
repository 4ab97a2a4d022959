//! A session that passes every query on to the server that it was meant for.

use std::{
    fs::File,
    io::Write as _,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    os::fd::OwnedFd,
    time::Duration,
};

use rustix::event::{PollFd, PollFlags, poll};
use serde_json::{Value, json};

use crate::{
    packets::{self, Ends},
    root_client::RootClient,
    session::say,
    sys,
};

const PATIENCE: Duration = Duration::from_secs(1);

/// `SOCKET NAME_SERVERS`: says so of each query that it passes on.
pub(crate) fn run(words: &[&str]) {
    let [socket, servers] = words else {
        panic!("passing SOCKET NAME_SERVERS");
    };
    let root = RootClient::connect(socket).expect("the root daemon listens");
    let open = json!({"request": "open", "scope": "user"});
    let (reply, fds) = root.ask(&open, Some("/proc/self/ns/net"));
    assert_eq!(reply["reply"], "opened", "{reply}");
    let [_, udp, tun, table, heartbeat] = <[OwnedFd; 5]>::try_from(fds).expect("five descriptors");
    let servers: Value = serde_json::from_str(servers).expect("JSON");
    let servers = json!({"request": "name_servers", "servers": servers});
    assert_eq!(root.ask(&servers, None).0["reply"], "done");
    let base: Ipv4Addr = reply["alias_base"]
        .as_str()
        .and_then(|base| base.parse().ok())
        .expect("an address");
    let count = reply["alias_count"].as_u64().expect("a count");
    let aliases = sys::AliasTable::map(&table, usize::try_from(count).expect("small"));
    let heartbeat = sys::Heartbeat::map(&heartbeat);
    heartbeat.set(sys::boot_time_ns());
    say(&json!({"event": "ready"}));

    let mut tun = File::from(tun);
    let mut buffer = vec![0; 65536];
    let beat = rustix::time::Timespec::try_from(PATIENCE / 5).expect("short");
    loop {
        heartbeat.set(sys::boot_time_ns());
        let mut fds = [PollFd::new(&udp, PollFlags::IN)];
        // An interruption makes it look again.
        let _ = poll(&mut fds, Some(&beat));
        let Some(query) = sys::receive_datagram(&udp, &mut buffer) else {
            continue;
        };
        let (alias, port) = query.destination;
        let index = u32::from_be_bytes(alias) - u32::from(base);
        let real = aliases.real(usize::try_from(index).expect("small"));
        say(&json!({"passed_on": SocketAddr::from((real, port)).to_string()}));
        let upstream = UdpSocket::bind("0.0.0.0:0").expect("a socket can be bound");
        upstream.set_read_timeout(Some(PATIENCE)).expect("a bound");
        upstream
            .send_to(&buffer[..query.len], SocketAddr::from((real, port)))
            .expect("the server is on the link");
        let Ok(len) = upstream.recv(&mut buffer) else {
            continue;
        };
        let ends = Ends {
            source: query.destination,
            destination: query.source,
        };
        tun.write_all(&packets::udp(ends, &buffer[..len]))
            .expect("the TUN takes packets");
    }
}
