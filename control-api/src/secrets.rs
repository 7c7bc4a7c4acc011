//! Files that hold a secret: written whole or not at all, for their owner alone.
//!
//! **Does not** encrypt: the volume's encryption does.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// Writes a file of mode 0600 into a folder, which is made with mode 0700 if it is not there.
pub(crate) fn write(folder: &Path, path: &Path, secret: &[u8]) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let unfinished = path.with_added_extension("new");
    // What a start that was cut off left behind is used by nobody.
    let _ = std::fs::remove_file(&unfinished);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&unfinished)?;
    file.write_all(secret)?;
    file.sync_all()?;
    std::fs::rename(&unfinished, path)?;
    File::open(folder)?.sync_all()
}

/// Reads a file of [`write`], and says in the log if others than its owner can too: a volume may be mounted with rights
/// of its own, so that this is not refused.
pub(crate) fn read(path: &Path, what: &str) -> io::Result<String> {
    let text = std::fs::read_to_string(path)?;
    let mode = std::fs::metadata(path).map_or(0, |metadata| metadata.permissions().mode());
    if mode & 0o077 != 0 {
        tracing::warn!(
            path = %path.display(), mode = format!("{:o}", mode & 0o777),
            "{what} can be read by others than its owner: `chmod 600` it"
        );
    }
    Ok(text)
}
