//! An HTTP/2 connection to an endpoint, shared by many requests: a trunk, and one stream of it for each request.
//!
//! The trunk's frames are moved by a task of its own, which the requests on it cannot do for one another. It counts
//! its streams itself against what the peer allows, so that none waits inside the connection where nobody could
//! bound or see it; when a trunk is full the pool makes another. Spoken by prior knowledge (RFC 9113 section 3.3): the
//! service file declares it. It uses `h2` and not hyper's client over it, which costs two tasks and a channel more
//! for each request (docs/decisions/0005).

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::RecvStream;
use h2::client::{ResponseFuture, SendRequest};
use http::header::{HOST, TRANSFER_ENCODING};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Method, Request, Response, StatusCode, Uri, Version, request};
use http_body::Body;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use tokio_util::either::Either;

use crate::arriving::Arriving;
use crate::error::{Failure, Reason};
use crate::frames::{Allowance, Watched};
use crate::http2::{ANSWER_WINDOW, HEADERS_MAX, Received, SEND_BUFFER_MAX, SendFailed, Sent, Tunnel};
use crate::interim::{self, Interim};
use crate::timer::Deadline;
use crate::tls::{Alpn, Session};
use crate::upstream::Endpoint;
use crate::upstream::age;
use crate::upstream::dial::{self, Dialled};
use crate::upstream::outgoing::{OutgoingBody, Upload};
use crate::upstream::pool::{Bounds, SendError, Switched};

/// The most requests at once on one connection, whatever the peer allows: what RFC 9113 section 6.5.2 would have a peer allow at
/// the least. Servers serve a connection by one of their threads, and to some a stream costs the more the more there are beside
/// it: a gRPC call cost nginx five times as much with a thousand of them on one connection as with a hundred on each of ten.
const STREAMS_MAX: u32 = 100;

/// What an endpoint may send on one connection before we have passed it on: the windows of all its streams, so that no
/// callers that do not read leave the others without theirs.
const CONNECTION_WINDOW: u32 = STREAMS_MAX * ANSWER_WINDOW;

/// A connection without a request is closed after this. Closing says GOAWAY first, so that no request is lost by it;
/// the 60 s of AWS load balancers.
const IDLE_MAX: Duration = Duration::from_secs(60);

/// A connection to an endpoint.
#[derive(Debug)]
pub(crate) struct Trunk {
    sender: RefCell<SendRequest<Bytes>>,
    /// What the endpoint's frames may cost, and which of its answers are malformed.
    allowance: Rc<Allowance>,
    streams: Cell<usize>,
    /// Those of streams that are over, for the next ones: what stands in the timer wheel need not enter it again. As many
    /// as there were streams at once.
    deadlines: RefCell<Vec<Deadline>>,
    idle_since: Cell<Instant>,
    retires_at: Instant,
    /// How long it may be used, where it speaks TLS.
    session: Option<Session>,
    /// Of the URLs of its requests.
    scheme: Scheme,
    /// Moves the frames.
    driver: AbortHandle,
    /// Dropped last, which wakes the task that moves the frames to say goodbye: `h2` does not notice by itself.
    _in_use: oneshot::Sender<()>,
}

