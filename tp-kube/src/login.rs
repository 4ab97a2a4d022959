//! Requests that carry what a credential plugin gave.

use std::{
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http::{HeaderValue, Request, Response, StatusCode, header::AUTHORIZATION};
use jiff::Timestamp;
use tokio::sync::Mutex;
use tower::{BoxError, Layer, Service};
use tp_proto::fault::{Fault, FaultKind};

use crate::{
    credential::Credential,
    plugin::{Failure, Plugin},
};

/// One login. The plugin runs again when what it gave has run out or is refused, for the next
/// request. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Login {
    plugin: Arc<Plugin>,
    /// Nothing once it was refused.
    credential: Arc<Mutex<Option<Credential>>>,
}

impl Login {
    pub(crate) fn new(plugin: Plugin, credential: Option<Credential>) -> Self {
        Self {
            plugin: Arc::new(plugin),
            credential: Arc::new(Mutex::new(credential)),
        }
    }

    /// The credential that is valid now. Whoever asks meanwhile waits for the same.
    pub(crate) async fn credential(&self) -> Result<Credential, Failure> {
        let mut held = self.credential.lock().await;
        if let Some(credential) = &*held
            && !credential.has_run_out(Timestamp::now())
        {
            return Ok(credential.clone());
        }
        let fresh = self.plugin.run().await?;

        Ok(held.insert(fresh).clone())
    }

    /// Forgets `refused`, unless there is another by now.
    async fn forget(&self, refused: &Credential) {
        let mut held = self.credential.lock().await;
        if held.as_ref() == Some(refused) {
            *held = None;
        }
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

/// A service whose requests are somebody's.
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
        // The one that is ready is used, a clone need not be.
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
            let response = inner.call(request).await?;
            if response.status() == StatusCode::UNAUTHORIZED {
                login.forget(&credential).await;
            }

            Ok(response)
        })
    }
}
