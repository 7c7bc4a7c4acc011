//! The certificates of a mesh, good ones and bad ones, and the files that sidecars read them from.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

pub use rcgen::KeyUsagePurpose;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType,
};
use tempfile::TempDir;
use time::OffsetDateTime;

/// Certificates are valid from a little before now, since clocks differ.
const SKEW: Duration = Duration::from_secs(60);

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A root that signs the certificates of workloads.
#[derive(Debug)]
pub struct Pki {
    issuer: Issuer<'static, KeyPair>,
    root: String,
    root_key: String,
    /// What stands between a certificate and the root, in PEM.
    chain: String,
}

/// What a certificate says.
#[derive(Clone, Debug)]
pub struct Leaf {
    /// Its URI names.
    pub uris: Vec<String>,
    /// Its DNS names and addresses.
    pub hosts: Vec<String>,
    /// From when on it is valid.
    pub not_before: OffsetDateTime,
    /// Until when.
    pub not_after: OffsetDateTime,
    /// Whether it may sign others.
    pub is_ca: bool,
    /// What its key may be used for; nothing is said if it is empty.
    pub usages: Vec<KeyUsagePurpose>,
}

impl Leaf {
    /// A good one with these URI names.
    pub fn of(uris: &[&str]) -> Self {
        let now = OffsetDateTime::now_utc();
        Self {
            uris: uris.iter().map(|uri| (*uri).to_owned()).collect(),
            hosts: Vec::new(),
            not_before: now - SKEW,
            not_after: now + DAY,
            is_ca: false,
            usages: Vec::new(),
        }
    }

    /// The good one of a service of the trust domain `shop`.
    pub fn service(name: &str) -> Self {
        Self::of(&[&format!("spiffe://shop/{name}")])
    }

    /// The good one of a server of the web with these names or addresses.
    pub fn host(names: &[&str]) -> Self {
        let hosts = names.iter().map(|name| (*name).to_owned()).collect();
        Self {
            hosts,
            ..Self::of(&[])
        }
    }

    /// One that is valid for so long from now.
    #[must_use]
    pub fn lasting(mut self, time: Duration) -> Self {
        self.not_after = OffsetDateTime::now_utc() + time;
        self
    }

    /// One whose time was over yesterday.
    #[must_use]
    pub fn expired(mut self) -> Self {
        self.not_before = OffsetDateTime::now_utc() - 2 * DAY;
        self.not_after = OffsetDateTime::now_utc() - DAY;
        self
    }

    /// One whose time comes tomorrow.
    #[must_use]
    pub fn early(mut self) -> Self {
        self.not_before = OffsetDateTime::now_utc() + DAY;
        self.not_after = OffsetDateTime::now_utc() + 2 * DAY;
        self
    }

    /// One whose key may be used for this.
    #[must_use]
    pub fn used_for(mut self, usages: &[KeyUsagePurpose]) -> Self {
        self.usages = usages.to_vec();
        self
    }

    fn params(&self) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.key_usages.clone_from(&self.usages);
        params.distinguished_name.push(DnType::CommonName, "workload");
        for uri in &self.uris {
            let uri = uri.as_str().try_into().expect("a URI of ASCII");
            params.subject_alt_names.push(SanType::URI(uri));
        }
        for host in &self.hosts {
            let name = host.parse().map_or_else(
                |_| SanType::DnsName(host.as_str().try_into().expect("a name of ASCII")),
                SanType::IpAddress,
            );
            params.subject_alt_names.push(name);
        }
        (params.not_before, params.not_after) = (self.not_before, self.not_after);
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        if self.is_ca {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        }
        params
    }
}

/// A certificate and its key, in PEM.
#[derive(Clone, Debug)]
pub struct Issued {
    /// The certificate.
    pub certificate: String,
    /// Its key.
    pub key: String,
}

