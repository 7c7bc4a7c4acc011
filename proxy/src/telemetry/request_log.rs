//! The facts of one request, gathered on its way and told once, when it is over, however it ends.
//!
//! Telling happens in `Drop`, so that an answer, a failure, a broken body and a caller that went away are all told,
//! and none twice. It counts into the route's metrics and, for failures or if all are asked for, writes one JSON
//! line. It never decides anything.

use std::io::Write;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::{Duration, Instant};

use http::{Method, StatusCode, Uri};
use outrigger_config::bootstrap::AccessLog;
use serde::Serialize;

use crate::drain::Drain;
use crate::error::{Failure, Reason};
use crate::telemetry::metrics::{Ending, LostLines, RouteMetrics};

/// How many lines may wait for standard output. When whoever reads it falls further behind, lines are dropped and
/// the log says how many: a full pipe must never stop a request.
const LINES_WAITING_MAX: usize = 4096;

/// Where log lines go. One for each worker; all feed one writing thread.
#[derive(Clone, Debug)]
pub struct AccessLogger {
    which: AccessLog,
    lines: SyncSender<Vec<u8>>,
    lost: LostLines,
    drain: Drain,
}

impl AccessLogger {
    /// Starts the thread that writes. It ends when it has written all and the last clone of the logger is gone.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(
        which: AccessLog,
        lost: LostLines,
        drain: Drain,
    ) -> std::io::Result<(Self, std::thread::JoinHandle<()>)> {
        let (lines, waiting) = sync_channel::<Vec<u8>>(LINES_WAITING_MAX);
        let unwritten = lost.clone();
        let writing = std::thread::Builder::new()
            .name("access-log".into())
            .spawn(move || {
                // Ends when the last worker is gone, or when nobody reads standard output any more.
                while let Ok(line) = waiting.recv() {
                    if let Err(error) = std::io::stdout().lock().write_all(&line) {
                        unwritten.count();
                        // Anything else may pass, such as a disk that is full for a second.
                        if error.kind() == std::io::ErrorKind::BrokenPipe {
                            return;
                        }
                    }
                }
            })?;
        let logger = Self {
            which,
            lines,
            lost,
            drain,
        };
        Ok((logger, writing))
    }

    pub(super) fn writes(&self, failed: bool) -> bool {
        match self.which {
            AccessLog::Off => false,
            AccessLog::Failures => failed,
            AccessLog::All => true,
        }
    }

    /// Why something ended of which nothing else is known. What is still under way when the time to drain is over was cut
    /// by this sidecar, not given up by its caller.
    pub(super) fn given_up(&self) -> Reason {
        if self.drain.has_ended() {
            Reason::Draining
        } else {
            Reason::ClientGone
        }
    }

    pub(super) fn write(&self, line: Vec<u8>) {
        if self.lines.try_send(line).is_err() {
            self.lost.count();
        }
    }
}

/// The facts of one request. Dropping it tells them.
#[derive(Debug)]
pub struct RequestLog {
    logger: Rc<AccessLogger>,
    started: Instant,
    finished: Option<Instant>,
    caller: Option<std::net::SocketAddr>,
    method: Method,
    uri: Uri,
    host: Option<http::HeaderValue>,
    /// The series to count into: those of the route and backend, or of the listener until a route is found.
    series: Arc<RouteMetrics>,
    status: Option<StatusCode>,
    reason: Option<Reason>,
    detail: String,
    attempts: u32,
    endpoint: Option<std::net::SocketAddr>,
    source: Option<Rc<str>>,
    complete: bool,
    /// Whether it is a gRPC call.
    grpc: bool,
    grpc_status: Option<u16>,
}

impl RequestLog {
    /// Starts the log of a request that just arrived.
    pub fn start(
        logger: Rc<AccessLogger>,
        now: Instant,
        head: &http::request::Parts,
        series: Arc<RouteMetrics>,
    ) -> Self {
        Self {
            logger,
            started: now,
            finished: None,
            caller: None,
            method: head.method.clone(),
            uri: head.uri.clone(),
            host: head.headers.get(http::header::HOST).cloned(),
            series,
            status: None,
            reason: None,
            detail: String::new(),
            attempts: 0,
            endpoint: None,
            source: None,
            complete: false,
            grpc: false,
            grpc_status: None,
        }
    }

