//! The journey of one push: read, compare, merge, check, store. Whole or refused.
//!
//! **Does not** know HTTP, nor wait for sidecars: they learn of it from the store's change, and their answers are
//! in [`crate::nodes`]. Calls block, as the store's do.

mod revocations;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use outrigger_config::discovery::HAVE_MAX;
use outrigger_config::{Document, MESH_KEY, Mesh, Problem, check_within};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use self::revocations::Revocations;
use crate::ca::{self, fixed_trust_domain};
use crate::store::{Change, Head, Store, StoreError};

/// How many documents a mesh may hold: ten times the largest mesh that is planned for, and few enough that a push
/// is still checked as one whole in seconds. A poll can name as many.
pub const DOCUMENTS_MAX: usize = HAVE_MAX;

/// What is to be changed, by whom, on which condition.
#[derive(Clone, Debug)]
pub struct Push {
    /// Who pushes, for the history.
    pub author: String,
    /// What is to be changed.
    pub edit: Edit,
    /// Refuse if it changed since.
    pub unless_changed_since: Option<Since>,
    /// Answer as if, and store nothing.
    pub dry_run: bool,
    /// What is revoked may be trusted again by it.
    pub restore: bool,
    /// Of which trust domain the mesh is where nothing else says it: no certificate that is alive, no document.
    pub trust_domain: String,
}

/// What a push changes.
#[derive(Clone, Debug)]
pub enum Edit {
    /// These documents are new or replace those of the same key; others stay.
    Put(Vec<Document>),
    /// The document of this key goes.
    Delete(String),
}

/// The state that the pusher saw.
#[derive(Clone, Debug)]
pub enum Since {
    /// The whole store was at this version.
    Whole(String),
    /// The document of this key was at this version, or has not changed since it.
    Document(String, String),
}

/// Stands for any version, as long as there is one (RFC 9110, section 13.1.1).
const ANY: &str = "*";

/// What a push did, or with `dry_run` would do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// The version of the whole from now on.
    pub version: String,
    /// Keys that are new or different.
    pub changed: Vec<String>,
    /// Keys that were pushed and are the same as before.
    pub unchanged: Vec<String>,
    /// Keys that went.
    #[serde(default)]
    pub removed: Vec<String>,
    /// Nothing was stored: it was only asked what would happen.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
}

/// Why nothing was stored.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// The configuration would be wrong.
    #[error("the push was refused; problems found: {}", .0.len())]
    Refused(Vec<Problem>),
    /// There is nothing of that name to delete.
    #[error("there is no document `{0}`: `outrigger get` shows what there is")]
    Unknown(String),
    /// Someone else pushed in between.
    #[error("{what} is at version {is}, not {expected}: look at what changed, then push again")]
    Changed {
        /// What is at another version.
        what: String,
        /// Its version.
        is: String,
        /// The version that was expected.
        expected: String,
    },
    /// More than the mesh may hold.
    #[error("the mesh would hold {0} documents; at most {DOCUMENTS_MAX} are allowed")]
    TooMany(usize),
    /// The disk or the database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Merges `push` with what is stored, checks the whole, and stores it in one transaction.
pub fn push(store: &Store, push: Push) -> Result<Outcome, PushError> {
    let writer = store.writer();
    let head = writer.head();
    if let Some(since) = &push.unless_changed_since {
        since.hold(&head)?;
    }
    let whole = merge(&head, &push.edit)?;
    if whole.len() > DOCUMENTS_MAX {
        return Err(PushError::TooMany(whole.len()));
    }
    let now = OffsetDateTime::now_utc();
    let fixed = store.fixed_trust_domain(ca::millis(now))?;
    let trust_domain = fixed.as_ref().unwrap_or(&push.trust_domain);
    let config = check_within(trust_domain, &whole).map_err(PushError::Refused)?;
    hold_trust_domain(store, &config.mesh, &whole)?;
    let revocations = Revocations::between(&ca::mesh(&head), &config.mesh);
    if !push.restore {
        revocations.hold(store, &head, &whole, now)?;
    }
    let (changes, mut outcome) = compare(&head, push.edit);
    outcome.dry_run = push.dry_run;
    if changes.is_empty() {
        outcome.version = head.revision.to_string();
    } else if push.dry_run {
        outcome.version = (head.revision + 1).to_string();
    } else {
        let head = writer.commit(&push.author, changes)?;
        outcome.version = head.revision.to_string();
        tracing::info!(
            version = outcome.version,
            author = push.author,
            changed = outcome.changed.join(" "),
            removed = outcome.removed.join(" "),
            "push stored"
        );
        // The versions of the document tell it too, so that a row that cannot be written does not take the push back.
        if !revocations.is_empty()
            && let Err(error) = revocations.note(store, &push.author, now)
        {
            tracing::error!(%error, "what was revoked could not be written to the audit log");
        }
    }
    Ok(outcome)
}

