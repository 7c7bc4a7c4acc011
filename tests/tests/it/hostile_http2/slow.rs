//! Callers that are slow on purpose: heads and bodies that come a byte at a time or stop coming, by both versions of
//! HTTP. The bounds, minutes by default, are a second here.

use std::net::SocketAddr;
use std::time::Duration;

use outrigger_tests::http2::frame::{self, flag, kind};
use outrigger_tests::http2::{Caller, Raw, hpack, request};
use outrigger_tests::wait::{eventually, within};
use outrigger_tests::wire::Wire;
use outrigger_tests::{Behaviour, ServiceFile, SidecarSpec, Upstream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{Scene, answer, open};

/// Slow callers at once, of each kind.
const CALLERS: usize = 200;

/// How often each sends another byte: so often that none of them is ever silent for the bound.
const EVERY: Duration = Duration::from_millis(100);

/// A sidecar with these bounds for its callers.
async fn scene(bounds: &str) -> Scene {
    let upstream = Upstream::start("a").await;
    upstream.behave(Behaviour::Call(answer));
    let file = ServiceFile::new("reviews").backend("v1", &[upstream.address()]);
    let file = file.route("default", &[("v1", 1)], "timeout: { request: 0s }");
    let bootstrap = tempfile::NamedTempFile::with_suffix(".yaml").unwrap();
    std::fs::write(bootstrap.path(), format!("kind: Proxy\nlisteners: {bounds}\n")).unwrap();
    let spec = SidecarSpec::text("a", &file.to_string());
    Scene::started(
        upstream,
        spec.with("--config", bootstrap.path().to_str().unwrap()),
    )
    .await
}

/// Sends these bytes one by one, and waits for the end of the connection.
async fn dribble(mut stream: TcpStream, bytes: Vec<u8>) {
    let mut rest = bytes.iter().copied().cycle();
    let mut buffer = vec![0; 4096];
    let mut tick = tokio::time::interval(EVERY);
    loop {
        tokio::select! {
            read = stream.read(&mut buffer) => {
                if !matches!(read, Ok(count) if count > 0) {
                    return;
                }
            }
            _ = tick.tick() => {
                let byte = rest.next().unwrap_or_default();
                if stream.write_all(&[byte]).await.is_err() {
                    return;
                }
            }
        }
    }
}

async fn many(address: SocketAddr, opening: &[u8], bytes: &[u8]) {
    let mut running = tokio::task::JoinSet::new();
    for _ in 0..CALLERS {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(opening).await.unwrap();
        running.spawn(dribble(stream, bytes.to_vec()));
    }
    within("the end of each of them", running.join_all()).await;
}

#[tokio::test]
async fn heads_that_come_a_byte_at_a_time_are_given_up_and_others_are_served_meanwhile() {
    let mut scene = scene("{ head_timeout: 1s }").await;
    let address = scene.address();
    let request_line = b"GET / HTTP/1.1\r\nHost: reviews\r\nx-slow: ";
    scene
        .while_others_are_served(many(address, request_line, b"x"))
        .await;
    scene.has_cut("silent", CALLERS as f64).await;
    // By HTTP/2: in the middle of a frame that belongs to a block, and of a block in many frames.
    let block = hpack::block(&request("GET", "reviews", "/"));
    let begun = frame::header_block(1, flag::END_STREAM, &block);
    let preface = [frame::PREFACE, &frame::settings(&[])].concat();
    let long = frame::header_block(1, flag::END_STREAM | flag::END_HEADERS, &[0; 4_000]);
    let cut_short = [&preface[..], &long[..20]].concat();
    scene
        .while_others_are_served(many(address, &cut_short, &[0]))
        .await;
    scene.has_cut("silent", 2.0 * CALLERS as f64).await;
    let several = [&preface[..], &begun].concat();
    let more = frame::continuation(1, 0, &hpack::literal(b"x", &[b'v'; 40]));
    scene
        .while_others_are_served(many(address, &several, &more))
        .await;
    scene.has_cut("silent", 3.0 * CALLERS as f64).await;
    assert_eq!(
        scene
            .upstream
            .received()
            .iter()
            .filter(|received| received.head.header("x-slow").is_some())
            .count(),
        0
    );
}

#[tokio::test]
async fn a_connection_that_only_stands_there_has_another_bound_than_a_head() {
    let scene = scene("{ head_timeout: 1h, idle_timeout: 1s }").await;
    let mut silent = TcpStream::connect(scene.address()).await.unwrap();
    let mut begun = TcpStream::connect(scene.address()).await.unwrap();
    begun.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
    let mut http2 = Raw::open(scene.address(), &[]).await.unwrap();
    let mut buffer = [0; 16];
    let read = within("the end of one that says nothing", silent.read(&mut buffer)).await;
    assert_eq!(read.unwrap_or(0), 0);
    let goaway = async {
        loop {
            let frame = http2.next().await.unwrap();
            if frame.kind == kind::GOAWAY {
                return;
            }
        }
    };
    within("the goodbye by HTTP/2", goaway).await;
    drop(begun);
}

#[tokio::test]
async fn a_connection_that_is_used_is_not_silent_and_a_kept_one_has_no_head() {
    let scene = scene("{ head_timeout: 1s, idle_timeout: 1h }").await;
    let mut wire = Wire::new(TcpStream::connect(scene.address()).await.unwrap());
    let ask = b"POST / HTTP/1.1\r\nHost: reviews\r\nContent-Length: 3\r\n\r\n";
    // A body slower than any head may be: three seconds and more are three looks.
    wire.send(ask).await.unwrap();
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(1_100)).await;
        wire.send(b"x").await.unwrap();
    }
    let head = within("the answer", wire.head()).await.unwrap().unwrap();
    assert_eq!(head.status(), 200);
    let framing = head.answer_framing("POST").unwrap();
    assert_eq!(wire.body(framing, 1_000).await.cut, None);
    // A kept connection, for longer than a head may take.
    tokio::time::sleep(Duration::from_millis(3_300)).await;
    wire.send(b"GET / HTTP/1.1\r\nHost: reviews\r\n\r\n")
        .await
        .unwrap();
    let head = within("the answer", wire.head()).await.unwrap().unwrap();
    assert_eq!(head.status(), 200);
    assert!(scene.cut("silent").await < 1.0);
}

