use outrigger_config::Kind;

use super::*;

fn document(name: &str, text: &str) -> Document {
    Document {
        kind: Kind::Service,
        name: name.into(),
        file: format!("{name}.yaml"),
        line: 1,
        text: text.into(),
    }
}

fn put(name: &str, text: &str) -> Change {
    Change::Put(document(name, text))
}

#[test]
fn what_was_committed_is_there_after_reopening() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let empty = store.head();
    assert_eq!(
        (empty.revision, empty.documents.len(), empty.store.len()),
        (0, 0, 16)
    );
    let both = vec![put("reviews", "one"), put("ratings", "one")];
    store.writer().commit("ann", both).unwrap();
    store.writer().commit("bob", vec![put("reviews", "two")]).unwrap();
    let gone = vec![Change::Delete("ratings".into())];
    let before = store.writer().commit("ann", gone).unwrap();
    drop(store);

    let store = Store::open(folder.path()).unwrap();
    let head = store.head();
    assert_eq!(head, before);
    assert_eq!(head.revision, 3);
    assert_eq!(head.documents["reviews"].version, 2);
    assert_eq!(head.documents["reviews"].document.text, "two");
    assert_eq!(head.removed, BTreeMap::from([("ratings".to_owned(), 3)]));
}

#[test]
fn a_store_keeps_its_name_and_no_other_store_has_it() {
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let name = |folder: &tempfile::TempDir| Store::open(folder.path()).unwrap().head().store.clone();
    let first = name(&one);
    assert_eq!(first, name(&one));
    assert_ne!(first, name(&other));
}

#[test]
fn every_version_is_kept_with_who_pushed_it() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    store.writer().commit("ann", vec![put("reviews", "one")]).unwrap();
    store.writer().commit("bob", vec![put("reviews", "two")]).unwrap();
    let gone = vec![Change::Delete("reviews".into())];
    store.writer().commit("cat", gone).unwrap();

    let text = |revision| {
        store
            .version("reviews", revision)
            .unwrap()
            .map(|found| found.text)
    };
    assert_eq!(text(1).as_deref(), Some("one"));
    assert_eq!(text(2).as_deref(), Some("two"));
    assert_eq!(text(3), None);
    let history = store.history(2).unwrap();
    let told: Vec<_> = history
        .iter()
        .map(|push| (push.revision, push.author.as_str()))
        .collect();
    assert_eq!(told, [(3, "cat"), (2, "bob")]);
    assert_eq!(history[0].removed, ["reviews"]);
    assert_eq!(history[1].changed, ["reviews"]);
}

#[test]
fn a_document_that_comes_back_has_a_new_version_and_no_tombstone() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    store.writer().commit("ann", vec![put("reviews", "one")]).unwrap();
    let gone = vec![Change::Delete("reviews".into())];
    store.writer().commit("ann", gone).unwrap();
    let head = store.writer().commit("ann", vec![put("reviews", "one")]).unwrap();
    assert_eq!(head.documents["reviews"].version, 3);
    assert!(head.removed.is_empty());
}

#[test]
fn a_transaction_that_was_not_committed_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let before = store.writer().commit("ann", vec![put("reviews", "one")]).unwrap();
    let half = store.database.begin_write().unwrap();
    let changes = [put("reviews", "two"), put("ratings", "one")];
    write(&half, 2, "bob", &changes).unwrap();
    drop(half);
    drop(store);
    let store = Store::open(folder.path()).unwrap();
    assert_eq!(store.head(), before);
    assert_eq!(store.history(10).unwrap().len(), 1);
}

#[test]
fn a_store_that_another_has_open_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let _first = Store::open(folder.path()).unwrap();
    let problem = Store::open(folder.path()).unwrap_err();
    assert!(matches!(problem, StoreError::Locked { .. }), "{problem}");
    assert!(problem.to_string().contains("--data"), "{problem}");
}

#[test]
fn a_store_of_another_format_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let transaction = store.database.begin_write().unwrap();
    transaction
        .open_table(NUMBERS)
        .unwrap()
        .insert(FORMAT, 2)
        .unwrap();
    transaction.commit().unwrap();
    drop(store);
    let problem = Store::open(folder.path()).unwrap_err();
    assert!(problem.to_string().contains("format 2"), "{problem}");
}

#[test]
fn a_file_that_is_no_store_is_named_in_the_problem() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("store.redb"), "not a database").unwrap();
    let problem = Store::open(folder.path()).unwrap_err();
    assert!(problem.to_string().contains("store.redb"), "{problem}");
}

#[test]
fn a_waiting_reader_is_woken_by_a_commit() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let mut news = store.subscribe();
    news.borrow_and_update();
    store.writer().commit("ann", vec![put("reviews", "one")]).unwrap();
    assert!(news.has_changed().unwrap());
    assert_eq!(news.borrow().revision, 1);
}

#[test]
fn the_oldest_removals_are_forgotten_in_memory_and_on_disk() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let gone = (0..REMOVED_MAX).map(|number| Change::Delete(format!("s{number:05}")));
    let full = store.writer().commit("ann", gone.collect()).unwrap();
    assert_eq!((full.removed.len(), full.forgotten), (REMOVED_MAX, 0));
    let one_more = vec![Change::Delete("last".into())];
    let head = store.writer().commit("ann", one_more).unwrap();
    assert_eq!((head.removed.len(), head.forgotten), (REMOVED_MAX, 1));
    assert!(!head.removed.contains_key("s00000"));
    assert_eq!(head.removed["last"], 2);
    drop(store);
    let store = Store::open(folder.path()).unwrap();
    assert_eq!(store.head(), head);
}

#[test]
fn whoever_begins_a_transaction_after_a_push_sees_its_documents_as_the_head() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    std::thread::scope(|scope| {
        let pushing = scope.spawn(|| {
            for number in 0..200 {
                let text = number.to_string();
                store.writer().commit("ann", vec![put("reviews", &text)]).unwrap();
            }
        });
        // It mostly waits for the push before, and goes on in the very moment that its commit is done.
        while !pushing.is_finished() {
            let ledger = store.ledger().unwrap();
            assert_eq!(store.head().revision, ledger.revision());
        }
    });
}
