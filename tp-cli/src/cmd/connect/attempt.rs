//! What one `tp connect` starts, uses and releases.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tonic::Streaming;
use tp_core::backoff::Backoff;
use tp_proto::{
    fault::{Fault, FaultKind, is_fault},
    local::{ConnectEvent, ConnectRequest, Connected, connect_event::Event},
};

use super::super::quit;
use crate::{
    client::{self, Session},
    progress::Progress,
    spawn::{self, Started},
};

/// Wait for another `tp` that starts the programs: its sudo may ask for a password.
const TURN_TIMEOUT: Duration = Duration::from_secs(60);
/// How long sessions may exit as soon as they are asked, before that is an error.
const RETRY_TIMEOUT: Duration = Duration::from_secs(30);
/// A session that lived this long has served others.
const SERVED_AFTER: Duration = Duration::from_secs(2);
/// Between attempts: each may start programs.
const MIN_RETRY_BACKOFF: Duration = Duration::from_millis(10);
const MAX_RETRY_BACKOFF: Duration = Duration::from_millis(500);

/// This command's share of a connection. Programs that others started or use are theirs.
#[derive(Debug, Default)]
pub(in crate::cmd) struct Attempt {
    started: Started,
    /// Open while this command wants the connection: the session ends with its last user.
    session: Option<Session>,
    /// The root daemon ends with its last session.
    root_daemon_ends: bool,
}

impl Attempt {
    /// Starts what is missing and connects, alone or with others that ask for the same.
    pub(in crate::cmd) async fn connect(
        &mut self,
        request: &ConnectRequest,
        progress: &mut Progress,
    ) -> anyhow::Result<Connected> {
        let mut end = Instant::now() + RETRY_TIMEOUT;
        let mut backoff = Backoff::new(MIN_RETRY_BACKOFF, MAX_RETRY_BACKOFF);
        loop {
            let asked = Instant::now();
            if let Some((first, events)) = self.ask(request, progress).await?
                && let Some(connected) = follow(first, events, progress).await?
            {
                return Ok(connected);
            }
            if asked.elapsed() > SERVED_AFTER {
                end = Instant::now() + RETRY_TIMEOUT;
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

    /// Asks the session, and starts it if it is missing. `None` if it is about to exit.
    ///
    /// One `tp` at a time, until the session holds a connection to the root daemon or is connected.
    async fn ask(
        &mut self,
        request: &ConnectRequest,
        progress: &mut Progress,
    ) -> anyhow::Result<Option<(Event, Streaming<ConnectEvent>)>> {
        self.session = None;
        let _turn = tp_ipc::acquire_start_lock(TURN_TIMEOUT)
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

        let first = timeout(client::ANSWER_TIMEOUT, async {
            let mut events = match session.connect(request.clone()).await {
                Ok(response) => response.into_inner(),
                Err(status) if is_fault(&status) => return Err(status.into()),
                Err(_) => return Ok(None),
            };
            match events.message().await {
                Ok(Some(ConnectEvent { event: Some(event) })) => Ok(Some((event, events))),
                Err(status) if is_fault(&status) => Err(status.into()),
                Ok(_) | Err(_) => Ok(None),
            }
        });
        let first: Result<_, Fault> = first
            .await
            .unwrap_or_else(|_| Err(client::no_answer(client::ANSWER_TIMEOUT)));

        Ok(first?.filter(|(event, _)| !matches!(event, Event::Ending(_))))
    }

    /// Releases this command's share and waits for what ends with it. False if the session does not
    /// answer.
    pub(in crate::cmd) async fn give_up(mut self) -> bool {
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
            // The request has failed already, or the kernel ends the session.
            Err(fault) => fault.kind != FaultKind::Unavailable || !tp_ipc::socket_path().exists(),
        }
    }
}

/// Follows the events to their end; the session bounds each step. `None` if the session must be
/// asked again.
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
            Err(status) if is_fault(&status) => return Err(status.into()),
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
