//! Certificates and kubeconfigs, made anew for each cluster.

use std::{
    fs,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use super::{Layout, network::Network};
use crate::run;

/// People of the test cluster and their groups. What they may do is for the tests to grant.
const USERS: &[(&str, &str)] = &[
    ("admin", "/O=system:masters/CN=admin"),
    ("dev", "/O=devs/CN=dev"),
    ("limited", "/O=devs-limited/CN=limited"),
    ("stranger", "/CN=stranger"),
];

const COMPONENTS: &[(&str, &str)] = &[
    (
        "apiserver-client",
        "/O=system:masters/CN=kube-apiserver-kubelet-client",
    ),
    ("controller-manager", "/CN=system:kube-controller-manager"),
    ("proxy", "/CN=system:kube-proxy"),
    ("scheduler", "/CN=system:kube-scheduler"),
];

/// Makes everything under `pki/` and `users/`.
pub(crate) fn create(layout: &Layout, network: Network, nodes: u8) -> Result<()> {
    let pki = Pki {
        folder: layout.pki(),
        network,
    };
    private_folder(&pki.folder)?;
    // Others may pass through: a file handed over with chown is then readable for its owner.
    fs::create_dir_all(layout.users())?;
    pki.authority()?;
    pki.service_account_key()?;

    let (api, service) = (network.node(1), network.api_service());
    pki.certificate(
        "apiserver",
        "/CN=kube-apiserver",
        &format!(
            "IP:{api},IP:{service},IP:127.0.0.1,DNS:kubernetes.default.svc,DNS:kubernetes.default"
        ),
    )?;
    for (name, subject) in COMPONENTS {
        pki.certificate(name, subject, "")?;
        pki.kubeconfig(name, &pki.file(&format!("{name}.conf")))?;
    }
    for index in 1..=nodes {
        let name = format!("node{index}");
        pki.certificate(
            &name,
            &format!("/O=system:nodes/CN=system:node:{name}"),
            &format!("IP:{},DNS:{name}", network.node(index)),
        )?;
        pki.kubeconfig(&name, &pki.file(&format!("{name}.conf")))?;
    }
    for (name, subject) in USERS {
        pki.certificate(name, subject, "")?;
        pki.kubeconfig(name, &layout.user(name))?;
    }
    Ok(())
}

struct Pki {
    folder: PathBuf,
    network: Network,
}

impl Pki {
    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn openssl(&self, arguments: &[&str]) -> Result<()> {
        run::output(
            Command::new("openssl")
                .args(arguments)
                .current_dir(&self.folder),
        )
        .map(drop)
    }

    fn authority(&self) -> Result<()> {
        self.openssl(&[
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-keyout",
            "ca.key",
            "-out",
            "ca.crt",
            "-days",
            "3650",
            "-subj",
            "/CN=tp-testbed",
        ])
    }

    fn service_account_key(&self) -> Result<()> {
        self.openssl(&[
            "ecparam",
            "-genkey",
            "-name",
            "prime256v1",
            "-noout",
            "-out",
            "sa.key",
        ])?;
        self.openssl(&["ec", "-in", "sa.key", "-pubout", "-out", "sa.pub"])
    }

    fn certificate(&self, name: &str, subject: &str, alternatives: &str) -> Result<()> {
        let (key, request) = (format!("{name}.key"), format!("{name}.csr"));
        self.openssl(&[
            "req",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-keyout",
            &key,
            "-out",
            &request,
            "-subj",
            subject,
        ])?;

        let mut extensions = "extendedKeyUsage=clientAuth,serverAuth\n".to_owned();
        if !alternatives.is_empty() {
            extensions += &format!("subjectAltName={alternatives}\n");
        }
        let extension_file = format!("{name}.ext");
        run::write(&self.file(&extension_file), extensions)?;
        self.openssl(&[
            "x509",
            "-req",
            "-in",
            &request,
            "-CA",
            "ca.crt",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
            "-days",
            "3650",
            "-extfile",
            &extension_file,
            "-out",
            &format!("{name}.crt"),
        ])
    }

    /// Writes a kubeconfig that needs no other file.
    fn kubeconfig(&self, name: &str, target: &Path) -> Result<()> {
        let embedded = |file: &str| -> Result<String> {
            let path = self.file(file);
            let bytes = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
            Ok(base64(&bytes))
        };
        let config = serde_json::json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{
                "name": "testbed",
                "cluster": {
                    "server": self.network.server(),
                    "certificate-authority-data": embedded("ca.crt")?,
                },
            }],
            "users": [{
                "name": name,
                "user": {
                    "client-certificate-data": embedded(&format!("{name}.crt"))?,
                    "client-key-data": embedded(&format!("{name}.key"))?,
                },
            }],
            "contexts": [{ "name": "testbed", "context": { "cluster": "testbed", "user": name } }],
            "current-context": "testbed",
        });
        private_file(target, &serde_json::to_string_pretty(&config)?)
    }
}

fn private_folder(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("creating {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))?;
    Ok(())
}

fn private_file(path: &Path, content: &str) -> Result<()> {
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("creating {}", path.display()))?;
    std::io::Write::write_all(&mut file, content.as_bytes())?;
    Ok(())
}

/// Standard base64 with padding.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let group = chunk
            .iter()
            .chain([0, 0].iter())
            .take(3)
            .fold(0_usize, |group, byte| group << 8 | usize::from(*byte));
        for position in 0..4 {
            if position <= chunk.len() {
                text.push(char::from(ALPHABET[group >> (18 - 6 * position) & 63]));
            } else {
                text.push('=');
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_pads_like_the_standard() {
        assert_eq!(base64(b""), "");
        assert_eq!(base64(b"f"), "Zg==");
        assert_eq!(base64(b"fo"), "Zm8=");
        assert_eq!(base64(b"foo"), "Zm9v");
        assert_eq!(base64(b"\xff\xfe\xfdx"), "//79eA==");
    }
}
