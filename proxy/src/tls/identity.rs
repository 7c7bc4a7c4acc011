//! One identity: certificate chain, key and roots as a checked unit. It is whole and good, or it is none.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use outrigger_config::identity::SpiffeId;
use rustls::client::Resumption;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::TLS13;
use rustls::{CertificateError, ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::{self, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};
use serde::Serialize;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::error::{Failure, Reason};
use crate::tls::anchors::Anchors;
use crate::tls::pin::Pinned;
use crate::tls::revoked::{self, Revocations, Shown, Unrevoked};
use crate::tls::verify::{Callers, Endpoints, server_name};
use crate::tls::words;
use crate::tls::{Alpn, seconds};

/// The most certificates in one file: a chain has three or four, a bundle two or three roots. Past this it is a file of
/// something else, such as all the roots of the web, which a mesh must not trust.
const CERTIFICATES_MAX: usize = 32;

/// What the parts of an identity are called.
pub(super) const CERTIFICATE: &str = "the certificate";
pub(super) const KEY: &str = "the key";

/// Who this sidecar is, and whom it trusts.
#[derive(Debug)]
pub struct Identity {
    id: SpiffeId,
    leaf: Certificate,
    /// Until when its chain is good.
    end: i64,
    /// What others see of it.
    shown: Shown,
    roots: Vec<(CertificateDer<'static>, Certificate)>,
    pub(super) server: Arc<ServerConfig>,
    /// By what is offered: see [`Identity::client`].
    clients: [Arc<ClientConfig>; 3],
    control: Pinned,
    anchors: Anchors,
}

/// Why files are no identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IdentityProblem {
    /// A file cannot be read.
    Unreadable(String),
    /// A part is not PEM of the kind that it must be.
    NotPem(&'static str, String),
    /// A certificate is none.
    BadCertificate(String),
    /// There are too many certificates.
    TooMany(&'static str),
    /// The key does not belong to the certificate, or cannot be used.
    Key(String),
    /// The certificate has not exactly one URI name, which is the SPIFFE ID of a workload.
    Name(String),
    /// The certificate may be used for what no workload does.
    Use(String),
    /// Its time is over.
    Expired(String),
    /// Its time has not come.
    NotYetValid(String),
    /// It does not lead to one of the roots.
    Chain(String),
    /// rustls takes none of it.
    Unusable(String),
    /// It is another's than the good one that is held.
    Other(String),
    /// The control API has issued none.
    NotIssued(String),
    /// The agent of SPIFFE has given none.
    NotGiven(String),
}

impl fmt::Display for IdentityProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable(why) => f.write_str(why),
            Self::NotPem(what, why) => write!(f, "{what} cannot be read: {why}; expected PEM"),
            Self::BadCertificate(why) => write!(f, "a certificate cannot be read: {why}"),
            Self::TooMany(what) => write!(f, "{what}: more than {CERTIFICATES_MAX} certificates"),
            Self::Key(why) => write!(
                f,
                "the key is not that of the certificate: {why}; if one of the two has just been written, the other is to come"
            ),
            Self::Name(why) => write!(
                f,
                "{why}; expected exactly one URI name, a SPIFFE ID such as spiffe://shop/reviews"
            ),
            Self::Use(why) => write!(
                f,
                "{why}; expected the certificate of a workload, which signs no others (its keyUsage is digitalSignature)"
            ),
            Self::Expired(why) => write!(f, "the certificate has expired: {why}"),
            Self::NotYetValid(why) => {
                write!(f, "the certificate is not valid yet: {why}")
            }
            Self::Chain(why) => write!(f, "the certificate does not lead to one of the roots: {why}"),
            Self::Unusable(why) => write!(f, "it cannot be used: {why}"),
            Self::Other(why) => write!(
                f,
                "the certificate is another's: {why}; the one that is held is kept, so if this is meant start the sidecar again, \
                 with its name in --service"
            ),
            Self::NotIssued(why) => write!(f, "the control API has issued no certificate: {why}"),
            Self::NotGiven(why) => write!(f, "the SPIFFE Workload API has given no certificate: {why}"),
        }
    }
}

impl std::error::Error for IdentityProblem {}

/// What an identity is made of, read and not yet looked at.
struct Parts {
    /// The certificate, then those between it and the root: at least one.
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    roots: Vec<CertificateDer<'static>>,
}

