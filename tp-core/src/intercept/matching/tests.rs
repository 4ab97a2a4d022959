use super::*;

fn container(name: &str, ports: &[(&str, u16)]) -> DeclaredContainer {
    let declared = |(name, number): &(&str, u16)| DeclaredPort {
        name: (!name.is_empty()).then(|| (*name).to_owned()),
        number: *number,
        protocol: Protocol::Tcp,
    };

    DeclaredContainer {
        name: name.to_owned(),
        ports: ports.iter().map(declared).collect(),
    }
}

/// Ports as `(name, port, target)`, the target by number or name.
fn service(name: &str, ports: &[(&str, u16, &str)]) -> SelectingService {
    let selected = |(name, number, target): &(&str, u16, &str)| SelectedPort {
        name: (!name.is_empty()).then(|| (*name).to_owned()),
        number: *number,
        target: match target.parse() {
            Ok(number) => TargetPort::Number(number),
            Err(_) => TargetPort::Name((*target).to_owned()),
        },
        protocol: Protocol::Tcp,
    };

    SelectingService {
        name: name.to_owned(),
        ports: ports.iter().map(selected).collect(),
        is_headless: false,
    }
}

fn workload(containers: &[DeclaredContainer], services: &[SelectingService]) -> Ports {
    Ports {
        workload: "deployment/web".to_owned(),
        containers: containers.to_vec(),
        services: services.to_vec(),
    }
}

fn choice(service: &str, container: &str) -> Choice {
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());

    Choice {
        service: some(service),
        container: some(container),
    }
}

fn wanted(text: &str) -> WantedPort {
    let text = match text {
        "" => "1".to_owned(),
        other => format!("1:{other}"),
    };

    text.parse::<PortMapping>().unwrap().wanted
}

/// The number and the container of the port that is meant.
fn meant(ports: &Ports, text: &str, choice: &Choice) -> (u16, String) {
    let port = ports.resolve(&wanted(text), choice).unwrap();

    (port.number, port.container.unwrap_or_default())
}

fn refused(ports: &Ports, text: &str, choice: &Choice) -> String {
    ports
        .resolve(&wanted(text), choice)
        .unwrap_err()
        .to_string()
}

fn any() -> Choice {
    Choice::default()
}

#[test]
fn every_name_of_one_port_means_the_same() {
    let ports = workload(
        &[container("app", &[("http", 8080)])],
        &[
            service("web", &[("www", 80, "http")]),
            service("api", &[("", 81, "8080")]),
        ],
    );

    let expected = ports.resolve(&WantedPort::Only, &any()).unwrap();

    assert_eq!(expected.number, 8080);
    assert_eq!(expected.container.as_deref(), Some("app"));
    assert_eq!(
        expected.services,
        [("web".to_owned(), 80), ("api".to_owned(), 81)]
    );
    for text in ["80", "81", "8080", "http", "www"] {
        assert_eq!(
            ports.resolve(&wanted(text), &any()),
            Ok(expected.clone()),
            "{text}"
        );
    }
    for chosen in [
        choice("web", ""),
        choice("api", ""),
        choice("", "app"),
        choice("web", "app"),
    ] {
        assert_eq!(
            ports.resolve(&wanted(""), &chosen),
            Ok(expected.clone()),
            "{chosen:?}"
        );
    }
}

#[test]
fn a_headless_and_a_cluster_ip_service_of_a_stateful_set_mean_one_port() {
    let ports = workload(
        &[container("db", &[("pg", 5432)])],
        &[
            service("db", &[("", 5432, "pg")]),
            service("db-headless", &[("", 5432, "5432")]),
        ],
    );

    for chosen in [any(), choice("db", ""), choice("db-headless", "")] {
        let port = ports.resolve(&wanted("5432"), &chosen).unwrap();

        assert_eq!(port.number, 5432);
        assert_eq!(port.services.len(), 2);
    }
}

