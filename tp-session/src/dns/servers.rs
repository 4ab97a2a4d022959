//! The name servers of this machine, and the ways to resolve names that bypass them.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddrV4},
    os::unix::net::UnixStream,
    time::Duration,
};

use resolv_conf::Config;
use tokio::{sync::watch, time::interval};

use super::search;

const RESOLV_CONF: &str = "/etc/resolv.conf";
const NSSWITCH_CONF: &str = "/etc/nsswitch.conf";
const NSCD_SOCKETS: [&str; 2] = ["/run/nscd/socket", "/var/run/nscd/socket"];
const PORT: u16 = 53;
/// The C library asks three (resolv.conf(5)), and no resolver many more.
const MAX_SERVERS: usize = 32;
/// Many programs replace, link or mount over resolv.conf; reading it is cheap and misses no change.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// The name servers in use at this moment whose queries are read.
pub(crate) fn current() -> Vec<SocketAddrV4> {
    steered(&servers(&read_conf()))
}

fn steered(servers: &[IpAddr]) -> Vec<SocketAddrV4> {
    let read = servers.iter().filter_map(as_steered);

    read.map(|address| SocketAddrV4::new(address, PORT))
        .take(MAX_SERVERS)
        .collect()
}

/// An alias can stand for IPv4 addresses other than 0.0.0.0.
fn as_steered(server: &IpAddr) -> Option<Ipv4Addr> {
    match server {
        IpAddr::V4(address) => Some(*address).filter(|it| !it.is_unspecified()),
        IpAddr::V6(_) => None,
    }
}

/// Publishes every change until aborted.
pub(crate) async fn watch(servers: watch::Sender<Vec<SocketAddrV4>>) {
    let mut look = interval(POLL_INTERVAL);
    loop {
        look.tick().await;
        let found = current();
        servers.send_if_modified(|old| {
            let is_new = *old != found;
            old.clone_from(&found);
            is_new
        });
    }
}

/// Sentences about names that do not pass through tp, or that others answer first.
pub(crate) async fn not_covered() -> Vec<String> {
    let conf = read_conf();
    let mut sentences = unread(&servers(&conf));
    sentences.extend(other_sources(&read(NSSWITCH_CONF)));
    sentences.extend(name_cache());
    sentences.extend(search::shadowing(&conf, &current()).await);

    sentences
}

/// The resolver asks in this order, and believes the first that answers.
fn unread(servers: &[IpAddr]) -> Vec<String> {
    let not_read = servers
        .iter()
        .enumerate()
        .filter(|(_, address)| as_steered(address).is_none());
    not_read
        .map(|(index, address)| {
            let first = match address {
                IpAddr::V4(_) => "queries to the name server",
                IpAddr::V6(_) => "queries to the IPv6 name server",
            };
            if index == 0 {
                format!(
                    "{first} {address} are not read, and it is asked first: cluster names do not \
                     resolve unless another IPv4 name server stands before it in {RESOLV_CONF}"
                )
            } else {
                format!("{first} {address} are not read")
            }
        })
        .collect()
}

/// Sources of names in nsswitch.conf(5) that ask a process of another user.
const OTHER_SOURCES: [(&str, &str); 7] = [
    ("resolve", "systemd-resolved over its unix socket"),
    ("sss", "sssd"),
    ("ldap", "nslcd"),
    ("winbind", "winbindd"),
    ("wins", "winbindd"),
    ("mdns", "avahi-daemon"),
    ("mdns4", "avahi-daemon"),
];