impl Pki {
    /// A new root.
    pub fn new() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, "root of the tests");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = OffsetDateTime::now_utc() - 3 * DAY;
        let root = params.self_signed(&key).expect("a root").pem();
        let root_key = key.serialize_pem();
        Self {
            issuer: Issuer::new(params, key),
            root,
            root_key,
            chain: String::new(),
        }
    }

    /// One under the same root, whose certificates are signed by an intermediate.
    pub fn below(&self) -> Self {
        self.below_for(DAY)
    }

    /// The same, the intermediate being good for so long.
    pub fn below_for(&self, time: Duration) -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = Leaf::of(&[]).lasting(time).params();
        params
            .distinguished_name
            .push(DnType::CommonName, "intermediate of the tests");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let certificate = params.signed_by(&key, &self.issuer).expect("an intermediate");
        Self {
            issuer: Issuer::new(params, key),
            root: self.root.clone(),
            root_key: self.root_key.clone(),
            chain: certificate.pem(),
        }
    }

    /// What stands between its certificates and the root, in PEM; empty if the root signs them.
    pub fn chain(&self) -> &str {
        &self.chain
    }

    /// The root, in PEM.
    pub fn root(&self) -> &str {
        &self.root
    }

    /// The root as if it were a workload.
    pub fn as_leaf(&self) -> Issued {
        Issued {
            certificate: self.root.clone(),
            key: self.root_key.clone(),
        }
    }

    /// A certificate that says this.
    pub fn issue(&self, leaf: &Leaf) -> Issued {
        let key = KeyPair::generate().expect("a key");
        let certificate = leaf
            .params()
            .signed_by(&key, &self.issuer)
            .expect("a certificate");
        Issued {
            certificate: certificate.pem() + &self.chain,
            key: key.serialize_pem(),
        }
    }

    /// A certificate that says this, and that nobody signed but itself.
    pub fn self_signed(leaf: &Leaf) -> Issued {
        let key = KeyPair::generate().expect("a key");
        let certificate = leaf.params().self_signed(&key).expect("a certificate");
        Issued {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        }
    }

    /// Files with the good certificate of a service.
    pub fn files(&self, service: &str) -> IdentityFiles {
        IdentityFiles::new(&self.issue(&Leaf::service(service)), self.root())
    }
}

/// The serial number of the first certificate of a text in PEM as openssl reads it, in lower case.
pub fn serial(pem: &str) -> String {
    let mut command = Command::new("openssl");
    command.args(["x509", "-noout", "-serial"]);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("openssl can be started");
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(pem.as_bytes()).expect("openssl reads");
    drop(stdin);
    let said = child.wait_with_output().expect("openssl ends").stdout;
    let said = String::from_utf8(said).expect("text of openssl").to_lowercase();
    let serial = said.trim().strip_prefix("serial=").expect("a serial number");
    serial.to_owned()
}

impl Default for Pki {
    fn default() -> Self {
        Self::new()
    }
}

/// A folder with certificate, key and roots.
#[derive(Debug)]
pub struct IdentityFiles {
    folder: TempDir,
}

impl IdentityFiles {
    /// A folder with these.
    pub fn new(issued: &Issued, roots: &str) -> Self {
        let files = Self {
            folder: tempfile::tempdir().expect("a temporary folder"),
        };
        files.write("certificate.pem", &issued.certificate);
        files.write("key.pem", &issued.key);
        files.write("roots.pem", roots);
        files
    }

    /// Puts other text in the place of one file, as renewers do: written beside it, then renamed.
    pub fn write(&self, name: &str, text: &str) {
        let fresh = self.folder.path().join(".new");
        std::fs::write(&fresh, text).expect("a file in a temporary folder");
        std::fs::rename(&fresh, self.path(name)).expect("a file that can be renamed");
    }

    /// Where a file is.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Where all are.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The bootstrap of a sidecar that reads the files of a folder.
    pub(crate) fn bootstrap(folder: &Path) -> String {
        let folder = folder.display();
        format!(
            "kind: Proxy\naccess_log: all\nidentity:\n  files: {{ certificate: {folder}/certificate.pem, key: {folder}/key.pem, roots: \
             {folder}/roots.pem }}\n"
        )
    }
}
