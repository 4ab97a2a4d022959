//! Progress of a command, step by step.

use std::time::Instant;

use anyhow::{Context as _, Result};

/// Prints each step and its duration.
pub(crate) struct Steps {
    begin: Instant,
    done: Vec<(String, f64)>,
}

impl Steps {
    pub(crate) fn new() -> Self {
        Self {
            begin: Instant::now(),
            done: Vec::new(),
        }
    }

    /// Runs one step; a failure names `look_at`.
    pub(crate) fn step<T>(
        &mut self,
        name: &str,
        look_at: &str,
        action: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        println!("==> {name}");
        let begin = Instant::now();
        let outcome = action();
        let seconds = begin.elapsed().as_secs_f64();
        match &outcome {
            Ok(_) => println!("    {name}: done in {seconds:.1} s"),
            Err(_) => println!("    {name}: FAILED after {seconds:.1} s"),
        }
        self.done.push((name.to_owned(), seconds));
        outcome.with_context(|| format!("{name} failed; look at {look_at}"))
    }

    pub(crate) fn summary(&self) {
        println!();
        for (name, seconds) in &self.done {
            println!("{seconds:8.1} s  {name}");
        }
        println!("{:8.1} s  all", self.begin.elapsed().as_secs_f64());
    }
}
