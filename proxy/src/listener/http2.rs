//! A caller that speaks HTTP/2: many requests at once, each a stream and a task of its own.
//!
//! The frames and what a peer may do to them are `h2`'s; this hands each request to `request::handle` and its answer
//! back to its stream. One stream can be cut without its siblings.

use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::{HeaderMap, Method, Request, Response, StatusCode, Version};
use http_body::Body;

use crate::arriving::Arriving;
use crate::frames::{Allowance, Watched};
use crate::http2::{self, HEADERS_MAX, Received, SEND_BUFFER_MAX, STREAM_WINDOW, SendFailed, Sent};
use crate::interim::Interim;
use crate::listener::callers::{Joined, Order, UnderWay};
use crate::listener::connection::Guarded;
use crate::request::attempt::Outgoing;
use crate::request::upgrade::Tunnel;
use crate::request::{self, Worker, headers};
use crate::snapshot::Entry;
use crate::snapshot::access::Source;
use crate::stream::Stream;
use crate::telemetry::metrics::Cut;

/// Requests that a caller may have under way at once on one connection: Go's default for servers, over RFC 9113
/// section 6.5.2's "no smaller than 100".
const STREAMS_MAX: u32 = 250;

/// What a caller may send on one connection before we have passed it on: full windows of 32 streams whose endpoints do
/// not read leave the others theirs, and one caller can make us hold no more than this.
const CONNECTION_WINDOW: u32 = 32 * STREAM_WINDOW;

/// Streams that the caller opened and took back before we saw them, at once: past this it is no caller that changed
/// its mind but a flood of resets (CVE-2023-44487), and the connection ends with ENHANCE_YOUR_CALM.
const RESETS_UNSEEN_MAX: usize = 20;

/// Streams that we had to reset because the caller broke the rules, in the life of a connection: past this it ends
/// (CVE-2025-8671). Streams beyond [`STREAMS_MAX`] count too, which a caller may open in good faith before it knows
/// our settings, so that this leaves a burst of a thousand its place.
const RESETS_FORCED_MAX: usize = 1_024;

/// How long a caller that is cut off has to take the GOAWAY that says why. One that does not read is not waited for any
/// longer.
const GOODBYE_MAX: Duration = Duration::from_secs(1);

/// Serves a connection to its end. Why it was cut, if it was.
pub(super) async fn serve(
    worker: Rc<Worker>,
    (entry, source): (Arc<Entry>, Rc<Source>),
    joined: Joined,
    stream: Stream,
) -> Option<Cut> {
    connection(worker, (entry, source), joined, stream)
        .await
        .unwrap_or_else(|error| {
            tracing::debug!(%error, "an HTTP/2 connection ended early");
            // What `h2` itself found wrong; what the caller says is its own will.
            let found = error.is_library() && error.is_go_away();
            error.reason().filter(|_| found).map(cut_for)
        })
}

fn cut_for(reason: h2::Reason) -> Cut {
    match reason {
        h2::Reason::ENHANCE_YOUR_CALM => Cut::Flood,
        _ => Cut::Protocol,
    }
}

/// What a connection may cost.
fn limits() -> h2::server::Builder {
    let mut builder = h2::server::Builder::new();
    builder
        .max_concurrent_streams(STREAMS_MAX)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(HEADERS_MAX)
        .max_send_buffer_size(SEND_BUFFER_MAX)
        .max_pending_accept_reset_streams(RESETS_UNSEEN_MAX)
        .max_local_error_reset_streams(Some(RESETS_FORCED_MAX))
        .enable_connect_protocol();
    builder
}

async fn connection(
    worker: Rc<Worker>,
    (entry, source): (Arc<Entry>, Rc<Source>),
    joined: Joined,
    stream: Stream,
) -> Result<Option<Cut>, h2::Error> {
    let caller = &joined.caller;
    let allowance = caller.allowance().cloned().unwrap_or_default();
    let handshake = limits().handshake::<_, Bytes>(Watched::caller(stream, Rc::clone(&allowance)));
    let mut handshake = pin!(handshake);
    let shaken = std::future::poll_fn(|cx| match caller.told(cx) {
        Some(_) => Poll::Ready(None),
        None => handshake.as_mut().poll(cx).map(Some),
    });
    let Some(connection) = shaken.await else {
        return Ok(Some(Cut::Silent));
    };
    let mut connection = connection?;
    if worker.drain.is_draining() {
        connection.graceful_shutdown();
    }
    let mut told_to_go = false;
    loop {
        let accepted = std::future::poll_fn(|cx| {
            match caller.told(cx) {
                None => {}
                Some(Order::HangUp) => connection.graceful_shutdown(),
                // A peer that does not even answer a goodbye is left.
                Some(Order::TooSilent) if told_to_go => return Poll::Ready(Err(Cut::Silent)),
                Some(Order::TooSilent) => {
                    told_to_go = true;
                    connection.graceful_shutdown();
                }
                Some(Order::Cut) => return Poll::Ready(Err(Cut::Unread)),
                Some(Order::Revoked) => return Poll::Ready(Err(Cut::Revoked)),
            }
            let accepted = connection.poll_accept(cx);
            match allowance.verdict() {
                Some(reason) if accepted.is_pending() => {
                    connection.abrupt_shutdown(reason);
                    Poll::Ready(Err(cut_for(reason)))
                }
                _ => accepted.map(Ok),
            }
        });
        let accepted = match accepted.await {
            Ok(Some(accepted)) => accepted,
            Ok(None) => return Ok(None),
            Err(cut) => {
                if allowance.verdict().is_some() {
                    // The GOAWAY waits behind what the caller has not read yet, such as answers to its flood of PING.
                    let said = std::future::poll_fn(|cx| connection.poll_closed(cx));
                    let _ = tokio::time::timeout(GOODBYE_MAX, said).await;
                }
                return Ok(Some(cut));
            }
        };
        let (request, mut respond) = accepted?;
        if caller.overstays() {
            // RFC 9113 section 8.7: nothing of it was done, so that it may be sent again elsewhere.
            respond.send_reset(h2::Reason::REFUSED_STREAM);
            continue;
        }
        let (request, receive) = arrived(request, &allowance);
        let exchange = exchange(
            Rc::clone(&worker),
            (Arc::clone(&entry), Rc::clone(&source)),
            (caller.begin(), Rc::clone(&allowance)),
            (request, receive),
            respond,
        );
        // Boxed, because a task is moved about ten times until it stands where it runs, and once more at each end: that were
        // some kilobytes for each request.
        tokio::task::spawn_local(Box::pin(exchange));
    }
}

