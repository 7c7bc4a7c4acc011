use outrigger_config::split;

use super::*;
use crate::ca::millis;
use crate::store::ledger::Leaf;

fn service(name: &str, port: u16) -> String {
    format!(
        "kind: Service\nname: {name}\nbackends:\n  - name: v1\n    discover: {{ static: [\"127.0.0.1:{port}\"] }}\n"
    )
}

fn of(edit: Edit) -> Push {
    Push {
        author: "ann".into(),
        edit,
        unless_changed_since: None,
        dry_run: false,
        restore: false,
        trust_domain: "mesh.local".into(),
    }
}

fn put(texts: &[String]) -> Push {
    let documents = texts.iter().flat_map(|text| split("test.yaml", text).unwrap());
    of(Edit::Put(documents.collect()))
}

fn open() -> (tempfile::TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    (folder, store)
}

#[test]
fn a_push_of_several_is_one_version_and_an_identical_one_is_none() {
    let (_folder, store) = open();
    let both = [service("reviews", 1), service("ratings", 1)];
    let first = push(&store, put(&both)).unwrap();
    assert_eq!((first.version.as_str(), first.changed.len()), ("1", 2));
    let again = push(&store, put(&both)).unwrap();
    assert_eq!(again.version, "1");
    assert_eq!(again.unchanged, ["reviews", "ratings"]);
    assert_eq!(store.history(10).unwrap().len(), 1);
    let one = [service("reviews", 2), service("ratings", 1)];
    let outcome = push(&store, put(&one)).unwrap();
    assert_eq!(
        (outcome.changed, outcome.unchanged),
        (vec!["reviews".into()], vec!["ratings".into()])
    );
    assert_eq!(store.head().documents["ratings"].version, 1);
}

#[test]
fn one_bad_document_refuses_all_of_the_push() {
    let (_folder, store) = open();
    let bad = service("ratings", 1).replace("backends", "backnds");
    let refused = push(&store, put(&[service("reviews", 1), bad])).unwrap_err();
    let PushError::Refused(problems) = refused else {
        panic!("{refused}")
    };
    assert!(!problems.is_empty());
    assert_eq!(store.head().revision, 0);
}

#[test]
fn a_document_is_checked_together_with_what_is_stored() {
    let (_folder, store) = open();
    push(&store, put(&[service("reviews", 1)])).unwrap();
    let thief = service("ratings", 1).replace("name: ratings", "name: ratings\nhosts: [reviews]");
    let refused = push(&store, put(&[thief])).unwrap_err();
    assert!(matches!(refused, PushError::Refused(_)), "{refused}");
}

#[test]
fn a_caller_of_another_trust_domain_is_refused_where_no_mesh_document_names_one() {
    let (_folder, store) = open();
    let of_domain = |domain: &str| {
        let fields =
            format!("tls: {{ mode: strict }}\nallow: [{{ from: [\"spiffe://{domain}/productpage\"] }}]");
        format!("{}{fields}\n", service("reviews", 1))
    };
    let refused = push(&store, put(&[of_domain("shop")])).unwrap_err();
    let PushError::Refused(problems) = refused else {
        panic!("{refused}")
    };
    let said = problems[0].to_string();
    assert!(
        said.contains("test.yaml:7:18: allow[0].from[0]: `spiffe://shop/productpage` can never call"),
        "{said}"
    );
    assert!(
        said.contains("this mesh is `mesh.local`; expected spiffe://mesh.local/…"),
        "{said}"
    );
    push(&store, put(&[of_domain("mesh.local")])).unwrap();
    // What the operator said at the start counts as the default does, and a document before both.
    let said = Push {
        trust_domain: "shop".into(),
        ..put(&[of_domain("shop")])
    };
    push(&store, said).unwrap();
    let mesh = "kind: Mesh\ntrust_domain: other\n".to_owned();
    let refused = push(&store, put(std::slice::from_ref(&mesh))).unwrap_err();
    assert!(matches!(refused, PushError::Refused(_)), "{refused}");
    push(&store, put(&[mesh, of_domain("other")])).unwrap();
    // Without the document the mesh would be of the default again.
    let deleted = push(&store, of(Edit::Delete("@mesh".into()))).unwrap_err();
    assert!(matches!(deleted, PushError::Refused(_)), "{deleted}");
}

