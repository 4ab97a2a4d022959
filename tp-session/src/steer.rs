//! Tells the root daemon which networks and name servers are steered, and every change of them.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, SocketAddrV4},
    sync::Arc,
    time::Duration,
};

use ipnet::{IpNet, Ipv4Net};
use tokio::{sync::watch, time::sleep};
use tp_core::{
    sessions::{MAX_WANTED_NETWORKS, NetworkChanges, ToldNetworks},
    steering::{Decision, Local, Wishes, collisions, decide, is_always_local},
};
use tp_proto::{
    fault::{Fault, FaultKind},
    local::ConnectRequest,
};
use tp_root_api::{MAX_NETWORKS_PER_PACKET, Request, Steer};

use super::{root_link::RootLink, shared::Shared};

/// Between attempts to send a change that the root daemon refused.
pub(super) const RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// The last change that the root daemon accepted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Steered {
    pub(super) networks: Vec<IpNet>,
    /// Sentences.
    pub(super) notices: Vec<String>,
    /// The reason why the last change was not accepted.
    problem: Option<String>,
}

impl Steered {
    pub(super) fn notices(&self) -> Vec<String> {
        self.notices.iter().chain(&self.problem).cloned().collect()
    }
}

/// The networks that the user adds to and takes from the cluster's.
pub(super) fn wishes(request: &ConnectRequest) -> Result<Wishes, Fault> {
    let parse = |flag: &str, texts: &[String]| {
        texts
            .iter()
            .map(|text| {
                text.parse::<IpNet>()
                    .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
                    .map(|network| network.trunc())
                    .map_err(|_| {
                        let message = format!(
                            "{flag} {text} is no network: write it as 10.0.0.0/8 or 10.1.2.3"
                        );
                        Fault::new(FaultKind::Usage, message)
                    })
            })
            .collect::<Result<Vec<_>, _>>()
    };
    let also = parse("--also-proxy", &request.also_proxy)?;
    if let Some(local) = also.iter().find(|network| is_always_local(network)) {
        let message = format!("--also-proxy {local} cannot be: it is always this machine's own");
        return Err(Fault::new(FaultKind::Usage, message));
    }

    Ok(Wishes {
        also,
        never: parse("--never-proxy", &request.never_proxy)?,
        api_server: BTreeSet::new(),
    })
}

/// Returns whether networks of the cluster, or wanted ones, overlap those of a data path.
pub(super) fn collides(datapath: &[Ipv4Net], networks: &[IpNet]) -> bool {
    !collisions(datapath, networks, &Local::default()).is_empty()
}

/// Follows all inputs of steering, and tells the root daemon.
pub(super) struct Follower {
    pub(super) root: Arc<RootLink>,
    pub(super) told: ToldNetworks,
    pub(super) wishes: Wishes,
    /// Networks of the data path.
    pub(super) datapath: [Ipv4Net; 2],
    pub(super) networks: watch::Receiver<Vec<IpNet>>,
    pub(super) name_servers: watch::Receiver<Vec<SocketAddrV4>>,
    pub(super) local: watch::Receiver<Local>,
    pub(super) exempt: watch::Receiver<BTreeSet<IpNet>>,
    /// Addresses outside the cluster's networks that names of the cluster lead to.
    pub(super) external: watch::Receiver<Vec<Ipv4Addr>>,
    pub(super) shared: Arc<Shared>,
    pub(super) steered: watch::Sender<Steered>,
    pub(super) retry: Duration,
}

impl Follower {
    /// Steers for the first time. [`Self::run`] sees every change from here on.
    pub(super) async fn begin(&mut self) -> Result<(), Fault> {
        self.steer().await?;
        self.tell_name_servers().await
    }

    /// Sends every change, repeating one that was not accepted, until the senders are gone.
    pub(super) async fn run(mut self) {
        let (mut networks_due, mut servers_due) = (false, false);
        loop {
            tokio::select! {
                Ok(()) = self.networks.changed() => networks_due = true,
                Ok(()) = self.local.changed() => networks_due = true,
                Ok(()) = self.exempt.changed() => networks_due = true,
                Ok(()) = self.external.changed() => networks_due = true,
                Ok(()) = self.name_servers.changed() => servers_due = true,
                () = sleep(self.retry), if networks_due || servers_due => {}
                else => return,
            }
            let mut problem = None;
            if networks_due {
                match self.steer().await {
                    Ok(()) => networks_due = false,
                    Err(fault) => problem = Some(format!("steered networks: {fault}")),
                }
            }
            if servers_due {
                match self.tell_name_servers().await {
                    Ok(()) => servers_due = false,
                    Err(fault) => problem = Some(format!("name servers: {fault}")),
                }
            }
            self.note(problem);
        }
    }

