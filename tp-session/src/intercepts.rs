//! The intercepts of this session: made as the user asks, made anew with every new tunnel, ended with
//! the session.

use std::{collections::BTreeMap, mem, net::SocketAddr, sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tp_proto::{
    fault::{Fault, FaultKind},
    local::Intercept,
    tunnel::InterceptState,
};

use super::{renewal::Login, root_link::RootLink, shared::Shared};
use accept::InterceptTargets;
use dial::LocalTarget;
use files::KeptFiles;
use listening::ListeningSockets;
use objects::{AskedObject, Leftovers};
use request::WantedIntercept;

mod accept;
mod announce;
mod callers;
mod dial;
mod earlier;
mod files;
mod listening;
mod making;
mod objects;
mod renewing;
mod request;
mod shortcut;
mod telling;
#[cfg(test)]
mod testing;
mod view;

pub(super) use making::InterceptEvents;
pub(super) use shortcut::{CallWay, LocalCall, LocalCalls};

/// How often the local ports are looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(250);
/// Bounds the end of all intercepts: what is left, the manager collects with the Session.
const END_TIMEOUT: Duration = Duration::from_secs(2);

/// By the name that each has at this workstation.
type Entries = BTreeMap<String, OwnIntercept>;

/// The intercepts of a session.
pub(super) struct OwnIntercepts {
    login: Arc<Login>,
    shared: Arc<Shared>,
    /// Cancelled when the connection is to end.
    stop: CancellationToken,
    targets: Arc<InterceptTargets>,
    entries: watch::Sender<Entries>,
    leftovers: Leftovers,
}

/// An intercept of this session.
#[derive(Debug, Clone)]
struct OwnIntercept {
    wanted: Arc<WantedIntercept>,
    since: Timestamp,
    /// The name of the newest object, from before the API server is asked for it.
    object: String,
    /// `None` if no request may have made it.
    asked: Option<AskedObject>,
    made: Option<MadeObject>,
    ports: BTreeMap<u16, LocalPortState>,
    /// What the manager said last of the object.
    state: Option<InterceptState>,
    /// Why there is no object at the moment, or any more.
    fault: String,
    phase: EntryPhase,
    /// Removed with the entry.
    files: Vec<Arc<KeptFiles>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum EntryPhase {
    /// Its first object is being made, by the task that answers the user.
    Making,
    Standing,
    /// Being ended, by the user.
    Leaving,
    /// Somebody has ended it in the cluster.
    Ended,
}

/// An object that the API server has made.
#[derive(Debug, Clone, PartialEq, Eq)]
struct MadeObject {
    uid: String,
    /// The UID of its Session.
    session: String,
}

/// Where the connections of a port go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct LocalPortState {
    address: SocketAddr,
    is_listening: bool,
}

impl OwnIntercept {
    fn new(wanted: Arc<WantedIntercept>, listening: Option<&ListeningSockets>) -> Self {
        Self {
            object: wanted.object_name(),
            since: Timestamp::now(),
            asked: None,
            made: None,
            ports: local_ports(&wanted, listening),
            state: None,
            fault: String::new(),
            phase: EntryPhase::Making,
            files: Vec::new(),
            wanted,
        }
    }

    fn targets(&self) -> BTreeMap<u16, LocalTarget> {
        let target = |state: &LocalPortState| LocalTarget {
            address: state.address,
            proxy_protocol: self.wanted.proxy_protocol,
            unshown: Arc::clone(&self.wanted.unshown),
        };
        let ports = self.ports.iter();

        ports.map(|(port, state)| (*port, target(state))).collect()
    }
}

fn local_ports(
    wanted: &WantedIntercept,
    listening: Option<&ListeningSockets>,
) -> BTreeMap<u16, LocalPortState> {
    let state = |(address, is_listening)| LocalPortState {
        address,
        is_listening,
    };
    let ports = wanted.ports.iter();

    ports
        .map(|port| (port.port, state(port.local.pick(listening))))
        .collect()
}

impl OwnIntercepts {
    pub(super) fn new(login: Arc<Login>, shared: Arc<Shared>, stop: CancellationToken) -> Self {
        Self {
            login,
            shared,
            stop,
            targets: Arc::default(),
            entries: watch::Sender::default(),
            leftovers: Leftovers::default(),
        }
    }

    /// Takes the connections that the manager opens. `root` shows their clients to local processes, if
    /// it can.
    pub(super) fn accept(
        &self,
        root: Option<Arc<RootLink>>,
    ) -> impl Future<Output = ()> + Send + use<> {
        if let Some(root) = root {
            self.targets.show_clients_by(root);
        }

        Arc::clone(&self.targets).serve(Arc::clone(&self.shared))
    }

    /// Changes one entry, if it is still that of `wanted`; returns whether it was.
    fn update(
        &self,
        wanted: &Arc<WantedIntercept>,
        change: impl FnOnce(&mut OwnIntercept),
    ) -> bool {
        self.entries.send_if_modified(|entries| {
            let entry = entries.get_mut(&wanted.name);
            let entry = entry.filter(|entry| Arc::ptr_eq(&entry.wanted, wanted));
            entry.map(change).is_some()
        })
    }

    fn entry(&self, wanted: &Arc<WantedIntercept>) -> Option<OwnIntercept> {
        let entries = self.entries.borrow();
        let entry = entries.get(&wanted.name)?;

        Arc::ptr_eq(&entry.wanted, wanted).then(|| entry.clone())
    }

    /// What `tp status` shows.
    pub(super) fn status(&self) -> Vec<Intercept> {
        let reason = self.without_tunnel();
        let entries = self.entries.borrow();

        entries
            .values()
            .filter(|entry| entry.phase != EntryPhase::Making)
            .map(|entry| view::of(entry, reason.as_deref()))
            .collect()
    }

    /// Those that end with the connection.
    pub(super) fn names(&self) -> Vec<String> {
        let entries = self.entries.borrow();
        let stands =
            |entry: &OwnIntercept| !matches!(entry.phase, EntryPhase::Making | EntryPhase::Ended);
        let names = entries.iter().filter(|(_, entry)| stands(entry));

        names.map(|(name, _)| name.clone()).collect()
    }

    /// Why nothing reaches the workstation at the moment; `None` if there is a tunnel.
    fn without_tunnel(&self) -> Option<String> {
        let is_up = self.shared.up.borrow().is_some();

        (!is_up).then(|| self.shared.reason.borrow().clone())
    }

    /// Ends the intercept of this name; returns when it is no longer in the cluster. Connections under
    /// way go on.
    pub(super) async fn leave(&self, name: &str) -> Result<Intercept, Fault> {
        let reason = self.without_tunnel();
        let mut left = Err(String::new());
        self.entries.send_if_modified(|entries| {
            left = match entries.get_mut(name) {
                Some(entry) if entry.phase != EntryPhase::Making => {
                    let shown = view::of(entry, reason.as_deref());
                    if entry.phase == EntryPhase::Standing {
                        entry.phase = EntryPhase::Leaving;
                    }
                    Ok((Arc::clone(&entry.wanted), shown))
                }
                _ => Err(unknown(name, entries)),
            };
            left.is_ok()
        });
        let (wanted, shown) = left.map_err(|message| Fault::new(FaultKind::Usage, message))?;
        if let Err(fault) = self.withdraw(&wanted).await {
            self.update(&wanted, |entry| {
                if entry.phase == EntryPhase::Leaving {
                    entry.phase = EntryPhase::Standing;
                }
            });
            return Err(fault);
        }

        Ok(shown)
    }

    /// Deletes the object of an entry, then forgets it. A failure leaves the entry.
    async fn withdraw(&self, wanted: &Arc<WantedIntercept>) -> Result<(), Fault> {
        loop {
            let Some(entry) = self.entry(wanted) else {
                return Ok(());
            };
            self.delete(&entry).await?;
            // Another object may have been begun meanwhile.
            self.forget_if(
                wanted,
                |now| now.object == entry.object,
                Self::leave_unsettled,
            )
            .await;
        }
    }

    /// Forgets an entry if `is_due`, and has done with its object what `leave` does. Its files are gone
    /// then.
    async fn forget_if(
        &self,
        wanted: &Arc<WantedIntercept>,
        is_due: impl Fn(&OwnIntercept) -> bool,
        leave: impl Fn(&Self, &OwnIntercept),
    ) {
        let mut files = Vec::new();
        self.entries.send_if_modified(|entries| {
            let entry = entries.get_mut(&wanted.name);
            let entry = entry.filter(|it| Arc::ptr_eq(&it.wanted, wanted));
            let Some(entry) = entry.filter(|it| is_due(it)) else {
                return false;
            };
            if let Some(made) = &entry.made {
                self.targets.remove(&made.uid);
            }
            leave(self, entry);
            files = mem::take(&mut entry.files);
            entries.remove(&wanted.name).is_some()
        });
        files::remove_all(files).await;
    }

    /// Ends all intercepts, as far as the API server answers.
    pub(super) async fn end_all(&self) {
        self.remove_files().await;
        if timeout(END_TIMEOUT, self.delete_all()).await.is_err() {
            tracing::info!("Intercept objects not deleted in time");
        }
    }

    /// Follows what listens at the local ports, for as long as it is polled.
    pub(super) async fn watch_local_ports(self: Arc<Self>) {
        let mut entries = self.entries.subscribe();
        let mut refusals = self.targets.refusals();
        loop {
            if entries
                .wait_for(|entries| !entries.is_empty())
                .await
                .is_err()
            {
                return;
            }
            tokio::select! {
                () = sleep(POLL_INTERVAL) => {
                    let listening = listening().await;
                    self.set_local_ports(listening.as_ref());
                }
                _ = refusals.changed() => self.set_refused(),
            }
        }
    }

    fn set_local_ports(&self, listening: Option<&ListeningSockets>) {
        self.entries.send_if_modified(|entries| {
            let mut is_changed = false;
            for entry in entries.values_mut() {
                let ports = local_ports(&entry.wanted, listening);
                if ports != entry.ports {
                    entry.ports = ports;
                    is_changed = true;
                    if let Some(made) = &entry.made
                        && entry.phase == EntryPhase::Standing
                    {
                        self.targets.insert(&made.uid, entry.targets());
                    }
                }
            }
            is_changed
        });
    }

    /// What refused a connection does not listen, until it is looked at again.
    fn set_refused(&self) {
        let refused = self.targets.take_refused();
        self.entries.send_if_modified(|entries| {
            let mut is_changed = false;
            for (uid, port) in refused {
                let is_of = |entry: &&mut OwnIntercept| {
                    entry.made.as_ref().is_some_and(|made| made.uid == uid)
                };
                let entry = entries.values_mut().find(is_of);
                if let Some(state) = entry.and_then(|entry| entry.ports.get_mut(&port)) {
                    is_changed |= state.is_listening;
                    state.is_listening = false;
                }
            }
            is_changed
        });
    }
}

/// `None` if the kernel does not tell.
async fn listening() -> Option<ListeningSockets> {
    // The kernel's table may be long.
    let read = tokio::task::spawn_blocking(ListeningSockets::read).await;
    match read.ok()? {
        Ok(listening) => Some(listening),
        Err(error) => {
            tracing::debug!(%error, "Listening sockets not read");
            None
        }
    }
}

fn unknown(name: &str, entries: &Entries) -> String {
    let names: Vec<&str> = entries
        .iter()
        .filter(|(_, entry)| entry.phase != EntryPhase::Making)
        .map(|(name, _)| name.as_str())
        .collect();
    match names.as_slice() {
        [] => format!("there is no intercept {name}, nor any other"),
        names => format!(
            "there is no intercept {name}: there are {}",
            names.join(", ")
        ),
    }
}

#[cfg(test)]
mod tests;
