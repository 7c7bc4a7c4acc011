//! A caller that speaks HTTP/1.1: one request after the other.

use std::convert::Infallible;
use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use http::{HeaderMap, HeaderValue, Request, StatusCode, header};
use hyper::body::Incoming;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;

use crate::arriving::Arriving;
use crate::interim::Interim;
use crate::listener::callers::{Joined, Order};
use crate::listener::connection::Guarded;
use crate::request::attempt::Outgoing;
use crate::request::upgrade::Tunnel;
use crate::request::{self, Worker, headers};
use crate::snapshot::Entry;
use crate::snapshot::access::Source;
use crate::stream::{Between, Stream};
use crate::telemetry::metrics::Cut;

/// A head may be this large, all its headers together: Envoy's limit.
const HEAD_MAX: usize = 60 * 1024;

/// How much of a connection is buffered: a head, and of bodies what one read brings.
const BUFFER_MAX: usize = 64 * 1024;

/// Serves a connection to its end. Why it was cut, if it was.
pub(super) async fn serve(
    worker: Rc<Worker>,
    (entry, source): (Arc<Entry>, Rc<Source>),
    joined: Joined,
    mut stream: Stream,
) -> Option<Cut> {
    let between = stream.between();
    let caller = Rc::clone(&joined.caller);
    let keeps_case = worker.lease().keeps_case(&entry);
    let service = service_fn(move |mut request: Request<Incoming>| {
        let upgrade = hyper::upgrade::on(&mut request);
        let (worker, entry, under_way) = (Rc::clone(&worker), Arc::clone(&entry), caller.begin());
        let between = between.clone();
        let source = Rc::clone(&source);
        async move {
            let interim = Interim::new(request.version());
            let mut request = Outgoing::new(request.map(Arriving::Http1));
            let handled = request::handle(&worker, (&entry, &source), &mut request, &interim);
            let mut response = with_interim(pin!(handled), &interim, &between).await;
            if response.body().is_last() || worker.drain.is_draining() {
                // RFC 9112 section 9.6: says that this connection takes no further request, so that a caller which
                // keeps to it opens its next one elsewhere and none is lost. After a request that HTTP does not allow
                // nobody knows where the next one begins.
                let close = HeaderValue::from_static("close");
                response.headers_mut().insert(header::CONNECTION, close);
            }
            if let Some(tunnel) = Tunnel::of(&mut response) {
                worker.drain.spawn_local(switched(
                    upgrade,
                    tunnel,
                    (Rc::clone(&worker), Rc::clone(&source)),
                ));
            }
            Ok::<_, Infallible>(response.map(|body| Guarded::new(body, under_way)))
        }
    });
    let connection = http1::Builder::new()
        // Silence is watched by `callers`, for all connections at once.
        .header_read_timeout(None)
        .max_header_size(HEAD_MAX)
        .max_buf_size(BUFFER_MAX)
        // A proxy passes a date on; it does not make one up.
        .auto_date_header(false)
        .preserve_header_case(keeps_case)
        .serve_connection(
            Heard {
                stream,
                heard: Arc::clone(joined.caller.heard()),
            },
            service,
        )
        .with_upgrades();
    let mut connection = pin!(connection);
    let ended = std::future::poll_fn(|cx| {
        match joined.caller.told(cx) {
            None => {}
            Some(Order::HangUp) => connection.as_mut().graceful_shutdown(),
            Some(Order::TooSilent) => return Poll::Ready(Ok(Some(Cut::Silent))),
            Some(Order::Cut) => return Poll::Ready(Ok(Some(Cut::Unread))),
            Some(Order::Revoked) => return Poll::Ready(Ok(Some(Cut::Revoked))),
        }
        connection.as_mut().poll(cx).map_ok(|()| None)
    });
    ended.await.unwrap_or_else(|error| {
        tracing::debug!(%error, "a connection ended early");
        None
    })
}

/// The answer, once what the endpoint said before it is written, which is done as it comes.
async fn with_interim<T>(
    mut handled: Pin<&mut impl Future<Output = T>>,
    interim: &Interim,
    between: &Between,
) -> T {
    let mut answer = None;
    std::future::poll_fn(|cx| {
        if answer.is_none() {
            if let Poll::Ready(response) = handled.as_mut().poll(cx) {
                answer = Some(response);
            }
            while let Some((status, mut fields)) = interim.next() {
                headers::prepare_interim(&mut fields);
                between.put(&interim_head(status, &fields));
            }
        }
        ready!(between.poll_written(cx));
        answer.take().map_or(Poll::Pending, Poll::Ready)
    })
    .await
}

/// RFC 9112 section 4: names and values are the http crate's, which holds none that could end a line.
fn interim_head(status: StatusCode, fields: &HeaderMap) -> Vec<u8> {
    let reason = status.canonical_reason().unwrap_or("Interim");
    let mut head = format!("HTTP/1.1 {} {reason}\r\n", status.as_str()).into_bytes();
    for (name, value) in fields {
        for piece in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            head.extend_from_slice(piece);
        }
    }
    head.extend_from_slice(b"\r\n");
    head
}

/// What follows an answer that switched protocols, once the caller has the answer.
async fn switched(upgrade: OnUpgrade, tunnel: Box<Tunnel>, (worker, source): (Rc<Worker>, Rc<Source>)) {
    match upgrade.await {
        Ok(caller) => match caller.downcast::<Heard>() {
            Ok(caller) => {
                let stream = caller.io.stream.into_tunnel(caller.read_buf);
                tunnel.run(stream, (&worker, &source)).await;
            }
            Err(_) => tracing::error!("a connection that was switched is none of this listener's"),
        },
        Err(error) => tracing::debug!(%error, "the caller left before its connection was switched"),
    }
}

/// A caller's connection that tells when something of it is heard.
#[derive(Debug)]
struct Heard {
    stream: Stream,
    heard: Arc<AtomicBool>,
}

impl Read for Heard {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let read = ready!(Read::poll_read(Pin::new(&mut self.stream), cx, buffer));
        self.heard.store(true, Ordering::Relaxed);
        Poll::Ready(read)
    }
}

impl Write for Heard {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Write::poll_write(Pin::new(&mut self.stream), cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Write::poll_write_vectored(Pin::new(&mut self.stream), cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        Write::is_write_vectored(&self.stream)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Write::poll_flush(Pin::new(&mut self.stream), cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Write::poll_shutdown(Pin::new(&mut self.stream), cx)
    }
}
