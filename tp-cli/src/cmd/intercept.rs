//! `tp intercept`.

use std::{convert::Infallible, future::pending, process::ExitCode, time::Duration};

use anyhow::Context as _;
use serde::Serialize;
use tokio::time::timeout;
use tonic::Streaming;
use tp_core::intercept::workload::WorkloadName;
use tp_proto::{
    fault::{Fault, FaultKind},
    local::{Intercept, InterceptEvent, InterceptRequest, LeaveRequest, intercept_event::Event},
};

use super::{
    connect::{self, Attempt, CommandCgroup, Connected},
    environment::{self, HandlerEnvironment, WantedFiles},
};
use crate::{
    cli::{ConnectArgs, InterceptArgs, Probes, Transport, WhenDown},
    client::{self, Session},
    exit::Interrupted,
    output::{Format, Output},
    progress::{Progress, note},
    signals::Signals,
};

#[cfg(test)]
mod documented;
mod earlier;
mod standing;
mod text;

use standing::{Standing, undo};
pub(super) use text::{table, workload};

/// Between two events: the session bounds its own waits.
const EVENT_TIMEOUT: Duration = Duration::from_secs(60);

pub(crate) async fn run(args: InterceptArgs, output: Output) -> anyhow::Result<ExitCode> {
    let request = request(&args)?;
    let files = WantedFiles::of(&args)?;
    let connect_args = connect_args(&args);
    let cgroup = CommandCgroup::of(&args.command);
    let mut signals = Signals::catch().context("cannot catch signals")?;
    let mut progress = Progress::on_terminal(output);
    let mut attempt = Attempt::default();
    let mut standing = None;

    let made = tokio::select! {
        signal = signals.next() => Err(Interrupted { signal, is_undone: false }.into()),
        made = async {
            let mut connected = None;
            if args.names_a_cluster() || !client::is_connected().await {
                let cgroup = cgroup.as_ref();
                let connecting =
                    connect::connect(&connect_args, cgroup, output, &mut progress, &mut attempt);
                connected = Some(connecting.await?).filter(|it| !it.already);
                progress.clear();
                connected.iter().for_each(|it| say_connected(it, output));
            }
            progress.step("asking the session");
            let session = client::require().await?;
            let asked = (request, &args, &files);
            let made = make(session, asked, &mut progress, &mut standing).await?;
            Ok((made, connected))
        } => made,
    };
    let (mut made, connected) = match made {
        Ok(made) => made,
        Err(error) => return Err(undo(standing, attempt, error, &mut progress).await),
    };
    progress.clear();
    for notice in &made.intercept.notices {
        note(&format!("note: {notice}"));
    }

    if args.command.is_empty() {
        let printed = Printed {
            intercept: &made.intercept,
            connected: connected.as_ref(),
        };
        output.print(&printed, &text::made(&made.intercept))?;
        return Ok(ExitCode::SUCCESS);
    }
    if output.format() == Format::Text {
        note(text::made(&made.intercept).trim_end());
    }
    let mut has_ended = false;
    let code = tokio::select! {
        code = run_command(&args, &made.handler, cgroup.as_ref(), &mut signals) => code,
        never = pass_on(&mut made.events, &mut has_ended, note) => match never {},
    };
    // One that has ended already may have a successor of its name, which is not ours to end.
    if !has_ended {
        let name = made.intercept.name.clone();
        // Waits for its end; the end of the stream would end it as well.
        if let Err(fault) = client::ask(made.session.leave(LeaveRequest { name })).await {
            note(&format!("tp: {fault}"));
        }
    }
    drop(made);
    attempt.give_up().await;

    Ok(ExitCode::from(code?))
}

/// What programs are told.
#[derive(Serialize)]
struct Printed<'a> {
    #[serde(flatten)]
    intercept: &'a Intercept,
    /// The connection that this command has made, as `tp connect` prints it.
    connected: Option<&'a Connected>,
}

async fn run_command(
    args: &InterceptArgs,
    handler: &HandlerEnvironment,
    cgroup: Option<&CommandCgroup>,
    signals: &mut Signals,
) -> anyhow::Result<u8> {
    connect::enter(cgroup)?;

    connect::run_changed(&args.command, &handler.changes, signals).await
}

/// Says what the session says of the intercept, and when that is no more.
async fn pass_on(
    events: &mut Streaming<InterceptEvent>,
    has_ended: &mut bool,
    mut say: impl FnMut(&str),
) -> Infallible {
    while let Ok(Some(event)) = events.message().await {
        if let Some(Event::Progress(news)) = event.event {
            say(&format!("note: {news}"));
        }
    }
    *has_ended = true;
    say("note: the intercept has ended; the command goes on without it");

    pending().await
}

/// An intercept of this command.
struct Made {
    intercept: Intercept,
    handler: HandlerEnvironment,
    session: Session,
    /// Open while this command wants the intercept.
    events: Streaming<InterceptEvent>,
}

/// Makes the intercept and what goes with it; from when on it is `standing`, the caller ends it.
async fn make(
    session: Session,
    (request, args, files): (InterceptRequest, &InterceptArgs, &WantedFiles),
    progress: &mut Progress,
    standing: &mut Option<Standing>,
) -> anyhow::Result<Made> {
    let mut made = intercept(session, request, progress).await?;
    *standing = Some(Standing::of(&made.session, &made.intercept));
    progress.step("reading the environment of the workload");
    made.handler = environment::prepare(args, files, &made.intercept, &mut made.session).await?;
    made.intercept.notices.append(&mut made.handler.notices);

    Ok(made)
}

