//! Container images without a container engine: one layer in the docker-archive form.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Read as _, Seek as _, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::run;

/// The content of an image and its command.
pub(crate) struct Image<'a> {
    /// `name:tag`
    pub(crate) reference: &'a str,
    pub(crate) entrypoint: &'a [&'a str],
    /// `uid:gid`, or empty for root.
    pub(crate) user: &'a str,
    pub(crate) labels: &'a [(&'a str, &'a str)],
    pub(crate) content: Vec<Entry>,
}

pub(crate) struct Entry {
    pub(crate) source: PathBuf,
    /// Absolute path in the image.
    pub(crate) destination: String,
    pub(crate) mode: u32,
}

impl Entry {
    pub(crate) fn program(source: impl Into<PathBuf>, destination: &str) -> Self {
        Self {
            source: source.into(),
            destination: destination.to_owned(),
            mode: 0o755,
        }
    }

    pub(crate) fn document(source: impl Into<PathBuf>, destination: &str) -> Self {
        Self {
            source: source.into(),
            destination: destination.to_owned(),
            mode: 0o644,
        }
    }
}

impl Image<'_> {
    /// Writes the archive. The same content gives the same bytes: every time stamp is zero.
    pub(crate) fn write(&self, archive: &Path) -> Result<()> {
        let mut layer = tempfile::tempfile().context("making a file for the layer")?;
        self.write_layer(&mut layer)
            .with_context(|| format!("writing the layer of {}", self.reference))?;
        self.write_around(layer, archive)
    }

    /// Writes an archive whose one layer is this tar file; ignores `content`.
    pub(crate) fn write_around(&self, mut layer: File, archive: &Path) -> Result<()> {
        layer.rewind()?;
        let layer_digest = digest(&mut layer)?;
        layer.rewind()?;

        let config = self.config(&layer_digest).to_string();
        let config_name = format!("{:x}.json", Hex(&Sha256::digest(config.as_bytes())));
        let layer_name = format!("{layer_digest}/layer.tar");
        let manifest = json!([{
            "Config": config_name,
            "RepoTags": [self.reference],
            "Layers": [layer_name],
        }])
        .to_string();

        let mut tar = tar::Builder::new(BufWriter::new(run::create(archive)?));
        append(
            &mut tar,
            &config_name,
            config.len() as u64,
            0o644,
            config.as_bytes(),
        )?;
        let size = layer.metadata()?.len();
        append(&mut tar, &layer_name, size, 0o644, layer)?;
        append(
            &mut tar,
            "manifest.json",
            manifest.len() as u64,
            0o644,
            manifest.as_bytes(),
        )?;
        tar.into_inner()?.flush()?;
        Ok(())
    }

    fn write_layer(&self, layer: &mut File) -> Result<()> {
        let mut tar = tar::Builder::new(BufWriter::new(layer));
        let mut folders: Vec<PathBuf> = Vec::new();
        for entry in &self.content {
            let destination = entry.destination.trim_start_matches('/');
            let parents: Vec<&Path> = Path::new(destination).ancestors().skip(1).collect();
            for folder in parents.into_iter().rev() {
                if folder != Path::new("") && !folders.iter().any(|known| known == folder) {
                    folders.push(folder.to_path_buf());
                    let mut header = header(0, 0o755);
                    header.set_entry_type(tar::EntryType::Directory);
                    tar.append_data(&mut header, folder, io::empty())?;
                }
            }

            let file = File::open(&entry.source)
                .with_context(|| format!("opening {}", entry.source.display()))?;
            let size = file.metadata()?.len();
            append(&mut tar, destination, size, entry.mode, file)?;
        }
        tar.into_inner()?.flush()?;
        Ok(())
    }

    fn config(&self, layer_digest: &str) -> serde_json::Value {
        let labels: serde_json::Map<String, serde_json::Value> = self
            .labels
            .iter()
            .map(|(key, value)| ((*key).to_owned(), json!(value)))
            .collect();
        json!({
            "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
            "os": "linux",
            "config": {
                "Entrypoint": self.entrypoint,
                "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
                "Labels": labels,
                "User": self.user,
            },
            "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{layer_digest}")] },
        })
    }
}

fn header(size: u64, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_size(size);
    header.set_mode(mode);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

/// Adds one file, with fixed owner and time.
pub(crate) fn append<W: Write>(
    tar: &mut tar::Builder<W>,
    name: &str,
    size: u64,
    mode: u32,
    content: impl io::Read,
) -> Result<()> {
    tar.append_data(&mut header(size, mode), name, content)
        .with_context(|| format!("adding {name}"))
}

/// The SHA-256 of the remaining bytes, in hexadecimal.
pub(crate) fn digest(reader: &mut impl io::Read) -> Result<String> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let count = reader.read(&mut buffer)?;
        if count == 0 {
            return Ok(format!("{:x}", Hex(&hash.finalize())));
        }
        hash.update(&buffer[..count]);
    }
}

/// The SHA-256 of a file, in hexadecimal.
pub(crate) fn file_digest(path: &Path) -> Result<String> {
    let mut file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    digest(&mut file)
}

/// The SHA-256 of all files below some folders (or of single files) and of `more`.
pub(crate) fn tree_digest(roots: &[PathBuf], more: &[&str]) -> Result<String> {
    let mut files = Vec::new();
    for root in roots {
        collect(root, &mut files)?;
    }
    files.sort();

    let mut hash = Sha256::new();
    for text in more {
        hash.update(text.as_bytes());
        hash.update([0]);
    }
    for file in files {
        let mut content = Vec::new();
        File::open(&file)
            .and_then(|mut open| open.read_to_end(&mut content))
            .with_context(|| format!("reading {}", file.display()))?;
        hash.update(
            file.file_name()
                .map_or(&[][..], |name| name.as_encoded_bytes()),
        );
        hash.update((content.len() as u64).to_be_bytes());
        hash.update(content);
    }
    Ok(format!("{:x}", Hex(&hash.finalize())))
}

fn collect(path: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    if path.is_dir() {
        for entry in fs::read_dir(path).with_context(|| format!("reading {}", path.display()))? {
            collect(&entry?.path(), files)?;
        }
    } else {
        files.push(path.to_path_buf());
    }
    Ok(())
}

struct Hex<'a>(&'a [u8]);

impl std::fmt::LowerHex for Hex<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0
            .iter()
            .try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_names_its_layer_and_is_repeatable() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("program");
        fs::write(&program, b"content").unwrap();
        let image = Image {
            reference: "localhost/some:1",
            entrypoint: &["/bin/program"],
            user: "65532:65532",
            labels: &[("org.opencontainers.image.title", "some")],
            content: vec![Entry::program(&program, "/bin/program")],
        };

        let (first, second) = (folder.path().join("1.tar"), folder.path().join("2.tar"));
        image.write(&first).unwrap();
        image.write(&second).unwrap();

        assert_eq!(fs::read(&first).unwrap(), fs::read(&second).unwrap());
        let mut archive = tar::Archive::new(File::open(&first).unwrap());
        let names: Vec<String> = archive
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().display().to_string())
            .collect();
        assert!(names[1].ends_with("/layer.tar"));
        assert_eq!(names[2], "manifest.json");
    }
}
