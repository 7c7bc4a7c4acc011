//! The certificate authority of the mesh: a root of its own or an intermediate that the operator gave, the tokens that
//! workloads join with, and the certificates that they are given.
//!
//! [`join::join`] is the journey of one request for a certificate; [`tokens`] makes and takes back what it is proved by;
//! [`rotation`] lets one root follow another, [`certificates`] finds what is alive, [`revoked`] what is not trusted any
//! more. Only the public key of a request is used: names, usages, lifetime and serial number are this module's, so that
//! nobody is called by a name that was not given to it.
//!
//! **Does not** know HTTP or TLS. Calls block, as the store's do.

mod authority;
pub mod certificates;
pub(crate) mod csr;
pub mod join;
pub(crate) mod limits;
pub(crate) mod random;
pub mod revoked;
mod roots;
pub mod rotation;
#[cfg(test)]
mod tests;
pub mod tokens;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use outrigger_config::join::{
    CONTROL_PATH, TRUST_DOMAIN_DEFAULT, fingerprint_text, spiffe_id, trust_domain_problem,
};
use outrigger_config::{MESH_KEY, Mesh, check, units};
use rcgen::{PublicKeyData, SanType};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::watch;

pub(crate) use self::authority::sha256;
use self::authority::{Authority, Signed, Wanted};
use self::limits::Limits;
use self::revoked::{MeshWords, OfMesh};
use self::roots::Roots;
pub(crate) use self::roots::Trusted;
use crate::store::ledger::{AuditRow, Deed, Ledger, Root, RootState};
use crate::store::{Head, Store, StoreError};

/// How long a certificate is good unless something else is said: long enough to outlive a night without the control API,
/// short enough that one that was stolen is soon of no use.
pub const CERTIFICATE_LIFE: units::Duration = units::Duration::from_secs(24 * 3600);

/// The shortest and the longest life of a certificate: renewing takes seconds; what is good for longer than a month needs
/// revocation more than renewal.
const CERTIFICATE_LIVES: std::ops::RangeInclusive<units::Duration> =
    units::Duration::from_secs(60)..=units::Duration::from_secs(30 * 24 * 3600);

/// What the operator says of the CA.
#[derive(Clone, Debug)]
pub struct Options {
    /// The trust domain, where the `Mesh` document names none.
    pub trust_domain: Option<String>,
    /// How long certificates are good: from a minute to 30 days.
    pub certificate_life: units::Duration,
    /// An intermediate that signs instead of a root of our own.
    pub given: Option<Given>,
    /// Certificates that lead to a root of the mesh are renewed even if this store did not issue them.
    pub adopt_unknown: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            trust_domain: None,
            certificate_life: CERTIFICATE_LIFE,
            given: None,
            adopt_unknown: false,
        }
    }
}

/// An intermediate that the operator gave.
#[derive(Clone, Debug)]
pub struct Given {
    /// The file of its certificate and all that lead to the root, the root last.
    pub certificates: PathBuf,
    /// The file of its key.
    pub key: PathBuf,
}

/// Why the CA does not start, or does not do what an operator asked.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// What the operator gave cannot sign.
    #[error("the CA that was given cannot be used:\n  {}", .0.join("\n  "))]
    Given(Vec<String>),
    /// The key of the root is gone.
    #[error(
        "the key of the mesh's root is not at {}: restore it from a backup; without it every sidecar has to join again \
         (move the folder of --data away to begin anew)",
        path.display()
    )]
    KeyMissing {
        /// Where it should be.
        path: PathBuf,
    },
    /// The key of a root cannot be read or written.
    #[error("the key of the CA at {}: {cause}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// What happened.
        cause: String,
    },
    /// What signed before is not there.
    #[error(
        "the mesh's certificates were signed by a CA that the operator gave: give it again with --ca-cert and --ca-key"
    )]
    GivenBefore,
    /// Another root while certificates of the first are alive.
    #[error(
        "--ca-cert leads to another root than the one that {alive} living certificates of this mesh were signed under: \
         sidecars would not know each other. Start once more when they have expired, by {until}, or give the same root"
    )]
    OtherRoot {
        /// How many.
        alive: usize,
        /// When the last of them expires.
        until: String,
    },
    /// What was asked for is not possible.
    #[error("{0}")]
    Wrong(String),
    /// There is nothing of that name.
    #[error("{0}")]
    Unknown(String),
    /// What was asked for cannot be done now.
    #[error("{0}")]
    NotNow(String),
    /// The library or the system's randomness failed.
    #[error("the CA could not sign: {0}")]
    Sign(String),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The CA of one store.
