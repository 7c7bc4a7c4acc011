//! An HTTP/1.1 connection on which hyper speaks: for services whose names of fields keep their case, which hyper alone can
//! hand from a caller to an endpoint and back; and for what switches protocols. The only place that names `hyper::client`
//! on the data path.

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
use crate::upstream::dial::{self, Dialled};
use crate::upstream::http1::BUFFER_MAX;
use crate::upstream::http1::ear::Ear;
use crate::upstream::http1::gate::Gate;
use crate::upstream::outgoing::{OutgoingBody, Upload};
use crate::upstream::pool::{Bounds, Broke, SendError, Switched};

/// A connection that hyper reads and writes.
#[derive(Debug)]
pub(super) struct Cased {
    sender: http1::SendRequest<OutgoingBody>,
    /// Gone once the connection is over: dropping it is what makes hyper hand back a request that it still holds.
    driver: Option<http1::Connection<Stream, OutgoingBody>>,
    gate: Gate,
    ear: Ear,
}

impl Cased {
    /// Speaks on a stream to this endpoint.
    pub(super) async fn new(stream: Stream, endpoint: &Endpoint) -> Result<Self, Failure> {
        let (sender, driver) = http1::Builder::new()
            .max_buf_size(BUFFER_MAX)
            .preserve_header_case(true)
            .handshake(stream)
            .await
            .map_err(|error| {
                let address = endpoint.address;
                Failure::new(Reason::ConnectFailed, format!("connect to {address}: {error}"))
            })?;
        Ok(Self {
            sender,
            driver: Some(driver),
            gate: Gate::new(),
            ear: Ear::default(),
        })
    }

    /// The next frame of an answer's body.
    pub(super) fn poll_body(
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
        drive(&mut self.driver, &self.gate, cx);
        look(body, &self.gate)
    }

    /// Whether it can take a request now, once it has been driven.
    pub(super) fn is_ready(&mut self) -> bool {
        if self.driver.is_some() && !self.sender.is_ready() {
            drive(&mut self.driver, &self.gate, &Context::from_waker(Waker::noop()));
        }
        self.driver.is_some() && self.sender.is_ready()
    }

    /// Sends a request and waits for the head of its answer, within bounds.
    pub(super) async fn send(
        &mut self,
        request: &mut Option<Request<OutgoingBody>>,
        (bounds, deadline, upload): (Bounds, &mut Deadline, Option<Upload>),
        interim: &Interim,
    ) -> Result<Response<Arriving>, SendError> {
        let Some(mut taken) = request.take() else {
            return Err(SendError::NotSent);
        };
        self.ear.listen_for(&mut taken);
        let Self {
            sender,
            driver,
            gate,
            ear,
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
                    None => Broke::Hyper(error.into_error()).into(),
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
        let mut answer = answer.map_err(|error| Broke::Hyper(error.into_error()))?;
        let switched = if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
            let upgraded = hyper::upgrade::on(&mut answer).await.map_err(Broke::Hyper)?;
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
