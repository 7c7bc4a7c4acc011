//! mTLS between sidecars: who this one is, who the other end is, and the streams in between; and TLS to servers outside of
//! the mesh ([`outside`]). The only place that names rustls.
//!
//! [`Identities`] holds the one [`Identity`] that serves, with one writer, its source; a handshake takes the one that is
//! there when it begins. Connections are made under it and end with it: see [`Session`]. Who may ask for what is not
//! decided here, nor where a connection leads.
//!
//! Sessions are never resumed: rustls restores the chain that was verified at first and does not look again at its
//! validity, its roots or its name (RFC 8446 section 4.6.1 leaves that open), so that a rotated or revoked certificate
//! would live on. Connections are kept for long, so that little is lost.

mod alpn;
mod anchors;
mod clock;
mod connection;
pub(crate) mod files;
mod fitting;
mod forwarded;
pub(crate) mod gateway;
pub mod identity;
pub mod outside;
pub mod pin;
pub mod revoked;
mod span;
#[cfg(test)]
mod tests;
mod verify;
mod words;

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwapOption;
use http::HeaderValue;
use outrigger_config::identity::SpiffeId;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::server::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::error::{Failure, Reason};
use crate::telemetry::metrics::{Side, TlsMetrics};
pub(crate) use crate::tls::alpn::Alpn;
use crate::tls::anchors::Anchor;
use crate::tls::clock::WallClock;
pub(crate) use crate::tls::connection::{Connection, Session, ended};
pub(crate) use crate::tls::fitting::{LOOK_AT_CLOCK, tell_when_ended};
use crate::tls::forwarded::forwarded;
#[cfg(any(test, fuzzing))]
pub(crate) use crate::tls::forwarded::read_of_a_caller;
use crate::tls::identity::{Certificate, Identity, IdentityProblem};
use crate::tls::outside::Trust;
use crate::tls::revoked::{Denied, Revocations, Shown, Watch};
pub(crate) use crate::tls::verify::refused_us;

/// The first byte of a TLS record that opens a handshake (RFC 8446 section 5.1). No method of HTTP begins with it.
pub(crate) const HANDSHAKE_BYTE: u8 = 0x16;

/// A caller that speaks TLS must be through with its handshake within this: two round trips and some milliseconds of
/// work. It may come from far away; one that takes longer holds a descriptor for nothing.
pub(crate) const ACCEPT_MAX: Duration = Duration::from_secs(5);

/// After a handshake that failed the caller has this long to read why.
pub(crate) const ALERT_MAX: Duration = Duration::from_secs(1);

/// The record of TLS with the fatal alert `internal_error` (RFC 8446 sections 5.1 and 6.2), for a caller that there is no
/// certificate to show to.
const INTERNAL_ERROR: [u8; 7] = [0x15, 0x03, 0x03, 0x00, 0x02, 0x02, 0x50];

/// An endpoint must be: it is near, and another may be waiting to be asked.
const CONNECT_MAX: Duration = Duration::from_secs(2);

/// The identity of this sidecar, as it changes. One writer: its source.
#[derive(Debug)]
pub struct Identities {
    current: ArcSwapOption<Identity>,
    /// Counted up when connections made before are not to be used for requests any more.
    epoch: Arc<AtomicU64>,
    /// Counts every exchange, for whoever has said or shown the one before.
    exchanges: watch::Sender<u64>,
    /// Whether there is a source at all.
    configured: bool,
    /// Why the source's last word was not taken, if it was not.
    refused: Mutex<Option<String>>,
    /// When a failed handshake was last written to the log, in seconds since `began`, by its reason.
    told: [AtomicU64; Reason::ALL.len()],
    began: Instant,
    /// By which connections end though timers stand still.
    clock: Arc<WallClock>,
    /// What the mesh has revoked. One writer: `apply`.
    revocations: Arc<Revocations>,
    /// The service that this sidecar stands beside, if it does.
    service: Option<String>,
    /// The trust domain of the mesh, where that says one. One writer: `apply`.
    trust_domain: Mutex<Option<String>>,
    metrics: Arc<TlsMetrics>,
}

/// No connection is kept for longer, whatever its certificates say: a bound for the clock's arithmetic.
const SESSION_MAX: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// Why a caller is not shaken hands with, and its socket, if there is one to be ended with patience.
type Refused = (Failure, Option<TcpStream>);