impl Trunk {
    /// Connects, and waits until the endpoint has said what it allows: until then the number of its streams is a guess,
    /// and an endpoint that does not speak HTTP/2 has not shown itself.
    pub(super) async fn dial(endpoint: &Arc<Endpoint>) -> Result<Rc<Self>, Failure> {
        let Dialled {
            stream,
            counted,
            session,
        } = dial::open(endpoint, Alpn::Http2, None).await?;
        let allowance = Rc::<Allowance>::default();
        let handshake = h2::client::Builder::new()
            .initial_max_send_streams(0)
            .initial_window_size(ANSWER_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(HEADERS_MAX)
            .max_send_buffer_size(SEND_BUFFER_MAX)
            .enable_push(false)
            .handshake::<_, Bytes>(Watched::endpoint(stream, Rc::clone(&allowance)));
        let greeted = async {
            let (sender, mut connection) = handshake.await.map_err(|error| Mute::Ended(Some(error)))?;
            let settings = std::future::poll_fn(|cx| {
                let over = Pin::new(&mut connection).poll(cx);
                match over {
                    Poll::Ready(over) => Poll::Ready(Err(Mute::Ended(over.err()))),
                    Poll::Pending if sender.current_max_send_streams() > 0 => Poll::Ready(Ok(())),
                    Poll::Pending => Poll::Pending,
                }
            });
            settings.await?;
            Ok((sender, connection))
        };
        let greeted = tokio::time::timeout(dial::CONNECT_TIMEOUT, greeted).await;
        let (sender, mut connection) = greeted
            .unwrap_or(Err(Mute::Silent))
            .map_err(|mute| mute.failure(endpoint, session.as_ref()))?;
        endpoint.health.connected();
        let address = endpoint.address;
        let (in_use, mut released) = oneshot::channel::<()>();
        let driver = tokio::task::spawn_local(async move {
            let _counted = counted;
            let mut noticed = false;
            let ended = std::future::poll_fn(|cx| {
                noticed = noticed || Pin::new(&mut released).poll(cx).is_ready();
                Pin::new(&mut connection).poll(cx)
            });
            if let Err(error) = ended.await {
                tracing::debug!(%address, %error, "an HTTP/2 connection ended early");
            }
        });
        let now = Instant::now();
        Ok(Rc::new(Self {
            sender: RefCell::new(sender),
            allowance,
            streams: Cell::new(0),
            deadlines: RefCell::default(),
            idle_since: Cell::new(now),
            retires_at: age::retires_at(now, fastrand::f64()),
            session,
            scheme: endpoint.scheme(),
            driver: driver.abort_handle(),
            _in_use: in_use,
        }))
    }

    /// Whether it will never take a request again: closed, told to go away, or out of stream numbers.
    pub(super) fn is_over(&self) -> bool {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        matches!(self.sender.borrow_mut().poll_ready(&mut cx), Poll::Ready(Err(_)))
    }

    /// Whether it should be let go of.
    pub(super) fn is_old(&self, now: Instant) -> bool {
        let idle =
            self.streams.get() == 0 && now.saturating_duration_since(self.idle_since.get()) >= IDLE_MAX;
        idle || now >= self.retires_at || self.is_over() || self.has_expired(now)
    }

    /// Whether the certificates under which it was made are no longer good. In plaintext there are none.
    pub(super) fn has_expired(&self, now: Instant) -> bool {
        self.session.as_ref().is_some_and(|session| session.is_over(now))
    }

    /// Ends it, its streams under way too, if the endpoint has been revoked: one of them may be silent for hours.
    pub(super) fn cut_if_revoked(&self) {
        if self.session.as_ref().is_some_and(Session::is_revoked) {
            self.driver.abort();
        }
    }

    /// Begins a request on it, if it has room.
    pub(super) fn open(self: &Rc<Self>) -> Option<Box<Stream>> {
        if self.session.is_some() && self.has_expired(Instant::now()) {
            return None;
        }
        // The lock inside of `h2` is not asked of one that is full.
        let taken = self.streams.get();
        let has_room =
            taken < STREAMS_MAX as usize && taken < self.sender.borrow().current_max_send_streams();
        has_room.then(|| {
            self.streams.set(taken + 1);
            Box::new(Stream {
                deadline: self
                    .deadlines
                    .borrow_mut()
                    .pop()
                    .unwrap_or_else(|| Deadline::new(self.idle_since.get())),
                trunk: Rc::clone(self),
                upload: None,
                sending: None,
            })
        })
    }
}

/// An endpoint that took a connection and did not begin to speak HTTP/2 on it.
#[derive(Debug)]
enum Mute {
    /// It said nothing in time.
    Silent,
    /// It ended the connection, or said something else.
    Ended(Option<h2::Error>),
}

impl Mute {
    /// What it is to the request, which was not sent. As after any connection that came to nothing the endpoint is left
    /// alone for a moment.
    fn failure(self, endpoint: &Endpoint, session: Option<&Session>) -> Failure {
        endpoint.health.connect_failed(Instant::now());
        let address = endpoint.address;
        if let Some(words) = session.and_then(Session::refusal) {
            return Failure::new(
                Reason::IdentityRefused,
                format!("{address} did not accept our certificate: {words}"),
            );
        }
        let took = |what: &dyn std::fmt::Display| {
            format!("{address} took the connection but does not speak HTTP/2 with prior knowledge: {what}")
        };
        let hung_up = |what: &dyn std::fmt::Display| {
            format!(
                "{address} took the connection and ended it before a word of HTTP/2: {what}; does it speak HTTP/2 with prior \
                 knowledge, and is `protocol` right?"
            )
        };
        match self {
            Self::Silent => Failure::new(Reason::ConnectTimeout, took(&"no SETTINGS came in time")),
            // It may be about to stop as well as of another protocol, and the request was not sent: it is tried elsewhere.
            Self::Ended(None) => Failure::new(Reason::ConnectFailed, hung_up(&"it closed the connection")),
            Self::Ended(Some(error)) if error.is_remote() || error.get_io().is_some_and(is_hanging_up) => {
                Failure::new(Reason::ConnectFailed, hung_up(&error))
            }
            // What came made no sense in HTTP/2.
            Self::Ended(Some(error)) => Failure::new(Reason::UpstreamProtocol, took(&error)),
        }
    }
}

/// Whether a connection broke without a word: an answer that is none of HTTP/2 breaks it otherwise.
fn is_hanging_up(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected, TimedOut};
    matches!(
        error.kind(),
        BrokenPipe | ConnectionAborted | ConnectionReset | NotConnected | TimedOut
    )
}

