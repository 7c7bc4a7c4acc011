//! Who polls, what each holds, and what it answered last.
//!
//! Kept in memory only: after a restart of the control API the sidecars come back and say it all again.
//!
//! **Does not** decide what a poll is told: [`crate::discovery`] does.
//!
//! **Invariant:** every poll that [`Nodes::enter`] lets in ends by the drop of its [`Poll`], however it ends.

mod problems;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use outrigger_config::Problem;
use outrigger_config::discovery::{DiscoveryRequest, NAME_BYTES_MAX, Node, Shown, bounded_notices};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::Instant;

use self::problems::bounded_problems;
use crate::ca::revoked::RevokedSet;
use crate::discovery::{Answer, Sent, answer, is_foreign};

/// How many sidecars are remembered: the size that one control API is measured for. One more is turned away.
const NODES_MAX: usize = 10_000;

/// How long a sidecar that does not poll is remembered: long enough to see who went during a deployment.
const FORGET_AFTER: Duration = Duration::from_secs(600);

/// How long a sidecar counts as connected between two polls: it applies what it was told before it asks again.
const GRACE: Duration = Duration::from_secs(2);

/// A SPIFFE ID has at most so many (SPIFFE-ID, section 2.3).
const SPIFFE_ID_BYTES_MAX: usize = 2048;

/// Everyone who polled lately.
#[derive(Debug)]
pub struct Nodes {
    /// The name of the store whose versions are told.
    store: Arc<str>,
    table: Mutex<Table>,
    /// Counts the changes that someone who watches the table would want to see.
    changes: watch::Sender<u64>,
    /// Begins every nonce of this run, so that none of an earlier run is taken for ours.
    run: String,
    nonces: AtomicU64,
}

/// By id, and then by process: an id should have one, and may have more by mistake.
type Table = BTreeMap<Key, Entry>;

/// Who polls. What was proved is part of it, so that nobody without that proof ever stands in another's place.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    /// The id of the node.
    id: String,
    /// The process that goes by it.
    instance: String,
    /// The SPIFFE ID that its connection proved; empty for one that proved none.
    proven: String,
}

impl Key {
    fn is_verified(&self) -> bool {
        !self.proven.is_empty()
    }
}

/// The certificate that the connection of a poll has shown, and whose key is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// Whose it is, and when it expires.
    pub shown: Shown,
    /// Its serial number in hexadecimal.
    pub serial: String,
    /// Whether it proves anything today: it is neither revoked nor over.
    pub counts: bool,
}

/// One node.
#[derive(Debug)]
struct Entry {
    about: Node,
    identity: Option<Shown>,
    notices: Vec<String>,
    /// The serial number of the certificate that its connection has shown; empty for none.
    serial: String,
    holds: String,
    /// The store that `holds` counts in; empty when the node does not say.
    holds_store: String,
    sent: Option<Sent>,
    refused: Option<Refused>,
    /// Its last poll brought an answer that was news.
    answered: bool,
    open_polls: usize,
    /// It was said that another process goes by the same id.
    warned: bool,
    /// Its last poll ended because the connection did.
    cut: bool,
    seen: Instant,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Refused {
    version: u64,
    problems: Vec<Problem>,
}

/// Why a poll is turned away.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum NodeError {
    /// It does not say who it is.
    #[error("node.id is empty: every sidecar needs an id of its own, set by --node-id")]
    Nameless,
    /// It says too much.
    #[error(
        "a field of `node`, the version, the nonce or the store is longer than {NAME_BYTES_MAX} bytes, or its SPIFFE ID than \
         {SPIFFE_ID_BYTES_MAX}"
    )]
    TooLong,
    /// There is no room.
    #[error("{NODES_MAX} sidecars are connected, which is as many as one control API serves")]
    Full,
}

/// The answer of `GET /v1/nodes`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeList {
    /// The version of the whole.
    pub version: String,
    /// The store that the version counts in.
    pub store: String,
    /// Counts the changes of this list: asked with `?after=` this number, the next one waits until there is news.
    pub seen: u64,
    /// The nodes, by id.
    pub nodes: Vec<NodeView>,
}

