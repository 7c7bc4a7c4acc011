//! TLS to servers outside of the mesh, as a client of the web speaks it: whose certificates are trusted, and the
//! handshake.
//!
//! The certificate must be good for the name that is said, lead to one of the roots, and be valid now. This sidecar shows
//! none of its own: its identity is for the mesh. Sessions are not resumed here either: rustls would take the chain of
//! the first handshake for good, past its expiry, and a connection is kept for minutes, so that little is lost.
//!
//! A [`Trust`] is what one source of roots holds now, shared by all clusters that name it. What uses connections is not
//! known here.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use outrigger_config::service::{Roots, TlsVersion};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::aws_lc_rs;
use rustls::version::{TLS12, TLS13};
use rustls::{AlertDescription, ClientConfig, Error, PeerIncompatible, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::error::{Failure, Reason};
use crate::telemetry::metrics::{FileSet, TlsMetrics};
use crate::tls::{ACCEPT_MAX, Alpn, Connection, Identities, SESSION_MAX, Session, files, too_slow, verify};

/// A server outside must be through with its handshake within this: it may be on another continent.
const CONNECT_MAX: Duration = ACCEPT_MAX;

/// How often a file with roots is looked at, as those of the identity are.
const LOOK_AT_FILE_EVERY: Duration = files::LOOK_EVERY;

/// How often the roots of the system are: they are hundreds of files, and change with an update of the machine.
const LOOK_AT_SYSTEM_EVERY: Duration = Duration::from_secs(60);

/// The most roots in one file: all that browsers trust are 150, with what companies add some hundreds.
const ROOTS_MAX: usize = 1024;

/// How the endpoints of a cluster are spoken to, where they are servers outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Words {
    /// The name that is asked for, and for which the certificate must be good.
    pub server_name: String,
    /// Whom to trust.
    pub source: Source,
}

/// Where roots are, and how they are used.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Source {
    /// The roots.
    pub roots: Roots,
    /// The oldest version of TLS that is spoken.
    pub min_version: TlsVersion,
}

/// What a source of roots holds now. One writer: `keep_current`.
#[derive(Debug)]
pub struct Trust {
    source: Source,
    current: ArcSwapOption<Loaded>,
    /// Counted up when a root goes, so that connections made before take nothing new.
    era: Arc<AtomicU64>,
    last: Mutex<Last>,
    is_kept: AtomicBool,
    metrics: Arc<TlsMetrics>,
}

/// The last look at a source.
#[derive(Debug, Default)]
struct Last {
    /// What was in the file.
    bytes: Option<Vec<u8>>,
    /// Why it was not taken, if it was not.
    refused: Option<String>,
}

/// Roots, and the clients that trust them.
#[derive(Debug)]
struct Loaded {
    roots: Vec<CertificateDer<'static>>,
    /// By what is offered: nothing, HTTP/1.1, HTTP/2.
    clients: [Arc<ClientConfig>; 3],
}

impl Trust {
    /// Nothing is trusted before the first [`Self::look`].
    pub(crate) fn new(source: Source, identities: &Identities) -> Self {
        Self {
            source,
            current: ArcSwapOption::empty(),
            era: Arc::default(),
            last: Mutex::default(),
            is_kept: AtomicBool::new(false),
            metrics: Arc::clone(&identities.metrics),
        }
    }

    /// Where its roots are.
    pub(crate) fn source(&self) -> &Source {
        &self.source
    }

    /// Whether nobody keeps it current yet. Whoever asks first does from now on.
    pub(crate) fn is_to_be_kept(&self) -> bool {
        !self.is_kept.swap(true, Ordering::Relaxed)
    }