async fn intercept(
    mut session: Session,
    request: InterceptRequest,
    progress: &mut Progress,
) -> anyhow::Result<Made> {
    let mut events = client::ask(session.intercept(request)).await?;
    loop {
        let event = timeout(EVENT_TIMEOUT, events.message()).await;
        let event = event.map_err(|_| client::no_answer(EVENT_TIMEOUT))?;
        match event.map_err(Fault::from)?.and_then(|event| event.event) {
            Some(Event::Progress(phrase)) => progress.step(&phrase),
            Some(Event::Intercepted(intercept)) => {
                return Ok(Made {
                    intercept,
                    handler: HandlerEnvironment::default(),
                    session,
                    events,
                });
            }
            None => return Err(broken().into()),
        }
    }
}

fn broken() -> Fault {
    Fault::new(
        FaultKind::Failed,
        format!(
            "the session ended while intercepting: its log is in {}",
            tp_ipc::state_dir().display()
        ),
    )
}

/// Says what `tp connect` says.
fn say_connected(connected: &Connected, output: Output) {
    for notice in &connected.notices {
        note(&format!("note: {notice}"));
    }
    if output.format() == Format::Text {
        note(&connect::summary(connected));
    }
}

fn connect_args(args: &InterceptArgs) -> ConnectArgs {
    ConnectArgs {
        cluster: args.cluster.clone(),
        namespace: args.namespace.clone(),
        manager: args.manager.clone(),
        mapped_namespaces: Vec::new(),
        also_proxy: Vec::new(),
        never_proxy: Vec::new(),
        transport: Transport::Auto,
        install: false,
        image: None,
        command: args.command.clone(),
    }
}

fn request(args: &InterceptArgs) -> Result<InterceptRequest, Fault> {
    let (workload, name) = args.workload_and_name();
    // A mistake of the command line; the session parses it once more.
    workload
        .parse::<WorkloadName>()
        .map_err(|error| Fault::new(FaultKind::Usage, error.to_string()))?;
    let text = |value: &Option<String>| value.clone().unwrap_or_default();

    Ok(InterceptRequest {
        workload,
        namespace: text(&args.namespace),
        ports: args.ports.clone(),
        name,
        service: text(&args.service),
        container: text(&args.container),
        address: text(&args.address),
        replica: args.replica.clone(),
        probes: match args.probes {
            Probes::Container => "container",
            Probes::Local => "local",
        }
        .to_owned(),
        when_down: match args.when_down {
            WhenDown::Refuse => "refuse",
            WhenDown::Container => "container",
        }
        .to_owned(),
        for_command: !args.command.is_empty(),
        take_over: args.take_over,
        proxy_protocol: args.proxy_protocol,
        take_open: args.take_open,
        no_local_shortcut: args.no_local_shortcut,
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};

    fn parsed(line: &str) -> InterceptArgs {
        match Cli::try_parse_from(line.split(' ')).unwrap().command {
            Command::Intercept(args) => *args,
            command => panic!("{command:?}"),
        }
    }

    fn request_of(line: &str) -> InterceptRequest {
        request(&parsed(line)).unwrap()
    }

    #[test]
    fn flags_reach_the_session() {
        let request = request_of(
            "tp intercept deploy/web -p 8080:http --port 9090 --name mine -n shop --service web \
             --container app --address ::1 --replica web-0 --probes local --when-down container \
             --take-over --take-open --proxy-protocol --no-local-shortcut",
        );

        assert_eq!(request.workload, "deploy/web");
        assert_eq!(request.ports, ["8080:http", "9090"]);
        assert_eq!(request.name, "mine");
        assert_eq!(request.namespace, "shop");
        assert_eq!(request.service, "web");
        assert_eq!(request.container, "app");
        assert_eq!(request.address, "::1");
        assert_eq!(request.replica, "web-0");
        assert_eq!(request.probes, "local");
        assert_eq!(request.when_down, "container");
        assert!(request.take_over && request.take_open);
        assert!(request.proxy_protocol && request.no_local_shortcut);
        assert!(!request.for_command);
        assert!(request_of("tp intercept web -- true").for_command);
    }

    #[test]
    fn with_a_workload_the_first_argument_is_the_name() {
        let request = request_of("tp intercept mine --workload web");
        assert_eq!(
            (request.workload.as_str(), request.name.as_str()),
            ("web", "mine")
        );

        let request = request_of("tp intercept -w web");
        assert_eq!(
            (request.workload.as_str(), request.name.as_str()),
            ("web", "")
        );
    }

    #[test]
    fn mistakes_are_told_before_anything_is_asked() {
        let fault = request(&parsed("tp intercept cronjob/web")).unwrap_err();
        assert_eq!(fault.kind, FaultKind::Usage);
        assert!(fault.message.contains("use deployment"), "{fault}");

        let error = Cli::try_parse_from(["tp", "intercept", "web", "--port", "http"]).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("--port 8080:http"), "{error}");
        assert!(Cli::try_parse_from(["tp", "intercept"]).is_err());
    }

    #[test]
    fn a_connection_is_made_as_tp_connect_makes_it() {
        let args = connect_args(&parsed("tp intercept web --context c -n shop -- true"));

        assert_eq!(args.cluster.context.as_deref(), Some("c"));
        assert_eq!(args.namespace.as_deref(), Some("shop"));
        assert_eq!(args.command, ["true"]);
        assert!(parsed("tp intercept web --context c").names_a_cluster());
        assert!(!parsed("tp intercept web -n shop").names_a_cluster());
    }
}
