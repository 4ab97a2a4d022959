//! Standard output: text for people, JSON and YAML with stable field names.

use std::io::{self, Write};

use anyhow::Context as _;
use clap::ValueEnum;
use serde::Serialize;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people; may change between versions.
    #[default]
    Text,
    /// One object; fields are added, never renamed or removed.
    Json,
    /// The same object as YAML.
    Yaml,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    format: Format,
    silent: bool,
}

impl Output {
    pub(crate) fn new(format: Format) -> Self {
        Self {
            format,
            silent: false,
        }
    }

    /// For a step of another command, which prints its own result.
    pub(crate) fn silent(self) -> Self {
        Self {
            silent: true,
            ..self
        }
    }

    pub(crate) fn format(self) -> Format {
        self.format
    }

    /// Prints `text`, or `value` as an object.
    pub(crate) fn print(self, value: &impl Serialize, text: &str) -> anyhow::Result<()> {
        match self.format {
            _ if self.silent => Ok(()),
            Format::Text => print_all(text),
            Format::Json | Format::Yaml => self.object(value),
        }
    }

    /// Prints `value` as JSON or YAML.
    pub(crate) fn object(self, value: &impl Serialize) -> anyhow::Result<()> {
        print_all(&self.rendered(value)?)
    }

    /// The same on standard error.
    pub(crate) fn error(self, value: &impl Serialize) -> anyhow::Result<()> {
        let text = self.rendered(value)?;
        let written = io::stderr().lock().write_all(text.as_bytes());

        written.context("cannot write to standard error")
    }

    fn rendered(self, value: &impl Serialize) -> anyhow::Result<String> {
        let mut text = match self.format {
            Format::Yaml => serde_norway::to_string(value).context("cannot print YAML")?,
            Format::Text | Format::Json => {
                serde_json::to_string_pretty(value).context("cannot print JSON")?
            }
        };
        if !text.ends_with('\n') {
            text.push('\n');
        }

        Ok(text)
    }
}

pub(crate) fn print_all(text: &str) -> anyhow::Result<()> {
    print_bytes(text.as_bytes())
}

/// Prints what need not be text.
pub(crate) fn print_bytes(bytes: &[u8]) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(bytes)
        .and_then(|()| stdout.flush())
        .context("cannot write to standard output")
}

/// Rows below a heading, columns aligned.
pub(crate) fn table(heading: &[&str], rows: &[Vec<String>]) -> String {
    let heading: Vec<String> = heading.iter().map(|&cell| cell.to_owned()).collect();
    let lines: Vec<&Vec<String>> = std::iter::once(&heading).chain(rows).collect();
    let width = |column: usize| {
        lines
            .iter()
            .filter_map(|line| line.get(column))
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..heading.len()).map(width).collect();

    let mut text = String::new();
    for line in lines {
        let cells: Vec<String> = line
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }

    text
}

/// A block of `name: value` lines below a title; empty values are left out.
#[derive(Debug)]
pub(crate) struct Block {
    text: String,
}

impl Block {
    pub(crate) fn new(title: &str) -> Self {
        Self {
            text: format!("{title}\n"),
        }
    }

    pub(crate) fn line(mut self, name: &str, value: impl AsRef<str>) -> Self {
        let value = value.as_ref();
        if !value.is_empty() {
            self.text.push_str(&format!("  {name:<18}: {value}\n"));
        }

        self
    }

    pub(crate) fn finish(self) -> String {
        self.text
    }
}

/// A number of bytes in binary units.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut unit = 0;
    let mut whole = count;
    let mut rest = 0;
    while whole >= 1024 && unit + 1 < UNITS.len() {
        rest = whole % 1024;
        whole /= 1024;
        unit += 1;
    }

    if unit == 0 {
        format!("{whole} B")
    } else {
        format!("{whole}.{} {}", rest * 10 / 1024, UNITS[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_aligns_its_columns() {
        let rows = vec![
            vec!["Deployment".into(), "web".into()],
            vec!["Pod".into(), "a-long-name".into()],
        ];

        let text = table(&["KIND", "NAME"], &rows);

        assert_eq!(
            text,
            "KIND        NAME\nDeployment  web\nPod         a-long-name\n"
        );
    }

    #[test]
    fn a_block_leaves_empty_values_out() {
        let text = Block::new("Session")
            .line("Context", "lab")
            .line("Reason", "")
            .finish();

        assert_eq!(text, "Session\n  Context           : lab\n");
    }

    #[test]
    fn bytes_are_read_in_binary_units() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(5 * 1024 * 1024 * 1024), "5.0 GiB");
    }
}
