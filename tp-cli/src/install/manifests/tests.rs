use super::*;

fn parameters() -> Parameters {
    Parameters {
        image: "registry.example.com/tp:1".into(),
        replicas: 2,
        expose: Expose::NodePort,
        connect_groups: vec!["developers".into()],
        allow: vec![Allow::Nodes],
        ..Parameters::for_removal("net")
    }
}

fn find<'a>(objects: &'a [Object], title: &str) -> &'a Value {
    let found = objects.iter().find(|object| object.title() == title);
    &found.unwrap_or_else(|| panic!("no {title}")).value
}

#[test]
fn no_placeholder_is_left() {
    for object in render(&parameters()) {
        assert!(
            !object.value.to_string().contains("${"),
            "{}",
            object.title()
        );
    }
}

#[test]
fn parameters_reach_the_stateful_set() {
    let objects = render(&parameters());
    let spec = &find(&objects, "StatefulSet net/tp-manager")["spec"];

    assert_eq!(spec["replicas"], 2);
    let container = &spec["template"]["spec"]["containers"][0];
    assert_eq!(container["image"], "registry.example.com/tp:1");
    assert_eq!(container["args"], json!(["--allow=nodes"]));
}

#[test]
fn port_forwards_are_granted_by_pod_name() {
    let objects = render(&parameters());
    let role = find(&objects, "Role net/tp-connect");

    assert_eq!(
        role["rules"][2]["resourceNames"],
        json!(["tp-manager-0", "tp-manager-1"])
    );
    let binding = find(&objects, "RoleBinding net/tp-connect");
    assert_eq!(binding["subjects"][0]["name"], "developers");
}

#[test]
fn each_replica_has_an_address_of_its_own_only_when_exposed() {
    let exposed = render(&parameters());
    find(&exposed, "Service net/tp-manager-1");

    let mut hidden = parameters();
    hidden.expose = Expose::None;
    assert!(
        render(&hidden)
            .iter()
            .all(|object| object.name() != "tp-manager-1")
    );
}

#[test]
fn everything_is_labelled() {
    for object in render(&parameters()) {
        assert_eq!(object.value["metadata"]["labels"][MANAGED_BY], "tp");
    }
}

#[test]
fn without_an_image_one_sentence_says_what_to_do() {
    use clap::Parser as _;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        install: InstallArgs,
    }
    let args = Line::parse_from(["tp"]).install;

    let fault = Parameters::from_args(&args).unwrap_err();

    assert_eq!(fault.kind, FaultKind::Usage);
    assert!(fault.message.starts_with("--image is missing: push"));
}
