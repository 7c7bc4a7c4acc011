//! Every metric of the sidecar. This folder alone names `prometheus`; [`definitions`] says what each is called.
//!
//! Handles are resolved when a snapshot is compiled and held by its routes and clusters, so that counting a request
//! formats no label and takes no lock. Labels come from closed sets: names in the configuration, reasons, status
//! classes; never from a request. A series goes when the last snapshot that names it goes.

mod cluster;
mod definitions;
mod dns;
mod names;
mod seconds;
mod tcp;
#[cfg(test)]
mod tests;
mod tls;
mod traffic;
mod workers;

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

use prometheus::process_collector::ProcessCollector;
use prometheus::{
    Encoder, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry, TextEncoder,
};

use crate::error::Reason;
pub use cluster::{ClusterMetrics, Limit};
pub use definitions::{ALL, Definition};
use definitions::{
    ATTEMPT_DURATION, ATTEMPTS, CONFIG_APPLIED_AT, CONFIG_INFO, CONNECTIONS_CUT, CONNECTIONS_OPEN, EJECTIONS,
    ENDPOINTS, ENDPOINTS_IN, FAULTS, GRPC_CALLS, HEALTH_CHECKS, HEDGES, LIMITED, LOG_LINES_LOST, MIRRORED,
    PANICS, PUSHES, REQUEST_DURATION, REQUESTS, RETRIES, SKIPPED, TCP_BYTES, TCP_CONNECTIONS, TCP_OPEN,
    WORKERS_LOST,
};
pub use dns::DnsMetrics;
pub use names::{NameMetrics, QueryResult};
pub use seconds::{HedgeMetrics, HedgeResult, RetryMetrics, RetryResult};
pub use tcp::TcpMetrics;
pub use tls::{FileSet, Side, SourceMetrics, TlsMetrics};
pub use traffic::{FaultMetrics, MirrorMetrics, MirrorResult};
pub use workers::LostWorkers;

/// Labels of a status class; the last stands for a request that never had a status.
const CLASSES: [&str; 6] = ["1xx", "2xx", "3xx", "4xx", "5xx", "none"];

/// Labels of the `grpc-status` that a call ended with, by number; the last stands for a call that ended without one, or
/// with one that gRPC does not know.
const GRPC_STATUSES: [&str; 18] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
    "none",
];

/// All metrics of one sidecar. Each sidecar has its own, so that several may live in one process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    process: Registry,
    requests: IntCounterVec,
    request_duration: HistogramVec,
    grpc_calls: IntCounterVec,
    attempts: IntCounterVec,
    attempt_duration: HistogramVec,
    retries: IntCounterVec,
    hedges: IntCounterVec,
    endpoints: IntGaugeVec,
    endpoints_in: IntGaugeVec,
    ejections: IntCounterVec,
    panics: IntCounterVec,
    health_checks: IntCounterVec,
    limited: IntCounterVec,
    skipped: IntCounterVec,
    mirrored: IntCounterVec,
    faults: IntCounterVec,
    tcp_connections: IntCounterVec,
    tcp_open: IntGaugeVec,
    tcp_bytes: IntCounterVec,
    connections_open: IntGaugeVec,
    connections_cut: IntCounterVec,
    config_info: IntGaugeVec,
    config_applied_at: IntGauge,
    pushes: IntCounterVec,
    log_lines_lost: IntCounter,
    workers_lost: IntCounter,
    dns_queries: IntCounterVec,
    tls: Arc<TlsMetrics>,
    dns: dns::DnsVectors,
    /// The living handles by their labels, so that two snapshots that overlap count into the same series.
    routes: Living<RouteLabels, RouteMetrics>,
    route_retries: Living<RetryLabels, RetryMetrics>,
    route_hedges: Living<RetryLabels, HedgeMetrics>,
    clusters: Living<ClusterLabels, ClusterMetrics>,
    tcp: Living<RouteLabels, TcpMetrics>,
    route_mirrors: Living<RouteLabels, MirrorMetrics>,
    route_faults: Living<RetryLabels, FaultMetrics>,
    names: Living<String, DnsMetrics>,
}

