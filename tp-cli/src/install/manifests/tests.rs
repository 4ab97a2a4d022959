use clap::Parser as _;
use tp_proto::crd::MANAGER_AUDIENCE;

use super::*;

#[derive(clap::Parser)]
struct Line {
    #[command(flatten)]
    install: InstallArgs,
}

fn from_line(flags: &str) -> Result<Parameters, Fault> {
    let line = std::iter::once("tp").chain(flags.split_whitespace());

    Parameters::from_args(&Line::parse_from(line).install)
}

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
fn how_long_an_absent_holder_keeps_its_ports_reaches_the_managers() {
    let arguments = |flags: &str| {
        let objects = render(&from_line(&format!("--image x {flags}")).unwrap());
        let set = find(&objects, "StatefulSet tp-system/tp-manager");
        set["spec"]["template"]["spec"]["containers"][0]["args"].clone()
    };
    assert_eq!(arguments(""), json!([]));
    assert_eq!(
        arguments("--release-after 90s"),
        json!(["--release-after-seconds=90"])
    );
    for refused in ["59s", "9h", "0"] {
        let fault = from_line(&format!("--image x --release-after {refused}")).unwrap_err();
        assert!(
            fault.message.contains("one minute to eight hours"),
            "{refused}"
        );
    }
}

#[test]
fn only_the_managers_may_write_the_record_of_sessions() {
    let objects = render(&parameters());
    find(&objects, "ConfigMap net/tp-manager-sessions");
    let writers: Vec<String> = objects
        .iter()
        .filter(|object| object.kind().ends_with("Role"))
        .filter(|object| {
            let rules = object.value["rules"].as_array().unwrap();
            rules.iter().any(|rule| {
                let text = |field: &str| rule[field].to_string();
                let names = text("resourceNames");
                let is_named = names == "null" || names.contains("tp-manager-sessions");
                let writes = ["create", "update", "patch", "delete", "*"];
                let verbs = text("verbs");
                let writes = writes
                    .iter()
                    .any(|verb| verbs.contains(&format!("\"{verb}\"")));
                text("resources").contains("configmaps") && is_named && writes
            })
        })
        .map(Object::title)
        .collect();

    assert_eq!(writers, ["Role net/tp-manager"]);
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

fn agent_pod(objects: &[Object]) -> &Value {
    &find(objects, "DaemonSet tp-agents/tp-agent")["spec"]["template"]["spec"]
}

fn container<'a>(pod: &'a Value, name: &str) -> &'a Value {
    let containers = pod["containers"].as_array().unwrap();

    containers.iter().find(|it| it["name"] == name).unwrap()
}

#[test]
fn the_program_with_capabilities_has_no_token_and_the_other_no_capability() {
    let objects = render(&parameters());
    let pod = agent_pod(&objects);

    assert_eq!(pod["automountServiceAccountToken"], false);
    assert_eq!(pod["containers"].as_array().unwrap().len(), 2);
    let mounts = |name: &str| {
        let mounts = container(pod, name)["volumeMounts"].as_array().unwrap();
        mounts.iter().map(|it| it["name"].clone()).collect()
    };
    let of_agentd: Vec<Value> = mounts("agentd");
    assert_eq!(of_agentd, [json!("run")]);
    let of_agent: Vec<Value> = mounts("agent");
    assert_eq!(of_agent, [json!("run"), json!("api"), json!("manager")]);

    let agent = container(pod, "agent");
    assert_eq!(
        agent["securityContext"]["capabilities"],
        json!({"drop": ["ALL"]})
    );
    assert_eq!(agent["securityContext"]["runAsNonRoot"], true);
    // A link in the place of the socket would lead what agentd does to it elsewhere.
    assert_eq!(agent["volumeMounts"][0]["readOnly"], true);
    for name in ["agentd", "agent"] {
        let context = &container(pod, name)["securityContext"];
        assert_eq!(context["allowPrivilegeEscalation"], false, "{name}");
        assert_eq!(context["readOnlyRootFilesystem"], true, "{name}");
        assert_eq!(context["privileged"], Value::Null, "{name}");
        assert_eq!(context["seccompProfile"], Value::Null, "{name}");
    }
    assert_eq!(
        pod["securityContext"]["seccompProfile"]["type"],
        "RuntimeDefault"
    );
}

