//! The agent's end.

use std::{sync::Arc, time::Duration};

use ring::hmac;
use rustls::pki_types::ServerName;
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{TlsConnector, TlsStream};
use tp_core::VERSION;
use tp_proto::{
    agent::{AgentNews, Begin, Carrier, Carry, Control, ManagerNews, Welcome, begin},
    tunnel::{Outcome, Verdict},
};

use super::{
    KEY_SIZE, PROOF_LABEL,
    link::{AgentError, AgentFlow, Link, Receiver, Sender, SharedTcp},
};
use crate::{
    flow::{InterceptedFrom, octets},
    keys::KeyHash,
    quic::SERVER_NAME,
    tls,
};

/// Of the wait for a handshake and the manager's welcome, which takes a review of the token.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(10);

/// Of the wait for a verdict: a session dials a port of its own machine, over a path that may be slow.
const VERDICT_TIMEOUT: Duration = Duration::from_secs(30);

/// A control connection that the manager has admitted.
#[derive(Debug)]
pub struct AgentControl {
    /// What carriers need.
    pub ticket: Ticket,
    /// The manager's version.
    pub version: String,
    /// Leases.
    pub news: Receiver<ManagerNews>,
    /// What became of pods.
    pub reports: Sender<AgentNews>,
}

/// Admits carriers while its control connection lasts.
#[derive(Clone, Debug)]
pub struct Ticket {
    agent: u64,
    key: hmac::Key,
}

/// An admitted carrier, which waits for a connection to carry.
#[derive(Debug)]
pub struct IdleCarrier {
    link: Link,
}

impl AgentControl {
    /// Shows the token to the manager with this key, at the other end of `tcp`.
    ///
    /// # Errors
    ///
    /// [`AgentError::AnotherKey`] before the token is sent; [`AgentError::Refused`] by the manager; the
    /// others if it does not answer within ten seconds, or wrongly.
    pub async fn connect(
        tcp: TcpStream,
        manager_key: KeyHash,
        token: &str,
    ) -> Result<Self, AgentError> {
        let connected = async {
            let mut link = handshake(tcp, manager_key).await?;
            let token = token.to_owned();
            let welcome = begin(&mut link, begin::Kind::Control(Control { token })).await?;
            let key = <[u8; KEY_SIZE]>::try_from(&*welcome.key)
                .map_err(|_| AgentError::Malformed("a welcome without a key"))?;
            let (reports, news) = link.split();

            Ok(Self {
                ticket: Ticket {
                    agent: welcome.agent,
                    key: hmac::Key::new(hmac::HMAC_SHA256, &key),
                },
                version: welcome.version,
                news,
                reports,
            })
        };

        in_time(WELCOME_TIMEOUT, connected).await
    }
}

impl IdleCarrier {
    /// Proves to the manager with this key that it belongs to the agent with the ticket.
    ///
    /// # Errors
    ///
    /// Those of [`AgentControl::connect`].
    pub async fn connect(
        tcp: TcpStream,
        manager_key: KeyHash,
        ticket: &Ticket,
    ) -> Result<Self, AgentError> {
        let connected = async {
            let mut link = handshake(tcp, manager_key).await?;
            let exported: [u8; KEY_SIZE] = link.exported(PROOF_LABEL)?;
            let carrier = Carrier {
                agent: ticket.agent,
                proof: hmac::sign(&ticket.key, &exported).as_ref().to_vec().into(),
            };
            begin(&mut link, begin::Kind::Carrier(carrier)).await?;

            Ok(Self { link })
        };

        in_time(WELCOME_TIMEOUT, connected).await
    }

    /// Asks for a connection to the pod with this UID to be carried to its workstation. `Ok(Err)` is the verdict of a refusal
    /// there, or on the way.
    ///
    /// # Errors
    ///
    /// [`AgentError`] if there is no verdict within thirty seconds.
    pub async fn carry(
        mut self,
        from: &InterceptedFrom,
        pod: &str,
    ) -> Result<Result<AgentFlow, Verdict>, AgentError> {
        let carry = Carry {
            intercept: from.intercept.clone(),
            pod: pod.to_owned(),
            address: octets(from.pod.ip()),
            port: from.pod.port().into(),
            client_address: octets(from.client.ip()),
            client_port: from.client.port().into(),
        };
        let asked = async {
            self.link.send(&carry).await?;
            self.link.receive::<Verdict>().await
        };
        let verdict = in_time(VERDICT_TIMEOUT, asked).await?;

        Ok(match verdict.outcome() {
            Outcome::Connected => Ok(self.link.into_flow()),
            _ => Err(verdict),
        })
    }

    /// Resolves when the manager has given the carrier up.
    pub async fn ended(&mut self) {
        self.link.ended().await;
    }
}

async fn handshake(tcp: TcpStream, manager_key: KeyHash) -> Result<Link, AgentError> {
    let (config, another_key) = tls::agent_config(manager_key);
    let name = ServerName::try_from(SERVER_NAME).expect("it is a name");
    let connected = TlsConnector::from(Arc::new(config))
        .connect(name, SharedTcp::new(tcp))
        .await;
    if let Some(another_key) = another_key.get() {
        return Err((*another_key).into());
    }

    Ok(Link::new(TlsStream::Client(connected?))?)
}

async fn begin(link: &mut Link, kind: begin::Kind) -> Result<Welcome, AgentError> {
    let begin = Begin {
        version: VERSION.to_owned(),
        kind: Some(kind),
    };
    link.send(&begin).await?;
    let welcome: Welcome = link.receive().await?;
    if !welcome.refusal.is_empty() {
        return Err(AgentError::Refused(welcome.refusal));
    }

    Ok(welcome)
}

async fn in_time<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, AgentError>>,
) -> Result<T, AgentError> {
    timeout(limit, work)
        .await
        .unwrap_or(Err(AgentError::TimedOut))
}
