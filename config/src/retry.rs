//! The words about second attempts: retries after a failure, and hedges before an answer.
//!
//! What the words mean for one request is decided by the sidecar's `request::retry`.

use schemars::{JsonSchema, Schema};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::units::{Duration, Percent, Rate};

/// When a failed attempt is made again. What is not given falls to the mesh's defaults, then to the built-in ones.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Retry {
    /// How often it is tried in all, the first time included. 1: never again. 1 to 10, default 3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10))]
    pub attempts: Option<u32>,
    /// The failures that are worth another attempt. Default: `connect-failure`, `refused-stream`, `reset` and
    /// `gateway-error`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on: Option<Vec<RetryOn>>,
    /// The statuses that `retriable-status-codes` means, 400 to 599.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(inner(range(min = 400, max = 599)))]
    pub status: Option<Vec<u16>>,
    /// Methods that are tried again as if they were idempotent, such as `POST`. **Each failure may then be a request
    /// that was done, and is done twice**: an order placed twice, a mail sent twice. Only for services that notice
    /// (an idempotency key) or do not care. Default: none; what surely never reached the endpoint is tried again for
    /// any method.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub treat_as_idempotent: Option<Vec<String>>,
    /// How long it waits before it tries again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backoff: Option<Backoff>,
    /// Whether a retry stays with the backend that was chosen by weight. Default: false, so that a release that
    /// fails does not cost those who are sent to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub same_backend: Option<bool>,
    /// How many retries there may be beside the requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<Budget>,
}

/// A failure that may be worth another attempt. The words are Envoy's; App Mesh's are read too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(transform = other_words)]
pub enum RetryOn {
    /// No connection was made, or it was closed before anything was sent: any method.
    #[serde(alias = "connection-error", alias = "reset-before-request")]
    ConnectFailure,
    /// The endpoint said that it had not begun: any method.
    #[serde(alias = "stream-error")]
    RefusedStream,
    /// The connection broke before the answer began: any method if the request cannot have been read, else
    /// idempotent methods only.
    Reset,
    /// The endpoint answered 502, 503 or 504, or `timeout.attempt` passed: idempotent methods only.
    GatewayError,
    /// The endpoint answered with any status from 500, or not at all, which takes in all of the above: idempotent
    /// methods only, where the request may have been seen.
    #[serde(rename = "5xx", alias = "server-error")]
    ServerError,
    /// The endpoint answered 409: idempotent methods only.
    #[serde(rename = "retriable-4xx", alias = "client-error")]
    ClientError,
    /// The endpoint answered with one of the statuses in `status`: idempotent methods only.
    #[serde(rename = "retriable-status-codes")]
    StatusCodes,
    /// A gRPC call ended with CANCELLED before its first message. Naming this or another status of gRPC says that
    /// the calls of the route may be made twice.
    Cancelled,
    /// A gRPC call ended with DEADLINE_EXCEEDED before its first message.
    DeadlineExceeded,
    /// A gRPC call ended with INTERNAL before its first message.
    Internal,
    /// A gRPC call ended with RESOURCE_EXHAUSTED before its first message.
    ResourceExhausted,
    /// A gRPC call ended with UNAVAILABLE before its first message, or without gRPC's own word, as where its
    /// connection broke.
    Unavailable,
}

/// The words that are read beside the ones that are written back, and what they stand for.
const OTHER_WORDS: [(&str, &str, &str); 5] = [
    ("connection-error", "App Mesh", "connect-failure"),
    ("reset-before-request", "Envoy", "connect-failure"),
    ("stream-error", "App Mesh", "refused-stream"),
    ("server-error", "App Mesh", "5xx"),
    ("client-error", "App Mesh", "retriable-4xx"),
];

/// Adds the words of others to the schema, which serde's `alias` does not.
fn other_words(schema: &mut Schema) {
    if let Some(Value::Array(words)) = schema.get_mut("oneOf") {
        words.extend(OTHER_WORDS.map(|(word, whose, ours)| {
            json!({ "type": "string", "const": word, "description": format!("{whose}'s word for `{ours}`.") })
        }));
    }
}

