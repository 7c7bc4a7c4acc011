//! The roots of the mesh as they are now: which of them signs, and all that are to be trusted.
//!
//! **Does not** change: another set takes its place when a root is added, begins to sign, or goes.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::digest::{Context, SHA256};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType};
use time::OffsetDateTime;

use super::authority::{Authority, SignError, Signed, Wanted, fingerprint};
use super::{CaError, millis};
use crate::secrets;
use crate::store::ledger::{Root, RootState};

/// The roots, oldest first, and what signs.
#[derive(Clone, Debug)]
pub(super) struct Roots {
    rows: Vec<Root>,
    active: Root,
    signs: Arc<Authority>,
}

/// Which roots are trusted, without their certificates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Trusted {
    /// One word for all of it, and for which of them signs: it is another whenever a sidecar has to hear of it.
    pub(crate) name: String,
    /// SHA-256 of each.
    fingerprints: Vec<[u8; 32]>,
}

impl Trusted {
    pub(super) fn of(rows: &[Root]) -> Result<Self, String> {
        let mut all = Context::new(&SHA256);
        let mut fingerprints = Vec::new();
        for root in rows {
            let one = fingerprint(&root.certificate)?;
            all.update(&one);
            all.update(&[u8::from(root.state == RootState::Active)]);
            fingerprints.push(one);
        }
        // It is compared, and proves nothing: half of it is enough.
        let name = URL_SAFE_NO_PAD.encode(&all.finish().as_ref()[..16]);
        Ok(Self { name, fingerprints })
    }

    /// Whether one of these, by SHA-256, is still among them.
    pub(crate) fn has_any(&self, roots: &[[u8; 32]]) -> bool {
        roots.iter().any(|root| self.fingerprints.contains(root))
    }
}

impl Roots {
    /// The set of these rows, of which the active one signs by `signs`.
    pub(super) const fn new(active: Root, rows: Vec<Root>, signs: Arc<Authority>) -> Self {
        Self { rows, active, signs }
    }

    pub(super) fn rows(&self) -> &[Root] {
        &self.rows
    }

    pub(super) const fn active(&self) -> &Root {
        &self.active
    }

    pub(super) fn next(&self) -> Option<&Root> {
        self.rows.iter().find(|root| root.state == RootState::Next)
    }

    /// The number of the newest root.
    pub(super) fn newest(&self) -> u64 {
        self.rows.iter().map(|root| root.number).max().unwrap_or_default()
    }

    pub(super) const fn signs(&self) -> &Arc<Authority> {
        &self.signs
    }

    /// All that are to be trusted; PEM.
    pub(super) fn bundle(&self) -> Vec<String> {
        self.rows.iter().map(|root| root.certificate.clone()).collect()
    }

    /// The same, without the certificates.
    pub(super) fn trusted(&self) -> Result<Trusted, CaError> {
        Trusted::of(&self.rows).map_err(CaError::Sign)
    }

    /// Signs for a workload.
    pub(super) fn sign_for(
        &self,
        key: &impl PublicKeyData,
        common_name: &str,
        spiffe_id: &str,
        life: time::Duration,
        now: OffsetDateTime,
    ) -> Result<Signed, SignError> {
        let uri = spiffe_id.try_into().map(SanType::URI)?;
        let names = vec![uri];
        self.signs.sign(
            key,
            Wanted {
                common_name,
                names,
                life,
            },
            now,
        )
    }
}

/// Makes a root of our own, its key in a file first: a key whose certificate was not stored yet is found again.
pub(super) fn make(
    folder: &Path,
    number: u64,
    state: RootState,
    now: OffsetDateTime,
) -> Result<(Root, Authority), CaError> {
    let path = key_path(folder, number);
    let key = if path.exists() {
        read_key(&path)?
    } else {
        make_key(folder, &path)?
    };
    let authority = Authority::new_root(key, now).map_err(|error| CaError::Sign(error.to_string()))?;
    let root = Root {
        number,
        state,
        certificate: authority.root().to_owned(),
        given: false,
        since_ms: millis(now),
    };
    Ok((root, authority))
}

/// What signs for a root of our own.
pub(super) fn load(folder: &Path, root: &Root) -> Result<Authority, CaError> {
    let path = key_path(folder, root.number);
    if !path.exists() {
        return Err(CaError::KeyMissing { path });
    }
    let key = read_key(&path)?;
    Authority::own(root.certificate.clone(), key).map_err(|cause| CaError::Key { path, cause })
}

/// Takes the key of a root away that is no longer trusted.
pub(super) fn remove_key(folder: &Path, number: u64) {
    let path = key_path(folder, number);
    match std::fs::remove_file(&path) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => {
            tracing::warn!(%error, path = %path.display(), "the key of a root that is no longer trusted cannot be removed");
        }
    }
}

fn key_path(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("root-{number}.key"))
}

fn read_key(path: &Path) -> Result<KeyPair, CaError> {
    let refused = |cause: String| CaError::Key {
        path: path.to_owned(),
        cause,
    };
    let text = secrets::read(path, "the key of the CA").map_err(|error| refused(error.to_string()))?;
    KeyPair::from_pem(&text).map_err(|error| refused(error.to_string()))
}

/// Makes a key and writes it whole or not at all, for its owner alone.
fn make_key(folder: &Path, path: &Path) -> Result<KeyPair, CaError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256);
    let key = key.map_err(|error| CaError::Sign(error.to_string()))?;
    let written = secrets::write(folder, path, key.serialize_pem().as_bytes());
    written.map_err(|error| CaError::Key {
        path: path.to_owned(),
        cause: error.to_string(),
    })?;
    Ok(key)
}
