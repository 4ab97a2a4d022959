//! The manager's end.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use ring::{
    hmac,
    rand::{SecureRandom as _, SystemRandom},
};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{TlsAcceptor, TlsStream};
use tp_core::VERSION;
use tp_process::sync::lock;
use tp_proto::{
    agent::{AgentNews, Begin, Carry, Control, ManagerNews, Welcome, begin},
    tunnel::{Outcome, Verdict},
};

use super::{
    KEY_SIZE, PROOF_LABEL,
    link::{AgentError, AgentFlow, Link, Receiver, Sender, SharedTcp},
};
use crate::{
    flow::{InterceptedFrom, socket_address},
    keys::{Identity, KeyError},
    tls,
};

/// Of the wait for a handshake and the first message.
const BEGIN_TIMEOUT: Duration = Duration::from_secs(5);
/// Of the wait until a message that the other end does not read is sent.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);

/// Knows the agents whose control connection it has.
pub struct AgentServer {
    tls: TlsAcceptor,
    admitted: Arc<Admitted>,
}

/// The keys of the agents that were admitted, by number.
#[derive(Default)]
struct Admitted(Mutex<Keys>);

#[derive(Default)]
struct Keys {
    last: u64,
    keys: BTreeMap<u64, hmac::Key>,
}

/// What an agent's connection is for.
pub enum AgentStream {
    /// Somebody claims to be an agent.
    Greeting(Greeting),
    /// An agent that was admitted may send an intercepted connection.
    Carrier(IncomingCarrier),
}

/// A control connection whose token is to be reviewed.
pub struct Greeting {
    /// The token of its service account.
    pub token: String,
    /// Its version.
    pub version: String,
    link: Link,
    admitted: Arc<Admitted>,
}

/// A control connection; its key ends with it.
pub struct ManagerControl {
    /// The number of the agent, which its carriers name.
    pub agent: u64,
    /// Leases.
    pub news: Sender<ManagerNews>,
    /// What became of pods.
    pub reports: Receiver<AgentNews>,
    /// Ends the key.
    pub guard: AdmittedAgent,
}

/// While this is there, carriers of the agent are admitted.
pub struct AdmittedAgent {
    agent: u64,
    admitted: Arc<Admitted>,
}

/// A carrier of an admitted agent.
pub struct IncomingCarrier {
    /// The number of the agent.
    pub agent: u64,
    link: Link,
}

/// An intercepted connection that waits for its verdict. Dropped without one, it is reset.
pub struct IncomingConnection {
    /// What was intercepted, as the agent says.
    pub from: InterceptedFrom,
    /// UID of the pod, as the agent says.
    pub pod: String,
    link: Link,
}

impl AgentServer {
    /// Proves `identity` to agents.
    ///
    /// # Errors
    ///
    /// [`KeyError`] if no certificate can be made of it.
    pub fn new(identity: &Identity) -> Result<Self, KeyError> {
        let config = tls::agent_server_config(identity)?;

        Ok(Self {
            tls: TlsAcceptor::from(Arc::new(config)),
            admitted: Arc::default(),
        })
    }

    /// Reads what a connection is for; takes five seconds at most. Carriers of agents that are not
    /// admitted are refused here.
    ///
    /// # Errors
    ///
    /// [`AgentError`]; each ends this connection alone.
    pub async fn accept(&self, tcp: TcpStream) -> Result<AgentStream, AgentError> {
        timeout(BEGIN_TIMEOUT, self.begin(tcp))
            .await
            .unwrap_or(Err(AgentError::TimedOut))
    }

    async fn begin(&self, tcp: TcpStream) -> Result<AgentStream, AgentError> {
        let tls = self.tls.accept(SharedTcp::new(tcp)).await?;
        let mut link = Link::new(TlsStream::Server(tls))?;
        let begin: Begin = link.receive().await?;
        match begin.kind {
            Some(begin::Kind::Control(Control { token })) => Ok(AgentStream::Greeting(Greeting {
                token,
                version: begin.version,
                link,
                admitted: Arc::clone(&self.admitted),
            })),
            Some(begin::Kind::Carrier(carrier)) => {
                let exported: [u8; KEY_SIZE] = link.exported(PROOF_LABEL)?;
                if !self
                    .admitted
                    .has_proven(carrier.agent, &exported, &carrier.proof)
                {
                    refuse(&mut link, "no control connection admits this one").await;
                    return Err(AgentError::Malformed("a carrier without a proof"));
                }
                link.send(&welcome()).await?;

                Ok(AgentStream::Carrier(IncomingCarrier {
                    agent: carrier.agent,
                    link,
                }))
            }
            None => {
                refuse(&mut link, "this version does not know the request").await;
                Err(AgentError::Malformed("an unknown kind of connection"))
            }
        }
    }
}

impl Admitted {
    fn has_proven(&self, agent: u64, exported: &[u8], proof: &[u8]) -> bool {
        let keys = lock(&self.0);
        let key = keys.keys.get(&agent);

        key.is_some_and(|key| hmac::verify(key, exported, proof).is_ok())
    }

