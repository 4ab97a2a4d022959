//! The environment of an intercepted workload: for its handler, and in files.

use std::{
    ffi::{OsStr, OsString},
    fs,
    os::unix::ffi::OsStrExt as _,
    path::Path,
    time::{Duration, Instant},
};

use tokio::time::sleep;
use tp_core::environment::{
    ProcessEnvironment,
    filter::Reason,
    syntax::{Syntax, Written},
};
use tp_proto::{
    fault::{Fault, FaultKind},
    local::{EnvironmentRequest, EnvironmentResponse, Intercept, KeepFilesRequest, NewFile},
};

use crate::{
    cli::InterceptArgs,
    client::{self, Session},
};

/// The path of the handler's file, for `docker run --env-file`.
const FILE_VARIABLE: &str = "TP_ENV_FILE";
/// The session bounds its own wait.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
const RETRY_TIMEOUT: Duration = Duration::from_secs(10);
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Variables to set, and those without a value to remove.
pub(super) type Changes = Vec<(OsString, Option<OsString>)>;

/// What a handler has of the workload.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct HandlerEnvironment {
    pub(super) changes: Changes,
    /// What the user should know, as sentences.
    pub(super) notices: Vec<String>,
}

/// The files that the user wants.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct WantedFiles(Vec<(String, Syntax)>);

impl WantedFiles {
    /// Checks what can be checked before anything is made.
    pub(super) fn of(args: &InterceptArgs) -> Result<Self, Fault> {
        let file = args.env_file.as_deref().map(|path| (path, args.env_syntax));
        let json = args.env_json.as_deref().map(|path| (path, Syntax::Json));
        let mut wanted: Vec<(String, Syntax)> = Vec::new();
        for (path, syntax) in file.into_iter().chain(json) {
            let path = absolute(path)?;
            if wanted.iter().any(|(other, _)| *other == path) {
                let message = format!("--env-file and --env-json both name {path}");
                return Err(Fault::new(FaultKind::Usage, message));
            }
            wanted.push((path, syntax));
        }
        if args.command.is_empty()
            && wanted.is_empty()
            && let Some(flag) = args.environment.any()
        {
            let message = format!(
                "{flag} has no effect without an environment: add --env-file FILE, --env-json FILE, or \
                 `--` and a command"
            );
            return Err(Fault::new(FaultKind::Usage, message));
        }

        Ok(Self(wanted))
    }
}

/// The session has another working directory.
fn absolute(path: &Path) -> Result<String, Fault> {
    let usage = |why: &str| {
        let message = format!("cannot write the environment to {}: {why}", path.display());
        Fault::new(FaultKind::Usage, message)
    };
    let absolute = std::path::absolute(path).map_err(|error| usage(&error.to_string()))?;
    if fs::symlink_metadata(&absolute).is_ok() {
        return Err(usage(
            "there is a file already, and tp would remove it with the intercept: name another, or \
             remove it",
        ));
    }
    if !absolute.parent().is_some_and(Path::is_dir) {
        return Err(usage("its directory does not exist"));
    }

    absolute
        .into_os_string()
        .into_string()
        .map_err(|_| usage("the path is not UTF-8"))
}

/// Awaits the session's answer.
pub(super) async fn read(
    session: &mut Session,
    request: EnvironmentRequest,
) -> Result<EnvironmentResponse, Fault> {
    client::ask_within(ANSWER_TIMEOUT, session.environment(request)).await
}

/// [`read`], again for a while where that may help: an agent may have just been replaced.
async fn read_soon(
    session: &mut Session,
    request: EnvironmentRequest,
) -> Result<EnvironmentResponse, Fault> {
    let end = Instant::now() + RETRY_TIMEOUT;
    loop {
        match read(session, request.clone()).await {
            Err(fault) if fault.kind == FaultKind::TemporaryFailure && Instant::now() < end => {
                sleep(RETRY_INTERVAL).await;
            }
            read => return read,
        }
    }
}

