//! Connections to endpoints: kept for the next request, or made.
//!
//! Each worker has its own pool, so nothing here is shared or locked. An HTTP/1.1 connection leaves the pool with its
//! request and comes back after it; HTTP/2 connections stay and lend their streams. It does not choose endpoints and
//! does not retry.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::sync::oneshot;
use tokio_util::either::Either;

use crate::arriving::{Arriving, Broken};
use crate::error::{Failure, Reason};
use crate::http2::Tunnel;
use crate::interim::Interim;
use crate::stream;
use crate::timer::Deadline;
use crate::tls::Session;
use crate::upstream::Endpoint;
use crate::upstream::http1::Connection;
use crate::upstream::http2::{Stream, Trunk};
use crate::upstream::limits::Counted;
use crate::upstream::limits::Waiting;
use crate::upstream::outgoing::{OutgoingBody, Upload};

/// An idle connection is closed after this. Node.js closes its side after 5 s by default and many servers follow
/// it; closing first is what keeps a request from meeting a connection that is being closed. The sweep that closes it
/// comes up to a second later, which is still a second before a sidecar that drains hangs up (`app`).
const IDLE_MAX: Duration = Duration::from_secs(3);

/// The most idle connections that a worker keeps to one endpoint; more are closed when their request is done. Eight
/// workers' worth is what the endpoint is allowed in all, so that idle ones seldom stand in the way of needed ones.
const IDLE_CONNECTIONS_MAX: usize = 128;

/// Connections to one endpoint that are made at once for those that wait for a stream: enough for the endpoint that
/// allows few streams on each, and not so many that a restarted one meets a storm.
const DIALS_MAX: usize = 8;

/// What carries a request to an endpoint and its answer back.
#[derive(Debug)]
pub(crate) enum Carrier {
    /// A connection that is this request's alone until its answer is over.
    Own(Box<Connection>),
    /// A stream of a connection that others use too.
    Shared(Box<Stream>),
    /// A connection that a task drives to its end, and when the answer must be there.
    Apart(Deadline),
}

/// What is behind an answer that switched protocols.
#[derive(Debug)]
pub(crate) struct Switched {
    pub(crate) bytes: SwitchedBytes,
    /// The connection as it is counted, where nothing else keeps it so.
    pub(crate) counted: Option<Counted>,
    /// The longest silence, where the service says one; the inner `None`: it may be silent for ever.
    pub(crate) idle: Option<Option<Duration>>,
    /// How long it may be used, where it speaks TLS.
    pub(crate) session: Option<Session>,
}

/// The bytes behind an answer that switched protocols: of a connection of HTTP/1.1, of a stream, or of TCP.
pub(crate) type SwitchedBytes = Either<Either<TokioIo<Upgraded>, stream::Stream>, Tunnel<Box<Stream>>>;

impl From<SwitchedBytes> for Switched {
    fn from(bytes: SwitchedBytes) -> Self {
        Self {
            bytes,
            counted: None,
            idle: None,
            session: None,
        }
    }
}

/// Why a request got no answer's head.
#[derive(Debug)]
pub(crate) enum SendError {
    /// The connection was closed before a byte was written; the request is back where it was taken from.
    NotSent,
    /// The endpoint said that it has not begun with it.
    Refused(h2::Error),
    /// The endpoint gave it up, or what came was not HTTP/2.
    Reset(h2::Error),
    /// The endpoint answered what HTTP/2 does not allow: this.
    Malformed(&'static str),
    /// The connection broke, or what came was not HTTP/1.1.
    Broken(Broke),
    /// The caller broke off in the middle of the request.
    CallerBroke(Broken),
    /// It cannot be said in the endpoint's protocol.
    Unsendable(Reason, String),
    /// The endpoint said more before its answer than it may.
    TooManyInterim,
    /// The deadline passed.
    TimedOut,
    /// The request's body was silent for too long.
    UploadSilent,
}

/// How a connection of HTTP/1.1 broke.
#[derive(Debug)]
pub(crate) enum Broke {
    /// The endpoint closed it.
    Closed,
    /// It broke.
    Lost(std::io::Error),
    /// What came was not HTTP: this.
    NotHttp(&'static str),
    /// hyper's word for one of these, or for a request that broke off.
    Hyper(hyper::Error),
}

impl From<Broke> for SendError {
    fn from(broke: Broke) -> Self {
        Self::Broken(broke)
    }
}

impl Carrier {
    /// Takes a request, sends it and waits for the head of its answer, within bounds.
    pub(crate) async fn send(
        &mut self,
        request: &mut Option<Request<OutgoingBody>>,
        bounds: Bounds,
        interim: &Interim,
    ) -> Result<Response<Arriving>, SendError> {
        match self {
            Self::Own(connection) => pin!(connection.send(request, bounds, interim)).await,
            Self::Shared(stream) => pin!(stream.send(request, bounds, interim)).await,
            Self::Apart(_) => Err(SendError::NotSent),
        }
    }

