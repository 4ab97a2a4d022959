//! A request to intercept, from the user's words to redirected pods.

use std::{collections::BTreeMap, mem, sync::Arc, time::Duration};

use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};
use tonic::{Code, Status as GrpcStatus};
use tp_proto::{
    crd::MAX_INTERCEPTS,
    fault::{Fault, FaultKind},
    local::{InterceptEvent, InterceptRequest, intercept_event::Event},
    tunnel::{FindWorkloadRequest, FindWorkloadResponse},
};

use super::{
    Entries, EntryPhase, OwnIntercept, OwnIntercepts, WantedIntercept, callers, earlier, listening,
    request::CheckedRequest,
    view::{self, Outlook},
};

/// Bounds the manager's look into the cluster.
const FIND_TIMEOUT: Duration = Duration::from_secs(10);
/// Bounds the wait for the pods.
const REDIRECT_TIMEOUT: Duration = Duration::from_secs(30);
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// The events for one caller.
pub(in super::super) struct InterceptEvents(
    pub(in super::super) mpsc::Sender<Result<InterceptEvent, GrpcStatus>>,
);

impl InterceptEvents {
    /// Returns whether the caller is still there.
    async fn send(&self, event: Event) -> bool {
        let event = Ok(InterceptEvent { event: Some(event) });

        self.0.send(event).await.is_ok()
    }

    async fn step(&self, phrase: String) {
        // A caller that has gone is noticed elsewhere.
        self.send(Event::Progress(phrase)).await;
    }

    async fn fail(&self, fault: Fault) {
        drop(self.0.send(Err(fault.into())).await);
    }
}

impl OwnIntercepts {
    /// Makes an intercept and tells the caller of it, or leaves nothing. With `for_command` it ends with
    /// the caller, the process `caller`.
    pub(in super::super) async fn answer(
        self: Arc<Self>,
        request: InterceptRequest,
        connected: String,
        caller: Option<u32>,
        events: InterceptEvents,
    ) {
        let for_command = request.for_command;
        let made = match CheckedRequest::of(request, &connected) {
            Ok(mut checked) => {
                checked.command_of = caller.filter(|_| for_command);
                checked.asked_from = caller.map(callers::ancestors).unwrap_or_default().into();
                self.make(checked, &events).await
            }
            Err(fault) => Err(fault),
        };
        let wanted = match made {
            Ok(wanted) => wanted,
            Err(fault) => {
                events.fail(fault).await;
                return;
            }
        };
        let reason = self.without_tunnel();
        let shown = self.entry(&wanted);
        let shown = shown.map(|entry| {
            let mut shown = view::of(&entry, reason.as_deref());
            shown.notices.extend(earlier::unheard_of(&entry));
            shown
        });
        let is_told = match shown {
            Some(shown) => events.send(Event::Intercepted(shown)).await,
            // The user has ended it already.
            None => return,
        };
        if is_told && for_command {
            tokio::select! {
                () = events.0.closed() => {}
                // The end of the connection ends it.
                () = self.stop.cancelled() => return,
                // The end of the events tells the caller that it is no more.
                () = self.tell(&wanted, &events) => return,
            }
        }
        if !is_told || for_command {
            self.abandon(&wanted).await;
        }
    }

    async fn make(
        &self,
        checked: CheckedRequest,
        events: &InterceptEvents,
    ) -> Result<Arc<WantedIntercept>, Fault> {
        check_name(&self.entries.borrow(), &checked.name)?;
        let wanted = tokio::select! {
            wanted = self.prepare(checked, events) => wanted?,
            fault = self.unwanted(events) => return Err(fault),
        };
        let entry = OwnIntercept::new(Arc::clone(&wanted), listening().await.as_ref());
        let object = entry.object.clone();
        let mut added = Ok(());
        self.entries.send_if_modified(|entries| {
            added = check_room(entries, &wanted);
            if added.is_ok() {
                entries.insert(wanted.name.clone(), entry);
            }
            added.is_ok()
        });
        added?;
        if let Err(fault) = self.make_object(&wanted, &object, events).await {
            self.abandon(&wanted).await;
            return Err(fault);
        }

        Ok(wanted)
    }

