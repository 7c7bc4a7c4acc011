//! An HTTP/1.1 connection to an endpoint: used by one request at a time.
//!
//! It has no task of its own: the request that uses it drives it, which saves two wake-ups a request, and while it is
//! idle nobody drives it. It is driven next with the next request, which is when a close by the peer shows. The only
//! place that names `hyper::client` on the data path. It does not choose endpoints and does not retry.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::{Body, Frame};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::task::coop::unconstrained;
use tokio_util::either::Either;

use crate::arriving::{Arriving, Broken};
use crate::error::{Failure, Reason};
use crate::interim::Interim;
use crate::stream::Stream;
use crate::timer::Deadline;
use crate::tls::{Alpn, Session};
use crate::upstream::Endpoint;
use crate::upstream::age;
use crate::upstream::dial::{self, Dialled};
use crate::upstream::gate::Gate;
use crate::upstream::interim::Ear;
use crate::upstream::limits::Counted;
use crate::upstream::outgoing::OutgoingBody;
use crate::upstream::pool::{Bounds, SendError, Switched};

/// The read buffer's bound: a head and what came with it. A head that does not fit is refused. It is also the piece of
/// an answer that is held while its caller does not read: five hundred of them over HTTP/2 take 28 MB with it and about
/// 40 with 64 KiB, where 32 MB is what there is.
const BUFFER_MAX: usize = 24 * 1024;

/// A connection to an endpoint.
#[derive(Debug)]
pub(crate) struct Connection {
    sender: http1::SendRequest<OutgoingBody>,
    /// Gone once the connection is over: dropping it is what makes hyper hand back a request that it still holds.
    driver: Option<http1::Connection<Stream, OutgoingBody>>,
    gate: Gate,
    ear: Ear,
    /// Whether a request has been sent on it before: then the peer may have begun to close it.
    pub(crate) reused: bool,
    /// Whether what came on it leaves in doubt where an answer ends: then it takes no other request.
    pub(super) doubtful: bool,
    /// Whether the names in its answers keep their case.
    pub(crate) keeps_case: bool,
    pub(crate) deadline: Deadline,
    pub(super) idle_since: Instant,
    retires_at: Instant,
    counted: Counted,
    /// How long it may be used, where it speaks TLS.
    pub(super) session: Option<Session>,
}

