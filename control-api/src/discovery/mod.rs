//! What a poll is told: pure decisions, from the request and the store's state to an answer.
//!
//! **Does not** wait, send or remember: the handler in [`crate::server`] waits, [`crate::nodes`] remembers.
//!
//! **Invariant:** a poll is never told the same version again after it refused it, and never told nothing when it
//! is behind.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use outrigger_config::MESH_KEY;
use outrigger_config::discovery::DiscoveryRequest;

use crate::store::Head;

/// The last response that was sent to a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent {
    /// The name of the message.
    pub nonce: String,
    /// The version that it brought.
    pub version: u64,
}

/// Whether what the node of `request` holds came from another store than `store`: then no number of it means
/// anything here.
pub fn is_foreign(request: &DiscoveryRequest, store: &str) -> bool {
    !request.store.is_empty() && request.store != store
}

/// What a poll says about the response before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// ACK: the version that was sent last is applied.
    Applied(u64),
    /// NACK: the version that was sent last was refused.
    Refused(u64),
    /// It answers nothing, and tells what the node holds: a first poll, one after a break, or one after a quiet hold.
    Holds,
    /// It answers a message that is no longer the last one: whatever it says is out of date.
    Stale,
}

/// Reads the answer that a poll carries to the last response that was `sent` to its node from `store`.
pub fn answer(request: &DiscoveryRequest, sent: Option<&Sent>, store: &str) -> Answer {
    match sent {
        Some(sent) if sent.nonce == request.nonce => match &request.error {
            Some(_) => Answer::Refused(sent.version),
            None if !is_foreign(request, store) && request.version == sent.version.to_string() => {
                Answer::Applied(sent.version)
            }
            // A node that refused, and polls again after a quiet hold, repeats the nonce with its old version.
            None => Answer::Holds,
        },
        Some(_) if !request.nonce.is_empty() && request.have.is_none() => Answer::Stale,
        _ => Answer::Holds,
    }
}

/// What to do with a poll.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Tell it this, now.
    Respond(Difference),
    /// It knows everything that concerns it: wait for a change.
    Hold,
    /// The version that it names is of another store, or older than what is remembered: it must say what it has.
    UnknownVersion,
}

/// What differs between what a node holds and what is current; both may be empty when only the version moved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// Keys of documents that are new or different.
    pub changed: Vec<String>,
    /// Keys of documents that are gone, or that the node wants no more.
    pub removed: Vec<String>,
}

/// The state from which a difference is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base<'a> {
    /// It holds nothing.
    Nothing,
    /// It holds what was current at this revision.
    At(u64),
    /// It says itself what it holds.
    Have(&'a BTreeMap<String, String>),
    /// It says itself what it holds, and all of that is of another store.
    Foreign(&'a BTreeMap<String, String>),
}

/// What the node of `request` holds, as far as this store can tell; `None` when its version is not one of ours.
pub fn base<'a>(request: &'a DiscoveryRequest, head: &Head) -> Option<Base<'a>> {
    let foreign = is_foreign(request, &head.store);
    match (&request.have, request.version.as_str()) {
        // Who starts holds nothing, of whichever store: an answer that is the same for all of them.
        (Some(have), _) if have.is_empty() => Some(Base::Nothing),
        (Some(have), _) if foreign => Some(Base::Foreign(have)),
        (Some(have), _) => Some(Base::Have(have)),
        (None, _) if foreign => None,
        (None, "") => Some(Base::Nothing),
        (None, version) => {
            let version = version.parse::<u64>().ok();
            // What went since an older one than `forgotten` is not all known any more.
            let known = head.forgotten..=head.revision;
            version.filter(|version| known.contains(version)).map(Base::At)
        }
    }
}

/// Decides what to do with a poll whose node last refused the version `refused`.
pub fn decide(request: &DiscoveryRequest, head: &Head, refused: Option<u64>) -> Decision {
    let foreign = is_foreign(request, &head.store);
    // A store that was never pushed to has no say over what sidecars hold from the one before it: that its folder was
    // lost is far likelier than that someone wants everything gone.
    if foreign && head.revision == 0 {
        return Decision::Hold;
    }
    if refused == Some(head.revision) && !starts_anew(request) {
        return Decision::Hold;
    }
    let Some(base) = base(request, head) else {
        return Decision::UnknownVersion;
    };
    let difference = difference(&base, &request.want, head);
    let current = !foreign && request.version == head.revision.to_string();
    if difference == Difference::default() && current {
        return Decision::Hold;
    }
    Decision::Respond(difference)
}

/// Lets go of what a poll need not keep while it is held at this head: it may be long, and is held for a minute. Whether the
/// rest is enough to decide by at the next head; if not, the node has to say it again.
pub fn settle(request: &mut DiscoveryRequest, head: &Head, refused: Option<u64>) -> bool {
    // Then it holds what is current, as its version says by itself.
    let is_current = !is_foreign(request, &head.store)
        && request.version == head.revision.to_string()
        && refused != Some(head.revision);
    let has_said = request.have.take().is_some();
    if request.want.iter().any(|name| name == "*") {
        request.want = vec!["*".to_owned()];
    }
    request.want.shrink_to_fit();
    (request.error, request.identity, request.notices) = (None, None, Vec::new());
    !has_said || is_current
}

/// A node that just started, or comes back after a break: what an earlier run of it refused does not bind it.
fn starts_anew(request: &DiscoveryRequest) -> bool {
    request.nonce.is_empty() && (request.have.is_some() || request.version.is_empty())
}

/// What differs between `base` and `head` among the services that are wanted.
fn difference(base: &Base<'_>, want: &[String], head: &Head) -> Difference {
    let all = want.iter().any(|name| name == "*");
    let wanted = |key: &str| all || key == MESH_KEY || want.iter().any(|name| name == key);
    let held = |key: &str, version: u64| match base {
        Base::Nothing | Base::Foreign(_) => false,
        Base::At(revision) => version <= *revision,
        Base::Have(have) => have.get(key).is_some_and(|held| *held == version.to_string()),
    };
    let changed = head
        .documents
        .iter()
        .filter(|(key, stored)| !held(key, stored.version) && wanted(key))
        .map(|(key, _)| key.clone())
        .collect();
    let removed = match base {
        Base::Nothing => Vec::new(),
        Base::At(revision) => {
            let gone = head.removed.iter();
            let gone = gone.filter(|(key, version)| *version > revision && wanted(key));
            gone.map(|(key, _)| key.clone()).collect()
        }
        Base::Have(have) | Base::Foreign(have) => {
            let keys = have.keys();
            let gone = keys.filter(|key| !head.documents.contains_key(*key) || !wanted(key));
            gone.cloned().collect()
        }
    };
    Difference { changed, removed }
}
