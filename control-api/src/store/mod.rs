//! The documents on disk: every version of each, who pushed it and when, in one file of an embedded database.
//!
//! Calls block: callers on an async thread go through `spawn_blocking`. What is current also stands in memory as an
//! immutable [`Head`], so that reading takes no disk and a waiting poll is woken by the change itself.
//!
//! **Does not** judge documents, nor know who may push them.
//!
//! **Invariant:** one push is one transaction, on disk before it is acknowledged and before any poll sees it.

pub mod ledger;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use outrigger_config::Document;
use redb::backends::FileBackend;
use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::secrets;

/// What is current, one row a key; a row whose document is absent is a tombstone.
const CURRENT: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("current");
/// Every version that ever was, by key and revision; an absent document is a deletion.
const VERSIONS: TableDefinition<'_, (&str, u64), &[u8]> = TableDefinition::new("versions");
/// Every push, by the revision that it made.
const PUSHES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("pushes");
/// Numbers about the store itself.
const NUMBERS: TableDefinition<'_, &str, u64> = TableDefinition::new("numbers");

/// Row of [`NUMBERS`]: the revision of the last push.
const REVISION: &str = "revision";
/// Row of [`NUMBERS`]: how the rows are written.
const FORMAT: &str = "format";
/// Row of [`NUMBERS`]: the number that was drawn when the store was made.
const STORE: &str = "store";
/// Row of [`NUMBERS`]: the newest revision of which a removal is forgotten.
const FORGOTTEN: &str = "forgotten";
/// How many removals are remembered: a sidecar that missed more of them is asked what it holds, which is dearer and
/// rare; without a limit, names that come and go would fill the memory.
const REMOVED_MAX: usize = 10_000;
/// The way that this program writes rows. A store with another number is refused rather than misread.
const FORMAT_HERE: u64 = 1;

/// The documents, their history and the news of their changes.
#[derive(Debug)]
pub struct Store {
    database: Database,
    head: watch::Sender<Arc<Head>>,
    /// Held from reading the head to publishing the next: pushes come one after another.
    turn: Mutex<()>,
    /// Held while a push that the disk has is not the head yet: see [`Store::ledger`].
    publishing: Mutex<()>,
}

/// What is current at one revision; never changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// The name of the store, drawn when it was made: revisions of different stores have nothing to do with each other.
    pub store: Arc<str>,
    /// The number of the last push that changed something; 0 when nothing was ever pushed.
    pub revision: u64,
    /// The documents by key.
    pub documents: BTreeMap<String, Stored>,
    /// Keys that once were, and the revision that removed each: the newest 10,000.
    pub removed: BTreeMap<String, u64>,
    /// The newest revision of which a removal is no longer in `removed`: what went since an older revision than this
    /// cannot be told.
    pub forgotten: u64,
}

/// A document and the revision at which it last changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The revision at which it last changed.
    pub version: u64,
    /// The document.
    pub document: Arc<Document>,
}

/// One change that a push makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The document is new or different.
    Put(Document),
    /// The key goes.
    Delete(String),
}

/// Who changed what, when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The revision that the push made.
    pub revision: u64,
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// Who, as the pusher said, and from which address.
    pub author: String,
    /// Keys that are new or different.
    pub changed: Vec<String>,
    /// Keys that went.
    pub removed: Vec<String>,
}

/// Why the store could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has the file.
    #[error(
        "the store {} is in use by another `outrigger serve`: stop that one, or name another folder with --data",
        path.display()
    )]
    Locked {
        /// The file.
        path: PathBuf,
    },
    /// The folder or the file cannot be used.
    #[error("the store {} cannot be opened: {cause}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: String,
    },
    /// A row says something that this program did not write.
    #[error("the store holds {what}: it was written by another release, or is damaged")]
    Unreadable {
        /// What was found.
        what: String,
    },
    /// The database failed.
    #[error("the store failed: {0}")]
    Database(#[source] Box<redb::Error>),
}

impl<E: Into<redb::Error>> From<E> for StoreError {
    fn from(error: E) -> Self {
        Self::Database(Box::new(error.into()))
    }
}

/// A row of [`CURRENT`].
#[derive(Serialize, Deserialize)]
struct Row {
    version: u64,
    document: Option<Document>,
}

