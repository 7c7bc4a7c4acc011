//! TLS towards callers outside of the mesh: the certificates of a port, chosen by the name that a caller asks for.
//!
//! Callers show no certificate here. A set of files is loaded whole or not at all, and a handshake takes the set that is
//! there when it begins; connections live on when it changes. Sessions are resumed from a small store in memory, which goes
//! with the set: nothing was verified that would have to be verified again.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use arc_swap::ArcSwapOption;
use outrigger_config::gateway::{CertificatePair, GatewayTls};
use outrigger_config::service::TlsVersion;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::error::{Failure, Reason};
use crate::telemetry::metrics::{FileSet, Side, TlsMetrics};
use crate::tls::identity::{Certificate, certificates, sha256};
use crate::tls::{ACCEPT_MAX, Alpn, Connection, Identities, SESSION_MAX, Session, files, too_slow, verify};

/// What a port shows of itself, as it changes. One writer: [`keep_current`].
#[derive(Debug)]
pub(crate) struct Server {
    /// The gateway that it serves.
    name: String,
    files: GatewayTls,
    current: ArcSwapOption<Loaded>,
    last: Mutex<Last>,
}

/// The last look at the files.
#[derive(Debug, Default)]
struct Last {
    /// The hashes of what was in them: keys are not kept for it.
    hashes: Vec<Vec<u8>>,
    /// Why it was not taken, if it was not.
    refused: Option<String>,
}

#[derive(Debug)]
struct Loaded {
    server: Arc<ServerConfig>,
    certificates: Vec<Certificate>,
}

impl Server {
    /// Nothing is shown before the first [`Self::look`].
    pub(crate) fn new(name: &str, files: GatewayTls) -> Self {
        Self {
            name: name.to_owned(),
            files,
            current: ArcSwapOption::empty(),
            last: Mutex::default(),
        }
    }

    /// Whether it has nothing to show yet.
    pub(crate) fn is_awaited(&self) -> bool {
        self.current.load().is_none()
    }

    /// Looks at the files, and takes them if all are good. What is not changes nothing: the set before goes on.
    pub(crate) fn look(&self, metrics: &TlsMetrics) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let contents: Result<Vec<_>, _> = self.files.certificates.iter().map(read).collect();
        let hashes = contents.iter().flatten().flatten();
        let hashes: Vec<_> = hashes.map(|bytes| sha256(bytes)).collect();
        if contents.is_ok() && last.hashes == hashes {
            return;
        }
        last.hashes = hashes;
        let loaded = contents.and_then(|contents| Loaded::new(&self.files, &contents));
        let gateway = &self.name;
        match loaded {
            Ok(loaded) => {
                let ends = loaded
                    .certificates
                    .iter()
                    .map(|certificate| certificate.not_after);
                let (count, not_after) = (loaded.certificates.len(), ends.min().unwrap_or_default());
                metrics.files(FileSet::Gateway, true);
                metrics.gateway_not_after(gateway, not_after);
                tracing::info!(gateway, count, not_after, "the certificates of the gateway serve");
                let pairs = self.files.certificates.iter();
                pairs.for_each(|pair| files::say_if_everybody_can_read(&pair.key));
                last.refused = None;
                self.current.store(Some(Arc::new(loaded)));
            }
            // The same problem again is no news.
            Err(problem) if last.refused.as_ref() == Some(&problem) => {}
            Err(problem) => {
                metrics.files(FileSet::Gateway, false);
                let kept = self.current.load().is_some();
                tracing::error!(
                    gateway,
                    problem,
                    kept,
                    "the certificates of the gateway cannot be used"
                );
                last.refused = Some(problem);
            }
        }
    }

    /// Shakes hands with a caller.
    ///
    /// # Errors
    /// When that fails, which has been counted and told; the socket, if there is one to be ended with patience.
    pub(crate) async fn accept(
        &self,
        identities: &Identities,
        stream: TcpStream,
    ) -> Result<(Connection, Alpn), Option<TcpStream>> {
        let from = stream.peer_addr().ok();
        let (told, accepted) = match self.shake(stream).await {
            Ok(accepted) => (None, Ok(accepted)),
            Err((failure, stream)) => (Some(failure), Err(stream)),
        };
        identities.tell(Side::Inbound, told.as_ref(), from);
        accepted
    }

    async fn shake(&self, stream: TcpStream) -> Result<(Connection, Alpn), (Failure, Option<TcpStream>)> {
        let Some(loaded) = self.current.load_full() else {
            let detail = format!("no certificate of the gateway {} has been loaded yet", self.name);
            return Err((Failure::new(Reason::IdentityMissing, detail), None));
        };
        let accept = TlsAcceptor::from(Arc::clone(&loaded.server)).accept(stream);
        let stream = match tokio::time::timeout(ACCEPT_MAX, accept.into_fallible()).await {
            Ok(Ok(stream)) => stream,
            Ok(Err((error, stream))) => return Err((verify::failure(&error, "the caller"), Some(stream))),
            Err(_) => return Err((verify::failure(&too_slow(ACCEPT_MAX), "the caller"), None)),
        };
        let alpn = Alpn::of(stream.get_ref().1.alpn_protocol());
        let session = Session {
            // Nobody's certificate ends it: the caller has none, and knows ours.
            until: Instant::now() + SESSION_MAX,
            ends: i64::MAX,
            clock: Arc::default(),
            epoch: 0,
            era: Arc::default(),
            refusal: Arc::default(),
            watch: None,
        };
        Ok((Connection::new(stream, &session), alpn))
    }

    /// What an operator sees of it.
    pub(crate) fn report(&self) -> serde_json::Value {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let current = self.current.load();
        serde_json::json!({
            "gateway": self.name,
            "certificates": current.as_ref().map(|current| &current.certificates),
            "refused": last.refused,
        })
    }
}