    /// Resolves with the fault when the caller has gone, or the connection ends.
    async fn unwanted(&self, events: &InterceptEvents) -> Fault {
        let message = tokio::select! {
            () = events.0.closed() => "the caller has gone",
            () = self.stop.cancelled() => "the connection ends: run `tp connect` again",
        };

        Fault::new(FaultKind::Failed, message)
    }

    /// Asks the manager what is meant, and the resolver where the process listens.
    async fn prepare(
        &self,
        checked: CheckedRequest,
        events: &InterceptEvents,
    ) -> Result<Arc<WantedIntercept>, Fault> {
        let CheckedRequest { find, .. } = &checked;
        events
            .step(format!(
                "looking for {} in {}",
                find.workload, find.namespace
            ))
            .await;
        let (found, addresses) = tokio::join!(self.find(find), checked.resolve());
        let mut found = found?;
        let held = mem::take(&mut found.held);
        let wanted = checked.complete(found, addresses?)?;
        // Objects made in one second have no order: who comes later must not try.
        view::check_free(&wanted, &held)?;

        Ok(Arc::new(wanted))
    }

    async fn find(&self, request: &FindWorkloadRequest) -> Result<FindWorkloadResponse, Fault> {
        let Some(up) = self.shared.up() else {
            return Err(no_tunnel(&self.shared.reason.borrow()));
        };
        let mut manager = up.manager;
        match timeout(FIND_TIMEOUT, manager.find_workload(request.clone())).await {
            Ok(Ok(found)) => Ok(found.into_inner()),
            Ok(Err(status)) => Err(not_found(&status)),
            Err(_) => {
                let message = "the traffic manager does not find the workload in time: try again";
                Err(Fault::new(FaultKind::TemporaryFailure, message))
            }
        }
    }

    /// Ends the intercepts that others have of the ports.
    async fn take_over(
        &self,
        wanted: &WantedIntercept,
        events: &InterceptEvents,
    ) -> Result<(), Fault> {
        let title = wanted.title();
        events.step(format!("taking {title} over")).await;
        let Some(up) = self.shared.up() else {
            return Err(no_tunnel(&self.shared.reason.borrow()));
        };
        let mut manager = up.manager;
        let ended = match timeout(FIND_TIMEOUT, manager.take_over(wanted.takeover())).await {
            Ok(Ok(ended)) => ended.into_inner().ended,
            Ok(Err(status)) => return Err(not_found(&status)),
            Err(_) => {
                let message =
                    "the traffic manager does not end the other intercept in time: try again";
                return Err(Fault::new(FaultKind::TemporaryFailure, message));
            }
        };
        for held in ended {
            tracing::info!(%title, port = held.port, user = held.user, "Port taken over");
        }

        Ok(())
    }

    /// Creates the object and waits until it is served. The caller deletes it after a failure.
    async fn make_object(
        &self,
        wanted: &Arc<WantedIntercept>,
        object: &str,
        events: &InterceptEvents,
    ) -> Result<(), Fault> {
        if wanted.take_over {
            self.take_over(wanted, events).await?;
        }
        events
            .step(format!("intercepting {}", wanted.title()))
            .await;
        let user = self.login.user().await?;
        let Some(up) = self.shared.up() else {
            return Err(no_tunnel(&self.shared.reason.borrow()));
        };
        // Not given up half-way: what the API server creates must be known here.
        self.create(wanted, object, &up.session, &user).await?;
        // From here on a new Session makes it anew.
        self.update(wanted, |entry| {
            if entry.phase == EntryPhase::Making {
                entry.phase = EntryPhase::Standing;
            }
        });

        tokio::select! {
            settled = self.settled(wanted, events) => settled,
            fault = self.unwanted(events) => Err(fault),
        }
    }

    /// Waits until the pods are redirected, or there is none.
    async fn settled(
        &self,
        wanted: &Arc<WantedIntercept>,
        events: &InterceptEvents,
    ) -> Result<(), Fault> {
        let mut entries = self.entries.subscribe();
        let begun = Instant::now();
        let mut last = String::new();
        loop {
            entries.mark_unchanged();
            let Some(entry) = self.entry(wanted) else {
                let message = format!("the intercept {} was ended meanwhile", wanted.name);
                return Err(Fault::new(FaultKind::Failed, message));
            };
            let phrase = match view::outlook(&entry, begun.elapsed()) {
                Outlook::Pending(phrase) => phrase,
                Outlook::NoPods if wanted.ready == 0 => return Ok(()),
                Outlook::NoPods => format!("waiting for the pods of {}", wanted.title()),
                Outlook::Active => return Ok(()),
                Outlook::Failed(fault) => return Err(fault),
            };
            if begun.elapsed() >= REDIRECT_TIMEOUT {
                return late(&entry, &phrase);
            }
            if phrase != last {
                events.step(phrase.clone()).await;
                last = phrase;
            }
            // What is seen depends on the time as well.
            let _ = timeout(LOOK_INTERVAL, entries.changed()).await;
        }
    }

