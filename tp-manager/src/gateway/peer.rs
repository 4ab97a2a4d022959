//! One connected session: its streams, and whether it may stay.

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
    dial::{Dialler, Grants},
    slots::Slots,
};
use crate::{
    access::User,
    grpc,
    sessions::{Sessions, Standing},
};

/// Control streams of one session at once.
const MAX_CONTROL: usize = 4;
const RECHECK: Duration = Duration::from_secs(2);

/// Serves until the connection ends, or the session may not stay; then nothing of it is left.
pub(super) async fn serve(gateway: &Gateway, peer: &Peer) {
    let standing = match gateway
        .sessions
        .standing(peer.session(), None, Timestamp::now())
    {
        Ok(standing) => standing,
        Err(reason) => {
            peer.close(CloseCode::SessionGone, &reason);
            return;
        }
    };
    let share = match gateway.shares.enter(standing.user.name()) {
        Ok(share) => share,
        Err(reason) => {
            peer.close(CloseCode::NotAdmitted, &reason);
            return;
        }
    };
    let (user_tx, user) = watch::channel(Arc::clone(&standing.user));
    let dialler = Arc::new(Dialler {
        user: user.clone(),
        namespace: peer.session().namespace.clone(),
        access: Arc::clone(&gateway.access),
        model: gateway.model.clone(),
        allow: gateway.allow.clone(),
        grants: Grants::default(),
        slots: Slots::default(),
    });
    let room = Arc::new(grpc::Room::default());
    let controls = Arc::new(Semaphore::new(MAX_CONTROL));
    // Dropped at the end, and with it every stream that is left.
    let mut tasks = JoinSet::new();
    tasks.spawn(recheck(Arc::clone(&dialler)));
    let sessions = Arc::clone(&gateway.sessions);
    tasks.spawn(watch_standing(sessions, peer.clone(), standing, user_tx));

    while let Some(accepted) = peer.accept().await {
        while tasks.try_join_next().is_some() {}
        match accepted {
            Accepted::Control(io) => {
                // More than that is no client of ours; the stream is dropped.
                let Ok(permit) = Arc::clone(&controls).try_acquire_owned() else {
                    continue;
                };
                let control = grpc::Control::new(
                    Arc::clone(&gateway.replica),
                    gateway.model.clone(),
                    Arc::clone(&gateway.access),
                    user.clone(),
                    Arc::clone(&room),
                );
                tasks.spawn(async move {
                    let _permit = permit;
                    grpc::serve(io, control).await;
                });
            }
            Accepted::Dial { target, pending } => {
                let permit = share.flow();
                let dialler = Arc::clone(&dialler);
                tasks.spawn(async move {
                    match permit {
                        Ok(_permit) => dialler.serve(target, pending).await,
                        Err(reason) => pending.refuse(Outcome::Exhausted, &reason).await,
                    }
                });
            }
        }
    }
}

/// Ends flows whose right is gone.
async fn recheck(dialler: Arc<Dialler>) {
    let mut tick = interval(RECHECK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        // Boxed, so that a session that waits does not keep its room.
        Box::pin(dialler.recheck()).await;
    }
}

/// Closes the connection of a session that may not stay, and tells of its user's groups.
async fn watch_standing(
    sessions: Arc<Sessions>,
    peer: Peer,
    mut standing: Standing,
    user_tx: watch::Sender<Arc<User>>,
) {
    let mut changes = sessions.changes();
    let mut tick = interval(RECHECK);
    loop {
        match sessions.standing(peer.session(), Some(&standing), Timestamp::now()) {
            Ok(current) => standing = current,
            Err(reason) => {
                let now = Timestamp::now();
                let code = match sessions.is_deleted(peer.session(), &standing, now) {
                    true => CloseCode::Deleted,
                    false => CloseCode::SessionGone,
                };
                peer.close(code, &reason);
                return;
            }
        }
        let is_new = user_tx.send_if_modified(|user| {
            let is_new = *user != standing.user;
            user.clone_from(&standing.user);
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
