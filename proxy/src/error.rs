//! Why the proxy answered instead of the upstream: the one table of reasons.
//!
//! A reason is one word. The same word stands in the `x-outrigger-reason` header, in the log and in the metric, and
//! its row says which status it becomes and whether the upstream may have seen the request, which is all that the
//! safety of a retry hangs on. Nothing here decides to retry: that is `request::retry`.

use std::fmt;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

/// The header that says why the proxy answered itself.
pub const HEADER: HeaderName = HeaderName::from_static("x-outrigger-reason");

/// Why the proxy answered instead of the upstream, or cut the upstream's answer short.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The request is not one that HTTP allows.
    BadRequest,
    /// No configuration has been applied yet.
    NotReady,
    /// No service of the mesh bears the host that was asked for.
    NoService,
    /// The service is known; none of its routes matches.
    NoRoute,
    /// More requests came than a limit on their rate lets through.
    RateLimited,
    /// The route says that it be failed on purpose.
    FaultInjected,
    /// The service takes mTLS alone, and this came in plaintext.
    TlsRequired,
    /// The caller may not call the service, or not for this.
    Forbidden,
    /// A bound of this sidecar was reached.
    Overloaded,
    /// The backend has no endpoint.
    NoEndpoint,
    /// The backend's endpoints are this sidecar itself.
    Loop,
    /// No connection was made: refused, unreachable.
    ConnectFailed,
    /// No connection was made in time.
    ConnectTimeout,
    /// This sidecar must show a certificate and has none.
    IdentityMissing,
    /// This sidecar's certificate has expired.
    IdentityExpired,
    /// The other end did not accept this sidecar's certificate.
    IdentityRefused,
    /// The handshake failed by none of the reasons below.
    TlsHandshake,
    /// The other end's certificate does not lead to a root that is trusted.
    PeerUntrusted,
    /// The other end's certificate has expired.
    PeerExpired,
    /// The other end's certificate is not valid yet.
    PeerNotYetValid,
    /// The other end is somebody else, or nobody of this mesh.
    PeerWrongIdentity,
    /// The other end showed no certificate.
    PeerNoCertificate,
    /// The mesh has revoked the other end's certificate or its identity.
    PeerRevoked,
    /// The endpoint said that it did not begin with the request.
    RefusedStream,
    /// The connection broke before or inside the answer.
    UpstreamReset,
    /// The endpoint asked for less work by HTTP/2's ENHANCE_YOUR_CALM.
    EnhanceYourCalm,
    /// The answer is not one that HTTP allows.
    UpstreamProtocol,
    /// One attempt took too long.
    AttemptTimeout,
    /// The request took too long, all attempts together.
    RequestTimeout,
    /// A body was silent for too long.
    IdleTimeout,
    /// Another attempt of the same request, which began beside this one, was answered first.
    Outrun,
    /// The sidecar stopped before the request was done.
    Draining,
    /// The caller went away before it had its answer.
    ClientGone,
    /// A fault of the proxy itself.
    Internal,
}

/// Whether the upstream may have seen the request when it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reached {
    /// Certainly not: another attempt is safe for any method.
    No,
    /// It may have: another attempt is safe for idempotent methods only (RFC 9110 section 9.2.2).
    Maybe,
}

/// One row of the table.
struct Facts {
    word: &'static str,
    status: StatusCode,
    grpc: u8,
    reached: Reached,
    advice: &'static str,
}

