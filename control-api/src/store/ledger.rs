//! What the CA keeps: the roots of the mesh, the tokens that workloads join with, the certificates that are alive, and
//! the audit log of all of it, in the same file as the documents.
//!
//! A [`Ledger`] is one transaction: what is read in it is still so when it is committed, and nothing of it is there
//! unless it is. Calls block, as the store's do.
//!
//! **Does not** judge tokens, make certificates or hold keys: [`crate::ca`] does; private keys are files beside the store.

use std::collections::HashMap;
use std::sync::PoisonError;

use outrigger_config::join::RefusalReason;
use redb::{ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize};

use super::{Store, StoreError, decode, encode};

/// The roots, by number.
const ROOTS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("ca-roots");
/// The tokens, by id.
const TOKENS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("ca-tokens");
/// Certificates that have not expired, by when they do (milliseconds since 1970) and serial number.
const LEAVES: TableDefinition<'_, (u64, &str), &[u8]> = TableDefinition::new("ca-leaves");
/// The audit log but for refusals, by number.
const AUDIT: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("ca-audit");
/// The refusals of the audit log, by number of the same count: kept apart, so that a flood of them pushes nothing else out.
const REFUSALS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("ca-refusals");
/// When the last certificate expires that a revoked serial number is about (milliseconds since 1970), by that number in the form
/// in which it is compared. Rows go with the entry of the `Mesh` document, which has at most ten thousand.
const REVOKED: TableDefinition<'_, &str, u64> = TableDefinition::new("ca-revoked");
/// Words about the CA as a whole.
const WORDS: TableDefinition<'_, &str, &str> = TableDefinition::new("ca-words");

/// Row of [`WORDS`]: the trust domain, once a certificate was issued in it.
const TRUST_DOMAIN: &str = "trust-domain";

/// Rows of each half of the audit log: a mesh of 1,000 sidecars that renew twice a day fills it in 50 days. About 30 MB.
pub const AUDIT_ROWS_MAX: u64 = 100_000;

/// Certificates alive at a time: six for each of ten thousand sidecars, which renew with each of the three steps that replace a root,
/// and as many again for those that start over and over. Beyond it something asks in a loop.
pub const LEAVES_MAX: u64 = 120_000;

/// Where a root stands in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RootState {
    /// Handed out to be trusted; signs nothing yet.
    Next,
    /// Signs.
    Active,
    /// Signs no more, but what it signed may still be alive, so it is still handed out.
    Retiring,
}

/// One root of the mesh.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Root {
    /// Which one: they are counted, and never reused.
    pub number: u64,
    /// Where it stands in its life.
    pub state: RootState,
    /// Its certificate in PEM.
    pub certificate: String,
    /// Its key is the operator's: certificates are signed by an intermediate that was given.
    pub given: bool,
    /// When it was taken in, in milliseconds since 1970.
    pub since_ms: u64,
}

/// One join token. The secret itself is nowhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// Which one.
    pub id: String,
    /// The service whose instances may join by it.
    pub service: String,
    /// SHA-256 of the secret.
    pub secret_sha256: [u8; 32],
    /// Who made it.
    pub author: String,
    /// When, in milliseconds since 1970.
    pub created_ms: u64,
    /// Until when it is good, in milliseconds since 1970.
    pub expires_ms: u64,
    /// How often it may be used.
    pub uses_max: u32,
    /// How often it was.
    pub uses: u32,
    /// It was taken back.
    pub revoked: bool,
    /// The number of the root that it names.
    #[serde(default)]
    pub root: u64,
    /// Its uses of late, whose answers may have been lost.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub recent: Vec<RecentUse>,
}

/// One use of a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecentUse {
    /// SHA-256 of the public key that was certified.
    pub key_sha256: [u8; 32],
    /// The serial number of the certificate.
    pub serial: String,
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// How often it was answered again.
    pub again: u32,
}

/// A certificate that has not expired.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leaf {
    /// Its serial number in hexadecimal.
    pub serial: String,
    /// Whose it is.
    pub service: String,
    /// When it expires, in milliseconds since 1970.
    pub not_after_ms: u64,
    /// The root that it leads to.
    pub root: u64,
    /// The newest root that was handed out beside it.
    pub knows_root: u64,
    /// The serial number of the certificate that its bearer joined with, its own or one that led to it by renewals.
    #[serde(default)]
    pub joined: String,
    /// The id of the token that its bearer joined by.
    #[serde(default)]
    pub token: String,
    /// SHA-256 of the certificate itself: who has the key of a root can repeat a number, and not this. Absent in a store of
    /// before, until these have expired.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<[u8; 32]>,
}