    fn insert(&self, key: hmac::Key) -> u64 {
        let mut keys = lock(&self.0);
        keys.last += 1;
        let agent = keys.last;
        keys.keys.insert(agent, key);

        agent
    }
}

impl Drop for AdmittedAgent {
    fn drop(&mut self) {
        lock(&self.admitted.0).keys.remove(&self.agent);
    }
}

impl Greeting {
    /// The token is an agent's.
    ///
    /// # Errors
    ///
    /// [`AgentError`] if it cannot be told.
    pub async fn admit(mut self) -> Result<ManagerControl, AgentError> {
        let mut key = [0; KEY_SIZE];
        SystemRandom::new()
            .fill(&mut key)
            .map_err(|_| AgentError::Malformed("the machine gives no random numbers"))?;
        let agent = self
            .admitted
            .insert(hmac::Key::new(hmac::HMAC_SHA256, &key));
        let guard = AdmittedAgent {
            agent,
            admitted: Arc::clone(&self.admitted),
        };
        let welcome = Welcome {
            agent,
            key: key.to_vec().into(),
            ..welcome()
        };
        send(&mut self.link, &welcome).await?;
        let (news, reports) = self.link.split();

        Ok(ManagerControl {
            agent,
            news,
            reports,
            guard,
        })
    }

    /// It is not; `reason` is a sentence for the agent's log.
    pub async fn refuse(mut self, reason: &str) {
        refuse(&mut self.link, reason).await;
    }
}

impl IncomingCarrier {
    /// Waits for the connection to carry, as long as the agent likes; `None` if it ends without one.
    ///
    /// # Errors
    ///
    /// [`AgentError::Malformed`].
    pub async fn connection(mut self) -> Result<Option<IncomingConnection>, AgentError> {
        let carry: Carry = match self.link.receive().await {
            Err(AgentError::Io(_)) => return Ok(None),
            received => received?,
        };
        let address = socket_address(&carry.address, carry.port);
        let client = socket_address(&carry.client_address, carry.client_port);
        let (Some(address), Some(client)) = (address, client) else {
            return Err(AgentError::Malformed("a connection without its addresses"));
        };

        Ok(Some(IncomingConnection {
            from: InterceptedFrom {
                intercept: carry.intercept,
                client,
                pod: address,
            },
            pod: carry.pod,
            link: self.link,
        }))
    }
}

impl IncomingConnection {
    /// The workstation has taken it: the raw bytes follow.
    ///
    /// # Errors
    ///
    /// [`AgentError`] if it cannot be told.
    pub async fn accept(mut self) -> Result<AgentFlow, AgentError> {
        let verdict = Verdict {
            outcome: Outcome::Connected.into(),
            ..Verdict::default()
        };
        send(&mut self.link, &verdict).await?;

        Ok(self.link.into_flow())
    }

    /// It is not taken; `reason` is a sentence for the agent's status.
    pub async fn refuse(self, outcome: Outcome, reason: &str) {
        let verdict = Verdict {
            outcome: outcome.into(),
            reason: reason.to_owned(),
            ..Verdict::default()
        };
        self.conclude(verdict).await;
    }

    /// The container of the pod serves it, and no workstation; `reason` is a sentence for the agent's
    /// log.
    pub async fn leave_to_container(self, reason: &str) {
        let verdict = Verdict {
            outcome: Outcome::Refused.into(),
            reason: reason.to_owned(),
            by_container: true,
            ..Verdict::default()
        };
        self.conclude(verdict).await;
    }

    async fn conclude(mut self, verdict: Verdict) {
        if let Err(error) = last_words(&mut self.link, &verdict).await {
            tracing::debug!(%error, "Nobody waits for this verdict");
        }
    }

    /// Resolves when the client has gone, or the agent has.
    pub async fn cancelled(&mut self) {
        self.link.ended().await;
    }
}

fn welcome() -> Welcome {
    Welcome {
        version: VERSION.to_owned(),
        ..Welcome::default()
    }
}

async fn send(link: &mut Link, message: &impl prost::Message) -> Result<(), AgentError> {
    timeout(SEND_TIMEOUT, link.send(message))
        .await
        .unwrap_or(Err(AgentError::TimedOut))
}

async fn refuse(link: &mut Link, reason: &str) {
    let refusal = Welcome {
        refusal: reason.to_owned(),
        ..welcome()
    };
    if let Err(error) = last_words(link, &refusal).await {
        tracing::debug!(%error, "Cannot tell an agent that it is refused");
    }
}

/// Sends a last message and waits until the other end has read it: a reset would overtake it.
async fn last_words(link: &mut Link, message: &impl prost::Message) -> Result<(), AgentError> {
    send(link, message).await?;
    let _ = timeout(SEND_TIMEOUT, link.ended()).await;

    Ok(())
}
