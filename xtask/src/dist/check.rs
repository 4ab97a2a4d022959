//! Checks that a release is complete and needs nothing that its users may lack.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read},
    path::Path,
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};
use flate2::read::GzDecoder;
use serde_json::Value;

use crate::{image::file_digest, products, run};

const PROGRAM: u32 = 0o755;
const DOCUMENT: u32 = 0o644;

/// Files of the archive, below its one folder.
const MEMBERS: &[(&str, u32)] = &[
    ("ARCHITECTURE.md", DOCUMENT),
    ("CHANGELOG.md", DOCUMENT),
    ("KNOWN-ISSUES.md", DOCUMENT),
    ("LICENSE-APACHE", DOCUMENT),
    ("LICENSE-MIT", DOCUMENT),
    ("README.md", DOCUMENT),
    ("SECURITY.md", DOCUMENT),
    ("THIRD-PARTY-NOTICES.txt", DOCUMENT),
    ("completions/_tp", DOCUMENT),
    ("completions/tp.bash", DOCUMENT),
    ("completions/tp.fish", DOCUMENT),
    ("docs/output.md", DOCUMENT),
    ("docs/promises.md", DOCUMENT),
    ("tp", PROGRAM),
    ("tp-daemon", PROGRAM),
    ("tp-daemon.service", DOCUMENT),
    ("tp-session", PROGRAM),
];

/// Files of the image's layer.
const LAYER: &[(&str, u32)] = &[
    ("tp-agent", PROGRAM),
    ("tp-agentd", PROGRAM),
    ("tp-manager", PROGRAM),
    ("usr/share/doc/tp/LICENSE-APACHE", DOCUMENT),
    ("usr/share/doc/tp/LICENSE-MIT", DOCUMENT),
    ("usr/share/doc/tp/THIRD-PARTY-NOTICES.txt", DOCUMENT),
];

/// Checks the folder that holds a release.
pub(super) fn all(folder: &Path, archive: &Path) -> Result<()> {
    let opened = tempfile::tempdir().context("making a folder to unpack the release")?;
    check_archive(folder, archive, opened.path())
        .with_context(|| format!("checking {}", archive.display()))?;
    let image = super::image();
    check_image(&image, opened.path()).with_context(|| format!("checking {}", image.display()))?;
    check_sums(folder, &[archive, &image])
}

/// Files of an archive or a layer, with their modes.
type Members = BTreeMap<String, u32>;

fn check_archive(folder: &Path, archive: &Path, opened: &Path) -> Result<()> {
    let found = unpack(GzDecoder::new(open(archive)?), opened)?;
    let top = format!("tp-{}", products::VERSION);
    check_members(&found, MEMBERS, &format!("{top}/"))?;

    let opened = opened.join(top);
    for (name, _) in MEMBERS {
        let size = fs::metadata(opened.join(name))?.len();
        ensure!(size > 0, "{name} is empty");
    }
    for (name, _) in MEMBERS.iter().filter(|(name, _)| name.ends_with(".md")) {
        let page = fs::read_to_string(opened.join(name))?;
        let folder = opened.join(name);
        let folder = folder.parent().unwrap_or(&opened);
        for link in links(&page) {
            ensure!(
                folder.join(link).exists(),
                "{name} links to {link}, which is missing"
            );
        }
    }
    for program in products::WORKSTATION {
        ensure_stripped(&opened.join(program))?;
        ensure!(
            file_digest(&opened.join(program))? == file_digest(&folder.join(program))?,
            "{program} is another one beside the archive"
        );
    }
    Ok(())
}

fn check_image(image: &Path, opened: &Path) -> Result<()> {
    let opened = opened.join("image");
    unpack(open(image)?, &opened)?;
    let json = |name: &str| -> Result<Value> {
        let text = fs::read_to_string(opened.join(name)).with_context(|| format!("no {name}"))?;
        serde_json::from_str(&text).with_context(|| format!("reading {name}"))
    };
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();

    let manifest = json("manifest.json")?;
    let name = text(&manifest[0]["RepoTags"][0]);
    ensure!(
        name == products::image_reference(),
        "the image is called {name:?}"
    );
    let config = json(&text(&manifest[0]["Config"]))?;
    let entrypoint = &config["config"]["Entrypoint"];
    ensure!(entrypoint[0] == "/tp-manager", "it starts {entrypoint}");
    let user = text(&config["config"]["User"]);
    ensure!(
        !user.is_empty() && !user.starts_with("0"),
        "it runs as {user:?}"
    );

    let layer = opened.join("layer");
    let archive = opened.join(text(&manifest[0]["Layers"][0]));
    check_members(&unpack(open(&archive)?, &layer)?, LAYER, "")?;
    for (name, mode) in LAYER {
        if *mode == PROGRAM {
            products::ensure_static(&layer.join(name))?;
            ensure_stripped(&layer.join(name))?;
        }
    }
    Ok(())
}

