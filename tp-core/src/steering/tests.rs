use std::net::IpAddr;

use super::*;

#[test]
fn without_anything_local_the_clusters_networks_are_steered() {
    let decision = decide(
        &nets(&["10.96.0.0/12", "10.244.0.0/16"]),
        &wishes(&["10.1.0.0/16"], &["10.96.9.0/24"]),
        &Local::default(),
    );

    let include = ["10.1.0.0/16", "10.96.0.0/12", "10.244.0.0/16"];
    assert_eq!(decision.include, nets(&include));
    assert_eq!(decision.exclude, nets(&["10.96.9.0/24"]));
    assert!(decision.notices.is_empty());
}

#[test]
fn a_directly_connected_network_is_left_alone_and_told() {
    let local = local(&[], &[("10.244.1.0/24", "lan0")], &[]);

    let decision = decide(&nets(&["10.244.0.0/16"]), &wishes(&[], &[]), &local);

    assert!(reaches(&decision, "10.244.2.1"));
    assert!(!reaches(&decision, "10.244.1.9"));
    let [notice] = decision.notices.as_slice() else {
        panic!("{:?}", decision.notices)
    };
    assert!(notice.contains("10.244.1.0/24 is directly connected (lan0)"));
    assert!(notice.contains("--also-proxy 10.244.1.0/24"), "{notice}");
}

#[test]
fn a_cluster_inside_a_directly_connected_network_is_left_alone_and_told() {
    let local = local(&[], &[("10.0.0.0/8", "tun0")], &[]);

    let decision = decide(&nets(&["10.244.3.0/24"]), &wishes(&[], &[]), &local);

    assert!(!reaches(&decision, "10.244.3.1"));
    assert_eq!(decision.notices.len(), 1);
    assert!(decision.notices[0].contains("--also-proxy 10.244.3.0/24"));
}

#[test]
fn the_flag_that_is_told_leads_it_to_the_cluster() {
    for (flag, network) in [
        ("10.244.1.0/24", "10.244.0.0/16"),
        ("10.244.1.0/24", "10.244.1.0/25"),
        ("10.244.1.7/32", "10.244.0.0/16"),
    ] {
        let local = local(&["10.244.1.2"], &[("10.244.1.0/24", "lan0")], &[]);

        let decision = decide(&nets(&[network]), &wishes(&[flag], &[]), &local);

        assert!(reaches(&decision, "10.244.1.7"), "{flag} {network}");
        assert!(!reaches(&decision, "10.244.1.2"), "its own address");
        let takes_all = flag.ends_with("/24");
        assert_eq!(reaches(&decision, "10.244.1.9"), takes_all, "{flag}");
    }
}

#[test]
fn never_proxy_says_that_the_user_knows() {
    let local = local(
        &["10.244.1.2"],
        &[("10.244.1.0/24", "lan0")],
        &[("10.244.7.0/24", "vpn0")],
    );

    let never = wishes(&[], &["10.244.1.0/24", "10.244.7.0/24"]);
    let decision = decide(&nets(&["10.244.0.0/16"]), &never, &local);

    assert!(decision.notices.is_empty(), "{:?}", decision.notices);
    assert!(!reaches(&decision, "10.244.7.1"));
}

#[test]
fn networks_of_the_cluster_within_what_is_never_steered_are_left_alone_and_told() {
    let never = wishes(&["10.96.0.10/32"], &["10.0.0.0/8"]);
    let networks = nets(&["10.96.0.0/12", "10.244.0.0/16", "172.20.0.0/16"]);

    let decision = decide(&networks, &never, &Local::default());

    for left in ["10.96.0.1", "10.244.1.9"] {
        assert!(!reaches(&decision, left), "{left}");
    }
    for steered in ["10.96.0.10", "172.20.0.1"] {
        assert!(reaches(&decision, steered), "{steered}");
    }
    assert_eq!(decision.notices.len(), 2, "{:?}", decision.notices);
    assert!(decision.notices[0].contains("--never-proxy 10.0.0.0/8"));
}

#[test]
fn all_of_the_internet_is_without_what_is_local() {
    let local = local(
        &["172.30.0.200", "127.0.0.1"],
        &[("172.30.0.0/24", "e0")],
        &[("192.168.0.0/16", "vpn0")],
    );

    let decision = decide(&[], &wishes(&["0.0.0.0/0"], &[]), &local);

    for steered in ["1.1.1.1", "192.168.1.1", "172.30.1.1"] {
        assert!(reaches(&decision, steered), "{steered}");
    }
    for local in [
        "127.0.0.1",
        "127.9.9.9",
        "0.0.0.0",
        "169.254.169.254",
        "172.30.0.1",
        "172.30.0.200",
        "224.0.0.251",
        "255.255.255.255",
    ] {
        assert!(!reaches(&decision, local), "{local}");
    }
}