impl Store {
    /// Opens the store in `folder`; either is made if it is not there, for its owner alone: documents say what a mesh is, and
    /// the audit log who did what.
    pub fn open(folder: &Path) -> Result<Self, StoreError> {
        let path = folder.join("store.redb");
        let file = secrets::open(folder, &path, "the store").map_err(|error| StoreError::Open {
            path: path.clone(),
            cause: error.to_string(),
        })?;
        let opened = FileBackend::new(file).and_then(|file| Database::builder().create_with_backend(file));
        let database = opened.map_err(|error| match error {
            DatabaseError::DatabaseAlreadyOpen => StoreError::Locked { path: path.clone() },
            other => StoreError::Open {
                path: path.clone(),
                cause: other.to_string(),
            },
        })?;
        create_tables(&database)?;
        let head = load(&database)?;
        Ok(Self {
            database,
            head: watch::Sender::new(Arc::new(head)),
            turn: Mutex::new(()),
            publishing: Mutex::new(()),
        })
    }

    /// What is current.
    pub fn head(&self) -> Arc<Head> {
        self.head.borrow().clone()
    }

    /// What is current, and word of each change.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Head>> {
        self.head.subscribe()
    }

    /// The right to change, one holder at a time: waits for the push before.
    pub fn writer(&self) -> Writer<'_> {
        // A holder that panicked had either committed or not; the head tells which, so the turn goes on.
        let turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        Writer {
            store: self,
            _turn: turn,
        }
    }

    /// The last `count` pushes, newest first.
    pub fn history(&self, count: usize) -> Result<Vec<Record>, StoreError> {
        let pushes = self.database.begin_read()?.open_table(PUSHES)?;
        let newest = pushes.iter()?.rev().take(count);
        newest.map(|row| decode(row?.1.value())).collect()
    }

    /// What `key` said once the push of `revision` was done, if that push changed it.
    pub fn version(&self, key: &str, revision: u64) -> Result<Option<Document>, StoreError> {
        let versions = self.database.begin_read()?.open_table(VERSIONS)?;
        match versions.get((key, revision))? {
            Some(row) => decode(row.value()),
            None => Ok(None),
        }
    }
}

/// The right to change the store, held by one push at a time.
#[derive(Debug)]
pub struct Writer<'a> {
    store: &'a Store,
    _turn: MutexGuard<'a, ()>,
}

impl Writer<'_> {
    /// What is current, and stays so while this writer lives.
    pub fn head(&self) -> Arc<Head> {
        self.store.head()
    }

    /// Writes all changes as the next revision, waits until the disk has them, then wakes whoever waits for news.
    pub fn commit(self, author: &str, changes: Vec<Change>) -> Result<Arc<Head>, StoreError> {
        let mut head = Head::clone(&self.head());
        head.revision += 1;
        let transaction = self.store.database.begin_write()?;
        write(&transaction, head.revision, author, &changes)?;
        for change in changes {
            head.apply(change);
        }
        let forgotten = head.forget();
        forget(&transaction, &forgotten, head.forgotten)?;
        let publishing = &self.store.publishing;
        let publishing = publishing.lock().unwrap_or_else(PoisonError::into_inner);
        transaction.commit()?;
        let head = Arc::new(head);
        self.store.head.send_replace(head.clone());
        drop(publishing);
        Ok(head)
    }
}

impl Head {
    /// Takes in one change of this head's own revision.
    fn apply(&mut self, change: Change) {
        match change {
            Change::Put(document) => {
                let key = document.key().to_owned();
                self.removed.remove(&key);
                let stored = Stored {
                    version: self.revision,
                    document: Arc::new(document),
                };
                self.documents.insert(key, stored);
            }
            Change::Delete(key) => {
                self.documents.remove(&key);
                self.removed.insert(key, self.revision);
            }
        }
    }
}

impl Head {
    /// Drops the oldest removals beyond [`REMOVED_MAX`], and gives their keys.
    fn forget(&mut self) -> Vec<String> {
        let Some(excess) = self.removed.len().checked_sub(REMOVED_MAX) else {
            return Vec::new();
        };
        let removed = self.removed.iter();
        let mut by_age: Vec<(u64, String)> =
            removed.map(|(key, revision)| (*revision, key.clone())).collect();
        by_age.sort_unstable();
        by_age.truncate(excess);
        for (revision, key) in &by_age {
            self.removed.remove(key);
            self.forgotten = self.forgotten.max(*revision);
        }
        by_age.into_iter().map(|(_, key)| key).collect()
    }
}

