//! What the control API reads of somebody who has not said who he is, each as one function that must hold for every input: it
//! does not panic, and what it made of the bytes is what it may make of them.
//!
//! The fuzz targets of `fuzz/` call these, and so do the tests below, as those of `outrigger_proxy::fuzzing` are called. Nothing
//! of it is compiled into the control API.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::HeaderValue;
use outrigger_config::discovery::{DiscoveryRequest, HAVE_MAX, NOTICES_MAX, PROBLEMS_MAX, WANTS_MAX};
use outrigger_config::join::{IdentityRequest, JoinToken, RefusalReason};
use outrigger_config::{Document, Kind};
use rcgen::{PublicKeyData, SubjectPublicKeyInfo};

use crate::ca::csr;
use crate::discovery::{Decision, decide, settle};
use crate::nodes::Nodes;
use crate::server;
use crate::store::{Head, Stored};

/// A signing request in PEM: of what is taken only its key is left, and the rest is refused by its name.
pub fn signing_request(text: &str) {
    match csr::public_key(text) {
        Ok(key) => {
            let der = key.subject_public_key_info();
            let again = SubjectPublicKeyInfo::from_der(&der).map(|key| key.subject_public_key_info());
            assert_eq!(again.ok(), Some(der), "another reader has another key");
        }
        Err(refused) => {
            assert!(!refused.sentence.is_empty(), "refused without a word");
            assert!(matches!(
                refused.reason,
                RefusalReason::MalformedCsr | RefusalReason::CsrSignature | RefusalReason::KeyNotAllowed
            ));
        }
    }
}

/// A join token, which has one form, and is repeated by no refusal.
pub fn join_token(text: &str) {
    match text.parse::<JoinToken>() {
        Ok(token) => {
            assert_eq!(token.to_string(), text.trim());
            let secret = text.trim().split('.').nth(2).unwrap_or_default();
            assert!(!format!("{token:?}").contains(secret), "it is printed");
        }
        Err(refusal) => assert!(refusal.len() < 200, "it may repeat what it was given"),
    }
}

/// The body of a request for a certificate, and what is in it.
pub fn identity_request(bytes: &[u8]) {
    let Ok(request) = serde_json::from_slice::<IdentityRequest>(bytes) else {
        return;
    };
    says_itself(&request);
    signing_request(&request.csr);
    if let Some(token) = &request.token {
        join_token(token);
    }
}

/// The body of a poll: no longer than it may be, and answered the same whether it is kept whole while it waits or not.
pub fn poll(bytes: &[u8]) {
    let Ok(request) = serde_json::from_slice::<DiscoveryRequest>(bytes) else {
        return;
    };
    assert!(request.want.len() <= WANTS_MAX && request.notices.len() <= NOTICES_MAX);
    assert!(request.have.as_ref().is_none_or(|have| have.len() <= HAVE_MAX));
    let problems = request.error.as_ref().map_or(0, |error| error.problems.len());
    assert!(problems <= PROBLEMS_MAX);
    says_itself(&request);
    let nodes = Arc::new(Nodes::of_store("ours".into()));
    let Ok(entered) = nodes.enter(&request, None) else {
        return;
    };
    let (now, next) = (head(7), head(8));
    let refused = entered.refused();
    if decide(&request, &now, refused) == Decision::Hold {
        let mut kept = request.clone();
        if settle(&mut kept, &now, refused) {
            assert_eq!(decide(&kept, &next, refused), decide(&request, &next, refused));
        }
    }
    entered.end();
}

/// What stands in `Authorization`, of which a token is taken as it is.
pub fn bearer(bytes: &[u8]) {
    let Ok(value) = HeaderValue::from_bytes(bytes) else {
        return;
    };
    let Some(token) = server::read_bearer(&value) else {
        return;
    };
    assert!(bytes.trim_ascii_end().ends_with(token.as_bytes()));
    assert!(bytes[..6].eq_ignore_ascii_case(b"bearer"));
    assert_eq!(token.trim(), token);
    if server::is_operator_token(token) {
        // Five characters and 43 that say 256 bits.
        assert_eq!(token.len(), 48);
    }
}

/// Whether a value that was read is the one that it says in turn.
fn says_itself<T>(value: &T)
where
    T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug,
{
    let said = serde_json::to_vec(value).ok();
    let again = said.and_then(|said| serde_json::from_slice::<T>(&said).ok());
    assert_eq!(again.as_ref(), Some(value));
}

/// What is current at revision 7; at 8, `reviews` has changed and `ratings` is gone.
fn head(revision: u64) -> Head {
    let document = |name: &str, version: u64| {
        let document = Document {
            kind: Kind::Service,
            name: name.to_owned(),
            file: String::new(),
            line: 1,
            text: String::new(),
        };
        let stored = Stored {
            version,
            document: Arc::new(document),
        };
        (name.to_owned(), stored)
    };
    let (documents, removed) = if revision == 7 {
        (vec![document("reviews", 7), document("ratings", 3)], None)
    } else {
        (
            vec![document("reviews", revision)],
            Some(("ratings".to_owned(), revision)),
        )
    };
    Head {
        store: "ours".into(),
        revision,
        documents: documents.into_iter().collect(),
        removed: removed.into_iter().collect::<BTreeMap<_, _>>(),
        forgotten: 0,
    }
}

#[cfg(test)]
#[path = "../../fuzz/corpus.rs"]
mod corpus;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::Index;

    use super::corpus::{Target, change, corpus, has_each_target, make, text};
    use super::*;

    /// What is called, by the name of its target; text that is none is left out.
    const TARGETS: &[(&str, Target)] = &[
        ("signing_request", |bytes| text(bytes, signing_request)),
        ("join_token", |bytes| text(bytes, join_token)),
        ("identity_request", identity_request),
        ("poll", poll),
        ("bearer", bearer),
    ];

    #[test]
    fn every_target_has_a_file_and_a_corpus_and_holds_on_it() {
        has_each_target("outrigger_control", TARGETS);
    }

    #[test]
    fn the_corpus_has_one_of_each_that_is_taken() {
        let texts = |target| {
            corpus(target)
                .into_iter()
                .map(|bytes| String::from_utf8(bytes).unwrap())
        };
        assert!(texts("signing_request").any(|text| csr::public_key(&text).is_ok()));
        assert!(texts("join_token").any(|text| text.parse::<JoinToken>().is_ok()));
        let polls = corpus("poll");
        let polls = polls
            .iter()
            .map(|bytes| serde_json::from_slice::<DiscoveryRequest>(bytes));
        assert!(
            polls
                .flatten()
                .any(|poll| decide(&poll, &head(7), None) == Decision::Hold)
        );
        let values = corpus("bearer")
            .into_iter()
            .map(|bytes| HeaderValue::from_bytes(&bytes));
        assert!(
            values
                .flatten()
                .any(|value| server::read_bearer(&value).is_some())
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn every_target_holds_on_what_a_few_changes_make_of_its_corpus(
            seed in any::<Index>(),
            changes in prop::collection::vec(change(), 0..6),
        ) {
            for (name, target) in TARGETS {
                let corpus = corpus(name);
                let mut bytes = seed.get(&corpus).clone();
                changes.iter().for_each(|change| make(&mut bytes, change));
                target(&bytes);
            }
        }

        #[test]
        fn every_target_holds_on_any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            for (_, target) in TARGETS {
                target(&bytes);
            }
        }
    }
}