#[derive(Debug)]
pub struct Ca {
    options: Options,
    /// The folder of the keys.
    folder: PathBuf,
    /// What signs, and the number of its root: read from disk once.
    signs: RwLock<(u64, Arc<Authority>)>,
    /// Told whenever the set of roots has changed.
    changes: watch::Sender<()>,
    /// That set, as it is in the store.
    trusted: watch::Sender<Arc<Trusted>>,
    limits: Mutex<Limits>,
    of_mesh: OfMesh,
}

impl Ca {
    /// Opens the CA of a store, whose folder is `data`; at the first start its root is made.
    pub fn open(store: &Store, data: &Path, options: Options, now: OffsetDateTime) -> Result<Self, CaError> {
        hold_options(&options)?;
        let folder = data.join("ca");
        let ledger = store.ledger()?;
        let rows = ledger.roots()?;
        let active = rows.iter().find(|root| root.state == RootState::Active);
        let authority = match (&options.given, active) {
            (None, None) => {
                let (root, authority) = roots::make(&folder, 1, RootState::Active, now)?;
                add_root(&ledger, &root, "", now)?;
                authority
            }
            (None, Some(root)) if root.given => return Err(CaError::GivenBefore),
            (None, Some(root)) => roots::load(&folder, root)?,
            (Some(given), active) => {
                let domain = said_trust_domain(&ledger, &mesh(&store.head()), &options, now)?;
                take_given(&ledger, (given, &domain), active, now)?
            }
        };
        if let Some(wanted) = &options.trust_domain {
            hold_trust_domain(&ledger, wanted, now)?;
        }
        let rows = ledger.roots()?;
        let active = rows.iter().find(|root| root.state == RootState::Active);
        let ca = Self {
            options,
            folder,
            signs: RwLock::new((active.map_or(0, |root| root.number), Arc::new(authority))),
            changes: watch::Sender::new(()),
            trusted: watch::Sender::new(Arc::new(Trusted::of(&rows).map_err(CaError::Sign)?)),
            limits: Mutex::new(Limits::new()),
            of_mesh: OfMesh::default(),
        };
        ledger.commit()?;
        Ok(ca)
    }

    /// Says in the log what an operator compares: under which name and root this mesh stands. Gives the fingerprint of that
    /// root.
    pub(crate) fn announce(&self, store: &Store, now: OffsetDateTime) -> Result<[u8; 32], CaError> {
        let domain = self.trust_domain_now(store, now)?;
        let roots = self.roots(store)?;
        let until = rfc3339(roots.signs().not_after());
        let root = self.active_fingerprint(store)?;
        let fingerprint = fingerprint_text(&root);
        tracing::info!(
            trust_domain = domain,
            root = fingerprint,
            until,
            "the CA is ready"
        );
        if self.options.adopt_unknown {
            tracing::warn!(
                "certificates that this store did not issue are renewed (--adopt-unknown-certificates): start again without \
                 it once those that are younger than the backup have been renewed"
            );
        }
        if self
            .options
            .trust_domain
            .as_ref()
            .is_some_and(|wanted| *wanted != domain)
        {
            tracing::warn!(
                trust_domain = domain,
                "the Mesh document names another trust domain than --trust-domain; it counts"
            );
        }
        Ok(root)
    }

