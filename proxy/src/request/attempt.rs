//! One attempt: a connection, the request on it, the head of its answer, all under one deadline.
//!
//! It reports what happened and never tries again by itself, but for one thing: a kept connection that turns out to
//! be closed before a byte was written on it was no attempt at all, and another connection takes its place.

use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::time::{Duration, Instant};

use http::header::{EXPECT, SEC_WEBSOCKET_KEY};
use http::request::Parts;
use http::{HeaderValue, Request, StatusCode, response};
use http_body::Body;

use crate::arriving::{Arriving, Broken};
use crate::error::{Failure, Reason};
use crate::interim::Interim;
use crate::request::body::REASON;
use crate::request::permit::Permit;
use crate::request::retry::Progress;
use crate::request::settling::Settling;
use crate::request::upgrade::Upgrade;
use crate::request::{Worker, grpc, headers};
use crate::timer::Deadline;
use crate::upstream::Pick;
use crate::upstream::http1::{Connection, Switching};
use crate::upstream::limits::Waiting;
use crate::upstream::outgoing::{Coming, OutgoingBody};
use crate::upstream::pool::{Bounds, Broke, Carrier, SendError, Switched};

/// A request as it came and, once its head is prepared, as it will leave; kept for another attempt as long as there
/// may be one.
#[derive(Debug)]
pub(crate) struct Outgoing {
    pub(crate) head: Parts,
    body: OutgoingBody,
    /// Whether it has left for good.
    gone: bool,
    /// By what the tunnel goes on that it may open.
    pub(super) permit: Option<Box<Permit>>,
}

impl Outgoing {
    /// A request that has arrived.
    pub(crate) fn new(request: Request<Arriving>) -> Self {
        let (head, body) = request.into_parts();
        Self {
            head,
            body: OutgoingBody::new(body),
            gone: false,
            permit: None,
        }
    }

    /// Whether it is known to have no body.
    pub(crate) fn is_bodiless(&self) -> bool {
        self.body.is_end_stream()
    }

    /// Its policy and method may let it be sent again.
    pub(crate) fn keep(&mut self) {
        let body = std::mem::replace(&mut self.body, OutgoingBody::Empty);
        self.body = body.kept();
    }

    /// Where its caller sends the body once it is told to, the body is held back until an endpoint asks for it (RFC 9110
    /// section 10.1.1): one that refuses the head is spared the body, and so is the caller.
    pub(crate) fn hold_if(&mut self, expects: bool, interim: &Interim) {
        if !expects || self.is_bodiless() {
            return;
        }
        let expected = HeaderValue::from_static("100-continue");
        self.head.headers.insert(EXPECT, expected);
        let body = std::mem::replace(&mut self.body, OutgoingBody::Empty);
        self.body = body.held(interim.hold());
    }

    /// What a copy of it for another backend is made of, as far as it is known now: how large its body will be at most.
    /// `None`: too large to be copied.
    pub(crate) fn copied_bytes_max(&self) -> Option<usize> {
        self.body.copied_bytes_max()
    }

    /// A copy of its head, and of its body if it has one, which comes later.
    pub(crate) fn copy(&mut self) -> (Parts, Option<Coming>) {
        (self.head.clone(), self.body.copy())
    }

    /// The request for the next attempt. A copy is kept if there may be yet another. There is one while
    /// [`Self::is_kept`] holds.
    pub(crate) fn next(&mut self, progress: &Progress) -> Option<Request<OutgoingBody>> {
        if self.gone {
            return None;
        }
        if let Some(left) = progress.left_of_call() {
            grpc::tell_what_is_left(&mut self.head.headers, left);
        }
        let again = progress.may_go_again().then(|| self.body.again()).flatten();
        self.gone = again.is_none();
        // The copy is kept and the original sent: hyper reads the answer's headers into the sent map, whose room is larger.
        let kept = if self.gone {
            Request::new(()).into_parts().0
        } else {
            self.copy_of_head()
        };
        let head = std::mem::replace(&mut self.head, kept);
        let body = std::mem::replace(&mut self.body, again.unwrap_or(OutgoingBody::Empty));
        Some(Request::from_parts(head, body))
    }