impl Identities {
    /// No identity yet; `configured`: one is to come.
    pub fn new(configured: bool, metrics: Arc<TlsMetrics>) -> Self {
        Self {
            current: ArcSwapOption::empty(),
            epoch: Arc::default(),
            exchanges: watch::Sender::new(0),
            configured,
            refused: Mutex::default(),
            told: std::array::from_fn(|_| AtomicU64::new(0)),
            began: Instant::now(),
            clock: Arc::default(),
            revocations: Arc::default(),
            service: None,
            trust_domain: Mutex::default(),
            metrics,
        }
    }

    /// The same, of a sidecar that stands beside this service.
    pub(crate) fn beside(self, service: Option<String>) -> Self {
        Self { service, ..self }
    }

    /// Whether this sidecar is to have an identity.
    pub fn is_configured(&self) -> bool {
        self.configured
    }

    /// Whether it is to have one and has none yet.
    pub(crate) fn is_awaited(&self) -> bool {
        self.configured && self.current.load().is_none()
    }

    /// The one that serves, if there is one.
    pub(crate) fn current(&self) -> Option<Arc<Identity>> {
        self.current.load_full()
    }

    /// This one serves from now on. Connections live on, unless it is another workload or no longer trusts a root that
    /// was trusted: then they finish what they have and are used for nothing new.
    pub fn put(&self, identity: Identity) {
        let goes_on = self
            .current
            .load()
            .as_ref()
            .is_none_or(|before| identity.continues(before));
        self.metrics
            .loaded(identity.not_after(), identity.roots_not_after());
        tracing::info!(
            spiffe_id = identity.id().as_str(),
            not_after = identity.not_after(),
            "the identity serves"
        );
        let identity = Arc::new(identity);
        self.current.store(Some(Arc::clone(&identity)));
        self.revocations.trust(identity.anchors().all());
        if !goes_on {
            self.epoch.fetch_add(1, Ordering::Release);
        }
        self.exchanges.send_modify(|count| *count += 1);
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.tell_if_revoked();
        self.tell_if_foreign();
    }

    /// Looks at both clocks, for connections that end by the wall clock. Called about once a second by each worker.
    pub(crate) fn look_at_clocks(&self, wall: SystemTime, timers: Instant) {
        self.clock.look(wall, timers);
    }

    /// Word of each exchange of the identity, the first included; the number counts them.
    pub(crate) fn exchanges(&self) -> watch::Receiver<u64> {
        self.exchanges.subscribe()
    }

    /// What the mesh has revoked, for the verifiers of an identity.
    pub fn revocations(&self) -> &Arc<Revocations> {
        &self.revocations
    }

    /// This is what the mesh has revoked from now on: handshakes refuse it, and connections that live end by it.
    pub(crate) fn deny(&self, denied: &Arc<Denied>) {
        let (serials, identities) = denied.counts();
        self.metrics.denied(serials, identities);
        if self.revocations.put(denied) {
            tracing::info!(serials, identities, "what is revoked has changed");
            self.tell_if_revoked();
        }
    }

    /// Why this sidecar's own identity is revoked, if it is.
    fn own_revoked(&self) -> Option<String> {
        self.revocations.why(self.current.load().as_ref()?.shown())
    }

    /// Others refuse us then, which is theirs to do. What reaches us all the same is served: who runs this workload must
    /// learn why nothing comes, and an entry made by mistake must not cost more than it does anyway.
    fn tell_if_revoked(&self) {
        if let Some(why) = self.own_revoked() {
            tracing::error!(
                why,
                "this sidecar's own identity is revoked: the others of the mesh refuse it; it needs another certificate, or \
                 `outrigger revoke --undo` if this is a mistake"
            );
        }
    }

    /// What an operator sees of it.
    pub(crate) fn revoked_report(&self) -> serde_json::Value {
        let (serials, identities) = self.revocations.counts();
        serde_json::json!({ "serials": serials, "identities": identities, "own": self.own_revoked() })
    }

