//! The words of identity: who a workload is, how its service is spoken to, who may call it.
//!
//! Here stand names and what they are made of. Certificates, keys and handshakes are the proxy's.

use std::fmt;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::service::PathMatch;

/// What every SPIFFE ID begins with.
const SCHEME: &str = "spiffe://";

/// SPIFFE-ID section 2.3: at most this long in all.
const ID_BYTES_MAX: usize = 2048;

/// SPIFFE-ID section 2.1: a trust domain is at most this long.
const TRUST_DOMAIN_BYTES_MAX: usize = 255;

/// The name of a workload, such as `spiffe://shop/reviews`: the trust domain, then the path.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SpiffeId {
    text: Box<str>,
    /// Where the path begins.
    path: usize,
}

impl SpiffeId {
    /// Reads one, by the letter of the SPIFFE-ID standard, section 2.
    ///
    /// # Errors
    /// Why it is none.
    pub fn parse(text: &str) -> Result<Self, String> {
        let is_segment = |segment: &str| {
            let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
            !matches!(segment, "" | "." | "..") && segment.bytes().all(allowed)
        };
        read(text, is_segment)
    }

    /// The name of a service's workloads in a trust domain: `spiffe://<trust domain>/<service>`.
    ///
    /// # Errors
    /// When one of the two cannot stand in a SPIFFE ID.
    pub fn of_service(trust_domain: &str, service: &str) -> Result<Self, String> {
        Self::parse(&format!("{SCHEME}{trust_domain}/{service}"))
    }

    /// All of it.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The trust domain.
    pub fn trust_domain(&self) -> &str {
        &self.text[SCHEME.len()..self.path]
    }

    /// Whether it names a workload: without a path it is the trust domain's own.
    pub fn has_path(&self) -> bool {
        self.path < self.text.len()
    }

    fn segments(&self) -> impl Iterator<Item = &str> {
        self.text[self.path..].split('/').skip(1)
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn read(text: &str, is_segment: impl Fn(&str) -> bool) -> Result<SpiffeId, String> {
    let Some(rest) = text.strip_prefix(SCHEME) else {
        return Err(format!("expected it to begin with {SCHEME}"));
    };
    if text.len() > ID_BYTES_MAX {
        return Err(format!("it is longer than {ID_BYTES_MAX} bytes"));
    }
    let (domain, path) = rest
        .find('/')
        .map_or((rest, ""), |slash| (&rest[..slash], &rest[slash..]));
    if let Some(why) = trust_domain(domain) {
        return Err(why);
    }
    if !path.is_empty() && !path[1..].split('/').all(is_segment) {
        return Err(
            "its path may have segments of a-z, A-Z, 0-9, `-`, `_` and `.`, none empty, `.` or `..`"
                .to_owned(),
        );
    }
    Ok(SpiffeId {
        text: text.into(),
        path: SCHEME.len() + domain.len(),
    })
}

/// Why a text cannot name a trust domain.
pub fn trust_domain(name: &str) -> Option<String> {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_.".contains(&byte);
    let good = !name.is_empty() && name.len() <= TRUST_DOMAIN_BYTES_MAX && name.bytes().all(allowed);
    (!good).then(|| format!("a trust domain is 1 to {TRUST_DOMAIN_BYTES_MAX} of a-z, 0-9, `-`, `_` and `.`"))
}

/// Which workloads are meant: a SPIFFE ID in whose path a segment may be `*`, which stands for any one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpiffePattern(SpiffeId);

impl SpiffePattern {
    /// Reads one.
    ///
    /// # Errors
    /// Why it is none.
    pub fn parse(text: &str) -> Result<Self, String> {
        let is_segment =
            |segment: &str| segment == "*" || SpiffeId::parse(&format!("{SCHEME}t/{segment}")).is_ok();
        read(text, is_segment).map(Self)
    }

    /// The trust domain of those that it means.
    pub fn trust_domain(&self) -> &str {
        self.0.trust_domain()
    }

    /// Whether it means anybody: a workload has a path (X509-SVID, section 2).
    pub fn has_path(&self) -> bool {
        self.0.has_path()
    }

    /// Whether it means this workload.
    pub fn means(&self, id: &SpiffeId) -> bool {
        let Self(pattern) = self;
        if !pattern.text.contains('*') {
            return pattern == id;
        }
        let mut found = id.segments();
        pattern.trust_domain() == id.trust_domain()
            && pattern.segments().all(|wanted| {
                found
                    .next()
                    .is_some_and(|segment| wanted == "*" || wanted == segment)
            })
            && found.next().is_none()
    }
}

/// How a service is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// Whether by mTLS.
    pub mode: TlsMode,
}

/// Whether the sidecars of a service are spoken to by mTLS, as App Mesh and Istio call it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum TlsMode {
    /// Only by mTLS. Callers without it are refused with `tls-required`; a sidecar without an identity neither calls the
    /// service nor serves it.
    Strict,
    /// Callers with an identity use mTLS; those without may speak in plaintext.
    Permissive,
    /// In plaintext; a TLS handshake is not understood.
    Disabled,
}

