//! The connections to all traffic managers: their news, our reports, and carriers.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use prost::Message as _;
use tokio::{
    net::TcpStream,
    sync::{
        Notify,
        mpsc::{self, error::TrySendError},
        oneshot, watch,
    },
    time::{sleep, timeout},
};
use tokio_util::task::AbortOnDropHandle;
use tp_core::backoff::Backoff;
use tp_process::sync::lock;
use tp_proto::agent::{AgentNews, EnvironPart, EnvironQuestion, ManagerNews, PodReport};
use tp_transport::{
    agents::{AgentControl, AgentError, IdleCarrier, Receiver, Sender},
    keep_alive,
};

use crate::{
    environ::{Environs, refusal},
    facts::{ManagerAddress, ManagerFacts},
    leases::boot_time,
    plan::{AllNews, News, Round},
    reports::{Reports, ReportsByPod, changes},
};
use pool::{Pool, Take};

mod pool;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Of the wait for news, of which there are some each second.
const NEWS_TIMEOUT: Duration = Duration::from_secs(5);
const SEND_TIMEOUT: Duration = Duration::from_secs(5);
/// Between reports: what changes meanwhile goes together.
const REPORT_INTERVAL: Duration = Duration::from_millis(100);
const FIRST_BACKOFF: Duration = Duration::from_millis(200);
const MAX_BACKOFF: Duration = Duration::from_secs(5);
/// Of the wait for a carrier.
const CARRIER_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of reports in one message, a quarter below what a message may have.
const REPORTS_SIZE: usize = 12 << 10;
/// Takers of carriers that wait.
const TAKERS: usize = 64;
/// Between two looks at the token, which the kubelet replaces before it expires.
const TOKEN_INTERVAL: Duration = Duration::from_secs(30);
/// How long a control connection stays beside the one that replaces it: its carriers may be just being
/// used.
const END_DELAY: Duration = Duration::from_secs(2);

/// A control connection, and the token that it was made with.
struct Connected {
    control: AgentControl,
    token: String,
}

/// The two directions of a control connection.
type Directions = (Receiver<ManagerNews>, Sender<AgentNews>);

/// What follows a control connection.
enum Next {
    Failed(AgentError),
    /// Another one, with a newer token, and this one.
    Replaced(Connected, Directions),
}
/// Questions of a manager that wait; it asks fewer at once.
const QUESTIONS: usize = 8;
const BUSY: &str = "the agent reads many environments at once: try again";

/// All managers.
pub(crate) struct Managers {
    token_file: PathBuf,
    token_interval: Duration,
    environs: Environs,
    news: watch::Sender<AllNews>,
    reports: Reports,
    pools: Mutex<BTreeMap<String, mpsc::Sender<Take>>>,
    /// A key was another one than published when it was read last.
    outdated: Notify,
}

impl Managers {
    pub(crate) fn new(token_file: PathBuf, environs: Environs) -> Self {
        Self {
            token_file,
            token_interval: TOKEN_INTERVAL,
            environs,
            news: watch::Sender::default(),
            reports: Reports::new(),
            pools: Mutex::default(),
            outdated: Notify::new(),
        }
    }

    pub(crate) fn news(&self) -> watch::Receiver<AllNews> {
        self.news.subscribe()
    }

    pub(crate) fn reports(&self) -> &Reports {
        &self.reports
    }

    /// Resolves when the published keys should be read again.
    pub(crate) async fn are_outdated(&self) {
        self.outdated.notified().await;
    }

    /// Takes a carrier to this manager, if there is one within five seconds.
    pub(crate) async fn carrier(&self, manager: &str) -> Option<IdleCarrier> {
        let taken = async {
            let mut asked: Option<mpsc::Sender<Take>> = None;
            loop {
                let takes = lock(&self.pools).get(manager)?.clone();
                // It has none; another one may, which has replaced it meanwhile.
                if asked.is_some_and(|asked| asked.same_channel(&takes)) {
                    return None;
                }
                let (take, taken) = oneshot::channel();
                if takes.send(take).await.is_ok()
                    && let Ok(carrier) = taken.await
                {
                    return Some(carrier);
                }
                asked = Some(takes);
            }
        };

        timeout(CARRIER_TIMEOUT, taken).await.ok()?
    }

