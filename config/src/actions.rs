//! The words about what a route does with its requests beside passing them on: answering itself, and changing what it
//! passes on.
//!
//! What the words mean for one request is decided by the sidecar's `request::actions`.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The sidecar answers with another URL, which the caller is to ask instead. What is not given stays as the caller asked
/// for it, the query too.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Redirect {
    /// `http` or `https`. It brings its well-known port, unless `port` says another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheme: Option<Scheme>,
    /// The host, without a port: the URL then has none but `port`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// The port; the well-known one of the scheme is left out of the URL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub port: Option<u16>,
    /// The whole path. If it has a query (`/a?b=c`), that takes the place of the caller's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// What takes the place of the prefix that matched: every `match` of the route needs `path: { prefix: … }`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// 301, 302, 303, 307 or 308. With 307 and 308 the caller asks with the same method and body again.
    #[serde(default = "found")]
    #[schemars(range(min = 301, max = 308), extend("enum" = [301, 302, 303, 307, 308]))]
    pub status: u16,
    /// Whether the caller's query is left out of the URL. Default: false.
    #[serde(default, skip_serializing_if = "is_false")]
    pub strip_query: bool,
}

/// The scheme of a URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Scheme {
    /// Plain.
    Http,
    /// With TLS.
    Https,
}

impl Scheme {
    /// The scheme as it stands in a URL.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

/// The sidecar answers by itself, the same to everyone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Respond {
    /// The status, 200 to 599; for a service with `protocol: grpc` 400 to 599, of which the call is told the
    /// `grpc-status` that gRPC has for it.
    #[schemars(range(min = 200, max = 599))]
    pub status: u16,
    /// The body, at most 64 KiB. `text/plain; charset=utf-8`, unless `headers` has a `content-type`. To a gRPC call the
    /// beginning of it is the message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    /// The headers of the answer.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
}

/// What is changed in the target of a request before it is passed on. The route has been chosen by then. Of `path`,
/// `prefix` and `regex` one may be given; the query stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rewrite {
    /// The `Host`, for an endpoint by HTTP/2 the `:authority`; a port may stand in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// The whole path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// What takes the place of the prefix that matched: every `match` of the route needs `path: { prefix: … }`. `/` takes
    /// it off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// A replacement of what a pattern finds in the path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub regex: Option<RegexRewrite>,
}

/// Replaces all that a pattern finds in a path, as Envoy's `regex_rewrite` does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RegexRewrite {
    /// What is replaced: a regular expression, which may match in any place of the path, and several times. `^` and `$` are
    /// the path's beginning and end.
    pub pattern: String,
    /// What takes its place: `\1` to `\9` are the groups of the pattern, `\0` is all that it matched, `\\` is a backslash.
    pub substitution: String,
}

/// What is changed in the headers of a message. A name stands in one of the three, so that their order says nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HeaderEdits {
    /// Headers that have this value and no other.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub set: BTreeMap<String, String>,
    /// Values beside those that the headers have already.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub add: BTreeMap<String, String>,
    /// Headers that are taken out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remove: Vec<String>,
}

/// Envoy's and the Gateway API's default: nobody remembers it.
const fn found() -> u16 {
    302
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes fields by reference"
)]
const fn is_false(flag: &bool) -> bool {
    !*flag
}
