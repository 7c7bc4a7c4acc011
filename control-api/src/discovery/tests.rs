use std::sync::Arc;

use outrigger_config::discovery::{Node, Refusal};
use outrigger_config::{Document, Kind};

use super::*;
use crate::store::Stored;

/// Revision 7: `@mesh` last changed at 2, `ratings` at 3, `reviews` at 7; `details` was removed at 5.
fn head() -> Head {
    let documents = [("@mesh", 2), ("ratings", 3), ("reviews", 7)];
    let documents = documents.into_iter().map(|(key, version)| {
        let kind = if key == MESH_KEY {
            Kind::Mesh
        } else {
            Kind::Service
        };
        let document = Document {
            kind,
            name: key.into(),
            file: String::new(),
            line: 1,
            text: String::new(),
        };
        let stored = Stored {
            version,
            document: Arc::new(document),
        };
        (key.to_owned(), stored)
    });
    Head {
        store: "ours".into(),
        revision: 7,
        documents: documents.collect(),
        removed: BTreeMap::from([("details".to_owned(), 5)]),
        forgotten: 0,
    }
}

fn poll(version: &str) -> DiscoveryRequest {
    DiscoveryRequest {
        node: Node {
            id: "a".into(),
            ..Node::default()
        },
        want: vec!["*".into()],
        version: version.into(),
        ..DiscoveryRequest::default()
    }
}

fn wanting(version: &str, want: &[&str]) -> DiscoveryRequest {
    DiscoveryRequest {
        want: want.iter().map(|name| (*name).to_owned()).collect(),
        ..poll(version)
    }
}

fn having(version: &str, have: &[(&str, &str)]) -> DiscoveryRequest {
    let have = have
        .iter()
        .map(|(key, held)| ((*key).to_owned(), (*held).to_owned()));
    DiscoveryRequest {
        have: Some(have.collect()),
        ..poll(version)
    }
}

fn answering(version: &str, nonce: &str, refused: bool) -> DiscoveryRequest {
    DiscoveryRequest {
        nonce: nonce.into(),
        error: refused.then(Refusal::default),
        ..poll(version)
    }
}

fn told(changed: &[&str], removed: &[&str]) -> Decision {
    let owned = |keys: &[&str]| keys.iter().map(|key| (*key).to_owned()).collect();
    Decision::Respond(Difference {
        changed: owned(changed),
        removed: owned(removed),
    })
}

#[test]
fn a_poll_is_told_what_differs_from_what_it_holds() {
    let all: &[&str] = &["@mesh", "ratings", "reviews"];
    let table = [
        ("first poll", poll(""), told(all, &[])),
        (
            "first poll, one service",
            wanting("", &["ratings"]),
            told(&["@mesh", "ratings"], &[]),
        ),
        ("first poll, no service", wanting("", &[]), told(&["@mesh"], &[])),
        ("up to date", poll("7"), Decision::Hold),
        ("one push behind", poll("6"), told(&["reviews"], &[])),
        ("behind a removal", poll("4"), told(&["reviews"], &["details"])),
        (
            "behind a removal it never wanted",
            wanting("4", &["reviews"]),
            told(&["reviews"], &[]),
        ),
        (
            "behind nothing that concerns it",
            wanting("6", &["ratings"]),
            told(&[], &[]),
        ),
        ("it held an empty store", poll("0"), told(all, &["details"])),
        (
            "has everything",
            having("7", &[("@mesh", "2"), ("ratings", "3"), ("reviews", "7")]),
            Decision::Hold,
        ),
        (
            "has everything, but not the version",
            having("", &[("@mesh", "2"), ("ratings", "3"), ("reviews", "7")]),
            told(&[], &[]),
        ),
        ("has nothing", having("", &[]), told(all, &[])),
        (
            "has an old one and one that is gone",
            having(
                "4",
                &[
                    ("@mesh", "2"),
                    ("ratings", "3"),
                    ("reviews", "1"),
                    ("details", "4"),
                ],
            ),
            told(&["reviews"], &["details"]),
        ),
        (
            "has a version of another store",
            having("99", &[("@mesh", "2"), ("ratings", "88"), ("reviews", "7")]),
            told(&["ratings"], &[]),
        ),
        (
            "has one that it wants no more",
            DiscoveryRequest {
                want: vec!["reviews".into()],
                ..having("7", &[("@mesh", "2"), ("ratings", "3"), ("reviews", "7")])
            },
            told(&[], &["ratings"]),
        ),
    ];
    for (case, request, expected) in table {
        assert_eq!(decide(&request, &head(), None), expected, "{case}");
    }
}

#[test]
fn a_version_that_is_not_of_this_store_is_asked_for_what_it_has() {
    for version in ["8", "new", "-1"] {
        assert_eq!(
            decide(&poll(version), &head(), None),
            Decision::UnknownVersion,
            "{version}"
        );
    }
}

fn of_another_store(request: DiscoveryRequest) -> DiscoveryRequest {
    DiscoveryRequest {
        store: "theirs".into(),
        ..request
    }
}

#[test]
fn what_another_store_gave_is_replaced_whole_whatever_its_numbers() {
    let same_numbers = [
        ("@mesh", "2"),
        ("ratings", "3"),
        ("reviews", "7"),
        ("theirs", "1"),
    ];
    assert_eq!(
        decide(&of_another_store(having("7", &same_numbers)), &head(), None),
        told(&["@mesh", "ratings", "reviews"], &["theirs"])
    );
    assert_eq!(
        decide(&of_another_store(poll("7")), &head(), None),
        Decision::UnknownVersion,
        "it must say what it has, or what is gone could not be told"
    );
    let nack = of_another_store(answering("7", "n1", true));
    assert_eq!(decide(&nack, &head(), Some(7)), Decision::Hold);
}

