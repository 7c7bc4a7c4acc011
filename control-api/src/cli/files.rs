//! The files that a person names: files, folders, or `-` for stdin.
//!
//! **Does not** read what they say: that is `outrigger_config`'s.

use std::io::Read;
use std::path::{Path, PathBuf};

use clap::Args;

use super::CliError;
use crate::server::{PUSH_BYTES_MAX, PushText};

/// The files of a subcommand.
#[derive(Debug, Args)]
pub(super) struct Files {
    /// YAML files, folders (their *.yaml and *.yml), or - for stdin.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
}

impl Files {
    /// Reads all of them, those of a folder in the order of their names.
    pub(super) fn read(&self) -> Result<Vec<PushText>, CliError> {
        let mut texts = Vec::new();
        for path in &self.files {
            if path.as_os_str() == "-" {
                texts.push(read_text(std::io::stdin().lock(), String::new())?);
            } else if path.is_dir() {
                for file in folder(path)? {
                    texts.push(read_file(&file)?);
                }
            } else {
                texts.push(read_file(path)?);
            }
        }
        Ok(texts)
    }
}

/// The YAML files right in a folder; those of folders inside it are left out.
fn folder(path: &Path) -> Result<Vec<PathBuf>, CliError> {
    let fail = |error| CliError::Sentence(format!("cannot read the folder {}: {error}", path.display()));
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).map_err(fail)? {
        let file = entry.map_err(fail)?.path();
        let yaml = file.extension().is_some_and(|end| end == "yaml" || end == "yml");
        if yaml && file.is_file() {
            files.push(file);
        }
    }
    if files.is_empty() {
        let sentence = format!("the folder {} holds no *.yaml or *.yml file", path.display());
        return Err(CliError::Sentence(sentence));
    }
    files.sort();
    Ok(files)
}

fn read_file(path: &Path) -> Result<PushText, CliError> {
    let name = path.display().to_string();
    match std::fs::File::open(path) {
        Ok(file) => read_text(file, name),
        Err(error) => Err(CliError::Sentence(format!("cannot read {name}: {error}"))),
    }
}

/// Reads one text, of no more bytes than a push may have.
fn read_text(source: impl Read, file: String) -> Result<PushText, CliError> {
    let shown = if file.is_empty() { "stdin" } else { &file };
    let mut bytes = Vec::new();
    let limit = PUSH_BYTES_MAX as u64 + 1;
    let read = source.take(limit).read_to_end(&mut bytes);
    read.map_err(|error| CliError::Sentence(format!("cannot read {shown}: {error}")))?;
    if bytes.len() > PUSH_BYTES_MAX {
        let sentence = format!(
            "{shown} is longer than {} MiB, the most that a push may be",
            PUSH_BYTES_MAX >> 20
        );
        return Err(CliError::Sentence(sentence));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        CliError::Sentence(format!("{shown} is not UTF-8 text: byte {at} cannot be read"))
    })?;
    Ok(PushText { file, line: 1, text })
}
