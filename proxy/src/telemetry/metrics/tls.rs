//! What is counted of identity: handshakes, certificates, and who called.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus::{IntCounter, IntCounterVec, IntGaugeVec};

use super::Metrics;
use super::definitions::{
    CERTIFICATE_NOT_AFTER, IDENTITY_LOADS, INBOUND_REQUESTS, PLAINTEXT_CONNECTIONS, REVOKED, TLS_FILE_LOADS,
    TLS_HANDSHAKES,
};
use crate::error::Reason;

/// Callers that are told apart by name. A service has some tens; past this a mesh gives every instance its own name, and
/// the rest are counted together.
const SOURCES_MAX: usize = 100;

/// What the rest are called. No SPIFFE ID begins so.
const OTHER: &str = "_other";

/// What callers without an identity are called.
const PLAINTEXT: &str = "_plaintext";

/// Which end of a handshake this sidecar was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The one who was called.
    Inbound,
    /// The one who calls.
    Outbound,
}

impl Side {
    /// The label.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }
}

/// Files of TLS beside those of the identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileSet {
    /// Roots for servers outside.
    Roots,
    /// What a port at the edge shows.
    Gateway,
}

impl FileSet {
    /// The label.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Roots => "roots",
            Self::Gateway => "gateway",
        }
    }
}

/// The metrics of identity.
#[derive(Debug)]
pub struct TlsMetrics {
    handshakes: IntCounterVec,
    not_after: IntGaugeVec,
    loads: IntCounterVec,
    files: IntCounterVec,
    revoked: IntGaugeVec,
    plaintext: IntCounterVec,
    requests: IntCounterVec,
    /// By service and caller. Asked when a connection is made, never by a request.
    sources: Mutex<HashMap<(String, String), Arc<SourceMetrics>>>,
}

impl TlsMetrics {
    pub(super) fn new(registry: &prometheus::Registry) -> prometheus::Result<Self> {
        Ok(Self {
            handshakes: TLS_HANDSHAKES.counters(registry)?,
            not_after: CERTIFICATE_NOT_AFTER.gauges(registry)?,
            loads: IDENTITY_LOADS.counters(registry)?,
            files: TLS_FILE_LOADS.counters(registry)?,
            revoked: REVOKED.gauges(registry)?,
            plaintext: PLAINTEXT_CONNECTIONS.counters(registry)?,
            requests: INBOUND_REQUESTS.counters(registry)?,
            sources: Mutex::default(),
        })
    }

    /// A handshake is over; `None`: it succeeded.
    pub(crate) fn handshake(&self, side: Side, reason: Option<Reason>) {
        let result = reason.map_or("ok", Reason::word);
        self.handshakes.with_label_values(&[side.word(), result]).inc();
    }

    /// An identity was loaded, whose certificate and first root are valid until then, in seconds since 1970.
    pub(crate) fn loaded(&self, certificate: i64, roots: i64) {
        self.loads.with_label_values(&["loaded"]).inc();
        self.not_after
            .with_label_values(&["certificate"])
            .set(certificate);
        self.not_after.with_label_values(&["roots"]).set(roots);
    }

    /// One was not.
    pub(crate) fn load_refused(&self) {
        self.loads.with_label_values(&["refused"]).inc();
    }

    /// Files were looked at that had changed, and taken or not.
    pub(crate) fn files(&self, which: FileSet, taken: bool) {
        let result = if taken { "loaded" } else { "refused" };
        self.files.with_label_values(&[which.word(), result]).inc();
    }

    /// The first of the certificates of a gateway expires then, in seconds since 1970.
    pub(crate) fn gateway_not_after(&self, gateway: &str, not_after: i64) {
        let what = format!("gateway:{gateway}");
        self.not_after.with_label_values(&[what.as_str()]).set(not_after);
    }

    /// So many serial numbers and identities are denied.
    pub(crate) fn denied(&self, serials: usize, identities: usize) {
        for (what, count) in [("serials", serials), ("identities", identities)] {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            self.revoked.with_label_values(&[what]).set(count);
        }
    }

    /// A caller came in plaintext where it could have come by mTLS.
    pub(crate) fn plaintext(&self, service: &str) {
        self.plaintext.with_label_values(&[service]).inc();
    }

    /// The series of a caller's requests to a service; `None`: it has no identity.
    pub(crate) fn source(&self, service: &str, source: Option<&str>) -> Arc<SourceMetrics> {
        let source = source.unwrap_or(PLAINTEXT);
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        let named = |name: &str| (service.to_owned(), name.to_owned());
        let key = if sources.contains_key(&named(source)) || sources.len() < SOURCES_MAX {
            named(source)
        } else {
            named(OTHER)
        };
        let made = sources.entry(key).or_insert_with_key(|(service, source)| {
            let counter = |result| {
                self.requests
                    .with_label_values(&[service.as_str(), source, result])
            };
            Arc::new(SourceMetrics {
                allowed: counter("allowed"),
                audited: counter("audited"),
                refused: counter("refused"),
            })
        });
        Arc::clone(made)
    }
}

/// What became of one caller's requests.
#[derive(Debug)]
pub struct SourceMetrics {
    /// Those that it may make.
    pub(crate) allowed: IntCounter,
    /// Those that it may not, and that were served because the service is only audited.
    pub(crate) audited: IntCounter,
    /// Those that it may not.
    pub(crate) refused: IntCounter,
}

impl Metrics {
    /// The metrics of identity.
    pub fn tls(&self) -> &Arc<TlsMetrics> {
        &self.tls
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_past_the_bound_are_counted_together() {
        let metrics = Metrics::new().unwrap();
        for number in 0..SOURCES_MAX + 5 {
            metrics
                .tls()
                .source("reviews", Some(&format!("spiffe://shop/{number}")))
                .allowed
                .inc();
        }
        metrics
            .tls()
            .source("reviews", Some("spiffe://shop/0"))
            .allowed
            .inc();
        let text = String::from_utf8(metrics.encode().unwrap()).unwrap();
        for (source, count) in [("spiffe://shop/0", 2), (OTHER, 5)] {
            let line = format!(
                "outrigger_inbound_requests_total{{result=\"allowed\",service=\"reviews\",source=\"{source}\"}} {count}"
            );
            assert!(text.contains(&line), "{line} is not in\n{text}");
        }
    }
}
