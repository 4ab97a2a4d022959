//! What the tunnel does to a link of a limited rate, and to those who use it too.

use std::time::Duration;

use tp_e2e::{
    link::{Direction, LimitedLink, TcpBeside},
    lock::alone,
    user::Account,
    workstation::Workstation,
};

/// Of what arrives, with headers and everything that is sent again.
const SENT: f64 = 1.15;
/// Of the link, in bytes of the application.
const CARRIED: f64 = 0.85;
/// Of the link, for each of two that share it.
const SHARE: f64 = 0.30;
/// The base round trip is below a millisecond, so that this is the larger bound.
const QUEUE: Duration = Duration::from_millis(10);
/// Of the looks at the queue, after the first third of a transfer. What a token bucket saves while the
/// controller looks for an empty queue passes at once, and is a queue for some round trips.
const LOOKS: f64 = 0.9;
/// How long a transfer takes when it has the link for itself.
const UNSHARED: Duration = Duration::from_secs(6);
/// Beside TCP: about half of the link for ten seconds, five times.
const BESIDE: Duration = Duration::from_secs(5);
const TRANSFERS_BESIDE: u32 = 5;

/// A session on UDP that has carried a bulk transfer each way without any limit.
fn warmed_up() -> Workstation {
    let workstation =
        Workstation::connected(Account::Member, "dev", "shop", &["--transport", "udp"]);
    for direction in [Direction::FromWorkstation, Direction::ToWorkstation] {
        time_of_transfer(&workstation, direction, 64 << 20);
    }
    workstation
}

/// Moves so many bytes of the application; returns how long it took.
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
    let size = link.bytes_in(UNSHARED);

    let before = link.counters();
    let (took, waits) = link.watch(|| time_of_transfer(&workstation, direction, size));
    let after = link.counters();

    let packet = 1500;
    let sent = after.bytes - before.bytes + packet * (after.dropped - before.dropped);
    let sent = sent as f64 / size as f64;
    let carried = size as f64 / link.bytes_in(took) as f64;
    let mut later = waits[waits.len() / 3..].to_vec();
    later.sort_unstable();
    let longest = later[(later.len() as f64 * LOOKS) as usize];
    let told = format!("sent {sent:.3} of what arrived, carried {carried:.3}, queue {longest:?}");
    println!("{direction:?} {mbit} Mbit/s, {queue_ms} ms of queue: {told}");
    assert!(sent <= SENT, "{told}");
    assert!(carried >= CARRIED, "{told}");
    assert!(longest <= QUEUE, "{told}: {waits:?}");
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
fn beside_tcp(direction: Direction, mbit: u64, queue_ms: u64) {
    let _alone = alone();
    let workstation = warmed_up();
    let link = LimitedLink::new(direction, mbit, Duration::from_millis(queue_ms));
    let size = link.bytes_in(BESIDE);
    let tcp = TcpBeside::start(direction);
    tcp.wait_until_it_fills(&link);

    // Shares of two that meet swing for seconds: what counts is what each has in the end.
    let (mut took, before) = (Duration::ZERO, tcp.received());
    for _ in 0..TRANSFERS_BESIDE {
        took += time_of_transfer(&workstation, direction, size);
    }
    let possible = link.bytes_in(took) as f64;
    let ours = (u64::from(TRANSFERS_BESIDE) * size) as f64 / possible;
    let of_tcp = (tcp.received() - before) as f64 / possible;
    let told = format!("tp has {ours:.3} of the link, TCP {of_tcp:.3}, in {took:?}");
    println!("{direction:?} {mbit} Mbit/s, {queue_ms} ms of queue: {told}");
    assert!(ours >= SHARE, "{told}");
    assert!(of_tcp >= SHARE, "{told}");
}

#[test]
fn an_upload_and_tcp_share_a_link() {
    beside_tcp(Direction::FromWorkstation, 100, 20);
}

#[test]
fn a_download_and_tcp_share_a_link() {
    beside_tcp(Direction::ToWorkstation, 100, 20);
}