    /// The roots of these rows, with what signs.
    fn roots_of(&self, rows: Vec<Root>) -> Result<Roots, CaError> {
        let active = rows.iter().find(|root| root.state == RootState::Active);
        let active = active.ok_or_else(|| CaError::Sign("no root is active in the store".to_owned()))?;
        // What is in the lock is only ever replaced whole.
        let (number, signs) = self.signs.read().unwrap_or_else(PoisonError::into_inner).clone();
        if number == active.number {
            return Ok(Roots::new(active.clone(), rows, signs));
        }
        let signs = Arc::new(roots::load(&self.folder, active)?);
        *self.signs.write().unwrap_or_else(PoisonError::into_inner) = (active.number, signs.clone());
        Ok(Roots::new(active.clone(), rows, signs))
    }

    fn roots(&self, store: &Store) -> Result<Roots, CaError> {
        self.roots_of(store.roots()?)
    }

    /// Word of each change of the roots.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    /// The roots that are trusted, and word of each change of them, once it is so on disk.
    pub(crate) fn trusted(&self) -> watch::Receiver<Arc<Trusted>> {
        self.trusted.subscribe()
    }

    /// Tells of the roots as they are in the store, which somebody who has committed may have changed: `seen` is what it left
    /// there. Who waits is told of them in their order, whoever comes here first.
    fn tell_trusted(&self, store: &Store, seen: &Trusted) {
        if **self.trusted.borrow() == *seen {
            return;
        }
        self.trusted.send_if_modified(|told| {
            let rows = store.roots().map_err(|error| error.to_string());
            match rows.and_then(|rows| Trusted::of(&rows)) {
                Ok(now) if now == **told => false,
                Ok(now) => {
                    *told = Arc::new(now);
                    true
                }
                Err(error) => {
                    tracing::error!(error, "sidecars are not told at once that the roots have changed");
                    false
                }
            }
        });
    }

    fn limits(&self) -> MutexGuard<'_, Limits> {
        // Each change of it is whole before the next can panic.
        self.limits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn certificate_life(&self) -> time::Duration {
        time::Duration::try_from(self.options.certificate_life.0).unwrap_or(time::Duration::DAY)
    }

    /// All roots that are to be trusted; PEM.
    pub fn bundle(&self, store: &Store) -> Result<Vec<String>, CaError> {
        Ok(self.roots(store)?.bundle())
    }

    /// SHA-256 of the root that what signs now leads to.
    pub fn active_fingerprint(&self, store: &Store) -> Result<[u8; 32], CaError> {
        authority::fingerprint(&self.roots(store)?.active().certificate).map_err(CaError::Sign)
    }

    /// The trust domain: that of the certificates that are alive; else what the `Mesh` document says, what the operator
    /// said at the start, or the default.
    pub(crate) fn trust_domain(
        &self,
        store: &Store,
        ledger: &Ledger,
        now: OffsetDateTime,
    ) -> Result<String, StoreError> {
        said_trust_domain(ledger, &mesh(&store.head()), &self.options, now)
    }

    /// The same, without waiting for whoever writes to the store.
    pub(crate) fn trust_domain_now(&self, store: &Store, now: OffsetDateTime) -> Result<String, StoreError> {
        if let Some(fixed) = store.fixed_trust_domain(millis(now))? {
            return Ok(fixed);
        }
        let said = self.of_mesh.words(&store.head()).trust_domain.clone();
        Ok(said.unwrap_or_else(|| self.unsaid_trust_domain().to_owned()))
    }

    /// What the trust domain is where neither certificates nor the `Mesh` document say: what the operator said at the
    /// start, or the default.
    pub(crate) fn unsaid_trust_domain(&self) -> &str {
        self.options
            .trust_domain
            .as_deref()
            .unwrap_or(TRUST_DOMAIN_DEFAULT)
    }

