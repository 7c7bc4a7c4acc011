//! The body of an answer on its way to the caller. It carries the log, the connection and the endpoint's count to
//! the last byte, and gives each back where it belongs, however the body ends.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use http_body::{Body, Frame, SizeHint};

use crate::arriving::Arriving;
use crate::error::{self, Failure, Reason};
use crate::pump;
use crate::request::attempt::Answer;
use crate::request::permit::Permit;
use crate::request::retry::Progress;
use crate::request::settling::Settling;
use crate::request::upgrade::Tunnel;
use crate::request::{Worker, grpc};
use crate::snapshot::Entry;
use crate::snapshot::routes::Route;
use crate::telemetry::request_log::RequestLog;
use crate::upstream::Pick;
use crate::upstream::pool::{Carrier, Switched};

/// The header that says why the proxy answered itself.
pub(crate) const REASON: HeaderName = error::HEADER;

/// The body of an answer.
#[derive(Debug)]
pub(crate) enum ResponseBody {
    /// A short text of the proxy's own.
    Text(Option<Bytes>, Box<RequestLog>),
    /// Nothing, or nothing more.
    Empty,
    /// What the upstream sends.
    Relayed(Box<Relayed>),
    /// None: the connection is switched to another protocol behind this answer.
    Switched(Box<Tunnel>),
}

/// A body that is on its way from an upstream.
#[derive(Debug)]
pub(crate) struct Relayed {
    incoming: Arriving,
    carrier: Carrier,
    pick: Pick,
    worker: Rc<Worker>,
    log: RequestLog,
    bounds: Bounds,
    /// Whether anything has come since the idle time was last set.
    progress: bool,
    /// Whether it came with its head, so far: then the time of the head is its own, and no clock is read for it.
    came_at_once: bool,
    /// What is still to be counted of the attempt, if it is a gRPC call whose status is to come.
    settling: Option<Box<Settling>>,
    /// It broke off: what came before is on its way to the caller first.
    broken: Option<Box<Cut>>,
}

/// The answer of an upstream, made ready for the caller.
pub(crate) fn relay(
    worker: &Rc<Worker>,
    (answer, permit): (Box<Answer>, Option<Box<Permit>>),
    bounds: Bounds,
    mut log: RequestLog,
) -> Response<ResponseBody> {
    let Answer {
        head,
        body,
        mut carrier,
        pick,
        said,
        switched,
        settling,
    } = *answer;
    if let Some(reason) = said {
        log.failed(&Failure::new(
            reason,
            format!("the sidecar at {} said so", pick.address),
        ));
    }
    log.answered(head.status);
    if log.grpc()
        && let Some(status) = grpc::status(&head.headers)
    {
        log.grpc_answered(status);
    }
    if let Some(switched) = switched {
        log.complete(Instant::now());
        let Switched {
            bytes,
            counted,
            idle,
            session,
        } = *switched;
        let tunnel = Tunnel {
            upstream: bytes,
            pick,
            _counted: counted,
            idle: idle.unwrap_or(Some(pump::IDLE)),
            session,
            permit,
        };
        return Response::from_parts(head, ResponseBody::Switched(Box::new(tunnel)));
    }
    if body.is_end_stream() {
        let now = Instant::now();
        log.complete(now);
        give_back(worker, carrier, now);
        return Response::from_parts(head, ResponseBody::Empty);
    }
    if let Some(until) = bounds.next(bounds.at) {
        carrier.deadline().set(until);
    }
    let worker = Rc::clone(worker);
    let relayed = Relayed {
        incoming: body,
        carrier,
        pick,
        worker,
        log,
        bounds,
        progress: false,
        came_at_once: true,
        settling,
        broken: None,
    };
    Response::from_parts(head, ResponseBody::Relayed(Box::new(relayed)))
}

/// Puts by an answer that nobody will see, because another attempt is made. If it is over already, its connection can
/// take that attempt: an endpoint that is overloaded is not made to take new connections on top.
pub(crate) fn put_by(worker: &Rc<Worker>, outcome: Result<Box<Answer>, Failure>, now: Instant) {
    let Ok(answer) = outcome else { return };
    let Answer { body, carrier, .. } = *answer;
    if body.is_end_stream() {
        give_back(worker, carrier, now);
    }
}

/// Gives a connection back to the pool, if the request had one of its own and it stands.
pub(super) fn give_back(worker: &Worker, carrier: Carrier, now: Instant) {
    if let Carrier::Own(connection) = carrier {
        worker.pool.give_back(connection, now);
    }
}

/// The answer that a route gives by itself, which is no failure.
pub(crate) fn own(answer: Response<Bytes>, mut log: RequestLog) -> Response<ResponseBody> {
    let (head, text) = answer.into_parts();
    log.answered(head.status);
    if log.grpc()
        && let Some(status) = grpc::status(&head.headers)
    {
        log.grpc_answered(status);
    }
    if text.is_empty() {
        log.complete(Instant::now());
        return Response::from_parts(head, ResponseBody::Empty);
    }
    Response::from_parts(head, ResponseBody::Text(Some(text), Box::new(log)))
}

