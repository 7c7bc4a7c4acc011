//! What a push does to what is revoked. `outrigger revoke` writes it into the `Mesh` document, which also comes from a file
//! of the operator's: a push of that file as it was must not let in again what was shut out an hour ago.
//!
//! **Does not** enforce what is revoked: the CA does when certificates are renewed.

use outrigger_config::{Document, MESH_KEY, Mesh, Problem};
use time::OffsetDateTime;

use super::PushError;
use crate::ca::{millis, rfc3339};
use crate::store::ledger::{AuditRow, Deed};
use crate::store::{Head, Store, StoreError};

/// As many names as one row of the audit log tells: who revokes more does it by a token or an identity, and the versions
/// of the document hold all of them.
const TOLD_MAX: usize = 20;

/// The difference that a push makes to what is revoked.
pub(super) struct Revocations {
    added: Vec<String>,
    serials_gone: Vec<String>,
    identities_gone: Vec<String>,
}

impl Revocations {
    pub(super) fn between(before: &Mesh, after: &Mesh) -> Self {
        let before = before.revoked.clone().unwrap_or_default();
        let after = after.revoked.clone().unwrap_or_default();
        let mut added = without(&after.serials, &before.serials);
        added.extend(without(&after.identities, &before.identities));
        Self {
            added,
            serials_gone: without(&before.serials, &after.serials),
            identities_gone: without(&before.identities, &after.identities),
        }
    }

    /// Refuses to trust again what could be used again: an identity, or a certificate that is alive or that one was renewed
    /// from. What has expired may go.
    pub(super) fn hold(
        &self,
        store: &Store,
        head: &Head,
        whole: &[Document],
        now: OffsetDateTime,
    ) -> Result<(), PushError> {
        let mut back = self.identities_gone.clone();
        if !self.serials_gone.is_empty() {
            let alive = store.leaves(millis(now))?;
            let of_use = |serial: &&String| {
                let known = |own: &String| own == *serial;
                alive
                    .iter()
                    .any(|leaf| known(&leaf.serial) || known(&leaf.joined))
            };
            back.extend(self.serials_gone.iter().filter(of_use).cloned());
        }
        let Some(first) = back.first() else {
            return Ok(());
        };
        let message = format!(
            "the push would trust again what is revoked, {} in all, such as `{first}`: keep it, as `outrigger get @mesh` \
             shows it, or take it back with `outrigger revoke --undo`",
            back.len()
        );
        let pushed = whole.iter().find(|document| document.key() == MESH_KEY);
        let stored = head.documents.get(MESH_KEY).map(|stored| &*stored.document);
        let (file, line) = pushed.or(stored).map_or((String::new(), 1), |document| {
            let within = document.text.lines().position(|line| line.starts_with("revoked"));
            (document.file.clone(), document.line + within.unwrap_or_default())
        });
        Err(PushError::Refused(vec![Problem {
            file,
            line,
            column: 1,
            path: "revoked".to_owned(),
            message,
        }]))
    }

    /// Writes into the audit log what was revoked and what is trusted again.
    pub(super) fn note(&self, store: &Store, author: &str, now: OffsetDateTime) -> Result<(), StoreError> {
        let gone = [self.serials_gone.as_slice(), &self.identities_gone].concat();
        let ledger = store.ledger()?;
        for (deed, names) in [(Deed::Revoked, &self.added), (Deed::Restored, &gone)] {
            if names.is_empty() {
                continue;
            }
            let mut row = AuditRow::of(deed, rfc3339(now));
            author.clone_into(&mut row.who);
            row.note = told(names);
            ledger.audit(row)?;
        }
        ledger.commit()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.added.is_empty() && self.serials_gone.is_empty() && self.identities_gone.is_empty()
    }
}

fn without(these: &[String], those: &[String]) -> Vec<String> {
    let those: std::collections::HashSet<&String> = those.iter().collect();
    these.iter().filter(|one| !those.contains(one)).cloned().collect()
}

fn told(names: &[String]) -> String {
    let first = names.get(..TOLD_MAX).unwrap_or(names);
    match names.len() - first.len() {
        0 => first.join(" "),
        more => format!("{} and {more} more", first.join(" ")),
    }
}
