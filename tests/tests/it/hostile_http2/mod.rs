//! Callers that speak HTTP/2 to do harm. In each: what the sidecar holds stays bounded, others are served meanwhile,
//! the one that does it is cut with the code for it, and a metric says so.

mod endpoints;
mod slow;
mod standing;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use outrigger_tests::http2::frame::{self, code, flag, kind, setting};
use outrigger_tests::http2::{Caller, Raw, code_name, hpack, request};
use outrigger_tests::upstream::Received;
use outrigger_tests::wait::{eventually, within};
use outrigger_tests::{Answer, Behaviour, Client, PATIENCE, ServiceFile, Sidecar, SidecarSpec, Upstream};
use tokio::io::AsyncWriteExt;

/// What the sidecar may hold under any of this beyond what it holds at rest: together 40 MB, of which the released
/// program needs 8 at rest. That of the tests has 10 MB more of code.
const MEMORY_MAX: u64 = 32 * 1024 * 1024;

/// Bytes of a flood that are written at once: some thousand small frames, so that a few such writes are a flood on the
/// slowest machine.
const TOGETHER: usize = 48 * 1024;

/// Frames that are written at once where they are nothing at all.
const TOGETHER_MAX: usize = 10_000;

/// A flood that has written so many frames and is still heard has not been cut.
const FRAMES_MAX: usize = 400_000;

/// `/slow` takes an hour.
fn answer(received: &Received) -> Answer {
    match received.target() {
        "/slow" => Answer::ok().after(Duration::from_secs(3600)),
        _ => Answer::ok(),
    }
}

struct Scene {
    /// Where the requests go, unless a test has another place for them.
    upstream: Upstream,
    sidecar: Sidecar,
    at_rest: u64,
}

impl Scene {
    async fn new(fields: &str) -> Self {
        let upstream = Upstream::start("a").await;
        upstream.behave(Behaviour::Call(answer));
        let address = upstream.address();
        Self::before(upstream, address, fields).await
    }

    /// One whose requests go to this address.
    async fn before(upstream: Upstream, address: SocketAddr, fields: &str) -> Self {
        let file = ServiceFile::new("reviews").backend("v1", &[address]);
        let file = file.route("default", &[("v1", 1)], fields);
        Self::started(upstream, SidecarSpec::text("a", &file.to_string())).await
    }

    async fn started(upstream: Upstream, spec: SidecarSpec) -> Self {
        let mut sidecar = Sidecar::start(spec).await;
        let at_rest = sidecar.program().memory_peak();
        Self {
            upstream,
            sidecar,
            at_rest,
        }
    }

    fn memory_is_bounded(&mut self) {
        let more = self.sidecar.program().memory_peak() - self.at_rest;
        assert!(more <= MEMORY_MAX, "{} kB more than at rest", more / 1024);
    }

    fn address(&self) -> SocketAddr {
        self.sidecar.outbound()
    }

    /// Runs this while others ask, each of whom must be answered, and looks at the memory in the end.
    async fn while_others_are_served<T>(&mut self, attack: impl Future<Output = T>) -> T {
        let (address, over) = (self.address(), Arc::new(AtomicBool::new(false)));
        let told = Arc::clone(&over);
        let others = tokio::spawn(async move {
            let mut served = 0;
            while !told.load(Ordering::SeqCst) || served == 0 {
                assert_eq!(Client::new(address).get("reviews", "/").await.status(), 200);
                let mut caller = Caller::open(address).await.unwrap();
                let stream = caller.get("reviews", "/").await.unwrap();
                assert_eq!(
                    within("an answer", caller.reply(stream)).await.unwrap().status(),
                    200
                );
                served += 1;
            }
        });
        let result = attack.await;
        over.store(true, Ordering::SeqCst);
        others.await.expect("others are served");
        self.memory_is_bounded();
        assert!(self.sidecar.program().is_running());
        result
    }

    /// Waits until so many connections have been cut for this, and sees that it is no more.
    async fn has_cut(&self, reason: &str, count: f64) {
        let what = format!("{count} connections cut for {reason}");
        let cut = eventually(&what, async || {
            Some(self.cut(reason).await).filter(|cut| *cut >= count)
        })
        .await;
        assert!((cut - count).abs() < 0.5, "{cut}, and not {what}");
    }

    async fn cut(&self, reason: &str) -> f64 {
        let labels = [("listener", "outbound"), ("reason", reason)];
        self.sidecar
            .metrics()
            .await
            .sum("outrigger_connections_cut_total", &labels)
    }
}