    /// A copy of its head. What hyper has noted of it is copied only if there is anything: its map, which hyper leaves
    /// empty, costs as much to copy as all fields.
    fn copy_of_head(&mut self) -> Parts {
        let noted = std::mem::take(&mut self.head.extensions);
        let mut copy = self.head.clone();
        if !noted.is_empty() {
            copy.extensions = noted.clone();
        }
        self.head.extensions = noted;
        copy
    }

    /// Whether all of its body has come and is kept, so that a second attempt reads nothing that the first still waits
    /// for.
    pub(crate) fn has_all_come(&self) -> bool {
        self.is_kept() && self.body.has_all_come()
    }

    /// Whether it can be sent again, as far as its body is concerned.
    pub(crate) fn is_kept(&self) -> bool {
        !self.gone && self.body.may_go_again()
    }
}

/// The head of an answer, and what its body will come by.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) head: response::Parts,
    pub(crate) body: Arriving,
    pub(crate) carrier: Carrier,
    pub(crate) pick: Pick,
    /// Why the sidecar of the endpoint answered instead of its application, if it did.
    pub(crate) said: Option<Reason>,
    /// The bytes behind it, if it switches protocols.
    pub(crate) switched: Option<Box<Switched>>,
    /// What is still to be counted of it, if it is a gRPC call whose status is to come.
    pub(crate) settling: Option<Box<Settling>>,
}

/// Takes a request, sends it to the chosen endpoint and waits for the head of its answer. What is large here is lent or
/// boxed, and futures are pinned where they are made: moving them from hand to hand cost a tenth of a request.
pub(crate) async fn send(
    worker: &Rc<Worker>,
    (pick, http2): (Pick, bool),
    request: &mut Option<Request<OutgoingBody>>,
    deadline: Option<(Instant, Reason)>,
    idle: Option<Duration>,
    interim: &Interim,
) -> Result<Box<Answer>, Failure> {
    let until = deadline.map(|(until, _)| until);
    let bounds = Bounds {
        deadline: until,
        idle,
    };
    loop {
        let mut carrier = match kept(worker, &pick, http2) {
            Some(connection) => Carrier::Own(connection),
            None => Box::pin(carrier(worker, &pick, http2, until))
                .await
                .map_err(|failure| in_time(failure, deadline))?,
        };
        let sent = pin!(carrier.send(request, bounds, interim)).await;
        match sent {
            Ok(response) => {
                let (mut head, body) = response.into_parts();
                let said = said(&head, http2 && body.is_end_stream());
                match said {
                    // The application behind the endpoint is as good as not there.
                    Some(Reason::ConnectFailed | Reason::ConnectTimeout) => {
                        pick.health.connect_failed(Instant::now());
                    }
                    // A probe may have come by a kept connection: that it was answered is as good as a new one.
                    _ => pick.health.connected(),
                }
                let framing = headers::prepare_response(&mut head).map_err(|what| {
                    Failure::new(Reason::UpstreamProtocol, format!("{}: {what}", pick.address))
                })?;
                if framing == headers::Framing::Doubtful {
                    carrier.is_last();
                }
                return Ok(Box::new(Answer {
                    head,
                    body,
                    carrier,
                    pick,
                    said,
                    switched: None,
                    settling: None,
                }));
            }
            Err(SendError::NotSent) if carrier.reused() && request.is_some() => {}
            Err(error) => return Err(failure(error, &pick, &carrier, deadline)),
        }
    }
}