    /// What the source has now cannot be used; the one before goes on.
    pub(crate) fn refuse(&self, problem: &IdentityProblem) {
        self.metrics.load_refused();
        let held = self.current();
        let kept = held.is_some();
        let has_ended = held.is_some_and(|held| held.not_after() <= seconds(SystemTime::now()));
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        let is_news = refused.replace(problem.to_string()) != Some(problem.to_string());
        match problem {
            IdentityProblem::NotIssued(why) if kept && !has_ended => {
                tracing::warn!(why, "no new certificate yet; the one before serves until its end");
            }
            // The same each time would be an error every few seconds.
            IdentityProblem::NotIssued(why) if kept && !is_news => {
                tracing::warn!(why, "no new certificate yet, and the one before has ended");
            }
            _ => tracing::error!(%problem, kept, has_ended, "the identity cannot be used"),
        }
    }

    /// Why the last word of the source was not taken, if it was not.
    pub(crate) fn refused(&self) -> Option<String> {
        self.refused
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// The identity for a handshake of a mesh with this trust domain.
    fn ready(&self, trust_domain: Option<&str>) -> Result<Arc<Identity>, Failure> {
        let identity = self.held(trust_domain)?;
        match identity.expired(SystemTime::now()) {
            None => Ok(identity),
            Some(failure) => Err(failure),
        }
    }

    /// The same, which may have expired.
    fn held(&self, trust_domain: Option<&str>) -> Result<Arc<Identity>, Failure> {
        let missing = |detail: String| Failure::new(Reason::IdentityMissing, detail);
        let Some(identity) = self.current() else {
            return Err(missing(if self.configured {
                "no certificate has been loaded yet; the log says why".to_owned()
            } else {
                "mTLS is demanded and this sidecar's bootstrap says no `identity`".to_owned()
            }));
        };
        let own = identity.id().trust_domain();
        // By the configuration that this handshake began under, which may not be the newest.
        if let Some(other) = trust_domain.filter(|other| *other != own) {
            return Err(missing(format!(
                "this sidecar's certificate is of the trust domain `{own}`, the mesh's is `{other}`"
            )));
        }
        Ok(identity)
    }

    /// Shakes hands with a caller, which shows a certificate of the mesh. `from`: where it comes from, which is not always
    /// where its connection does.
    ///
    /// # Errors
    /// When that fails, which has been counted and told; the socket, if there is one to be ended with patience, so that
    /// the alert arrives.
    pub(crate) async fn accept(
        self: &Arc<Self>,
        (stream, from): (TcpStream, SocketAddr),
        trust_domain: Option<&str>,
    ) -> Result<(Connection, Peer), Option<TcpStream>> {
        let from = Some(from);
        match self.shake_caller(stream, trust_domain).await {
            Ok(accepted) => {
                self.tell(Side::Inbound, None, from);
                Ok(accepted)
            }
            Err((failure, stream)) => {
                self.tell(Side::Inbound, Some(&failure), from);
                Err(stream)
            }
        }
    }

    /// The handshake itself. One whose certificate has expired shows it all the same and then ends: so the caller finds out
    /// what is wrong with it, which no alert of this end can say (RFC 8446 section 6.2 has none for a certificate of one's own).
    async fn shake(
        &self,
        mut stream: TcpStream,
        trust_domain: Option<&str>,
    ) -> Result<(Arc<Identity>, TlsStream<TcpStream>), Refused> {
        let identity = match self.held(trust_domain) {
            Ok(identity) => identity,
            Err(failure) => {
                // There is nothing to show. It fits into the empty buffer of a new socket, so that nobody waits for it.
                let _ = stream.write_all(&INTERNAL_ERROR).await;
                return Err((failure, Some(stream)));
            }
        };
        let expired = identity.expired(SystemTime::now());
        let accept = TlsAcceptor::from(Arc::clone(&identity.server)).accept(stream);
        let accepted = match tokio::time::timeout(ACCEPT_MAX, accept.into_fallible()).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err((error, stream))) => Err((verify::failure(&error, "the caller"), Some(stream))),
            Err(_) => Err((verify::failure(&too_slow(ACCEPT_MAX), "the caller"), None)),
        };
        match (expired, accepted) {
            (None, Ok(stream)) => Ok((identity, stream)),
            (None, Err(refused)) => Err(refused),
            (Some(failure), Err((_, stream))) => Err((failure, stream)),
            // It does not look at certificates, or its clock is behind: it is let into nothing.
            (Some(failure), Ok(mut stream)) => {
                let _ = tokio::time::timeout(ALERT_MAX, stream.shutdown()).await;
                Err((failure, Some(stream.into_inner().0)))
            }
        }
    }

    async fn shake_caller(
        self: &Arc<Self>,
        stream: TcpStream,
        trust_domain: Option<&str>,
    ) -> Result<(Connection, Peer), Refused> {
        let epoch = self.epoch.load(Ordering::Acquire);
        let (identity, stream) = self.shake(stream, trust_domain).await?;
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
        // The verifier has read it already; that it cannot be read here does not happen.
        let Some(shown) = chain.first() else {
            let failure = Failure::new(Reason::PeerNoCertificate, "the caller showed no certificate");
            return Err((failure, None));
        };
        let peer = Certificate::read(shown).and_then(|certificate| {
            let id = certificate.spiffe_id()?;
            let end = identity.anchors().end_of_caller(chain, SystemTime::now())?;
            Ok((Shown::of(&id, chain)?, id, end))
        });
        let (whole, id, not_after) =
            peer.map_err(|problem| (Failure::new(Reason::PeerWrongIdentity, problem.to_string()), None))?;
        let peer = Peer {
            forwarded: forwarded(identity.id(), &id, shown),
            session: self
                .session(&identity, not_after, epoch)
                .of(self.watch(whole, identity.anchors().of_caller(chain))),
            alpn: Alpn::of(stream.get_ref().1.alpn_protocol()),
            id,
        };
        Ok((Connection::new(stream, &peer.session), peer))
    }

    fn watch(&self, shown: Shown, anchors: Box<[Anchor]>) -> Watch {
        Watch::new(&self.revocations, shown, anchors)
    }

    fn session(self: &Arc<Self>, own: &Identity, not_after: i64, epoch: u64) -> Session {
        // The last second is one of its life.
        let ends = own.not_after().min(not_after).saturating_add(1);
        let last = SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(ends).unwrap_or_default());
        let left = last.duration_since(SystemTime::now()).unwrap_or_default();
        Session {
            until: Instant::now() + left.min(SESSION_MAX),
            ends,
            clock: Arc::clone(&self.clock),
            epoch,
            era: Arc::clone(&self.epoch),
            refusal: Arc::default(),
            watch: None,
        }
    }

    /// Counts a handshake; one that failed is written to the log, each reason at most once a second: whoever reaches the
    /// port can make as many fail as it likes.
    fn tell(&self, side: Side, failure: Option<&Failure>, address: Option<SocketAddr>) {
        self.metrics
            .handshake(side, failure.map(|failure| failure.reason));
        let Some(failure) = failure else { return };
        let now = self.began.elapsed().as_secs() + 1;
        if self.told[failure.reason.index()].swap(now, Ordering::Relaxed) != now {
            let (side, reason) = (side.word(), failure.reason.word());
            tracing::warn!(
                side,
                reason,
                address = address.map(tracing::field::display),
                detail = failure.detail,
                "a TLS handshake failed"
            );
        }
    }
}