/// What names the series of a route.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RouteLabels {
    /// `inbound` or `outbound`.
    pub listener: &'static str,
    /// The service.
    pub service: String,
    /// The route; empty for requests that found none.
    pub route: String,
    /// The backend; empty for requests that chose none.
    pub backend: String,
}

impl RouteLabels {
    fn values(&self) -> [&str; 4] {
        [self.listener, &self.service, &self.route, &self.backend]
    }
}

/// What names the series of a route's retries.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RetryLabels {
    /// The service.
    pub service: String,
    /// The route.
    pub route: String,
}

/// What names the series of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ClusterLabels {
    /// The service.
    pub service: String,
    /// The backend.
    pub backend: String,
}

/// How a push ended.
#[derive(Clone, Copy, Debug)]
pub enum PushResult {
    /// It is the configuration now.
    Applied,
    /// It says what is said already.
    Unchanged,
    /// It was wrong; nothing changed.
    Refused,
}

impl Metrics {
    /// Fresh metrics, all at zero.
    ///
    /// # Errors
    /// When a metric's name or labels are not valid, which is a fault of this file.
    pub fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        let process = Registry::new();
        process.register(Box::new(ProcessCollector::for_self()))?;
        Ok(Self {
            requests: REQUESTS.counters(&registry)?,
            request_duration: REQUEST_DURATION.histograms(&registry)?,
            grpc_calls: GRPC_CALLS.counters(&registry)?,
            attempts: ATTEMPTS.counters(&registry)?,
            attempt_duration: ATTEMPT_DURATION.histograms(&registry)?,
            retries: RETRIES.counters(&registry)?,
            hedges: HEDGES.counters(&registry)?,
            endpoints: ENDPOINTS.gauges(&registry)?,
            endpoints_in: ENDPOINTS_IN.gauges(&registry)?,
            ejections: EJECTIONS.counters(&registry)?,
            panics: PANICS.counters(&registry)?,
            health_checks: HEALTH_CHECKS.counters(&registry)?,
            limited: LIMITED.counters(&registry)?,
            skipped: SKIPPED.counters(&registry)?,
            mirrored: MIRRORED.counters(&registry)?,
            faults: FAULTS.counters(&registry)?,
            tcp_connections: TCP_CONNECTIONS.counters(&registry)?,
            tcp_open: TCP_OPEN.gauges(&registry)?,
            tcp_bytes: TCP_BYTES.counters(&registry)?,
            connections_open: CONNECTIONS_OPEN.gauges(&registry)?,
            connections_cut: CONNECTIONS_CUT.counters(&registry)?,
            config_info: CONFIG_INFO.gauges(&registry)?,
            config_applied_at: CONFIG_APPLIED_AT
                .gauges(&registry)?
                .with_label_values::<&str>(&[]),
            pushes: PUSHES.counters(&registry)?,
            log_lines_lost: LOG_LINES_LOST.counters(&registry)?.with_label_values::<&str>(&[]),
            workers_lost: WORKERS_LOST.counters(&registry)?.with_label_values::<&str>(&[]),
            dns_queries: names::QUERIES.counters(&registry)?,
            tls: Arc::new(TlsMetrics::new(&registry)?),
            dns: dns::DnsVectors::new(&registry)?,
            routes: Living::default(),
            route_retries: Living::default(),
            route_hedges: Living::default(),
            clusters: Living::default(),
            tcp: Living::default(),
            route_mirrors: Living::default(),
            route_faults: Living::default(),
            names: Living::default(),
            registry,
            process,
        })
    }

    /// Everything in Prometheus's text format.
    ///
    /// # Errors
    /// When the encoder refuses a metric, which is a fault of this file.
    pub fn encode(&self) -> prometheus::Result<Vec<u8>> {
        let mut text = Vec::with_capacity(16 * 1024);
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        TextEncoder::new().encode(&self.process.gather(), &mut text)?;
        Ok(text)
    }

    /// The content type of [`Self::encode`].
    pub const CONTENT_TYPE: &'static str = "text/plain; version=0.0.4; charset=utf-8";

    /// The handles of a route for one of its backends: those that live already, or new ones.
    pub fn route(self: &Arc<Self>, labels: RouteLabels) -> Arc<RouteMetrics> {
        self.routes
            .get_or_make(labels, |labels| RouteMetrics::new(self, labels))
    }

    /// The handles of a route's retries: those that live already, or new ones.
    pub fn retries(self: &Arc<Self>, labels: RetryLabels) -> Arc<RetryMetrics> {
        self.route_retries
            .get_or_make(labels, |labels| RetryMetrics::new(self, labels))
    }

    /// The handles of a route's hedges: those that live already, or new ones.
    pub fn hedges(self: &Arc<Self>, labels: RetryLabels) -> Arc<HedgeMetrics> {
        self.route_hedges
            .get_or_make(labels, |labels| HedgeMetrics::new(self, labels))
    }

    /// The handles of the TCP connections to a backend of a route: those that live already, or new ones.
    pub fn tcp(self: &Arc<Self>, labels: RouteLabels) -> Arc<TcpMetrics> {
        self.tcp
            .get_or_make(labels, |labels| TcpMetrics::new(self, labels))
    }

    /// The handles of a route's copies to a backend: those that live already, or new ones.
    pub fn mirrors(self: &Arc<Self>, labels: RouteLabels) -> Arc<MirrorMetrics> {
        self.route_mirrors
            .get_or_make(labels, |labels| MirrorMetrics::new(self, labels))
    }

    /// The handles of a route's faults: those that live already, or new ones.
    pub fn faults(self: &Arc<Self>, labels: RetryLabels) -> Arc<FaultMetrics> {
        self.route_faults
            .get_or_make(labels, |labels| FaultMetrics::new(self, labels))
    }

    /// The handles of a cluster: those that live already, or new ones.
    pub fn cluster(self: &Arc<Self>, labels: ClusterLabels) -> Arc<ClusterMetrics> {
        self.clusters
            .get_or_make(labels, |labels| ClusterMetrics::new(self, labels))
    }

    /// The handles of a listener's connections.
    pub fn connections(&self, listener: &str) -> Connections {
        let cut = |cut: Cut| self.connections_cut.with_label_values(&[listener, cut.word()]);
        Connections(Arc::new(ConnectionMetrics {
            open: self.connections_open.with_label_values(&[listener]),
            cut: Cut::ALL.map(cut),
        }))
    }

    /// The counter of log lines that were lost.
    pub fn lost_lines(&self) -> LostLines {
        LostLines(self.log_lines_lost.clone())
    }

    /// Counts a push.
    pub fn pushed(&self, result: PushResult) {
        let result = match result {
            PushResult::Applied => "applied",
            PushResult::Unchanged => "unchanged",
            PushResult::Refused => "refused",
        };
        self.pushes.with_label_values(&[result]).inc();
    }

    /// Says which configuration serves from now on.
    pub fn config_serves(&self, version: &str, source: &str) {
        self.config_info.reset();
        self.config_info.with_label_values(&[version, source]).set(1);
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default();
        self.config_applied_at
            .set(i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
    }
}

