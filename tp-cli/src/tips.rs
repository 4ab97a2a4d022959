//! Words of other tools' users, each answered with what there is here.

use clap::error::{ContextKind, ContextValue};

const COMMANDS: [(&[&str], &str); 5] = [
    (
        &["helm", "upgrade"],
        "`tp install` puts the traffic manager into a cluster, and brings it to this version",
    ),
    (&["disconnect", "stop"], "`tp quit` ends the connection"),
    (
        &["ingest", "replace", "wiretap"],
        "`tp intercept` takes all traffic of a port; there is nothing else yet",
    ),
    (
        &["revoke"],
        "`tp intercept --take-over` ends another's intercept, and so does `kubectl delete intercept`",
    ),
    (&["logs", "loglevel"], "`tp gather-logs` collects the logs"),
];

/// Flags of one command.
const FLAGS: [(&str, &[&str], &str); 22] = [
    (
        "intercept",
        &["-e"],
        "there is no short form: `--env-file FILE`",
    ),
    (
        "intercept",
        &["-j"],
        "there is no short form: `--env-json FILE`",
    ),
    (
        "intercept",
        &[
            "--http-header",
            "--http-match",
            "--http-path-equal",
            "--http-path-prefix",
            "--http-path-regex",
        ],
        "all traffic of a port is intercepted, as requests are not told apart yet: leave it out",
    ),
    (
        "intercept",
        &[
            "--kafka-header",
            "--kafka-key",
            "--kafka-key-prefix",
            "--kafka-only",
            "--no-kafka",
        ],
        "messages are not told apart: give the local process a consumer group of its own",
    ),
    (
        "intercept",
        &["--mount", "--local-mount-port"],
        "the files of a pod are not mounted: `kubectl cp` copies them",
    ),
    (
        "intercept",
        &[
            "--docker-run",
            "--docker-build",
            "--docker-build-opt",
            "--docker-debug",
            "--docker-mount",
        ],
        "run the container beside `tp intercept`, with its port published on 127.0.0.1",
    ),
    (
        "intercept",
        &["--to-pod"],
        "pods are reached at their own addresses while connected: `kubectl get pods -o wide` shows them",
    ),
    (
        "intercept",
        &["--plaintext", "--http-plaintext"],
        "TLS is passed on as it is: let the local process serve it",
    ),
    (
        "intercept",
        &["--mechanism"],
        "the only mechanism is `tcp`, all connections of a port: leave it out",
    ),
    (
        "intercept",
        &[
            "--preview-url",
            "--ingress-host",
            "--ingress-port",
            "--ingress-tls",
            "--ingress-l5",
        ],
        "there are no preview URLs: what comes through the cluster's own ingress reaches this machine",
    ),
    (
        "intercept",
        &["--replace"],
        "the container runs on, without the traffic of the port: leave it out",
    ),
    (
        "intercept",
        &["--node-agent"],
        "agents are on the nodes always, and in no pod: leave it out",
    ),
    (
        "intercept",
        &["--metadata"],
        "an intercept carries no metadata: give the local process an environment variable",
    ),
    (
        "intercept",
        &["--detailed-output"],
        "`--output json` has all there is to know",
    ),
    (
        "intercept",
        &["--wait-message"],
        "`tp intercept` returns when the traffic arrives here, and runs a command after `--`",
    ),
    (
        "intercept",
        &["--local-only", "-l"],
        "`tp connect` is enough to reach the cluster",
    ),
    (
        "leave",
        &["--namespace", "-n", "--container", "-c"],
        "the name alone says which intercept is meant: `tp status` shows the names",
    ),
    (
        "list",
        &["--intercepts", "-i"],
        "`tp status` shows the intercepts of this machine, `tp list --all-users` those of everybody",
    ),
    (
        "list",
        &["--agents", "-a"],
        "no pod has an agent, and all workloads can be intercepted: `tp list` shows them",
    ),
    (
        "list",
        &[
            "--ingests",
            "-g",
            "--replacements",
            "-r",
            "--wiretaps",
            "-t",
        ],
        "there are intercepts alone: `tp list` shows them beside each workload",
    ),
    (
        "list",
        &["--debug", "--watch", "-w"],
        "`tp list --output json` has all there is to know, at this moment",
    ),
    (
        "list",
        &["--only-interceptable"],
        "all workloads can be intercepted: `tp list` shows them",
    ),
];

/// Flags of every command.
const GLOBAL_FLAGS: [(&[&str], &str); 4] = [
    (
        &["--use"],
        "a user has one session in each network namespace, so that nothing is to be chosen",
    ),
    (&["--format"], "`--output text|json|yaml` is what you mean"),
    (
        &["--progress"],
        "progress is shown on a terminal alone: leave it out",
    ),
    (
        &["--config"],
        "there is no file of settings: flags and the kubeconfig say everything",
    ),
];

