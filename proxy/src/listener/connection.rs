//! One connection from a caller, from the first byte to the last: HTTP/1.1, one request after the other.

use std::convert::Infallible;
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Context;
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;

use crate::listener::Arrival;
use crate::request::{self, HangUp, Worker};
use crate::stream::Stream;
use crate::timer::Timer;

/// A head must be there within this, and a kept connection may be silent for this long. Above the 60 s for which
/// AWS load balancers keep connections by default, so that theirs close first; nginx's value.
const HEAD_TIMEOUT: Duration = Duration::from_secs(75);

/// A head may be this large, all its headers together: Envoy's limit.
const HEAD_MAX: usize = 60 * 1024;

/// How much of a connection is buffered: a head, and of bodies what one read brings.
const BUFFER_MAX: usize = 64 * 1024;

/// Serves a connection to its end.
pub(super) async fn serve(worker: Rc<Worker>, arrival: Arrival, connections: Arc<AtomicUsize>) {
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
    let handled = Rc::clone(&worker);
    let service = service_fn(move |request: Request<Incoming>| {
        let (worker, entry) = (Rc::clone(&handled), Arc::clone(&entry));
        async move { Ok::<_, Infallible>(request::handle(&worker, &entry, request).await) }
    });
    let connection = http1::Builder::new()
        .timer(Timer)
        .header_read_timeout(HEAD_TIMEOUT)
        .max_header_size(HEAD_MAX)
        .max_buf_size(BUFFER_MAX)
        // A proxy passes a date on; it does not make one up.
        .auto_date_header(false)
        .serve_connection(Stream::new(stream), service);
    let mut connection = pin!(connection);
    let mut told = Told::new(&worker.hang_up);
    let ended = std::future::poll_fn(|cx| {
        if told.now(cx) {
            connection.as_mut().graceful_shutdown();
        }
        connection.as_mut().poll(cx)
    });
    let ended = ended.await;
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended early");
    }
}

/// One connection's ear for [`HangUp`].
struct Told<'a> {
    hang_up: &'a HangUp,
    place: Option<u64>,
    told: bool,
}

impl<'a> Told<'a> {
    /// A connection that begins after it was said is not told: it has come for one request, whose answer says that
    /// there is no second.
    fn new(hang_up: &'a HangUp) -> Self {
        let told = hang_up.was_said();
        Self {
            hang_up,
            place: None,
            told,
        }
    }

    /// True once: when it has been said and was not noticed before.
    fn now(&mut self, cx: &Context<'_>) -> bool {
        if self.hang_up.was_said() {
            return !std::mem::replace(&mut self.told, true);
        }
        // The task's waker stays the same for its life, so one place is enough.
        self.place
            .get_or_insert_with(|| self.hang_up.join(cx.waker().clone()));
        false
    }
}

impl Drop for Told<'_> {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            self.hang_up.leave(place);
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
