//! All redirects, whichever connection they were made for. A network namespace has one at most: the
//! programs of two would both run, and each agent would take the other's for its own.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tp_agent_api::{AgentRefusal, MAX_REDIRECTS};
use tp_ebpf_loader::PodRedirect;

use crate::{earlier::RedirectRules, netns::PodNetns, pod_error::PodError};

#[derive(Default)]
pub(crate) struct AllRedirects(Mutex<Numbered>);

#[derive(Default)]
struct Numbered {
    last_connection: u64,
    last_redirect: u64,
    redirects: BTreeMap<u64, Redirect>,
}

pub(crate) struct Redirect {
    // First of all the program is detached.
    pub(crate) program: PodRedirect,
    pub(crate) netns: PodNetns,
    /// As the program has them.
    pub(crate) rules: RedirectRules,
    connection: u64,
}

/// Those of one connection, gone when this is dropped.
pub(crate) struct OwnRedirects {
    all: Arc<AllRedirects>,
    /// Later connections have higher numbers.
    connection: u64,
}

impl AllRedirects {
    fn lock(&self) -> MutexGuard<'_, Numbered> {
        // Each change leaves it whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OwnRedirects {
    pub(crate) fn new(all: Arc<AllRedirects>) -> Self {
        let mut locked = all.lock();
        locked.last_connection += 1;
        let connection = locked.last_connection;
        drop(locked);

        Self { all, connection }
    }

    /// Makes one in `netns`, and takes that from an earlier connection, whose agent is about to end.
    /// Returns its number.
    pub(crate) fn add<T>(
        &self,
        netns: PodNetns,
        rules: RedirectRules,
        make: impl FnOnce(&PodNetns) -> Result<(PodRedirect, T), PodError>,
    ) -> Result<(u64, T), PodError> {
        let mut all = self.all.lock();
        let own = all.redirects.values();
        if own.filter(|it| it.connection == self.connection).count() >= MAX_REDIRECTS {
            return Err(PodError::unsupported(format!(
                "{MAX_REDIRECTS} pods of this node are redirected, as many as there may be: end \
                 another intercept first"
            )));
        }
        let mut others = all.redirects.iter();
        if let Some((number, other)) = others.find(|(_, it)| it.netns.id() == netns.id()) {
            if other.connection == self.connection {
                return Err(PodError::invalid(
                    "the pod is redirected already: change its ports",
                ));
            }
            if other.connection > self.connection {
                return Err(PodError::new(
                    AgentRefusal::Failed,
                    "an agent that connected later redirects the pod: this one is to end",
                ));
            }
            let number = *number;
            all.redirects.remove(&number);
            tracing::info!(redirect = number, "Redirect is taken over by a newer agent");
        }
        let (program, made) = make(&netns)?;
        all.last_redirect += 1;
        let number = all.last_redirect;
        let redirect = Redirect {
            program,
            netns,
            rules,
            connection: self.connection,
        };
        all.redirects.insert(number, redirect);

        Ok((number, made))
    }

    pub(crate) fn with<T>(
        &self,
        number: u64,
        work: impl FnOnce(&mut Redirect) -> Result<T, PodError>,
    ) -> Result<T, PodError> {
        let mut all = self.all.lock();
        let found = all.redirects.get_mut(&number);

        work(
            found
                .filter(|it| it.connection == self.connection)
                .ok_or_else(unknown)?,
        )
    }

    pub(crate) fn release(&self, number: u64) -> Result<(), PodError> {
        self.with(number, |_| Ok(()))?;
        self.all.lock().redirects.remove(&number);

        Ok(())
    }
}

impl Drop for OwnRedirects {
    fn drop(&mut self) {
        let mut all = self.all.lock();
        all.redirects
            .retain(|_, it| it.connection != self.connection);
    }
}

fn unknown() -> PodError {
    PodError::invalid("this connection has no such redirect, or a newer one has taken it over")
}
