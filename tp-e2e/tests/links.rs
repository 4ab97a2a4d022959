//! The tunnel's effect on a rate-limited link, and on its other users.

use std::time::Duration;

use tp_e2e::{
    link::{CongestionControl, Direction, LimitedLink, TcpBeside},
    lock::alone,
    user::Account,
    workstation::Workstation,
};

/// Bytes on the link, with headers and retransmissions, for each byte that arrives.
const MAX_SENT: f64 = 1.15;
/// Application bytes as a share of the link's rate.
const MIN_CARRIED: f64 = 0.85;
/// The share of the link for each of two, beside CUBIC.
const MIN_SHARE: f64 = 0.30;
/// Beside the kernel's BBR, whose share swings for tens of seconds with what it takes for the shortest
/// round trip: in twelve runs between 0.30 and 0.50.
const MIN_SHARE_OF_BBR: f64 = 0.20;
/// The queueing delay. The base round trip is below a millisecond, so that this is the larger
/// bound.
const MAX_QUEUE: Duration = Duration::from_millis(10);
/// The quantile of the queueing delay, after the first third of a transfer. Tokens saved while the
/// controller probes for an empty queue pass at once, and form a queue for some round trips.
const QUEUE_QUANTILE: f64 = 0.9;
/// The time of a transfer that has the link for itself.
const TRANSFER_ALONE: Duration = Duration::from_secs(6);
/// Five transfers beside TCP, each with about half of the link for ten seconds.
const TRANSFER_BESIDE_TCP: Duration = Duration::from_secs(5);
const TRANSFERS_BESIDE_TCP: u32 = 5;

/// A session on UDP that has carried a bulk transfer each way without a limit.
fn warmed_up() -> Workstation {
    let workstation =
        Workstation::connected(Account::Member, "dev", "shop", &["--transport", "udp"]);
    for direction in [Direction::FromWorkstation, Direction::ToWorkstation] {
        time_of_transfer(&workstation, direction, 64 << 20);
    }
    workstation
}

/// Transfers so many bytes; returns the time.
#[track_caller]
fn time_of_transfer(workstation: &Workstation, direction: Direction, size: u64) -> Duration {
    let size = size.to_string();
    let words = match direction {
        Direction::FromWorkstation => ["talk", "-send", &size, "echo:7001", "take", &size],
        Direction::ToWorkstation => ["talk", "-timeout", "60s", "echo:7001", "give", &size],
    };
    let seen = workstation.echo(&words);
    assert_eq!(seen["error"], "", "{seen}");
    assert_eq!(seen["end"], "fin", "{seen}");

    Duration::from_secs_f64(seen["elapsed_ms"].as_f64().expect("a number") / 1e3)
}

#[track_caller]
fn fills_a_link_and_not_its_queue(direction: Direction, mbit: u64, queue_ms: u64) {
    let _alone = alone();
    let workstation = warmed_up();
    let link = LimitedLink::new(direction, mbit, Duration::from_millis(queue_ms));
    let size = link.bytes_in(TRANSFER_ALONE);

    let before = link.counters();
    let (took, waits) = link.watch(|| time_of_transfer(&workstation, direction, size));
    let after = link.counters();

    let packet = 1500;
    let sent = after.bytes - before.bytes + packet * (after.dropped - before.dropped);
    let sent = sent as f64 / size as f64;
    let carried = size as f64 / link.bytes_in(took) as f64;
    let mut later = waits[waits.len() / 3..].to_vec();
    later.sort_unstable();
    let longest = later[(later.len() as f64 * QUEUE_QUANTILE) as usize];
    let told = format!("sent {sent:.3} of what arrived, carried {carried:.3}, queue {longest:?}");
    println!("{direction:?} {mbit} Mbit/s, {queue_ms} ms of queue: {told}");
    assert!(sent <= MAX_SENT, "{told}");
    assert!(carried >= MIN_CARRIED, "{told}");
    assert!(longest <= MAX_QUEUE, "{told}: {waits:?}");
}

#[test]
fn an_upload_fills_a_link_and_not_its_queue() {
    fills_a_link_and_not_its_queue(Direction::FromWorkstation, 100, 20);
}

#[test]
fn an_upload_fills_a_faster_link_and_not_its_queue() {
    fills_a_link_and_not_its_queue(Direction::FromWorkstation, 300, 20);
}

#[test]
fn an_upload_leaves_a_deep_queue_empty() {
    fills_a_link_and_not_its_queue(Direction::FromWorkstation, 100, 200);
}

#[test]
fn a_download_fills_a_link_and_not_its_queue() {
    fills_a_link_and_not_its_queue(Direction::ToWorkstation, 100, 20);
}

#[test]
fn a_download_leaves_a_deep_queue_empty() {
    fills_a_link_and_not_its_queue(Direction::ToWorkstation, 100, 200);
}

#[track_caller]
fn beside_tcp(direction: Direction, control: CongestionControl, least: f64) {
    let (mbit, queue_ms) = (100, 20);
    let _alone = alone();
    let workstation = warmed_up();
    let link = LimitedLink::new(direction, mbit, Duration::from_millis(queue_ms));
    let size = link.bytes_in(TRANSFER_BESIDE_TCP);
    let tcp = TcpBeside::start(direction, control);
    tcp.wait_until_it_fills(&link);

    // The shares swing for seconds at first: the average counts.
    let (mut took, before) = (Duration::ZERO, tcp.received());
    for _ in 0..TRANSFERS_BESIDE_TCP {
        took += time_of_transfer(&workstation, direction, size);
    }
    let possible = link.bytes_in(took) as f64;
    let ours = (u64::from(TRANSFERS_BESIDE_TCP) * size) as f64 / possible;
    let of_tcp = (tcp.received() - before) as f64 / possible;
    let told = format!("tp has {ours:.3} of the link, TCP {of_tcp:.3}, in {took:?}");
    println!("{direction:?}, {control:?}, {mbit} Mbit/s, {queue_ms} ms of queue: {told}");
    assert!(ours >= least, "{told}");
    assert!(of_tcp >= least, "{told}");
}

#[test]
fn an_upload_and_tcp_share_a_link() {
    beside_tcp(
        Direction::FromWorkstation,
        CongestionControl::Cubic,
        MIN_SHARE,
    );
}

#[test]
fn a_download_and_tcp_share_a_link() {
    beside_tcp(
        Direction::ToWorkstation,
        CongestionControl::Cubic,
        MIN_SHARE,
    );
}

#[test]
fn an_upload_and_bbr_share_a_link() {
    beside_tcp(
        Direction::FromWorkstation,
        CongestionControl::Bbr,
        MIN_SHARE_OF_BBR,
    );
}

#[test]
fn a_download_and_bbr_share_a_link() {
    beside_tcp(
        Direction::ToWorkstation,
        CongestionControl::Bbr,
        MIN_SHARE_OF_BBR,
    );
}