/// Refuses another trust domain while certificates of the one before are alive: their sidecars and those that join
/// after would not know each other.
fn hold_trust_domain(store: &Store, mesh: &Mesh, whole: &[Document]) -> Result<(), PushError> {
    let document = whole.iter().find(|document| document.key() == MESH_KEY);
    let (Some(wanted), Some(document)) = (&mesh.trust_domain, document) else {
        return Ok(());
    };
    let fixed = fixed_trust_domain(&store.ledger()?, OffsetDateTime::now_utc())?;
    let Some(fixed) = fixed.filter(|fixed| fixed != wanted) else {
        return Ok(());
    };
    let lines = document
        .text
        .lines()
        .position(|line| line.starts_with("trust_domain"));
    Err(PushError::Refused(vec![Problem {
        file: document.file.clone(),
        line: document.line + lines.unwrap_or_default(),
        column: 1,
        path: "trust_domain".to_owned(),
        message: format!(
            "`{wanted}` would part the mesh: certificates of `{fixed}` are alive, and sidecars of two trust domains do not \
             know each other. Leave it as it is, or begin with an empty --data and let every sidecar join again"
        ),
    }]))
}

impl Since {
    /// Whether the state is still the one that the pusher saw.
    fn hold(&self, head: &Head) -> Result<(), PushError> {
        let (what, is, expected, holds) = match self {
            Self::Whole(expected) => {
                let is = head.revision.to_string();
                let holds = is == *expected || expected == ANY;
                ("the configuration".to_owned(), is, expected, holds)
            }
            Self::Document(key, expected) => {
                let version = head.documents.get(key).map(|stored| stored.version);
                // A later version of the whole says the same as long as this document did not change since.
                let unchanged = |version: u64| {
                    let seen = expected.parse::<u64>();
                    expected == ANY || seen.is_ok_and(|seen| (version..=head.revision).contains(&seen))
                };
                let holds = version.is_some_and(unchanged);
                let is = version.map_or_else(|| "none".to_owned(), |version| version.to_string());
                (format!("`{key}`"), is, expected, holds)
            }
        };
        if holds {
            return Ok(());
        }
        let expected = expected.clone();
        Err(PushError::Changed { what, is, expected })
    }
}

/// The whole configuration as it would be. A key that is pushed twice stays there twice, so that the check sees it.
fn merge(head: &Head, edit: &Edit) -> Result<Vec<Document>, PushError> {
    let replaced: BTreeSet<&str> = match edit {
        Edit::Put(documents) => documents.iter().map(Document::key).collect(),
        Edit::Delete(key) if !head.documents.contains_key(key) => {
            return Err(PushError::Unknown(key.clone()));
        }
        Edit::Delete(key) => BTreeSet::from([key.as_str()]),
    };
    let kept = head
        .documents
        .iter()
        .filter(|(key, _)| !replaced.contains(key.as_str()));
    let mut whole: Vec<Document> = kept
        .map(|(_, stored)| Document::clone(&stored.document))
        .collect();
    if let Edit::Put(documents) = edit {
        whole.extend(documents.iter().cloned());
    }
    Ok(whole)
}

/// What the store has to write. A document whose text is the same is unchanged, wherever it stands in its file.
fn compare(head: &Head, edit: Edit) -> (Vec<Change>, Outcome) {
    let mut changes = Vec::new();
    let mut outcome = Outcome::default();
    match edit {
        Edit::Delete(key) => {
            outcome.removed.push(key.clone());
            changes.push(Change::Delete(key));
        }
        Edit::Put(documents) => {
            for document in documents {
                let key = document.key().to_owned();
                let before = head.documents.get(&key);
                if before.is_some_and(|stored| stored.document.text == document.text) {
                    outcome.unchanged.push(key);
                } else {
                    outcome.changed.push(key);
                    changes.push(Change::Put(document));
                }
            }
        }
    }
    (changes, outcome)
}
