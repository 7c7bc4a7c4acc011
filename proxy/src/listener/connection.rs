//! One connection from a caller, from the first byte to the last: HTTP/1.1, one request after the other.

use std::convert::Infallible;
use std::future::Future;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http::Request;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;

use crate::listener::Arrival;
use crate::listener::callers::{Callers, Order, UnderWay};
use crate::request::body::ResponseBody;
use crate::request::{self, Worker};
use crate::stream::Stream;

/// A head may be this large, all its headers together: Envoy's limit.
const HEAD_MAX: usize = 60 * 1024;

/// How much of a connection is buffered: a head, and of bodies what one read brings.
const BUFFER_MAX: usize = 64 * 1024;

/// A silent connection is asked after this long whether its peer still lives, then this often, so many times: one
/// minute until a peer that vanished is noticed.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBES: u32 = 3;

/// Bytes that no peer acknowledges for this long end the connection: the same minute.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(60);

/// Serves a connection to its end.
pub(super) async fn serve(
    worker: Rc<Worker>,
    callers: Rc<Callers>,
    arrival: Arrival,
    connections: Arc<AtomicUsize>,
) {
    let Arrival { stream, entry, open } = arrival;
    let _counted = (Counted(connections), open.open());
    let stream = match tokio::net::TcpStream::from_std(stream) {
        Ok(stream) => stream,
        Err(error) => {
            tracing::warn!(%error, "cannot serve a connection");
            return;
        }
    };
    // An answer is one write and must leave at once. If this fails the peer is gone, which the first read will tell.
    let _ = stream.set_nodelay(true);
    watch_peer(&stream);
    let joined = callers.join(Instant::now());
    let caller = Rc::clone(&joined.caller);
    let service = service_fn(move |request: Request<Incoming>| {
        let (worker, entry, under_way) = (Rc::clone(&worker), Arc::clone(&entry), caller.begin());
        async move {
            let response = request::handle(&worker, &entry, request).await;
            under_way.caller().answers(response.body().bounds());
            Ok::<_, Infallible>(response.map(|body| Guarded { body, under_way }))
        }
    });
    let connection = http1::Builder::new()
        // Silence is watched by `callers`, for all connections at once.
        .header_read_timeout(None)
        .max_header_size(HEAD_MAX)
        .max_buf_size(BUFFER_MAX)
        // A proxy passes a date on; it does not make one up.
        .auto_date_header(false)
        .serve_connection(Stream::new(stream), service);
    let mut connection = pin!(connection);
    let ended = std::future::poll_fn(|cx| {
        match joined.caller.told(cx) {
            None => {}
            Some(Order::HangUp) => connection.as_mut().graceful_shutdown(),
            Some(Order::TooSilent | Order::Cut) => return Poll::Ready(Ok(())),
        }
        connection.as_mut().poll(cx)
    });
    let ended = ended.await;
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended early");
    }
}

/// Lets the kernel find out that a peer is gone without a word. Where it refuses, the sweep of `callers` remains.
fn watch_peer(stream: &tokio::net::TcpStream) {
    let socket = socket2::SockRef::from(stream);
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_PROBES);
    let _ = socket.set_tcp_keepalive(&keepalive);
    let _ = socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED_MAX));
}

/// An answer's body, and with it the request that is under way until the body is gone.
struct Guarded {
    body: ResponseBody,
    under_way: UnderWay,
}

impl Body for Guarded {
    type Data = <ResponseBody as Body>::Data;
    type Error = <ResponseBody as Body>::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        self.under_way.caller().handed_over(polled.is_ready());
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        if let Some(reason) = self.under_way.caller().was_cut() {
            self.body.cut_short(reason, "the caller did not read its answer");
        }
    }
}

/// A connection counted on its worker while it lives.
struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