impl Identity {
    /// Reads certificate, key and roots in PEM, and checks all of it: the key is the certificate's, the chain leads to one of
    /// the roots for either end of a handshake, it is valid at `now`, and its one URI name is a SPIFFE ID. Its handshakes
    /// refuse who is revoked.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn from_pem(
        chain: &[u8],
        key: &[u8],
        bundle: &[u8],
        revocations: &Arc<Revocations>,
        now: SystemTime,
    ) -> Result<Self, IdentityProblem> {
        let parts = Parts {
            chain: certificates(CERTIFICATE, chain)?,
            key: PrivateKeyDer::from_pem_slice(key)
                .map_err(|error| IdentityProblem::NotPem(KEY, no_pem(&error)))?,
            roots: certificates("the roots", bundle)?,
        };
        Self::checked(parts, revocations, now)
    }

    /// The same of DER, as the SPIFFE Workload API has it: certificates one behind the other with nothing between them, the
    /// key in PKCS#8.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn from_der(
        chain: &[u8],
        key: &[u8],
        bundle: &[u8],
        revocations: &Arc<Revocations>,
        now: SystemTime,
    ) -> Result<Self, IdentityProblem> {
        let parts = Parts {
            chain: der_certificates(CERTIFICATE, chain)?,
            key: PrivatePkcs8KeyDer::from(key.to_vec()).into(),
            roots: der_certificates("the roots", bundle)?,
        };
        Self::checked(parts, revocations, now)
    }

    fn checked(
        parts: Parts,
        revocations: &Arc<Revocations>,
        now: SystemTime,
    ) -> Result<Self, IdentityProblem> {
        let Parts {
            chain,
            key,
            roots: bundle,
        } = parts;
        let provider = Arc::new(aws_lc_rs::default_provider());
        let leaf = Certificate::read(chain.first().map_or(&[][..], |leaf| leaf))?;
        let id = leaf.spiffe_id()?;
        let shown = Shown::of(&id, &chain)?;
        let certified = CertifiedKey::from_der(chain, key, &provider)
            .map_err(|error| IdentityProblem::Key(error.to_string()))?;
        let mut store = RootCertStore::empty();
        let mut roots = Vec::with_capacity(bundle.len());
        for root in bundle {
            let read = Certificate::read(&root)?;
            store
                .add(root.clone())
                .map_err(|error| IdentityProblem::BadCertificate(format!("a root: {error}")))?;
            roots.push((root, read));
        }
        let anchors = roots.iter().map(|(root, _)| root).collect::<Vec<_>>();
        let anchors = Anchors::of(&anchors, &provider)?;
        let known_by = store.clone();
        let (endpoints, callers) = verifiers(store, id.trust_domain(), &provider)?;
        own_chain(&certified, &id, (&*endpoints, &*callers), now)?;
        let end = anchors.end_of_caller(&certified.cert, now)?;
        let endpoints = Unrevoked::of(endpoints, revocations);
        let callers = Unrevoked::of(callers, revocations);
        let certified = Arc::new(SingleCertAndKey::from(certified));
        let unusable = |error: rustls::Error| IdentityProblem::Unusable(error.to_string());
        let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&TLS13])
            .map_err(unusable)?
            .with_client_cert_verifier(Arc::new(callers))
            .with_cert_resolver(Arc::clone(&certified) as _);
        server.alpn_protocols = [Alpn::Http2, Alpn::Http1]
            .iter()
            .flat_map(|alpn| alpn.offered())
            .collect();
        // Nothing is resumed: see the head of `tls`.
        server.send_tls13_tickets = 0;
        server.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        let to_control = (Arc::clone(&certified) as _, end);
        let control = Pinned::of(known_by, id.trust_domain(), to_control, &provider).map_err(unusable)?;
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .map_err(unusable)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(endpoints))
            .with_client_cert_resolver(certified);
        client.resumption = Resumption::disabled();
        let clients = [Alpn::Unsaid, Alpn::Http1, Alpn::Http2].map(|alpn| {
            let mut client = client.clone();
            client.alpn_protocols = alpn.offered();
            Arc::new(client)
        });
        Ok(Self {
            id,
            leaf,
            end,
            shown,
            roots,
            server: Arc::new(server),
            clients,
            control,
            anchors,
        })
    }

    /// Its name.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// How the control API of its mesh is spoken to.
    pub(crate) const fn control(&self) -> &Pinned {
        &self.control
    }

    /// What others see of it.
    pub(super) fn shown(&self) -> &Shown {
        &self.shown
    }

    /// Its roots, each alone.
    pub(super) const fn anchors(&self) -> &Anchors {
        &self.anchors
    }

    /// Until when its certificate is good, in seconds since 1970: to its own end, or to that of one without which it leads to
    /// no root.
    pub fn not_after(&self) -> i64 {
        self.end
    }

    /// That its time is over, if it is. The last second counts (RFC 5280 section 4.1.2.5), as it does for whoever is shown it:
    /// what this end calls expired no caller with the same clock takes for good.
    pub(super) fn expired(&self, now: SystemTime) -> Option<Failure> {
        (self.not_after() < seconds(now)).then(|| {
            let detail = format!("the certificate of {} has expired and no other has come", self.id);
            Failure::new(Reason::IdentityExpired, detail)
        })
    }

    /// When the first of its roots does.
    pub(crate) fn roots_not_after(&self) -> i64 {
        let roots = self.roots.iter().map(|(_, root)| root.not_after);
        roots.min().unwrap_or_default()
    }

    pub(super) fn client(&self, alpn: Alpn) -> &Arc<ClientConfig> {
        match alpn {
            Alpn::Unsaid => &self.clients[0],
            Alpn::Http1 => &self.clients[1],
            Alpn::Http2 => &self.clients[2],
        }
    }

    /// Whether connections that were made under another are as good as under this: it is the same workload, and trusts
    /// whom the other trusted.
    pub(super) fn continues(&self, before: &Self) -> bool {
        let trusts = |root: &CertificateDer<'_>| self.roots.iter().any(|(known, _)| known == root);
        self.id == before.id && before.roots.iter().all(|(root, _)| trusts(root))
    }

    /// What an operator sees of it.
    pub(crate) fn report(&self, now: SystemTime) -> serde_json::Value {
        let roots: Vec<&Certificate> = self.roots.iter().map(|(_, root)| root).collect();
        serde_json::json!({
            "spiffe_id": self.id.as_str(),
            "not_after": self.end,
            "certificate": self.leaf.report(now),
            "roots": roots.iter().map(|root| root.report(now)).collect::<Vec<_>>(),
        })
    }
}

