//! The TLS of a connection to the control API: known by the fingerprint of the mesh's root, or by roots, and by its
//! SPIFFE ID, never by its DNS name.
//!
//! That the chain leads to the root is not enough: every workload's does. So the certificate must be the control API's.
//!
//! **Does not** open sockets or speak HTTP. Sessions are never resumed, so that each connection is verified anew.

use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{SHA256, digest};
use outrigger_config::join::{CONTROL_PATH, fingerprint_text};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{CryptoProvider, aws_lc_rs as provider, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme, version};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::tls::verify::wrong;
use crate::tls::{span, words};

/// By what the control API is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trust {
    /// SHA-256 of the root's certificate, which the control API sends along.
    Fingerprint([u8; 32]),
    /// Roots, in PEM.
    Roots(Vec<String>),
}

/// A certificate and its key, in PEM, to be shown to the control API.
#[derive(Clone, Copy, Debug)]
pub struct Shown<'a> {
    /// The certificate, then every intermediate.
    pub certificates: &'a [String],
    /// The key of the first.
    pub key: &'a str,
}

/// How connections to the control API are made.
#[derive(Clone, Debug)]
pub struct Pinned {
    config: Arc<ClientConfig>,
}

/// A connection to the control API.
pub type PinnedStream = TlsStream<TcpStream>;

impl Pinned {
    /// Connections to a control API that is known by this, which are shown a certificate if there is one.
    ///
    /// # Errors
    /// In words, when a certificate or key cannot be read.
    pub fn new(trust: Trust, shown: Option<Shown<'_>>) -> Result<Self, String> {
        Self::in_domain(trust, None, shown)
    }