impl Reason {
    /// Every reason, in the order of the table.
    pub const ALL: [Self; 34] = [
        Self::BadRequest,
        Self::NotReady,
        Self::NoService,
        Self::NoRoute,
        Self::RateLimited,
        Self::FaultInjected,
        Self::TlsRequired,
        Self::Forbidden,
        Self::Overloaded,
        Self::NoEndpoint,
        Self::Loop,
        Self::ConnectFailed,
        Self::ConnectTimeout,
        Self::IdentityMissing,
        Self::IdentityExpired,
        Self::IdentityRefused,
        Self::TlsHandshake,
        Self::PeerUntrusted,
        Self::PeerExpired,
        Self::PeerNotYetValid,
        Self::PeerWrongIdentity,
        Self::PeerNoCertificate,
        Self::PeerRevoked,
        Self::RefusedStream,
        Self::UpstreamReset,
        Self::EnhanceYourCalm,
        Self::UpstreamProtocol,
        Self::AttemptTimeout,
        Self::RequestTimeout,
        Self::IdleTimeout,
        Self::Outrun,
        Self::Draining,
        Self::ClientGone,
        Self::Internal,
    ];

    /// The row's place in the table.
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The word that header, log and metric say.
    pub const fn word(self) -> &'static str {
        self.facts().word
    }

    /// The status of the answer that the proxy makes.
    pub const fn status(self) -> StatusCode {
        self.facts().status
    }

    /// The `grpc-status` of the answer that the proxy makes to a gRPC call: what gRPC's own mapping from HTTP gives
    /// (its document "HTTP to gRPC Status Code Mapping"), but DEADLINE_EXCEEDED for a time that is over.
    pub const fn grpc_status(self) -> u8 {
        self.facts().grpc
    }

    /// Whether the upstream may have seen the request.
    pub const fn reached(self) -> Reached {
        self.facts().reached
    }

    /// The reason that a word names: what the sidecar of an endpoint says in its header.
    pub fn from_word(word: &[u8]) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|reason| reason.word().as_bytes() == word)
    }

    /// Whether a sidecar that answered itself did so because it keeps a limit on rates, and not because anything is ill.
    pub fn keeps_a_limit(headers: &HeaderMap) -> bool {
        headers
            .get(HEADER)
            .is_some_and(|word| *word == Self::RateLimited.word())
    }

    /// The word as a header value.
    pub const fn header(self) -> HeaderValue {
        HeaderValue::from_static(self.facts().word)
    }

    /// Whether TLS with the other end failed, so that nothing was said to it.
    pub const fn is_of_handshake(self) -> bool {
        matches!(
            self,
            Self::IdentityRefused
                | Self::TlsHandshake
                | Self::PeerUntrusted
                | Self::PeerExpired
                | Self::PeerNotYetValid
                | Self::PeerWrongIdentity
                | Self::PeerNoCertificate
                | Self::PeerRevoked
        )
    }

    /// What an operator should look at first.
    pub const fn advice(self) -> &'static str {
        self.facts().advice
    }

    // A table is read by its columns.
    #[rustfmt::skip]
    const fn facts(self) -> Facts {
        use Reached::{Maybe, No};
        match self {
            Self::BadRequest =>       facts("bad-request",       400, 13, No,    "the request is malformed; look at the client"),
            Self::NotReady =>           facts("not-ready",         503, 14, No,    "no configuration has been applied yet; can the sidecar reach the control API?"),
            Self::NoService =>        facts("no-service",        404, 12, No,    "no service has this host; compare `hosts` in the service files"),
            Self::NoRoute =>          facts("no-route",          404, 12, No,    "no route of the service matches; compare its `routes`"),
            // Envoy's flag RL. gRPC says RESOURCE_EXHAUSTED, as Envoy does where it is asked to: it is the caller's doing.
            Self::RateLimited =>      facts("rate-limited",      429,  8, No,    "more requests came than `rate_limit` lets through; look at the caller, or raise the limit"),
            // Envoy's flag FI. Status and grpc-status are those that the route says, else these.
            Self::FaultInjected =>    facts("fault-injected",    503, 14, No,    "the route's `fault` says so; take it out when the trial is over"),
            Self::TlsRequired =>      facts("tls-required",      403,  7, No,    "the service's `tls` is strict and the caller spoke plaintext; give the caller's sidecar an identity"),
            Self::Forbidden =>        facts("forbidden",         403,  7, No,    "the service's `allow` names no such caller for this request; one that speaks plaintext has no identity and is never named: its sidecar speaks mTLS where the service says `tls: { mode: permissive }` or strict; the log says who it is"),
            Self::Overloaded =>       facts("overloaded",        503, 14, No,    "a limit of this sidecar was reached; look at connections and at slow endpoints"),
            Self::NoEndpoint =>       facts("no-endpoint",       503, 14, No,    "the backend has no endpoint; look at its `discover` and at DNS"),
            Self::Loop =>             facts("loop",              508, 13, No,    "the backend leads back to this sidecar; its `app` or `discover` must name the application's port, not the sidecar's"),
            Self::ConnectFailed =>    facts("connect-failed",    503, 14, No,    "nothing accepts connections there; is the instance running and its port right?"),
            Self::ConnectTimeout =>   facts("connect-timeout",   503, 14, No,    "no answer to the connection; look at security groups and routes"),
            Self::IdentityMissing =>  facts("identity-missing",  503, 14, No,    "this sidecar has no certificate of the mesh, or no roots for a server outside; look at `identity` in its bootstrap, at `roots` of the backend, and at /certs"),
            Self::IdentityExpired =>  facts("identity-expired",  503, 14, No,    "this sidecar's certificate has expired; look at what renews it"),
            Self::IdentityRefused =>  facts("identity-refused",  503, 14, No,    "the instance did not accept this sidecar's certificate; its log says why"),
            Self::TlsHandshake =>     facts("tls-handshake",     503, 14, No,    "no TLS with the instance; has its sidecar an identity, and is its `tls` not disabled? Of a server outside the log says what it lacks"),
            Self::PeerUntrusted =>    facts("peer-untrusted",    503, 14, No,    "the other end's certificate leads to no root of this sidecar; compare the roots of both, or look at `roots` of the backend"),
            Self::PeerExpired =>      facts("peer-expired",      503, 14, No,    "the other end's certificate has expired; look at what renews it, and at the clocks"),
            Self::PeerNotYetValid =>  facts("peer-not-yet-valid", 503, 14, No,   "the other end's certificate is not valid yet; look at the clocks"),
            Self::PeerWrongIdentity => facts("peer-wrong-identity", 503, 14, No, "the other end is not who is meant; does `discover` lead to another service, is its certificate another's, or `server_name` not its name?"),
            Self::PeerNoCertificate => facts("peer-no-certificate", 503, 14, No, "the other end showed no certificate; it is no sidecar of the mesh"),
            // To a caller that comes by a connection from before it is 403 and PERMISSION_DENIED.
            Self::PeerRevoked =>      facts("peer-revoked",      503, 14, No,    "the mesh has revoked one of the two ends, the caller where this is a 403, else the endpoint; is it in `outrigger get @mesh` by mistake? `outrigger revoke --undo` lets it in again"),
            Self::RefusedStream =>    facts("refused-stream",    503, 14, No,    "the instance turned the request away before it began; look for its restart or its limit on streams"),
            Self::UpstreamReset =>    facts("upstream-reset",    502, 14, Maybe, "the instance closed the connection; look for its crash or restart"),
            Self::EnhanceYourCalm =>  facts("enhance-your-calm", 502,  8, Maybe, "the instance is being asked too much and said so; it is not asked again; look at its load"),
            Self::UpstreamProtocol => facts("upstream-protocol", 502, 14, Maybe, "the instance does not answer in HTTP; is `protocol` right?"),
            Self::AttemptTimeout =>   facts("attempt-timeout",   504,  4, Maybe, "one attempt outlasted `timeout.attempt`"),
            Self::RequestTimeout =>   facts("request-timeout",   504,  4, Maybe, "the request outlasted `timeout.request`"),
            Self::IdleTimeout =>      facts("idle-timeout",      504,  4, Maybe, "a body was silent for longer than `timeout.idle`"),
            // Only attempts end so, never a request: its status is nobody's.
            Self::Outrun =>           facts("outrun",            504,  4, Maybe, "a slow attempt was given up because its hedge was quicker; look at slow instances"),
            Self::Draining =>           facts("draining",          502, 14, Maybe, "the sidecar stopped before the request was done; give `drain` more time"),
            // 499 is nginx's word for it; nobody is left to read the status, only log and metric carry it.
            Self::ClientGone =>       facts("client-gone",       499,  1, Maybe, "the caller gave up first; look at its own timeout"),
            Self::Internal =>         facts("internal",          500, 13, Maybe, "a fault of this sidecar; please report it with its log"),
        }
    }
}

