//! What a push does to what is revoked. `outrigger revoke` writes it into the `Mesh` document, which also comes from a file
//! of the operator's: a push of that file as it was must not let in again what was shut out an hour ago.
//!
//! Serial numbers are compared as sidecars do, whatever zeros stand before them. Which certificate one is about is kept when
//! it is revoked, since the store forgets certificates when they expire; of one that it never knew, as of an intermediate or
//! of another CA, nobody can say here that it has.
//!
//! **Does not** enforce what is revoked: the CA does when certificates are renewed.

use std::collections::{HashMap, HashSet};

use outrigger_config::{Document, MESH_KEY, Mesh, Problem};
use time::OffsetDateTime;

use super::PushError;
use crate::ca::revoked::digits;
use crate::ca::{millis, rfc3339};
use crate::store::ledger::{AuditRow, Deed, Leaf};
use crate::store::{Head, Store, StoreError};

/// As many names as one row of the audit log tells: who revokes more does it by a token or an identity, and the versions
/// of the document hold all of them.
const TOLD_MAX: usize = 20;

/// The difference that a push makes to what is revoked.
pub(super) struct Revocations {
    serials_added: Vec<String>,
    identities_added: Vec<String>,
    serials_gone: Vec<String>,
    identities_gone: Vec<String>,
}

impl Revocations {
    pub(super) fn between(before: &Mesh, after: &Mesh) -> Self {
        let before = before.revoked.clone().unwrap_or_default();
        let after = after.revoked.clone().unwrap_or_default();
        let identity = |identity: &str| identity.to_owned();
        Self {
            serials_added: without(&after.serials, &before.serials, digits),
            identities_added: without(&after.identities, &before.identities, identity),
            serials_gone: without(&before.serials, &after.serials, digits),
            identities_gone: without(&before.identities, &after.identities, identity),
        }
    }

    /// Refuses to trust again what could be used again: an identity, or a certificate of which it is not known that it and all
    /// that were renewed from it have expired.
    pub(super) fn hold(
        &self,
        store: &Store,
        head: &Head,
        whole: &[Document],
        now: OffsetDateTime,
    ) -> Result<(), PushError> {
        let mut back = self.identities_gone.clone();
        if !self.serials_gone.is_empty() {
            let mut ends = ends(&store.leaves(0)?);
            for (serial, end) in store.revoked_ends()? {
                let known = ends.entry(serial).or_default();
                *known = end.max(*known);
            }
            let now = millis(now);
            let of_use = |serial: &&String| ends.get(&digits(serial)).is_none_or(|end| *end > now);
            back.extend(self.serials_gone.iter().filter(of_use).cloned());
        }
        let Some(first) = back.first() else {
            return Ok(());
        };
        let message = format!(
            "the push would trust again what is revoked, {} in all, such as `{first}`: keep it, as `outrigger get @mesh` \
             shows it, or take it back with `outrigger revoke --undo`. Without that only serial numbers may go whose certificates \
             this store knew when they were revoked, once these have expired",
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
        let added = [self.serials_added.as_slice(), &self.identities_added].concat();
        let gone = [self.serials_gone.as_slice(), &self.identities_gone].concat();
        let ledger = store.ledger()?;
        for serial in &self.serials_gone {
            ledger.keep_revoked_end(&digits(serial), None)?;
        }
        if !self.serials_added.is_empty() {
            let ends = ends(&ledger.leaves(0)?);
            for serial in self.serials_added.iter().map(|serial| digits(serial)) {
                if let Some(end) = ends.get(&serial) {
                    ledger.keep_revoked_end(&serial, Some(*end))?;
                }
            }
        }
        for (deed, names) in [(Deed::Revoked, &added), (Deed::Restored, &gone)] {
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
        let parts = [
            &self.serials_added,
            &self.identities_added,
            &self.serials_gone,
            &self.identities_gone,
        ];
        parts.iter().all(|part| part.is_empty())
    }
}

/// When the last certificate expires that is of this serial number or came of a join by it, by that number.
fn ends(leaves: &[Leaf]) -> HashMap<String, u64> {
    let mut ends: HashMap<String, u64> = HashMap::new();
    for leaf in leaves {
        for serial in [&leaf.serial, &leaf.joined] {
            let end = ends.entry(digits(serial)).or_default();
            *end = leaf.not_after_ms.max(*end);
        }
    }
    ends
}

/// Those of `these` that are not among `those`, compared in one form.
fn without(these: &[String], those: &[String], form: impl Fn(&str) -> String) -> Vec<String> {
    let those: HashSet<String> = those.iter().map(|one| form(one)).collect();
    let others = these.iter().filter(|one| !those.contains(&form(one)));
    others.cloned().collect()
}

fn told(names: &[String]) -> String {
    let first = names.get(..TOLD_MAX).unwrap_or(names);
    match names.len() - first.len() {
        0 => first.join(" "),
        more => format!("{} and {more} more", first.join(" ")),
    }
}
