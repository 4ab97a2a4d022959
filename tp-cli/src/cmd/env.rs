//! `tp env`.

use serde::Serialize;
use tp_core::environment::{ProcessEnvironment, filter::Filtered, syntax::Syntax};
use tp_proto::local::{EnvironmentRequest, EnvironmentResponse};

use super::environment::{left_out, read};
use crate::{
    cli::EnvArgs,
    client,
    output::{Format, Output, print_bytes},
    progress::note,
};

/// With `--output json`.
#[derive(Serialize)]
struct Printed<'a> {
    namespace: &'a str,
    kind: &'a str,
    workload: &'a str,
    pod: &'a str,
    container: &'a str,
    variables: Vec<Text<'a>>,
    left_out: Vec<LeftOut<'a>>,
    not_held: Vec<String>,
    notices: &'a [String],
}

/// A variable.
#[derive(Serialize)]
struct Text<'a> {
    name: &'a str,
    value: &'a str,
}

#[derive(Serialize)]
struct LeftOut<'a> {
    name: &'a str,
    reason: String,
}

pub(crate) async fn run(args: EnvArgs, output: Output) -> anyhow::Result<()> {
    let mut session = client::require().await?;
    let request = EnvironmentRequest {
        workload: args.workload,
        namespace: args.namespace.unwrap_or_default(),
        container: args.container.unwrap_or_default(),
        ..EnvironmentRequest::default()
    };
    let response = read(&mut session, request).await?;
    let environment = ProcessEnvironment::from_environ(&response.environ);
    let filtered = args.environment.filter().apply(&environment);
    if output.format() != Format::Text {
        return output.object(&printed(&response, &filtered));
    }
    let written = args.env_syntax.write(&filtered.environment);
    for notice in &response.notices {
        note(&format!("note: {notice}"));
    }
    for not_held in &written.not_held {
        note(&format!("note: {not_held}"));
    }
    if let Some(left_out) = left_out(&filtered.left_out, |_| true) {
        note(&format!("note: {left_out}"));
    }

    print_bytes(&written.text)
}

fn printed<'a>(response: &'a EnvironmentResponse, filtered: &'a Filtered) -> Printed<'a> {
    let texts = filtered.environment.iter().filter_map(|variable| {
        let name = std::str::from_utf8(&variable.name).ok()?;
        let value = std::str::from_utf8(&variable.value).ok()?;
        Some(Text { name, value })
    });
    let left_out = filtered.left_out.iter().map(|(name, reason)| LeftOut {
        name,
        reason: reason.to_string(),
    });
    let not_held = Syntax::Json.write(&filtered.environment).not_held;

    Printed {
        namespace: &response.namespace,
        kind: &response.kind,
        workload: &response.workload,
        pod: &response.pod,
        container: &response.container,
        variables: texts.collect(),
        left_out: left_out.collect(),
        not_held: not_held.iter().map(ToString::to_string).collect(),
        notices: &response.notices,
    }
}

#[cfg(test)]
mod tests {
    use tp_core::environment::filter::Filter;

    use super::*;

    #[test]
    fn what_is_not_in_an_object_is_named_in_it() {
        let response = EnvironmentResponse {
            pod: "web-0".into(),
            environ: b"A=1\0PATH=/bin\0LD_PRELOAD=x\0B=\xff\0".to_vec(),
            notices: vec!["one".into()],
            ..EnvironmentResponse::default()
        };
        let environment = ProcessEnvironment::from_environ(&response.environ);
        let filtered = Filter::default().apply(&environment);

        let object = serde_json::to_value(printed(&response, &filtered)).unwrap();

        let one = serde_json::json!([{"name": "A", "value": "1"}]);
        assert_eq!(object["variables"], one);
        assert_eq!(object["pod"], "web-0");
        assert_eq!(object["left_out"][0]["name"], "PATH");
        assert_eq!(
            object["left_out"][0]["reason"],
            "the workstation has its own"
        );
        let not_held = object["not_held"][0].as_str().unwrap();
        assert!(
            not_held.starts_with("B cannot be written as json"),
            "{not_held}"
        );
        assert_eq!(object["notices"][0], "one");
    }
}
