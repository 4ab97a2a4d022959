//! An intercept whose command fails, is interrupted or loses it, with a staged session.

use std::{
    pin::Pin,
    sync::{Arc, Mutex},
};

use clap::Parser as _;
use tokio::{sync::Notify, task::JoinHandle};
use tonic::{
    Request, Response, Status,
    codegen::tokio_stream::{self, Stream},
    transport::{
        Endpoint,
        server::{Server, TcpIncoming},
    },
};
use tp_process::sync::lock;
use tp_proto::{
    fault::Fault,
    local::{
        self, ConnectEvent, EnvironmentRequest, EnvironmentResponse, InterceptEvent,
        InterceptRequest, KeepFilesRequest, KeepFilesResponse, LeaveResponse,
        intercept_event::Event,
        session_server::{self, SessionServer},
    },
};

use super::{super::*, *};
use crate::cli::{Cli, Command};

/// A session that makes one intercept, whose events end at once.
#[derive(Default)]
struct StagedSession {
    left: Mutex<Vec<String>>,
    /// Why the environment cannot be read; `None` for one that is never read.
    fault: Option<FaultKind>,
    asked: Notify,
}

type Events<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl session_server::Session for StagedSession {
    type ConnectStream = Events<ConnectEvent>;

    type InterceptStream = Events<InterceptEvent>;

    async fn intercept(
        &self,
        _: Request<InterceptRequest>,
    ) -> Result<Response<Self::InterceptStream>, Status> {
        let intercept = Intercept {
            name: "web".into(),
            notices: vec!["nothing listens".into()],
            ..Intercept::default()
        };
        let news = Event::Progress("bob has the traffic".into());
        let events = [Event::Intercepted(intercept), news]
            .map(|event| Ok(InterceptEvent { event: Some(event) }));

        Ok(Response::new(Box::pin(tokio_stream::iter(events))))
    }

    async fn leave(
        &self,
        request: Request<LeaveRequest>,
    ) -> Result<Response<LeaveResponse>, Status> {
        lock(&self.left).push(request.into_inner().name);

        Ok(Response::new(LeaveResponse::default()))
    }

    async fn environment(
        &self,
        _: Request<EnvironmentRequest>,
    ) -> Result<Response<EnvironmentResponse>, Status> {
        self.asked.notify_one();
        match self.fault {
            Some(kind) => Err(Fault::new(kind, "not read").into()),
            None => pending().await,
        }
    }

    async fn keep_files(
        &self,
        _: Request<KeepFilesRequest>,
    ) -> Result<Response<KeepFilesResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn connect(
        &self,
        _: Request<local::ConnectRequest>,
    ) -> Result<Response<Self::ConnectStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn quit(
        &self,
        _: Request<local::QuitRequest>,
    ) -> Result<Response<local::QuitResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn status(
        &self,
        _: Request<local::StatusRequest>,
    ) -> Result<Response<local::Status>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn list(
        &self,
        _: Request<local::ListRequest>,
    ) -> Result<Response<local::ListResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn version(
        &self,
        _: Request<local::VersionRequest>,
    ) -> Result<Response<local::VersionResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn check(
        &self,
        _: Request<local::CheckRequest>,
    ) -> Result<Response<local::CheckResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn namespaces(
        &self,
        _: Request<local::NamespacesRequest>,
    ) -> Result<Response<local::NamespacesResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}

/// A command that asks a staged session.
struct Lab {
    staged: Arc<StagedSession>,
    args: InterceptArgs,
    progress: Progress,
    standing: Option<Standing>,
    _serving: JoinHandle<()>,
    session: Option<Session>,
}

