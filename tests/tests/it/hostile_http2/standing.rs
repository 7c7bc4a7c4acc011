//! Callers that do harm by standing there: they do not read, do not end what they began, or only connect.

use std::net::SocketAddr;

use outrigger_tests::http2::frame::{self, code, kind, setting};
use outrigger_tests::http2::{Answers, Caller, Http2Upstream, Raw};
use outrigger_tests::wait::{eventually, within};
use outrigger_tests::wire::Wire;
use outrigger_tests::{ServiceFile, SidecarSpec, Upstream};

use super::{Scene, head, number};

/// What an answer to `/large` has.
const LARGE: usize = 5 * 1024 * 1024;

/// A server whose answers to `/large` are large and cost it nothing: five hundred of them are under way at once.
async fn large_answers() -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut wire = Wire::new(stream);
                while let Ok(Some(head)) = wire.head().await {
                    let pieces = if head.word(1) == "/large" {
                        LARGE / 65_536
                    } else {
                        0
                    };
                    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", pieces * 65_536);
                    let mut sent = wire.send(head.as_bytes()).await;
                    for _ in 0..pieces {
                        sent = sent.and(wire.send(&[b'x'; 65_536]).await);
                    }
                    if sent.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

/// Streams of answers that are not read, over so many connections.
async fn readers_that_do_not_read(scene: &mut Scene, window: u32) {
    const STREAMS: usize = 500;
    const CONNECTIONS: usize = 5;
    let address = scene.address();
    let readers = async {
        let mut held = Vec::new();
        for _ in 0..CONNECTIONS {
            let settings = [(setting::INITIAL_WINDOW_SIZE, window)];
            let mut raw = Raw::open(address, &settings).await.unwrap();
            // The connection's window is no bound: each stream's own is.
            raw.send(&frame::window(0, 0x7000_0000)).await.unwrap();
            let heads: Vec<u8> = (0..STREAMS / CONNECTIONS)
                .flat_map(|count| head(number(count), "/large"))
                .collect();
            raw.send(&heads).await.unwrap();
            let mut begun = 0;
            while begun < STREAMS / CONNECTIONS {
                begun += usize::from(within("a head", raw.next()).await.unwrap().kind == kind::HEADERS);
            }
            held.push(raw);
        }
        held
    };
    let held = scene.while_others_are_served(readers).await;
    // Until the sidecar takes nothing more from the upstream.
    let mut before = 0.0;
    eventually("the sidecar to stop taking more", async || {
        let now = scene
            .sidecar
            .metrics()
            .await
            .sum("process_resident_memory_bytes", &[]);
        let settled = (now - before).abs() < 1.0;
        before = now;
        settled.then_some(())
    })
    .await;
    scene.memory_is_bounded();
    drop(held);
}

#[tokio::test]
async fn five_hundred_readers_that_never_open_their_window_do_not_fill_the_sidecar() {
    let upstream = Upstream::start("unused").await;
    let mut scene = Scene::before(upstream, large_answers().await, "timeout: { request: 0s }").await;
    readers_that_do_not_read(&mut scene, 0).await;
}

#[tokio::test]
async fn five_hundred_readers_that_take_a_window_and_no_more_do_not_fill_the_sidecar() {
    let upstream = Upstream::start("unused").await;
    let mut scene = Scene::before(upstream, large_answers().await, "timeout: { request: 0s }").await;
    readers_that_do_not_read(&mut scene, 65_535).await;
}

/// The same before an endpoint that speaks HTTP/2, which sends on all of its streams as far as their windows let it.
async fn before_http2() -> (Scene, Http2Upstream) {
    let body = vec![b'x'; LARGE];
    let large = Http2Upstream::answering(Answers {
        body,
        ..Answers::default()
    })
    .await;
    let file = ServiceFile::new("reviews").field("protocol: http2");
    let file = file.backend("v1", &[large.address()]);
    let file = file.route("default", &[("v1", 1)], "timeout: { request: 0s }");
    let unused = Upstream::start("unused").await;
    let spec = SidecarSpec::text("a", &file.to_string());
    (Scene::started(unused, spec).await, large)
}

#[tokio::test]
async fn five_hundred_readers_that_never_open_their_window_do_not_fill_the_sidecar_by_http2_either() {
    let (mut scene, _endpoint) = before_http2().await;
    readers_that_do_not_read(&mut scene, 0).await;
}

#[tokio::test]
async fn five_hundred_readers_that_take_a_window_and_no_more_do_not_fill_the_sidecar_by_http2_either() {
    let (mut scene, _endpoint) = before_http2().await;
    readers_that_do_not_read(&mut scene, 65_535).await;
}

#[tokio::test]
async fn a_reader_that_never_opens_its_window_is_cut_when_its_time_is_over_and_its_siblings_are_not() {
    let upstream = Upstream::start("unused").await;
    let fields = "timeout: { request: 0s, idle: 1s }";
    let scene = Scene::before(upstream, large_answers().await, fields).await;
    let mut caller = Caller::open_with(scene.address(), &[(setting::INITIAL_WINDOW_SIZE, 0)])
        .await
        .unwrap();
    let stuck = caller.get("reviews", "/large").await.unwrap();
    let reply = within("the end of the stuck one", caller.reply(stuck))
        .await
        .unwrap();
    assert_eq!(
        (reply.status(), reply.reset, reply.body.len()),
        (200, Some(code::CANCEL), 0)
    );
    let stream = caller.get("reviews", "/").await.unwrap();
    caller.raw.send(&frame::window(stream, 1_000)).await.unwrap();
    assert_eq!(
        within("an answer", caller.reply(stream)).await.unwrap().status(),
        200
    );
}

#[tokio::test]
async fn two_thousand_connections_that_only_stand_there_leave_room_for_the_rest() {
    const CONNECTIONS: usize = 2_000;
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    rustix::process::setrlimit(
        rustix::process::Resource::Nofile,
        rustix::process::Rlimit {
            current: limit.maximum,
            ..limit
        },
    )
    .unwrap();
    let mut scene = Scene::new("").await;
    let address = scene.address();
    let idle = async {
        let mut held = (Vec::new(), Vec::new());
        for count in 0..CONNECTIONS {
            match count % 2 {
                0 => held
                    .0
                    .push(tokio::net::TcpStream::connect(address).await.unwrap()),
                _ => held.1.push(Raw::open(address, &[]).await.unwrap()),
            }
        }
        held
    };
    let held = scene.while_others_are_served(idle).await;
    let open = [("listener", "outbound")];
    let all = CONNECTIONS as f64;
    scene
        .sidecar
        .metrics_when("all of them", |metrics| {
            metrics.sum("outrigger_connections_open", &open) >= all
        })
        .await;
    scene.memory_is_bounded();
    drop(held);
    scene
        .sidecar
        .metrics_when("none of them", |metrics| {
            metrics.sum("outrigger_connections_open", &open) < 1.0
        })
        .await;
}
