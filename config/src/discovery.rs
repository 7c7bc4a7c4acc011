//! What a sidecar and the control API say to each other: one long poll, `POST /v1/discovery`.
//!
//! It keeps what is good in xDS (versions of content, nonces of messages, ACK and NACK, what is held after a
//! reconnect) and drops the rest: there is one state of the world for a node and so no order to get wrong.

use serde::{Deserialize, Serialize};

use crate::units::Duration;
use crate::{Document, Problem, bounded};

/// How long the control API holds a poll that has nothing to tell, unless the poll asks for less. Shorter than the
/// 60 s at which load balancers commonly cut a quiet connection.
pub const HOLD_DEFAULT: Duration = Duration::from_secs(25);

/// The longest hold that a poll may ask for.
pub const HOLD_MAX: Duration = Duration::from_secs(55);

/// The field of every answer to a poll, of one that tells nothing new too, which names the roots of the mesh and which of
/// them signs. Whoever has a certificate of this CA that came with another word (`IdentityAnswer::roots`) asks for another.
pub const ROOTS_HEADER: &str = "outrigger-roots";

/// The most notices of one poll: more than a person reads at once; the sidecar's own `/clusters` shows all.
pub const NOTICES_MAX: usize = 16;

/// The longest notice, in bytes: the longest name, and as much of a sentence. Longer ones are cut.
pub const NOTICE_BYTES_MAX: usize = 512;

/// The most names of `want`: more than any service calls, and where it calls more, `*` is told sooner.
pub const WANTS_MAX: usize = 512;

/// The most documents of `have`: as many as a mesh may hold.
pub const HAVE_MAX: usize = 10_000;

/// The longest name or version in a poll, in bytes: the longest host name.
pub const NAME_BYTES_MAX: usize = 253;

/// How many problems of a refusal are read: more than a person reads at once; the sidecar itself shows all. A sidecar
/// tells a hundred, and one that says how many more there are.
pub const PROBLEMS_MAX: usize = 101;

/// As many of these notices as are kept of a poll, each as long as it may be.
#[must_use]
pub fn bounded_notices<'a>(notices: impl IntoIterator<Item = &'a String>) -> Vec<String> {
    let cut = |notice: &String| notice[..notice.floor_char_boundary(NOTICE_BYTES_MAX)].to_owned();
    notices.into_iter().take(NOTICES_MAX).map(cut).collect()
}

/// Who polls: fixed while the sidecar runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// Unique among the sidecars of the mesh.
    pub id: String,
    /// The service whose instance this sidecar stands beside; empty for one that only calls out.
    #[serde(default)]
    pub service: String,
    /// The version of that instance, as its operator calls it.
    #[serde(default)]
    pub version: String,
    /// Where it runs.
    #[serde(default)]
    pub zone: String,
    /// Drawn anew by every process, so that two that were given one id are told apart. Whoever polls by hand can leave
    /// it out.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub instance: String,
}

/// The identity that a sidecar shows to others, as it says itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shown {
    /// Its SPIFFE ID.
    pub spiffe_id: String,
    /// When its certificate expires, in seconds since 1970.
    pub not_after: i64,
}

/// One poll. It carries the answer to the last response: the nonce alone is an ACK, the nonce with an `error` a NACK.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiscoveryRequest {
    /// Who polls.
    pub node: Node,
    /// The services it wants to know, `*` for all; at most [`WANTS_MAX`]. The `Mesh` document always comes along.
    #[serde(deserialize_with = "bounded::wants")]
    pub want: Vec<String>,
    /// The store that gave what it holds ([`DiscoveryResponse::store`]); empty when it holds nothing, and for one that
    /// does not mind which. Versions of different stores are never the same, whatever their numbers.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub store: String,
    /// What it holds: key of a document ([`Document::key`]) → version. Sent on the first poll and after any break,
    /// when the two sides may disagree on what was received; left out otherwise. At most [`HAVE_MAX`].
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "bounded::have"
    )]
    pub have: Option<std::collections::BTreeMap<String, String>>,
    /// The last version that was applied whole; empty before the first.
    #[serde(default)]
    pub version: String,
    /// The nonce of the response that this poll answers; empty on the first poll and after any break.
    #[serde(default)]
    pub nonce: String,
    /// Why that response was refused. Absent: it was applied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Refusal>,
    /// The identity of the sidecar, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<Shown>,
    /// The roots that it was last told of, as [`ROOTS_HEADER`] named them; empty for one to which they are nothing. A poll
    /// is answered as soon as they are others.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub roots: String,
    /// What the sidecar is worried about, in sentences for people, the oldest first: at most [`NOTICES_MAX`] of at most
    /// [`NOTICE_BYTES_MAX`] bytes are kept.
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "bounded::notices"
    )]
    pub notices: Vec<String>,
    /// How long the control API may hold the poll; [`HOLD_DEFAULT`] if absent, at most [`HOLD_MAX`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold: Option<Duration>,
}

/// Why a response was refused: every problem that was found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// The problems, in the words of `outrigger check`; at most [`PROBLEMS_MAX`] are read.
    #[serde(deserialize_with = "bounded::problems")]
    pub problems: Vec<Problem>,
}

/// What changed since the state that the poll named. No change within the hold is HTTP 204 with no body.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiscoveryResponse {
    /// The version of the whole, which the sidecar holds once it has applied this.
    pub version: String,
    /// Names this message; the next poll carries it back.
    pub nonce: String,
    /// The store that `version` counts in, by the name that was drawn when it was made.
    #[serde(default)]
    pub store: String,
    /// Documents that are new or different, each whole.
    pub changed: Vec<Versioned>,
    /// Keys of documents that are gone.
    pub removed: Vec<String>,
}

/// A document and the version at which it last changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versioned {
    /// The version of the whole at which this document last changed.
    pub version: String,
    /// The document itself.
    #[serde(flatten)]
    pub document: Document,
}
