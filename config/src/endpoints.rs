//! What a service file says about the endpoints of its backends: how one is chosen, how they are checked, when one
//! that fails is left out, and how much they may be sent at once.

use std::net::SocketAddr;

use schemars::JsonSchema;
use serde::de::value::MapAccessDeserializer;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::units::{Duration, Percent};

/// How an endpoint is chosen among those of a backend.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Balance {
    /// Each in turn.
    RoundRobin,
    /// The less busy of two that are drawn at random: nearly as even as knowing all, and no herd runs to the one
    /// that was idle a moment ago.
    #[default]
    LeastRequest,
    /// The one of two drawn at random that is likely to answer sooner, by how long its answers took and how many
    /// requests it has. A failure counts as a slow answer, so that failing fast attracts nobody.
    Ewma,
    /// The same endpoint for the same value, as far as endpoints come and go. A request without the value goes to
    /// the less busy of two.
    HashOn(HashOn),
}

/// What keeps a caller at one endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum HashOn {
    /// The address of the caller. The application beside a sidecar has always the same; this is for callers from
    /// other hosts.
    SourceAddress,
    /// The value of this request header.
    Header(String),
    /// The value of this cookie.
    Cookie(String),
}

/// An endpoint that is written down: its address, or a mapping with address and weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StaticEndpoint {
    /// Where it is.
    pub address: SocketAddr,
    /// Its share of the requests, against those of the others.
    pub weight: u32,
}

impl From<SocketAddr> for StaticEndpoint {
    fn from(address: SocketAddr) -> Self {
        Self { address, weight: 1 }
    }
}

/// An endpoint with its weight.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct WeightedEndpoint {
    /// Its address and port.
    address: SocketAddr,
    /// Its share of the requests, against those of the others: twice the weight, twice the requests. 1 to 1,000.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 1_000))]
    weight: u32,
}

/// An endpoint that is written down.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(untagged)]
#[schemars(rename = "StaticEndpoint")]
enum Written {
    /// Its address and port.
    Address(SocketAddr),
    /// Its address and its weight.
    Weighted(WeightedEndpoint),
}

impl From<StaticEndpoint> for Written {
    fn from(endpoint: StaticEndpoint) -> Self {
        let StaticEndpoint { address, weight } = endpoint;
        match weight {
            1 => Self::Address(address),
            _ => Self::Weighted(WeightedEndpoint { address, weight }),
        }
    }
}

impl Serialize for StaticEndpoint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Written::from(*self).serialize(serializer)
    }
}

/// Whether this is a host by name, and no address that is a little wrong.
fn is_a_name(host: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.');
    host.bytes().all(allowed) && host.bytes().any(|byte| byte.is_ascii_alphabetic())
}

impl<'de> Deserialize<'de> for StaticEndpoint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> de::Visitor<'de> for Either {
            type Value = StaticEndpoint;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an IP address and a port, or a mapping with the fields address, weight")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<StaticEndpoint, E> {
                let address: Result<SocketAddr, _> = text.parse();
                address.map(StaticEndpoint::from).map_err(|error| match text.rsplit_once(':') {
                    Some((name, port)) if is_a_name(name) && port.parse::<u16>().is_ok() => E::custom(format!(
                        "found the text `{text}`; expected an IP address and a port, such as 127.0.0.1:9080; for a name: \
                         {{ dns: {name}, port: {port} }}"
                    )),
                    _ => E::custom(error),
                })
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<StaticEndpoint, E> {
                Err(E::custom(format!(
                    "found the number {number}; expected an IP address and a port, such as 127.0.0.1:9080 or \"[::1]:9080\""
                )))
            }

            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<StaticEndpoint, A::Error> {
                let WeightedEndpoint { address, weight } =
                    WeightedEndpoint::deserialize(MapAccessDeserializer::new(map))?;
                Ok(StaticEndpoint { address, weight })
            }
        }

        // What is text or mapping is told by what stands there.
        deserializer.deserialize_any(Either)
    }
}

impl JsonSchema for StaticEndpoint {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        Written::schema_name()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        Written::json_schema(generator)
    }
}

/// How much may be sent to the endpoints of a backend at once, by one sidecar, all its threads together. What is
/// over a limit is answered at once with `overloaded` instead of waiting in a queue that grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Connections, idle ones included. An endpoint that has none may always have one. 1 to 1,000,000, default 1024.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub connections: Option<u32>,
    /// Requests that wait for a connection to be made. 1 to 1,000,000, default 1024.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub pending: Option<u32>,
    /// Requests under way, from the choice of an endpoint to the last byte of the answer. 1 to
    /// 1,000,000, default 4096.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub requests: Option<u32>,
}

/// Asking the endpoints whether they are well. One that is not gets no requests while at least half of the others
/// do. Every sidecar asks every endpoint that it knows: callers × endpoints / interval questions a second. Exactly
/// one of `path`, `grpc` and `tcp` is given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HealthCheck {
    /// A GET of this path by HTTP/1.1, which a well endpoint answers with a 2xx.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// A call of `grpc.health.v1.Health/Check`, which a well endpoint answers with `SERVING`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grpc: Option<GrpcCheck>,
    /// A connection, which a well endpoint takes. `{}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp: Option<TcpCheck>,
    /// From one question to the next. 100ms to 1h, default 10s.
    #[serde(default = "HealthCheck::interval_default")]
    pub interval: Duration,
    /// An answer that takes longer is none. At most 1m, default 2s.
    #[serde(default = "HealthCheck::timeout_default")]
    pub timeout: Duration,
    /// So many good answers in a row bring an endpoint back. 1 to 100, default 2. The first answer of a new endpoint
    /// decides at once.
    #[serde(default = "HealthCheck::healthy_default")]
    #[schemars(range(min = 1, max = 100))]
    pub healthy: u32,
    /// So many bad answers in a row take an endpoint out. 1 to 100, default 3.
    #[serde(default = "HealthCheck::unhealthy_default")]
    #[schemars(range(min = 1, max = 100))]
    pub unhealthy: u32,
}

impl HealthCheck {
    const fn interval_default() -> Duration {
        Duration::from_secs(10)
    }

    const fn timeout_default() -> Duration {
        Duration::from_secs(2)
    }

    const fn healthy_default() -> u32 {
        2
    }

    const fn unhealthy_default() -> u32 {
        3
    }
}

/// Which service of the endpoint is asked after.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GrpcCheck {
    /// Its full name, such as `shop.Reviews`. Default: empty, which asks after the server as a whole.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub service: String,
}

/// Whether a connection can be made; there is nothing more to say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TcpCheck {}

/// When an endpoint that fails is left out for a while. What is not given falls to the mesh's defaults, then to the
/// built-in ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Ejection {
    /// So many failures in a row: answers of 5xx, connections that broke, connections and attempts that took too long.
    /// Refused connections do not count: the endpoint is left alone for at most a second at a time. 1 to 1,000,
    /// default 5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000))]
    pub consecutive_failures: Option<u32>,
    /// For so long, the first time; the second time twice as long, and so on, up to 5 minutes. Then one request
    /// finds out whether it is well again. 100ms to 1h, default 30s.
    #[serde(default, rename = "for", skip_serializing_if = "Option::is_none")]
    pub time: Option<Duration>,
    /// At most this share of a backend's endpoints at once, rounded down but at least one, and never the last.
    /// `0%`: none is ever left out. Default 50%.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_most: Option<Percent>,
}

const fn one() -> u32 {
    1
}