    /// Looks at the source, and takes what is good. What is not changes nothing: the roots before go on.
    pub(crate) fn look(&self) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let read = match self.source.roots.file() {
            None => system_roots(),
            Some(path) => {
                let bytes = files::read(path).map_err(|problem| problem.to_string());
                if bytes.is_ok() && last.bytes.as_ref() == bytes.as_ref().ok() {
                    return;
                }
                last.bytes = bytes.as_ref().ok().cloned();
                bytes.and_then(|bytes| roots_of(path, &bytes))
            }
        };
        let is_same = |roots: &Vec<_>| {
            let current = self.current.load();
            current.as_ref().is_some_and(|current| current.roots == *roots)
        };
        let loaded = match read {
            Ok(roots) if is_same(&roots) => {
                last.refused = None;
                return;
            }
            Ok(roots) => Loaded::new(roots, &self.source),
            Err(problem) => Err(problem),
        };
        match loaded {
            Ok(loaded) => {
                last.refused = None;
                self.put(loaded);
            }
            // The same problem again is no news.
            Err(problem) if last.refused.as_ref() == Some(&problem) => {}
            Err(problem) => {
                self.metrics.files(FileSet::Roots, false);
                let (roots, kept) = (&self.source.roots, self.current.load().is_some());
                tracing::error!(%roots, problem, kept, "the roots for servers outside cannot be used");
                last.refused = Some(problem);
            }
        }
    }

    fn put(&self, loaded: Loaded) {
        self.metrics.files(FileSet::Roots, true);
        let (roots, count) = (&self.source.roots, loaded.roots.len());
        tracing::info!(%roots, count, "roots for servers outside are trusted");
        let loaded = Arc::new(loaded);
        let before = self.current.swap(Some(Arc::clone(&loaded)));
        let goes_on = before.is_none_or(|before| before.roots.iter().all(|root| loaded.roots.contains(root)));
        if !goes_on {
            self.era.fetch_add(1, Ordering::Release);
        }
    }

    /// Why nothing can be verified, if it cannot.
    fn ready(&self) -> Result<Arc<Loaded>, Failure> {
        self.current.load_full().ok_or_else(|| {
            let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
            let why = last.refused.as_deref().unwrap_or("they have not been read yet");
            let detail = format!("no roots for servers outside: {why}");
            Failure::new(Reason::IdentityMissing, detail)
        })
    }

    /// What an operator sees of it.
    pub(crate) fn report(&self) -> serde_json::Value {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let current = self.current.load();
        serde_json::json!({
            "roots": self.source.roots.to_string(),
            "trusted": current.as_ref().map_or(0, |current| current.roots.len()),
            "refused": last.refused,
        })
    }
}

/// Keeps roots as their source has them, until nobody uses them any more.
pub(crate) async fn keep_current(trust: Weak<Trust>) {
    let Some(every) = trust.upgrade().map(|trust| match trust.source.roots {
        Roots::System => LOOK_AT_SYSTEM_EVERY,
        Roots::File(_) => LOOK_AT_FILE_EVERY,
    }) else {
        return;
    };
    loop {
        tokio::time::sleep(every).await;
        match trust.upgrade() {
            Some(trust) => trust.look(),
            None => return,
        }
    }
}

/// The roots that this machine or image has.
fn system_roots() -> Result<Vec<CertificateDer<'static>>, String> {
    let found = rustls_native_certs::load_native_certs();
    if found.certs.is_empty() {
        let why = found.errors.first().map(|error| format!(" ({error})"));
        return Err(format!(
            "this machine or image has none of its own{}; install its package ca-certificates, or copy a bundle into an image \
             from scratch and name it in SSL_CERT_FILE, or write `roots: /PATH/OF/roots.pem`",
            why.unwrap_or_default()
        ));
    }
    Ok(found.certs)
}

fn roots_of(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let mut roots = Vec::new();
    for root in CertificateDer::pem_slice_iter(pem) {
        if roots.len() == ROOTS_MAX {
            return Err(format!("{}: more than {ROOTS_MAX} certificates", path.display()));
        }
        roots.push(root.map_err(|error| format!("{}: {error}; expected PEM", path.display()))?);
    }
    if roots.is_empty() {
        return Err(format!("{}: no certificate in PEM is in it", path.display()));
    }
    Ok(roots)
}

impl Loaded {
    fn new(roots: Vec<CertificateDer<'static>>, source: &Source) -> Result<Self, String> {
        let mut store = RootCertStore::empty();
        let (added, ignored) = store.add_parsable_certificates(roots.iter().cloned());
        // Of the system's hundreds one that cannot be read is no reason to trust none. A file is small, and somebody's.
        if added == 0 || ignored > 0 && source.roots.file().is_some() {
            return Err(format!(
                "{}: {ignored} of its certificates cannot be a root",
                source.roots
            ));
        }
        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(store), Arc::clone(&provider))
            .build()
            .map_err(|error| error.to_string())?;
        let versions: &[_] = match source.min_version {
            TlsVersion::V1_2 => &[&TLS13, &TLS12],
            TlsVersion::V1_3 => &[&TLS13],
        };
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .map_err(|error| error.to_string())?
            .with_webpki_verifier(verifier)
            .with_no_client_auth();
        client.resumption = Resumption::disabled();
        let clients = [Alpn::Unsaid, Alpn::Http1, Alpn::Http2].map(|alpn| {
            let mut client = client.clone();
            client.alpn_protocols = alpn.offered();
            Arc::new(client)
        });
        Ok(Self { roots, clients })
    }

    fn client(&self, alpn: Alpn) -> &Arc<ClientConfig> {
        match alpn {
            Alpn::Unsaid => &self.clients[0],
            Alpn::Http1 => &self.clients[1],
            Alpn::Http2 => &self.clients[2],
        }
    }
}

