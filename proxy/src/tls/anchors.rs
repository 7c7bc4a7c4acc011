//! Which of an identity's roots vouch for a chain, and until when: what lasts ends once none of them is trusted any more,
//! or the chain leads to none of them.
//!
//! rustls says that a chain leads to a root and not to which. Where there is one root there is nothing to find out; while
//! roots are exchanged there are two, and each is asked alone, once for each handshake.
//!
//! **Does not** decide whether a peer is let in: that is `verify`'s.

use std::sync::Arc;
use std::time::SystemTime;

use rustls::RootCertStore;
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::CryptoProvider;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls_pki_types::{CertificateDer, UnixTime};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::tls::identity::{IdentityProblem, sha256};
use crate::tls::span;

/// A root by its name and its key, which is all that is trusted of it (RFC 5280, section 6.1.1): one that is signed anew is
/// the same.
pub(super) type Anchor = Vec<u8>;

/// The roots of an identity, each alone.
#[derive(Debug)]
pub(super) struct Anchors {
    all: Box<[Anchor]>,
    /// How each is asked, in the same order; nothing where there is one.
    apart: Vec<Asked>,
    /// How all are.
    together: Asked,
    provider: Arc<CryptoProvider>,
}

/// Some of the roots, to be asked whether a chain leads to one of them.
#[derive(Debug)]
struct Asked {
    store: Arc<RootCertStore>,
    callers: Arc<dyn ClientCertVerifier>,
}

impl Anchors {
    /// Those of these certificates.
    pub(super) fn of(
        roots: &[&CertificateDer<'static>],
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, IdentityProblem> {
        let all = roots.iter().map(|root| anchor(root)).collect::<Result<_, _>>()?;
        let apart = match roots {
            [_] => Vec::new(),
            several => several
                .iter()
                .map(|root| Asked::of(&[root], provider))
                .collect::<Result<_, _>>()?,
        };
        Ok(Self {
            all,
            apart,
            together: Asked::of(roots, provider)?,
            provider: Arc::clone(provider),
        })
    }

    /// All of them.
    pub(super) fn all(&self) -> &[Anchor] {
        &self.all
    }

    /// Those that vouch for a caller's chain, which has been verified by all together.
    pub(super) fn of_caller(&self, chain: &[CertificateDer<'_>]) -> Box<[Anchor]> {
        self.which(|asked, at| asked.takes_caller(chain, at))
    }

    /// Those that vouch for an endpoint's.
    pub(super) fn of_endpoint(&self, chain: &[CertificateDer<'_>]) -> Box<[Anchor]> {
        self.which(|asked, at| asked.takes_endpoint(chain, at, &self.provider))
    }

    /// Until when a caller's chain is good, which is good now: in seconds since 1970.
    pub(super) fn end_of_caller(
        &self,
        chain: &[CertificateDer<'_>],
        now: SystemTime,
    ) -> Result<i64, IdentityProblem> {
        span::end_of(chain, now, |at| self.together.takes_caller(chain, at))
    }

    /// Until when an endpoint's is.
    pub(super) fn end_of_endpoint(
        &self,
        chain: &[CertificateDer<'_>],
        now: SystemTime,
    ) -> Result<i64, IdentityProblem> {
        span::end_of(chain, now, |at| {
            self.together.takes_endpoint(chain, at, &self.provider)
        })
    }

    fn which(&self, vouches: impl Fn(&Asked, UnixTime) -> bool) -> Box<[Anchor]> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now = UnixTime::since_unix_epoch(now.unwrap_or_default());
        let found: Box<[Anchor]> = self
            .apart
            .iter()
            .zip(&self.all)
            .filter(|(apart, _)| vouches(apart, now))
            .map(|(_, anchor)| anchor.clone())
            .collect();
        // Of one there is nothing to ask. That none of several vouches for what all together do is not to be expected; then
        // it stands for as long as one of them does.
        if found.is_empty() { self.all.clone() } else { found }
    }
}

impl Asked {
    fn of(
        roots: &[&CertificateDer<'static>],
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, IdentityProblem> {
        let mut store = RootCertStore::empty();
        for root in roots {
            store
                .add((*root).clone())
                .map_err(|error| IdentityProblem::BadCertificate(format!("a root: {error}")))?;
        }
        let store = Arc::new(store);
        let callers =
            WebPkiClientVerifier::builder_with_provider(Arc::clone(&store), Arc::clone(provider)).build();
        let callers = callers.map_err(|error| IdentityProblem::Unusable(error.to_string()))?;
        Ok(Self { store, callers })
    }

    fn takes_caller(&self, chain: &[CertificateDer<'_>], at: UnixTime) -> bool {
        chain
            .split_first()
            .is_some_and(|(first, rest)| self.callers.verify_client_cert(first, rest, at).is_ok())
    }

    fn takes_endpoint(&self, chain: &[CertificateDer<'_>], at: UnixTime, provider: &CryptoProvider) -> bool {
        let Some((first, rest)) = chain.split_first() else {
            return false;
        };
        let algorithms = provider.signature_verification_algorithms.all;
        ParsedCertificate::try_from(first).is_ok_and(|parsed| {
            verify_server_cert_signed_by_trust_anchor(&parsed, &self.store, rest, at, algorithms).is_ok()
        })
    }
}

fn anchor(der: &[u8]) -> Result<Anchor, IdentityProblem> {
    let (_, root) = X509Certificate::from_der(der)
        .map_err(|error| IdentityProblem::BadCertificate(format!("a root: {error}")))?;
    Ok(sha256(&[root.subject().as_raw(), root.public_key().raw].concat()))
}
