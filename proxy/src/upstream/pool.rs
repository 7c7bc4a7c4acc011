//! Connections to endpoints: dialled, used by one request at a time, kept for the next.
//!
//! Each worker has its own pool, so nothing here is shared or locked. A connection has no task of its own: the
//! request that uses it drives it, which saves two wake-ups a request, and while it is idle nobody drives it. It is
//! driven next with the next request, which is when a close by the peer shows. The only place that names
//! `hyper::client` on the data path. It does not choose endpoints and does not retry.

use std::cell::RefCell;
use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use tokio::net::TcpStream;
use tokio::task::coop::unconstrained;

use crate::error::{Failure, Reason};
use crate::stream::Stream;
use crate::timer::Deadline;
use crate::upstream::Endpoint;
use crate::upstream::gate::Gate;
use crate::upstream::outgoing::{OutgoingBody, Upload};

/// An idle connection is closed after this. Node.js closes its side after 5 s by default and many servers follow
/// it; closing first is what keeps a request from meeting a connection that is being closed.
const IDLE_MAX: Duration = Duration::from_secs(4);

/// The most idle connections that a worker keeps to one endpoint; more are closed when their request is done. Eight
/// workers' worth is what the endpoint is allowed in all, so that idle ones seldom stand in the way of needed ones.
const IDLE_CONNECTIONS_MAX: usize = 128;

/// The most connections to one endpoint, over all workers: Envoy's default, a bound on what a slow endpoint can
/// gather. A request that would need another is answered with `overloaded`.
const CONNECTIONS_MAX: u32 = 1024;

/// How long the network may take to make a connection. Inside one region an answer takes milliseconds; a second
/// lets one lost packet be sent again. Linkerd's value.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// The read buffer's bound: a head and what came with it. A head that does not fit is refused.
const BUFFER_MAX: usize = 64 * 1024;

/// A connection to an endpoint.
#[derive(Debug)]
pub(crate) struct Connection {
    sender: http1::SendRequest<OutgoingBody>,
    /// Gone once the connection is over: dropping it is what makes hyper hand back a request that it still holds.
    driver: Option<http1::Connection<Stream, OutgoingBody>>,
    gate: Gate,
    /// Whether a request has been sent on it before: then the peer may have begun to close it.
    pub(crate) reused: bool,
    pub(crate) deadline: Deadline,
    idle_since: Instant,
    endpoint: Arc<Endpoint>,
}

/// Why a request got no answer's head.
#[derive(Debug)]
pub(crate) enum SendError {
    /// The connection was closed before a byte was written; the request comes back whole.
    NotSent(Box<Request<OutgoingBody>>),
    /// The connection broke, or what came was not HTTP.
    Broken(hyper::Error),
    /// The deadline passed.
    TimedOut,
    /// The request's body was silent for too long.
    UploadSilent,
}

impl Connection {
    /// Dials an endpoint.
    pub(crate) async fn dial(
        endpoint: &Arc<Endpoint>,
        deadline: Option<Instant>,
    ) -> Result<Box<Self>, Failure> {
        let counted = Counted::new(endpoint)?;
        let now = Instant::now();
        let until = deadline.map_or(now + CONNECT_TIMEOUT, |deadline| {
            deadline.min(now + CONNECT_TIMEOUT)
        });
        let address = endpoint.address;
        let stream = match tokio::time::timeout_at(until.into(), TcpStream::connect(address)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                endpoint.health.connect_failed(Instant::now());
                return Err(Failure::new(
                    Reason::ConnectFailed,
                    format!("connect to {address}: {error}"),
                ));
            }
            Err(_) => {
                endpoint.health.connect_failed(Instant::now());
                let waited = now.elapsed().as_millis();
                let detail = format!("connect to {address}: no answer after {waited} ms");
                return Err(Failure::new(Reason::ConnectTimeout, detail));
            }
        };
        endpoint.health.connected();
        // Small writes must leave at once: a request is one write. An error here means that the peer is gone
        // already, which the first write will tell better.
        let _ = stream.set_nodelay(true);
        let (sender, driver) = http1::Builder::new()
            .max_buf_size(BUFFER_MAX)
            .handshake(Stream::new(stream))
            .await
            .map_err(|error| Failure::new(Reason::ConnectFailed, format!("connect to {address}: {error}")))?;
        counted.keep();
        Ok(Box::new(Self {
            sender,
            driver: Some(driver),
            gate: Gate::new(),
            reused: false,
            deadline: Deadline::new(until),
            idle_since: now,
            endpoint: Arc::clone(endpoint),
        }))
    }

    /// Moves what can be moved: writes what is queued, reads what has come.
    pub(crate) fn drive(&mut self, cx: &Context<'_>) {
        let Self { driver, gate, .. } = self;
        drive(driver, gate, cx);
    }

    /// The next frame of an answer's body that comes by this connection. The connection is driven for it: nobody
    /// else would.
    pub(crate) fn poll_body(
        &mut self,
        body: &mut Incoming,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let look = |body: &mut Incoming, gate: &Gate| {
            let frame = std::future::poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx));
            gate.shut(|| std::pin::pin!(unconstrained(frame)).poll(&mut Context::from_waker(Waker::noop())))
        };
        let frame = look(body, &self.gate);
        if frame.is_ready() {
            return frame;
        }
        self.drive(cx);
        look(body, &self.gate)
    }

    /// Whether it can take a request now.
    fn is_ready(&self) -> bool {
        self.driver.is_some() && self.sender.is_ready()
    }

    /// Whether it has been closed.
    pub(crate) fn is_closed(&self) -> bool {
        self.driver.is_none()
    }

    /// Sends a request and waits for the head of its answer, within bounds.
    pub(crate) async fn send(
        &mut self,
        request: Request<OutgoingBody>,
        bounds: Bounds,
    ) -> Result<Response<Incoming>, SendError> {
        let upload = bounds.idle.and_then(|_| request.body().upload());
        if let Some(until) = bounds.next(upload.as_ref()) {
            self.deadline.set(until);
        }
        let Self {
            sender,
            driver,
            gate,
            deadline,
            ..
        } = self;
        let mut answer = std::pin::pin!(unconstrained(gate.shut(|| sender.try_send_request(request))));
        let sent = std::future::poll_fn(|cx| {
            drive(driver, gate, cx);
            // The answer comes by the driver alone, which has just been looked after: nothing need wake for it. It is
            // unconstrained because a channel that yields for fairness's sake would wake nobody here.
            if let Poll::Ready(answer) = answer.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                return Poll::Ready(answer.map_err(|mut error| match error.take_message() {
                    Some(request) => SendError::NotSent(Box::new(request)),
                    None => SendError::Broken(error.into_error()),
                }));
            }
            bounds.poll(deadline, upload.as_ref(), cx).map(Err)
        });
        sent.await
    }
}