fn check_sums(folder: &Path, published: &[&Path]) -> Result<()> {
    const SUMS: &str = "SHA256SUMS";
    run::output(
        Command::new("sha256sum")
            .args(["--check", "--strict", "--quiet", SUMS])
            .current_dir(folder),
    )?;
    let sums = fs::read_to_string(folder.join(SUMS))?;
    let names = |file: &&Path| Some(file.file_name()?.to_string_lossy().into_owned());
    let expected: Vec<String> = published.iter().filter_map(names).collect();
    let listed: Vec<&str> = sums
        .lines()
        .filter_map(|line| Some(line.split_once("  ")?.1))
        .collect();
    ensure!(
        listed == expected,
        "{SUMS} lists {listed:?}, and {expected:?} are published"
    );
    Ok(())
}

/// Files of the archive that a document links to.
fn links(document: &str) -> impl Iterator<Item = &str> {
    document
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split(')').next())
        .map(|link| link.split('#').next().unwrap_or(link))
        .filter(|link| !link.is_empty() && !link.contains("://"))
}

fn open(path: &Path) -> Result<io::BufReader<File>> {
    let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    Ok(io::BufReader::new(file))
}

/// Unpacks a tar file and returns its files.
fn unpack(tar: impl Read, folder: &Path) -> Result<Members> {
    fs::create_dir_all(folder)?;
    let mut members = Members::new();
    for entry in tar::Archive::new(tar).entries()? {
        let mut entry = entry?;
        let name = entry.path()?.display().to_string();
        ensure!(entry.unpack_in(folder)?, "{name} lies outside");
        if entry.header().entry_type().is_file() {
            members.insert(name, entry.header().mode()?);
        }
    }
    Ok(members)
}

fn check_members(found: &Members, expected: &[(&str, u32)], top: &str) -> Result<()> {
    let expected: Members = expected
        .iter()
        .map(|(name, mode)| (format!("{top}{name}"), *mode))
        .collect();
    for (name, mode) in &expected {
        match found.get(name) {
            Some(found) if found == mode => {}
            Some(found) => bail!("{name} has the mode {found:o} in place of {mode:o}"),
            None => bail!("{name} is missing"),
        }
    }
    if let Some(name) = found.keys().find(|name| !expected.contains_key(*name)) {
        bail!("nobody expects {name}");
    }
    Ok(())
}

fn ensure_stripped(program: &Path) -> Result<()> {
    let sections = run::output(
        Command::new("readelf")
            .args(["--section-headers", "--wide"])
            .arg(program),
    )?;
    for section in [".symtab", ".debug_info"] {
        ensure!(
            !sections.contains(section),
            "{} is not stripped: it has {section}",
            program.display()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paths;

    fn refusal(found: &[(&str, u32)]) -> String {
        let found = found
            .iter()
            .map(|(name, mode)| ((*name).to_owned(), *mode))
            .collect();
        check_members(&found, &[("tp", PROGRAM)], "top/")
            .err()
            .map(|error| error.to_string())
            .unwrap_or_default()
    }

    #[test]
    fn a_release_has_its_members_with_their_modes_and_no_others() {
        assert_eq!(refusal(&[("top/tp", PROGRAM)]), "");
        assert_eq!(refusal(&[]), "top/tp is missing");
        assert_eq!(
            refusal(&[("top/tp", DOCUMENT)]),
            "top/tp has the mode 644 in place of 755"
        );
        assert_eq!(
            refusal(&[("top/tp", PROGRAM), ("top/tp.part", DOCUMENT)]),
            "nobody expects top/tp.part"
        );
    }

    #[test]
    fn links_to_files_are_told_from_those_to_the_web() {
        let document = "see [a](A.md), [b](docs/b.md#part), [c](https://c.test/) and [d](#d)";

        assert_eq!(links(document).collect::<Vec<_>>(), ["A.md", "docs/b.md"]);
    }

    #[test]
    fn what_the_readme_links_to_is_in_the_release() {
        let readme = fs::read_to_string(paths::workspace().join("README.md")).unwrap();

        for link in links(&readme) {
            assert!(MEMBERS.iter().any(|(name, _)| *name == link), "{link}");
        }
    }
}
