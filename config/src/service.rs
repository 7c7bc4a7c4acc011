//! The service file: one document says everything about one service, and is owned by the team that owns it.

use std::net::SocketAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use crate::actions::{HeaderEdits, Redirect, RegexRewrite, Respond, Rewrite, Scheme};
pub use crate::discover::{Discover, DiscoverSource};
pub use crate::endpoints::{
    Balance, Ejection, GrpcCheck, HashOn, HealthCheck, Limits, StaticEndpoint, TcpCheck,
};
pub use crate::identity::{Allow, Tls, TlsMode};
pub use crate::outside::{BackendTls, OutsideTls, Roots, TlsVersion};
pub use crate::retry::{Backoff, Budget, Hedge, Retry, RetryOn};
pub use crate::traffic::{Fault, Mirror, RateLimit};
use crate::units::Duration;

/// One service: where it lives, how it is called.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// What other files and metrics call it: a DNS label, unique in the mesh.
    #[schemars(regex(pattern = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"))]
    pub name: String,
    /// The host names that its callers use, compared without case and port. Default: its name alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
    /// What it speaks. Declared, never guessed from the bytes.
    #[serde(default)]
    pub protocol: Protocol,
    /// Where the application listens, seen from its own sidecar.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app: Option<SocketAddr>,
    /// Its versions: named sets of endpoints.
    #[schemars(length(min = 1))]
    pub backends: Vec<Backend>,
    /// How an endpoint is chosen inside a backend. Default: the mesh's, else `least_request`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub balance: Option<Balance>,
    /// How much its endpoints may be sent at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
    /// How its endpoints are asked whether they are well. Default: they are not asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_check: Option<HealthCheck>,
    /// When an endpoint that fails is left out for a while.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ejection: Option<Ejection>,
    /// An endpoint that is new or comes back takes this long to grow from a tenth of its share to the whole. At most
    /// 1h. Default: it takes its share at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slow_start: Option<Duration>,
    /// How many requests its own sidecar lets through to `app`: the place to protect the application, whoever calls.
    /// Default: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<RateLimit>,
    /// Whether paths are brought into one form before they are routed and passed on: encoded letters decoded, `//` made
    /// `/`, `.` and `..` resolved. Default: true. False: they stay as they come, for services whose paths hold other
    /// addresses; then a path may have several forms, and a route that matches by path can be gone around.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub normalize_paths: Option<bool>,
    /// How the names of fields are written from HTTP/1.1 to HTTP/1.1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header_case: Option<HeaderCase>,
    /// Whether it is spoken to by mTLS. Default: the mesh's; where that says nothing either, its sidecars take both and its
    /// callers speak in plaintext.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
    /// Who may call it: what one of these allows. Default: what the mesh's `default_policy` says. A caller without an
    /// identity is allowed nothing by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow: Option<Vec<Allow>>,
    /// Whether what `allow` would refuse is served all the same, counted and written to the log: to try it out. Default:
    /// false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audit: Option<bool>,
    /// Which request goes where: the first that matches, in the order written. Default: one route, named
    /// `default`, to the only backend.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Route>,
}

impl Service {
    /// The host names that its callers use: those written, or its name.
    pub fn hosts(&self) -> impl Iterator<Item = &str> {
        let named = self.hosts.is_empty().then_some(self.name.as_str());
        self.hosts.iter().map(String::as_str).chain(named)
    }

    /// Whether the names of fields keep their case.
    pub fn keeps_header_case(&self) -> bool {
        self.header_case == Some(HeaderCase::Keep)
    }
}

/// What a service speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// HTTP/1.1 towards its endpoints. Callers may speak HTTP/1.1 or HTTP/2 to their sidecar.
    #[default]
    Http,
    /// HTTP/2 with prior knowledge towards its endpoints. Callers may speak either.
    Http2,
    /// gRPC: HTTP/2, whose calls bring their own deadlines, and whose failures stand in `grpc-status`.
    Grpc,
    /// Bytes both ways, of which nothing is known. Callers reach it by a local port, or by CONNECT.
    Tcp,
}

impl Protocol {
    /// Whether its endpoints are spoken to in HTTP/2.
    pub const fn is_http2(self) -> bool {
        matches!(self, Self::Http2 | Self::Grpc)
    }
}

/// How the names of fields are written. HTTP says that it does not matter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum HeaderCase {
    /// In lower case, as HTTP/2 has them.
    #[default]
    Lower,
    /// As they came, both ways, for callers and applications that know a name by one spelling only. It costs some
    /// percent of each request. Connections that stand when this is changed go on as they were.
    Keep,
}

/// A version of the service: a named set of endpoints that are equal to the caller.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Backend {
    /// What routes and metrics call it; unique in the service.
    pub name: String,
    /// Where its endpoints are found.
    pub discover: Discover,
    /// How its endpoints are spoken to. Default: they are sidecars of this service, and so as its `tls` says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<BackendTls>,
}

