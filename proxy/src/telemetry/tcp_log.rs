//! The facts of one TCP connection, gathered on its way and told once, when it is over, however it ends.
//!
//! As [`super::request_log`] does it for requests: counted always, one JSON line for a failure or if all are asked for.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::error::{Failure, Reason};
use crate::pump::Moved;
use crate::telemetry::metrics::TcpMetrics;
use crate::telemetry::request_log::AccessLogger;

/// The facts of one connection. Dropping it tells them.
#[derive(Debug)]
pub(crate) struct TcpLog {
    logger: Rc<AccessLogger>,
    started: Instant,
    caller: Option<SocketAddr>,
    series: Arc<TcpMetrics>,
    /// What has gone through.
    pub(crate) moved: Moved,
    reason: Option<Reason>,
    detail: String,
    attempts: u32,
    endpoint: Option<SocketAddr>,
    source: Option<Rc<str>>,
    open: bool,
    complete: bool,
}

impl TcpLog {
    /// Starts the log of a connection that has just come.
    pub(crate) fn start(
        logger: Rc<AccessLogger>,
        now: Instant,
        caller: Option<SocketAddr>,
        series: &Arc<TcpMetrics>,
    ) -> Self {
        Self {
            logger,
            started: now,
            caller,
            series: Arc::clone(series),
            moved: Moved::default(),
            reason: None,
            detail: String::new(),
            attempts: 0,
            endpoint: None,
            source: None,
            open: false,
            complete: false,
        }
    }

    /// The caller has shown to be this workload.
    pub(crate) fn comes_from(&mut self, id: &Rc<str>) {
        self.source = Some(Rc::clone(id));
    }

    /// A connection to this endpoint is tried, which counts as this backend's.
    pub(crate) fn attempted(&mut self, endpoint: SocketAddr, series: &Arc<TcpMetrics>) {
        self.attempts += 1;
        self.endpoint = Some(endpoint);
        self.series = Arc::clone(series);
    }

    /// The last one stands: bytes may go.
    pub(crate) fn opened(&mut self) {
        self.open = true;
        self.series.opened();
    }

    /// It failed.
    pub(crate) fn failed(&mut self, failure: &Failure) {
        self.reason = Some(failure.reason);
        self.detail.clone_from(&failure.detail);
    }

    /// Both sides ended it.
    pub(crate) fn complete(&mut self) {
        self.complete = true;
    }
}

impl Drop for TcpLog {
    fn drop(&mut self) {
        if !self.complete && self.reason.is_none() {
            self.reason = Some(self.logger.given_up());
        }
        if self.open {
            self.series.closed();
        }
        let Moved {
            from_caller,
            from_upstream,
        } = &self.moved;
        self.series
            .ended(self.reason, [from_caller.get(), from_upstream.get()]);
        if self.logger.writes(self.reason.is_some()) {
            self.write(self.started.elapsed());
        }
    }
}

/// The log line, in the order in which it is written.
#[derive(Serialize)]
struct Line<'a> {
    timestamp: f64,
    listener: &'a str,
    service: &'a str,
    route: &'a str,
    backend: &'a str,
    protocol: &'static str,
    caller: Option<SocketAddr>,
    sent: u64,
    received: u64,
    reason: &'a str,
    detail: &'a str,
    duration_ms: f64,
    attempts: u32,
    endpoint: Option<SocketAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<&'a str>,
}

impl TcpLog {
    fn write(&self, took: Duration) {
        let labels = self.series.labels();
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default();
        let line = Line {
            timestamp: now.as_secs_f64(),
            listener: labels.listener,
            service: &labels.service,
            route: &labels.route,
            backend: &labels.backend,
            protocol: "tcp",
            caller: self.caller,
            sent: self.moved.from_caller.get(),
            received: self.moved.from_upstream.get(),
            reason: self.reason.map_or("", Reason::word),
            detail: &self.detail,
            duration_ms: took.as_secs_f64() * 1e3,
            attempts: self.attempts,
            endpoint: self.endpoint,
            source: self.source.as_deref(),
        };
        if let Ok(mut text) = serde_json::to_vec(&line) {
            text.push(b'\n');
            self.logger.write(text);
        }
    }
}
