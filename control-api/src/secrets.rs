//! Files that hold a secret: for their owner alone, and where it is a key or a token written whole or not at all.
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
    say_if_others_can_read(path, what);
    Ok(text)
}

/// Opens a file to write to it, which is made for its owner alone if it is not there, in a folder that is made so too. Says
/// in the log if others can read one that was there, as [`read`] does.
pub(crate) fn open(folder: &Path, path: &Path, what: &str) -> io::Result<File> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)?;
    say_if_others_can_read(path, what);
    Ok(file)
}

/// Says in the log if others than its owner can read a file that holds a secret.
pub(crate) fn say_if_others_can_read(path: &Path, what: &str) {
    let mode = std::fs::metadata(path).map_or(0, |metadata| metadata.permissions().mode());
    if mode & 0o077 != 0 {
        tracing::warn!(
            path = %path.display(), mode = format!("{:o}", mode & 0o777),
            "{what} can be read by others than its owner: `chmod 600` it"
        );
    }
}