/// What became of a flood.
#[derive(Debug)]
struct Flooded {
    /// The code of the GOAWAY that ended it.
    code: Option<u32>,
    /// The last stream that was looked at, by the same.
    last: u32,
    /// How many times its frames were written.
    sent: usize,
}

/// Sends `opening`, then frames for as long as they are taken; `frames` makes the next of them.
async fn flood(address: SocketAddr, opening: Vec<u8>, mut frames: impl FnMut(usize) -> Vec<u8>) -> Flooded {
    let mut raw = Raw::open(address, &[]).await.unwrap();
    raw.send(&opening).await.unwrap();
    let mut writer = raw.writer();
    let reading = tokio::spawn(async move {
        let (mut code, mut last) = (None, 0);
        while let Ok(Some(frame)) = raw.frame().await {
            if frame.kind == kind::GOAWAY {
                (code, last) = (Some(frame.number(4)), frame.number(0));
            }
        }
        (code, last)
    });
    let mut sent = 0;
    while sent < FRAMES_MAX && !reading.is_finished() {
        let (mut bytes, before) = (Vec::new(), sent);
        while bytes.len() < TOGETHER && sent < before + TOGETHER_MAX {
            bytes.extend(frames(sent));
            sent += 1;
        }
        let written = tokio::time::timeout(PATIENCE, writer.write_all(&bytes)).await;
        if !matches!(written, Ok(Ok(()))) {
            break;
        }
        // So that the reading gets its turn on this thread.
        tokio::task::yield_now().await;
    }
    let (code, last) = within("the end of the flood", reading).await.unwrap();
    Flooded { code, last, sent }
}

fn head(stream: u32, path: &str) -> Vec<u8> {
    frame::headers(stream, flag::END_STREAM, &request("GET", "reviews", path))
}

fn open(stream: u32, path: &str) -> Vec<u8> {
    frame::headers(stream, 0, &request("POST", "reviews", path))
}

fn number(count: usize) -> u32 {
    u32::try_from(2 * count + 1).unwrap()
}