/// One node as an operator sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeView {
    /// Its id.
    pub id: String,
    /// The process, as it calls itself; empty for one that does not say.
    #[serde(default)]
    pub instance: String,
    /// The service that it stands beside.
    pub service: String,
    /// The version of that instance.
    pub version: String,
    /// Where it runs.
    pub zone: String,
    /// It polls, or did a moment ago.
    pub connected: bool,
    /// How long ago it was last heard of.
    pub last_seen_seconds: u64,
    /// The version that it applied last; empty when it has none.
    pub holds: String,
    /// The store that gave `holds`, if it is another than the one here: the number then says nothing here.
    pub holds_store: Option<String>,
    /// The identity that it shows to others, where it has one: from the certificate of its connection where it has
    /// shown one, else as it says itself.
    #[serde(default)]
    pub identity: Option<Shown>,
    /// Whether its connection has proved that identity.
    #[serde(default)]
    pub verified: bool,
    /// Whether the mesh has revoked that identity, or the certificate that it has shown.
    #[serde(default)]
    pub revoked: bool,
    /// How it stands to the current version.
    pub state: NodeState,
    /// What it refused, until it accepts something newer.
    pub refused: Option<RefusedView>,
    /// What it is worried about itself, in its words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notices: Vec<String>,
    /// What is wrong with the node itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// How a node stands to the current version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NodeState {
    /// It holds it.
    InSync,
    /// It has yet to answer.
    Behind,
    /// It refused.
    Refused,
    /// It does not poll any more.
    Gone,
}

impl NodeState {
    /// The word for it, the same as on the wire.
    pub fn word(self) -> &'static str {
        match self {
            Self::InSync => "in-sync",
            Self::Behind => "behind",
            Self::Refused => "refused",
            Self::Gone => "gone",
        }
    }
}

/// What a node refused, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedView {
    /// The version of the whole.
    pub version: String,
    /// The sidecar's words.
    pub problems: Vec<Problem>,
}

impl Nodes {
    /// An empty table of those who follow `store`.
    pub fn of_store(store: Arc<str>) -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            store,
            table: Mutex::default(),
            changes: watch::Sender::new(1),
            run: format!("{:x}", since.as_micros()),
            nonces: AtomicU64::new(1),
        }
    }

    /// Takes in a poll: who it is, what it holds, what it answers. `certificate` is what its connection has shown.
    pub fn enter(
        self: &Arc<Self>,
        request: &DiscoveryRequest,
        certificate: Option<&Certificate>,
    ) -> Result<Poll, NodeError> {
        let about = &request.node;
        hold_lengths(request)?;
        let proven = certificate.filter(|certificate| certificate.counts);
        let key = Key {
            id: about.id.clone(),
            instance: about.instance.clone(),
            proven: proven.map_or_else(String::new, |certificate| certificate.shown.spiffe_id.clone()),
        };
        let mut table = self.lock();
        let known = table.contains_key(&key);
        if !known && table.len() >= NODES_MAX {
            make_room(&mut table, key.is_verified())?;
        }
        if key.is_verified() {
            forget_unproven(&mut table, &key);
        }
        let entry = table.entry(key.clone()).or_insert_with(|| Entry::new(about));
        let news = entry.take(request, certificate, (&self.store, key.is_verified())) || !known;
        let refused = entry.refused.clone().filter(|_| entry.answered);
        let twins = warn_of_twins(&mut table, &key);
        drop(table);
        if twins {
            tracing::warn!(node = about.id, "{}", twins_note(&about.id));
        }
        if !known {
            let verified = key.is_verified();
            tracing::info!(
                node = about.id,
                service = about.service,
                holds = request.version,
                verified,
                "sidecar came"
            );
        }
        if let Some(refused) = refused {
            let (version, problems) = (refused.version, refused.problems.len());
            let problem = refused.problems.first().map(ToString::to_string);
            tracing::warn!(node = about.id, version, problems, problem, "sidecar refused");
        }
        if news {
            self.tell();
        }
        Ok(Poll {
            nodes: self.clone(),
            key,
            answered: false,
        })
    }

    /// Word of each change of the list.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// The list, as it stands against the revision `head` and what is `revoked`.
    pub fn list(&self, head: u64, revoked: &RevokedSet) -> NodeList {
        let seen = *self.changes.borrow();
        let mut table = self.lock();
        table.retain(|_, entry| entry.connected() || entry.seen.elapsed() < FORGET_AFTER);
        let view = |(key, entry): (&Key, &Entry)| {
            let mut view = entry.view(head, &self.store);
            let id = view.identity.as_ref().map_or("", |shown| &shown.spiffe_id);
            view.revoked = revoked.has_identity(id) || revoked.has_serial(&entry.serial);
            view.verified = key.is_verified();
            view
        };
        let mut nodes: Vec<NodeView> = table.iter().map(view).collect();
        drop(table);
        mark_twins(&mut nodes);
        NodeList {
            version: head.to_string(),
            store: self.store.to_string(),
            seen,
            nodes,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // Each change of an entry is complete before anything can panic, so the table is usable after one.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self) {
        self.changes.send_modify(|changes| *changes += 1);
    }
}