/// Asks the chosen endpoint to switch to what the caller wants to speak.
pub(crate) async fn switch(
    worker: &Rc<Worker>,
    (pick, http2): (Pick, bool),
    request: Option<Request<OutgoingBody>>,
    upgrade: &Upgrade,
    deadline: Option<(Instant, Reason)>,
) -> Result<Box<Answer>, Failure> {
    let until = deadline.map(|(until, _)| until);
    let carrier = Carrier::Apart(Deadline::new(Instant::now()));
    let Some(request) = request else {
        return Err(failure(SendError::NotSent, &pick, &carrier, deadline));
    };
    let (mut head, body) = request.into_parts();
    let answered = if http2 {
        let stream = worker.pool.stream(&pick, until).await;
        let stream = stream.map_err(|failure| in_time(failure, deadline))?;
        head.headers.remove(SEC_WEBSOCKET_KEY);
        let bounds = Bounds {
            deadline: until,
            idle: None,
        };
        let protocol = upgrade.protocol.to_str().unwrap_or_default();
        stream.switch(head, protocol, bounds).await
    } else {
        upgrade.ask(&mut head.headers);
        let waiting = Waiting::begin(&pick)?;
        let connection = Switching::dial(&pick, pick.keeps_case, until).await;
        drop(waiting);
        let connection = connection.map_err(|failure| in_time(failure, deadline))?;
        connection.send(Request::from_parts(head, body), until).await
    };
    let (answer, switched) = answered.map_err(|error| failure(error, &pick, &carrier, deadline))?;
    pick.health.connected();
    let (mut head, body) = answer.into_parts();
    if switched.is_some() {
        head.status = StatusCode::OK;
    }
    headers::prepare_response(&mut head)
        .map_err(|what| Failure::new(Reason::UpstreamProtocol, format!("{}: {what}", pick.address)))?;
    if switched.is_some() {
        upgrade.consent(&mut head);
    }
    let said = said(&head, false);
    Ok(Box::new(Answer {
        head,
        body,
        carrier,
        pick,
        said,
        switched: switched.map(Box::new),
        settling: None,
    }))
}

/// A connection that an earlier request has left.
fn kept(worker: &Worker, pick: &Pick, http2: bool) -> Option<Box<Connection>> {
    let connection = (!http2).then(|| worker.pool.checkout(pick)).flatten();
    // One that was made before the configuration changed is let go of.
    connection.filter(|connection| connection.keeps_case == pick.keeps_case)
}

/// A new connection; of one that is shared, a stream.
async fn carrier(
    worker: &Rc<Worker>,
    pick: &Pick,
    http2: bool,
    until: Option<Instant>,
) -> Result<Carrier, Failure> {
    if http2 {
        return worker.pool.stream(pick, until).await.map(Carrier::Shared);
    }
    let _waiting = Waiting::begin(pick)?;
    Connection::dial(pick, pick.keeps_case, until)
        .await
        .map(Carrier::Own)
}

/// The reason that the sidecar of the endpoint gives, if it answered itself. Only failures are looked at, so that an
/// answer that is one costs nothing; and answers by HTTP/2 that are a head and nothing else, which is how a failure
/// looks in gRPC.
fn said(head: &response::Parts, headed_only: bool) -> Option<Reason> {
    if !head.status.is_server_error() && !headed_only {
        return None;
    }
    head.headers
        .get(&REASON)
        .and_then(|word| Reason::from_word(word.as_bytes()))
}

/// A dial that used up the whole of the request's or attempt's time failed by that, not by the network's slowness.
fn in_time(failure: Failure, deadline: Option<(Instant, Reason)>) -> Failure {
    match deadline {
        Some((until, reason))
            if matches!(failure.reason, Reason::ConnectTimeout | Reason::TlsHandshake)
                && Instant::now() >= until =>
        {
            Failure { reason, ..failure }
        }
        _ => failure,
    }
}

/// Whether the connection was given up for what `frames` found in it.
fn is_flood(error: &h2::Error) -> bool {
    let io = error.get_io();
    io.is_some_and(|error| error.kind() == std::io::ErrorKind::InvalidData)
}