/// Makes every table, so that no reader finds one missing, and refuses a store of another format.
fn create_tables(database: &Database) -> Result<(), StoreError> {
    let transaction = database.begin_write()?;
    {
        transaction.open_table(CURRENT)?;
        transaction.open_table(VERSIONS)?;
        transaction.open_table(PUSHES)?;
        ledger::Ledger::create_tables(&transaction)?;
        let mut numbers = transaction.open_table(NUMBERS)?;
        let format = numbers.get(FORMAT)?.map(|row| row.value());
        match format {
            Some(FORMAT_HERE) => {}
            Some(other) => {
                return Err(StoreError::Unreadable {
                    what: format!("format {other} where this release writes format {FORMAT_HERE}"),
                });
            }
            None => {
                numbers.insert(FORMAT, FORMAT_HERE)?;
            }
        }
        // A store of an earlier release has none yet; it gets one, and keeps it.
        if numbers.get(STORE)?.is_none() {
            numbers.insert(STORE, drawn())?;
        }
    }
    transaction.commit()?;
    Ok(())
}

/// Reads what is current into memory.
fn load(database: &Database) -> Result<Head, StoreError> {
    let transaction = database.begin_read()?;
    let numbers = transaction.open_table(NUMBERS)?;
    let number = |name| numbers.get(name).map(|row| row.map_or(0, |row| row.value()));
    let mut head = Head {
        store: format!("{:016x}", number(STORE)?).into(),
        revision: number(REVISION)?,
        forgotten: number(FORGOTTEN)?,
        ..Head::default()
    };
    for entry in transaction.open_table(CURRENT)?.iter()? {
        let (key, row) = entry?;
        let key = key.value().to_owned();
        let row: Row = decode(row.value())?;
        match row.document {
            Some(document) => {
                let stored = Stored {
                    version: row.version,
                    document: Arc::new(document),
                };
                head.documents.insert(key, stored);
            }
            None => {
                head.removed.insert(key, row.version);
            }
        }
    }
    Ok(head)
}

/// Writes the rows of one push.
fn write(
    transaction: &WriteTransaction,
    revision: u64,
    author: &str,
    changes: &[Change],
) -> Result<(), StoreError> {
    let mut record = Record {
        revision,
        at_ms: now_ms(),
        author: author.to_owned(),
        changed: Vec::new(),
        removed: Vec::new(),
    };
    let mut current = transaction.open_table(CURRENT)?;
    let mut versions = transaction.open_table(VERSIONS)?;
    for change in changes {
        let (key, document) = match change {
            Change::Put(document) => {
                record.changed.push(document.key().to_owned());
                (document.key(), Some(document.clone()))
            }
            Change::Delete(key) => {
                record.removed.push(key.clone());
                (key.as_str(), None)
            }
        };
        versions.insert((key, revision), encode(&document)?.as_slice())?;
        let row = Row {
            version: revision,
            document,
        };
        current.insert(key, encode(&row)?.as_slice())?;
    }
    let mut pushes = transaction.open_table(PUSHES)?;
    pushes.insert(revision, encode(&record)?.as_slice())?;
    transaction.open_table(NUMBERS)?.insert(REVISION, revision)?;
    Ok(())
}

/// Takes out the tombstones of these keys, the newest of which is of the revision `newest`.
fn forget(transaction: &WriteTransaction, keys: &[String], newest: u64) -> Result<(), StoreError> {
    if keys.is_empty() {
        return Ok(());
    }
    let mut current = transaction.open_table(CURRENT)?;
    for key in keys {
        current.remove(key.as_str())?;
    }
    transaction.open_table(NUMBERS)?.insert(FORGOTTEN, newest)?;
    Ok(())
}

fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(value).map_err(|error| StoreError::Unreadable {
        what: format!("a value that cannot be written ({error})"),
    })
}

fn decode<T: for<'de> Deserialize<'de>>(bytes: &[u8]) -> Result<T, StoreError> {
    serde_json::from_slice(bytes).map_err(|error| StoreError::Unreadable {
        what: format!("a row that cannot be read ({error})"),
    })
}

/// A number that no other store has: the system's randomness, by which the standard library keys its maps.
fn drawn() -> u64 {
    RandomState::new().hash_one(now_ms())
}

/// The wall clock, for people who read the history; nothing is decided by it.
fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
