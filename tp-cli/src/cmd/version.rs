//! `tp version`.

use serde::Serialize;
use tp_proto::local::VersionRequest;

use crate::{
    client,
    output::{Block, Output},
    root_daemon::{self, Answer},
};

/// A program that does not run, or is unknown, is null.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Versions {
    client: &'static str,
    session: Option<String>,
    root_daemon: Option<String>,
    manager: Option<String>,
}

pub(crate) async fn run(output: Output) -> anyhow::Result<()> {
    let versions = versions().await;

    output.print(&versions, &text(&versions))
}

pub(crate) async fn versions() -> Versions {
    let mut versions = Versions {
        client: tp_core::VERSION,
        ..Versions::default()
    };
    if let Ok(Some(mut session)) = client::find().await
        && let Ok(response) = client::ask(session.version(VersionRequest {})).await
    {
        versions.session = known(response.session);
        versions.root_daemon = known(response.root_daemon);
        versions.manager = known(response.manager);
    }
    if versions.root_daemon.is_none()
        && let Answer::Running(daemon) = root_daemon::hello()
    {
        versions.root_daemon = Some(daemon.version);
    }

    versions
}

fn known(version: String) -> Option<String> {
    (!version.is_empty()).then_some(version)
}

fn text(versions: &Versions) -> String {
    let or_none = |version: &Option<String>| version.clone().unwrap_or_default();

    Block::new("Versions")
        .line("Client", versions.client)
        .line("Session", or_none(&versions.session))
        .line("Root daemon", or_none(&versions.root_daemon))
        .line("Traffic manager", or_none(&versions.manager))
        .finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_run_is_null_in_json_and_left_out_in_text() {
        let versions = Versions {
            client: "0.1.0",
            ..Versions::default()
        };

        let json = serde_json::to_value(&versions).unwrap();

        assert_eq!(json["client"], "0.1.0");
        assert!(json["manager"].is_null());
        assert_eq!(text(&versions), "Versions\n  Client            : 0.1.0\n");
    }
}
