//! The figures of the hooks, and whether they grow with the number of sessions.

use std::{collections::BTreeMap, fmt::Write as _};

use serde_json::Value;

use super::{COUNTS, cases_and_calls};

/// What is measured: the call of a case while a root daemon has a number of sessions.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Cell {
    pub(super) served: usize,
    pub(super) case: usize,
    pub(super) call: &'static str,
    pub(super) count: usize,
}

#[derive(Default)]
struct Figure {
    /// Nanoseconds of a call in the fastest batch, in rounds of even and of odd number.
    lowest: [Option<f64>; 2],
    /// Nanoseconds of a call in the median of the batches of each round.
    medians: Vec<f64>,
    runs: Runs,
}

/// Runs of programs.
#[derive(Default)]
struct Runs {
    ns: u64,
    count: u64,
    calls: u64,
}

#[derive(Default)]
pub(super) struct Figures(BTreeMap<Cell, Figure>);

impl Figures {
    pub(super) fn add(&mut self, cell: Cell, round: usize, nanos: &Value) {
        let figure = self.0.entry(cell).or_default();
        let lowest = nanos["lowest"].as_f64().unwrap();
        let half = &mut figure.lowest[round % 2];
        *half = Some(half.map_or(lowest, |it| it.min(lowest)));
        figure.medians.push(nanos["median"].as_f64().unwrap());
    }

    pub(super) fn add_runs(&mut self, cell: Cell, ns: u64, count: u64, calls: u64) {
        let runs = &mut self.0.entry(cell).or_default().runs;
        runs.ns += ns;
        runs.count += count;
        runs.calls += calls;
    }

    /// Where hooks cost notably more with several sessions than with one.
    ///
    /// Rounds of even number and rounds of odd number measure the same; by as much as they differ, any
    /// two figures may.
    pub(super) fn steep(&self) -> Vec<String> {
        let mut steep = Vec::new();
        for ((case, description), call) in cases_and_calls() {
            let figures = COUNTS.map(|count| {
                let cell = Cell {
                    served: 0,
                    case,
                    call,
                    count,
                };
                &self.0[&cell]
            });
            let spread = figures.iter().map(|it| it.spread()).fold(0.0, f64::max);
            let hook = |place: usize| figures[place].lowest() - figures[0].lowest();
            let bound = 1.5 * hook(1).max(0.0) + spread;
            for (place, sessions) in COUNTS.into_iter().enumerate().skip(2) {
                if hook(place) > bound {
                    steep.push(format!(
                        "{call}, {}: {sessions} sessions cost {:.0} ns, one {:.0} ns; at most {bound:.0} ns",
                        description.name,
                        hook(place),
                        hook(1),
                    ));
                }
            }
        }

        steep
    }

    /// Nanoseconds of a call: median and lowest; and of the programs that it runs, and how many.
    pub(super) fn table(&self) -> String {
        let mut table = String::from("| Call | Caller; destination | Build |");
        for count in COUNTS {
            let _ = write!(table, " {count} |");
        }
        table += "\n|---|---|---|---|---|---|---|\n";
        for ((case, description), call) in cases_and_calls() {
            for (served, build) in ["now", "before"].into_iter().enumerate() {
                let figures = COUNTS.map(|count| {
                    let cell = Cell {
                        served,
                        case,
                        call,
                        count,
                    };
                    self.0.get(&cell)
                });
                if figures[0].is_none() {
                    continue;
                }
                let _ = write!(table, "| {call} | {} | {build} |", description.name);
                for figure in figures.into_iter().flatten() {
                    let _ = write!(table, " {} |", figure.describe());
                }
                table.push('\n');
            }
        }

        table
    }
}

impl Figure {
    fn lowest(&self) -> f64 {
        let halves = self.lowest.into_iter().flatten();

        halves.fold(f64::INFINITY, f64::min)
    }

    fn spread(&self) -> f64 {
        match self.lowest {
            [Some(even), Some(odd)] => (even - odd).abs(),
            _ => 0.0,
        }
    }

    fn describe(&self) -> String {
        let mut medians = self.medians.clone();
        medians.sort_by(f64::total_cmp);
        let mut text = format!("{:.0} ({:.0})", medians[medians.len() / 2], self.lowest());
        let Runs { ns, count, calls } = self.runs;
        if count > 0 {
            let per_call = count as f64 / calls as f64;
            let _ = write!(text, "; {per_call:.1} × {}", ns / count);
        }

        text
    }
}