    fn note(&self, problem: Option<String>) {
        let problem = problem.map(|reason| {
            tracing::info!(%reason, "Root daemon has not taken a change");
            format!("the root daemon has not taken the last change of {reason}; it is told again")
        });
        self.steered.send_if_modified(|steered| {
            let is_new = steered.problem != problem;
            steered.problem = problem;
            is_new
        });
    }

    async fn steer(&mut self) -> Result<(), Fault> {
        let networks = self.networks.borrow_and_update().clone();
        let local = self.local.borrow_and_update().clone();
        self.wishes
            .api_server
            .clone_from(&self.exempt.borrow_and_update());
        let external = self.external.borrow_and_update().clone();
        let outside = allowed(&external, &self.wishes);
        let wanted = [networks.as_slice(), &outside].concat();
        let Decision {
            include,
            exclude,
            mut notices,
        } = decide(&wanted, &self.wishes, &local);
        notices.extend(collisions(&self.datapath, &networks, &local));
        self.tell(&include, &exclude).await?;
        self.shared.external.set_steered(external);
        let others = [self.wishes.also.as_slice(), &outside].concat();
        let networks = include.into_iter().filter(|it| !others.contains(it));
        self.steered.send_replace(Steered {
            networks: networks.collect(),
            notices,
            problem: None,
        });

        Ok(())
    }

    /// Tells the root daemon what has changed since it was told last.
    async fn tell(&mut self, include: &[IpNet], exclude: &[IpNet]) -> Result<(), Fault> {
        let count = include.len() + exclude.len();
        if count > MAX_WANTED_NETWORKS {
            let message = format!(
                "the cluster has {count} separate networks, and more than {MAX_WANTED_NETWORKS} \
                 cannot be steered"
            );
            return Err(Fault::new(FaultKind::Unavailable, message));
        }
        for changes in self.told.changes(include, exclude, MAX_NETWORKS_PER_PACKET) {
            self.told.handle_sent(&changes);
            self.root.call(request(&changes), None).await?;
            self.told.handle_confirmed(&changes);
        }

        Ok(())
    }

    async fn tell_name_servers(&mut self) -> Result<(), Fault> {
        let servers = self.name_servers.borrow_and_update().clone();
        let servers = servers.into_iter().map(Into::into).collect();
        self.root
            .call(Request::NameServers { servers }, None)
            .await
            .map(drop)
    }
}

/// The networks of `external` addresses, without those that the user never proxies.
fn allowed(external: &[Ipv4Addr], wishes: &Wishes) -> Vec<IpNet> {
    external
        .iter()
        .map(|address| IpNet::from(IpAddr::from(*address)))
        .filter(|network| !wishes.never.iter().any(|never| never.contains(network)))
        .collect()
}

fn request(changes: &NetworkChanges) -> Request {
    let NetworkChanges {
        include,
        exclude,
        remove,
    } = changes.clone();

    Request::Steer(Steer {
        include,
        exclude,
        remove,
    })
}

#[cfg(test)]
mod tests {
    use tokio_util::task::AbortOnDropHandle;
    use tp_core::dns::Zone;
    use tp_root_api::{RefusedKind, Reply};

    use super::{super::root_link::FakeRoot, *};

    #[test]
    fn what_is_no_network_is_named_with_its_flag() {
        for (network, flag) in [
            ("10.0.0/8", "--also-proxy 10.0.0/8"),
            ("127.0.0.1", "--also-proxy 127.0.0.1/32"),
        ] {
            let request = ConnectRequest {
                also_proxy: vec!["10.1.2.3".to_owned(), network.to_owned()],
                ..ConnectRequest::default()
            };

            let fault = wishes(&request).map(drop).unwrap_err();

            assert_eq!(fault.kind, FaultKind::Usage);
            assert!(fault.message.contains(flag), "{fault}");
        }
    }

    #[test]
    fn an_address_that_is_never_proxied_is_not_steered_because_a_name_leads_there() {
        let request = ConnectRequest {
            never_proxy: vec!["192.0.2.0/24".to_owned()],
            ..ConnectRequest::default()
        };
        let external = ["192.0.2.10", "203.0.113.10"].map(|it| it.parse().unwrap());

        let allowed = allowed(&external, &wishes(&request).unwrap());

        assert_eq!(allowed, ["203.0.113.10/32".parse::<IpNet>().unwrap()]);
    }

