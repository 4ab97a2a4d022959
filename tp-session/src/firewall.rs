//! Firewalls of this machine that drop what is steered. Applications only see time-outs then, and
//! nothing else would say why.

use std::{net::SocketAddrV4, time::Duration};

use socket2::{Domain, Socket, Type};
use tokio::time::{Instant, sleep};
use tp_root_api::Datapath;

/// The kernel has sent the SYN when `connect()` returns; after this time it was dropped.
const TIMEOUT: Duration = Duration::from_secs(1);
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// The port of `discard`, which nobody takes for an attack.
const PORT: u16 = 9;

pub(crate) const NOTICE: &str = "a firewall of this machine drops what goes to the cluster, so \
     that connections to it time out or are refused: allow the interfaces of tp in the chain that \
     drops it, for example with `nft insert rule inet filter output oifname \"tp*\" accept` or \
     `iptables -I OUTPUT -o tp+ -j ACCEPT`; a chain for what comes in needs the same with \
     iifname or -i";

/// An alias that never stands for an address.
pub fn unused_alias(datapath: &Datapath) -> SocketAddrV4 {
    let first = u32::from(datapath.alias_base);

    SocketAddrV4::new((first + 1).into(), PORT)
}

/// Returns whether a SYN of this user's to an alias reaches the interface of the data path, where it is
/// dropped. `reached` reads the counter of [`tp_root_api::DropReason::ForeignSocket`]; without its
/// answer the result is `None`.
pub async fn lets_pass<F: Future<Output = Option<u64>>>(
    alias: SocketAddrV4,
    reached: impl Fn() -> F,
) -> Option<bool> {
    let before = reached().await?;
    let _socket = send_syn(alias).ok()?;
    let end = Instant::now() + TIMEOUT;
    loop {
        match reached().await? {
            now if now == before && Instant::now() < end => sleep(POLL_INTERVAL).await,
            now => return Some(now != before),
        }
    }
}

/// The kernel repeats the SYN until the socket is closed.
fn send_syn(to: SocketAddrV4) -> std::io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    // Nobody answers, so the result does not matter.
    let _ = socket.connect(&to.into());

    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::{
        future::ready,
        net::Ipv4Addr,
        sync::atomic::{AtomicU64, Ordering},
    };

    use super::*;

    const NOBODY: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 9);

    #[tokio::test]
    async fn only_what_reaches_the_interface_is_taken_for_an_open_way() {
        let count = AtomicU64::new(7);

        let next = || ready(Some(count.fetch_add(1, Ordering::Relaxed)));
        assert_eq!(lets_pass(NOBODY, next).await, Some(true));
        assert_eq!(lets_pass(NOBODY, || ready(Some(7))).await, Some(false));
        assert_eq!(lets_pass(NOBODY, || ready(None)).await, None);
    }
}
