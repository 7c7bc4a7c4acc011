//! The API over TLS 1.3, under a certificate of its own CA; the only place of this crate that names rustls.
//!
//! A client certificate is asked for and not demanded: with one, a workload renews it. It is verified here, whoever it may
//! be; what it may do is decided where it is used. Sessions are not resumed: rustls would restore what was verified once.
//!
//! **Does not** keep the key of the API on disk: it is made anew with each certificate.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use outrigger_proxy::tls::pin::refused_certificate;
use rcgen::{KeyPair, SanType};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig, version};
use time::OffsetDateTime;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{Shared, StartError};
use crate::ca::join::{Now, Proof};
use crate::ca::limits::{Limits, Verdict};
use crate::ca::{CaError, Trusted, rfc3339, sha256};
use crate::store::ledger::{AuditRow, Deed};

/// How long a handshake may take: two round trips across the world with a lost packet.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);

/// How long to wait before a certificate that could not be made is tried again.
const AGAIN_AFTER: Duration = Duration::from_secs(30);

/// The longest time between two looks at the wall clock.
const LOOK_AT_CLOCK: Duration = Duration::from_secs(60);

/// What the operator says of it.
#[derive(Clone, Debug, Default)]
pub struct TlsOptions {
    /// Sidecars are told configurations only by a certificate of the mesh.
    pub require_identity: bool,
}

/// The certificate and the roots that new connections are made with.
#[derive(Clone)]
pub(super) struct Tls {
    current: watch::Receiver<Arc<Current>>,
    trusted: watch::Receiver<Arc<Trusted>>,
    shared: Arc<Shared>,
    /// Which refused certificates are written down: whoever holds one may show it as often as it likes.
    limits: Arc<Mutex<Limits>>,
}

/// What new connections are made with.
#[derive(Debug)]
struct Current {
    config: Arc<ServerConfig>,
    /// Each root by itself, with its SHA-256: which of them a certificate leads to, the library does not say.
    roots: Vec<([u8; 32], Arc<dyn ClientCertVerifier>)>,
}

impl Tls {
    /// Makes the first certificate, and sees to it that another follows in time and whenever the roots change.
    pub(super) async fn start(
        shared: &Arc<Shared>,
        further: &[String],
        listen: SocketAddr,
        stop: CancellationToken,
    ) -> Result<Self, StartError> {
        let names = names(further, listen)?;
        let (mut changes, trusted) = (shared.ca.changes(), shared.ca.trusted());
        let (first, mut renew_in) = make(shared, &names).await?;
        let (sender, current) = watch::channel(first);
        let tls = Self {
            current,
            trusted,
            shared: shared.clone(),
            limits: Arc::new(Mutex::new(Limits::new())),
        };
        let shared = shared.clone();
        tokio::spawn(async move {
            loop {
                let now = OffsetDateTime::now_utc();
                tokio::select! {
                    () = stop.cancelled() => return,
                    // Timers stand still while a machine sleeps, and certificates end by the wall clock.
                    () = tokio::time::sleep(renew_in.min(LOOK_AT_CLOCK)) => {
                        let passed = (OffsetDateTime::now_utc() - now).max(LOOK_AT_CLOCK.try_into().unwrap_or_default());
                        renew_in = renew_in.saturating_sub(passed.unsigned_abs());
                        if !renew_in.is_zero() {
                            continue;
                        }
                    }
                    changed = changes.changed() => if changed.is_err() { return },
                }
                match make(&shared, &names).await {
                    Ok((next, wait)) => {
                        renew_in = wait;
                        sender.send_replace(next);
                    }
                    Err(error) => {
                        tracing::error!(%error, "the API's own certificate could not be renewed; trying again");
                        renew_in = AGAIN_AFTER;
                    }
                }
            }
        });
        Ok(tls)
    }

    /// Writes down why a handshake came to nothing: in the audit log, where the certificate that was shown was refused.
    pub(super) async fn note_failure(&self, error: &io::Error, peer: SocketAddr) {
        let Some(why) = refused_certificate(error) else {
            tracing::debug!(%error, %peer, "no handshake");
            return;
        };
        let (source, now) = (peer.ip().to_canonical(), Now::read());
        let note = match self.judge(source, &now) {
            Verdict::Heard => why,
            Verdict::Over { note: true, .. } => {
                format!("{why}; more from there is not written down for a while")
            }
            Verdict::Over { note: false, .. } => return,
        };
        tracing::warn!(%source, "a client certificate was refused: {note}");
        let mut row = AuditRow::of(Deed::HandshakeRefused, rfc3339(now.wall));
        row.source = source.to_string();
        row.note = note;
        let shared = self.shared.clone();
        let write = move || {
            let ledger = shared.store.ledger()?;
            ledger.audit(row)?;
            ledger.commit()
        };
        let written = tokio::task::spawn_blocking(write).await;
        let failed = match &written {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(fault) => fault.to_string(),
        };
        tracing::error!(error = failed, "a refusal could not be written to the audit log");
    }

    /// Counts a refused certificate.
    fn judge(&self, source: IpAddr, now: &Now) -> Verdict {
        let who = source.into();
        // Each change of it is whole before the next can panic.
        let mut limits = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
        match limits.before(&who, now.clock) {
            Verdict::Heard => limits.failed(&who, now.clock),
            over @ Verdict::Over { .. } => over,
        }
    }

