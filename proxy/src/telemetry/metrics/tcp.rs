//! What is counted of the TCP connections that chose one backend of a service.

use std::sync::{Arc, Mutex, PoisonError};

use prometheus::{IntCounter, IntGauge};

use super::{Metrics, RouteLabels};
use crate::error::Reason;

/// The directions of bytes, as the caller sees them.
const DIRECTIONS: [&str; 2] = ["sent", "received"];

/// The handles of a backend's TCP connections.
#[derive(Debug)]
pub struct TcpMetrics {
    metrics: Arc<Metrics>,
    labels: RouteLabels,
    open: IntGauge,
    bytes: [IntCounter; DIRECTIONS.len()],
    /// The reasons that were ever counted. Asked when a connection ends, which is seldom.
    reasons: Mutex<Vec<&'static str>>,
}

impl TcpMetrics {
    pub(super) fn new(metrics: &Arc<Metrics>, labels: &RouteLabels) -> Self {
        let values = labels.values();
        let bytes = |direction| {
            let [listener, service, route, backend] = values;
            metrics
                .tcp_bytes
                .with_label_values(&[listener, service, route, backend, direction])
        };
        Self {
            open: metrics.tcp_open.with_label_values(&values),
            bytes: DIRECTIONS.map(bytes),
            metrics: Arc::clone(metrics),
            labels: labels.clone(),
            reasons: Mutex::default(),
        }
    }

    /// What it is called.
    pub fn labels(&self) -> &RouteLabels {
        &self.labels
    }

    /// One more is open.
    pub fn opened(&self) {
        self.open.inc();
    }

    /// One that was open is not any more.
    pub fn closed(&self) {
        self.open.dec();
    }

    /// One is over, after so many bytes; `None`: both sides ended it.
    pub fn ended(&self, reason: Option<Reason>, [sent, received]: [u64; 2]) {
        self.bytes[0].inc_by(sent);
        self.bytes[1].inc_by(received);
        let word = reason.map_or("", Reason::word);
        let mut reasons = self.reasons.lock().unwrap_or_else(PoisonError::into_inner);
        if !reasons.contains(&word) {
            reasons.push(word);
        }
        let [listener, service, route, backend] = self.labels.values();
        self.metrics
            .tcp_connections
            .with_label_values(&[listener, service, route, backend, word])
            .inc();
    }
}

impl Drop for TcpMetrics {
    fn drop(&mut self) {
        let values = self.labels.values();
        let [listener, service, route, backend] = values;
        let _ = self.metrics.tcp_open.remove_label_values(&values);
        for direction in DIRECTIONS {
            let values = [listener, service, route, backend, direction];
            let _ = self.metrics.tcp_bytes.remove_label_values(&values);
        }
        let reasons = self.reasons.get_mut().unwrap_or_else(PoisonError::into_inner);
        for reason in reasons {
            let values = [listener, service, route, backend, *reason];
            let _ = self.metrics.tcp_connections.remove_label_values(&values);
        }
    }
}