/// How servers outside are spoken to, ready to be used.
#[derive(Debug)]
pub(super) struct Outside {
    /// The name as it is written.
    pub(super) name: String,
    verified: ServerName<'static>,
    pub(super) trust: Arc<Trust>,
}

impl Outside {
    pub(super) fn new(words: Words, trust: Arc<Trust>) -> Result<Self, String> {
        let name = words.server_name;
        let verified =
            ServerName::try_from(name.clone()).map_err(|_| format!("`{name}` cannot be a server's name"))?;
        Ok(Self {
            name,
            verified,
            trust,
        })
    }

    pub(super) fn is_ready(&self) -> Result<(), Failure> {
        self.trust.ready().map(|_| ())
    }

    /// Shakes hands with a server, at most until the deadline.
    pub(super) async fn shake(
        &self,
        stream: TcpStream,
        alpn: Alpn,
        deadline: Option<Instant>,
    ) -> Result<(Connection, Session), Failure> {
        let epoch = self.trust.era.load(Ordering::Acquire);
        let loaded = self.trust.ready()?;
        let limit = deadline.map_or(CONNECT_MAX, |deadline| {
            CONNECT_MAX.min(deadline.saturating_duration_since(Instant::now()))
        });
        let address = stream.peer_addr().ok();
        let connector = TlsConnector::from(Arc::clone(loaded.client(alpn)));
        let connect = connector.connect(self.verified.clone(), stream);
        let stream = tokio::time::timeout(limit, connect)
            .await
            .unwrap_or_else(|_| Err(too_slow(limit)))
            .map_err(|error| self.failure(&error, alpn, address))?;
        if alpn == Alpn::Http2 && Alpn::of(stream.get_ref().1.alpn_protocol()) != Alpn::Http2 {
            let detail = format!("TLS with {}: {}", self.who(address), NO_HTTP2);
            return Err(Failure::new(Reason::TlsHandshake, detail));
        }
        let session = Session {
            // What keeps a connection lets it retire within minutes, and a tunnel to a database outlives the certificate
            // that it began with, as its own client would have it.
            until: Instant::now() + SESSION_MAX,
            ends: i64::MAX,
            clock: Arc::default(),
            epoch,
            era: Arc::clone(&self.trust.era),
            refusal: Arc::default(),
            watch: None,
        };
        Ok((Connection::new(stream, &session), session))
    }

    fn who(&self, address: Option<SocketAddr>) -> String {
        match address {
            Some(address) => format!("{} at {address}", self.name),
            None => self.name.clone(),
        }
    }

    /// What a handshake that failed is called, and what to do where that is known.
    fn failure(&self, error: &io::Error, alpn: Alpn, address: Option<SocketAddr>) -> Failure {
        let mut failure = verify::failure(error, &self.who(address));
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
        let is_new_only = self.trust.source.min_version == TlsVersion::V1_3;
        let hint = match inner {
            Some(Error::AlertReceived(AlertDescription::NoApplicationProtocol)) if alpn == Alpn::Http2 => {
                Some(NO_HTTP2)
            }
            Some(
                Error::AlertReceived(AlertDescription::ProtocolVersion)
                | Error::PeerIncompatible(
                    PeerIncompatible::ServerDoesNotSupportTls12Or13
                    | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig,
                ),
            ) if is_new_only => Some("it speaks no TLS 1.3; `min_version: \"1.2\"` would speak 1.2 to it"),
            Some(Error::InvalidMessage(_)) => Some("is the port right?"),
            _ => None,
        };
        if let Some(hint) = hint {
            failure.detail = format!("{}: {hint}", failure.detail);
        }
        failure
    }
}

/// What is said of a server that does not choose HTTP/2 (RFC 9113 section 3.2 knows no other way over TLS).
const NO_HTTP2: &str =
    "it does not choose h2 by ALPN, so that it speaks no HTTP/2 over TLS; is `protocol` right?";