fn other_sources(nsswitch: &str) -> Vec<String> {
    let hosts = nsswitch
        .lines()
        .find_map(|line| line.strip_prefix("hosts:"));
    let Some(hosts) = hosts else {
        return Vec::new();
    };
    let sources: Vec<&str> = hosts.split_whitespace().collect();
    let dns = sources.iter().position(|source| *source == "dns");
    // Sources behind dns get only the names that the cluster does not have.
    let before = &sources[..dns.unwrap_or(sources.len())];
    let mut sentences: Vec<String> = OTHER_SOURCES
        .iter()
        .filter(|(source, _)| before.contains(source))
        .map(|(source, asked)| {
            format!(
                "programs that use the C library ask {asked} first ({source} in \
                 {NSSWITCH_CONF}), which runs as another user: unless dns stands before it, they do \
                 not see cluster names where it answers"
            )
        })
        .collect();
    if dns.is_none() && sentences.is_empty() {
        sentences.push(format!(
            "programs that use the C library ask no name server: {NSSWITCH_CONF} names no dns \
             under hosts"
        ));
    }

    sentences
}

/// nscd(8) answers for every program that uses the C library.
fn name_cache() -> Option<String> {
    let socket = NSCD_SOCKETS.iter().find(|path| {
        // The file may have outlived the process.
        UnixStream::connect(path)
            .and_then(|stream| rustix::net::sockopt::socket_peercred(stream).map_err(Into::into))
            .is_ok_and(|peer| {
                let started_by = peer.uid.as_raw();
                let runs_as = user_of(&read(&format!("/proc/{}/status", peer.pid)));
                runs_as.unwrap_or(started_by) != rustix::process::geteuid().as_raw()
            })
    })?;

    Some(format!(
        "nscd answers for programs that use the C library ({socket}) and asks as another user: \
         they see cluster names after `enable-cache hosts no` in /etc/nscd.conf and a restart of \
         nscd, or when nscd is stopped"
    ))
}

