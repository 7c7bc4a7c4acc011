//! Everything that went wrong, as a status and a JSON body with a sentence: `{"error": …}`, or `{"problems": […]}`
//! for what is wrong with documents.
//!
//! **Does not** log: what a client did wrong is the client's to know.

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use outrigger_config::Problem;
use serde::{Deserialize, Serialize};

use crate::ca::CaError;
use crate::nodes::NodeError;
use crate::push::PushError;
use crate::store::StoreError;

/// What a handler answers when it cannot do what was asked.
#[derive(Debug)]
pub(crate) enum ApiError {
    /// The documents are wrong: the same list that `outrigger check` prints.
    Problems(Vec<Problem>),
    /// Anything else, in a sentence.
    Sentence(StatusCode, String),
}

/// The body of every answer that is not a success.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct ErrorBody {
    /// What happened, in a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
    /// What is wrong with the documents.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) problems: Vec<Problem>,
}

impl ApiError {
    /// The request itself is wrong.
    pub(crate) fn bad_request(sentence: impl Into<String>) -> Self {
        Self::Sentence(StatusCode::BAD_REQUEST, sentence.into())
    }

    /// The words alone.
    pub(crate) fn into_sentence(self) -> String {
        match self {
            Self::Problems(problems) => problems
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join("; "),
            Self::Sentence(_, sentence) => sentence,
        }
    }

    /// There is nothing of that name.
    pub(crate) fn not_found(sentence: impl Into<String>) -> Self {
        Self::Sentence(StatusCode::NOT_FOUND, sentence.into())
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (status, body) = match self {
            Self::Problems(problems) => {
                let body = ErrorBody {
                    error: None,
                    problems,
                };
                (StatusCode::BAD_REQUEST, body)
            }
            Self::Sentence(status, sentence) => {
                let body = ErrorBody {
                    error: Some(sentence),
                    problems: Vec::new(),
                };
                (status, body)
            }
        };
        (status, Json(body)).into_response()
    }
}

impl From<PushError> for ApiError {
    fn from(error: PushError) -> Self {
        let status = match &error {
            PushError::Refused(_) | PushError::TooMany(_) => StatusCode::BAD_REQUEST,
            PushError::Unknown(_) => StatusCode::NOT_FOUND,
            PushError::Changed { .. } => StatusCode::PRECONDITION_FAILED,
            PushError::Store(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        match error {
            PushError::Refused(problems) => Self::Problems(problems),
            other => Self::Sentence(status, other.to_string()),
        }
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        Self::from(PushError::Store(error))
    }
}

impl From<CaError> for ApiError {
    fn from(error: CaError) -> Self {
        let status = match &error {
            CaError::Wrong(_) => StatusCode::BAD_REQUEST,
            CaError::Unknown(_) => StatusCode::NOT_FOUND,
            CaError::NotNow(_) => StatusCode::CONFLICT,
            CaError::Given(_)
            | CaError::KeyMissing { .. }
            | CaError::Key { .. }
            | CaError::GivenBefore
            | CaError::OtherRoot { .. }
            | CaError::Sign(_)
            | CaError::Store(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::Sentence(status, error.to_string())
    }
}

impl From<NodeError> for ApiError {
    fn from(error: NodeError) -> Self {
        let status = match error {
            NodeError::Nameless | NodeError::TooLong => StatusCode::BAD_REQUEST,
            NodeError::Full => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self::Sentence(status, error.to_string())
    }
}
