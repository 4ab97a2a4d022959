//! Certificates and kubeconfigs, made for each cluster.

use std::{
    fs,
    net::IpAddr,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, SanType,
};

use super::{Layout, network::Network};
use crate::run;

const LIFETIME: Duration = Duration::from_secs(3650 * 24 * 3600);

/// The subject of a certificate: to Kubernetes the organization is a group, and the name a user.
#[derive(Clone, Copy)]
struct Subject<'a> {
    organization: Option<&'a str>,
    name: &'a str,
}

impl<'a> Subject<'a> {
    const fn of(organization: &'a str, name: &'a str) -> Self {
        Self {
            organization: Some(organization),
            name,
        }
    }

    const fn alone(name: &'a str) -> Self {
        Self {
            organization: None,
            name,
        }
    }
}

/// Users of the test cluster and their groups. The tests grant their rights.
const USERS: &[(&str, Subject<'_>)] = &[
    ("admin", Subject::of("system:masters", "admin")),
    ("dev", Subject::of("devs", "dev")),
    ("limited", Subject::of("devs-limited", "limited")),
    ("stranger", Subject::alone("stranger")),
];

const COMPONENTS: &[(&str, Subject<'_>)] = &[
    (
        "apiserver-client",
        Subject::of("system:masters", "kube-apiserver-kubelet-client"),
    ),
    (
        "controller-manager",
        Subject::alone("system:kube-controller-manager"),
    ),
    ("proxy", Subject::alone("system:kube-proxy")),
    ("scheduler", Subject::alone("system:kube-scheduler")),
];

/// Makes everything under `pki/` and `users/`.
pub(crate) fn create(layout: &Layout, network: Network, nodes: u8) -> Result<()> {
    let folder = layout.pki();
    private_folder(&folder)?;
    // Others may traverse it: a file handed over with chown is readable for its owner.
    fs::create_dir_all(layout.users())?;
    let pki = Pki {
        folder,
        network,
        authority: authority()?,
    };
    run::write(&pki.file("ca.crt"), pki.authority.pem())?;
    private_file(&pki.file("ca.key"), &pki.authority.key().serialize_pem())?;
    pki.service_account_key()?;

    pki.write(
        "apiserver",
        Subject::alone("kube-apiserver"),
        vec![
            ip(&network.node(1))?,
            ip(network.api_service())?,
            ip("127.0.0.1")?,
            dns("kubernetes.default.svc")?,
            dns("kubernetes.default")?,
        ],
    )?;
    for (name, subject) in COMPONENTS {
        let identity = pki.write(name, *subject, Vec::new())?;
        pki.kubeconfig(name, &identity, &pki.file(&format!("{name}.conf")))?;
    }
    for index in 1..=nodes {
        let name = format!("node{index}");
        let user = format!("system:node:{name}");
        let families = network.families().iter();
        let addresses = families.map(|family| ip(&family.node(index)));
        let mut alternatives = addresses.collect::<Result<Vec<_>>>()?;
        alternatives.push(dns(&name)?);
        let identity = pki.write(&name, Subject::of("system:nodes", &user), alternatives)?;
        pki.kubeconfig(&name, &identity, &pki.file(&format!("{name}.conf")))?;
    }
    for (name, subject) in USERS {
        let identity = pki.write(name, *subject, Vec::new())?;
        pki.kubeconfig(name, &identity, &layout.user(name))?;
    }
    Ok(())
}

fn ip(address: &str) -> Result<SanType> {
    let address: IpAddr = address
        .parse()
        .with_context(|| format!("{address} is no IP address"))?;
    Ok(SanType::IpAddress(address))
}

fn dns(name: &str) -> Result<SanType> {
    Ok(SanType::DnsName(name.try_into()?))
}

struct Pki {
    folder: PathBuf,
    network: Network,
    authority: Authority,
}

type Authority = CertifiedIssuer<'static, KeyPair>;

/// A certificate and its key, as PEM.
struct Identity {
    certificate: String,
    key: String,
}

impl Pki {
    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn service_account_key(&self) -> Result<()> {
        let key = KeyPair::generate().context("making the key of service accounts")?;
        private_file(&self.file("sa.key"), &key.serialize_pem())?;
        run::write(&self.file("sa.pub"), key.public_key_pem())
    }

    fn write(
        &self,
        name: &str,
        subject: Subject<'_>,
        alternatives: Vec<SanType>,
    ) -> Result<Identity> {
        let identity = issue(&self.authority, subject, alternatives)
            .with_context(|| format!("making the certificate of {name}"))?;
        run::write(&self.file(&format!("{name}.crt")), &identity.certificate)?;
        private_file(&self.file(&format!("{name}.key")), &identity.key)?;
        Ok(identity)
    }

    /// Writes a kubeconfig that needs no other file.
    fn kubeconfig(&self, name: &str, identity: &Identity, target: &Path) -> Result<()> {
        let config = serde_json::json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{
                "name": "testbed",
                "cluster": {
                    "server": self.network.server(),
                    "certificate-authority-data": STANDARD.encode(self.authority.pem()),
                },
            }],
            "users": [{
                "name": name,
                "user": {
                    "client-certificate-data": STANDARD.encode(&identity.certificate),
                    "client-key-data": STANDARD.encode(&identity.key),
                },
            }],
            "contexts": [{ "name": "testbed", "context": { "cluster": "testbed", "user": name } }],
            "current-context": "testbed",
        });
        private_file(target, &serde_json::to_string_pretty(&config)?)
    }
}

