//! What is counted of one cluster.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use prometheus::{Histogram, IntCounter, IntCounterVec, IntGauge};

use super::{ByEnding, ClusterLabels, Ending, Metrics};

/// The handles of one cluster.
#[derive(Debug)]
pub struct ClusterMetrics {
    metrics: Arc<Metrics>,
    labels: ClusterLabels,
    endpoints: IntGauge,
    endpoints_in: IntGauge,
    duration: OnceLock<Histogram>,
    endings: ByEnding,
}

/// A limit of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// Connections to its endpoints.
    Connections,
    /// Requests that wait for a connection.
    Pending,
    /// Requests under way.
    Requests,
}

impl Limit {
    const ALL: [Self; 3] = [Self::Connections, Self::Pending, Self::Requests];

    /// Its name in the configuration and in the metric.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Pending => "pending",
            Self::Requests => "requests",
        }
    }
}

/// The labels of a health check's result.
const RESULTS: [&str; 2] = ["well", "ill"];

impl ClusterMetrics {
    pub(super) fn new(metrics: &Arc<Metrics>, labels: &ClusterLabels) -> Self {
        let values = [labels.service.as_str(), &labels.backend];
        Self {
            endpoints: metrics.endpoints.with_label_values(&values),
            endpoints_in: metrics.endpoints_in.with_label_values(&values),
            duration: OnceLock::new(),
            endings: ByEnding::new(),
            metrics: Arc::clone(metrics),
            labels: labels.clone(),
        }
    }

    fn values(&self) -> [&str; 2] {
        [self.labels.service.as_str(), &self.labels.backend]
    }

    /// One of its series that is told apart by one more label. Not for what happens with every request.
    fn one_of(&self, series: &IntCounterVec, word: &str) -> IntCounter {
        let [service, backend] = self.values();
        series.with_label_values(&[service, backend, word])
    }

    /// Counts an attempt: how it ended, and how long it took to the head of its answer.
    pub fn attempt(&self, ending: Ending, took: Duration) {
        let duration = || self.metrics.attempt_duration.with_label_values(&self.values());
        self.duration.get_or_init(duration).observe(took.as_secs_f64());
        self.endings.count(ending, |class, reason| {
            let [service, backend] = self.values();
            self.metrics
                .attempts
                .with_label_values(&[service, backend, class, reason])
        });
    }

    /// Says how many endpoints discovery knows, and how many of them take part.
    pub fn endpoints(&self, count: usize, well: usize) {
        self.endpoints.set(i64::try_from(count).unwrap_or(i64::MAX));
        self.endpoints_in.set(i64::try_from(well).unwrap_or(i64::MAX));
    }

    /// Counts an ejection.
    pub fn ejected(&self) {
        self.metrics.ejections.with_label_values(&self.values()).inc();
    }

    /// Counts the moment when too few endpoints took part.
    pub fn panicked(&self) {
        self.metrics.panics.with_label_values(&self.values()).inc();
    }

    /// Counts a health check.
    pub fn checked(&self, well: bool) {
        self.one_of(&self.metrics.health_checks, RESULTS[usize::from(!well)])
            .inc();
    }

    /// Counts an attempt that a limit refused.
    pub fn limited(&self, limit: Limit) {
        self.one_of(&self.metrics.limited, limit.word()).inc();
    }
}

impl Drop for ClusterMetrics {
    fn drop(&mut self) {
        let values = self.values();
        let Metrics {
            endpoints,
            endpoints_in,
            ejections,
            panics,
            health_checks,
            limited,
            attempts,
            attempt_duration,
            ..
        } = &*self.metrics;
        let _ = endpoints.remove_label_values(&values);
        let _ = endpoints_in.remove_label_values(&values);
        let _ = ejections.remove_label_values(&values);
        let _ = panics.remove_label_values(&values);
        let _ = attempt_duration.remove_label_values(&values);
        for result in RESULTS {
            let _ = health_checks.remove_label_values(&[values[0], values[1], result]);
        }
        for limit in Limit::ALL {
            let _ = limited.remove_label_values(&[values[0], values[1], limit.word()]);
        }
        self.endings.for_each_counted(|class, reason| {
            let _ = attempts.remove_label_values(&[values[0], values[1], class, reason]);
        });
    }
}
