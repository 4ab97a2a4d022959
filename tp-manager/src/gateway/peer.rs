//! One connected session: its streams, and the checks that it may stay.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::{
    sync::{Semaphore, watch},
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};
use tp_proto::tunnel::Outcome;
use tp_transport::{Accepted, CloseCode, Peer};

use super::{
    Gateway,
    dial::{ActiveRights, Dialler},
    slots::Slots,
};
use crate::{
    access::User,
    grpc,
    sessions::{Sessions, ValidSession},
};

/// Control streams of one session at once.
const MAX_CONTROL: usize = 4;
const RECHECK_INTERVAL: Duration = Duration::from_secs(2);

/// Serves until the connection ends or the session may not stay, and then ends all its tasks.
pub(super) async fn serve(gateway: &Gateway, peer: &Peer) {
    let valid = match gateway
        .sessions
        .revalidate(peer.session(), None, Timestamp::now())
    {
        Ok(valid) => valid,
        Err(reason) => {
            peer.close(CloseCode::SessionGone, &reason);
            return;
        }
    };
    let quota = match gateway.quotas.enter(valid.user.name()) {
        Ok(quota) => Arc::new(quota),
        Err(reason) => {
            peer.close(CloseCode::NotAdmitted, &reason);
            return;
        }
    };
    let (user_tx, user) = watch::channel(Arc::clone(&valid.user));
    let dialler = Arc::new(Dialler {
        user: user.clone(),
        session: peer.session().clone(),
        calls: Arc::clone(&gateway.intercepts.container_calls),
        access: Arc::clone(&gateway.access),
        model: gateway.model.clone(),
        allow: gateway.allow.clone(),
        rights: ActiveRights::default(),
        slots: Slots::default(),
    });
    let served = gateway.intercepts.serve(peer.clone(), Arc::clone(&quota));
    let limits = Arc::new(grpc::CallLimits::default());
    let controls = Arc::new(Semaphore::new(MAX_CONTROL));
    // Dropped at the end, which ends the remaining streams.
    let mut tasks = JoinSet::new();
    tasks.spawn(recheck(Arc::clone(&dialler)));
    let sessions = Arc::clone(&gateway.sessions);
    tasks.spawn(watch_session(sessions, peer.clone(), valid, user_tx));

    while let Some(accepted) = peer.accept().await {
        while tasks.try_join_next().is_some() {}
        match accepted {
            Accepted::Control(io) => {
                // Our clients do not open more; the stream is dropped.
                let Ok(permit) = Arc::clone(&controls).try_acquire_owned() else {
                    continue;
                };
                let control = grpc::Control::new(
                    Arc::clone(&gateway.replica),
                    gateway.model.clone(),
                    Arc::clone(&gateway.access),
                    user.clone(),
                    Arc::clone(&limits),
                )
                .serving(served.handle());
                tasks.spawn(async move {
                    let _permit = permit;
                    grpc::serve(io, control).await;
                });
            }
            Accepted::Dial {
                target,
                to_container,
                pending,
            } => {
                let permit = quota.flow();
                let dialler = Arc::clone(&dialler);
                tasks.spawn(async move {
                    match permit {
                        Ok(_permit) => dialler.serve(target, to_container, pending).await,
                        Err(reason) => pending.refuse(Outcome::Exhausted, &reason).await,
                    }
                });
            }
        }
    }
}

/// Ends flows whose right was revoked.
async fn recheck(dialler: Arc<Dialler>) {
    let mut tick = interval(RECHECK_INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        // Boxed, so that a waiting session does not keep its memory.
        Box::pin(dialler.recheck()).await;
    }
}

/// Closes the connection of a session that may not stay, and publishes changes of its user.
async fn watch_session(
    sessions: Arc<Sessions>,
    peer: Peer,
    mut valid: ValidSession,
    user_tx: watch::Sender<Arc<User>>,
) {
    let mut changes = sessions.changes();
    let mut tick = interval(RECHECK_INTERVAL);
    loop {
        match sessions.revalidate(peer.session(), Some(&valid), Timestamp::now()) {
            Ok(current) => valid = current,
            Err(reason) => {
                let now = Timestamp::now();
                let code = match sessions.is_deleted(peer.session(), &valid, now) {
                    true => CloseCode::Deleted,
                    false => CloseCode::SessionGone,
                };
                peer.close(code, &reason);
                return;
            }
        }
        let is_new = user_tx.send_if_modified(|user| {
            let is_new = *user != valid.user;
            user.clone_from(&valid.user);
            is_new
        });
        if is_new {
            tracing::info!(session = %peer.session(), "Renewal changed the user's groups");
        }
        tokio::select! {
            Ok(()) = changes.changed() => {}
            _ = tick.tick() => {}
        }
    }
}
