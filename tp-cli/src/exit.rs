//! Exit codes, and the one place where errors are printed.

use std::{
    ffi::OsString,
    io::{self, Write},
    process::ExitCode,
};

use clap::{
    ValueEnum,
    error::{ContextKind, ContextValue},
};
use serde::Serialize;
use tp_proto::fault::{Fault, FaultKind};

use crate::output::{Format, Output};

/// Text of `tp help exit-codes`.
pub(crate) const CODES: &str = "\
Exit codes:
  0      done
  1      failed
  2      wrong flag or argument
  3      not connected
  4      already connected, with other options
  5      tp is not installed in the cluster
  69     API server, root daemon or tunnel out of reach
  75     something is starting or overloaded: try again
  77     a permission is missing
  78     the kubeconfig, or something it names, is wrong
  128+N  interrupted by signal N

Errors are on standard error: text, or with --output json or yaml the object
{\"error\": {\"kind\": ..., \"message\": ...}}, where kind is one of failed, usage, not_connected,
already_connected, not_installed, unavailable, temporary_failure, no_permission, config.";

/// Words of other tools' users, each with our command.
const TIPS: [(&[&str], &str); 4] = [
    (
        &["helm", "upgrade"],
        "`tp install` puts the traffic manager into a cluster, and brings it to this version",
    ),
    (&["disconnect", "stop"], "`tp quit` ends the connection"),
    (
        &["ingest", "replace", "wiretap"],
        "`tp intercept` takes all traffic of a port; there is nothing else yet",
    ),
    (&["logs", "loglevel"], "`tp gather-logs` collects the logs"),
];

/// Flags that users of other tools give `intercept`, each with what there is.
const FLAG_TIPS: [(&[&str], &str); 7] = [
    (
        &[
            "--http-header",
            "--http-path-equal",
            "--http-path-prefix",
            "--http-path-regex",
        ],
        "all traffic of a port is intercepted: requests are not told apart yet",
    ),
    (
        &["--mount", "--local-mount-port"],
        "the files of a pod are not mounted: `kubectl cp` copies them",
    ),
    (
        &["--docker-run", "--docker-build", "--docker-debug"],
        "run the container beside `tp intercept`, with its port published on 127.0.0.1",
    ),
    (
        &["--env-file", "--env-json", "--env-syntax"],
        "the environment of a pod is not read yet: `kubectl exec POD -- env` prints it",
    ),
    (
        &["--take-over", "--take-open"],
        "ask who has the port to `tp leave` it; connections under way stay where they are",
    ),
    (
        &["--to-pod", "--proxy-protocol"],
        "there is no such thing yet",
    ),
    (
        &["--plaintext", "--preview-url", "--mechanism", "--use"],
        "`tp intercept WORKLOAD --port LOCAL:PORT` is enough",
    ),
];

/// `tp` was interrupted by a signal; `is_undone` tells whether it could undo its work.
#[derive(Debug, thiserror::Error)]
#[error("interrupted; {}", if *is_undone {
    "nothing is left behind"
} else {
    "the session does not answer, and may go on: see `tp status`"
})]
pub(crate) struct Interrupted {
    pub(crate) signal: i32,
    pub(crate) is_undone: bool,
}

#[derive(Debug, Serialize)]
struct ErrorObject<'a> {
    error: ErrorBody<'a>,
}

#[derive(Debug, Serialize)]
struct ErrorBody<'a> {
    kind: &'static str,
    message: &'a str,
}

/// Prints `error` and chooses the exit code.
pub(crate) fn report(error: &anyhow::Error, output: Output) -> ExitCode {
    if is_broken_pipe(error) {
        return ExitCode::SUCCESS;
    }
    let (kind, code) = match (
        error.downcast_ref::<Fault>(),
        error.downcast_ref::<Interrupted>(),
    ) {
        (Some(fault), _) => (fault.kind, fault.kind.exit_code()),
        (None, Some(interrupted)) => (FaultKind::Failed, of_signal(interrupted.signal)),
        (None, None) => (FaultKind::Failed, FaultKind::Failed.exit_code()),
    };
    print_error(kind, &format!("{error:#}"), output);

    ExitCode::from(code)
}

/// Prints what clap says: help and version on standard output, mistakes as errors.
pub(crate) fn usage(mut error: clap::Error, args: impl Iterator<Item = OsString>) -> ExitCode {
    let format = format_in(args);
    if let Some(tip) = tip(&error) {
        // What only looks alike.
        error.remove(ContextKind::SuggestedArg);
        error.remove(ContextKind::SuggestedSubcommand);
        let tip = ContextValue::StyledStrs(vec![tip.into()]);
        error.insert(ContextKind::Suggested, tip);
    }
    if error.use_stderr() && format != Format::Text {
        let text = error.render().to_string();
        let text = text.trim().trim_start_matches("error: ");
        let message = text.split("\n\nUsage:").next().unwrap_or(text);
        print_error(FaultKind::Usage, message, Output::new(format));
    } else {
        // A closed pipe is no error.
        let _ = error.print();
    }

    ExitCode::from(if error.use_stderr() {
        FaultKind::Usage.exit_code()
    } else {
        0
    })
}

