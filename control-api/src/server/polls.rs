//! What waits: the sidecars' discovery polls, and the operators' watch on their answers.
//!
//! **Does not** decide what a poll is told: [`crate::discovery::decide`] does; this waits until it has something to
//! say, or the hold ends, or the connection is cut (which drops the handler and with it the node's poll).

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Extension, Query, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, StatusCode};
use http_body::{Body as _, Frame, SizeHint};
use outrigger_config::discovery::{DiscoveryRequest, HOLD_DEFAULT, HOLD_MAX, Node, ROOTS_HEADER};
use outrigger_config::{Document, units};
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout};

use super::answer::ApiError;
use super::operators::forget;
use super::routes::read_body;
use super::standing::Ahead;
use super::{Peer, Shared, standing};
use crate::discovery::{Base, Decision, Difference, base, decide, settle};
use crate::nodes::NodeList;
use crate::store::Head;

/// The longest poll that is read without a turn. Most have some hundred bytes; one with every notice has 8 KiB, and what a
/// sidecar of some hundred services has (`have`) fits too. As many as there may be connections are 190 MiB.
const SHORT_BYTES_MAX: usize = 16 * 1024;

/// The longest poll: what a sidecar of ten thousand services has, or a hundred long problems.
const LONG_BYTES_MAX: usize = 1024 * 1024;

/// Long polls that are read and decided at a time: 16 MiB, and about as much again for what is read of them. Each takes
/// milliseconds, so that after a restart of the API ten thousand sidecars have their turn within a minute.
const LONG_POLLS_MAX: usize = 16;

/// How long a long poll waits for its turn.
const TURN_WITHIN: Duration = Duration::from_secs(20);

/// How long the body of a poll may take to arrive.
const BODY_WITHIN: Duration = Duration::from_secs(10);

/// The turns of long polls. Who has proved who it is does not wait for who has not.
#[derive(Debug)]
pub(super) struct LongPolls {
    proven: Semaphore,
    unproven: Semaphore,
}

impl LongPolls {
    pub(super) fn new() -> Self {
        Self {
            proven: Semaphore::new(LONG_POLLS_MAX),
            unproven: Semaphore::new(LONG_POLLS_MAX),
        }
    }

    async fn turn(&self, ahead: Ahead) -> Result<SemaphorePermit<'_>, ApiError> {
        let turns = if ahead == Ahead::Proven {
            &self.proven
        } else {
            &self.unproven
        };
        match timeout(TURN_WITHIN, turns.acquire()).await {
            Ok(Ok(turn)) => Ok(turn),
            // Nobody closes it.
            Err(_) | Ok(Err(_)) => {
                let sentence = format!(
                    "{LONG_POLLS_MAX} polls of more than {} KiB are being read already: try again in a moment",
                    SHORT_BYTES_MAX / 1024
                );
                Err(ApiError::Sentence(StatusCode::SERVICE_UNAVAILABLE, sentence))
            }
        }
    }
}

/// `POST /v1/discovery`
pub(super) async fn discovery(
    State(shared): State<Arc<Shared>>,
    Extension(peer): Extension<Peer>,
    body: Body,
) -> Result<Response, ApiError> {
    let (mut request, mut turn) = read_poll(&shared, &peer, body).await?;
    let mut heads = shared.store.subscribe();
    let mut roots = shared.ca.trusted();
    let certificate = standing::of(&shared, &peer, &request.node)?;
    let poll = shared.nodes.enter(&request, certificate.as_ref())?;
    let hold = request.hold.unwrap_or(HOLD_DEFAULT).min(HOLD_MAX);
    let end = Instant::now() + hold.0;
    let mut is_enough = true;
    // All is all: what is named beside it would be answered by a text of its own.
    if request.want.iter().any(|name| name == "*") {
        request.want = vec!["*".to_owned()];
    }
    loop {
        let head = heads.borrow_and_update().clone();
        let trusted = roots.borrow_and_update().name.clone();
        match decide(&request, &head, poll.refused()) {
            Decision::Respond(difference) => {
                // Who was good when it began to wait may be revoked since, perhaps by this very push.
                if let Err(refused) = standing::of(&shared, &peer, &request.node) {
                    poll.end();
                    return Err(refused);
                }
                let fragment = shared.fragments.of(&request, &head, &difference)?;
                let nonce = poll.answer(head.revision);
                return Ok(naming(&trusted, respond(&head, &nonce, fragment)));
            }
            Decision::UnknownVersion => {
                poll.end();
                return Err(unknown_version(&request, &head));
            }
            // There is nothing new but the roots.
            Decision::Hold if !request.roots.is_empty() && request.roots != trusted => break,
            Decision::Hold => {}
        }
        // Once something was let go of that the next head needs, it is not enough however often it turns.
        is_enough &= settle(&mut request, &head, poll.refused());
        drop(turn.take());
        tokio::select! {
            _ = roots.changed() => {}
            // The store lives as long as the handler, so its news never ends before.
            _ = heads.changed() => if !is_enough { break },
            () = tokio::time::sleep_until(end) => break,
            () = shared.stop.cancelled() => break,
        }
    }
    poll.end();
    let trusted = roots.borrow().name.clone();
    Ok(naming(&trusted, StatusCode::NO_CONTENT.into_response()))
}