#[test]
fn a_store_that_was_never_pushed_to_takes_nothing_from_sidecars_of_another() {
    let empty = Head {
        store: "ours".into(),
        ..Head::default()
    };
    for request in [poll("7"), having("7", &[("reviews", "7")]), poll("0")] {
        assert_eq!(decide(&of_another_store(request), &empty, None), Decision::Hold);
    }
}

#[test]
fn a_number_of_another_store_acknowledges_nothing() {
    let sent = Sent {
        nonce: "n2".into(),
        version: 7,
    };
    let request = of_another_store(answering("7", "n2", false));
    assert_eq!(answer(&request, Some(&sent), "ours"), Answer::Holds);
}

#[test]
fn a_refused_version_is_not_sent_again_until_the_head_moves_past_it() {
    let nack = answering("6", "n1", true);
    assert_eq!(decide(&nack, &head(), Some(7)), Decision::Hold);
    assert_eq!(decide(&nack, &head(), Some(6)), told(&["reviews"], &[]));
    let first_ever = answering("", "n1", true);
    assert_eq!(decide(&first_ever, &head(), Some(7)), Decision::Hold);
    let quiet_hold_ended = poll("6");
    assert_eq!(decide(&quiet_hold_ended, &head(), Some(7)), Decision::Hold);
}

#[test]
fn a_node_that_starts_anew_is_sent_what_its_earlier_run_refused() {
    assert_eq!(
        decide(&poll(""), &head(), Some(7)),
        told(&["@mesh", "ratings", "reviews"], &[])
    );
    let back = having("6", &[("@mesh", "2"), ("ratings", "3"), ("reviews", "6")]);
    assert_eq!(decide(&back, &head(), Some(7)), told(&["reviews"], &[]));
}

#[test]
fn a_new_sidecar_of_an_empty_store_is_told_so_and_then_held() {
    let empty = Head::default();
    assert_eq!(decide(&poll(""), &empty, None), told(&[], &[]));
    assert_eq!(decide(&poll("0"), &empty, None), Decision::Hold);
}

#[test]
fn an_answer_counts_only_for_the_response_that_was_sent_last() {
    let sent = Sent {
        nonce: "n2".into(),
        version: 7,
    };
    let table = [
        ("ACK", answering("7", "n2", false), Answer::Applied(7)),
        ("NACK", answering("6", "n2", true), Answer::Refused(7)),
        (
            "polls again after a refusal and a hold",
            answering("6", "n2", false),
            Answer::Holds,
        ),
        ("ACK of an older one", answering("6", "n1", false), Answer::Stale),
        ("NACK of an older one", answering("5", "n1", true), Answer::Stale),
        ("first poll", poll(""), Answer::Holds),
        ("after a break", having("6", &[]), Answer::Holds),
    ];
    for (case, request, expected) in table {
        assert_eq!(answer(&request, Some(&sent), ""), expected, "{case}");
    }
    let after_restart_of_the_server = answering("6", "n1", true);
    assert_eq!(answer(&after_restart_of_the_server, None, ""), Answer::Holds);
}

#[test]
fn a_node_that_is_older_than_what_is_forgotten_is_asked_for_what_it_has() {
    let head = Head {
        forgotten: 4,
        ..head()
    };
    assert_eq!(decide(&poll("3"), &head, None), Decision::UnknownVersion);
    assert_eq!(decide(&poll("4"), &head, None), told(&["reviews"], &["details"]));
    assert_eq!(
        decide(&having("3", &[("ratings", "3"), ("older", "1")]), &head, None),
        told(&["@mesh", "reviews"], &["older"])
    );
}

#[test]
fn what_is_kept_of_a_held_poll_is_short_and_decides_as_the_whole_would() {
    let head = head();
    let held = [("@mesh", "2"), ("ratings", "3"), ("reviews", "7")];
    let mut next = head.clone();
    next.revision = 8;
    next.documents.remove("ratings");
    next.removed.insert("ratings".to_owned(), 8);
    next.documents.get_mut("reviews").unwrap().version = 8;
    let mut whole = having("7", &held);
    whole.want.push("ratings".to_owned());
    whole.notices = vec!["slow".to_owned()];
    let mut kept = whole.clone();
    assert_eq!(decide(&whole, &head, None), Decision::Hold);
    assert!(settle(&mut kept, &head, None));
    assert_eq!((&kept.have, kept.want.len(), kept.notices.len()), (&None, 1, 0));
    assert_eq!(decide(&kept, &next, None), told(&["reviews"], &["ratings"]));
    assert_eq!(decide(&whole, &next, None), decide(&kept, &next, None));

    // One that refused what is current, and one whose store is another, have to say again what they hold, if they did.
    let mut refused = DiscoveryRequest {
        nonce: "n".into(),
        ..having("7", &held)
    };
    assert_eq!(decide(&refused, &head, Some(7)), Decision::Hold);
    assert!(!settle(&mut refused, &head, Some(7)));
    assert!(settle(&mut answering("6", "n", true), &head, Some(7)));
    let mut foreign = DiscoveryRequest {
        store: "theirs".into(),
        ..having("7", &held)
    };
    assert!(!settle(&mut foreign, &head, None));
}