/// Callers, and what they may ask for: all that is given must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Allow {
    /// SPIFFE IDs of callers, such as `spiffe://shop/productpage`; a segment of the path may be `*`. Default: every
    /// identity of the mesh.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub from: Vec<String>,
    /// One of these methods. Default: any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<String>,
    /// One of these paths, without the query, in the one form that paths have. Default: any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<PathMatch>,
    /// Calls of one of these gRPC services, `package.Service`, or of one method of it, `package.Service/Method`. It is said
    /// instead of `methods` and `paths`. Default: any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub grpc: Vec<GrpcName>,
}

/// A gRPC service, or a method of one, as its path has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct GrpcName(pub String);

impl GrpcName {
    /// The service, and the method if it names one.
    ///
    /// # Errors
    /// Why it names none: identifiers of protobuf with dots between them, and one behind a slash.
    pub fn parts(&self) -> Result<(&str, Option<&str>), &'static str> {
        let is_identifier = |text: &str| {
            let mut bytes = text.bytes();
            let first = bytes.next();
            first.is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_')
                && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        };
        if self.0.starts_with('/') {
            return Err("it begins with a `/`, as a path does");
        }
        let (service, method) = match self.0.split_once('/') {
            Some((service, method)) => (service, Some(method)),
            None => (&*self.0, None),
        };
        if !service.split('.').all(is_identifier) {
            return Err("a service is named by letters, digits and `_`, with dots between its parts");
        }
        match method.is_none_or(is_identifier) {
            true => Ok((service, method)),
            false => Err("behind the `/` stands one method, named by letters, digits and `_`"),
        }
    }
}

/// What holds for services that say no `allow`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DefaultPolicy {
    /// Every caller that the mode lets in.
    #[default]
    Allow,
    /// Nobody.
    Deny,
}

/// Where a sidecar has its identity from: `files`, `join` or `workload_api`, one of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct IdentitySource {
    /// Files that something else renews.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub files: Option<CertificateFiles>,
    /// The control API, which issues a certificate to who brings a join token and renews it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub join: Option<Join>,
    /// An agent of SPIFFE on this machine, such as SPIRE's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workload_api: Option<WorkloadApi>,
}

/// The SPIFFE Workload API, which hands out a certificate and says when there is another. It takes an `outrigger-proxy` that
/// was built with the cargo feature `spiffe`; one without it does not start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct WorkloadApi {
    /// The agent's socket, `unix:///run/spire/sockets/agent.sock`. Default: the environment variable
    /// `SPIFFE_ENDPOINT_SOCKET`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub socket: Option<String>,
}

/// The path of the socket that a URI of the SPIFFE Workload Endpoint names (its section 4): `unix:///path`, or `unix:/path`,
/// which is the same. Those of `tcp` are not taken: over TCP an agent could not tell which process asks.
///
/// # Errors
/// Why it names none.
pub fn workload_socket(uri: &str) -> Result<PathBuf, String> {
    let path = uri
        .strip_prefix("unix:")
        .map(|rest| rest.strip_prefix("//").unwrap_or(rest));
    match path {
        Some(path) if path.starts_with('/') && !path.ends_with('/') && !path.contains(['?', '#', '\0']) => {
            Ok(path.into())
        }
        _ => Err(
            "it is not the address of a socket: expected unix: with an absolute path, such as \
                  unix:///run/spire/sockets/agent.sock"
                .to_owned(),
        ),
    }
}

/// How a sidecar joins the mesh: with the token of `token_file`, or of `--token` or `OUTRIGGER_TOKEN`. It cannot stand here
/// itself: it is a secret.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Join {
    /// The control API that issues certificates, `https://…`. Default: `config.control`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub control: Option<String>,
    /// A file that holds the token, as `outrigger token create` prints it; read again whenever it is needed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
}

