//! The mesh file: what holds for every service, and how a service's own words and the defaults become one policy.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::discover::DiscoverDefaults;
use crate::identity::{DefaultPolicy, Tls, TlsMode};
use crate::join::Revoked;
use crate::service::{
    Backoff, Balance, Budget, Ejection, HealthCheck, Limits, Protocol, Retry, RetryOn, Route, Service,
    Timeout,
};
use crate::units;

/// What holds for every service of the mesh.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Mesh {
    /// The part of every identity of the mesh before its path, as in `spiffe://<trust domain>/<service>`. A sidecar whose
    /// certificate has another is as good as without. It cannot be changed once the control API has issued a certificate.
    /// Default: that of each sidecar's own certificate; for what the control API issues, what `outrigger serve
    /// --trust-domain` says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust_domain: Option<String>,
    /// Who may call a service that says no `allow`.
    #[serde(default)]
    pub default_policy: DefaultPolicy,
    /// What a service or route falls back to where it says nothing itself.
    #[serde(default)]
    pub defaults: Defaults,
    /// What is not to be trusted any more though it has not expired. `outrigger revoke` writes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked: Option<Revoked>,
}

/// What a service or route falls back to where it says nothing itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Defaults {
    /// How an endpoint is chosen inside a backend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub balance: Option<Balance>,
    /// How much the endpoints of a backend may be sent at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
    /// When an endpoint that fails is left out for a while.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ejection: Option<Ejection>,
    /// How long a new endpoint takes to grow to its share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slow_start: Option<units::Duration>,
    /// How DNS is asked where endpoints are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub discover: Option<DiscoverDefaults>,
    /// How long a request may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Timeout>,
    /// When a failed attempt is made again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
    /// Whether services are spoken to by mTLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
}

/// A request that takes longer is given up: App Mesh's and Envoy's default, which dashboards and clients expect.
const REQUEST_TIMEOUT: units::Duration = units::Duration::from_secs(15);

/// A body that is silent for longer is given up: under the 60 s after which load balancers in front cut silently.
const IDLE_TIMEOUT: units::Duration = units::Duration::from_secs(60);

/// The same for gRPC, whose streams may have nothing to say for minutes: Envoy's idle time of a stream. Calls of gRPC
/// have no bound of their own here, since each brings its deadline in `grpc-timeout`.
const GRPC_IDLE_TIMEOUT: units::Duration = units::Duration::from_secs(300);

/// The longest silence of a TCP connection: Envoy's hour. Databases are silent for minutes; what is silent for longer is
/// mostly forgotten.
const TCP_IDLE_TIMEOUT: units::Duration = units::Duration::from_secs(60 * 60);

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

/// Connections to the endpoints of a backend: Envoy's default.
const CONNECTIONS: u32 = 1024;

/// Requests that wait for a connection: Envoy's default. A thousand that wait are answered sooner by a refusal.
const PENDING: u32 = 1024;

/// Requests under way at a backend: four for each connection, which only HTTP/2 reaches.
const REQUESTS: u32 = 4096;

/// Failures in a row after which an endpoint is left out: Envoy's and App Mesh's number.
const FAILURES: u32 = 5;

/// How long an endpoint is left out the first time: Envoy's and App Mesh's number.
const EJECTED_FOR: units::Duration = units::Duration::from_secs(30);

/// The share of the endpoints that may be left out: with less than half of them, what remains would fall next.
const EJECTED_AT_MOST: units::Percent = units::Percent(50);

/// What a service says about the endpoints of its backends, all defaults filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointPolicy {
    /// How one is chosen.
    pub balance: Balance,
    /// How much they may be sent at once.
    pub limits: LimitPolicy,
    /// How they are asked whether they are well, if they are.
    pub health_check: Option<HealthCheck>,
    /// When one that fails is left out, if ever.
    pub ejection: Option<EjectionPolicy>,
    /// How long a new one takes to its whole share.
    pub slow_start: Option<Duration>,
}

