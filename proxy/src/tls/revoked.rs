//! What the mesh has revoked: who is refused in handshakes for it, and how a connection that lives learns of it.
//!
//! `Denied` is what one configuration says, compiled; [`Revocations`] holds the one in force, with one writer, `apply`, and
//! counts how often it changed. A connection keeps a `Watch` on who is at its other end, which compares that count and
//! looks again only when it moved. Connections are ended by whoever serves them, not here.
//!
//! Serial numbers are compared alone, whoever issued the certificate: a CA makes them of random bits (the baseline of the
//! CA/Browser Forum, and our CA), so that two are never the same by chance.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use arc_swap::ArcSwap;
use outrigger_config::identity::SpiffeId;
use outrigger_config::join::Revoked;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::sync::watch;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::error::{Failure, Reason};
use crate::tls::anchors::Anchor;
use crate::tls::identity::{Certificate, IdentityProblem};

/// What a configuration denies, ready to be looked up.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Denied {
    /// As [`digits`] writes them.
    serials: HashSet<String>,
    identities: HashSet<String>,
}

impl Denied {
    /// What is said, which has been checked.
    pub(crate) fn of(said: Option<&Revoked>) -> Self {
        let Some(said) = said else {
            return Self::default();
        };
        Self {
            serials: said.serials.iter().map(|serial| trimmed(serial)).collect(),
            identities: said.identities.iter().cloned().collect(),
        }
    }

    /// How many serial numbers, and how many identities.
    pub(crate) fn counts(&self) -> (usize, usize) {
        (self.serials.len(), self.identities.len())
    }

    fn is_empty(&self) -> bool {
        self.counts() == (0, 0)
    }

    /// Why somebody is denied, if it is.
    fn why(&self, shown: &Shown) -> Option<String> {
        let Shown { id, serials } = shown;
        if self.identities.contains(&**id) {
            return Some(format!("the identity {id} is revoked"));
        }
        let serial = serials.iter().find(|serial| self.serials.contains(*serial))?;
        let of = match serials.first() {
            Some(own) if own == serial => "the certificate",
            _ => "a certificate that vouches for the one",
        };
        Some(format!("{of} of {id} is revoked: its serial is {serial}"))
    }
}

/// A serial number as `outrigger audit` shows it and a configuration names it: in hexadecimal, lower case, without the zeros
/// that DER puts before a number whose first bit is set, or a person before any.
pub(super) fn digits(serial: &[u8]) -> String {
    let mut text = String::with_capacity(serial.len() * 2);
    for byte in serial {
        let _ = write!(text, "{byte:02x}");
    }
    trimmed(&text)
}

fn trimmed(serial: &str) -> String {
    match serial.trim_start_matches('0') {
        "" => "0".to_owned(),
        digits => digits.to_owned(),
    }
}

/// Who has shown a chain of certificates.
#[derive(Debug)]
pub(super) struct Shown {
    id: Box<str>,
    /// Of each certificate, its own first. The root stands in nobody's chain: whom it vouches for is not revoked but no
    /// longer trusted, once it is gone from the roots.
    serials: Box<[String]>,
}

impl Shown {
    /// The one of this name, by the whole chain that it showed: whoever sends a certificate that is revoked is not helped
    /// by another way to the root.
    pub(super) fn of<'a>(
        id: &SpiffeId,
        chain: impl IntoIterator<Item = &'a CertificateDer<'a>>,
    ) -> Result<Self, IdentityProblem> {
        let serials: Result<_, _> = chain.into_iter().map(|certificate| serial(certificate)).collect();
        Ok(Self {
            id: id.as_str().into(),
            serials: serials?,
        })
    }
}

fn serial(der: &[u8]) -> Result<String, IdentityProblem> {
    let read = X509Certificate::from_der(der);
    let (_, certificate) = read.map_err(|error| IdentityProblem::BadCertificate(error.to_string()))?;
    Ok(digits(certificate.raw_serial()))
}

/// What is denied now, as it changes.
#[derive(Debug)]
pub struct Revocations {
    denied: ArcSwap<Denied>,
    /// Counted up when another list is in force; at first 1, so that no connection has looked yet.
    revision: AtomicU64,
    /// The roots of the identity that serves, by whose going tunnels end too.
    trusted: ArcSwap<Box<[Anchor]>>,
    /// Wakes tunnels, which nothing else may.
    changes: watch::Sender<()>,
    /// When a refusal was last written to the log, in seconds since `began`.
    told: AtomicU64,
    began: Instant,
}

impl Default for Revocations {
    fn default() -> Self {
        Self {
            denied: ArcSwap::default(),
            revision: AtomicU64::new(1),
            trusted: ArcSwap::default(),
            changes: watch::Sender::new(()),
            told: AtomicU64::new(0),
            began: Instant::now(),
        }
    }
}

impl Revocations {
    /// This is in force from now on. Whether it is another than before.
    pub(super) fn put(&self, denied: &Arc<Denied>) -> bool {
        if **self.denied.load() == **denied {
            return false;
        }
        self.denied.store(Arc::clone(denied));
        // Tunnels first: they look at the list itself, and end with their reason before a read or a write of theirs fails
        // by the count.
        self.changes.send_replace(());
        self.revision.fetch_add(1, Ordering::Release);
        true
    }