/// One request's part of a trunk.
#[derive(Debug)]
pub(crate) struct Stream {
    trunk: Rc<Trunk>,
    pub(crate) deadline: Deadline,
    /// How far the request's body has come.
    pub(super) upload: Option<Upload>,
    /// What is left of the request's body, while the answer already comes.
    sending: Option<AbortHandle>,
}

impl Stream {
    /// Takes a request, sends it and waits for the head of its answer, within bounds. What the endpoint says before is
    /// passed on as it comes.
    pub(crate) async fn send(
        &mut self,
        request: &mut Option<Request<OutgoingBody>>,
        bounds: Bounds,
        interim: &Interim,
    ) -> Result<Response<Arriving>, SendError> {
        let (mut answer, mut sending) = self.begin(request, bounds)?;
        let (deadline, upload, trunk) = (&mut self.deadline, self.upload.as_ref(), &self.trunk);
        let mut allowance = interim::Allowance::default();
        let answered = std::future::poll_fn(|cx| {
            match sending.as_mut().map(|sending| sending.poll(cx)) {
                None | Some(Poll::Pending) => {}
                // What the stream has to say, the answer says too.
                Some(Poll::Ready(Ok(()) | Err(SendFailed::Stream(_)))) => sending = None,
                Some(Poll::Ready(Err(SendFailed::Body(error)))) => {
                    if let Some(sending) = sending.as_mut() {
                        sending.reset(h2::Reason::CANCEL);
                    }
                    return Poll::Ready(Err(SendError::CallerBroke(error)));
                }
            }
            if let Poll::Ready(answer) = poll_answer(&mut answer, &mut allowance, interim, cx) {
                return Poll::Ready(told(answer?, trunk));
            }
            bounds.poll(deadline, upload, cx).map(Err)
        });
        let answer = answered.await?;
        if let Some(rest) = sending {
            self.sending = Some(send_the_rest(rest));
        }
        let (head, stream) = answer.into_parts();
        let body = Received::new(stream, &head.headers, Rc::clone(&self.trunk.allowance));
        Ok(Response::from_parts(head, Arriving::Http2(body)))
    }

    /// Takes a request and sends its head. No part of [`Self::send`], which would keep room for the head while it waits.
    fn begin(
        &mut self,
        request: &mut Option<Request<OutgoingBody>>,
        bounds: Bounds,
    ) -> Result<(ResponseFuture, Option<Sent<OutgoingBody>>), SendError> {
        let Some(request) = request.take() else {
            return Err(SendError::NotSent);
        };
        self.upload = bounds.idle.and_then(|_| request.body().upload());
        if let Some(until) = bounds.next(self.upload.as_ref()) {
            self.deadline.set(until);
        }
        let (mut head, body) = request.into_parts();
        let nothing = body.is_end_stream();
        dress(&mut head, &self.trunk.scheme)?;
        let head = Request::from_parts(head, ());
        let begun = self.trunk.sender.borrow_mut().send_request(head, nothing);
        let (answer, stream) = begun.map_err(refused_or_reset)?;
        Ok((answer, (!nothing).then(|| Sent::new(stream, body))))
    }
}

impl Stream {
    /// Asks the endpoint to make this stream a tunnel for a protocol (RFC 8441), and waits for its answer.
    pub(crate) async fn switch(
        mut self: Box<Self>,
        mut head: request::Parts,
        protocol: &str,
        bounds: Bounds,
    ) -> Result<(Response<Arriving>, Option<Switched>), SendError> {
        if !self.trunk.sender.borrow().is_extended_connect_protocol_enabled() {
            let detail = "the endpoint takes no extended CONNECT (RFC 8441), which this needs over HTTP/2";
            return Err(SendError::Unsendable(Reason::UpstreamProtocol, detail.into()));
        }
        dress(&mut head, &self.trunk.scheme)?;
        head.method = Method::CONNECT;
        head.extensions.insert(h2::ext::Protocol::from(protocol));
        let head = Request::from_parts(head, ());
        let begun = self.trunk.sender.borrow_mut().send_request(head, false);
        let (mut answer, send) = begun.map_err(refused_or_reset)?;
        if let Some(until) = bounds.next(None) {
            self.deadline.set(until);
        }
        let (deadline, trunk) = (&mut self.deadline, &self.trunk);
        let answered = std::future::poll_fn(|cx| {
            if let Poll::Ready(answer) = Pin::new(&mut answer).poll(cx) {
                let answer = answer.map_err(refused_or_reset)?;
                return Poll::Ready(told(answer, trunk));
            }
            bounds.poll(deadline, None, cx).map(Err)
        });
        let (head, receive) = answered.await?.into_parts();
        if head.status.is_success() {
            let session = self.trunk.session.clone();
            let tunnel = Tunnel::new(send, receive, self);
            let answer = Response::from_parts(head, Arriving::Nothing);
            let switched = Switched {
                session,
                ..Switched::from(Either::Right(tunnel))
            };
            return Ok((answer, Some(switched)));
        }
        let body = Arriving::Http2(Received::new(
            receive,
            &head.headers,
            Rc::clone(&self.trunk.allowance),
        ));
        Ok((Response::from_parts(head, body), None))
    }
}

