//! What the tests of both crates do with fuzz targets: the files of their corpus, and what a few changes make of them.

use std::path::Path;

use proptest::prelude::*;
use proptest::sample::Index;

pub(super) type Target = fn(&[u8]);

/// Calls a target that takes text; text that is none is left out.
pub(super) fn text(bytes: &[u8], target: fn(&str)) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        target(text);
    }
}

fn folder(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz").join(name)
}

/// The corpus of a target.
pub(super) fn corpus(target: &str) -> Vec<Vec<u8>> {
    let files = std::fs::read_dir(folder("corpus").join(target)).unwrap();
    let mut files: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    // So that a seed means the same everywhere.
    files.sort();
    files.iter().map(|file| std::fs::read(file).unwrap()).collect()
}

/// Whether these are all the targets of this crate, and each has a file and a corpus and holds on it.
pub(super) fn has_each_target(of: &str, targets: &[(&str, Target)]) {
    for (name, target) in targets {
        assert!(
            folder("fuzz_targets").join(format!("{name}.rs")).is_file(),
            "{name}"
        );
        let corpus = corpus(name);
        assert!(!corpus.is_empty(), "{name}");
        corpus.iter().for_each(|bytes| target(bytes));
    }
    let files = std::fs::read_dir(folder("fuzz_targets")).unwrap();
    let files = files.map(|file| std::fs::read_to_string(file.unwrap().path()).unwrap());
    let calls = format!("{of}::fuzzing::");
    assert_eq!(files.filter(|text| text.contains(&calls)).count(), targets.len());
}

/// One change to some bytes: one is another, one comes or goes, a part is said twice or left out.
#[derive(Clone, Debug)]
pub(super) enum Change {
    Byte(Index, u8),
    Insert(Index, u8),
    Remove(Index),
    Repeat(Index, Index),
    Leave(Index, Index),
}

pub(super) fn change() -> impl Strategy<Value = Change> {
    let index = any::<Index>;
    prop_oneof![
        (index(), any::<u8>()).prop_map(|(at, byte)| Change::Byte(at, byte)),
        (index(), any::<u8>()).prop_map(|(at, byte)| Change::Insert(at, byte)),
        index().prop_map(Change::Remove),
        (index(), index()).prop_map(|(from, to)| Change::Repeat(from, to)),
        (index(), index()).prop_map(|(from, to)| Change::Leave(from, to)),
    ]
}

/// Makes a change.
pub(super) fn make(bytes: &mut Vec<u8>, change: &Change) {
    if bytes.is_empty() {
        return;
    }
    let length = bytes.len();
    let part = |from: &Index, to: &Index| {
        let (from, to) = (from.index(length), to.index(length));
        from.min(to)..from.max(to)
    };
    match change {
        Change::Byte(at, byte) => bytes[at.index(length)] = *byte,
        Change::Insert(at, byte) => bytes.insert(at.index(length), *byte),
        Change::Remove(at) => drop(bytes.remove(at.index(length))),
        Change::Repeat(from, to) => bytes.extend_from_within(part(from, to)),
        Change::Leave(from, to) => drop(bytes.drain(part(from, to))),
    }
}
