//! The environment of a workload comes to the workstation, for those who may have it, and leaves no trace.

use std::{fs, path::Path};

use rustix::process::Signal;
use serde_json::Value;
use tp_e2e::{
    applied::{Applied, Subject, binding, right},
    cluster::testbed,
    process::{Finished, PATIENCE, Running, eventually, run, signal},
    user::Account,
    workstation::Workstation,
};

use super::support::{CHANGE, Handler, connected, expect_workstation, may_intercept};

const ECHO_IMAGE: &str = "localhost/tp-testbed/echo:1";
const NGINX_IMAGE: &str = "localhost/tp-testbed/workloads:1";
/// What no log and no object may hold.
const SECRET: &str = "hunter2-of-the-environment";
const LINES: &str = "a 'b' \"c\" $HOME `id`\n# second\n";

/// A deployment with this environment and a service of its name; gone when dropped.
struct Target {
    namespace: &'static str,
    name: &'static str,
    _applied: Applied,
}

impl Target {
    /// In a namespace that is there. `dev` may intercept it, and run programs in its pods.
    #[track_caller]
    fn in_shop(name: &'static str, container: &str) -> Self {
        let exec = format!("{name}-exec");
        let rules = may_intercept(name)
            + &format!(
                "---\n{{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRole, \
                 metadata: {{name: {exec}}}, \
                 rules: [{{apiGroups: [\"\"], resources: [pods/exec], verbs: [create]}}]}}\n"
            )
            + &binding(&exec, "shop", &exec, Subject::User("dev"));
        let of_name =
            ["deployment", "service", "rolebinding", "secret"].map(|it| format!("{it}/{name}"));
        let of_exec = ["rolebinding", "clusterrole"].map(|it| format!("{it}/{exec}"));
        let objects = of_name.iter().chain(&of_exec).map(String::as_str);
        let deletion: Vec<&str> = ["--namespace=shop"].into_iter().chain(objects).collect();

        Self::new("shop", name, container, &rules, &deletion)
    }