/// The answer with the name of the roots, by which a sidecar knows that it is to renew.
fn naming(trusted: &str, mut response: Response) -> Response {
    // The name is of the alphabet of base64, so that it is always a value.
    if let Ok(name) = HeaderValue::from_str(trusted) {
        response.headers_mut().insert(ROOTS_HEADER, name);
    }
    response
}

/// Reads a poll. A long one waits for its turn, which ends when it is let go of, or is not read at all if it is refused in
/// any case.
async fn read_poll<'a>(
    shared: &'a Shared,
    peer: &Peer,
    body: Body,
) -> Result<(DiscoveryRequest, Option<SemaphorePermit<'a>>), ApiError> {
    let most = body.size_hint().upper();
    if most.is_some_and(|most| most <= SHORT_BYTES_MAX as u64) {
        return Ok((parse(body, SHORT_BYTES_MAX).await?, None));
    }
    let ahead = standing::ahead(shared, peer);
    if ahead == Ahead::Refused {
        forget(body).await;
        // Who it is said to be stays unread.
        standing::of(shared, peer, &Node::default())?;
        return Err(ApiError::bad_request(
            "what refused this poll is over: poll again",
        ));
    }
    let turn = shared.long_polls.turn(ahead).await?;
    Ok((parse(body, LONG_BYTES_MAX).await?, Some(turn)))
}

async fn parse(body: Body, bytes_max: usize) -> Result<DiscoveryRequest, ApiError> {
    let bytes = timeout(BODY_WITHIN, read_body(body, bytes_max)).await;
    let bytes = bytes.unwrap_or_else(|_| {
        let sentence = format!("the body did not arrive within {}s", BODY_WITHIN.as_secs());
        Err(ApiError::Sentence(StatusCode::REQUEST_TIMEOUT, sentence))
    })?;
    serde_json::from_slice(&bytes)
        .map_err(|error| ApiError::bad_request(format!("the body is not the JSON of a poll: {error}")))
}

fn unknown_version(request: &DiscoveryRequest, head: &Head) -> ApiError {
    let sentence = format!(
        "version `{}` is not one that this store ({}, at version {}) can count from: poll again with `have`, what you hold of each document",
        request.version, head.store, head.revision
    );
    ApiError::Sentence(StatusCode::CONFLICT, sentence)
}

/// Puts an answer together from its own first part and the part that it shares with others.
fn respond(head: &Head, nonce: &str, fragment: Bytes) -> Response {
    let (version, store) = (head.revision, &head.store);
    let own = format!(r#"{{"version":"{version}","nonce":"{nonce}","store":"{store}","#);
    let body = Body::new(Parts(VecDeque::from([Bytes::from(own), fragment])));
    ([(CONTENT_TYPE, "application/json")], body).into_response()
}

/// A body in several parts, none of which is copied: a push to thousands of sidecars is held in memory once.
struct Parts(VecDeque<Bytes>);

impl http_body::Body for Parts {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.pop_front().map(|part| Ok(Frame::data(part))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.iter().map(|part| part.len() as u64).sum())
    }
}

