//! Requests with the credential of a plugin.

use std::{
    mem,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll},
};

use http::{
    HeaderValue, Request, Response, StatusCode,
    header::{AUTHORIZATION, CONNECTION},
};
use jiff::Timestamp;
use kube::config::AuthInfo;
use rustls::{SignatureScheme, client::ResolvesClientCert, sign::CertifiedKey};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;
use tower::{BoxError, Layer, Service};
use tp_process::sync;
use tp_proto::fault::{Fault, FaultKind};

use crate::{
    credential::Credential,
    identity,
    plugin::{Plugin, PluginError},
};

/// One login. Once its credential has expired or was refused, the next request runs the plugin
/// again. Clones share it; dropping the last one kills a running plugin.
#[derive(Debug, Clone)]
pub(crate) struct Login {
    plugin: Arc<Plugin>,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// `None` once it was refused.
    credential: Option<Credential>,
    run: Option<Run>,
}

/// A running plugin, in its own task: the request that needed it first may give up earlier.
#[derive(Debug)]
struct Run {
    _task: AbortOnDropHandle<()>,
    outcome: watch::Receiver<Option<Outcome>>,
}

type Outcome = Result<Credential, Arc<PluginError>>;

impl Login {
    pub(crate) fn new(plugin: Plugin, credential: Option<Credential>) -> Self {
        let state = State {
            credential,
            run: None,
        };

        Self {
            plugin: Arc::new(plugin),
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// The valid credential. Concurrent callers wait for the same run.
    pub(crate) async fn credential(&self) -> Outcome {
        let mut outcome = {
            let mut state = self.state();
            if let Some(credential) = &state.credential
                && !credential.is_expired(Timestamp::now())
            {
                return Ok(credential.clone());
            }
            let run = state.run.get_or_insert_with(|| self.start());
            run.outcome.clone()
        };
        let outcome = outcome.wait_for(Option::is_some).await;

        outcome
            .ok()
            .and_then(|outcome| outcome.clone())
            .unwrap_or_else(|| Err(self.plugin.aborted().into()))
    }

    fn start(&self) -> Run {
        let (sender, outcome) = watch::channel(None);
        let (plugin, state) = (Arc::clone(&self.plugin), Arc::downgrade(&self.state));
        let task = tokio::spawn(async move {
            let outcome = plugin.run().await.map_err(Arc::new);
            let Some(state) = state.upgrade() else {
                return;
            };
            let mut state = sync::lock(&state);
            if let Ok(credential) = &outcome {
                state.credential = Some(credential.clone());
            }
            sender.send_replace(Some(outcome));
            state.run = None;
        });

        Run {
            _task: AbortOnDropHandle::new(task),
            outcome,
        }
    }

    /// Forgets `refused`, unless there is another by now.
    fn forget(&self, refused: &Credential) {
        self.state()
            .credential
            .take_if(|credential| credential == refused);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A poisoned lock is fine: every change under it is complete.
        sync::lock(&self.state)
    }
}

/// Each connection shows the current certificate.
impl ResolvesClientCert for Login {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let mut user = AuthInfo::default();
        self.state().credential.as_ref()?.identify(&mut user);
        let identity = identity::of(&user).unwrap_or_else(|wrong| {
            tracing::warn!(%wrong, "Certificate of a credential plugin cannot be used");
            None
        });

        identity.map(Arc::new)
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl<S> Layer<S> for Login {
    type Service = LoggedIn<S>;

    fn layer(&self, inner: S) -> LoggedIn<S> {
        LoggedIn {
            login: self.clone(),
            inner,
        }
    }
}

/// A service that adds the credential to its requests.
#[derive(Debug, Clone)]
pub(crate) struct LoggedIn<S> {
    login: Login,
    inner: S,
}

impl<S, B, R> Service<Request<B>> for LoggedIn<S>
where
    S: Service<Request<B>, Response = Response<R>, Error = BoxError> + Clone + Send + 'static,
    S::Future: Send + 'static,
    B: Send + 'static,
    R: Send + 'static,
{
    type Response = Response<R>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<R>, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let login = self.login.clone();
        // Uses the instance that is ready; a clone may not be.
        let clone = self.inner.clone();
        let mut inner = mem::replace(&mut self.inner, clone);

        Box::pin(async move {
            let credential = login.credential().await.map_err(|why| {
                Fault::new(
                    FaultKind::Config,
                    format!("the login cannot be renewed: {why}"),
                )
            })?;
            if let Some(token) = &credential.token {
                let mut value = HeaderValue::try_from(format!("Bearer {token}"))?;
                value.set_sensitive(true);
                request.headers_mut().insert(AUTHORIZATION, value);
            }
            if credential.has_certificate() && !request.headers().contains_key(CONNECTION) {
                // The certificate belongs to the connection: the next request may need a new one.
                let close = HeaderValue::from_static("close");
                request.headers_mut().insert(CONNECTION, close);
            }
            let response = inner.call(request).await?;
            if response.status() == StatusCode::UNAUTHORIZED {
                login.forget(&credential);
            }

            Ok(response)
        })
    }
}
