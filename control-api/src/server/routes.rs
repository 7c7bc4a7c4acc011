//! Which path goes where, and the limits that stand before it.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::error_handling::HandleErrorLayer;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::{delete, get, post};
use bytes::Bytes;
use http::{Method, StatusCode, Uri};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use tower::limit::GlobalConcurrencyLimitLayer;
use tower::load_shed::LoadShedLayer;
use tower::load_shed::error::Overloaded;
use tower::timeout::TimeoutLayer;
use tower::timeout::error::Elapsed;
use tower::{BoxError, ServiceBuilder};

use super::answer::ApiError;
use super::operators::{no_pages, only_operators};
use super::{Shared, documents, identity, polls};

/// Operators' requests at a time: pushes come one after another anyway, and more than this is a loop gone wrong.
const OPERATORS_MAX: usize = 64;

/// How long an operator's request may take: a push of thousands of documents is checked and stored in seconds.
const OPERATORS_WITHIN: Duration = Duration::from_secs(30);

/// The whole router.
pub(super) fn router(shared: Arc<Shared>) -> Router {
    let limits = ServiceBuilder::new()
        .layer(HandleErrorLayer::new(limited))
        .layer(TimeoutLayer::new(OPERATORS_WITHIN))
        .layer(LoadShedLayer::new())
        .layer(GlobalConcurrencyLimitLayer::new(OPERATORS_MAX));
    let one = get(documents::show).put(documents::put).delete(documents::delete);
    let all = get(documents::show_all).put(documents::put_all);
    let operators = Router::new()
        .route("/v1/services", get(documents::list))
        .route("/v1/services/{name}", one)
        .route("/v1/config", all)
        .route(
            "/v1/tokens",
            get(identity::list_tokens).post(identity::create_token),
        )
        .route("/v1/tokens/{id}", delete(identity::revoke_token))
        .route("/v1/audit", get(identity::audit))
        .route("/v1/certificates", get(identity::certificates))
        .route("/v1/ca", get(identity::status))
        .route(
            "/v1/ca/rotation",
            post(identity::start_rotation).delete(identity::finish_rotation),
        )
        .route("/v1/ca/rotation/sign", post(identity::sign_by_new_root))
        .layer(limits)
        // It waits on purpose, and so stands outside the limits; the connections are counted instead.
        .route("/v1/nodes", get(polls::nodes))
        // Before the limits: who is no operator takes no operator's place.
        .route_layer(from_fn_with_state(shared.clone(), only_operators));
    // These wait on purpose too. Sidecars need them, and those that join have nothing yet to show for themselves.
    let sidecars = Router::new()
        .route("/v1/discovery", post(polls::discovery))
        .route("/v1/identity", post(identity::identity))
        .route_layer(from_fn(no_pages));
    let alive = Router::new()
        .route("/live", get(async || "live\n"))
        .route("/ready", get(async || "ready\n"));
    operators
        .merge(sidecars)
        .merge(alive)
        .method_not_allowed_fallback(wrong_method)
        .fallback(unknown_path)
        .with_state(shared)
}

/// Says why a limit ended a request.
async fn limited(error: BoxError) -> ApiError {
    let (status, sentence) = if error.is::<Elapsed>() {
        let within = OPERATORS_WITHIN.as_secs();
        let sentence =
            format!("not done within {within}s; a push may still be stored: look before trying again");
        (StatusCode::GATEWAY_TIMEOUT, sentence)
    } else if error.is::<Overloaded>() {
        let sentence = format!("{OPERATORS_MAX} requests are being served already: try again in a moment");
        (StatusCode::SERVICE_UNAVAILABLE, sentence)
    } else {
        (StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
    };
    ApiError::Sentence(status, sentence)
}

async fn unknown_path(uri: Uri) -> ApiError {
    ApiError::not_found(format!(
        "there is nothing at {}: the API has /v1/services, /v1/services/NAME, /v1/config, /v1/discovery, /v1/nodes, \
         /v1/identity, /v1/tokens, /v1/audit and /v1/ca",
        uri.path()
    ))
}

async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    let sentence = format!("{method} is not possible at {}", uri.path());
    ApiError::Sentence(StatusCode::METHOD_NOT_ALLOWED, sentence)
}

/// Reads a body of at most `limit` bytes.
pub(super) async fn read_body(body: Body, limit: usize) -> Result<Bytes, ApiError> {
    match Limited::new(body, limit).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => {
            let sentence = format!(
                "the body is longer than {} KiB, which is the most here",
                limit / 1024
            );
            Err(ApiError::Sentence(StatusCode::PAYLOAD_TOO_LARGE, sentence))
        }
        Err(error) => {
            let sentence = format!("the body did not arrive whole: {error}");
            Err(ApiError::bad_request(sentence))
        }
    }
}