/// How the endpoints of a cluster are spoken to. Two clusters of which the same is said may share connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Words {
    /// By mTLS, as sidecars of the mesh.
    Mesh(Service),
    /// By TLS, as servers outside.
    Outside(outside::Words),
}

/// A service of the mesh, as its certificates name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// The service whose name the certificates must bear.
    pub name: String,
    /// The trust domain of the mesh, where it is said.
    pub trust_domain: Option<String>,
}

/// The same, ready to be used.
#[derive(Debug)]
pub struct Security {
    how: How,
    identities: Arc<Identities>,
}

#[derive(Debug)]
enum How {
    Mesh(Service),
    Outside(outside::Outside),
}

impl Security {
    /// Sidecars of the mesh, under this one's identity.
    pub(crate) fn mesh(service: Service, identities: &Arc<Identities>) -> Self {
        Self {
            how: How::Mesh(service),
            identities: Arc::clone(identities),
        }
    }

    /// Servers outside, under these roots.
    ///
    /// # Errors
    /// When a name cannot be a server's.
    pub(crate) fn outside(
        words: outside::Words,
        trust: Arc<Trust>,
        identities: &Arc<Identities>,
    ) -> Result<Self, String> {
        Ok(Self {
            how: How::Outside(outside::Outside::new(words, trust)?),
            identities: Arc::clone(identities),
        })
    }

