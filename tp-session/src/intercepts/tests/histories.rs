//! Random histories of a session, another user and an administrator: disconnections, requests without
//! an answer, takeovers, deletions, replicas that know different things of earlier Sessions. Folded
//! through the session's renewing and the rule of who holds a port, both ends stand afterwards as they
//! would had everything just begun.

use std::{
    collections::BTreeSet,
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
};

use serde_json::{Value, json};
use tp_core::intercept::holders::{
    Claim, Claimant, DISCONNECTED_AFTER, Standing, WorkloadKey, standings,
};

use super::{
    super::testing::{StagedCreation, StagedView},
    *,
};

const SEEDS: u64 = 8;
const STEPS: usize = 24;
/// The longest that a creation is late.
const LATE_MS: u64 = 600;
/// What a replica may know of a Session that was before: that its connection ended, nothing, that it
/// does not exist.
const REPLICAS: u32 = 3;

type Objects = BTreeMap<String, Value>;

/// A manager as the rule of the holders has it.
struct RuledView {
    objects: Arc<Mutex<Objects>>,
    /// The number of alice's Session.
    session: AtomicU32,
    /// To which alice is connected.
    replica: AtomicU32,
    /// Why an object was deleted, by UID.
    ended: Mutex<BTreeMap<String, String>>,
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

fn claim(object: &Value) -> Claim {
    let spec = &object["spec"];
    let created = text(&object["metadata"]["creationTimestamp"]);
    let ports = spec["ports"].as_array().unwrap().iter();

    Claim {
        uid: text(&object["metadata"]["uid"]),
        created: created.parse::<Timestamp>().unwrap().as_second(),
        user: text(&spec["user"]["username"]),
        session: text(&spec["session"]["uid"]),
        workload: WorkloadKey {
            namespace: "shop".to_owned(),
            kind: "Deployment".to_owned(),
            name: text(&spec["workload"]["name"]),
        },
        ports: ports
            .map(|port| u16::try_from(port["port"].as_u64().unwrap()).unwrap())
            .collect(),
        pod: None,
    }
}

impl RuledView {
    fn claims(&self) -> Vec<Claim> {
        lock(&self.objects).values().map(claim).collect()
    }

    fn claimant(&self, session: &str, replica: u32) -> Option<Claimant> {
        let of = |user: &str, disconnected| Claimant {
            user: user.to_owned(),
            disconnected,
        };
        if session == "session-of-bob" {
            return Some(of("bob", None));
        }
        let is_current = session == format!("session-{}", self.session.load(Relaxed));
        match replica {
            _ if is_current => Some(of("alice", None)),
            0 => Some(of("alice", Some(Duration::from_secs(5)))),
            1 => Some(of("alice", None)),
            _ => None,
        }
    }

    /// By UID, as a replica sees it.
    fn standings(&self, replica: u32) -> BTreeMap<String, Standing> {
        let claims = self.claims();
        let claimant = |session: &str| self.claimant(session, replica);
        let standings = standings(&claims, claimant, DISCONNECTED_AFTER);

        standings
            .into_iter()
            .map(|(uid, standing)| (uid.to_owned(), standing))
            .collect()
    }