/// What was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Deed {
    /// A workload joined by a token.
    Issued,
    /// A workload renewed its certificate.
    Renewed,
    /// No certificate was given.
    Refused,
    /// Somebody brought a wrong operator token.
    OperatorRefused,
    /// A client certificate was refused in the handshake.
    HandshakeRefused,
    /// A token was made.
    TokenCreated,
    /// A token was taken back.
    TokenRevoked,
    /// Certificates or identities were revoked.
    Revoked,
    /// What was revoked is trusted again.
    Restored,
    /// A root was taken in.
    RootAdded,
    /// A root began to sign.
    RootActive,
    /// A root is no longer handed out.
    RootRemoved,
}

/// One row of the audit log. What does not apply is absent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditRow {
    /// The number of the row; they only grow.
    pub number: u64,
    /// When (RFC 3339).
    pub at: String,
    /// What was done.
    pub deed: Deed,
    /// Why it was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<RefusalReason>,
    /// Who, as far as it is known.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub who: String,
    /// From which address.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub source: String,
    /// The id of the token.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub token: String,
    /// The service.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub service: String,
    /// The serial number of the certificate, or the number of the root.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub serial: String,
    /// Anything else, in words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
}

impl AuditRow {
    /// A row that says no more than what was done, when.
    pub fn of(deed: Deed, at: String) -> Self {
        Self {
            number: 0,
            at,
            deed,
            reason: None,
            who: String::new(),
            source: String::new(),
            token: String::new(),
            service: String::new(),
            serial: String::new(),
            note: String::new(),
        }
    }
}

/// One transaction on what the CA keeps. Dropped without [`Ledger::commit`], it never was.
pub struct Ledger {
    transaction: WriteTransaction,
}

impl Store {
    /// Begins a transaction; waits for the one before, and for its documents to be the head: what a push has just revoked
    /// or renamed is so for whoever asks the head in this transaction, and stays so to its end.
    pub fn ledger(&self) -> Result<Ledger, StoreError> {
        let transaction = self.database.begin_write()?;
        // Whoever publishes has committed, so that it waits for nothing that is held here.
        drop(self.publishing.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(Ledger { transaction })
    }

    /// The rows of the audit log with a higher number than `since`, oldest first, at most `count`.
    pub fn audit(&self, since: u64, count: usize) -> Result<Vec<AuditRow>, StoreError> {
        let transaction = self.database.begin_read()?;
        let mut rows: Vec<AuditRow> = Vec::new();
        for definition in [AUDIT, REFUSALS] {
            let table = transaction.open_table(definition)?;
            for row in table.range(since.saturating_add(1)..)?.take(count) {
                rows.push(decode(row?.1.value())?);
            }
        }
        rows.sort_unstable_by_key(|row| row.number);
        rows.truncate(count);
        Ok(rows)
    }

    /// The newest `count` rows of the audit log, oldest first.
    pub fn audit_newest(&self, count: usize) -> Result<Vec<AuditRow>, StoreError> {
        let transaction = self.database.begin_read()?;
        let mut rows: Vec<AuditRow> = Vec::new();
        for definition in [AUDIT, REFUSALS] {
            let table = transaction.open_table(definition)?;
            for row in table.iter()?.rev().take(count) {
                rows.push(decode(row?.1.value())?);
            }
        }
        rows.sort_unstable_by_key(|row| row.number);
        rows.drain(..rows.len().saturating_sub(count));
        Ok(rows)
    }

    /// The roots, oldest first.
    pub fn roots(&self) -> Result<Vec<Root>, StoreError> {
        let table = self.database.begin_read()?.open_table(ROOTS)?;
        table.iter()?.map(|row| decode(row?.1.value())).collect()
    }

    /// All tokens that are remembered, in the order of their ids.
    pub fn tokens(&self) -> Result<Vec<Token>, StoreError> {
        let table = self.database.begin_read()?.open_table(TOKENS)?;
        table.iter()?.map(|row| decode(row?.1.value())).collect()
    }

    /// The trust domain, while a certificate that was issued in it is alive at `now_ms`.
    pub fn fixed_trust_domain(&self, now_ms: u64) -> Result<Option<String>, StoreError> {
        let transaction = self.database.begin_read()?;
        let leaves = transaction.open_table(LEAVES)?;
        let is_alive = leaves.last()?.is_some_and(|(key, _)| key.value().0 > now_ms);
        let words = transaction.open_table(WORDS)?;
        let said = words.get(TRUST_DOMAIN)?.map(|row| row.value().to_owned());
        Ok(said.filter(|_| is_alive))
    }

    /// When the last certificate expires that a revoked serial number is about, by that number; of those that were known when
    /// they were revoked.
    pub fn revoked_ends(&self) -> Result<HashMap<String, u64>, StoreError> {
        let table = self.database.begin_read()?.open_table(REVOKED)?;
        let row = |row: (redb::AccessGuard<'_, &str>, redb::AccessGuard<'_, u64>)| {
            (row.0.value().to_owned(), row.1.value())
        };
        table.iter()?.map(|found| Ok(row(found?))).collect()
    }

    /// The certificates that expire after `now_ms`, the first to expire first.
    pub fn leaves(&self, now_ms: u64) -> Result<Vec<Leaf>, StoreError> {
        let table = self.database.begin_read()?.open_table(LEAVES)?;
        let alive = table.range((now_ms, "")..)?;
        alive.map(|row| decode(row?.1.value())).collect()
    }
}

#[cfg(test)]
impl Ledger {
    /// The revision of the documents in this transaction.
    pub(super) fn revision(&self) -> u64 {
        let numbers = self.transaction.open_table(super::NUMBERS).unwrap();
        numbers.get(super::REVISION).unwrap().map_or(0, |row| row.value())
    }
}

impl Ledger {
    /// Makes every table, so that no reader finds one missing.
    pub(super) fn create_tables(transaction: &WriteTransaction) -> Result<(), StoreError> {
        transaction.open_table(ROOTS)?;
        transaction.open_table(TOKENS)?;
        transaction.open_table(LEAVES)?;
        transaction.open_table(AUDIT)?;
        transaction.open_table(REFUSALS)?;
        transaction.open_table(REVOKED)?;
        transaction.open_table(WORDS)?;
        Ok(())
    }

