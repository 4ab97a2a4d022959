//! Reads the environment of a container for the user of a Session, if the API server lets them run
//! programs in the container: they could read it themselves.

use std::{fs::File, io::Read as _};

use futures::future::BoxFuture;
use tokio::sync::{Semaphore, watch};
use tp_agent_api::{AgentReply, AgentRequest, MAX_ENVIRON};
use tp_core::environment::{Environ, ProcessEnvironment, filter::NamePattern};
use tp_proto::{
    agent::{EnvironPart, EnvironQuestion},
    crd::SessionReference,
};

use crate::{
    agentd::Agentd,
    facts::{Facts, Rules},
    plan,
};

#[cfg(test)]
mod tests;

/// Bytes in one message, a quarter below what a message may have.
const PART: usize = 12 << 10;

/// What the API server says about the user of a Session.
pub trait SessionRights: Send + Sync + 'static {
    /// Returns why the user of the Session may not run programs in pods of the namespace, as a
    /// sentence.
    fn check_exec(
        &self,
        session: SessionReference,
        namespace: String,
    ) -> BoxFuture<'static, Result<(), String>>;
}

/// Answers questions for environments, one at a time.
pub(crate) struct Environs {
    agentd: Agentd,
    facts: watch::Receiver<Facts>,
    rules: Rules,
    rights: Box<dyn SessionRights>,
    turn: Semaphore,
}

impl Environs {
    pub(crate) fn new(
        agentd: Agentd,
        facts: watch::Receiver<Facts>,
        rules: Rules,
        rights: Box<dyn SessionRights>,
    ) -> Self {
        Self {
            agentd,
            facts,
            rules,
            rights,
            turn: Semaphore::new(1),
        }
    }

    /// The messages that answer.
    pub(crate) async fn answer(&self, question: EnvironQuestion) -> Vec<EnvironPart> {
        let _turn = self.turn.acquire().await;
        let number = question.number;
        let pod = question.pod.clone();
        let session = format!("{}/{}", question.session_namespace, question.session_name);
        match self.read(question).await {
            Ok(environ) => {
                let is_overwritten = matches!(environ, Environ::Overwritten(_));
                tracing::info!(pod, session, is_overwritten, "Environment read");
                parts(number, environ, &self.rules.excluded_names)
            }
            Err(refusal) => {
                tracing::info!(pod, session, refusal, "Environment refused");
                vec![self::refusal(number, refusal)]
            }
        }
    }

    async fn read(&self, question: EnvironQuestion) -> Result<Environ, String> {
        let uid = pod_uid(&self.facts.borrow(), &self.rules, &question)?;
        let session = SessionReference {
            namespace: question.session_namespace,
            name: question.session_name,
            uid: question.session_uid,
        };
        let right = self.rights.check_exec(session, question.namespace);
        right.await?;
        let request = AgentRequest::Environ {
            uid,
            container: question.container,
        };
        let replied = self.agentd.request(request).await;
        let replied = replied.map_err(|error| error.to_string())?;
        let AgentReply::Environ { intact } = replied.reply else {
            return Err("tp-agentd answers wrongly".to_owned());
        };
        let file = replied.fds.into_iter().next();
        let file = File::from(file.ok_or("tp-agentd sent no file")?);
        let mut environ = Vec::new();
        let limit = u64::try_from(MAX_ENVIRON).unwrap_or(u64::MAX);
        let read = file.take(limit).read_to_end(&mut environ);
        read.map_err(|error| format!("the file of tp-agentd cannot be read: {error}"))?;
        if environ.is_empty() && !intact {
            return Err("the container is just starting its program: try again".to_owned());
        }

        Ok(Environ::parse(&environ))
    }
}

/// The UID by which the kubelet knows the pod, which must be one of this node, with the container.
fn pod_uid(facts: &Facts, rules: &Rules, question: &EnvironQuestion) -> Result<String, String> {
    let namespace = question.namespace.as_str();
    if let Some(reason) = plan::closed(namespace, rules) {
        return Err(reason);
    }
    let pod = facts.pods.get(&question.pod);
    let pod = pod.filter(|pod| pod.workloads.iter().any(|it| it.namespace == namespace));
    let pod = pod.ok_or_else(|| {
        format!("the agent knows no such pod of a workload in namespace {namespace}: try again")
    })?;
    if !pod.ids.containers.contains(&question.container) {
        return Err(format!(
            "the container of pod {} does not run any more: try again",
            pod.name
        ));
    }

    Ok(pod.ids.uid.clone())
}

/// Answers that nothing is read, with why.
pub(crate) fn refusal(number: u64, refusal: String) -> EnvironPart {
    EnvironPart {
        number,
        refusal,
        is_last: true,
        ..EnvironPart::default()
    }
}

/// Whatever is excluded is in none of them.
fn parts(number: u64, environ: Environ, excluded_names: &[NamePattern]) -> Vec<EnvironPart> {
    let (environment, is_overwritten) = match environ {
        Environ::Intact { environment, .. } => (environment, false),
        Environ::Overwritten(_) => (ProcessEnvironment::default(), true),
    };
    let (left, excluded) = environment.without(excluded_names);
    let part = |bytes: &[u8]| EnvironPart {
        number,
        part: bytes.to_vec().into(),
        ..EnvironPart::default()
    };
    let mut parts: Vec<EnvironPart> = left.to_environ().chunks(PART).map(part).collect();
    parts.push(EnvironPart {
        number,
        is_last: true,
        is_overwritten,
        excluded_names: excluded_names.iter().map(ToString::to_string).collect(),
        excluded: u32::try_from(excluded).unwrap_or(u32::MAX),
        ..EnvironPart::default()
    });

    parts
}