fn failure(error: SendError, pick: &Pick, carrier: &Carrier, deadline: Option<(Instant, Reason)>) -> Failure {
    let address = pick.address;
    if let Some(words) = carrier.refusal() {
        pick.health.connect_failed(Instant::now());
        let detail = format!("{address} did not accept our certificate: {words}");
        return Failure::new(Reason::IdentityRefused, detail);
    }
    match error {
        SendError::NotSent => Failure::new(
            Reason::ConnectFailed,
            format!("{address} closed a new connection before it was used"),
        ),
        SendError::Refused(error) => Failure::new(
            Reason::RefusedStream,
            format!("{address} turned the request away: {error}"),
        ),
        SendError::Reset(error)
            if error.is_remote() && error.reason() == Some(h2::Reason::ENHANCE_YOUR_CALM) =>
        {
            let detail = format!("{address} asked for less: {error}");
            Failure::new(Reason::EnhanceYourCalm, detail)
        }
        // What `h2` itself found wrong is the endpoint's fault in the protocol; what the endpoint says is its own will.
        SendError::Malformed(detail) => Failure::new(
            Reason::UpstreamProtocol,
            format!("{address} did not keep to HTTP/2: {detail}"),
        ),
        SendError::Reset(error) if error.is_library() && !error.is_io() || is_flood(&error) => Failure::new(
            Reason::UpstreamProtocol,
            format!("{address} did not keep to HTTP/2: {error}"),
        ),
        SendError::Reset(error) => Failure::new(
            Reason::UpstreamReset,
            format!("{address} gave the request up: {error}"),
        ),
        SendError::CallerBroke(error) => broke_off(&error, error.is_malformed()),
        SendError::Unsendable(reason, detail) => Failure::new(reason, format!("{address}: {detail}")),
        SendError::TooManyInterim => Failure::new(
            Reason::UpstreamProtocol,
            format!("{address} sent more interim answers (1xx) than are passed on"),
        ),
        SendError::TimedOut => {
            let reason = deadline.map_or(Reason::RequestTimeout, |(_, reason)| reason);
            Failure::new(reason, format!("{address} did not answer in time"))
        }
        SendError::UploadSilent => Failure::new(
            Reason::IdleTimeout,
            format!("the request's body to {address} was silent for too long"),
        ),
        SendError::Broken(broke) => broken(broke, address, carrier.reused()),
    }
}

/// The connection broke before the answer.
fn broken(broke: Broke, address: SocketAddr, reused: bool) -> Failure {
    let not_http = |what: &dyn std::fmt::Display| {
        let detail = format!("{address} did not answer in HTTP: {what}");
        Failure::new(Reason::UpstreamProtocol, detail)
    };
    let kind = if reused { "a kept" } else { "a new" };
    let closed = format!("{address} closed {kind} connection before it answered");
    match broke {
        Broke::NotHttp(what) => not_http(&what),
        Broke::Hyper(error) if error.is_parse() || error.is_parse_too_large() => not_http(&error),
        Broke::Hyper(error) if error.is_user() || error.is_body_write_aborted() => {
            broke_off(&error, Broken::was_malformed(&error))
        }
        Broke::Closed => Failure::new(Reason::UpstreamReset, closed),
        Broke::Lost(error) => Failure::new(Reason::UpstreamReset, format!("{closed}: {error}")),
        Broke::Hyper(error) => Failure::new(Reason::UpstreamReset, format!("{closed}: {error}")),
    }
}

/// The request's body ended before its end: its caller is gone, or sent what is no body.
fn broke_off(error: &dyn std::error::Error, malformed: bool) -> Failure {
    match malformed {
        true => Failure::new(
            Reason::BadRequest,
            format!("the request's body is not what HTTP allows: {error}"),
        ),
        false => Failure::new(
            Reason::ClientGone,
            format!("the caller broke off its request: {error}"),
        ),
    }
}