#[tokio::test]
async fn floods_of_frames_beside_the_point_are_cut() {
    let mut scene = Scene::new("timeout: { request: 0s }").await;
    let address = scene.address();
    let ping = frame::ping([0; 8]);
    let pong = frame::frame(kind::PING, flag::ACK, 0, &[1; 8]);
    let settings = frame::settings(&[(setting::MAX_FRAME_SIZE, 16_384)]);
    let window = frame::window(0, 1);
    let stream_window = frame::window(1, 1);
    let priority = frame::priority(7, 3);
    let nothing = frame::data(1, 0, "");
    let padding = frame::data(1, flag::PADDED, [200; 201]);
    let unknown = frame::frame(0x42, 0, 0, b"what?");
    let reset = frame::reset(1, code::CANCEL);
    let goaway = frame::goaway(0, 0);
    for (name, opening, frame) in [
        ("PING", vec![], ping),
        ("answers to PING", vec![], pong),
        ("SETTINGS", vec![], settings),
        ("WINDOW_UPDATE for the connection", vec![], window),
        ("WINDOW_UPDATE for a stream", open(1, "/"), stream_window),
        ("PRIORITY", vec![], priority),
        ("empty DATA", open(1, "/"), nothing),
        ("DATA of padding", open(1, "/"), padding),
        ("an unknown type", vec![], unknown),
        (
            "RST_STREAM for a stream that is over",
            [open(1, "/"), frame::reset(1, code::CANCEL)].concat(),
            reset,
        ),
        ("GOAWAY", open(1, "/"), goaway),
    ] {
        let before = scene.cut("flood").await;
        let flooded = scene
            .while_others_are_served(flood(address, opening, |_| frame.clone()))
            .await;
        let code = flooded.code;
        assert_eq!(
            code,
            Some(code::ENHANCE_YOUR_CALM),
            "{name}: {:?} after {} frames",
            code.map(code_name),
            flooded.sent
        );
        eventually(&format!("the metric of a flood of {name}"), async || {
            (scene.cut("flood").await > before).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn requests_that_are_taken_back_at_once_end_the_connection() {
    // Fewer than what h2 takes for a flood by itself when they are taken back unseen.
    const BEGUN: usize = 15;
    let mut scene = Scene::new("timeout: { request: 0s }").await;
    let address = scene.address();
    // The caller's frames come together, so that a request is gone before it was seen.
    let together = |count: usize| {
        [
            head(number(count), "/slow"),
            frame::reset(number(count), code::CANCEL),
        ]
        .concat()
    };
    let flooded = scene
        .while_others_are_served(flood(address, vec![], together))
        .await;
    assert_eq!(flooded.code, Some(code::ENHANCE_YOUR_CALM), "{flooded:?}");
    assert!(flooded.last < number(1_000), "{flooded:?}");
    // One that lets its requests begin before it takes them back.
    let slowly = async {
        let mut caller = Caller::open(address).await.unwrap();
        for count in (0..1_000_usize).step_by(BEGUN) {
            let streams = count..count + BEGUN;
            let heads: Vec<u8> = streams
                .clone()
                .flat_map(|count| head(number(count), "/slow"))
                .collect();
            let resets: Vec<u8> = streams
                .flat_map(|count| frame::reset(number(count), code::CANCEL))
                .collect();
            // An end shows in the reading.
            let _ = caller.raw.send(&[heads, frame::ping([9; 8])].concat()).await;
            loop {
                match caller.raw.frame().await {
                    Ok(Some(frame)) if frame.kind == kind::PING => break,
                    Ok(Some(frame)) if frame.kind == kind::GOAWAY => return (Some(frame.number(4)), count),
                    Ok(Some(_)) => {}
                    Ok(None) | Err(_) => return (None, count),
                }
            }
            let _ = caller.raw.send(&resets).await;
        }
        (None, 1_000)
    };
    let (code, streams) = scene.while_others_are_served(slowly).await;
    assert_eq!(
        (code, streams < 1_000),
        (Some(code::ENHANCE_YOUR_CALM), true),
        "after {streams} streams"
    );
    scene.has_cut("flood", 2.0).await;
    assert!(scene.upstream.requests() < 1_200, "{}", scene.upstream.requests());
}

#[tokio::test]
async fn resets_that_the_caller_provokes_from_us_end_the_connection() {
    let mut scene = Scene::new("timeout: { request: 0s }").await;
    let address = scene.address();
    let overflow = |count: usize| {
        [
            head(number(count), "/slow"),
            frame::window(number(count), 0x7fff_ffff),
        ]
        .concat()
    };
    let too_long = |count: usize| {
        let fields = [
            request("POST", "reviews", "/"),
            vec![("content-length".into(), "1".into())],
        ]
        .concat();
        [
            frame::headers(number(count), 0, &fields),
            frame::data(number(count), 0, "too long"),
        ]
        .concat()
    };
    let malformed = |count: usize| frame::headers(number(count), flag::END_STREAM, &[(":method", "GET")]);
    let twice = |count: usize| {
        [
            head(number(count), "/slow"),
            frame::priority(number(count), number(count)),
        ]
        .concat()
    };
    for (name, flooded) in [
        (
            "windows that overflow",
            scene
                .while_others_are_served(flood(address, vec![], overflow))
                .await,
        ),
        (
            "bodies that are too long",
            scene
                .while_others_are_served(flood(address, vec![], too_long))
                .await,
        ),
        (
            "malformed requests",
            scene
                .while_others_are_served(flood(address, vec![], malformed))
                .await,
        ),
        (
            "priorities that hang on themselves",
            scene.while_others_are_served(flood(address, vec![], twice)).await,
        ),
    ] {
        assert_eq!(flooded.code, Some(code::ENHANCE_YOUR_CALM), "{name}: {flooded:?}");
    }
    scene.has_cut("flood", 4.0).await;
}

#[tokio::test]
async fn header_blocks_without_measure_are_cut_before_they_fill_the_memory() {
    let mut scene = Scene::new("").await;
    let address = scene.address();
    let begun = || {
        frame::header_block(
            1,
            flag::END_STREAM,
            &hpack::block(&request("GET", "reviews", "/")),
        )
    };
    let field = hpack::literal(b"x", &[b'v'; 16_000]);
    let full = move |_| frame::continuation(1, 0, &field);
    let empty = |_| frame::continuation(1, 0, &[]);
    let single = |_| frame::continuation(1, 0, &[0]);
    // One entry of the table, said again and again: a byte becomes four thousand.
    let entry = hpack::remembered(b"x", &[b'v'; 3_900]);
    let bomb = [entry, hpack::indexed(62).repeat(12_000)].concat();
    let bomb = frame::header_block(
        1,
        flag::END_STREAM | flag::END_HEADERS,
        &[hpack::block(&request("GET", "reviews", "/")), bomb].concat(),
    );
    // Crumbs of a cookie: each is one byte and counts as one field.
    let crumb = hpack::remembered(b"cookie", b"");
    let crumbs = [crumb, hpack::indexed(62).repeat(16_000)].concat();
    let crumbs = frame::header_block(
        1,
        flag::END_STREAM | flag::END_HEADERS,
        &[hpack::block(&request("GET", "reviews", "/")), crumbs].concat(),
    );
    let nothing = |_| Vec::new();
    for (name, flooded) in [
        (
            "CONTINUATION that is full",
            scene.while_others_are_served(flood(address, begun(), full)).await,
        ),
        (
            "CONTINUATION that is empty",
            scene
                .while_others_are_served(flood(address, begun(), empty))
                .await,
        ),
        (
            "CONTINUATION of a byte",
            scene
                .while_others_are_served(flood(address, begun(), single))
                .await,
        ),
        (
            "a bomb of one field",
            scene.while_others_are_served(flood(address, bomb, nothing)).await,
        ),
        (
            "a bomb of crumbs",
            scene
                .while_others_are_served(flood(address, crumbs, nothing))
                .await,
        ),
    ] {
        assert_eq!(flooded.code, Some(code::ENHANCE_YOUR_CALM), "{name}: {flooded:?}");
    }
    assert_eq!(
        scene
            .upstream
            .received()
            .iter()
            .filter(|received| received.head.header("x").is_some())
            .count(),
        0
    );
}

#[tokio::test]
async fn a_list_of_fields_that_is_too_long_is_told_so_and_no_sibling_suffers() {
    let scene = Scene::new("").await;
    let mut caller = Caller::open(scene.address()).await.unwrap();
    let field = hpack::remembered(b"x", &[b'v'; 3_900]);
    let block = [
        hpack::block(&request("GET", "reviews", "/")),
        field,
        hpack::indexed(62).repeat(20),
    ]
    .concat();
    let stream = caller.stream();
    caller
        .raw
        .send(&frame::header_block(
            stream,
            flag::END_STREAM | flag::END_HEADERS,
            &block,
        ))
        .await
        .unwrap();
    let reply = within("the refusal", caller.reply(stream)).await.unwrap();
    assert_eq!(reply.status(), 431, "{reply:?}");
    let stream = caller.get("reviews", "/").await.unwrap();
    assert_eq!(
        within("an answer", caller.reply(stream)).await.unwrap().status(),
        200
    );
}

#[tokio::test]
async fn many_small_pieces_of_bodies_that_nobody_takes_are_cut() {
    // An application that accepts and never reads.
    let deaf = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let file = ServiceFile::new("reviews").backend("v1", &[deaf.local_addr().unwrap()]);
    let mut sidecar =
        Sidecar::of(file.route("default", &[("v1", 1)], "timeout: { request: 0s, idle: 0s }")).await;
    let (address, at_rest) = (sidecar.outbound(), sidecar.program().memory_peak());
    let opening: Vec<u8> = (0..64).flat_map(|count| open(number(count), "/")).collect();
    let pieces = |count: usize| frame::data(number(count % 64), 0, "x");
    let small = flood(address, opening.clone(), pieces).await;
    assert_eq!(small.code, Some(code::ENHANCE_YOUR_CALM), "{small:?}");
    let large = |count: usize| frame::data(number(count % 64), 0, [0; 16_384]);
    let full = flood(address, opening, large).await;
    assert_eq!(full.code, Some(code::FLOW_CONTROL_ERROR), "{full:?}");
    let more = sidecar.program().memory_peak() - at_rest;
    assert!(more <= MEMORY_MAX, "{} kB more than at rest", more / 1024);
}

#[tokio::test]
async fn a_burst_of_requests_before_our_settings_are_known_is_no_flood() {
    let scene = Scene::new("").await;
    let mut raw = Raw::connect(scene.address()).await.unwrap();
    let burst: Vec<u8> = (0..600).flat_map(|count| head(number(count), "/")).collect();
    raw.send(&[frame::PREFACE, &frame::settings(&[]), &burst].concat())
        .await
        .unwrap();
    let (mut answered, mut refused) = (0, 0);
    while answered + refused < 600 {
        let frame = within("an answer", raw.next()).await.unwrap();
        assert_ne!(frame.kind, kind::GOAWAY, "{frame:?}");
        match frame.kind {
            kind::HEADERS => answered += 1,
            kind::RST_STREAM => {
                assert_eq!(frame.number(0), code::REFUSED_STREAM);
                refused += 1;
            }
            _ => {}
        }
    }
    assert!(answered >= 250, "{answered} answered, {refused} refused");
}