    /// The roots, oldest first.
    pub fn roots(&self) -> Result<Vec<Root>, StoreError> {
        let table = self.transaction.open_table(ROOTS)?;
        table.iter()?.map(|row| decode(row?.1.value())).collect()
    }

    /// Writes a root, new or changed.
    pub fn put_root(&self, root: &Root) -> Result<(), StoreError> {
        let mut table = self.transaction.open_table(ROOTS)?;
        table.insert(root.number, encode(root)?.as_slice())?;
        Ok(())
    }

    /// Forgets a root.
    pub fn remove_root(&self, number: u64) -> Result<(), StoreError> {
        self.transaction.open_table(ROOTS)?.remove(number)?;
        Ok(())
    }

    /// The token of this id.
    pub fn token(&self, id: &str) -> Result<Option<Token>, StoreError> {
        let table = self.transaction.open_table(TOKENS)?;
        table.get(id)?.map(|row| decode(row.value())).transpose()
    }

    /// How many tokens there are.
    pub fn token_count(&self) -> Result<u64, StoreError> {
        Ok(self.transaction.open_table(TOKENS)?.len()?)
    }

    /// All tokens that are remembered, in the order of their ids.
    pub fn tokens(&self) -> Result<Vec<Token>, StoreError> {
        let table = self.transaction.open_table(TOKENS)?;
        table.iter()?.map(|row| decode(row?.1.value())).collect()
    }

    /// Writes a token, new or changed.
    pub fn put_token(&self, token: &Token) -> Result<(), StoreError> {
        let mut table = self.transaction.open_table(TOKENS)?;
        table.insert(token.id.as_str(), encode(token)?.as_slice())?;
        Ok(())
    }

    /// Forgets tokens that expired before this moment (milliseconds since 1970).
    pub fn forget_tokens(&self, expired_before_ms: u64) -> Result<(), StoreError> {
        let mut table = self.transaction.open_table(TOKENS)?;
        let mut gone: Vec<String> = Vec::new();
        for row in table.iter()? {
            let token: Token = decode(row?.1.value())?;
            if token.expires_ms < expired_before_ms {
                gone.push(token.id);
            }
        }
        for id in gone {
            table.remove(id.as_str())?;
        }
        Ok(())
    }

