//! Endpoints that flood us: as with callers, what it costs is bounded, the connection is ended, and others are served.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use outrigger_tests::http2::frame::{self, flag, kind, setting};
use outrigger_tests::http2::{Counts, Http2Upstream, Raw};
use outrigger_tests::wait::within;
use outrigger_tests::{Ask, ServiceFile, Sidecar, Upstream};
use tokio::io::AsyncWriteExt;

use super::{FRAMES_MAX, MEMORY_MAX, TOGETHER};

/// The frames of a flood, for a request on this stream.
type Frames = fn(u32) -> Vec<u8>;

/// Answers `/good`, and for everything else sends these frames without end; `counts.answered` counts the connections on
/// which it has been stopped.
async fn flooding(frames: Frames) -> Http2Upstream {
    let script = move |stream: tokio::net::TcpStream, _number: u64, counts: Arc<Counts>| async move {
        let mut raw = Raw::accept(stream, &[]).await?;
        loop {
            let Some(frame) = raw.frame().await? else {
                return Ok(());
            };
            if frame.kind != kind::HEADERS {
                continue;
            }
            let fields = raw.fields(&frame).await?;
            let head = |flags| frame::headers(frame.stream, flags, &[(":status", "200")]);
            if fields
                .iter()
                .any(|(name, value)| name == ":path" && value == "/good")
            {
                raw.send(&head(flag::END_STREAM)).await?;
                continue;
            }
            counts.requests.fetch_add(1, Ordering::SeqCst);
            let piece = frames(frame.stream);
            let bytes = piece.repeat(TOGETHER / piece.len());
            let mut writer = raw.writer();
            // What the sidecar answers is read, so that it is the flood that ends it and not a full socket.
            let reading = tokio::spawn(async move { while let Ok(Some(_)) = raw.frame().await {} });
            let mut sent = 0;
            while sent < FRAMES_MAX && writer.write_all(&bytes).await.is_ok() {
                sent += bytes.len() / piece.len();
                tokio::task::yield_now().await;
            }
            if sent < FRAMES_MAX {
                counts.answered.fetch_add(1, Ordering::SeqCst);
            }
            reading.abort();
            return Ok(());
        }
    };
    Http2Upstream::start(script).await
}

#[tokio::test]
async fn an_endpoint_that_floods_loses_its_connection_and_nobody_else_suffers() {
    let floods: &[(&str, Frames)] = &[
        ("PING", |_| frame::ping([0; 8])),
        ("SETTINGS", |_| {
            frame::settings(&[(setting::MAX_FRAME_SIZE, 16_384)])
        }),
        ("WINDOW_UPDATE", |_| {
            frame::frame(kind::WINDOW_UPDATE, 0, 0, &1_u32.to_be_bytes())
        }),
        ("PRIORITY", |stream| frame::priority(stream, 0)),
        ("an unknown type", |_| frame::frame(0x42, 0, 0, b"what?")),
    ];
    let good = Upstream::start("good").await;
    for (name, frames) in floods {
        let upstream = flooding(*frames).await;
        let reviews = ServiceFile::new("reviews")
            .field("protocol: http2")
            .backend("v1", &[upstream.address()])
            .route("default", &[("v1", 1)], "timeout: { request: 60s }");
        let ratings = ServiceFile::new("ratings").backend("v1", &[good.address()]);
        let mut sidecar = Sidecar::of(format!("{reviews}\n---\n{ratings}")).await;
        let at_rest = sidecar.program().memory_peak();
        let client = sidecar.client();
        let told = within(
            "the end of the flood",
            client.send(Ask::post("/", "x").host("reviews")),
        );
        let others = async {
            for _ in 0..20 {
                assert_eq!(client.get("ratings", "/").await.status(), 200, "{name}");
            }
        };
        let (told, ()) = tokio::join!(told, others);
        assert_eq!(
            (told.status(), told.reason()),
            (502, Some("upstream-protocol")),
            "{name}"
        );
        assert_eq!(client.get("reviews", "/good").await.status(), 200, "{name}");
        let stopped = async || (upstream.counts().answered.load(Ordering::SeqCst) == 1).then_some(());
        outrigger_tests::wait::eventually(&format!("the flood of {name} to be stopped"), stopped).await;
        assert_eq!(upstream.requests(), 1, "{name}: a POST is sent once");
        let more = sidecar.program().memory_peak() - at_rest;
        assert!(more <= MEMORY_MAX, "{name}: {} kB more than at rest", more / 1024);
        assert!(sidecar.program().is_running());
    }
}