    /// No port has two holders, and none of a connected session is without one.
    fn check_holders(&self, replica: u32) {
        let standings = self.standings(replica);
        let mut holders: BTreeMap<(String, u16), Vec<String>> = BTreeMap::new();
        for claim in self.claims() {
            let Some(Standing::Holds { others }) = standings.get(&claim.uid) else {
                continue;
            };
            for port in &claim.ports {
                let holders = holders.entry((claim.workload.name.clone(), *port));
                let holders = holders.or_default();
                if !others.contains_key(port) {
                    holders.push(claim.uid.clone());
                }
            }
        }
        for (port, holders) in holders {
            assert_eq!(holders.len(), 1, "{port:?} in {standings:?}");
        }
    }
}

impl StagedView for RuledView {
    fn state(&self, uid: &str) -> InterceptState {
        let claims = self.claims();
        let state = match self.standings(self.replica.load(Relaxed)).remove(uid) {
            None => InterceptState {
                refusal: "the Intercept does not exist".to_owned(),
                ended: lock(&self.ended).get(uid).cloned().unwrap_or_default(),
                ..InterceptState::default()
            },
            Some(Standing::Orphan | Standing::Away) => InterceptState {
                refusal: "its session is not known".to_owned(),
                ..InterceptState::default()
            },
            Some(Standing::Holds { others }) if others.is_empty() => InterceptState {
                pods: vec![InterceptedPod {
                    name: "web-1".to_owned(),
                    is_redirected: true,
                    ..InterceptedPod::default()
                }],
                ..InterceptState::default()
            },
            Some(Standing::Holds { others }) => InterceptState {
                held: others
                    .iter()
                    .map(|(port, holder)| held(*port, claims.iter().find(|it| it.uid == *holder)))
                    .collect(),
                ..InterceptState::default()
            },
        };

        InterceptState {
            uid: uid.to_owned(),
            ..state
        }
    }

    fn held(&self, workload: &str) -> Vec<HeldPort> {
        let standings = self.standings(self.replica.load(Relaxed));
        let holds = |claim: &Claim| {
            let none = BTreeMap::new();
            standings.get(&claim.uid) == Some(&Standing::Holds { others: none })
        };
        let claims = self.claims();
        let of_workload = claims.iter().filter(|it| it.workload.name == workload);

        of_workload
            .filter(|claim| holds(claim))
            .map(|claim| held(claim.ports[0], Some(claim)))
            .collect()
    }

    fn take_over(&self, workload: &str) {
        let is_ended = |object: &Value| {
            let claim = claim(object);
            claim.user == "bob" && claim.workload.name == workload
        };
        lock(&self.objects).retain(|_, object| !is_ended(object));
    }
}

/// Where the holder was deleted meanwhile, it is somebody else.
fn held(port: u16, holder: Option<&Claim>) -> HeldPort {
    let user = holder.map_or("bob", |holder| &holder.user);

    HeldPort {
        port: port.into(),
        user: user.to_owned(),
        since: String::new(),
        own: user == "alice",
    }
}

struct History {
    lab: Lab,
    view: Arc<RuledView>,
    random: fastrand::Rng,
    /// The names of the intercepts that alice should have.
    wanted: BTreeSet<String>,
    seed: u64,
}

impl History {
    async fn new(seed: u64) -> Self {
        let lab = Lab::new().await;
        let view = Arc::new(RuledView {
            objects: Arc::clone(&lab.api.objects),
            session: AtomicU32::new(0),
            replica: AtomicU32::new(0),
            ended: Mutex::default(),
        });
        *lock(&lab.manager.view) = Some(Arc::clone(&view) as Arc<dyn StagedView>);

        Self {
            lab,
            view,
            random: fastrand::Rng::with_seed(seed),
            wanted: BTreeSet::new(),
            seed,
        }
    }

    async fn run(mut self) {
        self.reconnect().await;
        for _ in 0..STEPS {
            match self.random.u8(0..12) {
                0..=3 => self.intercept().await,
                4 => self.leave().await,
                5..=7 => self.reconnect().await,
                8 => self.bob_intercepts(),
                9 => drop(self.delete_one("bob")),
                10 => self.end("bob took port 80 over", true).await,
                _ => self.end("somebody has ended it", false).await,
            }
            let replica = self.random.u32(0..REPLICAS);
            self.view.check_holders(replica);
        }
        self.settle().await;
        self.compare_with_a_fresh_start().await;
        let bobs = self.objects_of("bob");
        self.lab.own.end_all().await;
        assert_eq!(self.objects_of("bob"), bobs, "seed {}", self.seed);
        assert!(self.objects_of("alice").is_empty(), "seed {}", self.seed);
    }