/// Certificate files in PEM, watched and loaded together. A set that does not fit together is not used: the one before
/// goes on serving.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CertificateFiles {
    /// The certificate of this sidecar, then those between it and the root. Its one URI name is its SPIFFE ID,
    /// `spiffe://<trust domain>/<service>`.
    pub certificate: PathBuf,
    /// Its private key: PKCS#8, SEC1 or PKCS#1.
    pub key: PathBuf,
    /// The roots that are trusted: two or more while they are exchanged.
    pub roots: PathBuf,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spiffe_id_is_read_by_the_letter() {
        let id = SpiffeId::parse("spiffe://shop.internal/ns/reviews").unwrap();
        assert_eq!(
            (id.trust_domain(), id.as_str()),
            ("shop.internal", "spiffe://shop.internal/ns/reviews")
        );
        let domain = SpiffeId::parse("spiffe://shop").unwrap();
        assert_eq!((domain.trust_domain(), domain.has_path()), ("shop", false));
        assert!(id.has_path());
        for bad in [
            "",
            "shop/reviews",
            "https://shop/reviews",
            "SPIFFE://shop/a",
            "spiffe://",
            "spiffe:///a",
            "spiffe://Shop/a",
            "spiffe://shop/",
            "spiffe://shop//a",
            "spiffe://shop/a/",
            "spiffe://shop/./a",
            "spiffe://shop/../a",
            "spiffe://shop:80/a",
            "spiffe://u@shop/a",
            "spiffe://shop/a?b",
            "spiffe://shop/a#b",
            "spiffe://shop/%41",
            "spiffe://shop/*",
        ] {
            assert!(SpiffeId::parse(bad).is_err(), "{bad}");
        }
        assert!(SpiffeId::parse(&format!("spiffe://shop/{}", "a".repeat(ID_BYTES_MAX))).is_err());
        assert!(SpiffeId::of_service("shop", "re views").is_err());
    }

    #[test]
    fn a_grpc_name_is_a_service_or_one_method_of_it() {
        let parts = |name: &str| {
            GrpcName(name.to_owned())
                .parts()
                .map(|(service, method)| (service.to_owned(), method.map(str::to_owned)))
        };
        let named = |service: &str, method: Option<&str>| Ok((service.to_owned(), method.map(str::to_owned)));
        assert_eq!(parts("Greeter"), named("Greeter", None));
        assert_eq!(parts("shop.v1.Reviews"), named("shop.v1.Reviews", None));
        assert_eq!(
            parts("shop.v1.Reviews/List"),
            named("shop.v1.Reviews", Some("List"))
        );
        for bad in [
            "",
            "/shop.Reviews",
            "shop.Reviews/",
            "shop..Reviews",
            ".Reviews",
            "shop.Reviews.",
            "shop.Reviews/List/x",
            "shop.Reviews/*",
            "shop.*",
            "shop.Reviews/Li st",
            "1shop.Reviews",
        ] {
            assert!(parts(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_socket_of_the_workload_api_is_an_absolute_path() {
        for good in ["unix:///run/agent.sock", "unix:/run/agent.sock"] {
            assert_eq!(workload_socket(good), Ok("/run/agent.sock".into()), "{good}");
        }
        for bad in [
            "",
            "/run/agent.sock",
            "unix:",
            "unix://",
            "unix:agent.sock",
            "unix://host/agent.sock",
            "unix:///",
            "unix:///run/agent.sock?x",
            "tcp://127.0.0.1:8000",
            "npipe:agent",
        ] {
            assert!(workload_socket(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_star_stands_for_one_whole_segment() {
        let means = |pattern: &str, id: &str| {
            SpiffePattern::parse(pattern)
                .unwrap()
                .means(&SpiffeId::parse(id).unwrap())
        };
        assert!(means("spiffe://shop/reviews", "spiffe://shop/reviews"));
        assert!(!means("spiffe://shop/reviews", "spiffe://shop/reviews2"));
        assert!(means("spiffe://shop/*", "spiffe://shop/reviews"));
        assert!(!means("spiffe://shop/*", "spiffe://shop/ns/reviews"));
        assert!(!means("spiffe://shop/*", "spiffe://shop"));
        assert!(!means("spiffe://shop/*", "spiffe://shop2/reviews"));
        assert!(means("spiffe://shop/ns/*/sa/web", "spiffe://shop/ns/a/sa/web"));
        assert!(!means("spiffe://shop/ns/*/sa/web", "spiffe://shop/ns/a/sa/job"));
        for bad in ["spiffe://*/a", "spiffe://shop/a*", "spiffe://shop/**", "*"] {
            assert!(SpiffePattern::parse(bad).is_err(), "{bad}");
        }
    }
}