/// What there is instead of the word that clap does not know.
pub(crate) fn tip(error: &clap::Error) -> Option<&'static str> {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        _ => None,
    };
    if let Some(word) = text(ContextKind::InvalidSubcommand) {
        return of(&COMMANDS, word);
    }
    let flag = text(ContextKind::InvalidArg)?;
    let command = command(error);
    let is_meant = |(of, flags, _): &&(&str, &[&str], &str)| {
        Some(*of) == command.as_deref() && flags.contains(&flag)
    };

    FLAGS
        .iter()
        .find(is_meant)
        .map(|(.., tip)| *tip)
        .or_else(|| of(&GLOBAL_FLAGS, flag))
}

fn of(tips: &[(&[&str], &'static str)], word: &str) -> Option<&'static str> {
    let tip = tips.iter().find(|(words, _)| words.contains(&word));

    tip.map(|(_, tip)| *tip)
}

/// The command whose flag is wrong, from `Usage: tp COMMAND …`.
fn command(error: &clap::Error) -> Option<String> {
    let Some(ContextValue::StyledStr(usage)) = error.get(ContextKind::Usage) else {
        return None;
    };
    let usage = usage.to_string();
    let (_, rest) = usage.split_once("tp ")?;

    rest.split_whitespace().next().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::Cli;

    fn answer(line: &str) -> Result<(), Option<&'static str>> {
        match Cli::try_parse_from(line.split(' ')) {
            Ok(_) => Ok(()),
            Err(error) => Err(tip(&error)),
        }
    }

    #[test]
    fn commands_of_other_tools_are_answered_with_ours() {
        let of = |line: &str| answer(line).unwrap_err();

        assert!(of("tp helm install").unwrap().contains("tp install"));
        assert!(of("tp disconnect").unwrap().contains("tp quit"));
        assert!(of("tp revoke a:b").unwrap().contains("--take-over"));
        assert_eq!(of("tp frob"), None);
        assert_eq!(of("tp connect --frob"), None);
    }

    /// The flags of `telepresence intercept`, `leave` and `list` from 2.20 to 2.32.
    #[test]
    fn flags_of_other_tools_are_accepted_or_answered_with_ours() {
        let lines = "\
            intercept mine --workload web|intercept mine -w web|intercept web --namespace shop|\
            intercept web -n shop|intercept web --port 8080:80|intercept web -p 8080|\
            intercept web --service web|intercept web --container app|\
            intercept web --address 127.0.0.1|intercept web --context lab|\
            intercept web --output json|intercept web -- npm start|\
            intercept web --http-header a=b|intercept web --http-match a=b|\
            intercept web --http-path-equal /a|intercept web --http-path-prefix /a|\
            intercept web --http-path-regex a|intercept web --plaintext|\
            intercept web --http-plaintext|intercept web --mechanism tcp|\
            intercept web --metadata a=b|intercept web --to-pod 9000|\
            intercept web --node-agent|intercept web --node-agent=false|\
            intercept web --mount=false|intercept web --mount /tmp|\
            intercept web --local-mount-port 1|intercept web --env-file f|intercept web -e f|\
            intercept web --env-file f --env-syntax sh|\
            intercept web --env-json f|intercept web -j f|\
            intercept web --docker-run|intercept web --docker-build .|\
            intercept web --docker-build-opt a=b|intercept web --docker-debug .|\
            intercept web --docker-mount /a|intercept web --detailed-output|\
            intercept web --wait-message done|intercept web --kafka-header a=b|\
            intercept web --kafka-key a|intercept web --kafka-key-prefix a|\
            intercept web --kafka-only|intercept web --no-kafka|intercept web --replace|\
            intercept web --preview-url=true|intercept web --ingress-host a|\
            intercept web --ingress-port 1|intercept web --ingress-tls|\
            intercept web --ingress-l5 a|intercept web --local-only|intercept web -l|\
            intercept web --use lab|intercept web --format json|intercept web --progress plain|\
            intercept web --config f|\
            leave web|detach web|leave web -n shop|leave web --namespace shop|leave web -c app|\
            detach web --container app|detach web --use lab|leave web --format json|\
            list -n shop|list --namespace shop|list --output json|list -a|list --agents|list -i|\
            list --intercepts|list -g|list --ingests|list -r|list --replacements|list -t|\
            list --wiretaps|list --debug|list -w|list --watch|list --only-interceptable|\
            list --format json-stream|list --use lab";
        let accepted: Vec<&str> = lines
            .split('|')
            .filter(|line| match answer(&format!("tp {line}")) {
                Ok(()) => true,
                Err(tip) => {
                    assert!(tip.is_some(), "tp {line}");
                    false
                }
            })
            .collect();

        // These at least are no mere words.
        for line in [
            "intercept mine -w web",
            "intercept web -p 8080",
            "detach web",
        ] {
            assert!(accepted.contains(&line), "{accepted:?}");
        }
    }

    #[test]
    fn an_answer_is_that_of_the_command() {
        let of = |line: &str| answer(line).unwrap_err();

        assert!(of("tp list -i").unwrap().contains("tp status"));
        assert!(
            of("tp intercept web --mount=false")
                .unwrap()
                .contains("kubectl cp")
        );
        assert_eq!(of("tp quit -i"), None);
        assert_eq!(of("tp status --mount"), None);
    }
}
