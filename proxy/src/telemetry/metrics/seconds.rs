//! What is counted of second attempts: retries that were made or not, hedges that won or lost.

use std::sync::Arc;

use prometheus::IntCounter;

use super::{Metrics, RetryLabels};

/// What was decided about a failure that the policy would retry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryResult {
    /// Another attempt was made.
    Made,
    /// The budget was spent.
    Budget,
    /// The attempts were used up, or the request's time was.
    Limit,
    /// The body was too large to be sent again, or the method forbids it.
    NotReplayable,
    /// The endpoint asked for a longer wait than there was time, or not to be asked again.
    Pushback,
}

impl RetryResult {
    const ALL: [(Self, &'static str); 5] = [
        (Self::Made, "made"),
        (Self::Budget, "budget"),
        (Self::Limit, "limit"),
        (Self::NotReplayable, "not-replayable"),
        (Self::Pushback, "pushback"),
    ];
}

/// The handles of a route's retries.
#[derive(Debug)]
pub struct RetryMetrics {
    metrics: Arc<Metrics>,
    labels: RetryLabels,
    results: [IntCounter; RetryResult::ALL.len()],
}

impl RetryMetrics {
    pub(super) fn new(metrics: &Arc<Metrics>, labels: &RetryLabels) -> Self {
        let RetryLabels { service, route } = labels;
        let results =
            RetryResult::ALL.map(|(_, word)| metrics.retries.with_label_values(&[service, route, word]));
        Self {
            metrics: Arc::clone(metrics),
            labels: labels.clone(),
            results,
        }
    }

    /// Counts a decision about a retry.
    pub fn decided(&self, result: RetryResult) {
        self.results[result as usize].inc();
    }
}

impl Drop for RetryMetrics {
    fn drop(&mut self) {
        let RetryLabels { service, route } = &self.labels;
        for (_, word) in RetryResult::ALL {
            let _ = self.metrics.retries.remove_label_values(&[service, route, word]);
        }
    }
}

/// What became of a hedge, or why there was none for a request that was slow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HedgeResult {
    /// Its answer was the first.
    Won,
    /// Another attempt's answer was taken, or none.
    Lost,
    /// The budget was spent.
    Budget,
    /// There was no other endpoint.
    Nowhere,
}

impl HedgeResult {
    const ALL: [(Self, &'static str); 4] = [
        (Self::Won, "won"),
        (Self::Lost, "lost"),
        (Self::Budget, "budget"),
        (Self::Nowhere, "nowhere"),
    ];
}

/// The handles of a route's hedges.
#[derive(Debug)]
pub struct HedgeMetrics {
    metrics: Arc<Metrics>,
    labels: RetryLabels,
    results: [IntCounter; HedgeResult::ALL.len()],
}

impl HedgeMetrics {
    pub(super) fn new(metrics: &Arc<Metrics>, labels: &RetryLabels) -> Self {
        let RetryLabels { service, route } = labels;
        let results =
            HedgeResult::ALL.map(|(_, word)| metrics.hedges.with_label_values(&[service, route, word]));
        Self {
            metrics: Arc::clone(metrics),
            labels: labels.clone(),
            results,
        }
    }

    /// Counts a hedge.
    pub fn ended(&self, result: HedgeResult) {
        self.results[result as usize].inc();
    }
}

impl Drop for HedgeMetrics {
    fn drop(&mut self) {
        let RetryLabels { service, route } = &self.labels;
        for (_, word) in HedgeResult::ALL {
            let _ = self.metrics.hedges.remove_label_values(&[service, route, word]);
        }
    }
}
