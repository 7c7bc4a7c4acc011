//! The proxy's bootstrap: what is fixed while it runs. Everything else is pushed.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::gateway::GatewayListener;
use crate::identity::IdentitySource;
use crate::names::DnsListener;
use crate::units::Duration;

/// What is fixed while a sidecar runs: who it is, where it listens, where its configuration comes from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Bootstrap {
    /// Who it is.
    pub node: Node,
    /// Where it listens for traffic.
    pub listeners: Listeners,
    /// Where its configuration comes from.
    pub config: Source,
    /// Where its identity comes from. Default: it has none, and speaks plaintext.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity: Option<IdentitySource>,
    /// Where Prometheus and health checks ask: `/metrics`, `/stats/prometheus`, `/ready`, `/live`, nothing else.
    /// Default 0.0.0.0:9901, App Mesh's port.
    pub scrape: SocketAddr,
    /// Where operators ask: the same and `/config`. Default 127.0.0.1:9902.
    pub admin: SocketAddr,
    /// Data threads. Default: the CPUs that the process may use, its cgroup's quota counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 256))]
    pub workers: Option<usize>,
    /// The longest that stopping may take: requests under way are finished within it. Default 20 s, below the 30 s
    /// after which ECS and Kubernetes kill.
    pub drain: Duration,
    /// Which requests are written to standard output, one JSON line each.
    pub access_log: AccessLog,
}

impl Default for Bootstrap {
    fn default() -> Self {
        Self {
            node: Node::default(),
            listeners: Listeners::default(),
            config: Source::default(),
            identity: None,
            scrape: SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 9901),
            admin: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9902),
            workers: None,
            drain: Duration::from_secs(20),
            access_log: AccessLog::default(),
        }
    }
}

/// Who a sidecar is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Node {
    /// Unique among the sidecars of the mesh. Default: the host's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The service whose instance it stands beside. Without one there is no inbound side.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// The version of that instance, as its operator calls it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Where it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
}

/// Where a sidecar listens for traffic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Listeners {
    /// Requests for the application beside it. Default 0.0.0.0:15000, App Mesh's port.
    pub inbound: SocketAddr,
    /// Requests of the application beside it, told apart by `Host` or by a full URL. Default 127.0.0.1:15001.
    pub outbound: SocketAddr,
    /// Ports that stand for one service each, for an application that can set neither.
    pub local: Vec<LocalListener>,
    /// Ports for callers outside of the mesh, each for the hosts of one `Gateway`.
    pub gateways: Vec<GatewayListener>,
    /// Where the application asks for names: an address such as `127.0.0.1:15053`, or a mapping. Names of the mesh's services
    /// lead to this sidecar, all others are asked of the name servers. Default: it answers no names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dns: Option<DnsListener>,
    /// How long the head of a request may take to come once it has begun; then its connection is closed. 1 s to 1 h.
    pub head_timeout: Duration,
    /// How long a connection of a caller may have no request; then it is closed. 1 s to 1 h. Default 75 s: above the 60 s
    /// for which AWS load balancers keep connections, so that theirs close first.
    pub idle_timeout: Duration,
    /// Those of the two above whose connections begin with the PROXY protocol, version 1 or 2, as a load balancer sends
    /// it: `[inbound]`. There it must come, and the source that it tells is the request's. Default: neither.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub proxy_protocol: Vec<Door>,
}

impl Default for Listeners {
    fn default() -> Self {
        Self {
            inbound: SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 15000),
            outbound: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 15001),
            local: Vec::new(),
            gateways: Vec::new(),
            dns: None,
            head_timeout: Duration::from_secs(75),
            idle_timeout: Duration::from_secs(75),
            proxy_protocol: Vec::new(),
        }
    }
}

/// A listener that has a name of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Door {
    /// `listeners.inbound`.
    Inbound,
    /// `listeners.outbound`.
    Outbound,
}

/// A port that stands for one service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LocalListener {
    /// Where it listens.
    pub address: SocketAddr,
    /// The service that answers.
    pub service: String,
    /// Whether its connections begin with the PROXY protocol, as those of `listeners.proxy_protocol` do. Default: no.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub proxy_protocol: bool,
}

/// Where the configuration comes from: `control` or `path`, one of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Source {
    /// The control API, such as `http://127.0.0.1:9900`. One of `https://` is known by the roots of this sidecar's identity, or
    /// by the join token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub control: Option<String>,
    /// A YAML file, or a folder of them, that is watched.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// The services this sidecar calls, where its table should be small; gateways that it serves as `@NAME`, with their
    /// services. At most 512; default: all.
    pub want: Vec<String>,
    /// Where the last good configuration is kept, for a start while the control API is away. Without it nothing
    /// is kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_good: Option<PathBuf>,
}

/// Which requests are written to standard output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum AccessLog {
    /// Those that this sidecar answered itself because something failed.
    #[default]
    Failures,
    /// All.
    All,
    /// None.
    Off,
}
