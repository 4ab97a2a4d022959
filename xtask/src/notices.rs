//! Licences of everything linked into the shipped programs.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use anyhow::{Context as _, Result};
use serde::Deserialize;

use crate::{paths, run};

const SHIPPED: &[&str] = &[
    "tp-agent",
    "tp-agentd",
    "tp-cli",
    "tp-daemon",
    "tp-manager",
    "tp-session",
];
const LICENCE_FILES: &[&str] = &[
    "copying",
    "copyright",
    "licence",
    "license",
    "notice",
    "unlicense",
];
/// The C library is linked statically into the programs of the image.
const C_LIBRARY: &str = "/usr/share/doc/libc6/copyright";

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    resolve: Resolve,
}

#[derive(Deserialize)]
struct Package {
    id: String,
    name: String,
    version: String,
    license: Option<String>,
    repository: Option<String>,
    manifest_path: String,
    source: Option<String>,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
    deps: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    pkg: String,
    dep_kinds: Vec<Kind>,
}

#[derive(Deserialize)]
struct Kind {
    kind: Option<String>,
}

/// The document: one section per package, one copy of each licence text.
pub(crate) fn text() -> Result<String> {
    let programs = metadata(&paths::workspace(), Some("x86_64-unknown-linux-gnu"))?;
    let mut packages = linked(&programs, |package| {
        SHIPPED.contains(&package.name.as_str())
    });
    let ebpf_folder = paths::workspace().join("tp-ebpf");
    let ebpf = metadata(&ebpf_folder, None)?;
    packages.extend(linked(&ebpf, |package| package.name == "tp-ebpf"));

    let mut list = String::new();
    let mut texts: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut seen = BTreeSet::new();
    for package in packages {
        let title = format!("{} {}", package.name, package.version);
        if package.source.is_none() || !seen.insert(title.clone()) {
            continue;
        }
        let licence = package.license.as_deref().unwrap_or("see below");
        let home = package.repository.as_deref().unwrap_or("");
        list += &format!("{title}: {licence} {home}\n");
        for text in licence_texts(Path::new(&package.manifest_path))? {
            texts.entry(text).or_default().insert(title.clone());
        }
    }
    if let Ok(text) = fs::read_to_string(C_LIBRARY) {
        list += "GNU C Library: LGPL-2.1-or-later, in the programs of the image only\n";
        texts
            .entry(text)
            .or_default()
            .insert("GNU C Library".into());
    }

    let mut document = format!(
        "tp is made with the work of others. Their licences:\n\n{list}\nand the texts of these licences:\n"
    );
    for (text, users) in texts {
        let users: Vec<String> = users.into_iter().collect();
        let line = "-".repeat(80);
        document += &format!(
            "\n{line}\n{}\n{line}\n\n{}\n",
            users.join(", "),
            text.trim()
        );
    }
    Ok(document)
}

fn metadata(folder: &Path, platform: Option<&str>) -> Result<Metadata> {
    let mut command = run::cargo();
    command
        .args(["metadata", "--format-version=1", "--locked"])
        .current_dir(folder);
    if let Some(platform) = platform {
        command.args(["--filter-platform", platform]);
    }
    serde_json::from_str(&run::output(&mut command)?).context("reading what cargo metadata said")
}

/// The packages that `is_root` chooses and all that they link, in alphabetical order.
fn linked(metadata: &Metadata, is_root: impl Fn(&Package) -> bool) -> Vec<&Package> {
    let nodes: BTreeMap<&str, &Node> = metadata
        .resolve
        .nodes
        .iter()
        .map(|node| (node.id.as_str(), node))
        .collect();
    let mut open: Vec<&str> = metadata
        .packages
        .iter()
        .filter(|package| is_root(package))
        .map(|package| package.id.as_str())
        .collect();
    let mut reached = BTreeSet::new();
    while let Some(id) = open.pop() {
        if reached.insert(id) {
            let dependencies = nodes.get(id).map_or(&[][..], |node| &node.deps);
            open.extend(
                dependencies
                    .iter()
                    // Neither build scripts nor tests end up in a program.
                    .filter(|dependency| {
                        dependency.dep_kinds.iter().any(|kind| kind.kind.is_none())
                    })
                    .map(|dependency| dependency.pkg.as_str()),
            );
        }
    }

    let mut packages: Vec<&Package> = metadata
        .packages
        .iter()
        .filter(|package| reached.contains(package.id.as_str()))
        .collect();
    packages.sort_by(|a, b| (&a.name, &a.version).cmp(&(&b.name, &b.version)));
    packages
}

fn licence_texts(manifest: &Path) -> Result<Vec<String>> {
    let folder = manifest.parent().context("a manifest is in a folder")?;
    let mut texts = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let path = entry?.path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .to_lowercase();
        if path.is_file() && LICENCE_FILES.iter().any(|prefix| name.starts_with(prefix)) {
            let bytes = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
            texts.push(String::from_utf8_lossy(&bytes).replace('\r', ""));
        }
    }
    Ok(texts)
}