    /// What the `Mesh` document of `head` says of identities.
    pub(crate) fn mesh_words(&self, head: &Head) -> Arc<MeshWords> {
        self.of_mesh.words(head)
    }

    /// A certificate for the control API itself, with these further names.
    pub(crate) fn sign_for_control(
        &self,
        store: &Store,
        key: &impl PublicKeyData,
        mut names: Vec<SanType>,
        now: OffsetDateTime,
    ) -> Result<Signed, CaError> {
        // It waits for whoever writes: word of a root that begins to sign comes before that is committed.
        let domain = self.trust_domain(store, &store.ledger()?, now)?;
        let roots = self.roots(store)?;
        let failed = |error: rcgen::Error| CaError::Sign(error.to_string());
        let uri = spiffe_id(&domain, CONTROL_PATH).try_into().map_err(failed)?;
        names.push(SanType::URI(uri));
        let wanted = Wanted {
            common_name: "outrigger control",
            names,
            life: self.certificate_life(),
        };
        let signed = roots.signs().sign(key, wanted, now);
        let mut signed = signed.map_err(|error| CaError::Sign(error.to_string()))?;
        // Whoever knows a root by its fingerprint alone has to be shown it. The way to the old root comes first: OpenSSL
        // follows the first issuer that fits, and at a root that it does not trust it does not turn back.
        signed.certificates.extend(self.old_ways(&roots, now));
        signed.certificates.push(roots.active().certificate.clone());
        Ok(signed)
    }

    /// What leads from the root that signs to one that is about to go, and that one: tokens and tools that know the API by
    /// the old root find their way until it is taken away.
    fn old_ways(&self, roots: &Roots, now: OffsetDateTime) -> Vec<String> {
        let mut ways = Vec::new();
        let retiring = |root: &&Root| root.state == RootState::Retiring;
        for root in roots.rows().iter().filter(retiring) {
            let vouched = roots::load(&self.folder, root)
                .map_err(|error| error.to_string())
                .and_then(|old| {
                    old.vouch_for(&roots.active().certificate, now)
                        .map_err(|error| error.to_string())
                });
            match vouched {
                Ok(way) => ways.extend([way, root.certificate.clone()]),
                // Without it, what knows the new root is served as well.
                Err(error) => {
                    tracing::warn!(
                        root = root.number,
                        error,
                        "the old root does not vouch for the new one; who knows \
                                   the API by the old one alone is not served"
                    );
                }
            }
        }
        ways
    }
}

/// What the `Mesh` document of these says, or what holds without one.
pub(crate) fn mesh(head: &Head) -> Mesh {
    let Some(stored) = head.documents.get(MESH_KEY) else {
        return Mesh::default();
    };
    // What is stored was checked before it was.
    let checked = check(std::slice::from_ref(&*stored.document));
    checked.map(|config| config.mesh).unwrap_or_default()
}

/// The trust domain that cannot be changed now, since certificates of it are alive.
pub(crate) fn fixed_trust_domain(ledger: &Ledger, now: OffsetDateTime) -> Result<Option<String>, StoreError> {
    if ledger.last_leaf(millis(now))?.is_none() {
        return Ok(None);
    }
    ledger.trust_domain()
}

/// The trust domain: of the certificates that are alive, else of the `Mesh` document, else of the options or by default.
fn said_trust_domain(
    ledger: &Ledger,
    mesh: &Mesh,
    options: &Options,
    now: OffsetDateTime,
) -> Result<String, StoreError> {
    if let Some(fixed) = fixed_trust_domain(ledger, now)? {
        return Ok(fixed);
    }
    let said = mesh.trust_domain.as_ref().or(options.trust_domain.as_ref());
    Ok(said.map_or_else(|| TRUST_DOMAIN_DEFAULT.to_owned(), Clone::clone))
}