    /// The same, to that of this trust domain, where it is known: under one root there may be several.
    ///
    /// # Errors
    /// In words, when a certificate or key cannot be read.
    pub(crate) fn in_domain(
        trust: Trust,
        trust_domain: Option<&str>,
        shown: Option<Shown<'_>>,
    ) -> Result<Self, String> {
        let provider = Arc::new(provider::default_provider());
        let known = match trust {
            Trust::Fingerprint(fingerprint) => Known::Fingerprint(fingerprint),
            Trust::Roots(roots) => Known::Roots(Arc::new(root_store(&roots)?)),
        };
        let verifier = Arc::new(ControlApi {
            known,
            trust_domain: trust_domain.map(str::to_owned),
            provider: provider.clone(),
        });
        let failed = |error: Error| format!("TLS cannot be set up: {error}");
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&version::TLS13])
            .map_err(failed)?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let config = match shown {
            None => builder.with_no_client_auth(),
            Some(shown) => {
                let chain = shown
                    .certificates
                    .iter()
                    .map(|pem| certificate(pem))
                    .collect::<Result<_, _>>()?;
                let key = PrivateKeyDer::from_pem_slice(shown.key.as_bytes());
                let key = key.map_err(|error| format!("the key cannot be read: {error}"))?;
                builder.with_client_auth_cert(chain, key).map_err(failed)?
            }
        };
        Ok(Self::with(config))
    }

    /// Connections to the control API of the mesh of an identity: known by its roots, shown its certificate as long as that
    /// is good, which ends in seconds since 1970.
    pub(super) fn of(
        roots: RootCertStore,
        trust_domain: &str,
        (certificate, not_after): (Arc<dyn ResolvesClientCert>, i64),
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, Error> {
        let verifier = Arc::new(ControlApi {
            known: Known::Roots(Arc::new(roots)),
            trust_domain: Some(trust_domain.to_owned()),
            provider: Arc::clone(provider),
        });
        let config = ClientConfig::builder_with_provider(Arc::clone(provider))
            .with_protocol_versions(&[&version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_cert_resolver(Arc::new(WhileGood {
                certificate,
                not_after,
            }));
        Ok(Self::with(config))
    }

    fn with(mut config: ClientConfig) -> Self {
        config.resumption = Resumption::disabled();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Self {
            config: Arc::new(config),
        }
    }

    /// Shakes hands on a connection. `host` is sent along for whoever routes by it, and is not verified. Unbounded in time:
    /// the caller sets the bound.
    pub async fn connect(&self, host: &str, stream: TcpStream) -> io::Result<PinnedStream> {
        let bare = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let name = ServerName::try_from(bare).map_err(io::Error::other)?;
        let connected = TlsConnector::from(self.config.clone())
            .connect(name, stream)
            .await;
        connected.map_err(words::told)
    }
}

/// Why the certificate of the other end was refused, if that is what ended a handshake.
pub fn refused_certificate(error: &io::Error) -> Option<String> {
    let error = error.get_ref()?.downcast_ref::<Error>()?;
    matches!(error, Error::InvalidCertificate(_)).then(|| words::of(error))
}

/// Whether a chain of certificates leads to one of these roots today, and the SPIFFE ID of the first: its only URI name.
///
/// # Errors
/// In words, when it does not.
pub fn verify_chain(certificates: &[String], roots: &[String]) -> Result<String, String> {
    let chain: Vec<CertificateDer<'static>> = certificates
        .iter()
        .map(|pem| certificate(pem))
        .collect::<Result<_, _>>()?;
    let (first, rest) = chain.split_first().ok_or("there is no certificate")?;
    let provider = provider::default_provider();
    verify(first, rest, &root_store(roots)?, UnixTime::now(), &provider)
        .map_err(|error| format!("the certificate does not lead to the root: {}", words::of(&error)))?;
    spiffe_id(first).ok_or_else(|| "the certificate has not exactly one URI name".to_owned())
}

/// Whether a chain would be taken at that moment by who trusts these roots, of a service as well as of a caller.
///
/// # Errors
/// In words, at which end it would not.
pub fn verify_both_ends(certificates: &[String], roots: &[String], now: SystemTime) -> Result<(), String> {
    let chain = certificates.iter().map(|pem| certificate(pem));
    let chain: Vec<CertificateDer<'static>> = chain.collect::<Result<_, _>>()?;
    let (first, rest) = chain.split_first().ok_or("there is no certificate")?;
    let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let now = UnixTime::since_unix_epoch(since);
    let (provider, roots) = (Arc::new(provider::default_provider()), root_store(roots)?);
    verify(first, rest, &roots, now, &provider)
        .map_err(|error| format!("of a service: {}", words::of(&error)))?;
    let callers = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
    let callers = callers.map_err(|error| error.to_string())?;
    let verified = callers.verify_client_cert(first, rest, now);
    verified.map_err(|error| format!("of a caller: {}", words::of(&error)))?;
    Ok(())
}

/// The public key of a certificate in PEM, as SubjectPublicKeyInfo in DER.
///
/// # Errors
/// In words, when it cannot be read.
pub fn public_key(certificate_pem: &str) -> Result<Vec<u8>, String> {
    let der = certificate(certificate_pem)?;
    let (_, parsed) = X509Certificate::from_der(&der).map_err(|error| error.to_string())?;
    Ok(parsed.public_key().raw.to_vec())
}

/// Until when a chain is good that leads to one of these roots today: to the end of its first certificate, or of one without
/// which it leads to none.
///
/// # Errors
/// In words, when a certificate cannot be read.
pub fn end_of_chain(certificates: &[String], roots: &[String]) -> Result<SystemTime, String> {
    let chain = certificates.iter().map(|pem| certificate(pem));
    let chain = chain.collect::<Result<Vec<CertificateDer<'static>>, _>>()?;
    let (roots, provider) = (root_store(roots)?, provider::default_provider());
    let leads_on = |at| {
        let parts = chain.split_first();
        parts.is_some_and(|(first, rest)| verify(first, rest, &roots, at, &provider).is_ok())
    };
    let end = span::end_of(&chain, SystemTime::now(), leads_on).map_err(|problem| problem.to_string())?;
    Ok(SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(end).unwrap_or_default()))
}

/// SHA-256 of a certificate in PEM.
///
/// # Errors
/// In words, when it cannot be read.
pub fn fingerprint(certificate_pem: &str) -> Result<[u8; 32], String> {
    Ok(sha256(&certificate(certificate_pem)?))
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let hash = digest(&SHA256, bytes);
    let mut copy = [0; 32];
    copy.copy_from_slice(hash.as_ref());
    copy
}

fn certificate(pem: &str) -> Result<CertificateDer<'static>, String> {
    let read = CertificateDer::from_pem_slice(pem.as_bytes());
    read.map_err(|error| format!("a certificate cannot be read: {error}"))
}

fn root_store(roots: &[String]) -> Result<RootCertStore, String> {
    let mut store = RootCertStore::empty();
    for root in roots {
        store
            .add(certificate(root)?)
            .map_err(|error| format!("a root cannot be used: {error}"))?;
    }
    Ok(store)
}

fn verify(
    first: &CertificateDer<'_>,
    rest: &[CertificateDer<'_>],
    roots: &RootCertStore,
    now: UnixTime,
    provider: &CryptoProvider,
) -> Result<(), Error> {
    let parsed = ParsedCertificate::try_from(first)?;
    let algorithms = provider.signature_verification_algorithms.all;
    verify_server_cert_signed_by_trust_anchor(&parsed, roots, rest, now, algorithms)
}

/// The URI name of a certificate, if it has exactly one (X509-SVID, section 2).
fn spiffe_id(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let names = parsed.subject_alternative_name().ok()??;
    let mut uris = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some((*uri).to_owned()),
        _ => None,
    });
    let first = uris.next()?;
    uris.next().is_none().then_some(first)
}

