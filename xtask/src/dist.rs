//! Makes a release: programs, archive, image, check sums and notices in target/dist.

use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use flate2::{Compression, write::GzEncoder};

use crate::{
    image::{append, file_digest},
    notices, paths, products, run,
};

mod check;

/// Shells and the file names that their completion systems expect.
const COMPLETIONS: &[(&str, &str)] = &[("bash", "tp.bash"), ("fish", "tp.fish"), ("zsh", "_tp")];

/// Documents for users: README and the files it links to, at the same paths as in a checkout.
const DOCUMENTS: &[&str] = &[
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "KNOWN-ISSUES.md",
    "README.md",
    "SECURITY.md",
    "docs/output.md",
    "docs/promises.md",
];

pub(crate) fn dist() -> Result<()> {
    products::build()?;
    pack()?;

    let folder = paths::dist();
    println!("{}:", folder.display());
    for file in files(&folder)? {
        let size = fs::metadata(&file)?.len();
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        println!("  {name} ({:.1} MB)", size as f64 / 1e6);
    }
    Ok(())
}

/// Packs the built programs, and checks that the release is complete.
pub(crate) fn pack() -> Result<()> {
    let folder = paths::dist();
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("removing {}", folder.display()))?;
    }
    fs::create_dir_all(&folder)?;

    for program in products::WORKSTATION {
        products::strip(&paths::release().join(program), &folder.join(program))?;
    }
    let notices = folder.join("THIRD-PARTY-NOTICES.txt");
    run::write(&notices, notices::text()?)?;
    let archive = folder.join(format!(
        "tp-{}-linux-{}.tar.gz",
        products::VERSION,
        std::env::consts::ARCH
    ));
    write_archive(&folder, &archive, &notices)?;
    products::write_image(&image(), &notices)?;
    write_sums(&folder, &[&archive, &image()])?;
    check::all(&folder, &archive)
}

/// Builds the image alone, for the test cluster.
pub(crate) fn image_only() -> Result<PathBuf> {
    let notices = paths::statics().join("THIRD-PARTY-NOTICES.txt");
    run::write(&notices, notices::text()?)?;
    products::write_image(&image(), &notices)?;
    Ok(image())
}

/// The path of tp's image.
pub(crate) fn image() -> PathBuf {
    paths::dist().join("tp-image.tar")
}

fn write_archive(folder: &Path, archive: &Path, notices: &Path) -> Result<()> {
    let top = format!("tp-{}", products::VERSION);
    let gzip = GzEncoder::new(run::create(archive)?, Compression::default());
    let mut tar = tar::Builder::new(gzip);
    let mut add = |source: &Path, name: &str, mode: u32| -> Result<()> {
        let file = File::open(source).with_context(|| format!("opening {}", source.display()))?;
        let size = file.metadata()?.len();
        append(&mut tar, &format!("{top}/{name}"), size, mode, file)
    };

    for program in products::WORKSTATION {
        add(&folder.join(program), program, 0o755)?;
    }
    let unit = paths::workspace().join("tp-daemon/tp-daemon.service");
    add(&unit, "tp-daemon.service", 0o644)?;
    add(notices, "THIRD-PARTY-NOTICES.txt", 0o644)?;
    for file in products::licences()? {
        let name = file
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        add(&file, &name, 0o644)?;
    }
    for document in DOCUMENTS {
        add(&paths::workspace().join(document), document, 0o644)?;
    }

    for (shell, name) in COMPLETIONS {
        let script =
            run::output(Command::new(paths::release().join("tp")).args(["completions", shell]))?;
        append(
            &mut tar,
            &format!("{top}/completions/{name}"),
            script.len() as u64,
            0o644,
            script.as_bytes(),
        )?;
    }
    tar.into_inner()?.finish()?.flush()?;
    Ok(())
}

/// Check sums of the published files: all other files of the folder are in the archive, too.
fn write_sums(folder: &Path, published: &[&Path]) -> Result<()> {
    let mut sums = String::new();
    for file in published {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        sums += &format!("{}  {name}\n", file_digest(file)?);
    }
    run::write(&folder.join("SHA256SUMS"), sums)
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files: Vec<PathBuf> = fs::read_dir(folder)?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.is_file())
        .collect();
    files.sort();
    Ok(files)
}