/// Reads the environment, if somebody wants it, and has the session keep its files. A command runs without
/// it where its user may not read it, or where there is none: nothing runs in the workload's pods, or it
/// cannot be read at all.
pub(super) async fn prepare(
    args: &InterceptArgs,
    files: &WantedFiles,
    intercept: &Intercept,
    session: &mut Session,
) -> Result<HandlerEnvironment, Fault> {
    let has_command = !args.command.is_empty();
    if !has_command && files.0.is_empty() {
        return Ok(HandlerEnvironment::default());
    }
    let filter = args.environment.filter();
    let environment = match read_soon(session, request(args, intercept)).await {
        Ok(environment) => environment,
        Err(fault) => {
            // The workload and its container are there, or there would be no intercept.
            let is_absent = matches!(
                fault.kind,
                FaultKind::NoPermission | FaultKind::NotInstalled | FaultKind::Usage
            );
            if !is_absent || !files.0.is_empty() {
                let message = format!("there is no environment of the workload: {fault}");
                return Err(Fault::new(fault.kind, message));
            }
            let set = filter.apply(&ProcessEnvironment::default()).environment;
            let what = "the command runs without the environment of the workload";
            return Ok(HandlerEnvironment {
                changes: changes(&set, None),
                notices: vec![format!("{what}: {fault}")],
            });
        }
    };
    let read = ProcessEnvironment::from_environ(&environment.environ);
    let filtered = filter.apply(&read);
    let mut notices = environment.notices;
    notices.extend(left_out(&filtered.left_out, |it| it != Reason::Workstation));

    let mut wanted = files.0.clone();
    let is_docker = |(_, syntax): &(String, Syntax)| *syntax == Syntax::Docker;
    let of_handler = wanted.iter().position(is_docker);
    let of_handler = has_command.then(|| {
        of_handler.unwrap_or_else(|| {
            wanted.push((String::new(), Syntax::Docker));
            wanted.len() - 1
        })
    });
    let written = wanted.iter();
    let written = written.map(|(_, syntax)| syntax.write(&filtered.environment));
    let written: Vec<Written> = written.collect();
    for ((path, _), written) in wanted.iter().zip(&written) {
        let file = match path.as_str() {
            "" => format!("the file {FILE_VARIABLE}"),
            path => path.to_owned(),
        };
        let lacks = written.not_held.iter();
        notices.extend(lacks.map(|it| format!("{file} lacks a variable: {it}")));
        if !path.is_empty() {
            notices.push(format!(
                "the environment is in {file} until the intercept ends"
            ));
        }
    }
    let paths = keep(session, intercept, &wanted, written).await?;
    let of_handler = of_handler.and_then(|at| paths.get(at));

    Ok(HandlerEnvironment {
        changes: changes(&filtered.environment, of_handler),
        notices,
    })
}

fn request(args: &InterceptArgs, intercept: &Intercept) -> EnvironmentRequest {
    let of_port = intercept.ports.first().map(|port| port.container.clone());
    let pod = args.replica.clone();

    EnvironmentRequest {
        workload: args.workload_and_name().0,
        namespace: intercept.namespace.clone(),
        container: args.container.clone().unwrap_or_default(),
        otherwise: of_port.unwrap_or_default(),
        pod: Some(pod).filter(|pod| pod != "all").unwrap_or_default(),
    }
}

async fn keep(
    session: &mut Session,
    intercept: &Intercept,
    wanted: &[(String, Syntax)],
    written: Vec<Written>,
) -> Result<Vec<String>, Fault> {
    let files = wanted.iter().zip(written);
    let files = files.map(|((path, _), written)| NewFile {
        path: path.clone(),
        content: written.text,
    });
    let request = KeepFilesRequest {
        intercept: intercept.name.clone(),
        files: files.collect(),
    };
    let kept = client::ask(session.keep_files(request)).await?;

    Ok(kept.paths)
}

/// The file's path is not that of another intercept, in whose handler this command runs.
fn changes(environment: &ProcessEnvironment, file: Option<&String>) -> Changes {
    let text = |bytes: &[u8]| OsStr::from_bytes(bytes).to_owned();
    let variables = environment.iter();
    let variables = variables.map(|it| (text(&it.name), Some(text(&it.value))));

    variables
        .chain([(FILE_VARIABLE.into(), file.map(OsString::from))])
        .collect()
}

