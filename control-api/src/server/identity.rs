//! What workloads and operators ask of the CA.
//!
//! **Does not** decide: [`crate::ca`] does, on a thread where it may block.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Extension, Path, Query, State};
use axum::response::{IntoResponse, Response};
use http::header::RETRY_AFTER;
use http::{HeaderMap, HeaderValue, StatusCode};
use outrigger_config::join::{IdentityAnswer, IdentityRefusal, RefusalReason};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::answer::ApiError;
use super::documents::author;
use super::routes::read_body;
use super::{Peer, Shared};
use crate::ca::certificates::{self, CertificateList, Which};
use crate::ca::join::{Attempt, Now, Refused, join};
use crate::ca::tokens::{self, MadeToken, NewToken, TokenView};
use crate::ca::{CaError, rotation};
use crate::store::ledger::AuditRow;

/// The longest body of these requests: a signing request of the longest kind, a token, and the marks of JSON.
const BODY_BYTES_MAX: usize = 16 * 1024;

/// How long a body of that size may take. Whoever sends slowly holds a connection, and nothing else.
const BODY_WITHIN: Duration = Duration::from_secs(5);

/// Certificates that are made at a time. The disk takes them one after another; the others wait in order, so that a
/// thousand sidecars that start together are all served.
pub(super) const JOINS_MAX: usize = 16;

/// How long a request for a certificate may wait for its turn.
const TURN_WITHIN: Duration = Duration::from_secs(20);

/// Rows of the audit log in one answer.
const AUDIT_ANSWER_MAX: usize = 10_000;

/// Rows of the audit log in one answer unless the asker says how many.
const AUDIT_ANSWER: usize = 1_000;

/// The answer of `GET /v1/tokens`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct TokenList {
    /// Every token that is remembered, oldest first.
    pub(crate) tokens: Vec<TokenView>,
}

/// The answer of `GET /v1/audit`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct AuditList {
    /// Rows, oldest first.
    pub(crate) rows: Vec<AuditRow>,
}

/// What may follow the `?` of `GET /v1/audit`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AuditQuery {
    since: Option<u64>,
    count: Option<usize>,
}

/// What may follow the `?` of `DELETE /v1/ca/rotation`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FinishQuery {
    #[serde(default)]
    force: u8,
}

type Asked<T> = Result<Query<T>, QueryRejection>;

/// `POST /v1/identity`
pub(super) async fn identity(
    State(shared): State<Arc<Shared>>,
    Extension(peer): Extension<Peer>,
    body: Body,
) -> Response {
    let request = read_json(body).await;
    let attempt = Attempt {
        request,
        source: peer.address.ip().to_canonical(),
        proof: peer.proof.as_deref().cloned(),
    };
    let Ok(Ok(turn)) = timeout(TURN_WITHIN, shared.joins.acquire()).await else {
        return refusal(&Refused {
            reason: RefusalReason::CaUnavailable,
            sentence: "too many certificates are asked for at once: try again in a moment".to_owned(),
            retry_after: Some(TURN_WITHIN),
        });
    };
    let worker = shared.clone();
    let work = move || join(&worker.ca, &worker.store, attempt, Now::read());
    let answer = tokio::task::spawn_blocking(work).await;
    drop(turn);
    match answer {
        Ok(Ok(answer)) => Json::<IdentityAnswer>(answer).into_response(),
        Ok(Err(refused)) => refusal(&refused),
        Err(error) => fault(&error).into_response(),
    }
}

/// A refusal as HTTP: which statuses are whose fault, and when to come again.
fn refusal(refused: &Refused) -> Response {
    let status = match refused.reason {
        RefusalReason::MalformedRequest
        | RefusalReason::MalformedCsr
        | RefusalReason::CsrSignature
        | RefusalReason::KeyNotAllowed
        | RefusalReason::TokenMalformed => StatusCode::BAD_REQUEST,
        RefusalReason::NoCredential => StatusCode::UNAUTHORIZED,
        RefusalReason::TokenUnknown
        | RefusalReason::TokenExpired
        | RefusalReason::TokenUsedUp
        | RefusalReason::TokenRevoked
        | RefusalReason::OtherService
        | RefusalReason::CertificateUnknown
        | RefusalReason::IdentityRevoked => StatusCode::FORBIDDEN,
        RefusalReason::RateLimited => StatusCode::TOO_MANY_REQUESTS,
        RefusalReason::CaUnavailable => StatusCode::SERVICE_UNAVAILABLE,
    };
    let body = IdentityRefusal {
        reason: refused.reason,
        error: refused.sentence.clone(),
    };
    let mut response = (status, Json(body)).into_response();
    if let Some(wait) = refused.retry_after {
        // Whole seconds (RFC 9110, section 10.2.3), rounded up: never too early.
        let seconds = HeaderValue::from(wait.as_secs() + 1);
        response.headers_mut().insert(RETRY_AFTER, seconds);
    }
    response
}

/// `POST /v1/tokens`
pub(super) async fn create_token(
    State(shared): State<Arc<Shared>>,
    Extension(peer): Extension<Peer>,
    headers: HeaderMap,
    body: Body,
) -> Result<(StatusCode, Json<MadeToken>), ApiError> {
    let wanted: NewToken = read_json(body).await.map_err(ApiError::bad_request)?;
    let author = author(&headers, &peer);
    let made = blocking(shared, move |shared| {
        tokens::create(&shared.ca, &shared.store, wanted, &author, Now::read().wall)
    });
    Ok((StatusCode::CREATED, Json(made.await?)))
}