    /// Waits until no root is left that the certificate leads to; for ever where none was shown.
    pub(super) async fn root_gone(mut self, proof: Option<Arc<Proof>>) {
        let Some(proof) = proof else {
            return std::future::pending().await;
        };
        let gone = self.trusted.wait_for(|trusted| !trusted.has_any(&proof.roots));
        if gone.await.is_err() {
            // Whoever tells of the roots is gone, and the connection will be.
            std::future::pending::<()>().await;
        }
    }

    /// Shakes hands. Gives the stream, and the certificate that the other end has shown.
    pub(super) async fn accept(
        &self,
        stream: TcpStream,
    ) -> io::Result<(TlsStream<TcpStream>, Option<Arc<Proof>>)> {
        let current = self.current.borrow().clone();
        let handshake = TlsAcceptor::from(current.config.clone()).accept(stream);
        let late = |_| io::Error::new(io::ErrorKind::TimedOut, "no handshake in time");
        let stream = tokio::time::timeout(HANDSHAKE_WITHIN, handshake)
            .await
            .map_err(late)??;
        let shown = stream.get_ref().1.peer_certificates();
        let proof = shown.and_then(|chain| proof(chain, &current.roots));
        let proof = proof.map(Arc::new);
        Ok((stream, proof))
    }
}

/// What a verified chain proves; nothing if its first certificate names not exactly one workload (X509-SVID, section 2),
/// or another cannot be read.
fn proof(chain: &[CertificateDer<'_>], roots: &[([u8; 32], Arc<dyn ClientCertVerifier>)]) -> Option<Proof> {
    let serial = |certificate: &X509Certificate<'_>| certificate.raw_serial_as_string().replace(':', "");
    let (certificate, others) = chain.split_first()?;
    let vouched_by = others
        .iter()
        .map(|other| Some(serial(&X509Certificate::from_der(other).ok()?.1)));
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let names = parsed.subject_alternative_name().ok()??;
    let mut uris = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    let (Some(spiffe_id), None) = (uris.next(), uris.next()) else {
        return None;
    };
    Some(Proof {
        spiffe_id: spiffe_id.to_owned(),
        serial: serial(&parsed),
        vouched_by: vouched_by.collect::<Option<_>>()?,
        not_after: parsed.validity().not_after.to_datetime(),
        sha256: sha256(certificate),
        roots: roots
            .iter()
            .filter(|(_, root)| {
                let verified = root.verify_client_cert(certificate, others, UnixTime::now());
                verified.is_ok()
            })
            .map(|(sha256, _)| *sha256)
            .collect(),
    })
}

/// The names of the certificate: what the operator says, where it listens, and this machine for itself.
fn names(further: &[String], listen: SocketAddr) -> Result<Vec<SanType>, StartError> {
    let mut all: Vec<String> = further.to_vec();
    if !listen.ip().is_unspecified() {
        all.push(listen.ip().to_string());
    }
    all.extend(["localhost", "127.0.0.1", "::1"].map(str::to_owned));
    let mut names = Vec::new();
    for name in all {
        let san = match name.parse::<IpAddr>() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => {
                let wrong = |_| {
                    CaError::Wrong(format!(
                        "--name `{}` is neither a DNS name nor an IP address",
                        name.escape_default()
                    ))
                };
                SanType::DnsName(name.as_str().try_into().map_err(wrong)?)
            }
        };
        if !names.contains(&san) {
            names.push(san);
        }
    }
    Ok(names)
}

/// A new key, its certificate, and the roots of today. Says also when the next is due.
async fn make(shared: &Arc<Shared>, names: &[SanType]) -> Result<(Arc<Current>, Duration), CaError> {
    let (shared, names) = (shared.clone(), names.to_vec());
    let work = move || {
        let failed = |error: &dyn std::fmt::Display| CaError::Sign(error.to_string());
        let now = OffsetDateTime::now_utc();
        let key = KeyPair::generate().map_err(|error| failed(&error))?;
        let signed = shared.ca.sign_for_control(&shared.store, &key, names, now)?;
        let half: time::Duration = (signed.not_after - now) / 2;
        tracing::debug!(serial = signed.serial, "a certificate for the API itself");
        let read =
            |pem: &String| CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| failed(&error));
        let (mut together, mut roots) = (Vec::new(), Vec::new());
        for root in &shared.ca.bundle(&shared.store)? {
            let root = read(root)?;
            roots.push((sha256(&root), verifier(std::slice::from_ref(&root))?));
            together.push(root);
        }
        let chain = signed
            .certificates
            .iter()
            .map(read)
            .collect::<Result<Vec<_>, _>>()?;
        let key =
            PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).map_err(|error| failed(&error))?;
        let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&version::TLS13])
            .map_err(|error| failed(&error))?
            .with_client_cert_verifier(verifier(&together)?)
            .with_single_cert(chain, key)
            .map_err(|error| failed(&error))?;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let config = Arc::new(config);
        Ok((
            Arc::new(Current { config, roots }),
            half.try_into().unwrap_or(AGAIN_AFTER),
        ))
    };
    let made = tokio::task::spawn_blocking(work).await;
    made.unwrap_or_else(|fault| Err(CaError::Sign(fault.to_string())))
}

/// What verifies that a client certificate leads to one of these roots, if one is shown.
fn verifier(trusted: &[CertificateDer<'_>]) -> Result<Arc<dyn ClientCertVerifier>, CaError> {
    let failed = |error: &dyn std::fmt::Display| CaError::Sign(error.to_string());
    let mut roots = RootCertStore::empty();
    for root in trusted {
        let root = root.clone().into_owned();
        roots.add(root).map_err(|error| failed(&error))?;
    }
    let provider = Arc::new(aws_lc_rs::default_provider());
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .allow_unauthenticated()
        .build()
        .map_err(|error| failed(&error))
}
