//! Endpoints that speak HTTP/2: they leave, refuse, run out of streams, break off, or do not keep to the protocol.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use outrigger_tests::http2::frame::{self, code, flag, kind, setting};
use outrigger_tests::http2::{Answers, Caller, Counts, Http2Upstream, Raw, hpack, serve};
use outrigger_tests::wait::within;
use outrigger_tests::{Ask, Client, Load, LoadSpec, ServiceFile, Sidecar};

/// A service whose endpoints speak HTTP/2, with one route with these fields.
fn service(endpoints: &[SocketAddr], fields: &str) -> ServiceFile {
    ServiceFile::new("reviews")
        .field("protocol: http2")
        .backend("v1", endpoints)
        .route("default", &[("v1", 1)], fields)
}

fn gets_and_posts() -> Vec<Ask> {
    let get = || Ask::get("/").host("reviews");
    vec![get(), Ask::post("/", "x").host("reviews"), get()]
}

#[tokio::test]
async fn an_endpoint_that_says_goodbye_under_load_fails_no_request() {
    let answers = Answers {
        goaway_after: Some(50),
        body: b"hello".to_vec(),
        ..Answers::default()
    };
    let upstream = Http2Upstream::answering(answers).await;
    let sidecar = Sidecar::of(service(&[upstream.address()], "")).await;
    let load = Load::start(LoadSpec {
        asks: gets_and_posts(),
        ..LoadSpec::new(sidecar.outbound(), "reviews", 16)
    });
    load.has_done(2_000).await;
    load.stop().await.assert_clean();
    assert!(
        upstream.connections() > 20,
        "{} connections",
        upstream.connections()
    );
}

#[tokio::test]
async fn a_stream_that_was_refused_is_sent_again_whatever_its_method() {
    let answers = Answers {
        reset_first: Some((1, code::REFUSED_STREAM)),
        ..Answers::default()
    };
    let upstream = Http2Upstream::answering(answers).await;
    let sidecar = Sidecar::of(service(&[upstream.address()], "")).await;
    let reply = sidecar.client().send(Ask::post("/", "x").host("reviews")).await;
    assert_eq!((reply.status(), reply.reason()), (200, None), "{reply:?}");
    assert_eq!(upstream.requests(), 2);
}

#[tokio::test]
async fn a_stream_above_the_last_of_a_goodbye_is_sent_again_whatever_its_method() {
    // Its first connection takes the request and says that it has seen none.
    let script = move |stream: tokio::net::TcpStream, number: u64, counts: Arc<Counts>| async move {
        if number > 0 {
            return serve(stream, number, counts, Answers::default()).await;
        }
        let mut raw = Raw::accept(stream, &[]).await?;
        while raw.next().await?.kind != kind::HEADERS {}
        raw.send(&frame::goaway(0, code::NO_ERROR)).await?;
        while raw.frame().await?.is_some() {}
        Ok(())
    };
    let upstream = Http2Upstream::start(script).await;
    let sidecar = Sidecar::of(service(&[upstream.address()], "")).await;
    let reply = sidecar.client().send(Ask::post("/", "x").host("reviews")).await;
    assert_eq!((reply.status(), reply.reason()), (200, None), "{reply:?}");
    assert_eq!((upstream.connections(), upstream.requests()), (2, 1));
}

#[tokio::test]
async fn a_stream_that_was_reset_for_another_reason_is_not_sent_again_if_it_may_have_been_served() {
    for (code, reason) in [
        (code::ENHANCE_YOUR_CALM, "enhance-your-calm"),
        (code::INTERNAL_ERROR, "upstream-reset"),
        (code::CANCEL, "upstream-reset"),
        (code::PROTOCOL_ERROR, "upstream-reset"),
    ] {
        let answers = Answers {
            reset_first: Some((1, code)),
            ..Answers::default()
        };
        let upstream = Http2Upstream::answering(answers).await;
        let sidecar = Sidecar::of(service(&[upstream.address()], "")).await;
        let reply = sidecar.client().send(Ask::post("/", "x").host("reviews")).await;
        assert_eq!((reply.status(), reply.reason()), (502, Some(reason)), "{code}");
        assert_eq!(upstream.requests(), 1, "{code}");
    }
}