    /// The next frame of an answer's body that comes by it.
    pub(crate) fn poll_body(
        &mut self,
        body: &mut Arriving,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        match self {
            Self::Own(connection) => connection.poll_body(body, cx),
            Self::Shared(_) | Self::Apart(_) => std::pin::Pin::new(body).poll_frame(cx),
        }
    }

    pub(crate) fn deadline(&mut self) -> &mut Deadline {
        match self {
            Self::Own(connection) => &mut connection.deadline,
            Self::Shared(stream) => &mut stream.deadline,
            Self::Apart(deadline) => deadline,
        }
    }

    /// Whether the request's body, which may go on while the answer comes, has moved since this was last asked.
    pub(crate) fn uploads(&self) -> bool {
        let upload = match self {
            Self::Own(connection) => connection.upload.as_ref(),
            Self::Shared(stream) => stream.upload.as_ref(),
            Self::Apart(_) => None,
        };
        upload.is_some_and(|upload| !upload.has_ended() && upload.moves())
    }

    /// Takes no other request after this one.
    pub(crate) fn is_last(&mut self) {
        match self {
            Self::Own(connection) => connection.doubtful = true,
            Self::Shared(_) | Self::Apart(_) => {}
        }
    }

    /// What the endpoint said of our certificate, if it did not accept it.
    pub(crate) fn refusal(&self) -> Option<&str> {
        match self {
            Self::Own(connection) => connection.session.as_ref().and_then(Session::refusal),
            // One that lends streams has been accepted.
            Self::Shared(_) | Self::Apart(_) => None,
        }
    }

    /// Whether it has carried a request before: then the peer may have begun to close it.
    pub(crate) fn reused(&self) -> bool {
        match self {
            Self::Own(connection) => connection.reused,
            Self::Shared(_) | Self::Apart(_) => false,
        }
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
    pub(super) fn next(&self, upload: Option<&Upload>) -> Option<Instant> {
        let uploading = upload.is_some_and(|upload| !upload.has_ended());
        let silence = self.idle.filter(|_| uploading).map(|idle| Instant::now() + idle);
        match (self.deadline, silence) {
            (Some(deadline), Some(silence)) => Some(deadline.min(silence)),
            (deadline, silence) => deadline.or(silence),
        }
    }

    /// Ready when a bound is reached.
    pub(super) fn poll(
        &self,
        timer: &mut Deadline,
        upload: Option<&Upload>,
        cx: &mut Context<'_>,
    ) -> Poll<SendError> {
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

/// The connections of one worker.
#[derive(Debug, Default)]
#[expect(
    clippy::vec_box,
    reason = "a connection is large and moves from the pool into a body and back with every request"
)]
pub(crate) struct Pool {
    idle: RefCell<HashMap<u64, Vec<Box<Connection>>, xxhash_rust::xxh3::Xxh3DefaultBuilder>>,
    /// Shared with the tasks that dial.
    trunks: Rc<Shared>,
}

/// What those that wait for a stream are told.
type Made = Result<Box<Stream>, (Reason, String)>;

/// The HTTP/2 connections to one endpoint.
#[derive(Debug, Default)]
struct Trunks {
    open: Vec<Rc<Trunk>>,
    /// How many more are being made.
    dialling: usize,
    /// Who waits for a stream, the first first. Bounded by the requests that there are; each leaves at its deadline.
    waiting: VecDeque<oneshot::Sender<Made>>,
}

impl Pool {
    /// An idle connection, the one used last first: it is the least likely to be closing, and the others may grow old
    /// and go. That it still stands shows when it is driven with the request: one that does not hands it back.
    pub(crate) fn checkout(&self, endpoint: &Endpoint) -> Option<Box<Connection>> {
        let mut idle = self.idle.borrow_mut();
        let connections = idle.get_mut(&endpoint.id)?;
        let mut connection = connections.pop()?;
        while let Some(session) = &connection.session
            && session.is_over(Instant::now())
        {
            connection = connections.pop()?;
        }
        connection.reused = true;
        Some(connection)
    }

    /// Keeps a connection whose answer is over, if it can take another request.
    pub(crate) fn give_back(&self, mut connection: Box<Connection>, now: Instant) {
        if connection.doubtful {
            return;
        }
        if !connection.is_ready() {
            return;
        }
        if connection.is_old(now) {
            // Between two requests, so that none is lost by it.
            return;
        }
        connection.idle_since = now;
        let mut idle = self.idle.borrow_mut();
        let connections = idle.entry(connection.endpoint().id).or_default();
        if connections.len() < IDLE_CONNECTIONS_MAX {
            connections.push(connection);
        }
    }