    /// The name of the server, where it is outside.
    pub(crate) fn server_name(&self) -> Option<&str> {
        match &self.how {
            How::Mesh(_) => None,
            How::Outside(outside) => Some(&outside.name),
        }
    }

    /// The roots that are trusted, where they are not the identity's.
    pub(crate) fn trust(&self) -> Option<&Arc<Trust>> {
        match &self.how {
            How::Mesh(_) => None,
            How::Outside(outside) => Some(&outside.trust),
        }
    }

    /// Whether this sidecar has what a handshake takes, before anybody is connected to.
    ///
    /// # Errors
    /// When it has not, which has been counted and told.
    pub(crate) fn is_ready(&self) -> Result<(), Failure> {
        let ready = match &self.how {
            How::Mesh(service) => self.identities.ready(service.trust_domain.as_deref()).map(|_| ()),
            How::Outside(outside) => outside.is_ready(),
        };
        if let Err(failure) = &ready {
            self.identities.tell(Side::Outbound, Some(failure), None);
        }
        ready
    }

    /// Shakes hands with an endpoint, which proves to be who is meant, at most until the deadline.
    pub(crate) async fn connect(
        &self,
        stream: TcpStream,
        alpn: Alpn,
        deadline: Option<Instant>,
    ) -> Result<(Connection, Session), Failure> {
        let address = stream.peer_addr().ok();
        let connected = match &self.how {
            How::Mesh(service) => self.shake_endpoint(service, (stream, alpn), deadline).await,
            How::Outside(outside) => outside.shake(stream, alpn, deadline).await,
        };
        self.identities
            .tell(Side::Outbound, connected.as_ref().err(), address);
        connected
    }

    async fn shake_endpoint(
        &self,
        Service {
            name: service,
            trust_domain,
        }: &Service,
        (stream, alpn): (TcpStream, Alpn),
        deadline: Option<Instant>,
    ) -> Result<(Connection, Session), Failure> {
        let epoch = self.identities.epoch.load(Ordering::Acquire);
        let identity = self.identities.ready(trust_domain.as_deref())?;
        let limit = deadline.map_or(CONNECT_MAX, |deadline| {
            CONNECT_MAX.min(deadline.saturating_duration_since(Instant::now()))
        });
        // The verifier makes the SPIFFE ID of it.
        let name = verify::server_name(service).ok_or_else(|| {
            Failure::new(Reason::Internal, format!("`{service}` cannot be a server's name"))
        })?;
        let who = stream
            .peer_addr()
            .map_or_else(|_| "the endpoint".to_owned(), |address| address.to_string());
        let connect = TlsConnector::from(Arc::clone(identity.client(alpn))).connect(name, stream);
        let stream = tokio::time::timeout(limit, connect)
            .await
            .unwrap_or_else(|_| Err(too_slow(limit)))
            .map_err(|error| verify::failure(&error, &who))?;
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
        // The verifier has read all of it already; that it cannot be read here does not happen.
        let peer = chain.first().map(|shown| {
            let certificate = Certificate::read(shown)?;
            let whole = Shown::of(&certificate.spiffe_id()?, chain)?;
            Ok((
                whole,
                identity.anchors().end_of_endpoint(chain, SystemTime::now())?,
            ))
        });
        let unread = |problem: IdentityProblem| Failure::new(Reason::PeerWrongIdentity, problem.to_string());
        let session = match peer.transpose().map_err(unread)? {
            Some((whole, not_after)) => {
                let session = self.identities.session(&identity, not_after, epoch);
                let anchors = identity.anchors().of_endpoint(chain);
                session.of(self.identities.watch(whole, anchors))
            }
            None => {
                return Err(Failure::new(
                    Reason::PeerNoCertificate,
                    "the endpoint showed no certificate",
                ));
            }
        };
        Ok((Connection::new(stream, &session).cut_by(&session), session))
    }
}

fn too_slow(limit: Duration) -> io::Error {
    let words = format!("the handshake was not done within {} ms", limit.as_millis());
    io::Error::new(io::ErrorKind::TimedOut, words)
}

/// Who is at the other end of a caller's connection.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) id: SpiffeId,
    /// What the application is told of it, in the form of Envoy's `x-forwarded-client-cert`.
    pub(crate) forwarded: HeaderValue,
    pub(crate) session: Session,
    pub(crate) alpn: Alpn,
}

fn seconds(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