/// Holds a poll to what is kept of one.
fn hold_lengths(request: &DiscoveryRequest) -> Result<(), NodeError> {
    let about = &request.node;
    if about.id.is_empty() {
        return Err(NodeError::Nameless);
    }
    let fields = [
        &about.id,
        &about.service,
        &about.version,
        &about.zone,
        &about.instance,
        &request.version,
        &request.store,
        &request.nonce,
    ];
    let identity = request.identity.as_ref();
    if identity.is_some_and(|shown| shown.spiffe_id.len() > SPIFFE_ID_BYTES_MAX)
        || fields.iter().any(|field| field.len() > NAME_BYTES_MAX)
    {
        return Err(NodeError::TooLong);
    }
    Ok(())
}

/// Makes room for one more. Who has proved nothing makes way before who has: for one without proof only others without it
/// that are away, for one that is verified also those that poll, and then the verified that are away. Of equals the one
/// that was heard of longest ago.
fn make_room(table: &mut Table, for_verified: bool) -> Result<(), NodeError> {
    let may_go = |(key, entry): &(&Key, &Entry)| match (key.is_verified(), entry.connected()) {
        (false, false) => true,
        (true, false) | (false, true) => for_verified,
        (true, true) => false,
    };
    let first = table
        .iter()
        .filter(may_go)
        .min_by_key(|(key, entry)| (key.is_verified(), entry.connected(), entry.seen));
    let key = first.map(|(key, _)| key.clone()).ok_or(NodeError::Full)?;
    table.remove(&key);
    Ok(())
}

/// The process has come to prove who it is: what stands there of it without proof is of a moment ago.
fn forget_unproven(table: &mut Table, key: &Key) {
    let unproven = Key {
        proven: String::new(),
        ..key.clone()
    };
    if table.get(&unproven).is_some_and(|entry| entry.open_polls == 0) {
        table.remove(&unproven);
    }
}

/// Whether it has to be said that another process than that of `key` polls under its id. A process that merely went,
/// and came back as another, has no poll open any more.
fn warn_of_twins(table: &mut Table, key: &Key) -> bool {
    let first = Key {
        id: key.id.clone(),
        instance: String::new(),
        proven: String::new(),
    };
    let of_one_id = table
        .range_mut(first..)
        .take_while(|(other, _)| other.id == key.id);
    let mut polling: Vec<&mut Entry> = of_one_id
        .map(|(_, entry)| entry)
        .filter(|entry| entry.open_polls > 0)
        .collect();
    if polling.len() < 2 {
        return false;
    }
    let said = polling.iter().any(|entry| entry.warned);
    for entry in &mut polling {
        entry.warned = true;
    }
    !said
}

fn twins_note(id: &str) -> String {
    format!("two sidecars call themselves {id}; give each its own --node-id")
}

/// Notes whoever shares its id with another that is connected, and leaves out the earlier runs of one that came back. One
/// that is not verified hides none that is.
fn mark_twins(nodes: &mut Vec<NodeView>) {
    let mut connected: BTreeMap<String, (usize, bool)> = BTreeMap::new();
    for node in nodes.iter().filter(|node| node.connected) {
        let (count, verified) = connected.entry(node.id.clone()).or_default();
        *count += 1;
        *verified |= node.verified;
    }
    let has_come_back = |node: &NodeView| {
        let now = connected.get(&node.id);
        now.is_some_and(|(_, verified)| *verified || !node.verified)
    };
    nodes.retain(|node| node.connected || !has_come_back(node));
    for node in nodes {
        let shared = connected.get(&node.id).is_some_and(|(count, _)| *count > 1);
        node.note = shared.then(|| twins_note(&node.id));
    }
}

impl Entry {
    fn new(about: &Node) -> Self {
        Self {
            about: about.clone(),
            identity: None,
            notices: Vec::new(),
            serial: String::new(),
            holds: String::new(),
            holds_store: String::new(),
            sent: None,
            refused: None,
            answered: false,
            open_polls: 0,
            warned: false,
            cut: false,
            seen: Instant::now(),
        }
    }