impl RetryOn {
    /// Every one of them.
    pub const ALL: [Self; 12] = [
        Self::ConnectFailure,
        Self::RefusedStream,
        Self::Reset,
        Self::GatewayError,
        Self::ServerError,
        Self::ClientError,
        Self::StatusCodes,
        Self::Cancelled,
        Self::DeadlineExceeded,
        Self::Internal,
        Self::ResourceExhausted,
        Self::Unavailable,
    ];

    /// The `grpc-status` that it stands for, if it is one of gRPC's.
    pub const fn grpc_status(self) -> Option<u16> {
        match self {
            Self::Cancelled => Some(1),
            Self::DeadlineExceeded => Some(4),
            Self::ResourceExhausted => Some(8),
            Self::Internal => Some(13),
            Self::Unavailable => Some(14),
            Self::ConnectFailure
            | Self::RefusedStream
            | Self::Reset
            | Self::GatewayError
            | Self::ServerError
            | Self::ClientError
            | Self::StatusCodes => None,
        }
    }
}

/// How long to wait before another attempt. Each wait is drawn from nothing to a ceiling, so that those who failed
/// together do not come back together; what surely never reached an endpoint is tried again at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Backoff {
    /// The ceiling of the first wait; it doubles with each. Default 25 ms.
    #[serde(default = "Backoff::base_default")]
    pub base: Duration,
    /// The highest ceiling, at most 10 s. Default 250 ms.
    #[serde(default = "Backoff::max_default")]
    pub max: Duration,
}

impl Backoff {
    const fn base_default() -> Duration {
        Duration::from_millis(25)
    }

    const fn max_default() -> Duration {
        Duration::from_millis(250)
    }
}

impl Default for Backoff {
    /// Envoy's.
    fn default() -> Self {
        Self {
            base: Self::base_default(),
            max: Self::max_default(),
        }
    }
}

/// How many retries a backend may be sent, so that retries never become the outage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Budget {
    /// Retries for each request, over the last ten seconds. Default 20%.
    #[serde(default = "Budget::ratio_default")]
    pub ratio: Percent,
    /// Retries that are allowed at any load. Default 10/s.
    #[serde(default = "Budget::floor_default")]
    pub floor: Rate,
}

impl Budget {
    const fn ratio_default() -> Percent {
        Percent(20)
    }

    const fn floor_default() -> Rate {
        Rate(10)
    }
}

impl Default for Budget {
    /// Those of the Gateway API's retry budget (GEP-3388).
    fn default() -> Self {
        Self {
            ratio: Self::ratio_default(),
            floor: Self::floor_default(),
        }
    }
}

/// When a request that is slow to be answered is sent a second time, to another endpoint: the first answer is taken
/// and the other attempt is given up. Only for idempotent methods (and those of `treat_as_idempotent`) whose body has
/// come and is kept; out of the same budget as retries, and counted among `retry.attempts`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Hedge {
    /// How long an answer's head is waited for before another attempt begins beside it: something over the time
    /// that 95 of 100 answers take, so that few requests are doubled.
    pub after: Duration,
    /// How many attempts may begin so, each `after` the one before it. 1 to 3, default 1.
    #[serde(default = "Hedge::at_most_default")]
    #[schemars(range(min = 1, max = 3))]
    pub at_most: u32,
}

impl Hedge {
    const fn at_most_default() -> u32 {
        1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_others_are_read_and_ours_are_written_back() {
        for (word, _, ours) in OTHER_WORDS {
            let read: RetryOn = serde_json::from_value(json!(word)).unwrap();
            assert_eq!(serde_json::to_value(read).unwrap(), ours, "{word}");
        }
    }

    #[test]
    fn every_failure_has_a_word_of_its_own() {
        let words: std::collections::HashSet<String> = RetryOn::ALL
            .iter()
            .map(|failure| serde_json::to_string(failure).unwrap())
            .collect();
        assert_eq!(words.len(), RetryOn::ALL.len());
    }
}