    /// Keeps a connection to each manager, until it is aborted.
    pub(crate) async fn keep(self: Arc<Self>, mut known: watch::Receiver<ManagerFacts>) {
        let mut kept: BTreeMap<String, (ManagerAddress, AbortOnDropHandle<()>)> = BTreeMap::new();
        loop {
            let wanted = known.borrow_and_update().clone();
            kept.retain(|name, (address, _)| wanted.get(name) == Some(address));
            for (name, address) in wanted {
                kept.entry(name.clone()).or_insert_with(|| {
                    let managers = Arc::clone(&self);
                    let task = tokio::spawn(async move { managers.keep_one(&name, address).await });
                    (address, AbortOnDropHandle::new(task))
                });
            }
            if known.changed().await.is_err() {
                // Nobody knows more; those known are kept.
                std::future::pending::<()>().await;
            }
        }
    }

    async fn keep_one(&self, name: &str, manager: ManagerAddress) {
        let mut backoff = Backoff::new(FIRST_BACKOFF, MAX_BACKOFF);
        let mut last_failure = String::new();
        loop {
            match self.connect(manager).await {
                Ok(connected) => {
                    backoff.reset();
                    last_failure.clear();
                    let version = &connected.control.version;
                    tracing::info!(manager = name, version, "Manager is connected");
                    let mut next = self.serve(name, manager, connected, None).await;
                    let error = loop {
                        match next {
                            Next::Failed(error) => break with_causes(error),
                            Next::Replaced(connected, before) => {
                                tracing::debug!(manager = name, "Connected with a newer token");
                                let before = Some(before);
                                next = self.serve(name, manager, connected, before).await;
                            }
                        }
                    };
                    self.news.send_modify(|all| {
                        if let Some(news) = all.get_mut(name) {
                            news.quieten();
                        }
                    });
                    tracing::info!(manager = name, error, "Connection to manager ended");
                }
                Err(error) => {
                    if matches!(error, AgentError::AnotherKey(_)) {
                        self.outdated.notify_one();
                    }
                    let error = with_causes(error);
                    if error != last_failure {
                        tracing::warn!(manager = name, error, "Cannot connect to manager");
                    }
                    last_failure = error;
                }
            }
            sleep(backoff.pause(fastrand::f64())).await;
        }
    }

    async fn connect(&self, manager: ManagerAddress) -> Result<Connected, AgentError> {
        let token = tokio::fs::read_to_string(&self.token_file).await?;
        let tcp = connect(manager).await?;
        let control = AgentControl::connect(tcp, manager.key, token.trim()).await?;

        Ok(Connected { control, token })
    }

    /// Serves until the connection fails, or another one is there for a newer token. Of the one before
    /// it, nothing is read any more.
    async fn serve(
        &self,
        name: &str,
        manager: ManagerAddress,
        connected: Connected,
        before: Option<Directions>,
    ) -> Next {
        let Connected { control, token } = connected;
        let AgentControl {
            ticket,
            mut news,
            mut reports,
            ..
        } = control;
        let (takes, taken) = mpsc::channel(TAKERS);
        let _listed = Listed::new(self, name, takes);
        let linger = async {
            sleep(END_DELAY).await;
            drop(before);
            std::future::pending::<AgentError>().await
        };
        let (asking, asked) = mpsc::channel(QUESTIONS);
        let (answering, parts) = mpsc::channel(1);
        // As many; of those beside them nothing is said.
        let (refusing, refused) = mpsc::channel(QUESTIONS);
        let next = tokio::select! {
            error = self.listen(name, &mut news, (asking, refusing)) => Err(error),
            error = self.report(&mut reports, parts, refused) => Err(error),
            error = linger => Err(error),
            next = self.newer(manager, &token) => Ok(next),
            never = self.answer(asked, answering) => match never {},
            never = Pool::new(manager, ticket).serve(taken) => match never {},
        };

        match next {
            Err(error) => Next::Failed(error),
            Ok(next) => Next::Replaced(next, (news, reports)),
        }
    }

    /// A connection with a token other than this one, as soon as there is one: the manager ends that of
    /// a token that has expired.
    async fn newer(&self, manager: ManagerAddress, token: &str) -> Connected {
        loop {
            sleep(self.token_interval).await;
            match tokio::fs::read_to_string(&self.token_file).await {
                Ok(now) if now == token => {}
                Ok(_) => match self.connect(manager).await {
                    Ok(connected) => return connected,
                    Err(error) => tracing::debug!(%error, "Cannot connect with a newer token"),
                },
                Err(error) => tracing::debug!(%error, "Cannot read the token"),
            }
        }
    }

    async fn answer(
        &self,
        mut asked: mpsc::Receiver<EnvironQuestion>,
        answering: mpsc::Sender<EnvironPart>,
    ) -> Infallible {
        while let Some(question) = asked.recv().await {
            for part in self.environs.answer(question).await {
                // Whoever reports ends with this.
                let _ = answering.send(part).await;
            }
        }

        std::future::pending().await
    }

