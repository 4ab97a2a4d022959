//! Transfers that a test interrupts.

use std::time::Duration;

use crate::{process::Running, workstation::Workstation};

/// Bytes a second of writers: no transfer ends within any test.
const RATE: &str = "1000000";

/// Running transfers that are far from their end: down, up, and both ways.
#[derive(Debug)]
pub struct Transfers(Vec<Running>);

impl Transfers {
    /// Starts transfers with the echo server of the connected namespace.
    #[track_caller]
    pub fn start(workstation: &Workstation) -> Self {
        let size = (256 << 20).to_string();
        let download = ["-seed", &size, "echo:7001", "drip", &size];
        let upload = ["-rate", RATE, "-send", &size, "echo:7001", "sink"];
        let both_ways = ["-rate", RATE, "-send", &size, "echo:7000"];
        let mut running: Vec<Running> = [&download[..], &upload, &both_ways]
            .into_iter()
            .map(|words| {
                let talk = ["talk", "-mark", "300000"];
                workstation.start_echo(&[&talk, words].concat())
            })
            .collect();
        for transfer in &mut running {
            transfer.wait_for("mark", Duration::from_secs(15));
        }

        Self(running)
    }

    /// Checks that each ends in time, with an error. Linux reports the error of a socket once:
    /// after a writer got it, a reader sees a clean end.
    #[track_caller]
    pub fn assert_broken(self, bound: Duration) {
        for transfer in self.0 {
            let finished = transfer.finish(bound);
            let seen = &finished.json()["result"];
            assert_ne!(seen["end"], "timeout", "{finished}");
            assert_ne!(seen["end"], "", "{finished}");
            let is_told = seen["end"] != "fin" || seen["send_error"] != "";
            assert!(is_told, "nobody heard of an error: {finished}");
        }
    }
}