/// A request as it goes on, and the caller's side of the tunnel that it asks for, if it does. It is boxed: a thousand requests
/// wait at once, and what each of them keeps is what the processor's cache must hold.
fn arrived(request: Request<RecvStream>, allowance: &Rc<Allowance>) -> (Box<Outgoing>, Option<RecvStream>) {
    let (head, stream) = request.into_parts();
    let (body, receive) = if head.method == Method::CONNECT {
        (Arriving::Nothing, Some(stream))
    } else {
        let body = Received::new(stream, &head.headers, Rc::clone(allowance));
        (Arriving::Http2(body), None)
    };
    (Box::new(Outgoing::new(Request::from_parts(head, body))), receive)
}

/// One request and its answer.
async fn exchange(
    worker: Rc<Worker>,
    (entry, source): (Arc<Entry>, Rc<Source>),
    (under_way, allowance): (UnderWay, Rc<Allowance>),
    (request, receive): (Box<Outgoing>, Option<RecvStream>),
    mut respond: SendResponse<Bytes>,
) {
    let interim = Interim::new(Version::HTTP_2);
    let answered = {
        // It ends before its answer is sent: what was kept of it for another attempt is needed no more.
        let mut request = request;
        let handled = request::handle(&worker, (&entry, &source), &mut request, &interim);
        let mut handled = pin!(handled);
        std::future::poll_fn(|cx| {
            let handled = handled.as_mut().poll(cx);
            while let Some((status, fields)) = interim.next() {
                if respond.poll_reset(cx).is_ready() {
                    return Poll::Ready(None);
                }
                inform(&mut respond, status, fields);
            }
            if let Poll::Ready(response) = handled {
                return Poll::Ready(Some(response));
            }
            // The caller took its request back, or is gone.
            respond.poll_reset(cx).map(|_| None)
        })
        .await
    };
    let Some(mut response) = answered else {
        under_way.was_taken_back();
        return;
    };
    if allowance.is_malformed(|| respond.stream_id().as_u32()) {
        // RFC 9113 section 8.1.1: "Malformed requests or responses that are detected MUST be treated as a stream error".
        respond.send_reset(h2::Reason::PROTOCOL_ERROR);
        return;
    }
    if let (Some(tunnel), Some(receive)) = (Tunnel::of(&mut response), receive) {
        let (head, _) = response.into_parts();
        let answer = Response::from_parts(head, ());
        if let Ok(send) = respond.send_response(answer, false) {
            let caller = http2::Tunnel::new(send, receive, under_way);
            // Boxed, because few requests come here, and all would have to have room for it.
            Box::pin(tunnel.run(caller, (&worker, &source))).await;
        }
        return;
    }
    let (head, body) = response.into_parts();
    let body = Guarded::new(body, under_way);
    let nothing = body.is_end_stream();
    // An error here means that the stream or its connection is gone.
    let Ok(stream) = respond.send_response(Response::from_parts(head, ()), nothing) else {
        return;
    };
    if !nothing {
        send_body(Sent::new(stream, body)).await;
    }
}

/// Hands on what an endpoint said before its answer. A stream that takes no more shows with the answer.
fn inform(respond: &mut SendResponse<Bytes>, status: StatusCode, mut fields: HeaderMap) {
    headers::prepare_interim(&mut fields);
    let mut head = Response::new(());
    *head.status_mut() = status;
    *head.headers_mut() = fields;
    if let Err(error) = respond.send_informational(head) {
        tracing::debug!(%error, "an interim answer was not taken");
    }
}

async fn send_body(mut sent: Sent<Guarded>) {
    // The head is handed over. Until there is room for the body it is not asked for, and whether the caller takes it
    // must be watched from here.
    sent.body().under_way.handed_over(true);
    let over = std::future::poll_fn(|cx| {
        if let Poll::Ready(over) = sent.poll(cx) {
            return Poll::Ready(Some(over));
        }
        sent.body().under_way.poll_cut(cx).map(|_| None)
    });
    match over.await {
        // RFC 9113 section 8.1: an answer that is not whole must not look as if it were.
        Some(Err(SendFailed::Body(cut))) => sent.reset(cut.code.unwrap_or(h2::Reason::INTERNAL_ERROR)),
        None => sent.reset(h2::Reason::CANCEL),
        Some(Err(SendFailed::Stream(error))) => {
            tracing::debug!(%error, "the caller left its answer");
            sent.body().under_way.was_taken_back();
        }
        Some(Ok(())) => {}
    }
}
