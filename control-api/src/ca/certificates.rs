//! The certificates that are alive: whose they are, and how their bearers came into the mesh.
//!
//! What one token let in, or what came of one certificate by renewals, is found here, to be revoked together.
//!
//! **Does not** issue or revoke. Calls block.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::{CaError, millis, rfc3339_of};
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
pub fn list(store: &Store, which: &Which, now: OffsetDateTime) -> Result<CertificateList, CaError> {
    let mut alive = store.leaves(millis(now))?;
    let joined = which.serial.as_ref().map(|serial| {
        let itself = alive.iter().find(|leaf| leaf.serial == *serial);
        // What has expired itself may be what others were joined with.
        itself.map_or_else(|| serial.clone(), |leaf| leaf.joined.clone())
    });
    let is = |wanted: &Option<String>, found: &String| wanted.as_ref().is_none_or(|wanted| wanted == found);
    alive.retain(|leaf| {
        is(&which.service, &leaf.service) && is(&which.token, &leaf.token) && is(&joined, &leaf.joined)
    });
    Ok(CertificateList {
        total: alive.len(),
        certificates: alive.into_iter().take(ANSWER_MAX).map(view).collect(),
    })
}

fn view(leaf: Leaf) -> CertificateView {
    CertificateView {
        expires: rfc3339_of(leaf.not_after_ms),
        serial: leaf.serial,
        service: leaf.service,
        joined: leaf.joined,
        token: leaf.token,
        root: leaf.root,
    }
}
