//! The words of an edge: which hosts are served to callers outside of the mesh, and where they come in.
//!
//! Who owns what: hosts and services are pushed, as all that may change; addresses and keys belong to the machine, and
//! stand in its bootstrap.

use std::net::SocketAddr;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::outside::TlsVersion;

/// The hosts that are served to callers outside of the mesh, and the services behind them. A proxy serves them that has
/// `listeners.gateways` of this name in its bootstrap.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Gateway {
    /// What bootstraps call it: a DNS label, unique among the gateways. Operators read it as `@NAME`.
    #[schemars(regex(pattern = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"))]
    pub name: String,
    /// The services behind it. A host that none of them has is answered with 404.
    #[schemars(length(min = 1))]
    pub services: Vec<Exposed>,
}

/// A service that is served to callers outside, with all its routes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Exposed {
    /// The service.
    pub service: String,
    /// The host names that callers outside use for it, compared without case and port; a first label may be `*`.
    #[schemars(length(min = 1))]
    pub hosts: Vec<String>,
}

/// A port for callers outside of the mesh.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GatewayListener {
    /// The `Gateway` that is served there. Two ports may serve the same.
    pub name: String,
    /// Where it listens.
    pub address: SocketAddr,
    /// The certificates that are shown there. Default: it speaks plaintext, behind a load balancer that ends TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<GatewayTls>,
    /// Whether its connections begin with the PROXY protocol, as those of `listeners.proxy_protocol` do. Default: no.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub proxy_protocol: bool,
}

/// What a port shows of itself. No certificate is asked of callers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GatewayTls {
    /// Certificates with their keys. A caller is shown the first that bears the name that it asks for; else the first
    /// that bears it by a `*`; else the first of all. They are watched and loaded together: a set with a mistake is not
    /// used, and the one before goes on.
    #[schemars(length(min = 1))]
    pub certificates: Vec<CertificatePair>,
    /// The oldest version of TLS that is spoken.
    #[serde(default)]
    pub min_version: TlsVersion,
}

/// A certificate and its key, in PEM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CertificatePair {
    /// The certificate, then those between it and the root.
    pub certificate: PathBuf,
    /// Its private key: PKCS#8, SEC1 or PKCS#1.
    pub key: PathBuf,
}