    /// It comes from here.
    pub fn came_from(&mut self, caller: std::net::SocketAddr) {
        self.caller = Some(caller);
    }

    /// The caller has shown to be this workload.
    pub fn comes_from(&mut self, id: &Rc<str>) {
        self.source = Some(Rc::clone(id));
    }

    /// It is a gRPC call.
    pub fn is_grpc(&mut self) {
        self.grpc = true;
    }

    /// Whether it is a gRPC call.
    pub fn grpc(&self) -> bool {
        self.grpc
    }

    /// The call ended with this `grpc-status`.
    pub fn grpc_answered(&mut self, status: u16) {
        self.grpc_status = Some(status);
    }

    /// Why it failed, if it did.
    pub fn reason(&self) -> Option<Reason> {
        self.reason
    }

    /// When the request arrived.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// From here on it counts as this route's, with this backend.
    pub fn counts_as(&mut self, series: &Arc<RouteMetrics>) {
        if !Arc::ptr_eq(&self.series, series) {
            self.series = Arc::clone(series);
        }
    }

    /// Another attempt goes to this endpoint.
    pub fn attempted(&mut self, endpoint: std::net::SocketAddr) {
        self.attempts += 1;
        self.endpoint = Some(endpoint);
    }

    /// Of the attempts that were under way together, the one at this endpoint is taken.
    pub fn taken(&mut self, endpoint: std::net::SocketAddr) {
        self.endpoint = Some(endpoint);
    }

    /// The caller is about to see this status.
    pub fn answered(&mut self, status: StatusCode) {
        self.status = Some(status);
    }

    /// Something failed; the last failure is the one that is told.
    pub fn failed(&mut self, failure: &Failure) {
        self.reason = Some(failure.reason);
        self.detail.clone_from(&failure.detail);
    }

    /// The whole answer has been handed over.
    pub fn complete(&mut self, now: Instant) {
        self.complete = true;
        self.finished = Some(now);
    }
}

impl Drop for RequestLog {
    fn drop(&mut self) {
        if !self.complete && self.reason.is_none() {
            self.reason = Some(self.logger.given_up());
        }
        let took = self
            .finished
            .unwrap_or_else(Instant::now)
            .saturating_duration_since(self.started);
        let ending = match (self.status, self.reason) {
            (Some(status), None) => Ending::answered(status),
            (status, Some(reason)) => Ending::failed(status, reason),
            (None, None) => Ending::failed(None, Reason::Internal),
        };
        self.series.request(ending, took);
        if self.grpc {
            self.series.grpc_call(self.grpc_status);
        }
        if self.logger.writes(self.reason.is_some()) {
            self.write(took);
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
    caller: Option<std::net::SocketAddr>,
    method: &'a str,
    host: &'a str,
    path: &'a str,
    status: u16,
    reason: &'a str,
    detail: &'a str,
    duration_ms: f64,
    attempts: u32,
    endpoint: Option<std::net::SocketAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    grpc_status: Option<u16>,
}

impl RequestLog {
    /// The status that the caller saw; 499 if it left before it saw one, as nginx writes it, and 0 if nothing else is known.
    fn status_told(&self) -> u16 {
        let gone = || (self.reason == Some(Reason::ClientGone)).then(|| Reason::ClientGone.status());
        self.status.or_else(gone).map_or(0, |status| status.as_u16())
    }

    fn write(&self, took: Duration) {
        let labels = self.series.labels();
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default();
        let host = self.host.as_ref().and_then(|host| host.to_str().ok());
        let line = Line {
            timestamp: now.as_secs_f64(),
            listener: labels.listener,
            service: &labels.service,
            route: &labels.route,
            backend: &labels.backend,
            caller: self.caller,
            method: self.method.as_str(),
            host: host
                .or_else(|| self.uri.authority().map(http::uri::Authority::as_str))
                .unwrap_or(""),
            path: self.uri.path(),
            status: self.status_told(),
            reason: self.reason.map_or("", Reason::word),
            detail: &self.detail,
            // In whole microseconds, so that no digits are made up.
            duration_ms: took.as_micros() as f64 / 1e3,
            attempts: self.attempts,
            endpoint: self.endpoint,
            source: self.source.as_deref(),
            grpc_status: self.grpc_status,
        };
        if let Ok(mut text) = serde_json::to_vec(&line) {
            text.push(b'\n');
            self.logger.write(text);
        }
    }
}
