//! Bars for the controller, and for its fairness to other flows, on paths in virtual time.

use std::{sync::Arc, time::Duration};

use quinn::congestion::BbrConfig;
use tp_core::path::PathKind;

use super::{
    super::{PathAwareFactory, PathEpoch},
    quic::Demand,
    sim::{Factory, Run},
    wire::{Path, Wire},
};

/// Of the bytes that arrive.
const MAX_SENT: f64 = 1.15;
/// Of the path's capacity.
const MIN_CARRIED: f64 = 0.85;
/// Of the path, for each of two.
const MIN_SHARE: f64 = 0.30;
/// Of an equal part of the path, for each of many.
const MIN_PART_OF_MANY: f64 = 0.5;
/// The start is over.
const SETTLED_AFTER: Duration = Duration::from_secs(2);

fn ours() -> Factory {
    let epoch = Arc::new(PathEpoch::default());
    epoch.switch(PathKind::Udp);
    Arc::new(PathAwareFactory::new(epoch))
}

fn quinns() -> Factory {
    Arc::new(BbrConfig::default())
}

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// As `tc tbf` with 64 KB of burst.
const BUCKET: u64 = 64 << 10;

/// Paths that differ in all that a path can be.
fn paths() -> Vec<Path> {
    let base = Path::new(100, 20, 20);
    let home = Path::new(20, 30, 1000);
    let near = Path {
        burst: BUCKET,
        ..Path::new(100, 1, 20)
    };
    let near_and_fast = Path { mbit: 300, ..near };
    let with_jitter = |path, jitter| Path {
        jitter: ms(jitter),
        ..path
    };
    let with_gather = |path, gather| Path {
        gather: ms(gather),
        ..path
    };

    vec![
        base,
        with_jitter(base, 1),
        with_jitter(base, 5),
        with_gather(base, 1),
        with_gather(base, 4),
        with_gather(base, 10),
        Path::new(100, 20, 200),
        with_jitter(Path::new(100, 20, 200), 1),
        Path::new(100, 20, 2),
        Path::new(100, 20, 5),
        near,
        with_jitter(near, 1),
        near_and_fast,
        with_jitter(near_and_fast, 3),
        with_gather(near, 4),
        with_gather(near, 10),
        with_gather(near_and_fast, 4),
        home,
        with_jitter(home, 2),
        Path::new(1000, 10, 10),
        Path::new(5, 20, 100),
        Path {
            lost_per_mille: 10,
            ..base
        },
    ]
}

/// By the first flow, as a part of the path's capacity.
fn carried(wire: &Wire, path: Path, from: Duration, to: Duration) -> f64 {
    wire.arrived(0, from, to) / (path.bytes_per_second() * (to - from).as_secs_f64())
}

/// Checks that a bulk alone on its path keeps the bars; the error describes what it did instead.
fn judge(path: Path, wire: &Wire, end: Duration) -> Result<(), String> {
    let sent = wire.sent(0, Duration::ZERO, end) / wire.arrived(0, Duration::ZERO, end);
    let carried = carried(wire, path, SETTLED_AFTER, end);
    let queue = wire.longest_wait(SETTLED_AFTER, end);
    let told = format!(
        "{path:?}: sent {sent:.3}, carried {carried:.3}, queue {queue:?} {:?}",
        wire.lost
    );
    println!("{told}");
    let is_kept = sent <= MAX_SENT
        && carried >= MIN_CARRIED
        // Packets that wait at the far end are in flight as well.
        && queue <= path.rtt.mul_f64(1.5).max(ms(10)) + path.gather
        && wire.lost.is_empty();

    is_kept.then_some(()).ok_or(told)
}

