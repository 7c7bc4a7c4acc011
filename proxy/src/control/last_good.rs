//! The last good configuration on disk: what a sidecar starts from while the control API is away.
//!
//! The file is read and written on the control thread, which waits for the disk: once at the start, and once for each push
//! that was applied, a few hundred KiB; requests are served by other threads all the while.
//!
//! **Does not** decide when it is read: the poll does.

use outrigger_config::discovery::Versioned;

use super::{ControlApi, Pending, Push};
use crate::snapshot::Origin;

/// What is kept on disk.
#[derive(serde::Serialize, serde::Deserialize)]
struct LastGood {
    version: String,
    /// Absent in the file of an earlier release.
    #[serde(default)]
    store: String,
    documents: Vec<Versioned>,
}

impl ControlApi {
    /// Keeps what was applied, whole or not at all: written beside and renamed over.
    pub(super) fn keep(&self) {
        let Some(path) = &self.last_good else { return };
        let kept = LastGood {
            version: self.version.clone(),
            store: self.store.clone(),
            documents: self.held.values().cloned().collect(),
        };
        let written = serde_json::to_vec(&kept)
            .map_err(std::io::Error::other)
            .and_then(|text| {
                let beside = path.with_extension("new");
                let mut file = std::fs::File::create(&beside)?;
                std::io::Write::write_all(&mut file, &text)?;
                file.sync_all()?;
                std::fs::rename(&beside, path)
            });
        if let Err(error) = written {
            tracing::error!(path = %path.display(), %error, "cannot keep the last good configuration; a start without the control API would have nothing to serve");
        }
    }

    /// Whether a poll that fails now is followed by a look at the disk which may find something.
    pub(super) fn disk_is_next(&self) -> bool {
        let kept = self.last_good.as_ref().is_some_and(|path| path.exists());
        self.origin == Origin::Nothing && !self.disk_was_read && kept
    }

    /// The configuration that was kept, if nothing serves and there is one.
    pub(super) fn read_last_good(&mut self) -> Option<Push> {
        if std::mem::replace(&mut self.disk_was_read, true) {
            return None;
        }
        let path = self.last_good.as_ref()?;
        let text = match std::fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "cannot read the last good configuration");
                return None;
            }
        };
        let kept: LastGood = match serde_json::from_slice(&text) {
            Ok(kept) => kept,
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "the last good configuration is damaged; waiting for the control API");
                return None;
            }
        };
        tracing::warn!(version = kept.version, path = %path.display(), "starting with the last good configuration");
        let held = kept
            .documents
            .into_iter()
            .map(|held| (held.document.key().to_owned(), held))
            .collect();
        // From here on nothing more is read from disk, whatever becomes of this.
        self.origin = Origin::Disk;
        Some(self.hand_over(Pending {
            version: kept.version,
            store: kept.store,
            nonce: String::new(),
            held,
            origin: Origin::Disk,
        }))
    }
}
