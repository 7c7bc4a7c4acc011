//! The mesh file: what holds for every service, and how a service's own words and the defaults become one policy.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::service::{Backoff, Balance, Budget, Protocol, Retry, RetryOn, Route, Service, Timeout};
use crate::units;

/// What holds for every service of the mesh.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Mesh {
    /// What a service or route falls back to where it says nothing itself.
    #[serde(default)]
    pub defaults: Defaults,
}

/// What a service or route falls back to where it says nothing itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Defaults {
    /// How an endpoint is chosen inside a backend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub balance: Option<Balance>,
    /// How long a request may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Timeout>,
    /// When a failed attempt is made again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
}

/// A request that takes longer is given up: App Mesh's and Envoy's default, which dashboards and clients expect.
const REQUEST_TIMEOUT: units::Duration = units::Duration::from_secs(15);

/// A body that is silent for longer is given up: under the 60 s after which load balancers in front cut silently.
const IDLE_TIMEOUT: units::Duration = units::Duration::from_secs(60);

/// The same for gRPC, whose streams may have nothing to say for minutes: Envoy's idle time of a stream. Calls of gRPC
/// have no bound of their own here, since each brings its deadline in `grpc-timeout`.
const GRPC_IDLE_TIMEOUT: units::Duration = units::Duration::from_secs(300);

/// The first try and two more: enough to leave a bad endpoint and one more bad choice.
const ATTEMPTS: u32 = 3;

/// The failures that are retried unless something else is said.
const RETRY_ON: [RetryOn; 4] = [
    RetryOn::ConnectFailure,
    RetryOn::RefusedStream,
    RetryOn::Reset,
    RetryOn::GatewayError,
];

/// How long a request may take, all defaults filled in. `None` is no bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Timeouts {
    /// First byte in to last byte out.
    pub request: Option<Duration>,
    /// One attempt, to the head of its answer.
    pub attempt: Option<Duration>,
    /// The longest silence inside a body.
    pub idle: Option<Duration>,
}

/// When a failed attempt is made again, all defaults filled in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RetryPolicy {
    /// How often in all, the first time included.
    pub attempts: u32,
    /// The failures that are worth it.
    pub on: Vec<RetryOn>,
    /// The statuses that `retriable-status-codes` means.
    pub status: Vec<u16>,
    /// Methods that count as idempotent beside those that are.
    pub treat_as_idempotent: Vec<String>,
    /// How long to wait before another attempt.
    pub backoff: Backoff,
    /// Whether a retry stays with the backend that was chosen first.
    pub same_backend: bool,
    /// How many there may be beside the requests.
    pub budget: Budget,
}

impl Default for RetryPolicy {
    /// What holds where nothing is said.
    fn default() -> Self {
        Self {
            attempts: ATTEMPTS,
            on: RETRY_ON.to_vec(),
            status: Vec::new(),
            treat_as_idempotent: Vec::new(),
            backoff: Backoff::default(),
            same_backend: false,
            budget: Budget::default(),
        }
    }
}

impl Mesh {
    /// The timeouts of a route: its own, else the mesh's, else the built-in ones, each field by itself.
    pub fn timeouts(&self, route: &Route, protocol: Protocol) -> Timeouts {
        let own = route.timeout.unwrap_or_default();
        let mesh = self.defaults.timeout.unwrap_or_default();
        let bound = |chosen: units::Duration| (!chosen.0.is_zero()).then_some(chosen.0);
        let (request, idle) = match protocol {
            Protocol::Http | Protocol::Http2 => (REQUEST_TIMEOUT, IDLE_TIMEOUT),
            Protocol::Grpc => (units::Duration::from_secs(0), GRPC_IDLE_TIMEOUT),
        };
        Timeouts {
            request: bound(own.request.or(mesh.request).unwrap_or(request)),
            attempt: own.attempt.or(mesh.attempt).and_then(bound),
            idle: bound(own.idle.or(mesh.idle).unwrap_or(idle)),
        }
    }

    /// The retry policy of a route: its own, else the mesh's, else the built-in one, each field by itself.
    pub fn retry(&self, route: &Route) -> RetryPolicy {
        let own = route.retry.clone().unwrap_or_default();
        let mesh = self.defaults.retry.clone().unwrap_or_default();
        let built_in = RetryPolicy::default();
        RetryPolicy {
            attempts: own.attempts.or(mesh.attempts).unwrap_or(built_in.attempts),
            on: own.on.or(mesh.on).unwrap_or(built_in.on),
            status: own.status.or(mesh.status).unwrap_or_default(),
            treat_as_idempotent: own
                .treat_as_idempotent
                .or(mesh.treat_as_idempotent)
                .unwrap_or_default(),
            backoff: own.backoff.or(mesh.backoff).unwrap_or_default(),
            same_backend: own.same_backend.or(mesh.same_backend).unwrap_or_default(),
            budget: own.budget.or(mesh.budget).unwrap_or_default(),
        }
    }

    /// How a service chooses among the endpoints of a backend.
    pub fn balance(&self, service: &Service) -> Balance {
        service.balance.or(self.defaults.balance).unwrap_or_default()
    }
}