type Verifiers = (Arc<dyn ServerCertVerifier>, Arc<dyn ClientCertVerifier>);

/// The verifiers of endpoints and of callers.
fn verifiers(
    store: RootCertStore,
    trust_domain: &str,
    provider: &Arc<CryptoProvider>,
) -> Result<Verifiers, IdentityProblem> {
    let store = Arc::new(store);
    let chain = WebPkiClientVerifier::builder_with_provider(Arc::clone(&store), Arc::clone(provider))
        .build()
        .map_err(|error| IdentityProblem::Unusable(error.to_string()))?;
    let endpoints = Endpoints {
        roots: store,
        trust_domain: trust_domain.to_owned(),
        provider: Arc::clone(provider),
    };
    let callers = Callers {
        chain,
        trust_domain: trust_domain.to_owned(),
    };
    Ok((Arc::new(endpoints), Arc::new(callers)))
}

/// Looks at our own chain as those will who are shown it. The last segment of our name is what an endpoint is asked for;
/// one with another path can call, and is not refused for it.
fn own_chain(
    certified: &CertifiedKey,
    id: &SpiffeId,
    (endpoints, callers): (&dyn ServerCertVerifier, &dyn ClientCertVerifier),
    now: SystemTime,
) -> Result<(), IdentityProblem> {
    let now = UnixTime::since_unix_epoch(now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default());
    let problem = |error: rustls::Error| {
        // Here the certificate is our own.
        let text = words::of(&error).replacen("its certificate ", "it ", 1);
        match error {
            rustls::Error::InvalidCertificate(
                CertificateError::Expired | CertificateError::ExpiredContext { .. },
            ) => IdentityProblem::Expired(text),
            rustls::Error::InvalidCertificate(
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
            ) => IdentityProblem::NotYetValid(text),
            _ => IdentityProblem::Chain(text),
        }
    };
    let [leaf, intermediates @ ..] = &certified.cert[..] else {
        return Err(IdentityProblem::Chain("there is no certificate".to_owned()));
    };
    callers
        .verify_client_cert(leaf, intermediates, now)
        .map_err(problem)?;
    let service = id.as_str().rsplit('/').next().unwrap_or_default();
    let is_service = SpiffeId::of_service(id.trust_domain(), service).is_ok_and(|expected| expected == *id);
    if let Some(name) = server_name(service).filter(|_| is_service) {
        endpoints
            .verify_server_cert(leaf, intermediates, &name, &[], now)
            .map_err(problem)?;
    }
    Ok(())
}

pub(super) fn certificates(
    what: &'static str,
    pem: &[u8],
) -> Result<Vec<CertificateDer<'static>>, IdentityProblem> {
    let mut found = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        if found.len() == CERTIFICATES_MAX {
            return Err(IdentityProblem::TooMany(what));
        }
        found.push(certificate.map_err(|error| IdentityProblem::NotPem(what, no_pem(&error)))?);
    }
    if found.is_empty() {
        return Err(IdentityProblem::NotPem(
            what,
            "no certificate is in it".to_owned(),
        ));
    }
    Ok(found)
}

/// Why a text is not the PEM that was expected, in words.
fn no_pem(error: &pem::Error) -> String {
    match error {
        pem::Error::MissingSectionEnd { end_marker } => format!(
            "it breaks off before its line -----END {}-----",
            String::from_utf8_lossy(end_marker).trim_end()
        ),
        pem::Error::IllegalSectionStart { line } => format!(
            "the line `{}` begins nothing",
            String::from_utf8_lossy(line).trim_end().escape_debug()
        ),
        pem::Error::Base64Decode(why) => {
            format!("what stands between its first line and its last is no base64 ({why})")
        }
        pem::Error::NoItemsFound => "there is none in it".to_owned(),
        other => other.to_string(),
    }
}

