//! Questions to the agents for the environments of containers.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Semaphore, mpsc, oneshot},
    time::timeout,
};
use tp_process::sync::lock;
use tp_proto::agent::{EnvironPart, EnvironQuestion, ManagerNews};

use super::Agents;
use crate::model::{AgentEnviron, EnvironError};

/// Questions to one agent at once; others wait.
const MAX_QUESTIONS: usize = 4;
/// The most bytes of an environment.
const MAX_ENVIRON: usize = 256 << 10;
/// Of the whole answer: the agent asks the API server, and looks at all processes of its node.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

type Answer = Result<AgentEnviron, EnvironError>;

/// The questions to one agent.
pub(super) struct Questions {
    asking: mpsc::Sender<EnvironQuestion>,
    turns: Semaphore,
    last: AtomicU64,
    /// By number.
    waiting: Mutex<BTreeMap<u64, Waiting>>,
}

struct Waiting {
    environ: Vec<u8>,
    answering: oneshot::Sender<Answer>,
}

impl Questions {
    /// Also where the questions arrive that are to be sent.
    pub(super) fn new() -> (Self, mpsc::Receiver<EnvironQuestion>) {
        let (asking, asked) = mpsc::channel(MAX_QUESTIONS);
        let questions = Self {
            asking,
            turns: Semaphore::new(MAX_QUESTIONS),
            last: AtomicU64::new(0),
            waiting: Mutex::default(),
        };

        (questions, asked)
    }

    /// `None` if the agent is gone.
    async fn ask(&self, question: EnvironQuestion) -> Option<Answer> {
        let _turn = self.turns.acquire().await.ok()?;
        let number = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let (answering, answer) = oneshot::channel();
        let waiting = Waiting {
            environ: Vec::new(),
            answering,
        };
        lock(&self.waiting).insert(number, waiting);
        let _forgotten = Forgotten(self, number);
        let question = EnvironQuestion { number, ..question };
        self.asking.send(question).await.ok()?;

        answer.await.ok()
    }

    /// Takes a part of an answer, which nobody may wait for any more.
    pub(super) fn take(&self, part: EnvironPart) {
        let mut all = lock(&self.waiting);
        let Some(waiting) = all.get_mut(&part.number) else {
            return;
        };
        let is_too_long = waiting.environ.len() + part.part.len() > MAX_ENVIRON;
        waiting.environ.extend_from_slice(&part.part);
        if !part.is_last && !is_too_long {
            return;
        }
        let Some(Waiting { environ, answering }) = all.remove(&part.number) else {
            return;
        };
        let answer = if is_too_long {
            Err(EnvironError::Refused(format!(
                "the agent sends an environment of more than {MAX_ENVIRON} bytes"
            )))
        } else {
            whole(environ, part)
        };
        // Whoever asked may have gone.
        drop(answering.send(answer));
    }
}

/// The answer that this last part completes.
fn whole(environ: Vec<u8>, last: EnvironPart) -> Answer {
    if !last.refusal.is_empty() {
        return Err(EnvironError::Refused(last.refusal));
    }
    let names = last.excluded_names.iter().map(|name| name.parse());
    let Ok(excluded_names) = names.collect() else {
        return Err(EnvironError::Refused(
            "the agent excludes names that this version does not understand: update the manager"
                .to_owned(),
        ));
    };

    Ok(AgentEnviron {
        environ,
        is_overwritten: last.is_overwritten,
        excluded_names,
        excluded: last.excluded,
    })
}

/// Forgets a question when dropped.
struct Forgotten<'a>(&'a Questions, u64);

impl Drop for Forgotten<'_> {
    fn drop(&mut self) {
        lock(&self.0.waiting).remove(&self.1);
    }
}

/// No part of a round of leases.
pub(super) fn message(question: EnvironQuestion) -> ManagerNews {
    ManagerNews {
        leases: Vec::new(),
        more: true,
        environ: Some(question),
    }
}

impl Agents {
    /// Asks the agent of a node for the environment of a container.
    pub(crate) async fn environ(&self, node: &str, question: EnvironQuestion) -> Answer {
        let newest = {
            let admitted = lock(&self.admitted);
            let mut of_node = admitted.values().rev().filter(|it| *it.node == *node);
            of_node.next().cloned()
        };
        let Some(agent) = newest else {
            return Err(EnvironError::Unavailable(format!(
                "no agent of node {node} is connected, where the pod runs: `kubectl -n tp-agents get \
                 pods -o wide` shows the agents; where there are none, an administrator can run `tp \
                 install` without --no-agent"
            )));
        };
        let answer = tokio::select! {
            answer = timeout(ANSWER_TIMEOUT, agent.questions.ask(question)) => answer,
            () = agent.replaced.cancelled() => Ok(None),
        };
        let unavailable = |what: &str| {
            let message = format!("the agent of node {node} {what}: try again");
            Err(EnvironError::Unavailable(message))
        };
        match answer {
            Ok(Some(answer)) => answer,
            Ok(None) => unavailable("has just gone"),
            Err(_) => unavailable("does not read the environment in time"),
        }
    }
}