#[test]
fn agents_take_nothing_of_the_node_but_its_processes() {
    let objects = render(&parameters());
    let pod = agent_pod(&objects);

    assert_eq!(pod["hostPID"], true);
    assert_eq!(pod["hostNetwork"], Value::Null);
    assert_eq!(pod["hostIPC"], Value::Null);
    for volume in pod["volumes"].as_array().unwrap() {
        assert_eq!(volume["hostPath"], Value::Null, "{volume}");
    }
    for container in pod["containers"].as_array().unwrap() {
        assert_eq!(container["ports"], Value::Null, "{container}");
    }
}

#[test]
fn a_token_for_managers_is_none_for_the_api_server() {
    let objects = render(&parameters());
    let volumes = agent_pod(&objects)["volumes"].as_array().unwrap();
    let token = |name: &str| {
        let volume = volumes.iter().find(|it| it["name"] == name).unwrap();
        volume["projected"]["sources"][0]["serviceAccountToken"].clone()
    };

    assert_eq!(token("manager")["audience"], MANAGER_AUDIENCE);
    assert_eq!(token("api")["audience"], Value::Null);
}

#[test]
fn agents_change_nothing_in_the_cluster() {
    let objects = render(&parameters());
    for title in ["ClusterRole tp-agent", "Role net/tp-agent"] {
        for rule in find(&objects, title)["rules"].as_array().unwrap() {
            let is_question = rule["resources"] == json!(["subjectaccessreviews"]);
            for verb in rule["verbs"].as_array().unwrap() {
                let reads = ["get", "list", "watch"].contains(&verb.as_str().unwrap());
                assert!(reads || is_question, "{title}: {rule}");
            }
        }
    }
}

#[test]
fn what_may_be_intercepted_reaches_the_agents() {
    let line = "--image x --allow-system --intercept-namespaces shop,team-b \
                --intercept-namespaces bank --env-exclude DB_*,TOKEN";
    let objects = render(&from_line(line).unwrap());

    let agent = container(agent_pod(&objects), "agent");
    let expected = json!([
        "--allow-system",
        "--intercept-namespaces=shop,team-b,bank",
        "--env-exclude=DB_*,TOKEN"
    ]);
    assert_eq!(agent["args"], expected);
    let environment = agent["env"].as_array().unwrap();
    let namespace = environment
        .iter()
        .find(|it| it["name"] == "MANAGER_NAMESPACE");
    assert_eq!(namespace.unwrap()["value"], "tp-system");

    let objects = render(&from_line("--image x").unwrap());
    let agent = container(agent_pod(&objects), "agent");
    assert_eq!(agent["args"], json!([]));
}

#[test]
fn namespaces_in_which_nothing_is_intercepted_are_refused_by_name() {
    for (flags, part) in [
        ("--intercept-namespaces tp-agents", "tp-agents, which is of"),
        ("--intercept-namespaces shop,tp-system", "tp-system, which"),
        (
            "--intercept-namespaces net --manager-namespace net",
            "net, which",
        ),
        ("--intercept-namespaces kube-system", "--allow-system"),
    ] {
        let fault = from_line(&format!("--image x {flags}")).unwrap_err();

        assert_eq!(fault.kind, FaultKind::Usage, "{flags}");
        assert!(fault.message.contains(part), "{flags}: {fault}");
    }
    from_line("--image x --allow-system --intercept-namespaces kube-system").unwrap();
}

#[test]
fn without_agents_there_is_nothing_of_theirs() {
    let objects = render(&from_line("--image x --no-agent").unwrap());

    for object in &objects {
        assert!(!object.title().contains("agent"), "{}", object.title());
        let text = object.value.to_string();
        assert!(!text.contains("tokenreviews"), "{}", object.title());
    }
}

#[test]
fn agents_are_the_last_to_come_and_the_first_to_go() {
    let objects = render(&parameters());

    assert_eq!(
        objects.last().unwrap().title(),
        "DaemonSet tp-agents/tp-agent"
    );
}

#[test]
fn without_an_image_one_sentence_says_what_to_do() {
    let fault = from_line("").unwrap_err();

    assert_eq!(fault.kind, FaultKind::Usage);
    assert!(fault.message.starts_with("--image is missing: push"));
}