    /// What becomes of the next requests.
    fn stage_creations(&mut self, most: usize) {
        let count = self.random.usize(..=most);
        let creations = (0..count).map(|_| match self.random.u8(0..4) {
            0 => StagedCreation::Lost,
            1 => StagedCreation::Fails(500),
            2 => StagedCreation::Late(Duration::from_millis(self.random.u64(..LATE_MS))),
            _ => StagedCreation::Refused(500, "out of order".to_owned()),
        });
        *lock(&self.lab.api.creations) = creations.collect();
    }

    async fn intercept(&mut self) {
        let name = format!("web-{}", self.random.u8(0..4));
        if self.wanted.contains(&name) {
            return;
        }
        self.stage_creations(1);
        let asked = InterceptRequest {
            take_over: self.random.bool(),
            ..request(&name)
        };
        match result(self.lab.ask(asked)).await {
            Ok(_) => drop(self.wanted.insert(name)),
            Err(_) => {
                let shown = self.lab.own.status();
                let is_there = shown.iter().any(|it| it.name == name);
                assert!(!is_there, "seed {}: {name}", self.seed);
            }
        }
    }

    async fn leave(&mut self) {
        let names: Vec<String> = self.wanted.iter().cloned().collect();
        if let Some(name) = self.random.choice(&names) {
            self.lab.own.leave(name).await.unwrap();
            self.wanted.remove(name);
        }
    }

    async fn reconnect(&mut self) {
        self.stage_creations(3);
        if self.random.bool() {
            self.lab.shared.up.send_replace(None);
        }
        self.view.session.fetch_add(1, Relaxed);
        let replica = self.random.u32(0..REPLICAS);
        self.view.replica.store(replica, Relaxed);
        self.lab.connect().await;
        if self.random.bool() {
            // Into the midst of what follows, or after it.
            sleep(Duration::from_millis(self.random.u64(..800))).await;
        }
    }

    fn bob_intercepts(&mut self) {
        let workload = format!("web-{}", self.random.u8(0..4));
        self.make_for_bob(&workload);
    }

    fn make_for_bob(&mut self, workload: &str) {
        let name = format!("{workload}-of-bob-{}", self.random.u32(..));
        self.lab.api.make(json!({
            "apiVersion": "tp.internal/v1alpha1", "kind": "Intercept",
            "metadata": {"namespace": "shop", "name": name},
            "spec": {
                "user": {"username": "bob"},
                "session": {"namespace": "shop", "name": "bob", "uid": "session-of-bob"},
                "workload": {"kind": "Deployment", "name": workload},
                "ports": [{"port": 80}],
            },
        }));
    }

    fn objects_of(&self, user: &str) -> BTreeMap<String, String> {
        let objects = lock(&self.lab.api.objects);
        let of_user = objects
            .iter()
            .filter(|(_, object)| claim(object).user == user);

        of_user
            .map(|(name, object)| (name.clone(), claim(object).uid))
            .collect()
    }

    fn delete_one(&mut self, user: &str) -> Option<String> {
        let names: Vec<String> = self.objects_of(user).into_keys().collect();
        let name = self.random.choice(&names)?;
        lock(&self.lab.api.objects).remove(name);

        Some(name.clone())
    }

    /// Somebody ends one of alice's, who leaves it then.
    async fn end(&mut self, why: &str, is_taken: bool) {
        let standing: Vec<OwnIntercept> = {
            let entries = self.lab.own.entries.borrow();
            let made = entries.values().filter(|it| it.made.is_some());
            made.cloned().collect()
        };
        let Some(entry) = self.random.choice(&standing).cloned() else {
            return;
        };
        let made = entry.made.clone().unwrap();
        lock(&self.view.ended).insert(made.uid.clone(), why.to_owned());
        lock(&self.lab.api.objects).remove(&entry.object);
        if is_taken {
            self.make_for_bob(&entry.wanted.workload);
        }
        // What is being made anew at that moment is not ended.
        let is_noticed = |entries: &Entries| {
            let now = &entries[&entry.wanted.name];
            now.phase == EntryPhase::Ended || now.made.as_ref().is_some_and(|it| *it != made)
        };
        let mut entries = self.lab.own.entries.subscribe();
        let noticed = timeout(LIMIT, entries.wait_for(is_noticed)).await;
        let noticed = noticed.unwrap_or_else(|_| panic!("seed {}: it is noticed", self.seed));
        let phase = noticed.unwrap()[&entry.wanted.name].phase;
        if phase == EntryPhase::Ended {
            self.lab.own.leave(&entry.wanted.name).await.unwrap();
            self.wanted.remove(&entry.wanted.name);
        }
    }

