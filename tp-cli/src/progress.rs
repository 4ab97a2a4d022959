//! The progress of a command, on standard error.

use std::{
    io::{self, IsTerminal, Write},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};

use crate::output::{Format, Output};

const TICK_INTERVAL: Duration = Duration::from_millis(100);

/// A spinner on a terminal, plain lines elsewhere, nothing with JSON and YAML.
#[derive(Debug)]
pub(crate) struct Progress {
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Spinner(Option<ProgressBar>),
    Lines,
    Silent,
}

impl Progress {
    pub(crate) fn new(output: Output) -> Self {
        let kind = if output.format() != Format::Text {
            Kind::Silent
        } else if io::stderr().is_terminal() {
            Kind::Spinner(None)
        } else {
            Kind::Lines
        };

        Self { kind }
    }

    /// For a wait of a second: a spinner on a terminal, nothing elsewhere.
    pub(crate) fn on_terminal(output: Output) -> Self {
        match Self::new(output) {
            Self { kind: Kind::Lines } => Self { kind: Kind::Silent },
            progress => progress,
        }
    }

    /// Begins a step, named by a phrase: "starting the session".
    pub(crate) fn step(&mut self, phrase: &str) {
        match &mut self.kind {
            Kind::Spinner(spinner) => {
                let spinner = spinner.get_or_insert_with(|| {
                    let spinner = ProgressBar::new_spinner().with_style(
                        ProgressStyle::with_template("{spinner} {wide_msg}")
                            .expect("the template is well formed"),
                    );
                    spinner.enable_steady_tick(TICK_INTERVAL);
                    spinner
                });
                spinner.set_message(phrase.to_owned());
            }
            Kind::Lines => note(phrase),
            Kind::Silent => {}
        }
    }

    /// Clears the spinner, so that another program can use the terminal; the next step shows it
    /// again.
    pub(crate) fn clear(&mut self) {
        if let Kind::Spinner(spinner) = &mut self.kind
            && let Some(spinner) = spinner.take()
        {
            spinner.finish_and_clear();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Writes one line to standard error and ignores failures.
pub(crate) fn note(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}