/// How much the endpoints of a backend may be sent at once, by all threads of a sidecar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitPolicy {
    /// Connections, idle ones included.
    pub connections: u32,
    /// Requests that wait for a connection.
    pub pending: u32,
    /// Requests under way.
    pub requests: u32,
}

/// When an endpoint that fails is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EjectionPolicy {
    /// After so many failures in a row.
    pub consecutive_failures: u32,
    /// For so long the first time.
    pub time: Duration,
    /// At most this share of the endpoints.
    pub at_most: units::Percent,
}

impl Default for EndpointPolicy {
    /// What holds where nothing is said.
    fn default() -> Self {
        let nothing = Service {
            name: String::new(),
            hosts: Vec::new(),
            protocol: Protocol::default(),
            app: None,
            backends: Vec::new(),
            balance: None,
            limits: None,
            health_check: None,
            ejection: None,
            slow_start: None,
            normalize_paths: None,
            rate_limit: None,
            header_case: None,
            tls: None,
            allow: None,
            audit: None,
            routes: Vec::new(),
        };
        Mesh::default().endpoints(&nothing)
    }
}

impl Mesh {
    /// Whether a service is spoken to by mTLS: its own words, else the mesh's; `None` if neither says.
    pub fn tls_mode(&self, service: &Service) -> Option<TlsMode> {
        service.tls.or(self.defaults.tls).map(|tls| tls.mode)
    }

    /// The timeouts of a route: its own, else the mesh's, else the built-in ones, each field by itself.
    pub fn timeouts(&self, route: &Route, protocol: Protocol) -> Timeouts {
        let own = route.timeout.unwrap_or_default();
        let mesh = self.defaults.timeout.unwrap_or_default();
        let bound = |chosen: units::Duration| (!chosen.0.is_zero()).then_some(chosen.0);
        let (request, idle) = match protocol {
            Protocol::Http | Protocol::Http2 => (REQUEST_TIMEOUT, IDLE_TIMEOUT),
            Protocol::Grpc => (units::Duration::from_secs(0), GRPC_IDLE_TIMEOUT),
            Protocol::Tcp => {
                // The mesh's times are for requests; a connection has none.
                return Timeouts {
                    request: None,
                    attempt: None,
                    idle: bound(own.idle.unwrap_or(TCP_IDLE_TIMEOUT)),
                };
            }
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

    /// How a service chooses among the endpoints of a backend, and what it asks and bears of them.
    pub fn endpoints(&self, service: &Service) -> EndpointPolicy {
        let defaults = &self.defaults;
        let balance = service.balance.clone().or_else(|| defaults.balance.clone());
        let (own, mesh) = (
            service.limits.unwrap_or_default(),
            defaults.limits.unwrap_or_default(),
        );
        let limit = |own: Option<u32>, mesh: Option<u32>, default| own.or(mesh).unwrap_or(default);
        let limits = LimitPolicy {
            connections: limit(own.connections, mesh.connections, CONNECTIONS),
            pending: limit(own.pending, mesh.pending, PENDING),
            requests: limit(own.requests, mesh.requests, REQUESTS),
        };
        let (own, mesh) = (
            service.ejection.unwrap_or_default(),
            defaults.ejection.unwrap_or_default(),
        );
        let ejection = EjectionPolicy {
            consecutive_failures: own
                .consecutive_failures
                .or(mesh.consecutive_failures)
                .unwrap_or(FAILURES),
            time: own.time.or(mesh.time).unwrap_or(EJECTED_FOR).0,
            at_most: own.at_most.or(mesh.at_most).unwrap_or(EJECTED_AT_MOST),
        };
        let slow_start = service.slow_start.or(defaults.slow_start);
        EndpointPolicy {
            balance: balance.unwrap_or_default(),
            limits,
            health_check: service.health_check.clone(),
            ejection: (ejection.at_most.0 > 0).then_some(ejection),
            slow_start: slow_start.map(|time| time.0).filter(|time| !time.is_zero()),
        }
    }
}