    /// Takes in a poll; true if it brings news.
    fn take(
        &mut self,
        request: &DiscoveryRequest,
        certificate: Option<&Certificate>,
        (store, verified): (&str, bool),
    ) -> bool {
        let identity = certificate.map(|certificate| &certificate.shown);
        let identity = identity.or(request.identity.as_ref());
        let mut news = !self.connected() || self.about != request.node;
        let notices = bounded_notices(&request.notices);
        news |= self.identity.as_ref() != identity || self.notices != notices;
        self.notices = notices;
        self.about.clone_from(&request.node);
        self.identity = identity.cloned();
        self.serial = certificate.map_or_else(String::new, |certificate| certificate.serial.clone());
        self.answered = self.take_answer(request, store, verified);
        self.open_polls += 1;
        self.cut = false;
        self.seen = Instant::now();
        news || self.answered
    }

    /// Records what the poll says; true if that is news.
    fn take_answer(&mut self, request: &DiscoveryRequest, store: &str, verified: bool) -> bool {
        let before = (self.holds.clone(), self.holds_store.clone(), self.refused.clone());
        let answer = answer(request, self.sent.as_ref(), store);
        if answer != Answer::Stale {
            self.holds.clone_from(&request.version);
            self.holds_store.clone_from(&request.store);
        }
        match answer {
            Answer::Applied(_) => self.refused = None,
            Answer::Refused(version) => {
                let problems = request.error.iter().flat_map(|error| &error.problems);
                let problems = bounded_problems(problems, verified);
                self.refused = Some(Refused { version, problems });
            }
            Answer::Holds => {
                // It came back with a version that an earlier run of it had refused, or a newer one.
                let ours = !is_foreign(request, store);
                let holds = request.version.parse::<u64>().ok().filter(|_| ours);
                self.refused.take_if(|refused| holds >= Some(refused.version));
            }
            Answer::Stale => {}
        }
        let after = (&self.holds, &self.holds_store, &self.refused);
        (&before.0, &before.1, &before.2) != after
    }

    fn connected(&self) -> bool {
        self.open_polls > 0 || (!self.cut && self.seen.elapsed() < GRACE)
    }

    fn view(&self, head: u64, store: &str) -> NodeView {
        let connected = self.connected();
        let foreign = !self.holds_store.is_empty() && self.holds_store != store;
        let state = match (connected, &self.refused) {
            (false, _) => NodeState::Gone,
            (true, Some(_)) => NodeState::Refused,
            (true, None) if !foreign && self.holds == head.to_string() => NodeState::InSync,
            (true, None) => NodeState::Behind,
        };
        let idle = if self.open_polls > 0 {
            Duration::ZERO
        } else {
            self.seen.elapsed()
        };
        NodeView {
            id: self.about.id.clone(),
            instance: self.about.instance.clone(),
            service: self.about.service.clone(),
            version: self.about.version.clone(),
            zone: self.about.zone.clone(),
            connected,
            last_seen_seconds: idle.as_secs(),
            holds: self.holds.clone(),
            holds_store: foreign.then(|| self.holds_store.clone()),
            identity: self.identity.clone(),
            verified: false,
            revoked: false,
            state,
            refused: self.refused.as_ref().map(|refused| RefusedView {
                version: refused.version.to_string(),
                problems: refused.problems.clone(),
            }),
            notices: if connected {
                self.notices.clone()
            } else {
                Vec::new()
            },
            note: None,
        }
    }
}

/// One poll that is being answered or held. Dropped without an answer, its connection was cut.
#[derive(Debug)]
pub struct Poll {
    nodes: Arc<Nodes>,
    key: Key,
    answered: bool,
}

impl Poll {
    /// The version that this node refused last, if it did not accept any since.
    pub fn refused(&self) -> Option<u64> {
        let table = self.nodes.lock();
        let refused = table.get(&self.key)?.refused.as_ref();
        refused.map(|refused| refused.version)
    }

    /// The poll is answered with `version`: gives the nonce that names the answer.
    pub fn answer(mut self, version: u64) -> String {
        let number = self.nodes.nonces.fetch_add(1, Ordering::Relaxed);
        let nonce = format!("{}-{number}", self.nodes.run);
        if let Some(entry) = self.nodes.lock().get_mut(&self.key) {
            entry.sent = Some(Sent {
                nonce: nonce.clone(),
                version,
            });
        }
        self.answered = true;
        nonce
    }

    /// The poll ends with nothing to tell.
    pub fn end(mut self) {
        self.answered = true;
    }
}

impl Drop for Poll {
    fn drop(&mut self) {
        let mut left = false;
        if let Some(entry) = self.nodes.lock().get_mut(&self.key) {
            entry.open_polls = entry.open_polls.saturating_sub(1);
            entry.seen = Instant::now();
            left = !self.answered && entry.open_polls == 0;
            entry.cut = left;
        }
        if left {
            tracing::info!(node = self.key.id, "sidecar went");
            self.nodes.tell();
        }
    }
}