    /// Ends an intercept that nobody wants any more, though the API server may not answer.
    async fn abandon(&self, wanted: &Arc<WantedIntercept>) {
        if !self.update(wanted, |entry| entry.phase = EntryPhase::Leaving) {
            return;
        }
        if let Err(fault) = self.withdraw(wanted).await {
            tracing::info!(reason = %fault, "Intercept object not deleted, trying again");
            self.forget_if(wanted, |_| true, Self::leave_over).await;
        }
    }
}

/// Pods that are redirected count, though others are late.
fn late(entry: &OwnIntercept, phrase: &str) -> Result<(), Fault> {
    let mut pods = entry.state.iter().flat_map(|state| &state.pods);
    if pods.any(|pod| pod.is_redirected) {
        return Ok(());
    }
    let message = format!(
        "{} was not intercepted within {} s ({phrase}): try again; `kubectl -n tp-agents get pods` \
         shows whether the agents run",
        entry.wanted.title(),
        REDIRECT_TIMEOUT.as_secs()
    );

    Err(Fault::new(FaultKind::TemporaryFailure, message))
}

fn no_tunnel(reason: &str) -> Fault {
    let message = format!("there is no tunnel at the moment: {reason}");

    Fault::new(FaultKind::Unavailable, message)
}

/// The manager's sentence is the message.
fn not_found(status: &GrpcStatus) -> Fault {
    let kind = match status.code() {
        Code::PermissionDenied => FaultKind::NoPermission,
        Code::NotFound | Code::FailedPrecondition | Code::InvalidArgument => FaultKind::Usage,
        Code::Unimplemented => {
            let message = "the traffic manager is older and knows no intercepts: ask an administrator \
                           to run `tp install`";
            return Fault::new(FaultKind::NotInstalled, message);
        }
        Code::Unavailable | Code::DeadlineExceeded | Code::ResourceExhausted => {
            FaultKind::TemporaryFailure
        }
        _ => FaultKind::Unavailable,
    };

    Fault::new(kind, status.message())
}

fn check_name(entries: &Entries, name: &str) -> Result<(), Fault> {
    // What somebody else has ended gives way.
    let taken = entries.get(name).filter(|it| it.phase != EntryPhase::Ended);
    let Some(taken) = taken else {
        return Ok(());
    };

    Err(Fault::new(
        FaultKind::Usage,
        format!(
            "there is an intercept {name} already, of {} in {}: end it with `tp leave {name}`, or give \
             this one another name with --name",
            taken.wanted.title(),
            taken.wanted.namespace
        ),
    ))
}

fn check_room(entries: &Entries, wanted: &WantedIntercept) -> Result<(), Fault> {
    check_name(entries, &wanted.name)?;
    if entries.len() >= MAX_INTERCEPTS {
        let message =
            format!("a session makes at most {MAX_INTERCEPTS} intercepts: `tp leave` ends one");
        return Err(Fault::new(FaultKind::Usage, message));
    }
    let place = |wanted: &WantedIntercept| {
        let WantedIntercept {
            namespace,
            kind,
            workload,
            ..
        } = wanted;
        [namespace, kind, workload].map(String::clone)
    };
    let mut ours = BTreeMap::new();
    for entry in entries.values() {
        if place(&entry.wanted) == place(wanted) && entry.phase != EntryPhase::Ended {
            ours.extend(entry.ports.keys().map(|port| (*port, &entry.wanted.name)));
        }
    }
    let twice = wanted.ports.iter().find_map(|port| {
        let name = ours.get(&port.port)?;
        Some((port.port, *name))
    });
    let Some((port, name)) = twice else {
        return Ok(());
    };

    Err(Fault::new(
        FaultKind::Usage,
        format!(
            "port {port} of {} is intercepted already, as {name}: `tp leave {name}` ends that",
            wanted.title()
        ),
    ))
}