/// Drives a connection, and lets go of it when it is over.
fn drive(driver: &mut Option<http1::Connection<Stream, OutgoingBody>>, gate: &Gate, cx: &Context<'_>) {
    if let Some(connection) = driver
        && gate.open(cx, |cx| Pin::new(connection).poll(cx)).is_ready()
    {
        *driver = None;
    }
}

/// How long an attempt may wait.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// When the head of the answer must be there.
    pub(crate) deadline: Option<Instant>,
    /// The longest silence of the request's body while it is sent.
    pub(crate) idle: Option<Duration>,
}

impl Bounds {
    /// The moment of the next look: the deadline, or the end of a silence that would begin now.
    fn next(&self, upload: Option<&Upload>) -> Option<Instant> {
        let uploading = upload.is_some_and(|upload| !upload.has_ended());
        let silence = self.idle.filter(|_| uploading).map(|idle| Instant::now() + idle);
        match (self.deadline, silence) {
            (Some(deadline), Some(silence)) => Some(deadline.min(silence)),
            (deadline, silence) => deadline.or(silence),
        }
    }

    /// Ready when a bound is reached.
    fn poll(&self, timer: &mut Deadline, upload: Option<&Upload>, cx: &mut Context<'_>) -> Poll<SendError> {
        if self.deadline.is_none() && upload.is_none() {
            return Poll::Pending;
        }
        while timer.poll(cx).is_ready() {
            if self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Poll::Ready(SendError::TimedOut);
            }
            if upload.is_some_and(|upload| !upload.moves()) {
                return Poll::Ready(SendError::UploadSilent);
            }
            match self.next(upload) {
                Some(until) => timer.set(until),
                None => return Poll::Pending,
            }
        }
        Poll::Pending
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.endpoint.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A connection counted on its endpoint while it is being made.
struct Counted<'a>(Option<&'a Endpoint>);

impl<'a> Counted<'a> {
    fn new(endpoint: &'a Endpoint) -> Result<Self, Failure> {
        if endpoint.connections.fetch_add(1, Ordering::Relaxed) >= CONNECTIONS_MAX {
            endpoint.connections.fetch_sub(1, Ordering::Relaxed);
            let detail = format!(
                "{} has {CONNECTIONS_MAX} connections from this sidecar already",
                endpoint.address
            );
            return Err(Failure::new(Reason::Overloaded, detail));
        }
        Ok(Self(Some(endpoint)))
    }

    /// The connection was made and counts until it is dropped.
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        if let Some(endpoint) = self.0 {
            endpoint.connections.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// The idle connections of one worker.
#[derive(Debug, Default)]
#[expect(
    clippy::vec_box,
    reason = "a connection is large and moves from the pool into a body and back with every request"
)]
pub(crate) struct Pool {
    idle: RefCell<HashMap<u64, Vec<Box<Connection>>, xxhash_rust::xxh3::Xxh3DefaultBuilder>>,
}

impl Pool {
    /// An idle connection, the one used last first: it is the least likely to be closing, and the others may grow old
    /// and go. That it still stands shows when it is driven with the request: one that does not hands it back.
    pub(crate) fn checkout(&self, endpoint: &Endpoint) -> Option<Box<Connection>> {
        let mut idle = self.idle.borrow_mut();
        let mut connection = idle.get_mut(&endpoint.id)?.pop()?;
        connection.reused = true;
        Some(connection)
    }

    /// Keeps a connection whose answer is over, if it can take another request.
    pub(crate) fn give_back(&self, mut connection: Box<Connection>, now: Instant, cx: &mut Context<'_>) {
        if !connection.is_ready() {
            // The last read may have left the end of the answer to be noticed.
            connection.drive(cx);
            if !connection.is_ready() {
                return;
            }
        }
        connection.idle_since = now;
        let mut idle = self.idle.borrow_mut();
        let connections = idle.entry(connection.endpoint.id).or_default();
        if connections.len() < IDLE_CONNECTIONS_MAX {
            connections.push(connection);
        }
    }

    /// Closes what has been idle for too long. Called about once a second.
    pub(crate) fn sweep(&self, now: Instant) {
        self.idle.borrow_mut().retain(|_, connections| {
            connections.retain(|connection| now.saturating_duration_since(connection.idle_since) < IDLE_MAX);
            !connections.is_empty()
        });
    }
}