/// Certificates in DER, one behind the other.
fn der_certificates(
    what: &'static str,
    mut der: &[u8],
) -> Result<Vec<CertificateDer<'static>>, IdentityProblem> {
    let mut found = Vec::new();
    while !der.is_empty() {
        if found.len() == CERTIFICATES_MAX {
            return Err(IdentityProblem::TooMany(what));
        }
        let (rest, _) = X509Certificate::from_der(der)
            .map_err(|error| IdentityProblem::BadCertificate(format!("{what}: {error}")))?;
        found.push(CertificateDer::from(der[..der.len() - rest.len()].to_vec()));
        der = rest;
    }
    if found.is_empty() {
        return Err(IdentityProblem::BadCertificate(format!("{what}: there is none")));
    }
    Ok(found)
}

/// What is read of a certificate.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Certificate {
    subject: String,
    issuer: String,
    /// As a configuration would revoke it.
    serial: String,
    /// Seconds since 1970.
    not_before: i64,
    pub(crate) not_after: i64,
    /// Its URI names.
    uris: Vec<String>,
    /// Whether it may sign others.
    is_ca: bool,
    /// Whether its key usage says that it signs certificates or revocation lists.
    #[serde(skip)]
    signs: bool,
}

impl Certificate {
    pub(crate) fn read(der: &[u8]) -> Result<Self, IdentityProblem> {
        let bad = |why: String| IdentityProblem::BadCertificate(why);
        let (_, certificate) = X509Certificate::from_der(der).map_err(|error| bad(error.to_string()))?;
        let names = certificate
            .subject_alternative_name()
            .map_err(|error| bad(error.to_string()))?;
        let uri = |name: &GeneralName<'_>| match name {
            GeneralName::URI(uri) => Some((*uri).to_owned()),
            _ => None,
        };
        let names = names.iter().flat_map(|names| &names.value.general_names);
        let usage = certificate.key_usage().map_err(|error| bad(error.to_string()))?;
        let signs = usage.is_some_and(|usage| usage.value.key_cert_sign() || usage.value.crl_sign());
        Ok(Self {
            signs,
            uris: names.filter_map(uri).collect(),
            subject: certificate.subject().to_string(),
            issuer: certificate.issuer().to_string(),
            serial: revoked::digits(certificate.raw_serial()),
            not_before: certificate.validity().not_before.timestamp(),
            not_after: certificate.validity().not_after.timestamp(),
            is_ca: certificate.is_ca(),
        })
    }

    /// What an operator sees of it: the moment of its end for people too.
    fn report(&self, now: SystemTime) -> serde_json::Value {
        let mut said = serde_json::to_value(self).unwrap_or_default();
        let end = u64::try_from(self.not_after).unwrap_or_default();
        let now = u64::try_from(seconds(now)).unwrap_or_default();
        let left = match end.saturating_sub(now) {
            0 => "none".to_owned(),
            left => words::whole(left),
        };
        said["expires"] = words::date(end).into();
        said["left"] = left.into();
        said
    }

    /// The SPIFFE ID of the workload that it is of. The standard for X.509 allows exactly one URI (X509-SVID section 2), so
    /// that nobody can be two; a path in it, since without one it names a trust domain; and none that signs others (sections
    /// 4.3 and 5.2). That it is no CA webpki sees to.
    pub(crate) fn spiffe_id(&self) -> Result<SpiffeId, IdentityProblem> {
        let name = |why: String| Err(IdentityProblem::Name(why));
        let id = match &self.uris[..] {
            [uri] => SpiffeId::parse(uri).map_err(|why| format!("`{uri}` is not a SPIFFE ID: {why}")),
            [] => return name("the certificate has no URI name".to_owned()),
            many => return name(format!("the certificate has {} URI names", many.len())),
        };
        match id {
            Err(why) => name(why),
            Ok(id) if !id.has_path() => name(format!("{id} is a trust domain's name, and no workload's")),
            Ok(id) if self.signs => Err(IdentityProblem::Use(format!(
                "the certificate of {id} may sign certificates or revocation lists"
            ))),
            Ok(id) => Ok(id),
        }
    }
}

/// The hash of some bytes, by the provider that rustls works with.
pub(super) fn sha256(bytes: &[u8]) -> Vec<u8> {
    let suite = aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256;
    let hash = suite.tls13().map(|suite| suite.common.hash_provider.hash(bytes));
    hash.map(|hash| hash.as_ref().to_vec()).unwrap_or_default()
}