    /// Until nothing is under way any more.
    async fn settle(&mut self) {
        lock(&self.lab.api.creations).clear();
        let is_settled = || {
            let session = format!("session-{}", self.lab.session);
            let entries = self.lab.own.entries.borrow();
            let made = entries.values().filter_map(|entry| {
                let made = entry.made.clone()?;
                (made.session == session).then(|| (entry.object.clone(), made.uid))
            });
            let made: BTreeMap<String, String> = made.collect();
            made.len() == entries.len() && made == self.objects_of("alice")
        };
        for pause in [0, LATE_MS] {
            sleep(Duration::from_millis(pause)).await;
            let settled = timeout(LIMIT, async {
                while !is_settled() {
                    sleep(Duration::from_millis(20)).await;
                }
            });
            let settled = settled.await;
            settled.unwrap_or_else(|_| {
                let objects = self.objects_of("alice");
                let entries = self.lab.own.entries.borrow();
                let entries: Vec<_> = entries
                    .values()
                    .map(|it| (&it.object, &it.made, it.phase))
                    .collect();
                panic!("seed {}: {objects:?} of {entries:?}", self.seed)
            });
        }
    }

    /// The objects are those of the intercepts that alice wants, each is announced, and shown as the rule
    /// has it; and what a replica makes of them does not depend on what it knows of earlier Sessions.
    async fn compare_with_a_fresh_start(&self) {
        let seed = self.seed;
        let mut fresh = self.view.standings(0);
        for replica in 0..REPLICAS {
            self.view.check_holders(replica);
            assert_eq!(self.view.standings(replica), fresh, "seed {seed}");
        }
        let ours: BTreeSet<String> = self.objects_of("alice").into_values().collect();
        fresh.retain(|uid, _| ours.contains(uid));
        if !ours.is_empty() {
            let is_told =
                |it: &LocalIntercepts| uids(it).into_iter().collect::<BTreeSet<_>>() == ours;
            self.lab.hears(is_told).await;
        }

        let expected: BTreeMap<String, String> = {
            let entries = self.lab.own.entries.borrow();
            let standing = |entry: &OwnIntercept| match &fresh[&entry.made.as_ref().unwrap().uid] {
                Standing::Holds { others } if others.is_empty() => "active",
                Standing::Holds { .. } => "held",
                standing => panic!("seed {seed}: {standing:?}"),
            };
            let names = entries.iter();
            names
                .map(|(name, it)| (name.clone(), standing(it).to_owned()))
                .collect()
        };
        let names: BTreeSet<String> = expected.keys().cloned().collect();
        assert_eq!(names, self.wanted, "seed {seed}");
        let shown = || {
            let shown = self.lab.own.status().into_iter();
            shown
                .map(|it| (it.name, it.state))
                .collect::<BTreeMap<_, _>>()
        };
        let is_shown = timeout(LIMIT, async {
            while shown() != expected {
                sleep(Duration::from_millis(20)).await;
            }
        });
        let is_shown = is_shown.await;
        assert!(
            is_shown.is_ok(),
            "seed {seed}: {:?} for {expected:?}",
            shown()
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_any_history_both_ends_stand_as_after_a_fresh_start() {
    let seeds = (0..SEEDS).map(|seed| async move { History::new(seed).await.run().await });
    let histories: Vec<_> = seeds
        .map(|it| AbortOnDropHandle::new(tokio::spawn(it)))
        .collect();
    for history in histories {
        history.await.unwrap();
    }
}