/// Handles that some snapshot still holds, by what names them. Used while a snapshot is compiled and while an old
/// one is dropped, both on the control thread; never by a request.
#[derive(Debug)]
struct Living<K, V>(Mutex<HashMap<K, Weak<V>>>);

impl<K, V> Default for Living<K, V> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Eq + Hash, V> Living<K, V> {
    fn get_or_make(&self, key: K, make: impl FnOnce(&K) -> V) -> Arc<V> {
        let mut living = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(handle) = living.get(&key).and_then(Weak::upgrade) {
            return handle;
        }
        // Making a new handle is rare enough to clear away the dead ones each time.
        living.retain(|_, handle| handle.strong_count() > 0);
        let handle = Arc::new(make(&key));
        living.insert(key, Arc::downgrade(&handle));
        handle
    }
}

/// Why a caller's connection was ended by us, other than in peace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// It sent more than it may of what brings no request any further.
    Flood,
    /// What it sent is not HTTP/2.
    Protocol,
    /// There was no request for too long.
    Silent,
    /// It did not take its answer.
    Unread,
    /// The caller has been revoked.
    Revoked,
    /// It came from elsewhere to what is for the application alone.
    Elsewhere,
}

impl Cut {
    const ALL: [Self; 6] = [
        Self::Flood,
        Self::Protocol,
        Self::Silent,
        Self::Unread,
        Self::Revoked,
        Self::Elsewhere,
    ];

