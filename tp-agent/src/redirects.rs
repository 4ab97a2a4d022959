//! Carries the plan out: one task for each redirected pod.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    task::{Id, JoinSet},
    time::{MissedTickBehavior, interval},
};

use crate::{
    agentd::Agentd,
    connections::CarriedConnections,
    facts::{Facts, Rules},
    leases::boot_time,
    managers::Managers,
    plan::{Plan, PodPlan, plan},
};
use pod::PodTask;
use taken::AllTaken;

mod earlier;
mod listeners;
mod pod;
mod ports;
mod taken;
mod verify;

/// Leases end by time, too.
const PLAN_INTERVAL: Duration = Duration::from_secs(1);

pub(crate) struct Redirects {
    pub(crate) agentd: Agentd,
    pub(crate) managers: Arc<Managers>,
    pub(crate) connections: Arc<CarriedConnections>,
    pub(crate) rules: Rules,
}

/// A pod whose task runs.
struct Tended {
    plan: watch::Sender<PodPlan>,
    task: Id,
}

impl Redirects {
    /// Runs until it is aborted; all redirects end when the last of the agent's requests has gone.
    pub(crate) async fn run(self, mut facts: watch::Receiver<Facts>) {
        let mut news = self.managers.news();
        let mut tasks = JoinSet::new();
        let mut tended: BTreeMap<String, Tended> = BTreeMap::new();
        let mut tick = interval(PLAN_INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut has_facts = true;
        let taken = Arc::new(AllTaken::from_now_on());
        loop {
            let plan = plan(
                boot_time(),
                &news.borrow_and_update(),
                &facts.borrow_and_update(),
                &self.rules,
            );
            taken.follow(&facts.borrow());
            self.apply(plan, &taken, &mut tended, &mut tasks);
            tokio::select! {
                changed = facts.changed(), if has_facts => has_facts = changed.is_ok(),
                _ = news.changed() => {}
                Some(ended) = tasks.join_next_with_id() => {
                    let id = match ended {
                        Ok((id, ())) => id,
                        Err(error) => {
                            tracing::error!(%error, "Task of a pod failed");
                            error.id()
                        }
                    };
                    tended.retain(|_, it| it.task != id);
                }
                _ = tick.tick() => {}
            }
        }
    }

    fn apply(
        &self,
        plan: Plan,
        taken: &Arc<AllTaken>,
        tended: &mut BTreeMap<String, Tended>,
        tasks: &mut JoinSet<()>,
    ) {
        let Plan { pods, refusals } = plan;
        self.managers.reports().set_refusals(refusals);
        for (uid, pod) in tended.iter() {
            if !pods.contains_key(uid) {
                pod.plan.send_if_modified(|plan| {
                    let was_planned = !plan.ports.is_empty();
                    plan.ports.clear();
                    was_planned
                });
            }
        }
        for (uid, plan) in pods {
            if let Some(pod) = tended.get(&uid) {
                pod.plan.send_if_modified(|current| {
                    let is_new = *current != plan;
                    *current = plan;
                    is_new
                });
                continue;
            }
            let (sender, plan) = watch::channel(plan);
            let task = PodTask {
                uid: uid.clone(),
                agentd: self.agentd.clone(),
                managers: Arc::clone(&self.managers),
                connections: Arc::clone(&self.connections),
                taken: Arc::clone(taken),
                plan,
            };
            let task = tasks.spawn(task.run()).id();
            tended.insert(uid, Tended { plan: sender, task });
        }
    }
}