#[test]
fn several_ports_without_a_choice_are_listed() {
    let ports = workload(
        &[
            container("app", &[("http", 8080), ("admin", 9000)]),
            container("log", &[("", 7000)]),
        ],
        &[service("web", &[("www", 80, "http"), ("adm", 90, "admin")])],
    );

    assert_eq!(
        refused(&ports, "", &any()),
        "the only port of deployment/web may mean 8080 (service web:80) or 9000 (service web:90): \
         choose with --port LOCAL:PORT, --service or --container"
    );
    assert_eq!(meant(&ports, "adm", &any()), (9000, "app".to_owned()));
    assert_eq!(
        meant(&ports, "", &choice("", "log")),
        (7000, "log".to_owned())
    );
}

#[test]
fn without_a_service_the_only_declared_port_is_meant() {
    let one = workload(
        &[container("app", &[("http", 8080)]), container("log", &[])],
        &[],
    );
    let two = workload(
        &[
            container("app", &[("http", 1)]),
            container("log", &[("", 2)]),
        ],
        &[],
    );
    let none = workload(&[container("app", &[])], &[]);

    assert_eq!(meant(&one, "", &any()), (8080, "app".to_owned()));
    assert_eq!(
        refused(&two, "", &any()),
        "the only port of deployment/web may mean 1 (container app http) or 2 (container log): \
         choose with --port LOCAL:PORT, --service or --container"
    );
    assert_eq!(meant(&two, "", &choice("", "log")), (2, "log".to_owned()));
    assert_eq!(
        refused(&none, "", &any()),
        "deployment/web has no TCP port that is declared: name one with --port LOCAL:PORT"
    );
}

#[test]
fn ports_that_services_lead_to_come_before_others() {
    let ports = workload(
        &[container("app", &[("http", 8080), ("metrics", 9090)])],
        &[service("web", &[("", 80, "8080")])],
    );

    assert_eq!(meant(&ports, "", &any()), (8080, "app".to_owned()));
    assert_eq!(meant(&ports, "metrics", &any()), (9090, "app".to_owned()));
}

#[test]
fn a_number_that_nobody_declares_is_the_port_of_the_pod() {
    let one = workload(&[container("app", &[("http", 8080)])], &[]);
    let two = workload(
        &[container("app", &[("http", 8080)]), container("log", &[])],
        &[],
    );

    assert_eq!(meant(&one, "6000", &any()), (6000, "app".to_owned()));
    assert_eq!(meant(&two, "6000", &any()), (6000, String::new()));
    assert_eq!(
        meant(&two, "6000", &choice("", "log")),
        (6000, "log".to_owned())
    );
    // The service leads to a port that no container declares.
    let silent = workload(
        &[container("app", &[])],
        &[service("web", &[("", 80, "5000")])],
    );
    assert_eq!(meant(&silent, "", &any()), (5000, "app".to_owned()));
    assert_eq!(
        meant(&silent, "80", &choice("", "app")),
        (5000, "app".to_owned())
    );
}

#[test]
fn a_number_of_a_service_and_of_a_container_is_chosen_by_flag() {
    let ports = workload(
        &[container("app", &[("http", 8080), ("", 80)])],
        &[service("web", &[("", 80, "8080")])],
    );

    assert_eq!(
        refused(&ports, "80", &any()),
        "port 80 of deployment/web may mean 80 (container app) or 8080 (service web:80): choose \
         with --port LOCAL:PORT, --service or --container"
    );
    assert_eq!(
        meant(&ports, "80", &choice("web", "")),
        (8080, "app".to_owned())
    );
    assert_eq!(
        meant(&ports, "80", &choice("", "app")),
        (80, "app".to_owned())
    );
}

#[test]
fn a_name_that_two_services_give_to_two_ports_is_chosen_by_service() {
    let ports = workload(
        &[container("a", &[("x", 1)]), container("b", &[("y", 2)])],
        &[
            service("one", &[("http", 80, "x")]),
            service("two", &[("http", 80, "y")]),
        ],
    );

    for text in ["http", "80", ""] {
        assert!(refused(&ports, text, &any()).contains("1 (service one:80) or 2 (service two:80)"));
        assert_eq!(meant(&ports, text, &choice("two", "")), (2, "b".to_owned()));
        assert_eq!(meant(&ports, text, &choice("", "a")), (1, "a".to_owned()));
    }
}

