//! The two questions for the addresses of a name, and which of them is waited for.
//!
//! What one says is used at once, and the other may come later ([`Late`]): servers and middleboxes that are silent to AAAA
//! alone are common (RFC 4074 section 4.1), and a name must not be found by the timeout of a question that nobody answers.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use outrigger_config::discover::Family;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::upstream::discovery::answer::{Answer, AnsweredBy, Bad, Found, Part, Version, Why, joined};
use crate::upstream::discovery::asking::servers::{Server, parsed, versions};

/// How long the addresses of one family wait for those of the other (RFC 8305 section 3, the resolution delay).
const RESOLUTION_DELAY: Duration = Duration::from_millis(50);

/// Questions under way that nobody waits for, at the servers of one list: as many as those that somebody does. Past that
/// a question is given up, and asked again with the next.
pub(super) const LATE_MAX: usize = 32;

type Question = Pin<Box<dyn Future<Output = Found> + Send>>;

/// What was answered, and what is still to come.
pub(in crate::upstream::discovery) struct Asked {
    pub(in crate::upstream::discovery) answer: Answer,
    pub(in crate::upstream::discovery) late: Option<Late>,
    /// Whether it took so long that the next question for the name shares the few places of those.
    pub(in crate::upstream::discovery) is_slow: bool,
}

impl From<Answer> for Asked {
    fn from(answer: Answer) -> Self {
        Self {
            answer,
            late: None,
            is_slow: false,
        }
    }
}

/// The question for one family, whose answer is still to come though the name has been answered. Given up when dropped.
pub(in crate::upstream::discovery) struct Late {
    pub(in crate::upstream::discovery) version: Version,
    question: Question,
    _place: OwnedSemaphorePermit,
}

impl Late {
    /// What is found. Not to be called again once it is.
    pub(in crate::upstream::discovery) async fn found(&mut self) -> Found {
        (&mut self.question).await
    }
}

/// Asks one server for the addresses of a name. `places`: of the questions that nobody waits for.
pub(super) async fn ask_addresses(
    server: &Arc<Server>,
    edns: bool,
    (text, family): (&str, Family),
    places: &Arc<Semaphore>,
) -> Asked {
    let name = match parsed(text) {
        Ok(name) => name,
        Err(bad) => return Err(bad).into(),
    };
    let from = AnsweredBy::Server(server.address());
    // In boxes, since they are large and a question is short beside the time between two.
    let question = |version: Version| -> Question {
        let (server, name) = (Arc::clone(server), name.clone());
        Box::pin(async move { server.find(edns, name, version).await })
    };
    let [first, second] = match versions(family) {
        [first, second] => [*first, *second],
        only => {
            let mut parts = Vec::with_capacity(only.len());
            for version in only {
                let found = question(*version).await;
                parts.push(Part {
                    version: *version,
                    found,
                });
            }
            return joined(parts, text, &from).into();
        }
    };
    let (mut one, mut other) = (question(first), question(second));
    let (early, version, mut open) = tokio::select! {
        biased;
        found = &mut one => (Part { version: first, found }, second, other),
        found = &mut other => (Part { version: second, found }, first, one),
    };
    // A name that has no address of one family may have some of the other, which is waited for; but for AAAA no longer
    // where the server does not answer that.
    let is_enough = early.found.is_good()
        || early.found.is_conclusive() && version == Version::V6 && server.is_silent_to_six();
    let found = if is_enough {
        tokio::time::timeout(RESOLUTION_DELAY, &mut open).await.ok()
    } else {
        Some(open.as_mut().await)
    };
    let place = match (&found, early.found.is_good()) {
        (None, true) => Arc::clone(places).try_acquire_owned().ok(),
        _ => None,
    };
    let late = place.map(|place| Late {
        version,
        question: open,
        _place: place,
    });
    // What nobody waits for any more is in vain: else the family would seem well, and its addresses be kept for ever.
    let found = found.unwrap_or_else(|| match late {
        Some(_) => Found::Awaited,
        None => given_up(),
    });
    let answer = joined(vec![early, Part { version, found }], text, &from);
    Asked {
        answer,
        late,
        is_slow: false,
    }
}

/// What a question has found that was given up.
pub(in crate::upstream::discovery) const fn given_up() -> Found {
    Found::Nothing(Bad {
        why: Why::TimedOut,
        ttl: None,
    })
}
