//! The measurements, their bounds, and the table of both.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use serde_json::json;

use super::stats::Spread;

#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Measure {
    Up,
    Down,
    Request,
    Connection,
    /// A new connection and the first answer by it.
    Answer,
    Name,
    Connect,
    Intercept,
    AgentIdle,
    AgentBusy,
}

#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Way {
    Routed,
    Kubectl,
    Udp,
    PortForward,
    /// From the cluster to a process of the workstation.
    Intercepted,
    /// To a port of a pod of which another port is intercepted.
    Beside,
}

impl Measure {
    /// Name and unit.
    fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Up => ("bulk up", "Gbit/s"),
            Self::Down => ("bulk down", "Gbit/s"),
            Self::Request => ("request", "us"),
            Self::Connection => ("new connection", "us"),
            Self::Answer => ("first answer", "us"),
            Self::Name => ("service name", "us"),
            Self::Connect => ("tp connect", "ms"),
            Self::Intercept => ("tp intercept", "ms"),
            Self::AgentIdle => ("agent, idle", "MB"),
            Self::AgentBusy => ("agent, 100 intercepts", "MB"),
        }
    }
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Self::Routed => "routed",
            Self::Kubectl => "kubectl port-forward",
            Self::Udp => "tp, UDP",
            Self::PortForward => "tp, port-forward",
            Self::Intercepted => "intercepted, UDP",
            Self::Beside => "beside an intercept",
        }
    }
}

/// A bound of docs/performance.md.
struct Bound {
    what: &'static str,
    measured: Option<f64>,
    limit: Option<f64>,
    at_least: bool,
}

#[derive(Default)]
pub(super) struct Figures {
    samples: BTreeMap<(Measure, Way), Vec<f64>>,
    failures: Vec<String>,
}

impl Figures {
    pub(super) fn add(&mut self, measure: Measure, way: Way, value: f64) {
        self.samples.entry((measure, way)).or_default().push(value);
    }

    pub(super) fn failed(&mut self, measure: Measure, way: Way, error: &anyhow::Error) {
        let failure = format!("{}, {}: {error:#}", measure.words().0, way.name());
        eprintln!("{failure}");
        self.failures.push(failure);
    }

    /// Fails if a measurement failed. A missed bound is only shown: the machine may be busy.
    pub(super) fn outcome(&self) -> Result<()> {
        if let Some(first) = self.failures.first() {
            bail!(
                "{} measurements failed; the first: {first}",
                self.failures.len()
            );
        }
        Ok(())
    }

    fn spread(&self, measure: Measure, way: Way) -> Option<Spread> {
        Spread::of(self.samples.get(&(measure, way))?)
    }

    fn median(&self, measure: Measure, way: Way) -> Option<f64> {
        Some(self.spread(measure, way)?.median)
    }

    fn bounds(&self) -> Vec<Bound> {
        let request = self.median(Measure::Request, Way::Routed);
        let mut bounds = vec![
            self.share(
                "bulk up: 15 % of routed",
                Measure::Up,
                Way::Udp,
                Way::Routed,
                0.15,
            ),
            self.share(
                "bulk down: 15 % of routed",
                Measure::Down,
                Way::Udp,
                Way::Routed,
                0.15,
            ),
            self.share(
                "port-forward, bulk up: 60 % of kubectl",
                Measure::Up,
                Way::PortForward,
                Way::Kubectl,
                0.6,
            ),
            self.share(
                "port-forward, bulk down: 60 % of kubectl",
                Measure::Down,
                Way::PortForward,
                Way::Kubectl,
                0.6,
            ),
            self.at_most(
                "request: routed + 400 us",
                (Measure::Request, Way::Udp),
                request.map(|routed| routed + 400.0),
            ),
            self.at_most(
                "service name: 300 us",
                (Measure::Name, Way::Udp),
                Some(300.0),
            ),
            self.at_most(
                "tp connect: 1500 ms",
                (Measure::Connect, Way::Udp),
                Some(1500.0),
            ),
        ];
        bounds.extend(self.bounds_of_intercepts());

        bounds
    }