#[test]
fn a_cluster_that_claims_everything_gets_nothing_local() {
    let networks = nets(&["0.0.0.0/0", "127.0.0.0/8", "127.0.0.1/32", "169.254.1.0/24"]);

    let decision = decide(&networks, &wishes(&[], &[]), &Local::default());

    assert!(!reaches(&decision, "127.0.0.1"));
    assert!(!reaches(&decision, "169.254.1.1"));
    assert!(reaches(&decision, "8.8.8.8"));
}

#[test]
fn own_addresses_and_the_api_server_are_spared_also_where_a_pod_has_the_same() {
    let local = local(&["10.244.1.2"], &[], &[]);
    let mut wishes = wishes(&["10.244.1.2/32"], &[]);
    wishes.api_server.insert("10.96.0.1/32".parse().unwrap());

    let networks = nets(&["10.96.0.1/32", "10.96.0.0/12", "10.244.1.2/32"]);
    let decision = decide(&networks, &wishes, &local);

    assert!(!reaches(&decision, "10.244.1.2"));
    assert!(!reaches(&decision, "10.96.0.1"));
    assert!(reaches(&decision, "10.96.0.2"));
}

#[test]
fn a_route_of_somebody_elses_into_the_cluster_is_told() {
    let local = local(
        &[],
        &[],
        &[
            ("10.96.0.0/12", "vpn0"),
            ("10.244.7.0/24", "vpn0"),
            // Leads to the cluster and elsewhere: what is steered is more specific.
            ("10.0.0.0/8", "vpn1"),
        ],
    );

    let networks = nets(&["10.96.0.0/12", "10.244.0.0/16"]);
    let decision = decide(&networks, &wishes(&[], &[]), &local);

    assert!(reaches(&decision, "10.244.7.1"));
    assert_eq!(decision.notices.len(), 2, "{:?}", decision.notices);
    assert!(decision.notices[0].contains("--never-proxy 10.96.0.0/12"));
}

#[test]
fn many_networks_make_few_sentences() {
    let networks: Vec<String> = (0..100).map(|n| format!("10.244.{n}.0/24")).collect();
    let links: Vec<(&str, &str)> = networks.iter().map(|it| (it.as_str(), "br0")).collect();
    let own: Vec<String> = (0..100).map(|n| format!("10.244.{n}.1")).collect();
    let own: Vec<&str> = own.iter().map(String::as_str).collect();

    let local = local(&own, &links, &[]);
    let decision = decide(&nets(&["10.244.0.0/16"]), &wishes(&[], &[]), &local);

    assert_eq!(decision.notices.len(), 1 + MAX_NOTICES + 1);
    assert!(decision.notices[0].contains("and 92 more"));
}

#[test]
fn whoever_comes_to_use_the_aliases_is_named() {
    let aliases = ["243.18.0.0/16", "243.19.255.0/24"].map(|it| it.parse().unwrap());
    let quiet = local(&["192.0.2.1"], &[("192.0.2.0/24", "e0")], &[]);
    assert!(collisions(&aliases, &nets(&["10.0.0.0/8"]), &quiet).is_empty());

    for (own, connected, routed, cluster, name) in [
        (&["243.18.3.3"][..], &[][..], &[][..], &[][..], "243.18.3.3"),
        (&[], &[("243.19.255.0/30", "x0")], &[], &[], "x0"),
        (&[], &[], &[("243.0.0.0/8", "vpn0")], &[], "243.0.0.0/8"),
        (&[], &[], &[], &["243.18.128.0/17"], "the cluster"),
    ] {
        let told = collisions(&aliases, &nets(cluster), &local(own, connected, routed));

        assert!(told.len() == 1 && told[0].contains(name), "{told:?}");
    }
}

/// As the kernel compares.
fn reaches(decision: &Decision, address: &str) -> bool {
    let address: IpAddr = address.parse().unwrap();
    let longest = |networks: &[IpNet]| {
        networks
            .iter()
            .filter(|network| network.contains(&address))
            .map(IpNet::prefix_len)
            .max()
    };

    longest(&decision.include) > longest(&decision.exclude)
}

fn wishes(also: &[&str], never: &[&str]) -> Wishes {
    Wishes {
        also: nets(also),
        never: nets(never),
        api_server: BTreeSet::new(),
    }
}

fn local(own: &[&str], connected: &[(&str, &str)], routed: &[(&str, &str)]) -> Local {
    let links = |links: &[(&str, &str)]| {
        links
            .iter()
            .map(|(network, interface)| Link {
                network: network.parse().unwrap(),
                interface: (*interface).to_owned(),
            })
            .collect()
    };

    Local {
        own: own.iter().map(|it| it.parse().unwrap()).collect(),
        connected: links(connected),
        routed: links(routed),
    }
}

fn nets(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}