/// Whether the trust domain that the operator wants now can be.
fn hold_trust_domain(ledger: &Ledger, wanted: &str, now: OffsetDateTime) -> Result<(), CaError> {
    match (fixed_trust_domain(ledger, now)?, ledger.last_leaf(millis(now))?) {
        (Some(fixed), Some(last)) if fixed != wanted => Err(CaError::Wrong(format!(
            "--trust-domain {wanted}: certificates of `{fixed}` are alive until {}, and sidecars of two trust domains do \
             not know each other. Leave the trust domain as it is, or begin with an empty --data and let every sidecar \
             join again",
            rfc3339_of(last.not_after_ms)
        ))),
        _ => Ok(()),
    }
}

fn hold_options(options: &Options) -> Result<(), CaError> {
    if let Some(problem) = options.trust_domain.as_deref().and_then(trust_domain_problem) {
        return Err(CaError::Wrong(format!("--trust-domain: {problem}")));
    }
    if !CERTIFICATE_LIVES.contains(&options.certificate_life) {
        let (shortest, longest) = (CERTIFICATE_LIVES.start(), CERTIFICATE_LIVES.end());
        return Err(CaError::Wrong(format!(
            "--certificate-ttl {}: expected {shortest} to {longest}",
            options.certificate_life
        )));
    }
    Ok(())
}

/// Takes in what the operator gave, in the place of the root that was active, if nobody depends on that.
fn take_given(
    ledger: &Ledger,
    (given, trust_domain): (&Given, &str),
    active: Option<&Root>,
    now: OffsetDateTime,
) -> Result<Authority, CaError> {
    let files = (given.certificates.as_path(), given.key.as_path());
    let authority = Authority::given(files, trust_domain, now).map_err(CaError::Given)?;
    let fingerprint = |certificate: &str| authority::fingerprint(certificate).map_err(CaError::Sign);
    let number = match active {
        Some(root) if fingerprint(&root.certificate)? == fingerprint(authority.root())? => {
            return Ok(authority);
        }
        Some(root) => {
            let alive = ledger.leaves(millis(now))?;
            if let Some(last) = alive.last() {
                return Err(CaError::OtherRoot {
                    alive: alive.len(),
                    until: rfc3339_of(last.not_after_ms),
                });
            }
            for root in ledger.roots()? {
                ledger.remove_root(root.number)?;
            }
            root.number + 1
        }
        None => 1,
    };
    let root = Root {
        number,
        state: RootState::Active,
        certificate: authority.root().to_owned(),
        given: true,
        since_ms: millis(now),
    };
    add_root(ledger, &root, "", now)?;
    Ok(authority)
}

/// Takes a root in. `author` is who asked for it; nobody at a start.
fn add_root(ledger: &Ledger, root: &Root, author: &str, now: OffsetDateTime) -> Result<(), CaError> {
    ledger.put_root(root)?;
    let mut row = AuditRow::of(Deed::RootAdded, rfc3339(now));
    author.clone_into(&mut row.who);
    row.serial = root.number.to_string();
    row.note = if root.given {
        "of the operator"
    } else {
        "made here"
    }
    .to_owned();
    Ok(ledger.audit(row)?)
}

/// Milliseconds since 1970.
pub(crate) fn millis(moment: OffsetDateTime) -> u64 {
    u64::try_from(moment.unix_timestamp_nanos() / 1_000_000).unwrap_or_default()
}

/// A moment as it stands in answers.
pub(crate) fn rfc3339(moment: OffsetDateTime) -> String {
    let whole = moment.replace_nanosecond(0).unwrap_or(moment);
    whole.format(&Rfc3339).unwrap_or_default()
}

fn rfc3339_of(millis: u64) -> String {
    let moment = OffsetDateTime::from_unix_timestamp_nanos(i128::from(millis) * 1_000_000);
    moment.map(rfc3339).unwrap_or_default()
}
