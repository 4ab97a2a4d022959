use super::*;

impl Model {
    /// With a log of `capacity` services.
    pub(crate) fn with_log(capacity: usize) -> Self {
        Self {
            log: Log::with_capacity(capacity),
            ..Self::default()
        }
    }

    /// The same objects, listed at once.
    pub(crate) fn relisted(&self) -> Self {
        let mut model = Self::default();
        let services = self.services.iter();
        let services = services.map(|(name, it)| (name.clone(), (**it).clone()));
        model.set_service_networks(self.found_service_networks.clone());
        model.update_services(Update::Replaced(services.collect()));
        model.update_pods(Update::Replaced(self.pods.clone()));
        model.update_nodes(Update::Replaced(self.nodes.clone()));
        model.settle();
        model
    }

    /// Number of times that services were read for a table.
    pub(crate) fn looks(&self) -> usize {
        self.looks.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Number of times that networks of pods were derived.
    pub(crate) fn derivations(&self) -> usize {
        self.derivations
    }
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn service(cluster_ip: &str) -> Service {
    Service {
        cluster_ips: vec![address(cluster_ip)],
        ..Service::default()
    }
}

fn pod(ip: &str) -> Pod {
    Pod {
        addresses: vec![address(ip)],
        ..Pod::default()
    }
}

fn model() -> Model {
    let mut model = Model::default();
    model.set_service_networks(Some(vec!["10.96.0.0/16".parse().unwrap()]));
    model.update_nodes(Update::Applied(
        "node1".into(),
        Node {
            external: Vec::new(),
            internal: vec![address("172.30.0.11")],
            tunnels: vec![address("10.244.0.128")],
            pod_networks: vec!["10.244.0.0/24".parse().unwrap()],
        },
    ));
    model.update_services(Update::Applied(
        ObjectName::new("shop", "web"),
        service("10.96.1.2"),
    ));
    model.update_services(Update::Applied(
        ObjectName::new("default", "kubernetes"),
        service("10.96.0.1"),
    ));
    model.update_pods(Update::Applied(
        ObjectName::new("shop", "web-0"),
        pod("10.244.0.7"),
    ));
    let api_server = Endpoints {
        service: "kubernetes".into(),
        addresses: vec![address("172.30.0.10")],
        ports: vec![6443],
    };
    model.update_endpoints(Update::Applied(
        ObjectName::new("default", "kubernetes"),
        api_server,
    ));
    model.settle();
    model
}

#[test]
fn every_address_has_an_owner() {
    let model = model();

    let shop = Owner::Namespace("shop".into());
    assert_eq!(model.owner(address("10.96.1.2")), shop);
    assert_eq!(model.owner(address("::ffff:10.96.1.2")), shop);
    assert_eq!(model.owner(address("10.244.0.7")), shop);
    assert_eq!(model.owner(address("10.244.0.8")), Owner::Unknown);
    assert_eq!(model.owner(address("10.96.9.9")), Owner::Unknown);
    assert_eq!(model.owner(address("10.244.0.1")), Owner::Node);
    assert_eq!(model.owner(address("172.30.0.11")), Owner::Node);
    assert_eq!(model.owner(address("10.96.0.1")), Owner::ApiServer);
    assert_eq!(model.owner(address("172.30.0.10")), Owner::ApiServer);
    assert_eq!(model.owner(address("192.0.2.1")), Owner::External);
    for nobodys in [
        "127.0.0.1",
        "169.254.169.254",
        "::1",
        "0.0.0.0",
        "224.0.0.1",
        "168.63.129.16",
        "100.100.100.200",
        "192.0.0.192",
        "fd00:ec2::23",
        "fd20:ce::254",
        "::ffff:100.100.100.200",
    ] {
        assert_eq!(model.owner(address(nobodys)), Owner::Nobody, "{nobodys}");
    }
}

#[test]
fn only_what_somebody_is_told_is_a_change() {
    let shared = SharedModel::new();
    shared.update(|it| *it = model());
    let changes = shared.changes();
    let is_told = |change: &dyn Fn(&mut Model)| {
        let before = *changes.borrow();
        shared.update(change);
        *changes.borrow() != before
    };
    let web = || ObjectName::new("shop", "web");
    let job = || ObjectName::new("shop", "job");

    assert!(!is_told(
        &|it: &mut Model| it.update_services(Update::Applied(web(), service("10.96.1.2")))
    ));
    assert!(is_told(
        &|it: &mut Model| it.update_services(Update::Applied(web(), service("10.96.1.3")))
    ));
    assert!(!is_told(
        &|it: &mut Model| it.update_pods(Update::Applied(job(), pod("10.244.0.9")))
    ));
    assert!(!is_told(
        &|it: &mut Model| it.update_pods(Update::Removed(job()))
    ));
    assert!(is_told(
        &|it: &mut Model| it.update_pods(Update::Applied(job(), pod("10.9.0.9")))
    ));
    assert!(is_told(
        &|it: &mut Model| it.update_pods(Update::Applied(job(), pod("10.244.0.9")))
    ));
    assert!(is_told(
        &|it: &mut Model| it.update_namespaces(Update::Applied("new".into(), ()))
    ));
    assert!(!is_told(
        &|it: &mut Model| it.update_namespaces(Update::Applied("new".into(), ()))
    ));
}

#[test]
fn an_address_that_moved_to_another_pod_stays_there_when_the_old_pod_goes() {
    let mut model = model();
    let new = ObjectName::new("other", "job");

    model.update_pods(Update::Applied(new, pod("10.244.0.7")));
    model.update_pods(Update::Removed(ObjectName::new("shop", "web-0")));

    let owner = model.owner(address("10.244.0.7"));
    assert_eq!(owner, Owner::Namespace("other".into()));
}

#[test]
fn a_service_that_changes_its_address_leaves_the_old_one() {
    let mut model = model();

    model.update_services(Update::Applied(
        ObjectName::new("shop", "web"),
        service("10.96.1.3"),
    ));

    assert_eq!(model.owner(address("10.96.1.2")), Owner::Unknown);
    assert_eq!(
        model.owner(address("10.96.1.3")),
        Owner::Namespace("shop".into())
    );
}

#[test]
fn where_the_service_networks_cannot_be_found_the_known_services_are_covered() {
    let mut model = model();
    model.set_service_networks(None);
    model.settle();
    let covers = |model: &Model, text: &str| {
        let networks = model.service_networks().iter();
        networks
            .clone()
            .any(|network| network.contains(&address(text)))
    };
    assert!(model.services_are_covered());
    assert!(covers(&model, "10.96.1.2") && !covers(&model, "10.97.1.2"));

    let late = ObjectName::new("shop", "late");
    model.update_services(Update::Applied(late, service("10.97.1.2")));
    model.settle();

    assert!(covers(&model, "10.97.1.2"));
}

#[test]
fn a_new_listing_forgets_what_is_not_in_it() {
    let mut model = model();

    model.update_services(Update::Replaced(BTreeMap::new()));

    assert_eq!(model.services().count(), 0);
    assert_eq!(model.owner(address("10.96.1.2")), Owner::Unknown);
}

fn lead(model: &mut Model, service: &str, endpoint: &str, port: u16) {
    let slice = Endpoints {
        service: service.to_owned(),
        addresses: vec![address(endpoint)],
        ports: vec![port],
    };
    model.update_endpoints(Update::Applied(
        ObjectName::new("shop", format!("{service}-1")),
        slice,
    ));
}

#[test]
fn a_service_is_whose_its_endpoints_are() {
    let to = |model: &Model| match model.owner(address("10.96.1.2")) {
        Owner::Service {
            namespace,
            leads_to,
        } => {
            assert_eq!(namespace, "shop");
            leads_to.into_iter().map(|(_, owner)| owner).collect()
        }
        Owner::Namespace(namespace) if namespace == "shop" => Vec::new(),
        owner => panic!("{owner:?}"),
    };
    for (endpoint, owner) in [
        ("10.244.0.7", None),
        ("192.0.2.1", None),
        ("10.244.0.9", Some(Owner::Namespace("bank".into()))),
        ("172.30.0.11", Some(Owner::Node)),
        ("10.244.0.1", Some(Owner::Node)),
        ("10.244.0.128", Some(Owner::Node)),
        ("169.254.169.254", Some(Owner::Nobody)),
        ("::ffff:127.0.0.1", Some(Owner::Nobody)),
        ("10.244.0.99", Some(Owner::Unknown)),
    ] {
        let mut model = model();
        let vault = ObjectName::new("bank", "vault-0");
        model.update_pods(Update::Applied(vault, pod("10.244.0.9")));

        lead(&mut model, "web", endpoint, 80);

        assert_eq!(to(&model), Vec::from_iter(owner), "{endpoint}");
    }
}

#[test]
fn a_pod_on_a_node_is_reached_by_the_ports_that_it_declares() {
    let mut model = model();
    let exporter = ObjectName::new("shop", "exporter");
    let on_node = vec![(address("172.30.0.11"), 9100)];
    let pod = Pod {
        on_node,
        ..Pod::default()
    };
    model.update_pods(Update::Applied(exporter.clone(), pod.clone()));
    let is_of_shop = |model: &Model| {
        let owner = model.owner(address("10.96.1.2"));
        owner == Owner::Namespace("shop".into())
    };

    lead(&mut model, "web", "172.30.0.11", 9100);
    assert!(is_of_shop(&model));
    model.update_pods(Update::Removed(exporter.clone()));
    assert!(!is_of_shop(&model));
    // Of another namespace.
    model.update_pods(Update::Applied(
        ObjectName::new("bank", "exporter"),
        pod.clone(),
    ));
    assert!(!is_of_shop(&model));

    model.update_pods(Update::Applied(exporter, pod));
    assert!(is_of_shop(&model));
    // The kubelet's.
    lead(&mut model, "web", "172.30.0.11", 10250);
    assert!(!is_of_shop(&model));
}

#[test]
fn a_service_is_judged_for_a_while_by_where_it_led_before() {
    let mut model = model();
    let is_of_shop = |model: &Model| {
        let owner = model.owner(address("10.96.1.2"));
        owner == Owner::Namespace("shop".into())
    };
    // A pod that goes is no harm: its address was the namespace's.
    model.update_pods(Update::Applied(
        ObjectName::new("shop", "b"),
        pod("10.244.0.8"),
    ));
    lead(&mut model, "web", "10.244.0.8", 80);
    model.update_pods(Update::Removed(ObjectName::new("shop", "b")));
    assert!(is_of_shop(&model));
    lead(&mut model, "web", "10.244.0.7", 80);
    assert!(is_of_shop(&model));

    lead(&mut model, "web", "172.30.0.11", 10250);
    lead(&mut model, "web", "10.244.0.7", 80);

    assert!(!is_of_shop(&model));
}

#[test]
fn an_address_that_a_service_claims_is_that_of_all_who_answer_there() {
    let mut model = model();
    let claim = |model: &mut Model, claimed: &str| {
        let service = Service {
            external_ips: vec![address(claimed)],
            ..service("10.96.1.2")
        };
        model.update_services(Update::Applied(ObjectName::new("shop", "web"), service));
        match model.owner(address(claimed)) {
            Owner::Service { leads_to, .. } => leads_to
                .into_iter()
                .map(|(_, owner)| owner)
                .collect::<Vec<_>>(),
            owner => panic!("{owner:?}"),
        }
    };
    let shop = Owner::Namespace("shop".into());

    let of_pod = claim(&mut model, "10.244.0.7");
    assert_eq!(of_pod, [shop.clone(), shop.clone()]);
    let of_node = claim(&mut model, "172.30.0.11");
    assert_eq!(of_node, [Owner::Node, shop.clone()]);
    let outside = claim(&mut model, "203.0.113.7");
    assert_eq!(outside, [Owner::External, shop]);
    assert_eq!(model.owner(address("172.30.0.11")), Owner::Node);
}

#[test]
fn an_address_in_a_network_that_is_guessed_may_be_a_neighbours() {
    let mut model = model();
    let name = ObjectName::new("shop", "apart");
    model.update_pods(Update::Applied(name, pod("10.77.1.2")));
    model.settle();

    assert_eq!(model.owner(address("10.77.1.3")), Owner::Neighbour);
    lead(&mut model, "web", "10.77.1.3", 80);
    let owner = model.owner(address("10.96.1.2"));
    assert_eq!(owner, Owner::Namespace("shop".into()));
}

#[tokio::test]
async fn an_address_that_becomes_known_in_a_moment_is_waited_for() {
    let shared = SharedModel::new();
    shared.update(|it| *it = model());
    let late = address("10.244.0.42");
    assert_eq!(shared.read().owner(late), Owner::Unknown);

    let (owner, ()) = tokio::join!(shared.settled_owner(late), async {
        tokio::task::yield_now().await;
        let name = ObjectName::new("shop", "late");
        shared.update(|model| model.update_pods(Update::Applied(name, pod("10.244.0.42"))));
    });

    assert_eq!(owner, Owner::Namespace("shop".into()));
    assert_eq!(
        shared.settled_owner(address("10.244.0.43")).await,
        Owner::Unknown
    );
}