#[tokio::test]
async fn fifty_requests_at_once_succeed_where_a_connection_has_room_for_one() {
    let answers = Answers {
        settings: vec![(setting::MAX_CONCURRENT_STREAMS, 1)],
        delay: Duration::from_millis(50),
        ..Answers::default()
    };
    let upstream = Http2Upstream::answering(answers).await;
    let sidecar = Sidecar::of(service(&[upstream.address()], "")).await;
    let mut asking = tokio::task::JoinSet::new();
    let client = Client::new(sidecar.outbound());
    for number in 0..50 {
        let method = if number % 2 == 0 { "GET" } else { "POST" };
        asking.spawn(async move { client.send(Ask::new(method, "/").host("reviews")).await });
    }
    while let Some(reply) = asking.join_next().await {
        let reply = reply.unwrap();
        assert_eq!((reply.status(), reply.reason()), (200, None), "{reply:?}");
    }
    assert_eq!(upstream.requests(), 50);
    assert!(upstream.connections() > 1, "{}", upstream.connections());
}

#[tokio::test]
async fn a_connection_to_an_endpoint_takes_a_hundred_streams_at_once_however_many_it_allows() {
    // The endpoint names no bound of its own.
    let upstream = large_or_small().await;
    let file = service(&[upstream.address()], "timeout: { request: 0s }");
    let spec = outrigger_tests::SidecarSpec::text("a", &file.to_string()).with("--workers", "1");
    let sidecar = Sidecar::start(spec).await;
    let mut caller = Caller::open_with(sidecar.outbound(), &[(setting::INITIAL_WINDOW_SIZE, 0)])
        .await
        .unwrap();
    let mut held = Vec::new();
    for _ in 0..201 {
        held.push(caller.get("reviews", "/stuck").await.unwrap());
    }
    for stream in &held {
        while caller.so_far(*stream).status() == 0 {
            assert!(within("a head", caller.take()).await.unwrap());
        }
    }
    assert_eq!(upstream.connections(), 3, "one hundred, one hundred, and one");
}

/// Answers `/stuck` with more than any window takes, and the rest with little.
async fn large_or_small() -> Http2Upstream {
    let script = move |stream: tokio::net::TcpStream, _number: u64, counts: Arc<Counts>| async move {
        let mut raw = Raw::accept(stream, &[]).await?;
        loop {
            let Some(frame) = raw.frame().await? else {
                return Ok(());
            };
            if frame.kind == kind::HEADERS {
                let fields = raw.fields(&frame).await?;
                counts.requests.fetch_add(1, Ordering::SeqCst);
                let stuck = fields
                    .iter()
                    .any(|(name, value)| name == ":path" && value == "/stuck");
                let head = frame::headers(frame.stream, 0, &[(":status", "200")]);
                let pieces = match stuck {
                    // The whole window of a stream, and no end.
                    true => frame::data(frame.stream, 0, [b'x'; 16_000]).repeat(8),
                    false => frame::data(frame.stream, flag::END_STREAM, "small"),
                };
                raw.send(&[head, pieces].concat()).await?;
            } else if frame.kind == kind::PING && !frame.has(flag::ACK) {
                raw.send(&frame::frame(kind::PING, flag::ACK, 0, &frame.payload))
                    .await?;
            }
        }
    };
    Http2Upstream::start(script).await
}