    #[track_caller]
    fn new(
        namespace: &'static str,
        name: &'static str,
        container: &str,
        rules: &str,
        deletion: &[&str],
    ) -> Self {
        testbed().install_tp();
        let manifest = format!(
            "
apiVersion: v1
kind: Secret
metadata: {{name: {name}, namespace: {namespace}}}
stringData: {{key: {SECRET}}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      automountServiceAccountToken: false
      terminationGracePeriodSeconds: 0
      containers:
      - imagePullPolicy: Never
        ports: [{{name: http, containerPort: 8080}}]
{container}
        - {{name: TOKEN, valueFrom: {{secretKeyRef: {{name: {name}, key: key}}}}}}
---
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  selector: {{app: {name}}}
  ports: [{{name: http, port: 80, targetPort: http}}]
"
        );
        let applied = Applied::new(
            &(rules.to_owned() + "---\n" + manifest.trim_start()),
            deletion,
        );
        let namespaced = format!("--namespace={namespace}");
        let deployment = format!("deployment/{name}");
        let words = [
            "rollout",
            "status",
            &deployment,
            &namespaced,
            "--timeout=60s",
        ];
        run(&mut testbed().kubectl_command(&words), PATIENCE).expect_success();

        Self {
            namespace,
            name,
            _applied: applied,
        }
    }

    #[track_caller]
    fn url(&self) -> String {
        format!(
            "http://{}:80/",
            testbed().service_ip(self.namespace, self.name)
        )
    }
}

/// The echo server, with names that stay in the pod and values that shells know.
fn echo() -> String {
    let lines = LINES.replace('\\', "\\\\").replace('"', "\\\"");
    let lines = lines.replace('\n', "\\n");
    format!(
        "        name: app
        image: {ECHO_IMAGE}
        env:
        - {{name: MODE, value: fast}}
        - {{name: LINES_OF_TEXT, value: \"{lines}\"}}
        - {{name: PATH, value: /of-the-pod}}
        - {{name: HOME, value: /of-the-pod}}
        - {{name: PYTHONPATH, value: /of-the-pod}}"
    )
}

fn nginx() -> String {
    format!(
        "        name: web
        image: {NGINX_IMAGE}
        command: [/entry/nginx]
        readinessProbe: {{httpGet: {{path: /big.sha256, port: 80}}, periodSeconds: 1}}
        env:
        - {{name: MODE, value: fast}}
        - {{name: URL, value: http://$(MODE)/}}"
    )
}

/// Waits for `dev` to have the right to run programs, which a binding has just given.
#[track_caller]
fn read(workstation: &Workstation, words: &[&str]) -> Finished {
    eventually("the environment", CHANGE, || {
        let read = workstation.tp(&[&["env"], words].concat());
        match read.status.success() {
            true => Ok(read),
            false => Err(read.to_string()),
        }
    })
}

#[track_caller]
fn path_in(workstation: &Workstation, name: &str) -> String {
    let folder = workstation.home().join("files");
    fs::create_dir_all(&folder).expect("a folder of the test can be made");
    Account::Member.own(&folder);
    let path = folder.join(name);

    path.to_str().expect("a path of a test is text").to_owned()
}

#[track_caller]
fn expect_gone(path: &str) {
    eventually("the end of a file", CHANGE, || {
        match fs::symlink_metadata(path) {
            Err(_) => Ok(()),
            Ok(_) => Err(format!("{path} is there")),
        }
    });
}

#[test]
fn a_handler_has_the_environment_of_the_workload_and_the_workstations_own() {
    let target = Target::in_shop("e2e-env-handler", &echo());
    let workstation = connected();
    read(&workstation, &[target.name]);
    let script = "printf '%s\\n' \"$TOKEN $MODE\" \"$PATH\" \"$HOME\" \"${PYTHONPATH-none}\"; \
                  stat -L -c %a \"$TP_ENV_FILE\"; grep -c '^TOKEN=' \"$TP_ENV_FILE\"; \
                  printf '%s' \"$TP_ENV_FILE\"";

    let words = [
        "intercept",
        target.name,
        "--port",
        "18110:http",
        "--env-set",
        "MODE=slow",
    ];
    let ended = workstation.tp(&[&words[..], &["--", "sh", "-c", script]].concat());

    let stderr = ended.stderr.clone();
    let said = ended.expect_success();
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[0], format!("{SECRET} slow"), "{said}");
    assert!(!lines[1].contains("of-the-pod"), "{said}");
    assert!(!lines[2].contains("of-the-pod"), "{said}");
    assert_eq!(lines[3..6], ["none", "600", "1"], "{said}");
    assert!(stderr.contains("left out: PYTHONPATH"), "{stderr}");
    // Docker's syntax holds no lines.
    assert!(stderr.contains("LINES_OF_TEXT"), "{stderr}");
    // The number may be that of another descriptor by now.
    eventually(
        "the end of the handler's file",
        CHANGE,
        || match fs::read_link(lines[6]) {
            Ok(file) if file.to_string_lossy().contains("tp-env") => Err(said.clone()),
            _ => Ok(()),
        },
    );
}

#[test]
fn files_of_the_environment_are_the_users_alone_and_end_with_the_intercept() {
    let target = Target::in_shop("e2e-env-files", &echo());
    let workstation = connected();
    read(&workstation, &[target.name]);
    let (env, json) = (
        path_in(&workstation, "web.env"),
        path_in(&workstation, "web.json"),
    );
    let words = [
        "intercept",
        target.name,
        "--port",
        "18111:http",
        "--env-syntax",
        "sh",
    ];
    let files = ["--env-file", &env, "--env-json", &json];

    workstation
        .tp(&[&words[..], &files[..]].concat())
        .expect_success();

    for path in [&env, &json] {
        let mode = workstation.run(&["stat", "-c", "%a %F", path]);
        assert_eq!(mode.expect_success().trim(), "600 regular file");
    }
    let script = format!(". '{env}'; printf '%s' \"$LINES_OF_TEXT\"");
    let evaluated = workstation.run(&["sh", "-c", &script]);
    assert_eq!(evaluated.expect_success(), LINES);
    let text = workstation.run(&["cat", &json]).expect_success();
    let object: Value = serde_json::from_str(&text).expect("it is JSON");
    assert_eq!(object["TOKEN"], SECRET);
    assert_eq!(object["LINES_OF_TEXT"], LINES);
    workstation
        .tp(&[&["intercept", "other", "--port", "18112:http"], &files[..2]].concat())
        .assert_refused_in_one_line(2, &["web.env", "file already"]);

    workstation.tp(&["leave", target.name]).expect_success();

    expect_gone(&env);
    expect_gone(&json);
}

#[test]
fn files_are_gone_when_tp_or_the_session_is_killed() {
    let target = Target::in_shop("e2e-env-killed", &echo());
    let mut workstation = connected();
    workstation.may_warn();
    read(&workstation, &[target.name]);
    let (first, second) = (
        path_in(&workstation, "1.env"),
        path_in(&workstation, "2.env"),
    );
    let words = [
        "tp",
        "intercept",
        target.name,
        "--port",
        "18113:http",
        "--env-file",
    ];
    let handler = ["--", "sh", "-c", "echo \"at $TP_ENV_FILE\"; exec sleep 30"];
    let command = [&words[..], &[&first], &handler[..]].concat();
    let mut running = Running::start(&mut workstation.command(&command));
    running.wait_for(&format!("at {first}"), PATIENCE);
    assert!(Path::new(&first).exists());

    drop(running);

    expect_gone(&first);
    eventually("the end of the intercept", CHANGE, || {
        match workstation.status()["intercepts"] == serde_json::json!([]) {
            true => Ok(()),
            false => Err("it is there".to_owned()),
        }
    });
    let command = [&words[1..], &[&second]].concat();
    workstation.tp(&command).expect_success();
    assert!(Path::new(&second).exists());
    signal(workstation.session_pid(), Signal::KILL);
    expect_gone(&second);
}

#[test]
fn who_may_not_exec_is_refused_with_the_rule_and_intercepts_all_the_same() {
    const NAMESPACE: &str = "e2e-env-refused";
    let rules = format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {NAMESPACE}}}\n")
        + &right("e2e-env-user", NAMESPACE, Subject::User("dev"))
        + &binding(
            "e2e-env-intercept",
            NAMESPACE,
            "tp-intercept",
            Subject::User("dev"),
        );
    let deletion = ["namespace/e2e-env-refused"];
    let target = Target::new(NAMESPACE, "e2e-env-rule", &echo(), &rules, &deletion);
    let workstation = Workstation::connected(Account::Member, "dev", NAMESPACE, &[]);
    let rule = ["dev", "create pods/exec", NAMESPACE];

    workstation
        .tp(&["env", target.name])
        .assert_refused_in_one_line(77, &rule);
    let words = ["intercept", target.name, "--port", "18114:http"];
    let script = "echo \"${TOKEN-none} ${TP_ENV_FILE-none} $OWN\"";
    let own = ["--env-set", "OWN=1", "--", "sh", "-c", script];
    let ended = workstation.tp(&[&words[..], &own[..]].concat());
    for word in rule {
        assert!(ended.stderr.contains(word), "{ended}");
    }
    assert_eq!(ended.expect_success().trim(), "none none 1");
    let file = path_in(&workstation, "refused.env");
    // Who wants a file has no use for an intercept without it.
    workstation
        .tp(&[&words[..], &["--env-file", &file]].concat())
        .assert_refused_in_one_line(77, &rule);
    assert!(!Path::new(&file).exists());
    assert_eq!(workstation.status()["intercepts"], serde_json::json!([]));
    let _handler = Handler::start(&workstation, 18114);
    workstation.tp(&words).expect_success();
    expect_workstation(&target.url());
}

#[test]
fn an_environment_that_its_process_has_written_over_is_rebuilt_and_its_gaps_are_named() {
    let target = Target::in_shop("e2e-env-title", &nginx());
    let workstation = connected();

    let said = read(&workstation, &[target.name]);

    let stderr = said.stderr.clone();
    assert_eq!(said.expect_success(), "MODE=fast\nURL=http://fast/\n");
    assert!(stderr.contains("has written its title over"), "{stderr}");
    let gap = format!("TOKEN (Secret {})", target.name);
    assert!(stderr.contains(&gap), "{stderr}");
}

#[test]
fn every_syntax_holds_what_it_can_and_names_the_rest() {
    let target = Target::in_shop("e2e-env-syntax", &echo());
    let workstation = connected();
    let printed = |syntax: &str| read(&workstation, &[target.name, "--env-syntax", syntax]);

    for syntax in ["sh", "sh:export"] {
        let script = format!(
            "eval \"$(tp env {} --env-syntax {syntax} 2>/dev/null)\"; printf '%s' \"$LINES_OF_TEXT\"",
            target.name
        );
        let evaluated = workstation.run(&["sh", "-c", &script]);
        assert_eq!(evaluated.expect_success(), LINES, "{syntax}");
    }
    let json: Value = serde_json::from_str(&printed("json").stdout).expect("it is JSON");
    assert_eq!(json["LINES_OF_TEXT"], LINES);
    let object = workstation
        .tp(&["env", target.name, "--output", "json"])
        .json();
    let variables = object["variables"].as_array().expect("a list");
    let token = variables.iter().find(|it| it["name"] == "TOKEN");
    assert_eq!(token.expect("it is there")["value"], SECRET);
    assert_eq!(object["container"], "app", "{object}");
    for (syntax, line) in [
        ("docker", "MODE=fast"),
        ("compose", "MODE='fast'"),
        ("csh", "set MODE='fast'"),
        ("csh:export", "setenv MODE 'fast'"),
        ("cmd", "@set ^\"MODE=fast^\""),
        ("ps", "${Env:MODE} = 'fast'"),
    ] {
        let printed = printed(syntax);
        assert!(printed.stdout.lines().any(|it| it == line), "{printed}");
    }
    for syntax in ["docker", "cmd"] {
        let printed = printed(syntax);
        assert!(printed.stderr.contains("LINES_OF_TEXT"), "{printed}");
        assert!(!printed.stdout.contains("LINES_OF_TEXT"), "{printed}");
    }
    workstation
        .tp(&["env", target.name, "--container", "no-such"])
        .assert_refused_in_one_line(2, &["no-such", "app"]);
    workstation
        .tp(&["env", "no-such"])
        .assert_refused_in_one_line(2, &["no-such", "shop"]);
}

#[test]
fn an_environment_is_in_no_log_no_object_and_no_argument() {
    let target = Target::in_shop("e2e-env-trace", &echo());
    let workstation = connected();
    let told = read(&workstation, &[target.name]);
    assert!(told.stdout.contains(SECRET), "{told}");
    let words = ["tp", "intercept", target.name, "--port", "18115:http"];
    let handler = ["--", "sh", "-c", "echo started; exec sleep 30"];
    let mut running =
        Running::start(&mut workstation.command(&[&words[..], &handler[..]].concat()));
    running.wait_for("started", PATIENCE);

    let arguments = workstation.run(&["ps", "-ewwo", "args"]).expect_success();
    assert!(arguments.contains(target.name), "{arguments}");
    let of_pods = |namespace: &str, component: &str| {
        let selector = format!("--selector=app.kubernetes.io/component={component}");
        let namespace = format!("--namespace={namespace}");
        testbed().kubectl(&[
            "logs",
            &namespace,
            &selector,
            "--all-containers",
            "--tail=-1",
        ])
    };
    let objects = testbed().kubectl(&[
        "get",
        "intercepts,sessions,configmaps,events",
        "--all-namespaces",
        "--output=json",
    ]);

    for (place, text) in [
        ("arguments", arguments),
        ("session", workstation.session_log()),
        ("root daemon", workstation.root_log()),
        ("manager", of_pods("tp-system", "manager")),
        ("agents", of_pods("tp-agents", "agent")),
        ("objects", objects),
        ("status", workstation.status().to_string()),
    ] {
        assert!(!text.contains(SECRET), "the environment is in: {place}");
    }
}