    #[tokio::test]
    async fn thousands_of_networks_are_told_in_parts_and_later_changes_alone() {
        let (link, root) = FakeRoot::new(Duration::from_secs(10));
        let (mut follower, _) = follower(link);
        let (include, exclude) = (networks(4_200), networks(1_100));
        let take = async |count| {
            let mut told = Steer::default();
            for _ in 0..count {
                let request = root.request().await;
                let size = serde_json::to_vec(&request).unwrap().len();
                assert!(size <= tp_root_api::MAX_PACKET, "{size}");
                let Request::Steer(part) = request else {
                    panic!("{request:?}");
                };
                told.include.extend(part.include);
                told.exclude.extend(part.exclude);
                told.remove.extend(part.remove);
                root.reply(&Reply::Done);
            }
            told
        };

        // What is excluded is not included.
        let (done, told) = tokio::join!(follower.tell(&include, &exclude), take(5));
        done.unwrap();
        let first = Steer {
            include: include[1_100..].to_vec(),
            exclude: exclude.clone(),
            remove: Vec::new(),
        };
        assert_eq!(told, first);
        let (done, told) = tokio::join!(follower.tell(&include[1_101..], &exclude[1..]), take(1));
        done.unwrap();
        let second = Steer {
            remove: vec![include[0], include[1_100]],
            ..Steer::default()
        };
        assert_eq!(told, second);
    }

    #[tokio::test]
    async fn too_many_networks_are_said_to_be_too_many() {
        let (mut follower, _) = follower(FakeRoot::new(Duration::from_secs(10)).0);
        let networks = networks(MAX_WANTED_NETWORKS as u32 + 1);

        let fault = follower.tell(&networks, &[]).await.unwrap_err();

        assert!(fault.message.contains("16385"), "{fault}");
    }

    fn follower(root: RootLink) -> (Follower, watch::Sender<Vec<IpNet>>) {
        let networks = watch::Sender::new(networks(1));
        let follower = Follower {
            root: Arc::new(root),
            told: ToldNetworks::default(),
            wishes: Wishes::default(),
            datapath: ["243.2.0.0/16", "243.3.255.0/24"].map(|it| it.parse().unwrap()),
            networks: networks.subscribe(),
            name_servers: watch::Sender::default().subscribe(),
            local: watch::Sender::default().subscribe(),
            exempt: watch::Sender::default().subscribe(),
            external: watch::Sender::default().subscribe(),
            shared: Arc::new(Shared::new(Zone::new("cluster.local", "shop", []))),
            steered: watch::Sender::default(),
            retry: Duration::from_millis(20),
        };

        (follower, networks)
    }

    fn steer(request: Request) -> Vec<IpNet> {
        match request {
            Request::Steer(steer) => steer.include,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_change_that_is_not_taken_is_told_again() {
        let (link, root) = FakeRoot::new(Duration::from_secs(10));
        let (mut follower, changes) = follower(link);
        let steered = follower.steered.subscribe();
        let answers = async {
            assert_eq!(steer(root.request().await), networks(1));
            // During the first one.
            changes.send_replace(networks(2));
            root.reply(&Reply::Done);
            root.request().await;
            root.reply(&Reply::Done);
        };
        let (begun, ()) = tokio::join!(follower.begin(), answers);
        begun.unwrap();
        assert_eq!(steered.borrow().networks, networks(1));
        let task = AbortOnDropHandle::new(tokio::spawn(follower.run()));

        for _ in 0..2 {
            assert_eq!(steer(root.request().await), networks(2)[1..]);
            let (kind, message) = (RefusedKind::Invalid, "not now".to_owned());
            root.reply(&Reply::Refused { kind, message });
        }
        assert_eq!(steer(root.request().await), networks(2)[1..]);
        // The status shows what is steered.
        assert_eq!(steered.borrow().networks, networks(1));
        let notices = steered.borrow().notices();
        assert!(
            notices.len() == 1 && notices[0].contains("not now"),
            "{notices:?}"
        );

        changes.send_replace(networks(3));
        root.reply(&Reply::Done);
        assert_eq!(steer(root.request().await), networks(3)[2..]);
        root.reply(&Reply::Done);
        let mut seen = steered.clone();
        let both = seen.wait_for(|it| it.networks.len() == 3 && it.notices().is_empty());
        both.await.unwrap();
        drop(task);
    }

    fn networks(count: u32) -> Vec<IpNet> {
        (0..count)
            .map(|n| IpNet::from(IpAddr::from((0x0b00_0000 + n * 2).to_be_bytes())))
            .collect()
    }
}