#[tokio::test]
async fn readers_that_are_stuck_do_not_stall_their_siblings_on_the_way_from_an_endpoint() {
    let upstream = large_or_small().await;
    let file = service(&[upstream.address()], "timeout: { request: 0s }");
    let spec = outrigger_tests::SidecarSpec::text("a", &file.to_string()).with("--workers", "1");
    let sidecar = Sidecar::start(spec).await;
    // Those that never open their windows, on one connection with one that does.
    let mut caller = Caller::open_with(sidecar.outbound(), &[(setting::INITIAL_WINDOW_SIZE, 0)])
        .await
        .unwrap();
    let mut stuck = Vec::new();
    for _ in 0..20 {
        stuck.push(caller.get("reviews", "/stuck").await.unwrap());
    }
    for stream in &stuck {
        while caller.so_far(*stream).status() == 0 {
            assert!(within("a head", caller.take()).await.unwrap());
        }
    }
    for _ in 0..100 {
        let stream = caller.get("reviews", "/").await.unwrap();
        caller.raw.send(&frame::window(stream, 100)).await.unwrap();
        let reply = within("an answer beside the stuck ones", caller.reply(stream))
            .await
            .unwrap();
        assert_eq!(reply.body, b"small");
    }
    assert_eq!(
        upstream.connections(),
        1,
        "they share a connection on that side too"
    );
}

#[tokio::test]
async fn uploads_that_are_stuck_do_not_stall_their_siblings_on_the_way_to_an_endpoint() {
    // An endpoint that opens no window for `/stuck`, and answers the rest as soon as they have ended.
    let script = move |stream: tokio::net::TcpStream, _number: u64, _counts: Arc<Counts>| async move {
        let mut raw = Raw::accept(stream, &[]).await?;
        let mut held = std::collections::HashSet::new();
        loop {
            let Some(frame) = raw.frame().await? else {
                return Ok(());
            };
            if frame.kind == kind::HEADERS {
                let fields = raw.fields(&frame).await?;
                if fields
                    .iter()
                    .any(|(name, value)| name == ":path" && value == "/stuck")
                {
                    held.insert(frame.stream);
                }
            }
            let ends = matches!(frame.kind, kind::HEADERS | kind::DATA) && frame.has(flag::END_STREAM);
            if ends && !held.contains(&frame.stream) {
                let head = frame::headers(frame.stream, flag::END_STREAM, &[(":status", "200")]);
                raw.send(&head).await?;
            }
            // The connection's window is kept open; those of the streams are not.
            let count = u32::try_from(frame.payload.len()).unwrap_or_default();
            if frame.kind == kind::DATA && count > 0 {
                raw.send(&frame::window(0, count)).await?;
            }
        }
    };
    let upstream = Http2Upstream::start(script).await;
    let file = service(&[upstream.address()], "timeout: { request: 0s, idle: 0s }");
    let spec = outrigger_tests::SidecarSpec::text("a", &file.to_string()).with("--workers", "1");
    let sidecar = Sidecar::start(spec).await;
    let mut caller = Caller::open(sidecar.outbound()).await.unwrap();
    for _ in 0..10 {
        let stream = caller.stream();
        let fields = outrigger_tests::http2::request("POST", "reviews", "/stuck");
        let piece = frame::data(stream, 0, [b'x'; 16_000]);
        caller
            .raw
            .send(&[frame::headers(stream, 0, &fields), piece.repeat(8)].concat())
            .await
            .unwrap();
    }
    for _ in 0..50 {
        let stream = caller.post("reviews", "/", b"small").await.unwrap();
        let reply = within("an answer beside the stuck ones", caller.reply(stream))
            .await
            .unwrap();
        assert_eq!(reply.status(), 200);
    }
    assert_eq!(upstream.connections(), 1);
}

