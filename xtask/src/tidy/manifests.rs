//! Manifests: lints from the workspace, versions only at the root.

use super::{Problem, Source};

/// A workspace of its own, for another target.
const OWN_WORKSPACES: [&str; 2] = ["tp-ebpf", "testbed"];

pub(super) fn check(sources: &[Source]) -> Vec<Problem> {
    let manifests = sources.iter().filter(|source| {
        source.path.ends_with("Cargo.toml")
            && source.path.components().count() == 2
            && !OWN_WORKSPACES.contains(&source.top())
    });

    manifests.flat_map(check_one).collect()
}

fn check_one(manifest: &Source) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut section = "";
    let mut has_lints = false;
    for line in manifest.lines() {
        let text = line.text.trim();
        if text.starts_with('[') {
            section = text;
        } else if section == "[lints]" && text == "workspace = true" {
            has_lints = true;
        } else if section.ends_with("dependencies]")
            && !text.is_empty()
            && !text.starts_with('#')
            && !text.contains("workspace = true")
        {
            let at = manifest.at(line.number);
            problems.push(format!(
                "{at}: versions belong into the manifest at the root"
            ));
        }
    }
    if !has_lints {
        problems.push(format!(
            "{}: needs `[lints] workspace = true`",
            manifest.path.display()
        ));
    }

    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_without_the_lints_of_the_workspace_is_refused() {
        let manifest = Source::new("tp-core/Cargo.toml", "[package]\n[dependencies]\n");

        assert_eq!(check(&[manifest]).len(), 1);
    }

    #[test]
    fn a_version_outside_the_root_is_refused() {
        let text = "[lints]\nworkspace = true\n[dev-dependencies]\nrand = \"0.10\"\n\
                    bytes.workspace = true\n";
        let manifest = Source::new("tp-core/Cargo.toml", text);

        assert_eq!(
            check(&[manifest]),
            ["tp-core/Cargo.toml:4: versions belong into the manifest at the root"]
        );
    }
}