/// The effective user in a `/proc/PID/status`: a daemon may have changed it after listen(2).
fn user_of(status: &str) -> Option<u32> {
    let ids = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;

    ids.split_whitespace().nth(1)?.parse().ok()
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn read_conf() -> Config {
    parse(&fs::read(RESOLV_CONF).unwrap_or_default())
}

/// Skips invalid lines, as the C library does. `resolv_conf` by itself refuses interfaces such as
/// `br-lan` behind an address, and reads `#53` behind one as a comment, where the C library skips the
/// line.
fn parse(conf: &[u8]) -> Config {
    let lines: Vec<&[u8]> = conf
        .split(|byte| *byte == b'\n')
        .filter(|line| !has_glued_comment(line))
        .map(|line| line.split(|byte| *byte == b'%').next().unwrap_or_default())
        .collect();

    Config::parse_with_errors(&lines.join(&b'\n')).0
}

fn has_glued_comment(line: &[u8]) -> bool {
    let mut words = line
        .split(u8::is_ascii_whitespace)
        .filter(|it| !it.is_empty());
    let is_mark = |byte: &u8| matches!(byte, b'#' | b';');

    words.next() == Some(b"nameserver") && words.next().is_some_and(|it| it.iter().any(is_mark))
}

/// Without a `nameserver` line, the resolver asks this machine (resolv.conf(5)).
fn servers(conf: &Config) -> Vec<IpAddr> {
    let mut servers: Vec<IpAddr> = conf.nameservers.iter().map(IpAddr::from).collect();
    servers.dedup();
    if servers.is_empty() {
        servers.push(IpAddr::from([127, 0, 0, 1]));
    }

    servers
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_in(conf: &str) -> Vec<String> {
        let servers = servers(&parse(conf.as_bytes()));

        servers.iter().map(IpAddr::to_string).collect()
    }

    #[test]
    fn name_servers_are_read_in_order() {
        let text = "# nameserver 1.1.1.1\nsearch corp.test\nnameserver 172.30.0.53\nnameserver fe80::1%eth0\nnameserver bad\n";

        assert_eq!(read_in(text), ["172.30.0.53", "fe80::1"]);
    }

    #[test]
    fn the_interface_behind_an_address_may_have_any_name() {
        for interface in ["2", "br-lan", "eth0.100", "veth_1"] {
            let text = format!("nameserver fe80::1%{interface}\nnameserver 172.30.0.53\n");

            assert_eq!(read_in(&text), ["fe80::1", "172.30.0.53"], "{interface}");
        }
    }

    #[test]
    fn a_comment_ends_no_word() {
        let text = "nameserver 1.1.1.1#53\nnameserver 1.1.1.2;x\n;nameserver 1.1.1.3\n\
                    nameserver 172.30.0.53 # ours\n";

        assert_eq!(read_in(text), ["172.30.0.53"]);
    }

    #[test]
    fn lines_that_cannot_be_read_hide_no_others() {
        let conf = b"options none:1 rotate:\nnonsense\nsearch \xff\nnameserver\n\
                     nameserver 172.30.0.53 extra\nsortlist x\nnameserver 172.30.0.54\n";

        let servers = servers(&parse(conf));

        let expected = ["172.30.0.53", "172.30.0.54"].map(|it| it.parse().unwrap());
        assert_eq!(servers, expected as [IpAddr; 2]);
    }

    #[test]
    fn more_servers_are_read_than_the_c_library_asks() {
        let text: String = (1..=5)
            .map(|at| format!("nameserver 192.0.2.{at}\n"))
            .collect();

        assert_eq!(read_in(&text).len(), 5);
    }

    #[test]
    fn without_a_server_the_machine_itself_is_asked() {
        assert_eq!(read_in(""), ["127.0.0.1"]);
    }

    #[test]
    fn an_ipv6_name_server_that_comes_first_takes_all_names_away() {
        let servers = |texts: [&str; 2]| texts.map(|it| it.parse().unwrap());

        let first = unread(&servers(["fe80::1", "172.30.0.53"]));
        let second = unread(&servers(["172.30.0.53", "fe80::1"]));

        assert!(first[0].contains("asked first"), "{first:?}");
        assert!(!second[0].contains("asked first"), "{second:?}");
        assert_eq!(unread(&servers(["172.30.0.53", "1.1.1.1"])), [""; 0]);
    }

    #[test]
    fn what_no_alias_can_stand_for_is_left_out_and_told() {
        let servers = ["0.0.0.0", "172.30.0.53", "::"].map(|it| it.parse().unwrap());

        assert_eq!(steered(&servers), ["172.30.0.53:53".parse().unwrap()]);
        assert!(unread(&servers)[0].contains("0.0.0.0 are not read"));
    }

    #[test]
    fn of_very_many_name_servers_the_first_are_steered() {
        let many: Vec<IpAddr> = (1..=100)
            .map(|at| Ipv4Addr::new(192, 0, 2, at).into())
            .collect();

        let steered = steered(&many);

        assert_eq!(steered.len(), MAX_SERVERS);
        assert_eq!(*steered[0].ip(), many[0]);
    }

    #[test]
    fn the_user_of_a_daemon_is_the_one_it_asks_as() {
        let status = "Name:\tnscd\nUid:\t0\t65534\t0\t65534\nGid:\t0\t0\t0\t0\n";

        assert_eq!(user_of(status), Some(65534));
        assert_eq!(user_of(""), None);
    }

    #[test]
    fn sources_of_names_that_other_users_run_are_noticed_before_dns() {
        for (line, words) in [
            (
                "hosts: files resolve [!UNAVAIL=return] dns",
                "systemd-resolved",
            ),
            ("hosts: files sss dns", "sssd"),
            ("hosts:\tfiles mdns4 dns", "avahi"),
            ("hosts: files myhostname", "no name server"),
        ] {
            let said = other_sources(&format!("passwd: files\n{line}\n"));
            assert_eq!(said.len(), 1, "{line}: {said:?}");
            assert!(said[0].contains(words), "{line}: {said:?}");
        }
        for line in [
            "hosts: files mdns4_minimal [NOTFOUND=return] dns",
            "hosts: files dns sss",
            "passwd: files sss",
            "",
        ] {
            assert_eq!(other_sources(line), [""; 0], "{line}");
        }
    }
}