/// `GET /v1/tokens`
pub(super) async fn list_tokens(State(shared): State<Arc<Shared>>) -> Result<Json<TokenList>, ApiError> {
    let tokens = blocking(shared, |shared| tokens::list(&shared.store, Now::read().wall));
    Ok(Json(TokenList {
        tokens: tokens.await?,
    }))
}

/// `DELETE /v1/tokens/{id}`
pub(super) async fn revoke_token(
    State(shared): State<Arc<Shared>>,
    Extension(peer): Extension<Peer>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Json<TokenView>, ApiError> {
    let author = author(&headers, &peer);
    let revoked = blocking(shared, move |shared| {
        tokens::revoke(&shared.store, &id, &author, Now::read().wall)
    });
    Ok(Json(revoked.await?))
}

/// `GET /v1/certificates`
pub(super) async fn certificates(
    State(shared): State<Arc<Shared>>,
    query: Asked<Which>,
) -> Result<Json<CertificateList>, ApiError> {
    let Query(which) = query.map_err(|error| ApiError::bad_request(error.body_text()))?;
    let list = blocking(shared, move |shared| {
        certificates::list(&shared.ca, &shared.store, &which, Now::read().wall)
    });
    Ok(Json(list.await?))
}

/// `GET /v1/audit`
pub(super) async fn audit(
    State(shared): State<Arc<Shared>>,
    query: Asked<AuditQuery>,
) -> Result<Json<AuditList>, ApiError> {
    let Query(query) = query.map_err(|error| ApiError::bad_request(error.body_text()))?;
    let count = query.count.unwrap_or(AUDIT_ANSWER).min(AUDIT_ANSWER_MAX);
    let rows = blocking(shared, move |shared| {
        let rows = match query.since {
            Some(since) => shared.store.audit(since, count),
            None => shared.store.audit_newest(count),
        };
        rows.map_err(CaError::from)
    });
    Ok(Json(AuditList { rows: rows.await? }))
}

/// `GET /v1/ca`
pub(super) async fn status(State(shared): State<Arc<Shared>>) -> Result<Json<rotation::Status>, ApiError> {
    let status = blocking(shared, |shared| {
        rotation::status(&shared.ca, &shared.store, Now::read().wall)
    });
    Ok(Json(status.await?))
}

/// `POST /v1/ca/rotation`
pub(super) async fn start_rotation(
    State(shared): State<Arc<Shared>>,
    Extension(peer): Extension<Peer>,
    headers: HeaderMap,
) -> Result<Json<rotation::Status>, ApiError> {
    let author = author(&headers, &peer);
    let status = blocking(shared, move |shared| {
        let now = Now::read().wall;
        rotation::start(&shared.ca, &shared.store, &author, now)?;
        rotation::status(&shared.ca, &shared.store, now)
    });
    Ok(Json(status.await?))
}

/// `POST /v1/ca/rotation/sign`
pub(super) async fn sign_by_new_root(
    State(shared): State<Arc<Shared>>,
    Extension(peer): Extension<Peer>,
    headers: HeaderMap,
) -> Result<Json<rotation::Status>, ApiError> {
    let author = author(&headers, &peer);
    let status = blocking(shared, move |shared| {
        let now = Now::read().wall;
        rotation::sign(&shared.ca, &shared.store, &author, now)?;
        rotation::status(&shared.ca, &shared.store, now)
    });
    Ok(Json(status.await?))
}

/// `DELETE /v1/ca/rotation`
pub(super) async fn finish_rotation(
    State(shared): State<Arc<Shared>>,
    Extension(peer): Extension<Peer>,
    query: Asked<FinishQuery>,
    headers: HeaderMap,
) -> Result<Json<rotation::Status>, ApiError> {
    let Query(query) = query.map_err(|error| ApiError::bad_request(error.body_text()))?;
    let author = author(&headers, &peer);
    let status = blocking(shared, move |shared| {
        let now = Now::read().wall;
        rotation::finish(&shared.ca, &shared.store, &author, query.force != 0, now)?;
        rotation::status(&shared.ca, &shared.store, now)
    });
    Ok(Json(status.await?))
}

/// Reads a small body as JSON, or says why it is not.
async fn read_json<T: DeserializeOwned>(body: Body) -> Result<T, String> {
    let body = timeout(BODY_WITHIN, read_body(body, BODY_BYTES_MAX)).await;
    let body = body.map_err(|_| format!("the body did not arrive within {}s", BODY_WITHIN.as_secs()))?;
    let body = body.map_err(ApiError::into_sentence)?;
    // What serde says of a wrong value repeats it, and a value may be a secret: the place alone is told.
    serde_json::from_slice(&body).map_err(|error| {
        let what = if error.is_data() {
            "a field is missing, unknown or of the wrong kind"
        } else {
            "it is not JSON"
        };
        format!(
            "the body cannot be read at line {}, column {}: {what}",
            error.line(),
            error.column()
        )
    })
}

/// Does work of the CA on a thread where it may block.
async fn blocking<T, W>(shared: Arc<Shared>, work: W) -> Result<T, ApiError>
where
    T: Send + 'static,
    W: FnOnce(&Shared) -> Result<T, CaError> + Send + 'static,
{
    match tokio::task::spawn_blocking(move || work(&shared)).await {
        Ok(done) => done.map_err(ApiError::from),
        Err(error) => Err(fault(&error)),
    }
}

fn fault(error: &tokio::task::JoinError) -> ApiError {
    tracing::error!(%error, "a request of the CA ended by a fault of this program");
    let sentence = "the request ended by a fault of the control API; its log says more";
    ApiError::Sentence(StatusCode::INTERNAL_SERVER_ERROR, sentence.to_owned())
}