    /// Notes a certificate as alive and forgets those that expired by `now_ms`. Says whether there was room for it.
    #[must_use = "where there was no room, nothing may be issued"]
    pub fn add_leaf(&self, leaf: &Leaf, now_ms: u64) -> Result<bool, StoreError> {
        let mut table = self.transaction.open_table(LEAVES)?;
        table.retain_in(..(now_ms, ""), |_, _| false)?;
        if table.len()? >= LEAVES_MAX {
            return Ok(false);
        }
        table.insert(
            (leaf.not_after_ms, leaf.serial.as_str()),
            encode(leaf)?.as_slice(),
        )?;
        Ok(true)
    }

    /// The certificates that expire after `now_ms`.
    pub fn leaves(&self, now_ms: u64) -> Result<Vec<Leaf>, StoreError> {
        let table = self.transaction.open_table(LEAVES)?;
        let alive = table.range((now_ms, "")..)?;
        alive.map(|row| decode(row?.1.value())).collect()
    }

    /// Whether one of those alive is so. Each certificate asks this while roots change, so it stops at the first that is: of the
    /// oldest, which it begins with, most are.
    pub fn has_leaf(&self, now_ms: u64, is_so: impl Fn(&Leaf) -> bool) -> Result<bool, StoreError> {
        let table = self.transaction.open_table(LEAVES)?;
        for row in table.range((now_ms, "")..)? {
            if is_so(&decode(row?.1.value())?) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The certificate of this serial number that expires then.
    pub fn leaf(&self, not_after_ms: u64, serial: &str) -> Result<Option<Leaf>, StoreError> {
        let table = self.transaction.open_table(LEAVES)?;
        let row = table.get((not_after_ms, serial))?;
        row.map(|row| decode(row.value())).transpose()
    }

    /// The certificate that expires last, if any is alive at `now_ms`.
    pub fn last_leaf(&self, now_ms: u64) -> Result<Option<Leaf>, StoreError> {
        let table = self.transaction.open_table(LEAVES)?;
        let last = table
            .last()?
            .map(|(_, row)| decode::<Leaf>(row.value()))
            .transpose()?;
        Ok(last.filter(|leaf| leaf.not_after_ms > now_ms))
    }

    /// Keeps when the last certificate expires that a revoked serial number is about; with nothing, forgets it.
    pub fn keep_revoked_end(&self, serial: &str, end_ms: Option<u64>) -> Result<(), StoreError> {
        let mut table = self.transaction.open_table(REVOKED)?;
        match end_ms {
            Some(end_ms) => table.insert(serial, end_ms)?,
            None => table.remove(serial)?,
        };
        Ok(())
    }

    /// The trust domain, once a certificate was issued in it.
    pub fn trust_domain(&self) -> Result<Option<String>, StoreError> {
        let table = self.transaction.open_table(WORDS)?;
        Ok(table.get(TRUST_DOMAIN)?.map(|row| row.value().to_owned()))
    }

    /// Fixes the trust domain.
    pub fn fix_trust_domain(&self, name: &str) -> Result<(), StoreError> {
        self.transaction.open_table(WORDS)?.insert(TRUST_DOMAIN, name)?;
        Ok(())
    }

    /// Writes the next row of the audit log, whose number is given here, and forgets the oldest beyond
    /// [`AUDIT_ROWS_MAX`].
    pub fn audit(&self, mut row: AuditRow) -> Result<(), StoreError> {
        let mut deeds = self.transaction.open_table(AUDIT)?;
        let mut refusals = self.transaction.open_table(REFUSALS)?;
        let newest = |table: &redb::Table<'_, u64, &[u8]>| -> Result<u64, StoreError> {
            Ok(table.last()?.map_or(0, |(number, _)| number.value()))
        };
        row.number = newest(&deeds)?.max(newest(&refusals)?) + 1;
        let table = if matches!(
            row.deed,
            Deed::Refused | Deed::OperatorRefused | Deed::HandshakeRefused
        ) {
            &mut refusals
        } else {
            &mut deeds
        };
        table.insert(row.number, encode(&row)?.as_slice())?;
        if table.len()? > AUDIT_ROWS_MAX {
            table.pop_first()?;
        }
        Ok(())
    }

    /// Makes all of it true, on disk, at once.
    pub fn commit(self) -> Result<(), StoreError> {
        self.transaction.commit()?;
        Ok(())
    }
}
