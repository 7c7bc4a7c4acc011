//! The certificates that are alive: whose they are, and how their bearers came into the mesh.
//!
//! What one token let in, or what came of one certificate by renewals, is found here, to be revoked together.
//!
//! **Does not** issue or revoke. Calls block.

use std::collections::HashSet;

use outrigger_config::join::spiffe_id;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::revoked::digits;
use super::{Ca, CaError, millis, rfc3339_of};
use crate::store::Store;
use crate::store::ledger::Leaf;

/// Certificates in one answer: as many as the `Mesh` document may revoke.
pub const ANSWER_MAX: usize = 10_000;

/// Which certificates are meant; all of it must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Which {
    /// Those of this service.
    pub service: Option<String>,
    /// Those whose bearer joined by the token of this id.
    pub token: Option<String>,
    /// Those that came of the same join as the certificate of this serial number.
    pub serial: Option<String>,
}

/// A certificate as it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateView {
    /// Its serial number in hexadecimal.
    pub serial: String,
    /// Whose it is.
    pub service: String,
    /// When it expires (RFC 3339).
    pub expires: String,
    /// The serial number of the certificate that its bearer joined with.
    pub joined: String,
    /// The id of the token that its bearer joined by.
    pub token: String,
    /// The number of the root that it leads to.
    pub root: u64,
    /// What is not trusted any more of it and of how its bearer came in, if anything.
    #[serde(default)]
    pub revoked: Vec<Mark>,
}

/// What of a certificate is revoked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mark {
    /// Itself, by its serial number.
    Serial,
    /// The one that its bearer joined with: it is renewed no more.
    Join,
    /// Its SPIFFE ID.
    Identity,
    /// The token that its bearer joined by was taken back: nobody else joins by it. The certificate is as good as before.
    Token,
}

impl Mark {
    /// The word for it, the same as on the wire.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Serial => "serial",
            Self::Join => "join",
            Self::Identity => "identity",
            Self::Token => "token",
        }
    }
}

/// The certificates that were asked for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CertificateList {
    /// How many there are.
    pub total: usize,
    /// Of those the first [`ANSWER_MAX`], the first to expire first.
    pub certificates: Vec<CertificateView>,
}

/// The certificates that are alive and meant.
pub fn list(ca: &Ca, store: &Store, which: &Which, now: OffsetDateTime) -> Result<CertificateList, CaError> {
    let mut alive = store.leaves(millis(now))?;
    let joined = which.serial.as_ref().map(|serial| {
        let serial = digits(serial);
        let itself = alive.iter().find(|leaf| digits(&leaf.serial) == serial);
        // What has expired itself may be what others were joined with.
        itself.map_or(serial, |leaf| digits(&leaf.joined))
    });
    let is = |wanted: &Option<String>, found: &String| wanted.as_ref().is_none_or(|wanted| wanted == found);
    alive.retain(|leaf| {
        is(&which.service, &leaf.service)
            && is(&which.token, &leaf.token)
            && is(&joined, &digits(&leaf.joined))
    });
    let domain = ca.trust_domain_now(store, now)?;
    let words = ca.mesh_words(&store.head());
    let taken_back: HashSet<String> = store
        .tokens()?
        .into_iter()
        .filter(|token| token.revoked)
        .map(|token| token.id)
        .collect();
    let marks = |leaf: &Leaf| {
        let revoked = &words.revoked;
        [
            (Mark::Serial, revoked.has_serial(&leaf.serial)),
            (Mark::Join, revoked.has_serial(&leaf.joined)),
            (
                Mark::Identity,
                revoked.has_identity(&spiffe_id(&domain, &leaf.service)),
            ),
            (Mark::Token, taken_back.contains(&leaf.token)),
        ]
        .into_iter()
        .filter_map(|(mark, is_so)| is_so.then_some(mark))
        .collect()
    };
    let total = alive.len();
    alive.truncate(ANSWER_MAX);
    let views = alive.into_iter().map(|leaf| view(marks(&leaf), leaf));
    Ok(CertificateList {
        total,
        certificates: views.collect(),
    })
}

fn view(revoked: Vec<Mark>, leaf: Leaf) -> CertificateView {
    CertificateView {
        revoked,
        expires: rfc3339_of(leaf.not_after_ms),
        serial: leaf.serial,
        service: leaf.service,
        joined: leaf.joined,
        token: leaf.token,
        root: leaf.root,
    }
}
