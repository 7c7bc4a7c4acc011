//! The examples are the tests: every valid one is read, every invalid one is refused in the words beside it.

use std::fs;
use std::path::{Path, PathBuf};

use super::*;

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../config-examples")
}

/// The YAML files of a folder, by name.
fn yaml_files(folder: &Path) -> Vec<(String, String)> {
    let mut files: Vec<(String, String)> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .map(|path| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            (name, fs::read_to_string(&path).unwrap())
        })
        .collect();
    files.sort();
    assert!(!files.is_empty(), "{folder:?} holds no examples");
    files
}

fn read(file: &str, text: &str) -> Result<Config, Vec<Problem>> {
    check(&split(file, text)?)
}

fn lines(problems: &[Problem]) -> String {
    problems.iter().map(|problem| format!("{problem}\n")).collect()
}

/// What a text is refused with; empty if it is not.
fn refusal(text: &str) -> String {
    read("f.yaml", text)
        .err()
        .map(|problems| lines(&problems))
        .unwrap_or_default()
}

#[test]
fn every_example_is_valid() {
    for (file, text) in yaml_files(&examples()) {
        let problems = if file.starts_with("proxy") {
            read_bootstrap(&file, &text).err()
        } else {
            read(&file, &text).err()
        };
        assert_eq!(lines(&problems.unwrap_or_default()), "", "{file}");
        assert!(
            text.starts_with("# yaml-language-server: $schema="),
            "{file} does not name its schema"
        );
    }
}

/// With `UPDATE=1` in the environment the promised texts are written anew: read the difference before it is kept.
#[test]
fn every_invalid_example_is_refused_in_the_words_beside_it() {
    let folder = examples().join("invalid");
    for (file, text) in yaml_files(&folder) {
        let found = if file.starts_with("proxy") {
            read_bootstrap(&file, &text).err()
        } else {
            read(&file, &text).err()
        };
        let found = lines(&found.unwrap_or_default());
        assert_ne!(found, "", "{file} is not refused");
        let promise = folder.join(file.replace(".yaml", ".txt"));
        if std::env::var_os("UPDATE").is_some() {
            fs::write(&promise, &found).unwrap();
        }
        assert_eq!(found, fs::read_to_string(&promise).unwrap_or_default(), "{file}");
    }
}