    /// These are the roots that are trusted from now on.
    pub(super) fn trust(&self, anchors: &[Anchor]) {
        if ***self.trusted.load() != *anchors {
            self.trusted.store(Arc::new(anchors.into()));
            self.changes.send_replace(());
        }
    }

    /// How many serial numbers and how many identities are denied.
    pub(super) fn counts(&self) -> (usize, usize) {
        self.denied.load().counts()
    }

    /// Why somebody is denied now, if it is.
    pub(super) fn why(&self, shown: &Shown) -> Option<String> {
        self.denied.load().why(shown)
    }

    /// Refuses who is denied, in a handshake whose chain has been verified.
    fn hold(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
    ) -> Result<(), Error> {
        if self.denied.load().is_empty() {
            return Ok(());
        }
        let chain = std::iter::once(end_entity).chain(intermediates);
        let shown = Certificate::read(end_entity)
            .and_then(|certificate| certificate.spiffe_id())
            .and_then(|id| Shown::of(&id, chain));
        // What cannot be read cannot be found either, and is not let in for it.
        let shown = shown.map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))?;
        let Some(why) = self.why(&shown) else {
            return Ok(());
        };
        // The error has no words of its own, and it must be this one for the alert to be certificate_revoked (RFC 8446
        // section 6.2). So it is told here, at most once a second: whoever is refused can come as often as it likes.
        let now = self.began.elapsed().as_secs() + 1;
        if self.told.swap(now, Ordering::Relaxed) != now {
            tracing::warn!(spiffe_id = &*shown.id, why, "a peer that is revoked was refused");
        }
        Err(Error::InvalidCertificate(CertificateError::Revoked))
    }
}

/// Verifies as another does, and refuses who is revoked. Our own chain is looked at by that other one: being revoked is
/// for others to hold against us.
#[derive(Debug)]
pub(super) struct Unrevoked<V: ?Sized> {
    verifier: Arc<V>,
    revocations: Arc<Revocations>,
}

impl<V: ?Sized> Unrevoked<V> {
    pub(super) fn of(verifier: Arc<V>, revocations: &Arc<Revocations>) -> Self {
        let revocations = Arc::clone(revocations);
        Self {
            verifier,
            revocations,
        }
    }
}

impl ServerCertVerifier for Unrevoked<dyn ServerCertVerifier> {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified =
            self.verifier
                .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)?;
        self.revocations.hold(end_entity, intermediates)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}

impl ClientCertVerifier for Unrevoked<dyn ClientCertVerifier> {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.verifier.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.verifier.verify_client_cert(end_entity, intermediates, now)?;
        self.revocations.hold(end_entity, intermediates)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}

/// Whether the other end of a connection has been revoked since.
#[derive(Clone, Debug)]
pub(super) struct Watch(Arc<Watched>);

#[derive(Debug)]
struct Watched {
    revocations: Arc<Revocations>,
    shown: Shown,
    /// The roots that vouched for it in the handshake.
    anchors: Box<[Anchor]>,
    /// What the last look found, in the lowest bit, and above it the revision that it looked at.
    seen: AtomicU64,
}

impl Watch {
    pub(super) fn new(revocations: &Arc<Revocations>, shown: Shown, anchors: Box<[Anchor]>) -> Self {
        Self(Arc::new(Watched {
            revocations: Arc::clone(revocations),
            shown,
            anchors,
            seen: AtomicU64::new(0),
        }))
    }

    /// Asked for every request: two loads, as long as nothing has changed.
    pub(super) fn is_revoked(&self) -> bool {
        let Watched {
            revocations,
            shown,
            seen,
            ..
        } = &*self.0;
        // The list that is loaded after the count is the one that was counted, or a later one, which is then looked at twice.
        let revision = revocations.revision.load(Ordering::Acquire);
        let before = seen.load(Ordering::Relaxed);
        if before >> 1 == revision {
            return before & 1 == 1;
        }
        let revoked = revocations.why(shown).is_some();
        seen.store(revision << 1 | u64::from(revoked), Ordering::Relaxed);
        revoked
    }

    /// In words, for the log.
    pub(super) fn why(&self) -> String {
        let why = self.0.revocations.why(&self.0.shown);
        // It may have been taken back at this very moment.
        why.unwrap_or_else(|| format!("{} was revoked", self.0.shown.id))
    }

