//! What every metric is called, what it means, what it is told apart by. Counting is beside, in [`super`].

use prometheus::core::Collector;
use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, IntGaugeVec, Opts, Registry};

/// Buckets of every duration, in seconds: doubling from half a millisecond, which is what a hop in one zone takes,
/// to 16 s, just past the default request timeout.
const DURATION_BUCKETS: [f64; 16] = [
    0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.024, 2.048, 4.096, 8.192,
    16.384,
];

/// What a metric is called, what it means, and what it is told apart by. Every metric of the sidecar is in [`ALL`].
#[derive(Clone, Copy, Debug)]
pub struct Definition {
    /// Its name.
    pub name: &'static str,
    /// What it means, as Prometheus shows it.
    pub help: &'static str,
    /// Its labels.
    pub labels: &'static [&'static str],
}

pub(super) const REQUESTS: Definition = Definition {
    name: "outrigger_requests_total",
    help: "Requests answered, by what became of them; retries are not counted again.",
    labels: &[
        "listener",
        "service",
        "route",
        "backend",
        "status_class",
        "reason",
    ],
};
pub(super) const REQUEST_DURATION: Definition = Definition {
    name: "http_server_request_duration_seconds",
    help: "From a request's head to the last byte of its answer, all attempts together.",
    labels: &["listener", "service", "route", "backend"],
};
pub(super) const GRPC_CALLS: Definition = Definition {
    name: "outrigger_grpc_calls_total",
    help: "gRPC calls, by the status that they ended with; none: one that ended without a status.",
    labels: &["listener", "service", "route", "backend", "grpc_status"],
};
pub(super) const ATTEMPTS: Definition = Definition {
    name: "outrigger_attempts_total",
    help: "Attempts made upstream, each retry by itself. A gRPC call counts when its status is known; one that says that its server failed is 5xx.",
    labels: &["service", "backend", "status_class", "reason"],
};
pub(super) const ATTEMPT_DURATION: Definition = Definition {
    name: "http_client_request_duration_seconds",
    help: "From the choice of an endpoint to the head of its answer, each attempt by itself.",
    labels: &["service", "backend"],
};
pub(super) const RETRIES: Definition = Definition {
    name: "outrigger_retries_total",
    help: "Failures that the policy names for a retry, by what was decided: made, budget, limit, not-replayable, pushback.",
    labels: &["service", "route", "result"],
};
pub(super) const HEDGES: Definition = Definition {
    name: "outrigger_hedges_total",
    help: "Requests slow enough for an attempt beside the first, by what became of it: won, lost, budget, nowhere.",
    labels: &["service", "route", "result"],
};
pub(super) const ENDPOINTS: Definition = Definition {
    name: "outrigger_endpoints",
    help: "Endpoints that discovery knows for a backend.",
    labels: &["service", "backend"],
};
pub(super) const ENDPOINTS_IN: Definition = Definition {
    name: "outrigger_endpoints_in",
    help: "Endpoints of a backend that take part: neither ejected nor failing their health check.",
    labels: &["service", "backend"],
};
pub(super) const DNS_LOOKUPS: Definition = Definition {
    name: "outrigger_dns_lookups_total",
    help: "Questions to DNS for a name of the configuration, and for the hosts that its SRV records lead to, by result: ok, nxdomain, empty, servfail, refused, timeout, truncated, error.",
    labels: &["name", "result"],
};
pub(super) const DNS_ANSWERED_AT: Definition = Definition {
    name: "outrigger_dns_answer_timestamp_seconds",
    help: "When DNS last gave a good answer for a name, in seconds since 1970: `time() -` this is the answer's age.",
    labels: &["name"],
};
pub(super) const DNS_KEPT: Definition = Definition {
    name: "outrigger_dns_kept_records",
    help: "Records of a name that serve from memory because DNS says nothing of them; 0 while it answers whole.",
    labels: &["name"],
};
pub(super) const EJECTIONS: Definition = Definition {
    name: "outrigger_ejections_total",
    help: "Endpoints put out for a while because they failed too often in a row.",
    labels: &["service", "backend"],
};
pub(super) const PANICS: Definition = Definition {
    name: "outrigger_cluster_panics_total",
    help: "How often fewer than half of a backend's endpoints were in, so that all were chosen from.",
    labels: &["service", "backend"],
};
pub(super) const HEALTH_CHECKS: Definition = Definition {
    name: "outrigger_health_checks_total",
    help: "Health checks of endpoints, by their result: well, ill.",
    labels: &["service", "backend", "result"],
};
pub(super) const LIMITED: Definition = Definition {
    name: "outrigger_limited_total",
    help: "Attempts refused because a backend was at a limit, by the limit: connections, pending, requests.",
    labels: &["service", "backend", "limit"],
};
pub(super) const SKIPPED: Definition = Definition {
    name: "outrigger_backend_skipped_total",
    help: "Requests whose share of a route was this backend's and went to the others, because none of its endpoints was in.",
    labels: &["service", "route", "backend"],
};
pub(super) const MIRRORED: Definition = Definition {
    name: "outrigger_mirrored_requests_total",
    help: "Copies of requests for a mirror, by what became of them: 1xx to 5xx, failed, timeout; not sent: full, too-large, cut.",
    labels: &["service", "route", "backend", "result"],
};
pub(super) const FAULTS: Definition = Definition {
    name: "outrigger_faults_total",
    help: "Faults put into requests on purpose, by kind: delay, abort.",
    labels: &["service", "route", "kind"],
};
pub(super) const TCP_CONNECTIONS: Definition = Definition {
    name: "outrigger_tcp_connections_total",
    help: "TCP connections of callers that are over, by why; reason is empty for one that both sides ended.",
    labels: &["listener", "service", "route", "backend", "reason"],
};
pub(super) const TCP_OPEN: Definition = Definition {
    name: "outrigger_tcp_connections_open",
    help: "TCP connections of callers that are open.",
    labels: &["listener", "service", "route", "backend"],
};
pub(super) const TCP_BYTES: Definition = Definition {
    name: "outrigger_tcp_bytes_total",
    help: "Bytes of TCP connections that are over, by direction as the caller sees it: sent, received.",
    labels: &["listener", "service", "route", "backend", "direction"],
};
pub(super) const CONNECTIONS_OPEN: Definition = Definition {
    name: "outrigger_connections_open",
    help: "Connections from callers that are open.",
    labels: &["listener"],
};
pub(super) const CONNECTIONS_CUT: Definition = Definition {
    name: "outrigger_connections_cut_total",
    help: "Connections from callers that the sidecar ended, by why: flood, protocol, silent (no request for 75 s), unread, revoked, elsewhere (to the application's side, and not by the application).",
    labels: &["listener", "reason"],
};
pub(super) const CONFIG_INFO: Definition = Definition {
    name: "outrigger_config_info",
    help: "The configuration that serves and where it came from: control, file, disk. Its value is always 1.",
    labels: &["version", "source"],
};
pub(super) const CONFIG_APPLIED_AT: Definition = Definition {
    name: "outrigger_config_applied_timestamp_seconds",
    help: "When the configuration that serves was applied, in seconds since 1970.",
    labels: &[],
};
pub(super) const PUSHES: Definition = Definition {
    name: "outrigger_config_pushes_total",
    help: "Configurations received, by how they ended: applied, unchanged, refused.",
    labels: &["result"],
};
pub(super) const LOG_LINES_LOST: Definition = Definition {
    name: "outrigger_log_lines_lost_total",
    help: "Access log lines that standard output did not take in time.",
    labels: &[],
};
pub(super) const WORKERS_LOST: Definition = Definition {
    name: "outrigger_workers_lost_total",
    help: "Data threads that died while the sidecar served. Above 0, /live and /ready answer 503: it is to be started again.",
    labels: &[],
};
pub(super) const TLS_HANDSHAKES: Definition = Definition {
    name: "outrigger_tls_handshakes_total",
    help: "TLS handshakes of the mesh by the side that this sidecar was on, inbound or outbound, and their result: ok or a reason.",
    labels: &["side", "result"],
};
pub(super) const CERTIFICATE_NOT_AFTER: Definition = Definition {
    name: "outrigger_certificate_not_after_seconds",
    help: "When this sidecar's certificate (or sooner one without which it leads to no root), the first of its roots, and the first of its gateway's certificates, expires, in seconds since 1970: certificate, roots, gateway:<name>.",
    labels: &["what"],
};
pub(super) const IDENTITY_LOADS: Definition = Definition {
    name: "outrigger_identity_loads_total",
    help: "Identities that the source brought, by what became of them: loaded, refused.",
    labels: &["result"],
};
pub(super) const TLS_FILE_LOADS: Definition = Definition {
    name: "outrigger_tls_file_loads_total",
    help: "Files of TLS beside the identity that changed, by what they are (roots: for servers outside; gateway: certificates and keys of a port at the edge) and what became of \
           them: loaded, refused.",
    labels: &["what", "result"],
};