#[test]
fn a_name_that_is_pushed_twice_at_once_is_refused() {
    let (_folder, store) = open();
    let twice = [service("reviews", 1), service("reviews", 2)];
    let refused = push(&store, put(&twice)).unwrap_err();
    assert!(matches!(refused, PushError::Refused(_)), "{refused}");
}

#[test]
fn a_dry_run_answers_and_stores_nothing() {
    let (_folder, store) = open();
    let wanted = Push {
        dry_run: true,
        restore: false,
        ..put(&[service("reviews", 1)])
    };
    let outcome = push(&store, wanted).unwrap();
    assert_eq!((outcome.version.as_str(), outcome.dry_run), ("1", true));
    assert_eq!(store.head().revision, 0);
}

#[test]
fn deleting_needs_something_to_delete() {
    let (_folder, store) = open();
    push(&store, put(&[service("reviews", 1)])).unwrap();
    let unknown = push(&store, of(Edit::Delete("ratings".into()))).unwrap_err();
    assert!(matches!(unknown, PushError::Unknown(_)), "{unknown}");
    let outcome = push(&store, of(Edit::Delete("reviews".into()))).unwrap();
    assert_eq!(
        (outcome.version.as_str(), outcome.removed),
        ("2", vec!["reviews".into()])
    );
}

#[test]
fn a_push_is_refused_if_what_it_saw_has_changed_since() {
    let (_folder, store) = open();
    push(&store, put(&[service("reviews", 1)])).unwrap();
    push(&store, put(&[service("ratings", 1)])).unwrap();
    let since = |since| Push {
        unless_changed_since: Some(since),
        dry_run: true,
        restore: false,
        ..put(&[service("reviews", 2)])
    };
    let document = |key: &str, version: &str| Since::Document(key.into(), version.into());
    let table = [
        (Since::Whole("2".into()), true),
        (Since::Whole("1".into()), false),
        (document("reviews", "1"), true),
        (document("reviews", "2"), true),
        (document("reviews", "3"), false),
        (document("reviews", "0"), false),
        (document("ratings", "1"), false),
        (document("details", "1"), false),
        (document("reviews", "x"), false),
        (document("reviews", "*"), true),
        (document("details", "*"), false),
    ];
    for (seen, expected) in table {
        let outcome = push(&store, since(seen.clone()));
        match outcome {
            Ok(_) => assert!(expected, "{seen:?} should have been refused"),
            Err(PushError::Changed { .. }) => assert!(!expected, "{seen:?} should have been taken"),
            Err(other) => panic!("{other}"),
        }
    }
}

#[test]
fn a_serial_number_goes_by_itself_once_what_it_is_about_is_known_to_have_expired() {
    let (_folder, store) = open();
    let leaf = |serial: &str, joined: &str, not_after_ms| Leaf {
        serial: serial.into(),
        service: "reviews".into(),
        not_after_ms,
        root: 1,
        knows_root: 1,
        joined: joined.into(),
        token: String::new(),
        sha256: None,
    };
    let now = millis(OffsetDateTime::now_utc());
    let add = |leaf: Leaf, now_ms| {
        let ledger = store.ledger().unwrap();
        assert!(ledger.add_leaf(&leaf, now_ms).unwrap());
        ledger.commit().unwrap();
    };
    add(leaf("1a", "1a", now - 1_000), 0);
    add(leaf("2b", "2b", now - 1_000), 0);
    // It has expired, and what was renewed from it has not.
    add(leaf("2c", "2b", now + 3_600_000), 0);
    let mesh = |serials: &[&str]| put(&[format!("kind: Mesh\nrevoked: {{ serials: {serials:?} }}\n")]);
    push(&store, mesh(&["1a", "2b", "3c"])).unwrap();
    // The store forgets what has expired with the next that is issued.
    add(leaf("4d", "4d", now + 3_600_000), now);
    assert_eq!(store.leaves(0).unwrap().len(), 2);
    for kept in [["1a", "2b"], ["1a", "3c"]] {
        let refused = push(&store, mesh(&kept)).unwrap_err();
        assert!(matches!(refused, PushError::Refused(_)), "{refused}");
    }
    push(&store, mesh(&["02b", "003c"])).unwrap();
    // What is revoked again, now that nothing is known of it, stays.
    push(&store, mesh(&["1a", "2b", "3c"])).unwrap();
    assert!(push(&store, mesh(&["2b", "3c"])).is_err());
    let restoring = Push {
        restore: true,
        ..mesh(&[])
    };
    push(&store, restoring).unwrap();
    assert!(store.revoked_ends().unwrap().is_empty());
}
