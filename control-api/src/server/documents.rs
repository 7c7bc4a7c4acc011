//! What operators ask: documents in, documents out.
//!
//! **Does not** store or judge: [`crate::push::push`] does both, on a thread where it may block.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Extension, Path, Query, State};
use axum::response::{IntoResponse, Response};
use http::header::{ACCEPT, CONTENT_TYPE, ETAG, IF_MATCH};
use http::{HeaderMap, HeaderValue, StatusCode};
use outrigger_config::discovery::Versioned;
use outrigger_config::read::DOCUMENT_BYTES_MAX;
use outrigger_config::{Document, Kind, Problem, split};
use serde::{Deserialize, Serialize};

use super::answer::ApiError;
use super::routes::read_body;
use super::{Peer, Shared};
use crate::push::{Edit, Outcome, Push, PushError, Since, push};
use crate::store::{Head, Stored};

/// The longest push of many documents.
pub(crate) const PUSH_BYTES_MAX: usize = 8 * 1024 * 1024;

/// The header in which a pusher says who it is, for the history.
pub(crate) const AUTHOR: &str = "x-outrigger-author";

/// As much of an author's name as is kept.
const AUTHOR_CHARS_MAX: usize = 100;

/// Media type of documents (RFC 9512).
const YAML: HeaderValue = HeaderValue::from_static("application/yaml");

/// The body of `PUT /v1/config` as JSON.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PushBody {
    /// The texts.
    pub documents: Vec<PushText>,
}

/// A text and where it was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PushText {
    /// The file, as its author names it.
    #[serde(default)]
    pub file: String,
    /// The line of the file that is the first line of `text`.
    #[serde(default = "first_line")]
    pub line: usize,
    /// One document or several.
    pub text: String,
}

fn first_line() -> usize {
    1
}

/// What may follow the `?` of a write.
#[derive(Debug, Deserialize)]
pub(super) struct WriteQuery {
    #[serde(default)]
    file: String,
    dry_run: Option<String>,
    restore: Option<String>,
}

/// A query string that may be wrong.
type Asked<T> = Result<Query<T>, QueryRejection>;

/// The answer of `GET /v1/services`.
#[derive(Debug, Serialize)]
struct ServiceList {
    version: String,
    services: Vec<ServiceItem>,
}

/// One service of the list.
#[derive(Debug, Serialize)]
struct ServiceItem {
    name: String,
    version: String,
    file: String,
    line: usize,
}

/// The answer of `GET /v1/config` as JSON.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct WholeConfig {
    /// The version of the whole.
    pub(crate) version: String,
    /// Every document.
    pub(crate) documents: Vec<Versioned>,
}

/// What a write is asked with, besides its body.
pub(super) struct Asker {
    author: String,
    if_match: Option<String>,
    dry_run: bool,
    restore: bool,
}

/// `GET /v1/services`
pub(super) async fn list(State(shared): State<Arc<Shared>>) -> Response {
    let head = shared.store.head();
    let services = head.documents.values();
    let services = services.filter(|stored| stored.document.kind == Kind::Service);
    let services = services.map(|stored| ServiceItem {
        name: stored.document.name.clone(),
        version: stored.version.to_string(),
        file: stored.document.file.clone(),
        line: stored.document.line,
    });
    let list = ServiceList {
        version: head.revision.to_string(),
        services: services.collect(),
    };
    Json(list).into_response()
}

/// `GET /v1/services/{name}`
pub(super) async fn show(
    State(shared): State<Arc<Shared>>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let head = shared.store.head();
    let stored = head.documents.get(&name);
    let stored = stored.ok_or_else(|| ApiError::from(PushError::Unknown(name)))?;
    let mut response = if wants_json(&headers) {
        Json(versioned(stored)).into_response()
    } else {
        ([(CONTENT_TYPE, YAML)], stored.document.text.clone()).into_response()
    };
    tag(&mut response, stored.version);
    Ok(response)
}

