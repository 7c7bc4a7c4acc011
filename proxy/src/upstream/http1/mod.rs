//! An HTTP/1.1 connection to an endpoint: used by one request at a time.
//!
//! It has no task of its own: the request that uses it drives it, which saves two wake-ups a request, and while it is
//! idle nobody drives it. It is looked at with the next request, which is when a close by the peer shows. It does not
//! choose endpoints and does not retry.

mod cased;
mod ear;
mod exchange;
mod gate;

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;

use crate::arriving::{Arriving, Broken};
use crate::error::Failure;
use crate::interim::Interim;
use crate::timer::Deadline;
use crate::tls::{Alpn, Session};
use crate::upstream::Endpoint;
use crate::upstream::age;
use crate::upstream::dial::{self, Dialled};
use crate::upstream::http1::cased::Cased;
pub(crate) use crate::upstream::http1::cased::Switching;
use crate::upstream::http1::exchange::Exchange;
use crate::upstream::limits::Counted;
use crate::upstream::outgoing::{OutgoingBody, Upload};
use crate::upstream::pool::{Bounds, SendError};

/// The most of a head that is read before it is refused, and the piece of an answer that is held while its caller does not
/// read: five hundred of them over HTTP/2 take 28 MB with it and about 40 with 64 KiB, where 32 MB is what there is.
const BUFFER_MAX: usize = 24 * 1024;

/// A connection to an endpoint.
#[derive(Debug)]
pub(crate) struct Connection {
    wire: Wire,
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
    /// How far the body of the request has come, where its silence is watched.
    pub(super) upload: Option<Upload>,
    /// How long it may be used, where it speaks TLS.
    pub(super) session: Option<Session>,
}

/// Who reads and writes on it.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "the large one is nearly every one, and a connection stands in a box already"
)]
enum Wire {
    Plain(Exchange),
    /// hyper, which alone knows how a caller wrote the names that hyper has read.
    Cased(Box<Cased>),
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
        let wire = match keeps_case {
            false => Wire::Plain(Exchange::new(stream)),
            true => Wire::Cased(Box::new(Cased::new(stream, endpoint).await?)),
        };
        let now = Instant::now();
        Ok(Box::new(Self {
            wire,
            reused: false,
            doubtful: false,
            keeps_case,
            deadline: Deadline::new(now),
            idle_since: now,
            retires_at: age::retires_at(now, fastrand::f64()),
            counted,
            upload: None,
            session,
        }))
    }

    /// The next frame of an answer's body that comes by this connection. The connection is driven for it: nobody
    /// else would.
    pub(crate) fn poll_body(
        &mut self,
        body: &mut Arriving,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        match (&mut self.wire, body) {
            (Wire::Plain(exchange), Arriving::Http1Answer(content)) => exchange.poll_body(content, cx),
            (Wire::Cased(cased), body) => cased.poll_body(body, cx),
            // An answer comes by the connection that its request went by.
            (Wire::Plain(_), _) => Poll::Ready(None),
        }
    }

    /// Whether it can take a request now. The last read may have left the end of an answer to be noticed, and nobody waits
    /// for it: an idle connection is not driven.
    pub(super) fn is_ready(&mut self) -> bool {
        match &mut self.wire {
            Wire::Plain(exchange) => exchange.is_ready(),
            Wire::Cased(cased) => cased.is_ready(),
        }
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
        let Some(taken) = request.as_ref() else {
            return Err(SendError::NotSent);
        };
        let upload = bounds.idle.and_then(|_| taken.body().upload());
        self.upload.clone_from(&upload);
        if let Some(until) = bounds.next(upload.as_ref()) {
            self.deadline.set(until);
        }
        let Self { wire, deadline, .. } = self;
        let exchange = match wire {
            Wire::Plain(exchange) => exchange,
            Wire::Cased(cased) => {
                return Box::pin(cased.send(request, (bounds, deadline, upload), interim)).await;
            }
        };
        let sent = std::future::poll_fn(|cx| {
            let answer = match request.is_some() {
                false => exchange.poll_answer(cx, interim),
                true if !exchange.stands(cx) => Poll::Ready(Err(SendError::NotSent)),
                // It has just been looked at, and will wake for what comes: an answer cannot have come by now.
                true => match request
                    .take()
                    .map_or(Ok(()), |request| exchange.begin(request, cx))
                {
                    Ok(()) => Poll::Pending,
                    Err(broken) => Poll::Ready(Err(broken)),
                },
            };
            match answer {
                Poll::Ready(answer) => Poll::Ready(answer),
                Poll::Pending => bounds.poll(deadline, upload.as_ref(), cx).map(Err),
            }
        });
        sent.await
    }
}