#[test]
fn a_bulk_fills_its_path_and_neither_floods_it_nor_fills_its_queue() {
    let broken: Vec<String> = paths()
        .into_iter()
        .filter_map(|path| {
            // As many packets on a fast path as on a slow one, about.
            let end = Duration::from_secs(if path.mbit > 100 { 4 } else { 8 });
            let run = Run {
                length: end,
                ..Run::new(path, ours())
            };
            judge(path, &run.go(), end).err()
        })
        .collect();

    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn the_bars_are_such_that_the_bbr_of_quinn_breaks_them() {
    for path in [
        Path {
            jitter: ms(1),
            ..Path::new(100, 20, 20)
        },
        Path {
            gather: ms(1),
            ..Path::new(100, 20, 20)
        },
        Path::new(100, 20, 200),
    ] {
        let run = Run::new(path, quinns());
        let end = run.length;
        let judged = judge(path, &run.go(), end);
        match path.queue == ms(20) {
            true => assert!(judged.is_err(), "{path:?}"),
            false => assert_eq!(judged, Ok(()), "the path itself carries"),
        }
    }
}

#[test]
fn random_loss_costs_no_rate() {
    let path = Path {
        lost_per_mille: 10,
        ..Path::new(100, 20, 20)
    };
    let run = Run::new(path, ours());
    let end = run.length;

    let wire = run.go();

    let carried = carried(&wire, path, SETTLED_AFTER, end);
    assert!(carried >= 0.95, "{carried}");
}

#[test]
fn a_path_that_gets_longer_shorter_slower_or_faster_is_filled_again() {
    let second = Duration::from_secs(1);
    let (short, long) = (Path::new(100, 1, 50), Path::new(100, 40, 50));
    let (slow, fast) = (Path::new(10, 20, 100), Path::new(100, 20, 100));
    for (before, after) in [(short, long), (long, short), (slow, fast), (fast, slow)] {
        let run = Run {
            changes: vec![(2 * second, after)],
            ..Run::new(before, ours())
        };
        let end = run.length;

        let wire = run.go();

        let settled = 5 * second;
        let carried = carried(&wire, after, settled, end);
        let queue = wire.longest_wait(settled, end);
        let told = format!("{before:?} {after:?}: carried {carried:.3}, queue {queue:?}");
        assert!(carried >= MIN_CARRIED, "{told}");
        assert!(queue <= after.rtt.mul_f64(1.5).max(ms(10)), "{told}");
    }
}

/// Its reader's window, not the controller's, is what it waits for, so that it never sends all it may.
#[test]
fn a_bulk_with_a_slow_reader_empties_the_queue_of_a_path_that_gets_slower() {
    let (fast, slow) = (Path::new(1000, 1, 20), Path::new(50, 1, 200));
    let run = Run {
        changes: vec![(ms(500), slow)],
        quic: vec![(ours(), Demand::Within(500 << 10))],
        length: Duration::from_secs(6),
        ..Run::new(fast, ours())
    };
    let (settled, end) = (ms(2500), run.length);

    let wire = run.go();

    let carried = carried(&wire, slow, settled, end);
    let queue = wire.longest_wait(settled, end);
    let told = format!("carried {carried:.3}, queue {queue:?}");
    assert!(carried >= MIN_CARRIED, "{told}");
    assert!(queue <= ms(10), "{told}");
}

#[test]
fn a_bulk_after_a_pause_starts_at_more_than_a_third() {
    let path = Path::new(100, 20, 20);
    let second = Duration::from_secs(1);
    let (pause, end) = (3 * second, 16 * second);
    // Busy, then away for longer than the lifetime of what is known, then busy again.
    let run = Run {
        quic: vec![(ours(), Demand::TwoBursts(pause, end - second))],
        length: end,
        ..Run::new(path, ours())
    };

    let wire = run.go();

    let again = end - second + path.rtt;
    let carried = wire.arrived(0, again, again + ms(200));
    let possible = path.bytes_per_second() * 0.2;
    assert!(carried >= possible / 3.0, "{}", carried / possible);
}

#[test]
fn requests_and_pauses_do_not_spoil_the_bulk_that_follows() {
    let path = Path::new(100, 20, 20);
    let run = Run {
        quic: vec![(
            ours(),
            Demand::Periodic {
                bytes: 4 << 20,
                period: Duration::from_secs(1),
            },
        )],
        ..Run::new(path, ours())
    };
    let end = run.length;

    let wire = run.go();

    // 4 MiB take a third of each second.
    for second in 2..end.as_secs() {
        let from = Duration::from_secs(second) + path.rtt;
        let carried = wire.arrived(0, from, from + ms(400));
        assert!(carried >= (4 << 20) as f64, "{second} s: {carried}");
    }
    let sent = wire.sent(0, Duration::ZERO, end) / wire.arrived(0, Duration::ZERO, end);
    assert!(sent <= MAX_SENT, "{sent}");
}

/// Shares of all flows once all are there.
fn shares(run: Run, from: Duration) -> Vec<f64> {
    let (path, end) = (run.path, run.length);
    let flows = run.quic.len() + usize::from(run.tcp.is_some());
    let wire = run.go();
    let possible = path.bytes_per_second() * (end - from).as_secs_f64();

    (0..flows)
        .map(|flow| wire.arrived(flow, from, end) / possible)
        .collect()
}

fn shared_paths() -> [Path; 3] {
    let near = Path {
        burst: BUCKET,
        ..Path::new(100, 1, 20)
    };

    [Path::new(100, 20, 20), near, Path { mbit: 300, ..near }]
}

#[test]
fn tcp_beside_keeps_its_share_and_so_does_the_tunnel_whoever_is_first() {
    let second = Duration::from_secs(1);
    let length = 12 * second;
    for path in shared_paths() {
        for is_tcp_first in [true, false] {
            let (quic, tcp) = match is_tcp_first {
                true => (second, Duration::ZERO),
                false => (Duration::ZERO, second),
            };
            let run = Run {
                quic: vec![(ours(), Demand::From(quic))],
                tcp: Some((tcp, length)),
                length,
                ..Run::new(path, ours())
            };

            let shares = shares(run, 2 * second);

            let told = format!("{path:?}, TCP first: {is_tcp_first}: {shares:.3?}");
            println!("{told}");
            assert!(shares.iter().all(|share| *share >= MIN_SHARE), "{told}");
        }
    }
}

#[test]
fn two_tunnels_share_a_path() {
    let second = Duration::from_secs(1);
    for path in shared_paths() {
        let run = Run {
            quic: vec![(ours(), Demand::Endless), (ours(), Demand::From(second))],
            length: 15 * second,
            ..Run::new(path, ours())
        };

        let shares = shares(run, 3 * second);

        assert!(
            shares.iter().all(|share| *share >= MIN_SHARE),
            "{path:?}: {shares:.3?}"
        );
    }
}

#[test]
fn many_tunnels_share_a_path() {
    let second = Duration::from_secs(1);
    let path = Path::new(100, 20, 20);
    for count in [5, 8] {
        let run = Run {
            quic: (0..count)
                .map(|at| (ours(), Demand::From(at * second / 4)))
                .collect(),
            length: 12 * second,
            ..Run::new(path, ours())
        };

        let shares = shares(run, 4 * second);

        let least = MIN_PART_OF_MANY / f64::from(count);
        assert!(
            shares.iter().all(|share| *share >= least),
            "{count}: {shares:.3?}"
        );
    }
}

#[test]
fn a_queue_that_tcp_has_left_is_emptied() {
    let path = Path::new(100, 20, 100);
    let second = Duration::from_secs(1);
    let run = Run {
        tcp: Some((second / 2, 4 * second)),
        length: 12 * second,
        ..Run::new(path, ours())
    };
    let end = run.length;

    let wire = run.go();

    let queue = wire.longest_wait(end - 4 * second, end);
    assert!(queue <= path.rtt.mul_f64(1.5), "{queue:?}");
}

#[test]
fn ends_that_get_no_processor_for_a_while_do_not_fill_the_queue() {
    let near = Path {
        burst: BUCKET,
        ..Path::new(100, 1, 20)
    };
    let deep = Path {
        queue: ms(200),
        ..near
    };
    let paths = [
        near,
        Path { mbit: 300, ..near },
        deep,
        Path::new(100, 20, 200),
    ];
    for (path, stall) in paths.into_iter().flat_map(|path| [(path, 10), (path, 20)]) {
        let path = Path {
            stall: ms(stall),
            ..path
        };
        let run = Run::new(path, ours());
        let end = run.length;

        let wire = run.go();

        let carried = carried(&wire, path, SETTLED_AFTER, end);
        let queue = wire.wait_of_most(SETTLED_AFTER, end);
        let told = format!("{path:?}: carried {carried:.3}, queue {queue:?}");
        println!("{told}");
        assert!(carried >= MIN_CARRIED, "{told}");
        assert!(queue <= path.rtt.max(ms(12)), "{told}");
    }
}