fn authority() -> Result<Authority> {
    let mut params = params(Subject::alone("tp-testbed"));
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().context("making the key of the authority")?;
    CertifiedIssuer::self_signed(params, key).context("making the certificate of the authority")
}

/// A certificate for server and client: each component is both.
fn issue(
    authority: &Authority,
    subject: Subject<'_>,
    alternatives: Vec<SanType>,
) -> Result<Identity, rcgen::Error> {
    let mut params = params(subject);
    params.subject_alt_names = alternatives;
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ClientAuth,
        ExtendedKeyUsagePurpose::ServerAuth,
    ];
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, authority)?;

    Ok(Identity {
        certificate: certificate.pem(),
        key: key.serialize_pem(),
    })
}

fn params(subject: Subject<'_>) -> CertificateParams {
    let mut name = DistinguishedName::new();
    if let Some(organization) = subject.organization {
        name.push(DnType::OrganizationName, organization);
    }
    name.push(DnType::CommonName, subject.name);
    let mut params = CertificateParams::default();
    params.distinguished_name = name;
    params.use_authority_key_identifier_extension = true;
    let age = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    params.not_before = rcgen::date_time_ymd(1970, 1, 1) + age;
    params.not_after = params.not_before + LIFETIME;

    params
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

#[cfg(test)]
mod tests {
    use x509_parser::{certificate::X509Certificate, extensions::GeneralName, pem::parse_x509_pem};

    use super::*;

    fn with_certificate<T>(pem: &str, look: impl FnOnce(&X509Certificate<'_>) -> T) -> T {
        let (_, pem) = parse_x509_pem(pem.as_bytes()).unwrap();

        look(&pem.parse_x509().unwrap())
    }

    #[test]
    fn a_certificate_names_its_subject_and_serves_both_ends() {
        let authority = authority().unwrap();
        let alternatives = vec![ip("172.30.0.1").unwrap(), dns("node1").unwrap()];
        let subject = Subject::of("system:nodes", "system:node:node1");

        let identity = issue(&authority, subject, alternatives).unwrap();

        with_certificate(&identity.certificate, |it| {
            assert_eq!(
                it.subject().to_string(),
                "O=system:nodes, CN=system:node:node1"
            );
            assert_eq!(it.issuer().to_string(), "CN=tp-testbed");
            let purposes = it.extended_key_usage().unwrap().unwrap().value;
            assert!(purposes.client_auth && purposes.server_auth);
            let names = it.subject_alternative_name().unwrap().unwrap().value;
            let expected = [
                GeneralName::IPAddress(&[172, 30, 0, 1]),
                GeneralName::DNSName("node1"),
            ];
            assert_eq!(names.general_names, expected);
            // An absent key usage allows every use.
            assert!(it.key_usage().unwrap().is_none());
            assert!(!it.is_ca());
            let life = (it.validity().not_after - it.validity().not_before).unwrap();
            assert_eq!(life.whole_seconds().unsigned_abs(), LIFETIME.as_secs());
            assert!(it.validity().is_valid());
        });
    }

    #[test]
    fn a_certificate_is_the_authoritys() {
        let (ours, another) = (authority().unwrap(), authority().unwrap());
        let identity = issue(&ours, Subject::alone("stranger"), Vec::new()).unwrap();

        with_certificate(&ours.pem(), |ours| {
            assert!(ours.is_ca() && ours.verify_signature(None).is_ok());
            with_certificate(&identity.certificate, |it| {
                assert!(it.verify_signature(Some(ours.public_key())).is_ok());
                assert!(it.subject_alternative_name().unwrap().is_none());
            });
        });
        with_certificate(&another.pem(), |another| {
            with_certificate(&identity.certificate, |it| {
                assert!(it.verify_signature(Some(another.public_key())).is_err());
            });
        });
    }

    #[test]
    fn only_their_owner_reads_keys_and_kubeconfigs() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout {
            dir: folder.path().to_owned(),
        };

        create(&layout, Network::Ipv6, 2).unwrap();

        for file in [
            "pki/ca.key",
            "pki/sa.key",
            "pki/node2.key",
            "pki/proxy.conf",
            "users/dev.conf",
        ] {
            let mode = fs::metadata(layout.dir.join(file))
                .unwrap()
                .permissions()
                .mode();

            assert_eq!(mode & 0o777, 0o600, "{file}");
        }
        for file in [
            "pki/ca.crt",
            "pki/sa.pub",
            "pki/apiserver.crt",
            "pki/node2.crt",
        ] {
            assert!(layout.dir.join(file).is_file(), "{file}");
        }
    }
}