    fn bounds_of_intercepts(&self) -> [Bound; 9] {
        let plus = |measure, more| Some(self.median(measure, Way::Routed)? + more);
        let at_most = |what, measure, limit| self.at_most(what, (measure, Way::Intercepted), limit);
        let of_routed =
            |what, measure| self.share(what, measure, Way::Intercepted, Way::Routed, 0.1);
        // What the cluster sends up comes down to the workstation.
        let of_tp = |what, measure, of_tp| {
            let measured = self.median(measure, Way::Intercepted);
            self.share_of(what, measured, (of_tp, Way::Udp), 0.55)
        };

        [
            at_most("tp intercept: 300 ms", Measure::Intercept, Some(300.0)),
            at_most(
                "intercepted request: routed + 500 us",
                Measure::Request,
                plus(Measure::Request, 500.0),
            ),
            at_most(
                "intercepted, first answer: routed + 1200 us",
                Measure::Answer,
                plus(Measure::Answer, 1200.0),
            ),
            at_most("agent, idle: 15 MB", Measure::AgentIdle, Some(15.0)),
            at_most(
                "agent, 100 intercepts: 60 MB",
                Measure::AgentBusy,
                Some(60.0),
            ),
            of_routed("intercepted, bulk up: 10 % of routed", Measure::Up),
            of_routed("intercepted, bulk down: 10 % of routed", Measure::Down),
            of_tp(
                "intercepted, bulk up: 55 % of tp, bulk down",
                Measure::Up,
                Measure::Down,
            ),
            of_tp(
                "intercepted, bulk down: 55 % of tp, bulk up",
                Measure::Down,
                Measure::Up,
            ),
        ]
    }

    fn at_most(
        &self,
        what: &'static str,
        (measure, way): (Measure, Way),
        limit: Option<f64>,
    ) -> Bound {
        Bound {
            what,
            measured: self.median(measure, way),
            limit,
            at_least: false,
        }
    }

    fn share(&self, what: &'static str, measure: Measure, way: Way, of: Way, share: f64) -> Bound {
        self.share_of(what, self.median(measure, way), (measure, of), share)
    }

    fn share_of(
        &self,
        what: &'static str,
        measured: Option<f64>,
        (measure, way): (Measure, Way),
        share: f64,
    ) -> Bound {
        Bound {
            what,
            measured,
            limit: self.median(measure, way).map(|of| of * share),
            at_least: true,
        }
    }

    pub(super) fn print(&self) {
        println!(
            "{:<22} {:<22} {:>9} {:>9} {:>9}  unit",
            "what", "way", "min", "median", "max"
        );
        for (&(measure, way), samples) in &self.samples {
            let Some(spread) = Spread::of(samples) else {
                continue;
            };
            let (what, unit) = measure.words();
            let Spread {
                min, median, max, ..
            } = spread;
            println!(
                "{what:<22} {:<22} {min:>9.2} {median:>9.2} {max:>9.2}  {unit}",
                way.name()
            );
        }
        println!();
        for bound in self.bounds() {
            println!("{:<46} {}", bound.what, bound.verdict());
        }
    }

    pub(super) fn to_json(&self) -> serde_json::Value {
        let rows: Vec<_> = self
            .samples
            .iter()
            .filter_map(|(&(measure, way), samples)| {
                let (what, unit) = measure.words();
                let spread = Spread::of(samples)?;
                Some(json!({ "what": what, "way": way.name(), "unit": unit, "spread": spread }))
            })
            .collect();
        json!({ "figures": rows, "failures": self.failures })
    }
}

impl Bound {
    fn verdict(&self) -> String {
        match (self.measured, self.limit) {
            (Some(measured), Some(limit)) => {
                let kept = if self.at_least {
                    measured >= limit
                } else {
                    measured <= limit
                };
                let word = if kept { "kept" } else { "MISSED" };
                format!("{word}: {measured:.2}, bound {limit:.2}")
            }
            _ => "not measured".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_is_kept_missed_or_not_measured() {
        let mut figures = Figures::default();
        figures.add(Measure::Up, Way::Routed, 10.0);
        figures.add(Measure::Up, Way::Udp, 1.6);
        figures.add(Measure::Request, Way::Routed, 50.0);
        figures.add(Measure::Request, Way::Udp, 451.0);

        let verdicts: Vec<String> = figures.bounds().iter().map(Bound::verdict).collect();

        assert_eq!(verdicts[0], "kept: 1.60, bound 1.50");
        assert_eq!(verdicts[1], "not measured");
        assert_eq!(verdicts[4], "MISSED: 451.00, bound 450.00");
    }

    #[test]
    fn a_failed_measurement_is_a_failure_of_the_run() {
        let mut figures = Figures::default();
        assert!(figures.outcome().is_ok());

        figures.failed(Measure::Up, Way::Udp, &anyhow::anyhow!("no route"));

        let error = figures.outcome().unwrap_err().to_string();
        assert!(error.contains("bulk up, tp, UDP: no route"), "{error}");
    }
}
