//! What is counted of what a route does to its traffic on purpose: copies of requests, and faults.

use std::sync::Arc;

use prometheus::IntCounter;

use super::{CLASSES, Metrics, RetryLabels, RouteLabels};

/// What became of a copy of a request, or why there was none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MirrorResult {
    /// It was answered with a status of this class.
    Answered(http::StatusCode),
    /// It was not answered whole: no endpoint, no connection, or one that broke.
    Failed,
    /// It took too long.
    Timeout,
    /// As many copies as may be were under way, or their backend was busy.
    Full,
    /// The body was too large to be kept.
    TooLarge,
    /// The caller did not send its body to the end, or nobody read it.
    Cut,
}

impl MirrorResult {
    /// The words of those that have no status, in the order of their places, which come behind those of the classes.
    const WORDS: [&str; 5] = ["failed", "timeout", "full", "too-large", "cut"];

    fn place(self) -> usize {
        match self {
            // 1xx to 5xx by their first digit; HTTP allows up to 999, which counts with the server's errors.
            Self::Answered(status) => usize::from(status.as_u16() / 100).clamp(1, ANSWERED) - 1,
            Self::Failed => ANSWERED,
            Self::Timeout => ANSWERED + 1,
            Self::Full => ANSWERED + 2,
            Self::TooLarge => ANSWERED + 3,
            Self::Cut => ANSWERED + 4,
        }
    }
}

/// The classes of a status; the last word of [`CLASSES`] stands for none.
const ANSWERED: usize = CLASSES.len() - 1;

/// Every word that a result may have.
fn results() -> [&'static str; ANSWERED + MirrorResult::WORDS.len()] {
    std::array::from_fn(|place| {
        place
            .checked_sub(ANSWERED)
            .map_or(CLASSES[place % CLASSES.len()], |place| MirrorResult::WORDS[place])
    })
}

/// The handles of a route's copies to one backend.
#[derive(Debug)]
pub struct MirrorMetrics {
    metrics: Arc<Metrics>,
    labels: RouteLabels,
    results: [IntCounter; ANSWERED + MirrorResult::WORDS.len()],
}

impl MirrorMetrics {
    pub(super) fn new(metrics: &Arc<Metrics>, labels: &RouteLabels) -> Self {
        let [_, service, route, backend] = labels.values();
        let results = results().map(|word| {
            metrics
                .mirrored
                .with_label_values(&[service, route, backend, word])
        });
        Self {
            metrics: Arc::clone(metrics),
            labels: labels.clone(),
            results,
        }
    }

    /// Counts a copy, or that there was none.
    pub fn ended(&self, result: MirrorResult) {
        self.results[result.place()].inc();
    }
}

impl Drop for MirrorMetrics {
    fn drop(&mut self) {
        let [_, service, route, backend] = self.labels.values();
        for word in results() {
            let _ = self
                .metrics
                .mirrored
                .remove_label_values(&[service, route, backend, word]);
        }
    }
}

/// The handles of a route's faults.
#[derive(Debug)]
pub struct FaultMetrics {
    metrics: Arc<Metrics>,
    labels: RetryLabels,
    delayed: IntCounter,
    aborted: IntCounter,
}

impl FaultMetrics {
    const WORDS: [&str; 2] = ["delay", "abort"];

    pub(super) fn new(metrics: &Arc<Metrics>, labels: &RetryLabels) -> Self {
        let RetryLabels { service, route } = labels;
        let [delayed, aborted] =
            Self::WORDS.map(|word| metrics.faults.with_label_values(&[service, route, word]));
        Self {
            metrics: Arc::clone(metrics),
            labels: labels.clone(),
            delayed,
            aborted,
        }
    }

    /// Counts a request that is kept waiting.
    pub fn delayed(&self) {
        self.delayed.inc();
    }

    /// Counts a request that is answered instead of being sent.
    pub fn aborted(&self) {
        self.aborted.inc();
    }
}

impl Drop for FaultMetrics {
    fn drop(&mut self) {
        let RetryLabels { service, route } = &self.labels;
        for word in Self::WORDS {
            let _ = self.metrics.faults.remove_label_values(&[service, route, word]);
        }
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;

    #[test]
    fn every_result_is_counted_under_its_own_word() {
        let status = |code| MirrorResult::Answered(StatusCode::from_u16(code).unwrap());
        for (result, word) in [
            (status(100), "1xx"),
            (status(204), "2xx"),
            (status(599), "5xx"),
            (status(999), "5xx"),
            (MirrorResult::Failed, "failed"),
            (MirrorResult::Timeout, "timeout"),
            (MirrorResult::Full, "full"),
            (MirrorResult::TooLarge, "too-large"),
            (MirrorResult::Cut, "cut"),
        ] {
            assert_eq!(results()[result.place()], word);
        }
    }
}
