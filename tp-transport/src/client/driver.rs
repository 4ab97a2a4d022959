//! The task that keeps the tunnel on the best path: the I/O and the clock of the monitor.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use quinn::{Connection, Endpoint};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::sleep_until,
};

use tokio_util::sync::CancellationToken;
use tp_core::path::{
    BASE_SIZE, PathChoice, PathKind,
    batching::{self, BatchCheck, BatchLoss},
    monitor::{Action, CandidateStatus, Monitor, Target},
};

use crate::{
    codes::CloseCode,
    congestion::PathEpoch,
    framed::now_ms,
    mux::{
        Mux,
        client::{ClientSide, ProbeReply},
    },
    probe::{DO_NOT_BATCH, Probe, ProbeKind, REPLY_AS_BATCH},
    status::PathStatus,
};

#[derive(Debug)]
pub(super) enum Command {
    Candidates(Vec<SocketAddr>),
    LinkReplaced,
    Survey(SurveyRequest),
}

/// Probes every address; with `again`, only those that have not answered yet.
#[derive(Debug)]
pub(super) struct SurveyRequest {
    pub(super) again: bool,
    /// The results before these probes are answered.
    pub(super) found: oneshot::Sender<Vec<CandidateStatus>>,
}

pub(super) struct Driver {
    monitor: Monitor,
    /// Checks batches on the UDP path in use.
    check: Option<BatchCheck>,
    endpoint: Endpoint,
    connection: Connection,
    mux: Arc<Mux<ClientSide>>,
    epoch: Arc<PathEpoch>,
    gone: CancellationToken,
    status: watch::Sender<PathStatus>,
}

/// The parts of a tunnel that its driver needs.
pub(super) struct Parts {
    pub(super) choice: PathChoice,
    pub(super) endpoint: Endpoint,
    pub(super) connection: Connection,
    pub(super) mux: Arc<Mux<ClientSide>>,
    pub(super) epoch: Arc<PathEpoch>,
    /// Cancelled before the connection is closed from here for want of an answer.
    pub(super) gone: CancellationToken,
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
    pub(super) fn new(parts: Parts) -> (Self, watch::Receiver<PathStatus>) {
        let Parts {
            choice,
            endpoint,
            connection,
            mux,
            epoch,
            gone,
        } = parts;
        let monitor = Monitor::new(choice, Instant::now());
        let (status, status_rx) = watch::channel(PathStatus {
            path: PathKind::Stream,
            reason: monitor.reason(),
            remote: None,
            batching: "",
            switches: 0,
        });
        let driver = Self {
            monitor,
            check: None,
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
                        // The manager needs a packet on the new stream to find the connection.
                        self.rebind();
                    }
                }
                Input::Command(Command::Survey(request)) => self.survey(request),
                Input::LinkEnded => {
                    link_up = false;
                    self.monitor.on_link(Instant::now(), false);
                }
                Input::Reply(reply) => self.on_reply(Instant::now(), reply),
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
        let now = Instant::now();
        let check = self.check.as_ref().map(BatchCheck::next_tick);
        let due = self.monitor.next_tick(now);
        let due = check.map_or(due, |check| due.min(check).max(now));
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
            self.on_reply(now, reply);
        }
        let silent = now_ms().saturating_sub(self.mux.side().link().last_received_ms());
        let link_received = now
            .checked_sub(Duration::from_millis(silent))
            .unwrap_or(now);
        for action in self.monitor.tick(now, link_received) {
            self.act(now, action);
        }
        self.check_batches(now);
    }

    fn on_reply(&mut self, now: Instant, reply: ProbeReply) {
        let Probe { counter, tag } = reply.probe;
        self.monitor.on_reply(now, reply.from, counter);
        if let Some(check) = &mut self.check
            && self.monitor.active() == Target::Udp(reply.from)
        {
            check.on_reply(now, counter, tag);
        }
    }

    fn survey(&mut self, SurveyRequest { again, found }: SurveyRequest) {
        let now = Instant::now();
        for action in self.monitor.survey(now, again) {
            self.act(now, action);
        }
        // The caller may have gone.
        drop(found.send(self.monitor.found().to_vec()));
    }

    /// Applies the result of the batch check, and sends the probes of its next round.
    fn check_batches(&mut self, now: Instant) {
        let is_due = match &mut self.check {
            Some(check) => check.tick(now, self.monitor.is_busy(now)),
            None => false,
        };
        self.mux.side().set_batched(!self.lost().up);
        if !is_due {
            return;
        }
        let (Target::Udp(remote), Some(keys), Some(udp)) = (
            self.monitor.active(),
            self.mux.side().keys(),
            self.mux.udp(),
        ) else {
            // A check that is due and never begins would be due again at once.
            self.check = None;
            return;
        };
        let rtt = self.monitor.udp_rtt();
        let first = self.monitor.take_counters(batching::COUNTERS);
        let size = usize::from(BASE_SIZE);
        let probe = |counter, tag| {
            let tag = tag | self.tag();
            keys.seal(ProbeKind::Request, Probe { counter, tag }, size)
        };
        let mut counters = first..;
        let batch: Vec<u8> = counters
            .by_ref()
            .take(batching::PARTS)
            .flat_map(|counter| probe(counter, 0))
            .collect();
        udp.send_probes(&batch, size, remote);
        for (counter, tag) in counters.zip([REPLY_AS_BATCH, 0]) {
            udp.send_probes(&probe(counter, tag), size, remote);
        }
        if let Some(check) = &mut self.check {
            check.begin(now, first, rtt);
        }
    }

    fn lost(&self) -> BatchLoss {
        self.check
            .as_ref()
            .map(BatchCheck::lost)
            .unwrap_or_default()
    }

    /// The tag of every request to the manager.
    fn tag(&self) -> u8 {
        match self.lost().down {
            true => DO_NOT_BATCH,
            false => 0,
        }
    }

    fn act(&mut self, now: Instant, action: Action) {
        let side = self.mux.side();
        match action {
            Action::Probe { to, counter, size } => {
                let Some(keys) = side.keys() else {
                    return;
                };
                let tag = self.tag();
                let probe = keys.seal(ProbeKind::Request, Probe { counter, tag }, size);
                match (to, self.mux.udp()) {
                    (Target::Link, _) => side.link().send_probe(&probe),
                    (Target::Udp(remote), Some(udp)) => {
                        udp.send_probes(&probe, probe.len(), remote);
                    }
                    (Target::Udp(_), None) => {}
                }
            }
            Action::Switch(target) => {
                let remote = match target {
                    Target::Link => None,
                    Target::Udp(remote) => Some(remote),
                };
                // The verdict on batches was about the path before.
                side.set_batched(true);
                side.switch(remote);
                self.check = remote.map(|_| BatchCheck::new(now));
                self.rebind();
                tracing::debug!(?target, "Tunnel moves to another path");
            }
            Action::Gone => {
                // Read by those that learn that the connection is closed.
                self.gone.cancel();
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
            batching: self.lost().reason(),
            switches: self.epoch.switches(),
        };
        self.status.send_if_modified(|current| {
            let is_new = *current != status;
            *current = status;
            is_new
        });
    }
}