/// A sentence that names what is left out for such reasons; `None` if nothing is.
pub(super) fn left_out(
    all: &[(String, Reason)],
    is_told: impl Fn(Reason) -> bool,
) -> Option<String> {
    let told = all.iter().filter(|(_, reason)| is_told(*reason));
    let names: Vec<&str> = told.map(|(name, _)| name.as_str()).collect();
    let names = (!names.is_empty()).then(|| names.join(", "))?;

    Some(format!(
        "left out: {names}; --env-include NAME takes one over"
    ))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};

    fn parsed(words: &[&str]) -> InterceptArgs {
        let words = ["tp", "intercept"].iter().chain(words);
        match Cli::try_parse_from(words).unwrap().command {
            Command::Intercept(args) => *args,
            command => panic!("{command:?}"),
        }
    }

    #[test]
    fn files_are_checked_before_anything_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        fs::write(path("mine"), "").unwrap();
        let (new, mine, lost) = (path("new.env"), path("mine"), path("absent/a"));
        let refused = |words: &[&str]| WantedFiles::of(&parsed(words)).unwrap_err();

        let wanted = WantedFiles::of(&parsed(&["web", "--env-file", &new]));
        assert_eq!(wanted.unwrap().0, [(new.clone(), Syntax::Docker)]);
        let fault = refused(&["web", "--env-file", &mine]);
        assert_eq!(fault.kind, FaultKind::Usage);
        assert!(fault.message.contains("there is a file already"), "{fault}");
        let fault = refused(&["web", "--env-json", &lost]);
        assert!(
            fault.message.contains("directory does not exist"),
            "{fault}"
        );
        let fault = refused(&["web", "--env-json", &new, "--env-file", &new]);
        assert!(fault.message.contains("both name"), "{fault}");
        let relative = WantedFiles::of(&parsed(&["web", "--env-json", "no-such.json"]));
        let own = std::env::current_dir().unwrap().join("no-such.json");
        assert_eq!(relative.unwrap().0[0].0, own.display().to_string());
    }

    #[test]
    fn the_container_is_that_of_the_port_and_the_pod_the_one_that_is_intercepted() {
        let intercept = Intercept {
            namespace: "shop".into(),
            ports: vec![tp_proto::local::InterceptPort {
                container: "app".into(),
                ..Default::default()
            }],
            ..Intercept::default()
        };

        let asked = request(&parsed(&["deploy/web"]), &intercept);
        assert_eq!(
            (&*asked.workload, &*asked.namespace),
            ("deploy/web", "shop")
        );
        assert_eq!((&*asked.container, &*asked.otherwise), ("", "app"));
        assert_eq!(asked.pod, "");
        let words = ["web", "--container", "side", "--replica", "web-0"];
        let asked = request(&parsed(&words), &intercept);
        assert_eq!((&*asked.container, &*asked.pod), ("side", "web-0"));
    }

    #[test]
    fn a_handler_has_the_variables_and_no_file_of_another_intercept() {
        let environment = ProcessEnvironment::from_environ(b"A=1\0B=\xff\0TP_ENV_FILE=/pod\0");

        let with_file = changes(&environment, Some(&"/proc/7/fd/9".to_owned()));
        let last = with_file.last().unwrap();
        assert_eq!(last, &("TP_ENV_FILE".into(), Some("/proc/7/fd/9".into())));
        assert_eq!(with_file[0], ("A".into(), Some("1".into())));
        let bytes = OsStr::from_bytes(b"\xff").to_owned();
        assert_eq!(with_file[1], ("B".into(), Some(bytes)));
        let without = changes(&environment, None);
        assert_eq!(without.last(), Some(&("TP_ENV_FILE".into(), None)));
    }

    #[test]
    fn flags_without_effect_are_refused_with_what_to_add() {
        for [flag, value] in [
            ["--env-include", "PATH"],
            ["--env-exclude", "A"],
            ["--env-set", "A=1"],
        ] {
            let of = |more: &[&str]| {
                let words = [&["web", flag, value], more].concat();
                WantedFiles::of(&parsed(&words))
            };
            let fault = of(&[]).unwrap_err();
            assert_eq!(fault.kind, FaultKind::Usage);
            assert!(fault.message.starts_with(flag), "{fault}");
            assert!(fault.message.contains("--env-file FILE"), "{fault}");
            assert!(of(&["--", "true"]).is_ok() && of(&["--env-json", "no.json"]).is_ok());
        }
        let syntax = ["tp", "intercept", "web", "--env-syntax", "sh"];
        let error = Cli::try_parse_from(syntax).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("--env-file <FILE>"), "{error}");
    }

    #[test]
    fn flags_of_environments_are_read() {
        let args = parsed(&[
            "web",
            "--env-file",
            "web.env",
            "--env-include",
            "PATH,LD_*",
            "--env-exclude",
            "A",
            "--env-set",
            "B=x=y,z",
            "--env-syntax",
            "sh:export",
        ]);
        let environment = ProcessEnvironment::from_environ(b"A=1\0PATH=/p\0LD_X=1\0B=2\0");

        let filtered = args.environment.filter().apply(&environment);

        assert_eq!(
            filtered.environment.to_environ(),
            b"PATH=/p\0LD_X=1\0B=x=y,z\0"
        );
        assert_eq!(args.env_syntax.to_string(), "sh:export");
        for wrong in [
            ["--env-syntax", "fish"],
            ["--env-set", "A"],
            ["--env-include", "*"],
        ] {
            let words = ["tp", "intercept", "web"].iter().chain(&wrong);
            assert_eq!(Cli::try_parse_from(words).unwrap_err().exit_code(), 2);
        }
    }

    #[test]
    fn what_is_left_out_is_named_in_one_line() {
        let all = [
            ("PATH".to_owned(), Reason::Workstation),
            ("LD_PRELOAD".to_owned(), Reason::Loader),
        ];

        let told = left_out(&all, |_| true).unwrap();
        assert_eq!(
            told,
            "left out: PATH, LD_PRELOAD; --env-include NAME takes one over"
        );
        assert_eq!(left_out(&[], |_| true), None);
        assert_eq!(left_out(&all[..1], |it| it != Reason::Workstation), None);
    }
}
