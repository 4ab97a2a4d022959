//! What one `tp connect` begins, takes part in, and gives back.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tonic::Streaming;
use tp_core::backoff::Backoff;
use tp_proto::{
    fault::{Fault, FaultKind, is_said},
    local::{ConnectEvent, ConnectRequest, Connected, connect_event::Event},
};

use super::super::quit;
use crate::{
    client::{self, Session},
    progress::Progress,
    spawn::{self, Started},
};

/// Longest wait for another `tp` that starts the programs: its sudo may ask for a password.
const TURN: Duration = Duration::from_secs(60);
/// How long sessions are met that exit as soon as they are asked, before that is an error.
const AGAIN: Duration = Duration::from_secs(30);
/// A session that lived this long had something to do, for others.
const SERVED: Duration = Duration::from_secs(2);
/// Before another session is looked for: each look may start programs.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// This command's part in a connection. What others have begun, or take part in, is theirs.
#[derive(Debug, Default)]
pub(super) struct Attempt {
    started: Started,
    /// Open for as long as this command wants the connection: the session ends with its last user.
    session: Option<Session>,
    /// The root daemon ends with its last session.
    root_daemon_ends: bool,
}

impl Attempt {
    /// Starts what is missing and connects, alone or with others that ask for the same.
    pub(super) async fn connect(
        &mut self,
        request: &ConnectRequest,
        progress: &mut Progress,
    ) -> anyhow::Result<Connected> {
        let mut end = Instant::now() + AGAIN;
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        loop {
            let asked = Instant::now();
            if let Some((first, events)) = self.ask(request, progress).await?
                && let Some(connected) = follow(first, events, progress).await?
            {
                return Ok(connected);
            }
            if asked.elapsed() > SERVED {
                end = Instant::now() + AGAIN;
                backoff.reset();
            }
            if Instant::now() >= end {
                let message = "sessions end as fast as they are started: see their log in";
                let message = format!("{message} {}", tp_ipc::state_dir().display());
                return Err(Fault::new(FaultKind::TemporaryFailure, message).into());
            }
            sleep(backoff.pause(0.0)).await;
        }
    }

    /// Asks the session, which is started if it is missing; nothing if it is about to exit.
    ///
    /// One `tp` at a time, until the session has its own connection to the root daemon or has one
    /// connection for all.
    async fn ask(
        &mut self,
        request: &ConnectRequest,
        progress: &mut Progress,
    ) -> anyhow::Result<Option<(Event, Streaming<ConnectEvent>)>> {
        self.session = None;
        let _turn = tp_ipc::may_start(TURN)
            .await
            .map_err(|error| client::fault(&error))?
            .ok_or_else(|| {
                let message = "another `tp connect` is still starting the root daemon and the \
                               session: wait for it, or end it";
                Fault::new(FaultKind::TemporaryFailure, message)
            })?;
        let running = spawn::root_daemon(progress, &mut self.started).await?;
        self.root_daemon_ends = running.ends_with_last_session;
        let session = match client::find().await? {
            Some(session) => session,
            None => spawn::session(progress, &mut self.started).await?,
        };
        let session = self.session.insert(session);

        let first = timeout(client::ANSWER, async {
            let mut events = match session.connect(request.clone()).await {
                Ok(response) => response.into_inner(),
                Err(status) if is_said(&status) => return Err(status.into()),
                Err(_) => return Ok(None),
            };
            match events.message().await {
                Ok(Some(ConnectEvent { event: Some(event) })) => Ok(Some((event, events))),
                Err(status) if is_said(&status) => Err(status.into()),
                Ok(_) | Err(_) => Ok(None),
            }
        });
        let first: Result<_, Fault> = first
            .await
            .unwrap_or_else(|_| Err(client::no_answer(client::ANSWER)));

        Ok(first?.filter(|(event, _)| !matches!(event, Event::Ending(_))))
    }

    /// Ends this command's part, and waits for the end of what ends with it. False if the session
    /// does not answer.
    pub(super) async fn give_up(mut self) -> bool {
        self.started.end().await;
        let Some(session) = self.session.take() else {
            return true;
        };
        match client::leave(session).await {
            Ok(response) => {
                if !response.goes_on && (self.root_daemon_ends || response.root_daemon_ends) {
                    let _ = quit::root_daemon_ended(false).await;
                }
                true
            }
            // What was asked for has failed already, or its end is seen to by the kernel.
            Err(fault) => fault.kind != FaultKind::Unavailable || !tp_ipc::socket_path().exists(),
        }
    }
}

/// The session bounds each of its steps, so that the stream ends by itself. Nothing if the session
/// is to be asked again.
async fn follow(
    first: Event,
    mut events: Streaming<ConnectEvent>,
    progress: &mut Progress,
) -> Result<Option<Connected>, Fault> {
    let mut next = Some(first);
    loop {
        match next {
            Some(Event::Progress(phrase)) => progress.step(&phrase),
            Some(Event::Connected(connected)) => return Ok(Some(connected)),
            Some(Event::Ending(_)) => return Ok(None),
            None => {}
        }
        next = match events.message().await {
            Ok(Some(event)) => event.event,
            Err(status) if is_said(&status) => return Err(status.into()),
            Ok(None) | Err(_) => return Err(broken()),
        };
    }
}

fn broken() -> Fault {
    Fault::new(
        FaultKind::Failed,
        format!(
            "the session ended while connecting: run `tp connect` again; its log is in {}",
            tp_ipc::state_dir().display()
        ),
    )
}