#[test]
fn of_containers_that_declare_one_name_the_first_is_the_target() {
    let ports = workload(
        &[
            container("a", &[("http", 1)]),
            container("b", &[("http", 2)]),
        ],
        &[service("web", &[("", 80, "http")])],
    );

    assert_eq!(meant(&ports, "80", &any()), (1, "a".to_owned()));
    assert!(
        refused(&ports, "http", &any()).contains("1 (container a http) or 2 (container b http)")
    );
    assert_eq!(meant(&ports, "http", &choice("", "b")), (2, "b".to_owned()));
}

#[test]
fn what_is_not_found_is_answered_with_what_there_is() {
    let ports = workload(
        &[
            container("app", &[("http", 8080)]),
            container("log", &[("", 7000)]),
        ],
        &[service("web", &[("", 80, "http")])],
    );

    assert_eq!(
        refused(&ports, "grpc", &any()),
        "port grpc is none of deployment/web: there is 7000 (container log) or 8080 (service \
         web:80, container app http)"
    );
    assert_eq!(
        refused(&ports, "81", &choice("web", "")),
        "port 81 is none of service web of deployment/web: there is 8080 (service web:80)"
    );
    assert_eq!(
        refused(&ports, "8080", &choice("", "log")),
        "port 8080 is none of container log of deployment/web: there is 7000 (container log)"
    );
    assert_eq!(
        refused(&ports, "80", &choice("shop", "")),
        "service shop does not select the pods of deployment/web: use web"
    );
    assert_eq!(
        refused(&ports, "80", &choice("", "sidecar")),
        "deployment/web has no container sidecar: use app or log"
    );
    assert_eq!(
        refused(&workload(&[], &[]), "", &choice("shop", "")),
        "service shop does not select the pods of deployment/web, and none does: leave it out"
    );
}

#[test]
fn a_target_that_no_container_declares_is_named() {
    let ports = workload(
        &[container("app", &[])],
        &[service("web", &[("www", 80, "http")])],
    );

    for text in ["", "80", "www"] {
        assert_eq!(
            refused(&ports, text, &any()),
            "port 80 of service web leads to the port named http, which no container of \
             deployment/web declares: name the container's port by number, as in --port LOCAL:8080"
        );
    }
    assert_eq!(meant(&ports, "8080", &any()), (8080, "app".to_owned()));
}

#[test]
fn ports_of_other_protocols_are_refused_and_never_meant_by_silence() {
    let mut dns = container("dns", &[("dns", 53), ("dns-tcp", 53), ("web", 80)]);
    dns.ports[0].protocol = Protocol::Udp;
    let both = workload(&[dns.clone()], &[]);
    dns.ports.remove(1);
    let udp = workload(&[dns], &[]);

    assert_eq!(meant(&both, "53", &any()), (53, "dns".to_owned()));
    assert_eq!(meant(&udp, "", &any()), (80, "dns".to_owned()));
    for (text, wanted) in [("53", "port 53"), ("dns", "port dns")] {
        assert_eq!(
            refused(&udp, text, &any()),
            format!(
                "{wanted} of deployment/web is not TCP: tp intercepts TCP ports so far, choose \
                 another"
            )
        );
    }
}

#[test]
fn several_values_mean_several_ports() {
    let ports = workload(
        &[container("app", &[("http", 8080), ("admin", 9000)])],
        &[service("web", &[("", 80, "http")])],
    );
    let all = |texts: &[&str]| {
        let mappings: Vec<PortMapping> = texts.iter().map(|text| text.parse().unwrap()).collect();
        ports
            .resolve_all(&mappings, &any())
            .map_err(|it| it.to_string())
    };

    let numbers = all(&["1", "2:admin"]).map(|it| it.iter().map(|it| it.number).collect());

    assert_eq!(numbers, Ok(vec![8080, 9000]));
    assert_eq!(
        all(&["1:http", "2:80"]),
        Err(
            "two --port mean port 8080 of the pods of deployment/web: leave one of them out"
                .to_owned()
        )
    );
}