/// One row: the status is given as a number so that the table reads as a table.
const fn facts(word: &'static str, status: u16, grpc: u8, reached: Reached, advice: &'static str) -> Facts {
    // Every status above is a valid one, which the test below walks through; the fallback is never taken.
    let status = match StatusCode::from_u16(status) {
        Ok(status) => status,
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR,
    };
    Facts {
        word,
        status,
        grpc,
        reached,
        advice,
    }
}

/// A request that could not be served: the reason, and what exactly happened for the log.
#[derive(Debug)]
pub struct Failure {
    /// The row of the table.
    pub reason: Reason,
    /// What happened, where: addresses and causes. For the log, and for the application at its own sidecar; never for others.
    pub detail: String,
    /// What the answer says beside or instead of the table. In a box, since nearly no failure has any.
    pub told: Option<Box<Told>>,
}

/// What the answer to a request that was not served says beside or instead of what its reason says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Its status, and that of a gRPC call.
    pub status: Option<(StatusCode, u8)>,
    /// After how many seconds it may be tried again (RFC 9110 section 10.2.3).
    pub retry_after: Option<u64>,
}

impl Failure {
    /// A failure and what happened.
    pub fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Self {
            reason,
            detail: detail.into(),
            told: None,
        }
    }

    /// The same, of which the answer tells this too.
    #[must_use]
    pub fn telling(mut self, told: Told) -> Self {
        self.told = Some(Box::new(told));
        self
    }

    /// The status of the answer that the proxy makes.
    pub fn status(&self) -> StatusCode {
        self.own_status()
            .map_or_else(|| self.reason.status(), |(status, _)| status)
    }

    /// The `grpc-status` of the answer that the proxy makes to a gRPC call.
    pub fn grpc_status(&self) -> u8 {
        self.own_status()
            .map_or_else(|| self.reason.grpc_status(), |(_, grpc)| grpc)
    }

    /// After how many seconds it may be tried again, if that is known.
    pub fn retry_after(&self) -> Option<u64> {
        self.told.as_ref()?.retry_after
    }

    fn own_status(&self) -> Option<(StatusCode, u8)> {
        self.told.as_ref()?.status
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.reason.word(), self.detail)
    }
}

impl std::error::Error for Failure {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_place_a_word_of_its_own_and_an_error_status() {
        let mut words = std::collections::HashSet::new();
        for (index, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason.index(), index);
            assert!(words.insert(reason.word()), "{reason:?} shares its word");
            assert!(
                reason
                    .word()
                    .bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte == b'-')
            );
            assert!(reason.status().as_u16() >= 400, "{reason:?}");
            assert_eq!(
                reason.status() == StatusCode::INTERNAL_SERVER_ERROR,
                reason == Reason::Internal
            );
            assert!(!reason.advice().is_empty());
        }
    }

    #[test]
    fn only_a_request_that_never_left_is_surely_unseen() {
        for reason in Reason::ALL {
            let answered_before_sending = reason.status().is_client_error() && reason != Reason::ClientGone
                || matches!(
                    reason.status(),
                    StatusCode::SERVICE_UNAVAILABLE | StatusCode::LOOP_DETECTED
                );
            assert_eq!(
                reason.reached() == Reached::No,
                answered_before_sending,
                "{reason:?}"
            );
        }
    }
}