    async fn listen(
        &self,
        name: &str,
        news: &mut Receiver<ManagerNews>,
        (asking, refusing): (mpsc::Sender<EnvironQuestion>, mpsc::Sender<EnvironPart>),
    ) -> AgentError {
        let mut round = Round::default();
        loop {
            match timeout(NEWS_TIMEOUT, news.receive()).await {
                Ok(Ok(mut news)) => {
                    if let Some(question) = news.environ.take()
                        && let Err(TrySendError::Full(question)) = asking.try_send(question)
                    {
                        tracing::debug!(manager = name, "Question beside many others refused");
                        drop(refusing.try_send(refusal(question.number, BUSY.to_owned())));
                    }
                    let Some(leases) = round.take(news) else {
                        continue;
                    };
                    let now = boot_time();
                    self.news.send_modify(|all| {
                        let next = match all.get(name) {
                            Some(before) => before.next(leases, now),
                            None => News::default().next(leases, now),
                        };
                        // Those of managers that are gone are no leases any more.
                        all.retain(|_, news| news.is_fresh(now));
                        all.insert(name.to_owned(), next);
                    });
                }
                Ok(Err(error)) => return error,
                Err(_) => return AgentError::TimedOut,
            }
        }
    }

    async fn report(
        &self,
        sender: &mut Sender<AgentNews>,
        mut parts: mpsc::Receiver<EnvironPart>,
        mut refused: mpsc::Receiver<EnvironPart>,
    ) -> AgentError {
        let mut said = self.reports.subscribe();
        let mut told: Option<ReportsByPod> = None;
        loop {
            let all = said.borrow_and_update().all();
            let is_first = told.is_none();
            let mut pods = changes(&told.unwrap_or_default(), &all);
            let mut is_due = is_first || !pods.is_empty();
            while is_due {
                let news = AgentNews {
                    pods: some_of(&mut pods),
                    environ: None,
                };
                if let Err(error) = send(sender, &news).await {
                    return error;
                }
                is_due = !pods.is_empty();
            }
            told = Some(all);
            let mut next = std::pin::pin!(next_report(&mut said));
            loop {
                let part = tokio::select! {
                    () = &mut next => break,
                    Some(part) = parts.recv() => part,
                    Some(part) = refused.recv() => part,
                };
                let news = AgentNews {
                    pods: Vec::new(),
                    environ: Some(part),
                };
                if let Err(error) = send(sender, &news).await {
                    return error;
                }
            }
        }
    }
}

async fn send(sender: &mut Sender<AgentNews>, news: &AgentNews) -> Result<(), AgentError> {
    let sent = timeout(SEND_TIMEOUT, sender.send(news)).await;

    sent.unwrap_or(Err(AgentError::TimedOut))
}

/// Resolves when there is something to report, and reported often enough.
async fn next_report<T>(said: &mut watch::Receiver<T>) {
    sleep(REPORT_INTERVAL).await;
    if said.changed().await.is_err() {
        // The agent ends.
        std::future::pending::<()>().await;
    }
}

fn with_causes(error: AgentError) -> String {
    format!("{:#}", anyhow::Error::from(error))
}

/// Takes as many reports as one message holds, at least one.
fn some_of(pods: &mut Vec<PodReport>) -> Vec<PodReport> {
    let mut size = 0;
    let fit = pods.iter().take_while(|report| {
        size += report.encoded_len() + 4;
        size <= REPORTS_SIZE
    });
    let fit = fit.count().max(1).min(pods.len());

    pods.drain(..fit).collect()
}

async fn connect(manager: ManagerAddress) -> Result<TcpStream, AgentError> {
    let connected = timeout(CONNECT_TIMEOUT, TcpStream::connect(manager.address)).await;
    let tcp = connected.map_err(|_| AgentError::TimedOut)??;
    // What was carried to a node that is gone must end.
    keep_alive(&tcp)?;

    Ok(tcp)
}

/// The pool of a manager is known while this is there.
struct Listed<'a> {
    managers: &'a Managers,
    name: &'a str,
    takes: mpsc::Sender<Take>,
}

impl<'a> Listed<'a> {
    fn new(managers: &'a Managers, name: &'a str, takes: mpsc::Sender<Take>) -> Self {
        lock(&managers.pools).insert(name.to_owned(), takes.clone());

        Self {
            managers,
            name,
            takes,
        }
    }
}

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        let mut pools = lock(&self.managers.pools);
        // The next one of the same name may be there already.
        if pools
            .get(self.name)
            .is_some_and(|takes| takes.same_channel(&self.takes))
        {
            pools.remove(self.name);
        }
    }
}

#[cfg(test)]
mod tests;