/// Begins an answer and resets it.
async fn breaks_off(with: u32) -> Http2Upstream {
    let script = move |stream: tokio::net::TcpStream, _number: u64, _counts: Arc<Counts>| async move {
        let mut raw = Raw::accept(stream, &[]).await?;
        loop {
            let Some(frame) = raw.frame().await? else {
                return Ok(());
            };
            if frame.kind == kind::HEADERS {
                raw.fields(&frame).await?;
                let head = frame::headers(frame.stream, 0, &[(":status", "200")]);
                let piece = frame::data(frame.stream, 0, "the beginning");
                raw.send(&[head, piece].concat()).await?;
                // So that what has begun is on its way before the end comes.
                tokio::time::sleep(Duration::from_millis(50)).await;
                raw.send(&frame::reset(frame.stream, with)).await?;
            }
        }
    };
    Http2Upstream::start(script).await
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_seen_to_break_off_by_both_kinds_of_callers() {
    let upstream = breaks_off(code::INTERNAL_ERROR).await;
    let sidecar = Sidecar::of(service(&[upstream.address()], "")).await;
    let mut caller = Caller::open(sidecar.outbound()).await.unwrap();
    let stream = caller.get("reviews", "/").await.unwrap();
    let reply = within("the end", caller.reply(stream)).await.unwrap();
    assert_eq!(
        (reply.status(), reply.ended, reply.reset),
        (200, false, Some(code::INTERNAL_ERROR))
    );
    let reply = sidecar.client().get("reviews", "/").await;
    assert_eq!(
        (reply.status(), reply.body.bytes.as_slice()),
        (200, &b"the beginning"[..])
    );
    assert!(reply.body.cut.is_some(), "it looks whole");
    let broken = [("reason", "upstream-reset")];
    sidecar
        .metrics_when("both", |metrics| {
            metrics.sum("outrigger_requests_total", &broken) == 2.0
        })
        .await;
}

/// What an endpoint does in place of an answer, and what the caller is told.
struct Fault {
    name: &'static str,
    /// The bytes, for a request on this stream.
    says: fn(u32) -> Vec<u8>,
    status: u16,
    reasons: &'static [&'static str],
}

const PROTOCOL: &[&str] = &["upstream-protocol"];
const RESET: &[&str] = &["upstream-reset"];
/// An end without a word may come before or after what was wrong is looked at.
const EITHER: &[&str] = &["upstream-protocol", "upstream-reset"];

/// A head with one field of four thousand bytes so many times, each but the first of which is one byte.
fn again_and_again(stream: u32, times: usize) -> Vec<u8> {
    let field = hpack::remembered(b"x", &[b'v'; 3_900]);
    let block = [hpack::indexed(8), field, hpack::indexed(62).repeat(times)].concat();
    frame::header_block(stream, flag::END_STREAM | flag::END_HEADERS, &block)
}