impl Connection {
    /// Dials an endpoint. `keeps_case`: whether the names in its answers keep their case.
    pub(crate) async fn dial(
        endpoint: &Arc<Endpoint>,
        keeps_case: bool,
        deadline: Option<Instant>,
    ) -> Result<Box<Self>, Failure> {
        let Dialled {
            stream,
            counted,
            session,
        } = dial::connect(endpoint, Alpn::Http1, deadline).await?;
        let (sender, driver) = http1::Builder::new()
            .max_buf_size(BUFFER_MAX)
            .preserve_header_case(keeps_case)
            .handshake(stream)
            .await
            .map_err(|error| {
                let address = endpoint.address;
                Failure::new(Reason::ConnectFailed, format!("connect to {address}: {error}"))
            })?;
        let now = Instant::now();
        Ok(Box::new(Self {
            sender,
            driver: Some(driver),
            gate: Gate::new(),
            ear: Ear::default(),
            reused: false,
            doubtful: false,
            keeps_case,
            deadline: Deadline::new(now),
            idle_since: now,
            retires_at: age::retires_at(now, fastrand::f64()),
            counted,
            session,
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
        body: &mut Arriving,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let look = |body: &mut Arriving, gate: &Gate| {
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
    pub(super) fn is_ready(&self) -> bool {
        self.driver.is_some() && self.sender.is_ready()
    }

    /// Whether it has been closed.
    pub(crate) fn is_closed(&self) -> bool {
        self.driver.is_none()
    }

    /// Whether it takes no further request because of its age.
    pub(super) fn is_old(&self, now: Instant) -> bool {
        now >= self.retires_at
    }

    /// The endpoint that it goes to.
    pub(super) fn endpoint(&self) -> &Arc<Endpoint> {
        self.counted.endpoint()
    }

    /// Takes a request, sends it and waits for the head of its answer, within bounds. What the endpoint says before is
    /// passed on as it comes.
    pub(crate) async fn send(
        &mut self,
        request: &mut Option<Request<OutgoingBody>>,
        bounds: Bounds,
        interim: &Interim,
    ) -> Result<Response<Arriving>, SendError> {
        let Some(mut taken) = request.take() else {
            return Err(SendError::NotSent);
        };
        let upload = bounds.idle.and_then(|_| taken.body().upload());
        if let Some(until) = bounds.next(upload.as_ref()) {
            self.deadline.set(until);
        }
        self.ear.listen_for(&mut taken);
        let Self {
            sender,
            driver,
            gate,
            ear,
            deadline,
            ..
        } = self;
        let mut answer = std::pin::pin!(unconstrained(gate.shut(|| sender.try_send_request(taken))));
        let sent = std::future::poll_fn(|cx| {
            drive(driver, gate, cx);
            ear.pass_on(interim)?;
            // The answer comes by the driver alone, which has just been looked after: nothing need wake for it. It is
            // unconstrained because a channel that yields for fairness's sake would wake nobody here.
            if let Poll::Ready(answer) = answer.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                return Poll::Ready(answer.map_err(|mut error| match error.take_message() {
                    Some(back) => {
                        *request = Some(back);
                        SendError::NotSent
                    }
                    None => SendError::Broken(error.into_error()),
                }));
            }
            bounds.poll(deadline, upload.as_ref(), cx).map(Err)
        });
        Ok(sent.await?.map(Arriving::Http1))
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

/// A connection for one request that asks to switch protocols. A task of its own drives it, since what comes after the
/// answer is no request's; it is never kept.
#[derive(Debug)]
pub(crate) struct Switching {
    sender: http1::SendRequest<OutgoingBody>,
    session: Option<Session>,
}

impl Switching {
    /// Dials an endpoint.
    pub(crate) async fn dial(
        endpoint: &Arc<Endpoint>,
        keeps_case: bool,
        deadline: Option<Instant>,
    ) -> Result<Self, Failure> {
        let Dialled {
            stream,
            counted,
            session,
        } = dial::connect(endpoint, Alpn::Http1, deadline).await?;
        let handshake = http1::Builder::new()
            .max_buf_size(BUFFER_MAX)
            .preserve_header_case(keeps_case)
            .handshake(stream);
        let (sender, connection) = handshake.await.map_err(|error| {
            let address = endpoint.address;
            Failure::new(Reason::ConnectFailed, format!("connect to {address}: {error}"))
        })?;
        tokio::task::spawn_local(async move {
            let _counted = counted;
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "a connection that was to switch ended early");
            }
        });
        Ok(Self { sender, session })
    }

    /// Sends the request and waits for its answer, at most until the deadline; then for the bytes behind it, if the
    /// endpoint switches.
    pub(crate) async fn send(
        mut self,
        request: Request<OutgoingBody>,
        until: Option<Instant>,
    ) -> Result<(Response<Arriving>, Option<Switched>), SendError> {
        let answer = self.sender.try_send_request(request);
        let answer = match until {
            None => answer.await,
            Some(until) => tokio::time::timeout_at(until.into(), answer)
                .await
                .map_err(|_| SendError::TimedOut)?,
        };
        let mut answer = answer.map_err(|error| SendError::Broken(error.into_error()))?;
        let switched = if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
            let upgraded = hyper::upgrade::on(&mut answer).await.map_err(SendError::Broken)?;
            let bytes = Either::Left(Either::Left(TokioIo::new(upgraded)));
            Some(Switched {
                session: self.session,
                ..Switched::from(bytes)
            })
        } else {
            None
        };
        Ok((answer.map(Arriving::Http1), switched))
    }
}