impl Backend {
    /// The name for which the certificate of its endpoints must be good, where they are servers outside of the mesh.
    pub fn server_name(&self) -> Option<&str> {
        let Some(BackendTls::Outside(tls)) = &self.tls else {
            return None;
        };
        tls.server_name.as_deref().or_else(|| self.discover.name())
    }
}

/// One rule: which requests, what becomes of them, and how patiently. Exactly one of `to`, `redirect` and `respond` is
/// given.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// What metrics and logs call it; unique in the service.
    pub name: String,
    /// The route applies if one of these does. Default: it applies to every request.
    #[serde(default, rename = "match", skip_serializing_if = "Vec::is_empty")]
    pub matches: Vec<Match>,
    /// The backends that share its requests, by weight.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub to: Vec<Target>,
    /// The sidecar answers with another URL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redirect: Option<Redirect>,
    /// The sidecar answers by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub respond: Option<Respond>,
    /// What is changed in the host and the path of its requests. Goes with `to`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rewrite: Option<Rewrite>,
    /// What is changed in the headers of its requests. Goes with `to`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_headers: Option<HeaderEdits>,
    /// What is changed in the headers of its answers, those that the sidecar gives because it failed left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_headers: Option<HeaderEdits>,
    /// How long it may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Timeout>,
    /// When a failed attempt is made again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
    /// When a request that is slow to be answered is sent a second time, elsewhere. Default: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hedge: Option<Hedge>,
    /// How many of its requests the caller's sidecar lets through. Default: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<RateLimit>,
    /// Faults that are put into its requests on purpose. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<Fault>,
    /// Further backends that are sent copies of its requests, at most 4.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4))]
    pub mirror: Vec<Mirror>,
}

/// Conditions that must all hold.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Match {
    /// The path, without the query.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathMatch>,
    /// One of these methods. Default: any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<String>,
    /// Header conditions, all of which must hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<HeaderMatch>,
    /// Query parameter conditions, all of which must hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub query: Vec<QueryMatch>,
}

/// How a path is compared. Exactly one of the three is given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("minProperties" = 1, "maxProperties" = 1))]
pub struct PathMatch {
    /// The whole path, byte for byte.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exact: Option<String>,
    /// Whole leading segments: `/reviews` takes `/reviews` and `/reviews/1`, not `/reviewsx`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// A regular expression that the whole path must match.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub regex: Option<String>,
}

/// How a header is compared. Exactly one of the comparisons is given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HeaderMatch {
    /// The header, without regard to case.
    pub name: String,
    /// The whole value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exact: Option<String>,
    /// The beginning of the value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// The end of the value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suffix: Option<String>,
    /// A regular expression that the whole value must match.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub regex: Option<String>,
    /// Whether the header is there at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub present: Option<bool>,
    /// A whole number from `start` up to but not including `end`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range: Option<Range>,
    /// Turns the comparison round.
    #[serde(default, skip_serializing_if = "is_false")]
    pub invert: bool,
}

/// A half-open range of whole numbers, as in App Mesh and Envoy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Range {
    /// The first number inside.
    pub start: i64,
    /// The first number outside.
    pub end: i64,
}

/// How a query parameter is compared. Exactly one of the comparisons is given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct QueryMatch {
    /// The parameter, byte for byte after percent-decoding.
    pub name: String,
    /// The whole value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exact: Option<String>,
    /// A regular expression that the whole value must match.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub regex: Option<String>,
    /// Whether the parameter is there at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub present: Option<bool>,
}

/// A backend and its share of a route's requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// A backend of this service.
    pub backend: String,
    /// Its share, against the sum of all; 0 takes no request. 0 to 1,000,000.
    #[serde(default = "one")]
    #[schemars(range(max = 1_000_000))]
    pub weight: u32,
    /// What is changed in the headers of the requests that go there, after what the route says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_headers: Option<HeaderEdits>,
    /// What is changed in the headers of the answers that come from there, after what the route says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_headers: Option<HeaderEdits>,
}

/// How long a request may take. What is not given falls to the mesh's defaults, then to the built-in ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Timeout {
    /// From the request's first byte to the answer's last, all attempts together. `0s`: no bound. Default 15 s,
    /// as in App Mesh and Envoy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<Duration>,
    /// One attempt, from choosing an endpoint to the head of its answer. `0s`, the default: only the request's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<Duration>,
    /// The longest silence while a body is sent or received. `0s`: no bound. Default 60 s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle: Option<Duration>,
}

const fn one() -> u32 {
    1
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes fields by reference"
)]
const fn is_false(flag: &bool) -> bool {
    !*flag
}