impl Lab {
    fn new(line: &str, fault: Option<FaultKind>) -> Self {
        let args = match Cli::try_parse_from(line.split(' ')).unwrap().command {
            Command::Intercept(args) => *args,
            command => panic!("{command:?}"),
        };
        let staged = Arc::new(StagedSession {
            fault,
            ..StagedSession::default()
        });
        let incoming = TcpIncoming::bind(([127, 0, 0, 1], 0).into()).unwrap();
        let address = incoming.local_addr().unwrap();
        let server = Server::builder().add_service(SessionServer::from_arc(Arc::clone(&staged)));
        let serving = tokio::spawn(async move {
            server.serve_with_incoming(incoming).await.unwrap();
        });
        let channel = Endpoint::from_shared(format!("http://{address}")).unwrap();

        Self {
            staged,
            args,
            progress: Progress::new(Output::new(Format::Json)),
            standing: None,
            _serving: serving,
            session: Some(Session::over(channel.connect_lazy())),
        }
    }

    async fn make(&mut self) -> anyhow::Result<Made> {
        let files = WantedFiles::of(&self.args)?;
        let asked = (request(&self.args)?, &self.args, &files);
        let session = self.session.take().unwrap();

        make(session, asked, &mut self.progress, &mut self.standing).await
    }

    async fn undo(&mut self, error: anyhow::Error) -> anyhow::Error {
        let standing = self.standing.take();

        undo(standing, Attempt::default(), error, &mut self.progress).await
    }

    fn left(&self) -> Vec<String> {
        lock(&self.staged.left).clone()
    }
}

#[tokio::test]
async fn an_interrupted_command_ends_its_intercept_before_it_says_so() {
    let mut lab = Lab::new("tp intercept web -- true", None);
    let staged = Arc::clone(&lab.staged);

    let error = tokio::select! {
        () = staged.asked.notified() => Interrupted { signal: 2, is_undone: false }.into(),
        made = lab.make() => made.err().unwrap(),
    };
    let error = lab.undo(error).await;

    assert_eq!(lab.left(), ["web"]);
    assert_eq!(error.to_string(), "interrupted; nothing is left behind");
}

#[tokio::test]
async fn an_environment_that_is_not_read_ends_the_intercept_unless_there_is_none_for_the_user() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("web.env").display().to_string();
    let with_file = format!("tp intercept web --env-file {file}");
    for (line, kind) in [
        ("tp intercept web -- true", FaultKind::TemporaryFailure),
        ("tp intercept web -- true", FaultKind::Unavailable),
        (&*with_file, FaultKind::Usage),
        (&*with_file, FaultKind::NoPermission),
        (&*format!("{with_file} -- true"), FaultKind::NotInstalled),
    ] {
        let mut lab = Lab::new(line, Some(kind));

        let error = lab.make().await.err().unwrap();
        let error = lab.undo(error).await;

        assert_eq!(lab.left(), ["web"], "{line}");
        let fault = error.downcast_ref::<Fault>().unwrap();
        assert_eq!(fault.kind, kind, "{line}");
        assert!(fault.message.ends_with(": not read"), "{fault}");
    }

    for kind in [
        FaultKind::NoPermission,
        FaultKind::NotInstalled,
        FaultKind::Usage,
    ] {
        let mut lab = Lab::new("tp intercept web -- true", Some(kind));

        let made = lab.make().await.unwrap();

        let told = [
            "nothing listens",
            "the command runs without the environment of the workload: not read",
        ];
        assert_eq!(made.intercept.notices, told);
        assert!(lab.left().is_empty());
    }
}

#[tokio::test]
async fn a_command_is_told_that_its_intercept_has_ended() {
    let kind = FaultKind::NoPermission;
    let mut lab = Lab::new("tp intercept web -- true", Some(kind));
    let mut made = lab.make().await.unwrap();
    let (said_tx, mut said) = tokio::sync::mpsc::unbounded_channel();

    let mut has_ended = false;
    let passing = pass_on(&mut made.events, &mut has_ended, |line| {
        said_tx.send(line.to_owned()).unwrap()
    });
    let listening = async { [said.recv().await.unwrap(), said.recv().await.unwrap()] };
    let said = tokio::select! {
        never = timeout(Duration::from_secs(20), passing) => panic!("{never:?}"),
        said = listening => said,
    };

    let expected = [
        "note: bob has the traffic",
        "note: the intercept has ended; the command goes on without it",
    ];
    assert_eq!(said, expected);
    assert!(has_ended, "there is nothing left to leave");
}
