//! One connected session: its streams, and whether it may stay.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::{
    sync::Semaphore,
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};
use tp_proto::tunnel::Outcome;
use tp_transport::{Accepted, CloseCode, Peer};

use super::{
    Gateway,
    dial::{Dialler, Grants},
};
use crate::{grpc, sessions::Sessions};

/// Control streams of one session at once.
const MAX_CONTROL: usize = 4;
const RECHECK: Duration = Duration::from_secs(2);

/// Serves until the connection ends, or the session may not stay; then nothing of it is left.
pub(super) async fn serve(gateway: &Gateway, peer: &Peer) {
    let Some(user) = gateway.sessions.user(peer.session()) else {
        peer.close(CloseCode::SessionGone, "the Session does not exist");
        return;
    };
    let share = match gateway.shares.enter(user.name()) {
        Ok(share) => share,
        Err(reason) => {
            peer.close(CloseCode::NotAdmitted, &reason);
            return;
        }
    };
    let dialler = Arc::new(Dialler {
        user: Arc::clone(&user),
        namespace: peer.session().namespace.clone(),
        access: Arc::clone(&gateway.access),
        model: gateway.model.clone(),
        allow: gateway.allow.clone(),
        grants: Grants::default(),
        dials: Semaphore::new(super::dial::MAX_DIALS),
    });
    let controls = Arc::new(Semaphore::new(MAX_CONTROL));
    // Dropped at the end, and with it every stream that is left.
    let mut tasks = JoinSet::new();
    tasks.spawn(recheck(Arc::clone(&dialler)));
    tasks.spawn(watch_standing(Arc::clone(&gateway.sessions), peer.clone()));

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
                    Arc::clone(&user),
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
        dialler.recheck().await;
    }
}

/// Closes the connection of a session that may not stay.
async fn watch_standing(sessions: Arc<Sessions>, peer: Peer) {
    let mut changes = sessions.changes();
    let mut tick = interval(RECHECK);
    loop {
        if let Err(reason) = sessions.standing(peer.session(), Timestamp::now()) {
            peer.close(CloseCode::SessionGone, &reason);
            return;
        }
        tokio::select! {
            Ok(()) = changes.changed() => {}
            _ = tick.tick() => {}
        }
    }
}