// A table is read by its rows.
#[rustfmt::skip]
fn faults() -> Vec<Fault> {
    let fault = |name, says, reasons| Fault {
        name,
        says,
        status: 502,
        reasons,
    };
    vec![
        fault("DATA before HEADERS", |stream| frame::data(stream, flag::END_STREAM, "x"), PROTOCOL),
        fault("no :status", |stream| frame::headers(stream, flag::END_STREAM, &[("x", "y")]), PROTOCOL),
        fault("a :status that is no number", |stream| frame::headers(stream, flag::END_STREAM, &[(":status", "ok")]), PROTOCOL),
        fault("a :status of two digits", |stream| frame::headers(stream, flag::END_STREAM, &[(":status", "20")]), PROTOCOL),
        fault("two of :status", |stream| frame::headers(stream, flag::END_STREAM, &[(":status", "200"), (":status", "404")]), PROTOCOL),
        fault("a request's pseudo-header", |stream| frame::headers(stream, flag::END_STREAM, &[(":status", "200"), (":path", "/")]), PROTOCOL),
        fault("a request's pseudo-header to be remembered", |stream| frame::header_block(stream, flag::END_STREAM | flag::END_HEADERS, &[hpack::indexed(8), vec![0x44], hpack::string(b"/")].concat()), PROTOCOL),
        fault("a request's pseudo-header in a head that does not end", |stream| frame::headers(stream, 0, &[(":status", "200"), (":authority", "x")]), PROTOCOL),
        fault("an unknown pseudo-header", |stream| frame::headers(stream, flag::END_STREAM, &[(":status", "200"), (":x", "y")]), PROTOCOL),
        fault("a pseudo-header after a field", |stream| frame::headers(stream, flag::END_STREAM, &[("x", "y"), (":status", "200")]), PROTOCOL),
        fault("an upper case name", |stream| frame::headers(stream, flag::END_STREAM, &[(":status", "200"), ("X-Up", "y")]), PROTOCOL),
        fault("LF in a value", |stream| frame::headers(stream, flag::END_STREAM, &[(":status", "200"), ("x", "a\nb")]), PROTOCOL),
        fault("CR and LF in a value", |stream| frame::headers(stream, flag::END_STREAM, &[(":status", "200"), ("x", "a\r\nset-cookie: b")]), PROTOCOL),
        fault("connection: close", |stream| frame::headers(stream, flag::END_STREAM, &[(":status", "200"), ("connection", "close")]), PROTOCOL),
        fault("transfer-encoding", |stream| frame::headers(stream, flag::END_STREAM, &[(":status", "200"), ("transfer-encoding", "chunked")]), PROTOCOL),
        fault("a length and no body", |stream| frame::headers(stream, flag::END_STREAM, &[(":status", "200"), ("content-length", "5")]), PROTOCOL),
        fault("a length that is no number", |stream| frame::headers(stream, flag::END_STREAM, &[(":status", "200"), ("content-length", "x")]), PROTOCOL),
        fault("101", |stream| frame::headers(stream, flag::END_STREAM, &[(":status", "101")]), PROTOCOL),
        fault("100 that ends", |stream| frame::headers(stream, flag::END_STREAM, &[(":status", "100")]), PROTOCOL),
        fault("an empty header block", |stream| frame::header_block(stream, flag::END_STREAM | flag::END_HEADERS, &[]), PROTOCOL),
        fault("a header block that cannot be decoded", |stream| frame::header_block(stream, flag::END_STREAM | flag::END_HEADERS, &[0x80]), PROTOCOL),
        fault("fields without measure", |stream| again_and_again(stream, 10_000), PROTOCOL),
        fault("more fields than are taken", |stream| again_and_again(stream, 20), PROTOCOL),
        fault("a header block without end", |stream| [frame::header_block(stream, 0, &hpack::indexed(8)), frame::continuation(stream, 0, &hpack::literal(b"x", &[b'v'; 8_000])).repeat(100)].concat(), PROTOCOL),
        fault("a header block interrupted", |stream| [frame::header_block(stream, 0, &hpack::indexed(8)), frame::ping([0; 8])].concat(), PROTOCOL),
        fault("a frame too large", |stream| frame::data(stream, 0, [0; 16_385]), PROTOCOL),
        fault("an answer on a stream that nobody opened", |stream| frame::headers(stream + 2, flag::END_STREAM, &[(":status", "200")]), PROTOCOL),
        fault("an answer on a stream of its own", |_| frame::headers(2, flag::END_STREAM, &[(":status", "200")]), PROTOCOL),
        fault("an answer on the connection", |_| frame::headers(0, flag::END_STREAM, &[(":status", "200")]), PROTOCOL),
        fault("a promise", |stream| frame::frame(kind::PUSH_PROMISE, flag::END_HEADERS, stream, &[&2_u32.to_be_bytes()[..], &[0x82, 0x86, 0x84]].concat()), PROTOCOL),
        fault("a window of nothing", |_| frame::window(0, 0), PROTOCOL),
        fault("a window that overflows", |_| frame::window(0, 0x7fff_ffff), PROTOCOL),
        fault("a window of its stream that overflows", |stream| frame::window(stream, 0x7fff_ffff), EITHER),
        fault("SETTINGS of five bytes", |_| frame::frame(kind::SETTINGS, 0, 0, &[0; 5]), PROTOCOL),
        fault("PING of seven bytes", |_| frame::frame(kind::PING, 0, 0, &[0; 7]), PROTOCOL),
        fault("GOAWAY of seven bytes", |_| frame::frame(kind::GOAWAY, 0, 0, &[0; 7]), PROTOCOL),
        fault("HTTP/1.1", |_| b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".to_vec(), EITHER),
        fault("RST_STREAM with INTERNAL_ERROR", |stream| frame::reset(stream, code::INTERNAL_ERROR), RESET),
        fault("RST_STREAM with NO_ERROR", |stream| frame::reset(stream, code::NO_ERROR), RESET),
        fault("GOAWAY for its stream with an error, and the end", |stream| frame::goaway(stream, code::INTERNAL_ERROR), RESET),
        fault("half a frame and the end", |_| vec![0, 0, 9], EITHER),
        fault("nothing but the end", |_| Vec::new(), RESET),
    ]
}

/// Takes a request on each connection and says what the fault says, then ends it. `/good` it answers.
async fn faulty(says: fn(u32) -> Vec<u8>) -> Http2Upstream {
    let script = move |stream: tokio::net::TcpStream, _number: u64, counts: Arc<Counts>| async move {
        let mut raw = Raw::accept(stream, &[]).await?;
        loop {
            let Some(frame) = raw.frame().await? else {
                return Ok(());
            };
            if frame.kind == kind::HEADERS {
                let fields = raw.fields(&frame).await?;
                let good = fields
                    .iter()
                    .any(|(name, value)| name == ":path" && value == "/good");
                if good {
                    raw.send(&frame::headers(
                        frame.stream,
                        flag::END_STREAM,
                        &[(":status", "200")],
                    ))
                    .await?;
                    continue;
                }
                // Only these are counted: `/good` may come on a connection that is about to end, and then comes again.
                counts.requests.fetch_add(1, Ordering::SeqCst);
                raw.send(&says(frame.stream)).await?;
                raw.finish().await?;
            }
        }
    };
    Http2Upstream::start(script).await
}

#[tokio::test]
async fn an_endpoint_that_does_not_keep_to_http2_is_a_502_that_says_so_and_nobody_else_suffers() {
    let good = Http2Upstream::answering(Answers::default()).await;
    let mut complaints = Vec::new();
    let faults = faults();
    let total = faults.len();
    for Fault {
        name,
        says,
        status,
        reasons,
    } in faults
    {
        let upstream = faulty(says).await;
        let file = service(&[upstream.address()], "timeout: { request: 10s }");
        let other = ServiceFile::new("ratings")
            .field("protocol: http2")
            .backend("v1", &[good.address()]);
        let mut sidecar = Sidecar::of(format!("{file}\n---\n{other}")).await;
        let client = sidecar.client();
        // One of another service, and one of the same that comes by another connection.
        let before = client.get("ratings", "/").await.status();
        let reply = client.send(Ask::post("/", "x").host("reviews")).await;
        let (after, again) = (
            client.get("ratings", "/").await.status(),
            client.get("reviews", "/good").await.status(),
        );
        let told = reply.reason().unwrap_or_default().to_owned();
        if reply.status() != status || !reasons.contains(&told.as_str()) {
            complaints.push(format!("{name}: {} {told}", reply.status()));
        }
        if (before, after, again) != (200, 200, 200) {
            complaints.push(format!("{name}: others were told {before}, {after}, {again}"));
        }
        if upstream.requests() != 1 {
            complaints.push(format!("{name}: a POST was sent {} times", upstream.requests()));
        }
        let panicked = sidecar
            .program()
            .log()
            .iter()
            .any(|line| line.contains("panicked"));
        assert!(!panicked && sidecar.program().is_running(), "{name}");
    }
    assert!(
        complaints.is_empty(),
        "{} of {total} wrong:\n{}",
        complaints.len(),
        complaints.join("\n")
    );
}