/// The answer of the proxy itself: the reason in a header, and in words. The application is also told what exactly happened,
/// which others must not learn: it has addresses and identities in it.
pub(crate) fn refusal(entry: &Entry, failure: &Failure, mut log: RequestLog) -> Response<ResponseBody> {
    let reason = failure.reason;
    log.failed(failure);
    if log.grpc() {
        return grpc_refusal(failure, log);
    }
    log.answered(failure.status());
    let mut text = format!("outrigger: {}: {}\n", reason.word(), reason.advice());
    if entry.is_of_the_application() && !failure.detail.is_empty() {
        text.push_str(&failure.detail);
        text.push('\n');
    }
    let text = Bytes::from(text);
    let mut response = Response::new(ResponseBody::Empty);
    *response.status_mut() = failure.status();
    let headers = response.headers_mut();
    say_why(headers, failure);
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(text.len()));
    *response.body_mut() = ResponseBody::Text(Some(text), Box::new(log));
    response
}

/// The same for a gRPC call: an answer without messages, whose head is its trailers too ("Trailers-Only").
fn grpc_refusal(failure: &Failure, mut log: RequestLog) -> Response<ResponseBody> {
    log.answered(StatusCode::OK);
    log.grpc_answered(u16::from(failure.grpc_status()));
    log.complete(Instant::now());
    let mut response = Response::new(ResponseBody::Empty);
    let headers = response.headers_mut();
    say_why(headers, failure);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    grpc::say_as(headers, failure.reason, u16::from(failure.grpc_status()));
    response
}

/// The reason in a header, and when it may be tried again where that is known.
fn say_why(headers: &mut HeaderMap, failure: &Failure) {
    headers.insert(REASON, failure.reason.header());
    if let Some(seconds) = failure.retry_after() {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
}

/// How long the body of an answer may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// When its head was there.
    at: Instant,
    /// When the whole request must be over.
    deadline: Option<Instant>,
    /// The longest silence.
    idle: Option<Duration>,
}

impl Bounds {
    /// The bounds of a body whose head was there at that time.
    pub(crate) fn of_body(at: Instant, progress: &Progress, route: &Route) -> Self {
        Self {
            at,
            deadline: progress.request_deadline(),
            idle: route.timeouts.idle,
        }
    }

    /// The bounds of a tunnel, which has none.
    pub(crate) fn of_tunnel(at: Instant) -> Self {
        Self {
            at,
            deadline: None,
            idle: None,
        }
    }

    /// When the whole request must be over, and the longest silence; each where the route has one.
    pub(crate) fn parts(&self) -> (Option<Instant>, Option<Duration>) {
        (self.deadline, self.idle)
    }

    /// The nearer of the two: the end of the request, and the end of a silence that begins now.
    fn next(&self, now: Instant) -> Option<Instant> {
        let silence = self.idle.map(|idle| now + idle);
        match (self.deadline, silence) {
            (Some(deadline), Some(silence)) => Some(deadline.min(silence)),
            (deadline, silence) => deadline.or(silence),
        }
    }
}

/// Why a body was cut short. hyper answers it by breaking the connection, which is what shows the caller that the
/// answer is not whole.
#[derive(Debug)]
pub(crate) struct Cut {
    failure: Failure,
    /// What an HTTP/2 endpoint said, for an HTTP/2 caller.
    pub(crate) code: Option<h2::Reason>,
}

impl std::fmt::Display for Cut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.failure.fmt(f)
    }
}

impl std::error::Error for Cut {}

impl Relayed {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        if let Some(cut) = self.broken.take() {
            return Poll::Ready(Some(Err(*cut)));
        }
        match self.carrier.poll_body(&mut self.incoming, cx) {
            Poll::Ready(Some(Ok(frame))) => {
                // Of several frames the caller has taken all but the last before the last is asked for.
                self.came_at_once &= self.incoming.is_end_stream();
                self.progress = true;
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                let detail = format!("{} broke off its answer: {error}", self.pick.address);
                let code = error.code();
                let (reason, detail) = if error.is_our_own() {
                    let detail = format!("the caller broke off its request: {error}");
                    (Reason::ClientGone, detail)
                } else if error.is_malformed() {
                    (Reason::UpstreamProtocol, detail)
                } else {
                    (Reason::UpstreamReset, detail)
                };
                let cut = self.cut(reason, detail);
                // hyper throws away what it has not written yet when a body fails, be it the head. Told that there is
                // nothing at the moment it writes, and asks again.
                self.broken = Some(Box::new(Cut { code, ..cut }));
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending => {
                self.came_at_once = false;
                self.poll_bounds(cx)
            }
        }
    }

