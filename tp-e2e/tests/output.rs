//! The commands' JSON and YAML is as documented in docs/output.md.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use tp_e2e::{
    cluster::testbed,
    installation::{ROLLOUT, image},
    process::{Finished, run},
    user::Account,
    workstation::Workstation,
};

const PAGE: &str = include_str!("../../docs/output.md");
const FORMATS: [&str; 2] = ["json", "yaml"];

/// The fields of one section of the page, with their types.
fn documented(title: &str) -> BTreeMap<String, String> {
    let heading = format!("\n## {title}\n");
    let at = PAGE
        .find(&heading)
        .unwrap_or_else(|| panic!("the page has no section {title}"));
    let section = &PAGE[at + heading.len()..];
    let section = &section[..section.find("\n## ").unwrap_or(section.len())];
    section
        .lines()
        .filter_map(|line| {
            let (field, rest) = line.strip_prefix("| `")?.split_once("` | ")?;
            let (kind, _) = rest.split_once(" |")?;
            Some((field.to_owned(), kind.to_owned()))
        })
        .collect()
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true/false",
        Value::Number(_) => "number",
        Value::String(_) => "text",
        Value::Object(_) => "object",
        Value::Array(items) if items.is_empty() => "empty list",
        Value::Array(items) if items.iter().all(Value::is_object) => "list of objects",
        Value::Array(items) if items.iter().all(Value::is_string) => "list of text",
        Value::Array(_) => "mixed list",
    }
}

/// The fields of an object, with the page's names.
fn fields(value: &Value, above: &str, found: &mut BTreeMap<String, BTreeSet<&'static str>>) {
    for (name, field) in value.as_object().into_iter().flatten() {
        let path = format!("{above}{name}");
        found.entry(path.clone()).or_default().insert(kind(field));
        fields(field, &format!("{path}."), found);
        for item in field.as_array().into_iter().flatten() {
            fields(item, &format!("{path}[]."), found);
        }
    }
}

#[track_caller]
fn assert_as_documented(title: &str, value: &Value) {
    let page = documented(title);
    assert!(!page.is_empty(), "{title} has no table");
    let mut found = BTreeMap::new();
    fields(value, "", &mut found);

    for (field, kinds) in &found {
        let Some(allowed) = page.get(field) else {
            panic!("{title}: the page lacks {field}, in {value}");
        };
        for kind in kinds {
            let fits = allowed.split(" or ").any(|it| it == *kind)
                || (*kind == "empty list" && allowed.starts_with("list of"));
            assert!(fits, "{title}: {field} is {kind}, not {allowed}");
        }
    }
    for field in page.keys() {
        let is_below_nothing = found.iter().any(|(above, kinds)| {
            let is_nothing = kinds.contains("null") || kinds.contains("empty list");
            is_nothing
                && (field.starts_with(&format!("{above}."))
                    || field.starts_with(&format!("{above}[].")))
        });
        assert!(
            found.contains_key(field) || is_below_nothing,
            "{title} lacks {field}: {value}"
        );
    }
}

/// The only object that a command printed.
#[track_caller]
fn printed_object(format: &str, finished: &Finished) -> Value {
    let text = match finished.status.success() || !finished.stdout.is_empty() {
        true => &finished.stdout,
        false => &finished.stderr,
    };
    let value: Value = match format {
        "json" => serde_json::from_str(text)
            .unwrap_or_else(|error| panic!("no JSON ({error}) from {finished}")),
        _ => {
            assert!(!text.starts_with('{'), "{finished}");
            serde_norway::from_str(text)
                .unwrap_or_else(|error| panic!("no YAML ({error}) from {finished}"))
        }
    };
    assert!(value.is_object(), "{finished}");
    value
}

/// Runs a command in both formats and compares the output with its section of the page.
#[track_caller]
fn check(workstation: &Workstation, title: &str, words: &[&str]) {
    for format in FORMATS {
        let finished = workstation.tp(&[words, &["--output", format]].concat());
        assert_as_documented(title, &printed_object(format, &finished));
    }
}

#[test]
fn every_command_prints_the_fields_of_the_page() {
    let workstation = Workstation::new(Account::Root, "admin");
    let archive = workstation.state_dir().join("logs.tar.gz");
    let archive = archive.to_str().expect("the testbed's path is UTF-8");

    check(&workstation, "`tp status`", &["status"]);
    check(&workstation, "`tp check`", &["check"]);
    check(&workstation, "Errors", &["list"]);
    check(&workstation, "Errors", &["frobnicate"]);
    for format in FORMATS {
        let connected = workstation.connect(&["--namespace", "shop", "--output", format]);
        assert_as_documented("`tp connect`", &printed_object(format, &connected));
        workstation
            .run(&["curl", "-sS", "http://web/"])
            .expect_success();
        workstation.assert_closed_port_refuses();

        let again = ["connect", "--namespace", "shop"];
        check(&workstation, "`tp connect`", &again);
        for command in ["status", "check", "list", "version"] {
            check(&workstation, &format!("`tp {command}`"), &[command]);
        }
        check(&workstation, "`tp env`", &["env", "web"]);
        let gather = ["gather-logs", "--file", archive];
        check(&workstation, "`tp gather-logs`", &gather);

        let quit = workstation.tp(&["quit", "--output", format]);
        assert_as_documented("`tp quit`", &printed_object(format, &quit));
    }
    check(&workstation, "`tp version`", &["version"]);
    for shell in ["bash", "zsh", "fish"] {
        check(&workstation, "`tp completions`", &["completions", shell]);
    }
    let grant = ["grant", "e2e-nobody", "--namespace", "shop"];
    check(&workstation, "`tp grant`", &grant);
    for (name, namespace) in [("use", "shop"), ("connect", "tp-system")] {
        let binding = format!("rolebinding/tp-{name}-user-e2e-nobody");
        testbed().kubectl(&["delete", &binding, "--namespace", namespace]);
    }
    let dry = ["uninstall", "--dry-run"];
    check(&workstation, "`tp uninstall --dry-run`", &dry);
}

#[test]
fn installing_and_uninstalling_print_the_fields_of_the_page() {
    testbed().install_tp();
    let workstation = Workstation::without_root_daemon(Account::Root, "admin");
    let image = image();
    let tp = |words: &[&str]| {
        let mut command = workstation.command(&[&["tp"], words].concat());
        run(&mut command, ROLLOUT)
    };

    let printed: Vec<_> = FORMATS
        .into_iter()
        .map(|format| {
            let removed = tp(&["uninstall", "--yes", "--output", format]);
            let install = ["install", "--image", &image, "--output", format];
            (format, removed, tp(&install))
        })
        .collect();
    testbed().install_tp_again();

    for (format, removed, installed) in printed {
        assert_as_documented("`tp uninstall`", &printed_object(format, &removed));
        assert_as_documented("`tp install`", &printed_object(format, &installed));
    }
}

#[test]
fn standard_output_is_the_commands_alone_when_one_runs_connected() {
    let workstation = Workstation::new(Account::Member, "dev");
    for format in FORMATS {
        let connect = ["connect", "--output", format, "--namespace"];

        let said = workstation
            .tp(&[&connect[..], &["shop", "--", "echo", "mine"]].concat())
            .expect_success();
        assert_eq!(said, "mine\n");

        // Only an administrator learns whether it exists.
        let failed = workstation.tp(&[&connect[..], &["no-such", "--", "echo", "mine"]].concat());
        assert_eq!(failed.code(), 77, "{failed}");
        assert_as_documented("Errors", &printed_object(format, &failed));
    }
}