    const fn word(self) -> &'static str {
        match self {
            Self::Flood => "flood",
            Self::Protocol => "protocol",
            Self::Silent => "silent",
            Self::Unread => "unread",
            Self::Revoked => "revoked",
            Self::Elsewhere => "elsewhere",
        }
    }
}

#[derive(Debug)]
struct ConnectionMetrics {
    open: IntGauge,
    /// In the order of [`Cut::ALL`].
    cut: [IntCounter; Cut::ALL.len()],
}

/// The connections of one listener.
#[derive(Clone, Debug)]
pub struct Connections(Arc<ConnectionMetrics>);

impl Connections {
    /// Counts one until the guard is dropped.
    pub fn open(self) -> OpenConnection {
        self.0.open.inc();
        OpenConnection(self.0)
    }
}

/// Counts one connection while it lives.
#[derive(Debug)]
pub struct OpenConnection(Arc<ConnectionMetrics>);

impl OpenConnection {
    /// It was cut.
    pub fn was_cut(&self, cut: Cut) {
        self.0.cut[cut as usize].inc();
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.open.dec();
    }
}

/// How many access log lines were lost.
#[derive(Clone, Debug)]
pub struct LostLines(IntCounter);

impl LostLines {
    /// One more.
    pub fn count(&self) {
        self.0.inc();
    }
}

/// How a request or an attempt ended, for counting: a status class and, if the proxy was the cause, a reason.
#[derive(Clone, Copy, Debug)]
pub struct Ending {
    class: u8,
    reason: Option<Reason>,
}

impl Ending {
    /// An answer of the upstream.
    pub fn answered(status: http::StatusCode) -> Self {
        Self {
            class: Self::class(status),
            reason: None,
        }
    }

    /// A failure, and the status that the caller saw before it, if it saw one.
    pub fn failed(status: Option<http::StatusCode>, reason: Reason) -> Self {
        let none = CLASSES.len() as u8 - 1;
        Self {
            class: status.map_or(none, Self::class),
            reason: Some(reason),
        }
    }

    fn class(status: http::StatusCode) -> u8 {
        // 1xx to 5xx by their first digit; HTTP allows up to 999, which counts with the server's errors.
        (status.as_u16() / 100).clamp(1, 5) as u8 - 1
    }
}

/// One counter for every ending, each made when it is first needed and then kept.
#[derive(Debug)]
struct ByEnding {
    answered: [OnceLock<IntCounter>; CLASSES.len()],
    failed: Box<[[OnceLock<IntCounter>; CLASSES.len()]; Reason::ALL.len()]>,
}

impl ByEnding {
    fn new() -> Self {
        Self {
            answered: Default::default(),
            failed: Box::new(std::array::from_fn(|_| Default::default())),
        }
    }

    fn count(&self, ending: Ending, make: impl FnOnce(&'static str, &'static str) -> IntCounter) {
        let class = usize::from(ending.class);
        let (cell, word) = match ending.reason {
            None => (&self.answered[class], ""),
            Some(reason) => (&self.failed[reason.index()][class], reason.word()),
        };
        cell.get_or_init(|| make(CLASSES[class], word)).inc();
    }

