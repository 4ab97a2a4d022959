//! From the words of a command to the port of the pods.

use tp_core::intercept::{
    matching::{
        Choice, DeclaredContainer, DeclaredPort, Ports, Protocol, SelectedPort, SelectingService,
        TargetPort,
    },
    ports::{self, PortMapping, WantedPort},
    workload::{WorkloadKind, WorkloadName},
};

#[test]
fn the_words_of_a_command_lead_to_the_port_of_the_pods() {
    let workload: WorkloadName = "sts/db".parse().unwrap();
    let mappings: Vec<PortMapping> = ["15432:pg", "9187:9187"]
        .map(|text| text.parse().unwrap())
        .into();
    let headless = SelectedPort {
        name: None,
        number: 5432,
        target: TargetPort::Name("pg".to_owned()),
        protocol: Protocol::Tcp,
    };
    let known = Ports {
        workload: workload.to_string(),
        containers: vec![DeclaredContainer {
            name: "postgres".to_owned(),
            ports: vec![DeclaredPort {
                name: Some("pg".to_owned()),
                number: 5432,
                ..DeclaredPort::default()
            }],
        }],
        services: vec![SelectingService {
            name: "db".to_owned(),
            ports: vec![headless],
            is_headless: true,
        }],
    };

    ports::check_all(&mappings).unwrap();
    let matched = known.resolve_all(&mappings, &Choice::default()).unwrap();

    assert_eq!(workload.kind, Some(WorkloadKind::StatefulSet));
    assert_eq!(matched[0].number, 5432);
    assert_eq!(matched[0].services, [("db".to_owned(), 5432)]);
    // Nobody declares it, and it is taken for the port of the only container.
    assert_eq!(matched[1].number, 9187);
    assert_eq!(matched[1].container.as_deref(), Some("postgres"));
    let only = known
        .resolve(&WantedPort::Only, &Choice::default())
        .unwrap();
    assert_eq!(only, matched[0]);
    assert!(WorkloadKind::all().count() > 1);
}