    /// Closes what has been idle for too long. Called about once a second.
    pub(crate) fn sweep(&self, now: Instant) {
        self.idle.borrow_mut().retain(|_, connections| {
            connections.retain(|connection| {
                let is_over = connection
                    .session
                    .as_ref()
                    .is_some_and(|session| session.is_over(now));
                !is_over && now.saturating_duration_since(connection.idle_since) < IDLE_MAX
            });
            !connections.is_empty()
        });
        self.trunks.borrow_mut().retain(|_, trunks| {
            trunks.open.iter().for_each(|trunk| trunk.cut_if_revoked());
            trunks.open.retain(|trunk| !trunk.is_old(now));
            !trunks.open.is_empty() || trunks.dialling > 0
        });
    }

    /// A stream to an endpoint: of a connection that has room, else of one that is made for all that wait for one.
    pub(crate) async fn stream(
        &self,
        endpoint: &Arc<Endpoint>,
        deadline: Option<Instant>,
    ) -> Result<Box<Stream>, Failure> {
        let (made, _waiting) = {
            let mut trunks = self.trunks.borrow_mut();
            let trunks = trunks.entry(endpoint.id).or_default();
            if let Some(stream) = trunks.room() {
                return Ok(stream);
            }
            let waiting = Waiting::begin(endpoint)?;
            let (tell, made) = oneshot::channel();
            trunks.waiting.push_back(tell);
            if trunks.dialling == 0 {
                // What the first one allows tells how many more are needed.
                trunks.dialling = 1;
                dial(&self.trunks, endpoint);
            }
            (made, waiting)
        };
        let made = match deadline {
            None => made.await,
            Some(until) => match tokio::time::timeout_at(until.into(), made).await {
                Ok(made) => made,
                Err(_) => {
                    let detail = format!("connect to {}: not connected in time", endpoint.address);
                    return Err(Failure::new(Reason::ConnectTimeout, detail));
                }
            },
        };
        match made {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err((reason, detail))) => Err(Failure::new(reason, detail)),
            Err(_) => Err(Failure::new(Reason::Internal, "nobody makes the connection")),
        }
    }
}

type Shared = RefCell<HashMap<u64, Trunks, xxhash_rust::xxh3::Xxh3DefaultBuilder>>;

/// Makes a connection in a task of its own, so that it does not fail because the request that wanted it first went
/// away. Those that wait get its streams; for those that still wait then, more are made.
fn dial(shared: &Rc<Shared>, endpoint: &Arc<Endpoint>) {
    let (shared, endpoint) = (Rc::clone(shared), Arc::clone(endpoint));
    tokio::task::spawn_local(async move {
        let made = Trunk::dial(&endpoint).await;
        let mut all = shared.borrow_mut();
        let trunks = all.entry(endpoint.id).or_default();
        trunks.dialling -= 1;
        match made {
            Err(failure) => trunks.fail(failure.reason, &failure.detail),
            Ok(trunk) if trunk.has_expired(Instant::now()) => {
                // The identity was exchanged during the handshake. It takes an exchange each time: this is no loop.
                trunks.dialling += 1;
                drop(all);
                dial(&shared, &endpoint);
            }
            Ok(trunk) => {
                let served = trunks.serve(&trunk);
                trunks.open.push(trunk);
                if served == 0 {
                    let detail = format!("{}: connections end as soon as they are made", endpoint.address);
                    trunks.fail(Reason::ConnectFailed, &detail);
                }
                let more = trunks.waiting.len().div_ceil(served.max(1));
                let more = more.min(DIALS_MAX).saturating_sub(trunks.dialling);
                trunks.dialling += more;
                drop(all);
                (0..more).for_each(|_| dial(&shared, &endpoint));
            }
        }
    });
}

impl Trunks {
    /// A stream of the first connection that has room; one that is over is let go of then. Those that are full are not asked whether
    /// they are, which would be a lock of each for every request.
    fn room(&mut self) -> Option<Box<Stream>> {
        let mut place = 0;
        loop {
            let trunk = self.open.get(place)?;
            match trunk.open() {
                Some(stream) if !trunk.is_over() => return Some(stream),
                Some(_) => drop(self.open.remove(place)),
                None => place += 1,
            }
        }
    }

    /// Gives the streams of a new connection to those that wait; how many it could give, those included that nobody
    /// wanted any more.
    fn serve(&mut self, trunk: &Rc<Trunk>) -> usize {
        self.waiting.retain(|waiting| !waiting.is_closed());
        let mut served = 0;
        while !trunk.is_over() {
            if self.waiting.is_empty() {
                return served.max(1);
            }
            let Some(stream) = trunk.open() else { break };
            served += 1;
            if let Some(waiting) = self.waiting.pop_front() {
                // One that gave up just now does not want it, and its drop gives it back.
                drop(waiting.send(Ok(stream)));
            }
        }
        served
    }

    fn fail(&mut self, reason: Reason, detail: &str) {
        for waiting in self.waiting.drain(..) {
            // One that gave up meanwhile does not want to know.
            drop(waiting.send(Err((reason, detail.to_owned()))));
        }
    }
}