    /// Nothing has come: is there still time to wait?
    fn poll_bounds(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        if self.bounds.deadline.is_none() && self.bounds.idle.is_none() {
            return Poll::Pending;
        }
        while self.carrier.deadline().poll(cx).is_ready() {
            let address = self.pick.address;
            let now = Instant::now();
            if self.bounds.deadline.is_some_and(|deadline| now >= deadline) {
                let detail =
                    format!("{address} had not finished its answer when the request's time was over");
                return Poll::Ready(Some(Err(self.cut(Reason::RequestTimeout, detail))));
            }
            // Whether anything has come is asked only here, once an idle time, and not at every frame: a silence
            // is therefore noticed after one to two idle times.
            let uploads = self.carrier.uploads();
            if !std::mem::take(&mut self.progress) && !uploads {
                let detail = format!("{address} was silent in the middle of its answer");
                return Poll::Ready(Some(Err(self.cut(Reason::IdleTimeout, detail))));
            }
            if let Some(until) = self.bounds.next(now) {
                self.carrier.deadline().set(until);
            }
        }
        Poll::Pending
    }

    /// A frame of a gRPC call's answer: notes what the trailers tell, and makes trailers out of a failure, which is how
    /// gRPC says that an answer is not whole.
    fn in_grpc(&mut self, frame: Option<Result<Frame<Bytes>, Cut>>) -> Option<Result<Frame<Bytes>, Cut>> {
        if !self.log.grpc() {
            return frame;
        }
        match frame {
            Some(Err(cut)) => {
                if let Some(settling) = self.settling.take() {
                    settling.broke(cut.failure.reason);
                }
                let mut trailers = HeaderMap::new();
                grpc::say(&mut trailers, cut.failure.reason);
                self.log
                    .grpc_answered(u16::from(cut.failure.reason.grpc_status()));
                Some(Ok(Frame::trailers(trailers)))
            }
            Some(Ok(frame)) => {
                if let Some(trailers) = frame.trailers_ref() {
                    let status = grpc::status(trailers);
                    if let Some(status) = status {
                        self.log.grpc_answered(status);
                    }
                    if let Some(settling) = self.settling.take() {
                        settling.ended(status);
                    }
                } else if let Some(settling) = &mut self.settling
                    && frame.data_ref().is_some_and(|data| !data.is_empty())
                {
                    settling.speaks();
                }
                Some(Ok(frame))
            }
            None => None,
        }
    }

    fn cut(&mut self, reason: Reason, detail: String) -> Cut {
        let failure = Failure::new(reason, detail);
        self.log.failed(&failure);
        Cut { failure, code: None }
    }

    /// The last byte has been handed over: the connection may take another request.
    fn finish(self) {
        let Self {
            mut log,
            carrier,
            worker,
            bounds,
            came_at_once,
            settling,
            ..
        } = self;
        if let Some(settling) = settling {
            settling.ended(None);
        }
        let now = if came_at_once { bounds.at } else { Instant::now() };
        log.complete(now);
        give_back(&worker, carrier, now);
    }
}

impl ResponseBody {
    /// Whether its connection takes no further request: this one is none that HTTP allows (a 400 that a route or a fault
    /// answers with is another matter), or the connection is of the wrong kind.
    pub(crate) fn is_last(&self) -> bool {
        let last = |reason| matches!(reason, Some(Reason::BadRequest | Reason::TlsRequired));
        matches!(self, Self::Text(_, log) if last(log.reason()))
    }

    /// How long it may take, if it comes from an upstream.
    pub(crate) fn bounds(&self) -> Option<Bounds> {
        match self {
            Self::Relayed(relayed) => Some(relayed.bounds),
            Self::Text(..) | Self::Empty | Self::Switched(_) => None,
        }
    }

    /// Notes why it ends before its last byte: its connection is about to be closed.
    pub(crate) fn cut_short(&mut self, reason: Reason, detail: &str) {
        match self {
            Self::Relayed(relayed) => {
                relayed.cut(reason, detail.to_owned());
                if let Some(settling) = relayed.settling.take() {
                    settling.given_up(reason);
                }
            }
            Self::Text(..) | Self::Empty | Self::Switched(_) => {}
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        match &mut *self {
            Self::Empty | Self::Switched(_) => Poll::Ready(None),
            Self::Text(text, log) => {
                log.complete(Instant::now());
                let text = text.take();
                *self = Self::Empty;
                Poll::Ready(text.map(|text| Ok(Frame::data(text))))
            }
            Self::Relayed(relayed) => {
                let frame = std::task::ready!(relayed.poll(cx));
                let frame = relayed.in_grpc(frame);
                let over = match &frame {
                    None => true,
                    Some(Ok(frame)) => frame.is_trailers() || relayed.incoming.is_end_stream(),
                    Some(Err(_)) => false,
                };
                if over && let Self::Relayed(relayed) = std::mem::replace(&mut *self, Self::Empty) {
                    relayed.finish();
                }
                Poll::Ready(frame)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Text(text, _) => text.is_none(),
            Self::Empty | Self::Switched(_) => true,
            Self::Relayed(relayed) => relayed.broken.is_none() && relayed.incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Text(text, _) => SizeHint::with_exact(text.as_ref().map_or(0, |text| text.len() as u64)),
            Self::Empty | Self::Switched(_) => SizeHint::with_exact(0),
            Self::Relayed(relayed) => relayed.incoming.size_hint(),
        }
    }
}