/// `GET /v1/config`
pub(super) async fn show_all(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Response {
    let head = shared.store.head();
    let mut response = if wants_json(&headers) {
        let whole = WholeConfig {
            version: head.revision.to_string(),
            documents: head.documents.values().map(versioned).collect(),
        };
        Json(whole).into_response()
    } else {
        ([(CONTENT_TYPE, YAML)], stream(&head)).into_response()
    };
    tag(&mut response, head.revision);
    response
}

/// `PUT /v1/services/{name}`
pub(super) async fn put(
    State(shared): State<Arc<Shared>>,
    Extension(peer): Extension<Peer>,
    Path(name): Path<String>,
    query: Asked<WriteQuery>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Outcome>, ApiError> {
    let (file, asker) = asker(query, &headers, &peer)?;
    let text = text(body, DOCUMENT_BYTES_MAX).await?;
    let read = move || {
        let documents = split(&file, &text).map_err(ApiError::Problems)?;
        match documents.as_slice() {
            [document] if document.key() == name => Ok((Edit::Put(documents), Some(name))),
            [document] => Err(ApiError::bad_request(format!(
                "the document is `{}`, but the path says `{name}`: they must be the same",
                document.key()
            ))),
            several => Err(ApiError::bad_request(format!(
                "the body holds {} documents where one is expected; PUT /v1/config takes many",
                several.len()
            ))),
        }
    };
    write(shared, asker, read).await
}

/// `DELETE /v1/services/{name}`
pub(super) async fn delete(
    State(shared): State<Arc<Shared>>,
    Extension(peer): Extension<Peer>,
    Path(name): Path<String>,
    query: Asked<WriteQuery>,
    headers: HeaderMap,
) -> Result<Json<Outcome>, ApiError> {
    let (_, asker) = asker(query, &headers, &peer)?;
    write(shared, asker, move || {
        Ok((Edit::Delete(name.clone()), Some(name)))
    })
    .await
}

/// `PUT /v1/config`
pub(super) async fn put_all(
    State(shared): State<Arc<Shared>>,
    Extension(peer): Extension<Peer>,
    query: Asked<WriteQuery>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Outcome>, ApiError> {
    let (file, asker) = asker(query, &headers, &peer)?;
    let json = says(&headers, CONTENT_TYPE, "application/json");
    let text = text(body, PUSH_BYTES_MAX).await?;
    let read = move || {
        let texts = if json {
            let body: PushBody = serde_json::from_str(&text).map_err(|error| {
                ApiError::bad_request(format!("the body is not the JSON of a push: {error}"))
            })?;
            body.documents
        } else {
            let line = first_line();
            vec![PushText { file, line, text }]
        };
        let documents = split_all(&texts).map_err(ApiError::Problems)?;
        if documents.is_empty() {
            return Err(ApiError::bad_request("the push holds no document"));
        }
        Ok((Edit::Put(documents), None))
    };
    write(shared, asker, read).await
}

/// Splits texts into their documents, each placed by the line of its own file, and gives every problem of all.
pub(crate) fn split_all(texts: &[PushText]) -> Result<Vec<Document>, Vec<Problem>> {
    let mut documents = Vec::new();
    let mut problems = Vec::new();
    for text in texts {
        let lines_before = text.line.saturating_sub(1);
        match split(&text.file, &text.text) {
            Ok(found) => documents.extend(found.into_iter().map(|mut document| {
                document.line += lines_before;
                document
            })),
            Err(found) => problems.extend(found.into_iter().map(|mut problem| {
                problem.line += lines_before;
                problem
            })),
        }
    }
    if problems.is_empty() {
        Ok(documents)
    } else {
        Err(problems)
    }
}

/// Reads a push and makes it, on a thread where it may block. `read` also says which document `If-Match` means; none
/// is the whole.
async fn write<R>(shared: Arc<Shared>, asker: Asker, read: R) -> Result<Json<Outcome>, ApiError>
where
    R: FnOnce() -> Result<(Edit, Option<String>), ApiError> + Send + 'static,
{
    let work = move || {
        let (edit, key) = read()?;
        let since = asker.if_match.map(|version| match key {
            Some(key) => Since::Document(key, version),
            None => Since::Whole(version),
        });
        let wanted = Push {
            author: asker.author,
            edit,
            unless_changed_since: since,
            dry_run: asker.dry_run,
            restore: asker.restore,
            trust_domain: shared.ca.unsaid_trust_domain().to_owned(),
        };
        push(&shared.store, wanted).map_err(ApiError::from)
    };
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome.map(Json),
        Err(error) => {
            tracing::error!(%error, "a push ended by a fault of this program");
            let sentence = "the push ended by a fault of the control API; its log says more";
            Err(ApiError::Sentence(
                StatusCode::INTERNAL_SERVER_ERROR,
                sentence.into(),
            ))
        }
    }
}

/// Reads what a write is asked with: the file's name, and the rest.
fn asker(query: Asked<WriteQuery>, headers: &HeaderMap, peer: &Peer) -> Result<(String, Asker), ApiError> {
    let Query(query) = query.map_err(|error| ApiError::bad_request(error.body_text()))?;
    let is_said = |said: Option<&str>, expected: &str| match said {
        None | Some("0" | "false") => Ok(false),
        Some("1" | "true") => Ok(true),
        Some(other) => Err(ApiError::bad_request(expected.replace("{}", other))),
    };
    let dry_run = is_said(
        query.dry_run.as_deref(),
        "dry_run is `{}`: expected 1 to only ask, or 0 to store",
    )?;
    let restore = is_said(
        query.restore.as_deref(),
        "restore is `{}`: expected 1 to trust again what is revoked, or 0 to keep it",
    )?;
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let if_match = header(IF_MATCH.as_str()).map(|version| version.trim().trim_matches('"').to_owned());
    let asker = Asker {
        author: author(headers, peer),
        if_match,
        dry_run,
        restore,
    };
    Ok((query.file, asker))
}

/// Who asks, as it says of itself, and from which address.
pub(super) fn author(headers: &HeaderMap, peer: &Peer) -> String {
    let name = headers.get(AUTHOR).and_then(|value| value.to_str().ok());
    let name: String = name.unwrap_or("unnamed").chars().take(AUTHOR_CHARS_MAX).collect();
    format!("{name} from {}", peer.address.ip())
}

/// Reads a body that is text.
async fn text(body: Body, limit: usize) -> Result<String, ApiError> {
    let bytes = read_body(body, limit).await?;
    String::from_utf8(bytes.into()).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        ApiError::bad_request(format!("the body is not UTF-8 text: byte {at} cannot be read"))
    })
}

fn wants_json(headers: &HeaderMap) -> bool {
    says(headers, ACCEPT, "application/json")
}

/// Whether a header's value names this media type.
fn says(headers: &HeaderMap, name: http::HeaderName, media: &str) -> bool {
    let value = headers.get(name).and_then(|value| value.to_str().ok());
    value.is_some_and(|value| value.to_ascii_lowercase().contains(media))
}

fn versioned(stored: &Stored) -> Versioned {
    Versioned {
        version: stored.version.to_string(),
        document: Document::clone(&stored.document),
    }
}

/// All documents as one YAML stream, which a push takes back as it is.
fn stream(head: &Head) -> String {
    let mut stream = String::new();
    for stored in head.documents.values() {
        if !stream.is_empty() {
            if !stream.ends_with('\n') {
                stream.push('\n');
            }
            stream.push_str("---\n");
        }
        stream.push_str(&stored.document.text);
    }
    stream
}

/// Gives a response the version of what it shows, which `If-Match` takes.
fn tag(response: &mut Response, version: u64) {
    if let Ok(tag) = HeaderValue::try_from(format!("\"{version}\"")) {
        response.headers_mut().insert(ETAG, tag);
    }
}