/// Keeps what a port shows as its files are. Never ends.
pub(crate) async fn keep_current(server: Arc<Server>, metrics: Arc<TlsMetrics>) {
    loop {
        tokio::time::sleep(files::LOOK_EVERY).await;
        server.look(&metrics);
    }
}

fn read(pair: &CertificatePair) -> Result<[Vec<u8>; 2], String> {
    let read = |path: &Path| files::read(path).map_err(|problem| problem.to_string());
    Ok([read(&pair.certificate)?, read(&pair.key)?])
}

impl Loaded {
    fn new(files: &GatewayTls, contents: &[[Vec<u8>; 2]]) -> Result<Self, String> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut shown = Shown::default();
        let mut read = Vec::with_capacity(contents.len());
        for (pair, [chain, key]) in files.certificates.iter().zip(contents) {
            let (at, key_at) = (pair.certificate.display(), pair.key.display());
            let chain =
                certificates("the certificate", chain).map_err(|problem| format!("{at}: {problem}"))?;
            let key = PrivateKeyDer::from_pem_slice(key)
                .map_err(|error| format!("{key_at}: the key cannot be read: {error}; expected PEM"))?;
            let (names, leaf) = names(&chain[0]).map_err(|problem| format!("{at}: {problem}"))?;
            let certified = CertifiedKey::from_der(chain, key, &provider).map_err(|error| {
                format!(
                    "{key_at} is not the key of {at}: {error}; if one of the two has just been written, the other is to come"
                )
            })?;
            shown.add(names, Arc::new(certified));
            read.push(leaf);
        }
        let versions: &[_] = match files.min_version {
            TlsVersion::V1_2 => &[&TLS13, &TLS12],
            TlsVersion::V1_3 => &[&TLS13],
        };
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .map_err(|error| error.to_string())?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(shown));
        server.alpn_protocols = [Alpn::Http2, Alpn::Http1]
            .iter()
            .flat_map(|alpn| alpn.offered())
            .collect();
        Ok(Self {
            server: Arc::new(server),
            certificates: read,
        })
    }
}

/// The DNS names of a certificate, in small letters, and what is read of it.
fn names(der: &[u8]) -> Result<(Vec<String>, Certificate), String> {
    let leaf = Certificate::read(der).map_err(|problem| problem.to_string())?;
    let (_, certificate) = X509Certificate::from_der(der).map_err(|error| error.to_string())?;
    let names = certificate
        .subject_alternative_name()
        .map_err(|error| error.to_string())?;
    let names = names.iter().flat_map(|names| &names.value.general_names);
    let names = names.filter_map(|name| match name {
        GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
        _ => None,
    });
    Ok((names.collect(), leaf))
}

/// Certificates by the names that they bear.
#[derive(Debug, Default)]
struct Shown {
    exact: HashMap<String, Arc<CertifiedKey>>,
    /// By what follows the `*`, with its dot.
    wildcard: HashMap<String, Arc<CertifiedKey>>,
    first: Option<Arc<CertifiedKey>>,
}

impl Shown {
    fn add(&mut self, names: Vec<String>, certified: Arc<CertifiedKey>) {
        for name in names {
            match name.strip_prefix('*') {
                None => self.exact.entry(name),
                Some(rest) => self.wildcard.entry(rest.to_owned()),
            }
            .or_insert_with(|| Arc::clone(&certified));
        }
        self.first.get_or_insert(certified);
    }

    /// The certificate for a name. A `*` stands for one label (RFC 6125 section 6.4.3). Without a name, or for one that
    /// nobody bears, it is the first: the caller then says best what is wrong.
    fn of(&self, name: Option<&str>) -> Option<&Arc<CertifiedKey>> {
        let named = name.map(str::to_ascii_lowercase).and_then(|name| {
            let wild = || self.wildcard.get(&name[name.find('.')?..]);
            self.exact.get(&name).or_else(wild)
        });
        named.or(self.first.as_ref())
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.of(hello.server_name()).map(Arc::clone)
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    #[test]
    fn a_certificate_is_chosen_by_its_name_then_by_a_star_then_it_is_the_first() {
        let mut shown = Shown::default();
        let provider = aws_lc_rs::default_provider();
        let mut made = Vec::new();
        for hosts in [
            &["first.example"][..],
            &["a.shop.example", "A.other.example"],
            &["*.shop.example"],
            &["b.shop.example", "a.shop.example"],
        ] {
            let key = KeyPair::generate().unwrap();
            let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
            let der = CertificateParams::new(hosts).unwrap().self_signed(&key).unwrap();
            let (names, _) = names(der.der()).unwrap();
            let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap();
            let certified =
                Arc::new(CertifiedKey::from_der(vec![der.der().clone()], key, &provider).unwrap());
            made.push(Arc::clone(&certified));
            shown.add(names, certified);
        }
        for (name, place) in [
            (Some("first.example"), 0),
            (Some("a.shop.example"), 1),
            (Some("a.OTHER.example"), 1),
            (Some("b.shop.example"), 3),
            (Some("c.shop.example"), 2),
            (Some("c.c.shop.example"), 0),
            (Some("shop.example"), 0),
            (Some("elsewhere"), 0),
            (None, 0),
        ] {
            let chosen = shown.of(name).unwrap();
            assert!(Arc::ptr_eq(chosen, &made[place]), "{name:?}");
        }
    }
}