    /// Calls back for each ending that has been counted at least once.
    fn for_each_counted(&self, mut each: impl FnMut(&'static str, &'static str)) {
        let answered = self
            .answered
            .iter()
            .enumerate()
            .map(|(class, cell)| (class, "", cell));
        let failed = self.failed.iter().enumerate().flat_map(|(reason, classes)| {
            classes
                .iter()
                .enumerate()
                .map(move |(class, cell)| (class, Reason::ALL[reason].word(), cell))
        });
        for (class, reason, cell) in answered.chain(failed) {
            if cell.get().is_some() {
                each(CLASSES[class], reason);
            }
        }
    }
}

/// The handles of a route for one of its backends.
#[derive(Debug)]
pub struct RouteMetrics {
    metrics: Arc<Metrics>,
    labels: RouteLabels,
    /// Made when it is first needed: most routes answer by few of their backends, and a series that stays at zero
    /// costs every scrape eighteen lines.
    duration: OnceLock<Histogram>,
    endings: ByEnding,
    grpc: [OnceLock<IntCounter>; GRPC_STATUSES.len()],
    skipped: OnceLock<IntCounter>,
}

impl RouteMetrics {
    fn new(metrics: &Arc<Metrics>, labels: &RouteLabels) -> Self {
        Self {
            duration: OnceLock::new(),
            endings: ByEnding::new(),
            grpc: Default::default(),
            skipped: OnceLock::new(),
            metrics: Arc::clone(metrics),
            labels: labels.clone(),
        }
    }

    /// Counts a gRPC call by the status that it ended with. `None`: it ended without one.
    pub fn grpc_call(&self, status: Option<u16>) {
        let none = GRPC_STATUSES.len() - 1;
        let place = status.map_or(none, |status| usize::from(status).min(none));
        let counter = self.grpc[place].get_or_init(|| {
            let [listener, service, route, backend] = self.labels.values();
            let values = [listener, service, route, backend, GRPC_STATUSES[place]];
            self.metrics.grpc_calls.with_label_values(&values)
        });
        counter.inc();
    }

    /// Counts a request whose share was this backend's and which went elsewhere.
    pub fn skipped(&self) {
        let skipped = || {
            let [_, service, route, backend] = self.labels.values();
            self.metrics.skipped.with_label_values(&[service, route, backend])
        };
        self.skipped.get_or_init(skipped).inc();
    }

    /// Counts a request: how it ended and how long it took.
    pub fn request(&self, ending: Ending, took: Duration) {
        let duration = || {
            self.metrics
                .request_duration
                .with_label_values(&self.labels.values())
        };
        self.duration.get_or_init(duration).observe(took.as_secs_f64());
        self.endings.count(ending, |class, reason| {
            let [listener, service, route, backend] = self.labels.values();
            self.metrics
                .requests
                .with_label_values(&[listener, service, route, backend, class, reason])
        });
    }

    /// What the series are of, for the log line.
    pub fn labels(&self) -> &RouteLabels {
        &self.labels
    }
}

impl Drop for RouteMetrics {
    /// The last snapshot that named this route is gone, and its series go with it. A series that is not there was
    /// never counted, so a failure to remove it is no failure.
    fn drop(&mut self) {
        let [listener, service, route, backend] = self.labels.values();
        let _ = self
            .metrics
            .request_duration
            .remove_label_values(&[listener, service, route, backend]);
        for (status, counter) in GRPC_STATUSES.iter().zip(&self.grpc) {
            if counter.get().is_some() {
                let values = [listener, service, route, backend, status];
                let _ = self.metrics.grpc_calls.remove_label_values(&values);
            }
        }
        if self.skipped.get().is_some() {
            let _ = self
                .metrics
                .skipped
                .remove_label_values(&[service, route, backend]);
        }
        self.endings.for_each_counted(|class, reason| {
            let _ = self
                .metrics
                .requests
                .remove_label_values(&[listener, service, route, backend, class, reason]);
        });
    }
}