    /// Ready when a tunnel to it is to be cut, with why: it is revoked, or none of the roots that vouched for it is trusted
    /// any more.
    pub(super) async fn cut(&self) -> Failure {
        let Watched {
            revocations,
            shown,
            anchors,
            ..
        } = &*self.0;
        let mut changes = revocations.changes.subscribe();
        loop {
            if let Some(why) = revocations.why(shown) {
                return Failure::new(Reason::PeerRevoked, why);
            }
            let trusted = revocations.trusted.load_full();
            if !anchors.iter().any(|anchor| trusted.contains(anchor)) {
                let why = format!("the root that vouched for {} is trusted no more", shown.id);
                return Failure::new(Reason::PeerUntrusted, why);
            }
            if changes.changed().await.is_err() {
                // Whoever sends lives as long as what this holds.
                std::future::pending::<()>().await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn denied(serials: &[&str], identities: &[&str]) -> Arc<Denied> {
        let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        Arc::new(Denied::of(Some(&Revoked {
            serials: owned(serials),
            identities: owned(identities),
        })))
    }

    fn shown(serials: &[&[u8]]) -> Shown {
        Shown {
            id: "spiffe://shop/reviews".into(),
            serials: serials.iter().map(|serial| digits(serial)).collect(),
        }
    }

    #[test]
    fn serials_are_compared_without_the_zeros_before_them() {
        let found = |serial: &str, bytes: &[u8]| denied(&[serial], &[]).why(&shown(&[bytes])).is_some();
        for (serial, bytes, expected) in [
            ("4f1c", &[0x4f, 0x1c][..], true),
            // DER puts a zero before a number whose first bit is set.
            ("9f1c", &[0x00, 0x9f, 0x1c], true),
            ("009f1c", &[0x00, 0x9f, 0x1c], true),
            ("f1c", &[0x0f, 0x1c], true),
            ("0f1c", &[0x0f, 0x1c], true),
            ("f1c0", &[0x0f, 0x1c], false),
            ("4f", &[0x4f, 0x1c], false),
            ("0", &[0x00], true),
            ("00", &[], true),
            ("1", &[0x00], false),
        ] {
            assert_eq!(found(serial, bytes), expected, "{serial} {bytes:x?}");
        }
        assert_eq!(digits(&[0x00, 0x9f, 0x0a]), "9f0a");
    }

    #[test]
    fn the_words_say_which_of_the_three_it_is() {
        let chain: [&[u8]; 2] = [&[0x12], &[0x34]];
        for (denied, expected) in [
            (
                denied(&[], &["spiffe://shop/reviews"]),
                Some("the identity spiffe://shop/reviews is revoked"),
            ),
            (
                denied(&["12"], &[]),
                Some("the certificate of spiffe://shop/reviews is revoked: its serial is 12"),
            ),
            (
                denied(&["34"], &[]),
                Some(
                    "a certificate that vouches for the one of spiffe://shop/reviews is revoked: its serial is 34",
                ),
            ),
            (denied(&["1234"], &["spiffe://shop/review"]), None),
        ] {
            assert_eq!(denied.why(&shown(&chain)).as_deref(), expected);
        }
    }

    #[test]
    fn a_connection_looks_again_only_when_the_list_has_changed_and_sees_both_ways() {
        let revocations = Arc::new(Revocations::default());
        let watch = Watch::new(&revocations, shown(&[&[0x12]]), Box::default());
        let seen = || watch.0.seen.load(Ordering::Relaxed) >> 1;
        assert_eq!((seen(), watch.is_revoked(), seen()), (0, false, 1));
        assert!(!revocations.put(&denied(&[], &[])), "the same list is no change");
        assert!(revocations.put(&denied(&["34"], &[])));
        assert_eq!((seen(), watch.is_revoked(), seen()), (1, false, 2));
        assert!(revocations.put(&denied(&["12"], &[])));
        assert_eq!((watch.is_revoked(), watch.is_revoked()), (true, true));
        assert!(revocations.put(&denied(&[], &[])));
        assert!(!watch.is_revoked());
    }

    #[tokio::test]
    async fn who_waits_is_woken_by_the_list_that_denies_it_or_the_root_that_goes_and_by_no_other() {
        let revocations = Arc::new(Revocations::default());
        let root = |number: u8| vec![number];
        revocations.trust(&[root(1), root(2)]);
        let watch = Watch::new(&revocations, shown(&[&[0x12]]), Box::new([root(1)]));
        let mut waiting = polled(watch.cut());
        assert!(waiting.poll().is_none());
        revocations.put(&denied(&["34"], &[]));
        assert!(waiting.poll().is_none());
        revocations.put(&denied(&["12"], &[]));
        assert_eq!(waiting.poll().unwrap().reason, Reason::PeerRevoked);
        // And one who comes afterwards need not wait.
        assert!(polled(watch.cut()).poll().is_some());
        revocations.put(&denied(&[], &[]));
        let mut waiting = polled(watch.cut());
        assert!(waiting.poll().is_none());
        revocations.trust(&[root(1)]);
        assert!(waiting.poll().is_none());
        revocations.trust(&[root(2)]);
        assert_eq!(waiting.poll().unwrap().reason, Reason::PeerUntrusted);
    }

    /// A future that is polled by hand.
    struct Polled<F>(std::pin::Pin<Box<F>>);

    fn polled<F: Future>(future: F) -> Polled<F> {
        Polled(Box::pin(future))
    }

    impl<F: Future> Polled<F> {
        fn poll(&mut self) -> Option<F::Output> {
            let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
            match self.0.as_mut().poll(&mut cx) {
                std::task::Poll::Ready(done) => Some(done),
                std::task::Poll::Pending => None,
            }
        }
    }
}