/// The head of an answer, once there is one. `h2` drops the interim answers that nobody has asked it for before.
fn poll_answer(
    answer: &mut ResponseFuture,
    allowance: &mut interim::Allowance,
    interim: &Interim,
    cx: &mut Context<'_>,
) -> Poll<Result<Response<RecvStream>, SendError>> {
    while let Some(head) = ready!(answer.poll_informational(cx)) {
        let (head, ()) = head.map_err(refused_or_reset)?.into_parts();
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            // RFC 9113 section 8.6: HTTP/2 has no 101.
            return Poll::Ready(Err(SendError::Malformed(
                "a 101 (Switching Protocols) before its answer",
            )));
        }
        if !allowance.takes(&head.headers) {
            return Poll::Ready(Err(SendError::TooManyInterim));
        }
        interim.heard(head.status, head.headers);
    }
    Pin::new(answer).poll(cx).map_err(refused_or_reset)
}

/// The answer has begun before the request was all sent, as in a conversation: the rest is sent by a task of its own,
/// so that a caller who does not read for a while can still speak. It ends with the stream.
fn send_the_rest(mut rest: Sent<OutgoingBody>) -> AbortHandle {
    let task = tokio::task::spawn_local(async move {
        let sent = std::future::poll_fn(|cx| rest.poll(cx)).await;
        if let Err(SendFailed::Body(_)) = sent {
            rest.reset(h2::Reason::CANCEL);
        }
    });
    task.abort_handle()
}

impl Drop for Stream {
    fn drop(&mut self) {
        // An answer that is over before its request is one that does not need the rest.
        if let Some(sending) = &self.sending {
            sending.abort();
        }
        let spare = Deadline::new(self.trunk.idle_since.get());
        let spare = std::mem::replace(&mut self.deadline, spare);
        self.trunk.deadlines.borrow_mut().push(spare);
        self.trunk.streams.set(self.trunk.streams.get() - 1);
        if self.trunk.streams.get() == 0 {
            self.trunk.idle_since.set(Instant::now());
        }
    }
}

/// Gives an HTTP/1.1 head the form that HTTP/2 has (RFC 9113 section 8.3.1): the host becomes `:authority`.
fn dress(head: &mut request::Parts, scheme: &Scheme) -> Result<(), SendError> {
    let bad = |detail: String| SendError::Unsendable(Reason::BadRequest, detail);
    head.headers.remove(TRANSFER_ENCODING);
    head.version = Version::HTTP_2;
    let host = head.headers.remove(HOST);
    let host = host.as_ref().map_or(&b""[..], |host| host.as_bytes());
    let authority =
        Authority::try_from(host).map_err(|error| bad(format!("its host is no authority: {error}")))?;
    let path = std::mem::take(&mut head.uri).into_parts().path_and_query;
    let mut uri = http::uri::Parts::default();
    uri.scheme = Some(scheme.clone());
    uri.authority = Some(authority);
    uri.path_and_query = Some(path.unwrap_or_else(|| PathAndQuery::from_static("/")));
    head.uri = Uri::from_parts(uri).map_err(|error| bad(error.to_string()))?;
    Ok(())
}

/// What has come of a request.
fn told(answer: Response<RecvStream>, trunk: &Trunk) -> Result<Response<RecvStream>, SendError> {
    match trunk
        .allowance
        .is_malformed(|| answer.body().stream_id().as_u32())
    {
        // RFC 9113 section 8.3: "Pseudo-header fields defined for requests MUST NOT appear in responses".
        true => Err(SendError::Malformed("a pseudo-header of requests in its answer")),
        false => Ok(answer),
    }
}

/// Whether the peer surely did nothing with a request. It says so by REFUSED_STREAM, or by a GOAWAY whose last stream
/// is an earlier one (RFC 9113 sections 6.8 and 8.7); `h2` hands a GOAWAY to such streams only.
fn refused_or_reset(error: h2::Error) -> SendError {
    let refused = error.is_remote()
        && (error.is_go_away() || error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM));
    if refused {
        SendError::Refused(error)
    } else {
        SendError::Reset(error)
    }
}