/// How many different answers are kept of one version: sidecars of one mesh are a version or two behind, and want
/// all or the same few services.
const FRAGMENTS_MAX: usize = 64;

/// The shared parts of the answers to the current version.
#[derive(Debug, Default)]
pub(super) struct Fragments(Mutex<FragmentsOf>);

#[derive(Debug, Default)]
struct FragmentsOf {
    revision: u64,
    known: HashMap<FragmentKey, Bytes>,
}

/// What an answer depends on, besides the current version: what is held, and what is wanted.
type FragmentKey = (Option<u64>, Vec<String>);

/// The shared part of an answer: everything of it but the version and the nonce.
#[derive(Serialize)]
struct Fragment<'a> {
    changed: Vec<VersionedRef<'a>>,
    removed: &'a [String],
}

/// A `Versioned` without a copy of the document.
#[derive(Serialize)]
struct VersionedRef<'a> {
    version: String,
    #[serde(flatten)]
    document: &'a Document,
}

impl Fragments {
    /// The shared part of the answer to `request`, written once for all who hold and want the same.
    fn of(
        &self,
        request: &DiscoveryRequest,
        head: &Head,
        difference: &Difference,
    ) -> Result<Bytes, ApiError> {
        let held = match base(request, head) {
            Some(Base::Nothing) => Some(None),
            Some(Base::At(revision)) => Some(Some(revision)),
            Some(Base::Have(_) | Base::Foreign(_)) | None => None,
        };
        let Some(held) = held else {
            return write_fragment(head, difference);
        };
        let key = (held, request.want.clone());
        let mut fragments = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if fragments.revision != head.revision || fragments.known.len() >= FRAGMENTS_MAX {
            fragments.revision = head.revision;
            fragments.known.clear();
        }
        if let Some(fragment) = fragments.known.get(&key) {
            return Ok(fragment.clone());
        }
        let fragment = write_fragment(head, difference)?;
        fragments.known.insert(key, fragment.clone());
        Ok(fragment)
    }
}

/// Writes `"changed":[…],"removed":[…]}`: an object without its opening brace.
fn write_fragment(head: &Head, difference: &Difference) -> Result<Bytes, ApiError> {
    let changed = difference.changed.iter();
    let changed = changed
        .filter_map(|key| head.documents.get(key))
        .map(|stored| VersionedRef {
            version: stored.version.to_string(),
            document: &stored.document,
        });
    let fragment = Fragment {
        changed: changed.collect(),
        removed: &difference.removed,
    };
    let written = serde_json::to_vec(&fragment).map_err(|error| {
        let sentence = format!("the answer could not be written: {error}");
        ApiError::Sentence(StatusCode::INTERNAL_SERVER_ERROR, sentence)
    })?;
    Ok(Bytes::from(written).slice(1..))
}

/// What may follow the `?` of `GET /v1/nodes`.
#[derive(Debug, Deserialize)]
pub(super) struct NodesQuery {
    after: Option<u64>,
    hold: Option<units::Duration>,
}

/// `GET /v1/nodes`
pub(super) async fn nodes(
    State(shared): State<Arc<Shared>>,
    query: Result<Query<NodesQuery>, QueryRejection>,
) -> Result<Json<NodeList>, ApiError> {
    let Query(query) = query.map_err(|error| ApiError::bad_request(error.body_text()))?;
    if let Some(after) = query.after {
        let hold = query.hold.unwrap_or(HOLD_DEFAULT).min(HOLD_MAX);
        let mut changes = shared.nodes.subscribe();
        // Another number than the one that was seen, not a greater one: the count begins again with the server.
        let news = async {
            let _ = changes.wait_for(|changes| *changes != after).await;
        };
        tokio::select! {
            () = news => {}
            () = tokio::time::sleep(hold.0) => {}
            () = shared.stop.cancelled() => {}
        }
    }
    let head = shared.store.head();
    let words = shared.ca.mesh_words(&head);
    Ok(Json(shared.nodes.list(head.revision, &words.revoked)))
}