pub(super) const REVOKED: Definition = Definition {
    name: "outrigger_revoked",
    help: "How much the configuration that serves denies: serials of certificates, identities.",
    labels: &["what"],
};
pub(super) const PLAINTEXT_CONNECTIONS: Definition = Definition {
    name: "outrigger_plaintext_connections_total",
    help: "Connections in plaintext to a sidecar that has an identity: who must learn mTLS before the service can be strict.",
    labels: &["service"],
};
pub(super) const INBOUND_REQUESTS: Definition = Definition {
    name: "outrigger_inbound_requests_total",
    help: "Requests and TCP connections by the identity of the caller and whether it may: allowed, audited, refused. At most \
           100 callers are told apart; _other are the rest, _plaintext those without an identity.",
    labels: &["service", "source", "result"],
};

/// Every metric of the sidecar; those of the process (`process_*`) come beside.
pub const ALL: [Definition; 37] = [
    REQUESTS,
    REQUEST_DURATION,
    GRPC_CALLS,
    ATTEMPTS,
    ATTEMPT_DURATION,
    RETRIES,
    HEDGES,
    ENDPOINTS,
    ENDPOINTS_IN,
    DNS_LOOKUPS,
    DNS_ANSWERED_AT,
    DNS_KEPT,
    EJECTIONS,
    PANICS,
    HEALTH_CHECKS,
    LIMITED,
    SKIPPED,
    MIRRORED,
    FAULTS,
    TCP_CONNECTIONS,
    TCP_OPEN,
    TCP_BYTES,
    CONNECTIONS_OPEN,
    CONNECTIONS_CUT,
    CONFIG_INFO,
    CONFIG_APPLIED_AT,
    PUSHES,
    LOG_LINES_LOST,
    WORKERS_LOST,
    TLS_HANDSHAKES,
    CERTIFICATE_NOT_AFTER,
    IDENTITY_LOADS,
    TLS_FILE_LOADS,
    REVOKED,
    PLAINTEXT_CONNECTIONS,
    INBOUND_REQUESTS,
    super::names::QUERIES,
];

impl Definition {
    pub(super) fn counters(&self, registry: &Registry) -> prometheus::Result<IntCounterVec> {
        registered(
            registry,
            IntCounterVec::new(Opts::new(self.name, self.help), self.labels)?,
        )
    }

    pub(super) fn gauges(&self, registry: &Registry) -> prometheus::Result<IntGaugeVec> {
        registered(
            registry,
            IntGaugeVec::new(Opts::new(self.name, self.help), self.labels)?,
        )
    }

    pub(super) fn histograms(&self, registry: &Registry) -> prometheus::Result<HistogramVec> {
        let options = HistogramOpts::new(self.name, self.help).buckets(DURATION_BUCKETS.to_vec());
        registered(registry, HistogramVec::new(options, self.labels)?)
    }
}

fn registered<C: Collector + Clone + 'static>(registry: &Registry, collector: C) -> prometheus::Result<C> {
    registry.register(Box::new(collector.clone()))?;
    Ok(collector)
}
