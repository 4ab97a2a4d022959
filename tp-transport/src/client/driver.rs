//! The task that keeps the tunnel on the best path: the monitor's clock, ears and hands.

use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use quinn::{Connection, Endpoint};
use tokio::{
    sync::{mpsc, watch},
    time::sleep_until,
};

use crate::{
    client::PathChoice,
    codes::CloseCode,
    congestion::PathEpoch,
    framed::now_ms,
    monitor::{Action, Monitor, Target},
    mux::{
        Mux,
        client::{ClientSide, ProbeReply},
    },
    probe::ProbeKind,
    status::{PathKind, PathStatus},
};

#[derive(Debug)]
pub(super) enum Command {
    Candidates(Vec<SocketAddr>),
    LinkReplaced,
}

pub(super) struct Driver {
    monitor: Monitor,
    endpoint: Endpoint,
    connection: Connection,
    mux: Arc<Mux<ClientSide>>,
    epoch: Arc<PathEpoch>,
    gone: Arc<OnceLock<()>>,
    status: watch::Sender<PathStatus>,
}

enum Input {
    Command(Command),
    Reply(ProbeReply),
    LinkEnded,
    Busy,
    Tick,
    Closed,
}

impl Driver {
    pub(super) fn new(
        choice: PathChoice,
        endpoint: Endpoint,
        connection: Connection,
        mux: Arc<Mux<ClientSide>>,
        epoch: Arc<PathEpoch>,
        gone: Arc<OnceLock<()>>,
    ) -> (Self, watch::Receiver<PathStatus>) {
        let monitor = Monitor::new(choice, Instant::now());
        let (status, status_rx) = watch::channel(PathStatus {
            path: PathKind::Stream,
            reason: monitor.reason(),
            remote: None,
            switches: 0,
        });
        let driver = Self {
            monitor,
            endpoint,
            connection,
            mux,
            epoch,
            gone,
            status,
        };

        (driver, status_rx)
    }

    /// Runs until the connection is closed.
    pub(super) async fn run(
        mut self,
        mut commands: mpsc::Receiver<Command>,
        mut replies: mpsc::Receiver<ProbeReply>,
    ) {
        let mut link_up = true;
        loop {
            match self.next_input(&mut commands, &mut replies, link_up).await {
                Input::Closed => return,
                Input::Command(Command::Candidates(candidates)) => {
                    self.mux.side().set_candidates(&candidates);
                    self.monitor.set_candidates(Instant::now(), &candidates);
                }
                Input::Command(Command::LinkReplaced) => {
                    link_up = true;
                    self.monitor.on_link(Instant::now(), true);
                    if self.monitor.active() == Target::Link {
                        // A packet must tell the manager where the connection is.
                        self.rebind();
                    }
                }
                Input::LinkEnded => {
                    link_up = false;
                    self.monitor.on_link(Instant::now(), false);
                }
                Input::Reply(reply) => {
                    let now = Instant::now();
                    self.monitor.on_reply(now, reply.from, reply.counter);
                }
                Input::Busy => {}
                Input::Tick => self.tick(&mut replies),
            }
            if self.mux.side().take_busy() {
                self.monitor.on_activity(Instant::now());
            }
            self.publish();
        }
    }

    async fn next_input(
        &self,
        commands: &mut mpsc::Receiver<Command>,
        replies: &mut mpsc::Receiver<ProbeReply>,
        link_up: bool,
    ) -> Input {
        let due = self.monitor.next_tick(Instant::now());
        let link = self.mux.side().link();
        // Every arm may be dropped without loss. Replies come before the clock: what has arrived
        // must be known when the monitor judges.
        tokio::select! {
            biased;
            _ = self.connection.closed() => Input::Closed,
            Some(command) = commands.recv() => Input::Command(command),
            Some(reply) = replies.recv() => Input::Reply(reply),
            () = link.ended().cancelled(), if link_up => Input::LinkEnded,
            () = sleep_until(due.into()) => Input::Tick,
            () = self.mux.side().busy() => Input::Busy,
        }
    }

    fn tick(&mut self, replies: &mut mpsc::Receiver<ProbeReply>) {
        let now = Instant::now();
        while let Ok(reply) = replies.try_recv() {
            self.monitor.on_reply(now, reply.from, reply.counter);
        }
        let silent = now_ms().saturating_sub(self.mux.side().link().heard_ms());
        let link_heard = now
            .checked_sub(Duration::from_millis(silent))
            .unwrap_or(now);
        for action in self.monitor.tick(now, link_heard) {
            self.act(action);
        }
    }

    fn act(&self, action: Action) {
        let side = self.mux.side();
        match action {
            Action::Probe { to, counter, size } => {
                let Some(keys) = side.keys() else {
                    return;
                };
                let probe = keys.seal(ProbeKind::Request, counter, size);
                match (to, self.mux.udp()) {
                    (Target::Link, _) => side.link().send_probe(&probe),
                    (Target::Udp(remote), Some(udp)) => udp.send_probe(&probe, remote),
                    (Target::Udp(_), None) => {}
                }
            }
            Action::Switch(target) => {
                let remote = match target {
                    Target::Link => None,
                    Target::Udp(remote) => Some(remote),
                };
                side.switch(remote);
                self.rebind();
                tracing::debug!(?target, "The tunnel moves to another path");
            }
            Action::Gone => {
                // Read by whoever learns that the connection is closed.
                let _ = self.gone.set(());
                self.connection.close(CloseCode::Quit.into(), b"no answer");
            }
        }
    }

    /// Makes QUIC send at once, by the path in use, with another connection id.
    fn rebind(&self) {
        let socket = Arc::clone(&self.mux);
        if let Err(error) = self.endpoint.rebind_abstract(socket) {
            tracing::debug!(%error, "Cannot announce the new path");
        }
    }

    fn publish(&self) {
        let remote = self.mux.side().remote();
        let status = PathStatus {
            path: self.epoch.path(),
            reason: self.monitor.reason(),
            remote,
            switches: self.epoch.switches(),
        };
        self.status.send_if_modified(|current| {
            let is_new = *current != status;
            *current = status;
            is_new
        });
    }
}
