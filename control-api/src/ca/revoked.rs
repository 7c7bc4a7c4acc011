//! What the mesh has revoked, ready to be looked up: a certificate by its serial number, a workload by its SPIFFE ID.
//!
//! Serial numbers are compared as sidecars do, in lower case and without the zeros before them: DER puts one before a
//! number whose first bit is set, and a person may before any.
//!
//! **Does not** keep it: it stands in the `Mesh` document, and `push` holds it there.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use outrigger_config::MESH_KEY;
use outrigger_config::join::Revoked;

use super::mesh;
use crate::store::Head;

/// What is revoked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RevokedSet {
    serials: HashSet<String>,
    identities: HashSet<String>,
}

impl RevokedSet {
    /// What is said, which has been checked.
    pub fn of(said: Option<&Revoked>) -> Self {
        let Some(said) = said else {
            return Self::default();
        };
        Self {
            serials: said.serials.iter().map(|serial| digits(serial)).collect(),
            identities: said.identities.iter().cloned().collect(),
        }
    }

    /// Whether the certificate of this serial number is.
    pub fn has_serial(&self, serial: &str) -> bool {
        !serial.is_empty() && self.serials.contains(&digits(serial))
    }

    /// Whether every certificate of this name is.
    pub fn has_identity(&self, spiffe_id: &str) -> bool {
        self.identities.contains(spiffe_id)
    }
}

/// What the `Mesh` document says of identities.
#[derive(Debug, Default)]
pub(crate) struct MeshWords {
    /// The trust domain, if it names one.
    pub(crate) trust_domain: Option<String>,
    /// What it revokes.
    pub(crate) revoked: RevokedSet,
}

/// What the `Mesh` document says, read once for each of its versions: it may revoke ten thousand, and every poll asks.
#[derive(Debug, Default)]
pub(super) struct OfMesh(Mutex<(u64, Arc<MeshWords>)>);

impl OfMesh {
    /// What that of `head` says.
    pub(super) fn words(&self, head: &Head) -> Arc<MeshWords> {
        // Without a document nothing is said, as at first.
        let version = head.documents.get(MESH_KEY).map_or(0, |stored| stored.version);
        // What is in the lock is only ever replaced whole.
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.0 != version {
            let mesh = mesh(head);
            let words = MeshWords {
                revoked: RevokedSet::of(mesh.revoked.as_ref()),
                trust_domain: mesh.trust_domain,
            };
            *known = (version, Arc::new(words));
        }
        known.1.clone()
    }
}

/// A serial number in the one form in which it is compared.
pub(crate) fn digits(serial: &str) -> String {
    serial.trim_start_matches('0').to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_serial_is_the_same_with_and_without_the_zeros_before_it_and_in_any_case() {
        let revoked = RevokedSet::of(Some(&Revoked {
            serials: vec!["00aB12".to_owned()],
            identities: vec!["spiffe://shop/reviews".to_owned()],
        }));
        for serial in ["ab12", "00ab12", "0AB12"] {
            assert!(revoked.has_serial(serial), "{serial}");
        }
        for serial in ["", "ab1", "ab120"] {
            assert!(!revoked.has_serial(serial), "{serial}");
        }
        assert!(revoked.has_identity("spiffe://shop/reviews"));
        assert!(!revoked.has_identity("spiffe://shop/ratings") && !revoked.has_identity(""));
        assert_eq!(RevokedSet::of(None), RevokedSet::default());
    }
}