fn tip(error: &clap::Error) -> Option<&'static str> {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        _ => None,
    };
    let of = |tips: &[(&[&str], &'static str)], word: &str| {
        let tip = tips.iter().find(|(words, _)| words.contains(&word));
        tip.map(|(_, tip)| *tip)
    };
    if let Some(word) = text(ContextKind::InvalidSubcommand) {
        return of(&TIPS, word);
    }

    of(&FLAG_TIPS, text(ContextKind::InvalidArg)?)
}

/// The exit code that a shell reports for a process ended by this signal.
pub(crate) fn of_signal(signal: i32) -> u8 {
    u8::try_from(128 + signal).unwrap_or(u8::MAX)
}

fn print_error(kind: FaultKind, message: &str, output: Output) {
    let error = ErrorBody {
        kind: name(kind),
        message,
    };
    // A failure to print cannot be reported.
    let _ = match output.format() {
        Format::Text => writeln!(io::stderr().lock(), "tp: {message}"),
        Format::Json | Format::Yaml => output
            .error(&ErrorObject { error })
            .map_err(io::Error::other),
    };
}

/// The stable name of a kind.
fn name(kind: FaultKind) -> &'static str {
    match kind {
        FaultKind::Failed => "failed",
        FaultKind::Usage => "usage",
        FaultKind::NotConnected => "not_connected",
        FaultKind::AlreadyConnected => "already_connected",
        FaultKind::NotInstalled => "not_installed",
        FaultKind::Unavailable => "unavailable",
        FaultKind::TemporaryFailure => "temporary_failure",
        FaultKind::NoPermission => "no_permission",
        FaultKind::Config => "config",
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    })
}

/// The output format in a command line that clap rejects.
fn format_in(args: impl Iterator<Item = OsString>) -> Format {
    let args: Vec<String> = args
        .map(|arg| arg.to_string_lossy().into_owned())
        .take_while(|arg| arg != "--")
        .collect();
    let separate = args
        .windows(2)
        .find(|pair| pair[0] == "--output" || pair[0] == "-o")
        .map(|pair| pair[1].as_str());
    let joined = args.iter().find_map(|arg| {
        arg.strip_prefix("--output=")
            .or_else(|| arg.strip_prefix("-o=").or_else(|| arg.strip_prefix("-o")))
            .filter(|value| !value.is_empty())
    });

    separate
        .or(joined)
        .and_then(|value| Format::from_str(value, false).ok())
        .unwrap_or(Format::Text)
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use clap::Parser as _;

    use super::*;

    fn format_of(line: &str) -> Format {
        format_in(line.split(' ').map(OsString::from))
    }

    #[test]
    fn the_output_format_is_found_in_a_broken_command_line() {
        assert_eq!(format_of("tp frob --output json"), Format::Json);
        assert_eq!(format_of("tp -o yaml frob"), Format::Yaml);
        assert_eq!(format_of("tp frob --output=json"), Format::Json);
        assert_eq!(format_of("tp frob -ojson"), Format::Json);
        assert_eq!(format_of("tp frob --output nonsense"), Format::Text);
        assert_eq!(format_of("tp connect -- curl -o json"), Format::Text);
    }

    #[test]
    fn every_documented_code_is_the_code_of_a_kind() {
        for line in CODES.lines().skip(2).take(8) {
            let code = line.split_whitespace().next().unwrap().parse().unwrap();

            assert!(FaultKind::from_exit_code(code).is_some(), "{line}");
        }
    }

    #[test]
    fn a_fault_below_a_context_keeps_its_kind() {
        let fault = Fault::new(FaultKind::Config, "no context");
        let error = Err::<(), _>(fault).context("cannot connect").unwrap_err();

        assert_eq!(
            error.downcast_ref::<Fault>().map(|fault| fault.kind),
            Some(FaultKind::Config)
        );
    }

    #[test]
    fn words_of_other_tools_are_answered_with_ours() {
        let of = |line: &str| {
            let error = crate::cli::Cli::try_parse_from(line.split(' ')).unwrap_err();
            tip(&error)
        };

        assert!(of("tp helm install").unwrap().contains("tp install"));
        assert!(of("tp disconnect").unwrap().contains("tp quit"));
        assert!(
            of("tp intercept web --mount=false")
                .unwrap()
                .contains("kubectl cp")
        );
        assert!(
            of("tp intercept web --http-header a=b")
                .unwrap()
                .contains("all traffic")
        );
        assert_eq!(of("tp frob"), None);
        assert_eq!(of("tp connect --frob"), None);
    }

    #[test]
    fn a_broken_pipe_is_found_below_other_errors() {
        let error = io::Error::from(io::ErrorKind::BrokenPipe);
        let error = Err::<(), _>(error).context("cannot print").unwrap_err();

        assert!(is_broken_pipe(&error));
    }
}
