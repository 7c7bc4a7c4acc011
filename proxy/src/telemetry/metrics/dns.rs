//! What is counted of the names that DNS is asked for: those of the configuration, never those of an answer.

use std::sync::Arc;
use std::time::SystemTime;

use prometheus::{IntCounterVec, IntGauge, IntGaugeVec, Registry};

use super::Metrics;
use super::definitions::{DNS_ANSWERED_AT, DNS_KEPT, DNS_LOOKUPS};

/// The results of a question.
const RESULTS: [&str; 8] = [
    "ok",
    "nxdomain",
    "empty",
    "servfail",
    "refused",
    "timeout",
    "truncated",
    "error",
];

/// The series of all names.
#[derive(Debug)]
pub(super) struct DnsVectors {
    lookups: IntCounterVec,
    answered_at: IntGaugeVec,
    kept: IntGaugeVec,
}

impl DnsVectors {
    pub(super) fn new(registry: &Registry) -> prometheus::Result<Self> {
        Ok(Self {
            lookups: DNS_LOOKUPS.counters(registry)?,
            answered_at: DNS_ANSWERED_AT.gauges(registry)?,
            kept: DNS_KEPT.gauges(registry)?,
        })
    }
}

/// The handles of one name.
#[derive(Debug)]
pub struct DnsMetrics {
    metrics: Arc<Metrics>,
    name: String,
    kept: IntGauge,
}

impl Metrics {
    /// The handles of a name: those that live already, or new ones.
    pub fn dns(self: &Arc<Self>, name: &str) -> Arc<DnsMetrics> {
        self.names.get_or_make(name.to_owned(), |name| DnsMetrics {
            kept: self.dns.kept.with_label_values(&[name.as_str()]),
            name: name.clone(),
            metrics: Arc::clone(self),
        })
    }
}

impl DnsMetrics {
    /// Counts a question by its result, which is one of a closed set.
    pub fn looked_up(&self, result: &'static str) {
        let lookups = &self.metrics.dns.lookups;
        lookups.with_label_values(&[self.name.as_str(), result]).inc();
    }

    /// There is a good answer at this moment. A name that never had one has no such series.
    pub fn answered(&self) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let seconds = now.unwrap_or_default().as_secs();
        let answered_at = &self.metrics.dns.answered_at;
        answered_at
            .with_label_values(&[&self.name])
            .set(i64::try_from(seconds).unwrap_or(i64::MAX));
    }

    /// So many records serve from memory instead of so many: of one question, which may be one of several for the name.
    pub fn kept(&self, before: usize, now: usize) {
        let count = |records: usize| i64::try_from(records).unwrap_or(i64::MAX);
        self.kept.add(count(now) - count(before));
    }
}

impl Drop for DnsMetrics {
    fn drop(&mut self) {
        let name = self.name.as_str();
        let DnsVectors {
            lookups,
            answered_at,
            kept,
        } = &self.metrics.dns;
        let _ = answered_at.remove_label_values(&[name]);
        let _ = kept.remove_label_values(&[name]);
        for result in RESULTS {
            let _ = lookups.remove_label_values(&[name, result]);
        }
    }
}