#[tokio::test]
async fn bodies_that_stop_coming_are_given_up_by_both_versions_and_others_are_served_meanwhile() {
    let mut scene = Scene::new("timeout: { request: 0s, idle: 1s }").await;
    let address = scene.address();
    let slow = async {
        let mut http1 = Vec::new();
        for _ in 0..CALLERS {
            let mut wire = Wire::new(TcpStream::connect(address).await.unwrap());
            let begun = b"POST / HTTP/1.1\r\nHost: reviews\r\nContent-Length: 1000\r\n\r\nthe beginning";
            wire.send(begun).await.unwrap();
            http1.push(wire);
        }
        let mut http2 = Caller::open(address).await.unwrap();
        let mut streams = Vec::new();
        for _ in 0..CALLERS {
            let stream = http2.stream();
            let begun = [open(stream, "/"), frame::data(stream, 0, "the beginning")].concat();
            http2.raw.send(&begun).await.unwrap();
            streams.push(stream);
        }
        for mut wire in http1 {
            let head = within("the end by HTTP/1.1", wire.head()).await.unwrap().unwrap();
            assert_eq!(
                (head.status(), head.header("x-outrigger-reason")),
                (504, Some("idle-timeout"))
            );
        }
        for stream in streams {
            let reply = within("the end by HTTP/2", http2.reply(stream)).await.unwrap();
            assert_eq!(
                (reply.status(), reply.header("x-outrigger-reason")),
                (504, Some("idle-timeout")),
                "{reply:?}"
            );
        }
    };
    scene.while_others_are_served(slow).await;
    eventually("the upstream to be freed", async || {
        (scene.upstream.given_up() >= 2 * CALLERS as u64).then_some(())
    })
    .await;
}