/// A certificate that is shown until it expires, and none after it: the control API asks for one and does not demand it, but
/// takes no handshake with one that is over, and a sidecar without a good certificate is to be configured all the same.
#[derive(Debug)]
struct WhileGood {
    certificate: Arc<dyn ResolvesClientCert>,
    /// In seconds since 1970.
    not_after: i64,
}

impl ResolvesClientCert for WhileGood {
    fn resolve(&self, hints: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let is_good = super::seconds(SystemTime::now()) < self.not_after;
        is_good
            .then(|| self.certificate.resolve(hints, schemes))
            .flatten()
    }

    fn has_certs(&self) -> bool {
        true
    }
}

#[derive(Debug)]
enum Known {
    Fingerprint([u8; 32]),
    Roots(Arc<RootCertStore>),
}

/// Verifies that the other end is the control API of the mesh.
#[derive(Debug)]
struct ControlApi {
    known: Known,
    /// Of which trust domain it must be, where that is known.
    trust_domain: Option<String>,
    provider: Arc<CryptoProvider>,
}

impl ControlApi {
    /// The roots, which a fingerprint finds in what was sent.
    fn roots(&self, sent: &[CertificateDer<'_>]) -> Result<Arc<RootCertStore>, Error> {
        match &self.known {
            Known::Roots(roots) => Ok(roots.clone()),
            Known::Fingerprint(fingerprint) => {
                let root = sent
                    .iter()
                    .find(|certificate| sha256(certificate) == *fingerprint);
                let root = root.ok_or_else(|| {
                    // What it shows instead is not repeated: whoever stands there would be told how to be believed.
                    wrong(format!(
                        "it shows no root of the fingerprint {}, by which it is to be known: compare that with `root` in the log \
                         of `outrigger serve`; after `outrigger ca rotate finish` it is another",
                        fingerprint_text(fingerprint)
                    ))
                })?;
                let mut store = RootCertStore::empty();
                store.add(root.clone().into_owned())?;
                Ok(Arc::new(store))
            }
        }
    }
}

impl ServerCertVerifier for ControlApi {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let roots = self.roots(intermediates)?;
        verify(end_entity, intermediates, &roots, now, &self.provider)?;
        let id = spiffe_id(end_entity);
        let path = id
            .as_deref()
            .and_then(|id| id.strip_prefix("spiffe://")?.split_once('/'));
        let ours = |domain: &str| self.trust_domain.as_ref().is_none_or(|own| own == domain);
        if path.is_some_and(|(domain, path)| path == CONTROL_PATH && ours(domain)) {
            Ok(ServerCertVerified::assertion())
        } else {
            let who = id.unwrap_or_else(|| "a certificate with not exactly one URI name".to_owned());
            let domain = self.trust_domain.as_deref().unwrap_or("…");
            Err(wrong(format!(
                "it is {who}, and spiffe://{domain}/{CONTROL_PATH} is meant"
            )))
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General(
            "TLS 1.2 is not spoken to the control API".to_owned(),
        ))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};

    use super::*;

    #[test]
    fn a_control_api_of_another_trust_domain_under_the_same_root_is_not_ours() {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = params.self_signed(&key).unwrap();
        let issuer = Issuer::new(params, key);
        let verify = |trust_domain: Option<&str>, uri: &str| {
            let mut params = CertificateParams::default();
            params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
            let leaf = params.signed_by(&KeyPair::generate().unwrap(), &issuer).unwrap();
            let verifier = ControlApi {
                known: Known::Roots(Arc::new(root_store(&[root.pem()]).unwrap())),
                trust_domain: trust_domain.map(str::to_owned),
                provider: Arc::new(provider::default_provider()),
            };
            let name = ServerName::try_from("control").unwrap();
            let verified = verifier.verify_server_cert(leaf.der(), &[], &name, &[], UnixTime::now());
            verified.is_ok()
        };
        for (trust_domain, uri, expected) in [
            (Some("shop"), "spiffe://shop/outrigger/control", true),
            (Some("shop"), "spiffe://other/outrigger/control", false),
            (Some("shop"), "spiffe://shop/outrigger", false),
            (Some("shop"), "spiffe://shop/x/outrigger/control", false),
            // Before there is an identity, the root of the token is all that is known.
            (None, "spiffe://other/outrigger/control", true),
            (None, "spiffe://other/reviews", false),
        ] {
            assert_eq!(verify(trust_domain, uri), expected, "{trust_domain:?} {uri}");
        }
    }
}
