//! Copies of requests that go to another backend and are forgotten.

use std::time::{Duration, Instant};

use outrigger_tests::grpc::{Call, GrpcUpstream};
use outrigger_tests::http2::{Answers, Caller, Http2Upstream};
use outrigger_tests::metrics::Metrics;
use outrigger_tests::wait::within;
use outrigger_tests::{
    Answer, Ask, Behaviour, Load, LoadSpec, ServiceFile, Sidecar, SidecarSpec, Upstream, eventually,
};

const MIRRORED: &str = "outrigger_mirrored_requests_total";
const ALL: &str = "mirror: [{ backend: v2 }]";

/// The most copies under way, as the sidecar has it.
const COPIES_MAX: u64 = 128;

/// How long a copy may take where the route says no less.
const COPY_TIME: Duration = Duration::from_secs(15);

fn file(real: &Upstream, mirror: &Upstream, fields: &str) -> ServiceFile {
    ServiceFile::new("reviews")
        .backend("v1", &[real.address()])
        .backend("v2", &[mirror.address()])
        .route("default", &[("v1", 1)], fields)
}

async fn two(fields: &str) -> (Upstream, Upstream, Sidecar) {
    let (real, mirror) = (Upstream::start("real").await, Upstream::start("mirror").await);
    let sidecar = Sidecar::of(file(&real, &mirror, fields)).await;
    (real, mirror, sidecar)
}

fn results(metrics: &Metrics, result: &str) -> f64 {
    metrics.sum(MIRRORED, &[("backend", "v2"), ("result", result)])
}

/// Waits until so many copies have ended so.
async fn counted(sidecar: &Sidecar, result: &str, count: f64) -> Metrics {
    let what = format!("{count} copies that ended with {result}");
    sidecar
        .metrics_when(&what, |metrics| results(metrics, result) >= count)
        .await
}

#[tokio::test]
async fn a_copy_is_the_request_with_a_mark_and_its_answer_goes_to_nobody() {
    let (real, mirror, sidecar) = two(ALL).await;
    mirror.behave(Behaviour::Answer(Answer::status(500).body("never seen")));
    let asks = [
        Ask::get("/x?y=1").host("reviews").header("x-user", "7"),
        Ask::post("/x?y=1", "hello").host("reviews").header("x-user", "7"),
        Ask::post("/x?y=1", vec![9; 5000])
            .host("reviews")
            .header("x-user", "7")
            .chunked(),
    ];
    for (number, ask) in (1..).zip(&asks) {
        let reply = sidecar.client().send(ask.clone()).await;
        assert_eq!((reply.status(), reply.upstream()), (200, "real"));
        counted(&sidecar, "5xx", f64::from(number)).await;
        let (sent, copy) = (real.last(), mirror.last());
        assert_eq!(copy.head.first_line, sent.head.first_line);
        assert_eq!(copy.body.bytes, sent.body.bytes);
        for name in ["host", "x-user", "content-length", "transfer-encoding"] {
            assert_eq!(
                copy.head.header(name),
                sent.head.header(name),
                "{name} of {ask:?}"
            );
        }
        assert_eq!(copy.head.header("x-outrigger-mirror"), Some("1"));
        assert_eq!(sent.head.header("x-outrigger-mirror"), None);
    }
    let metrics = sidecar.metrics().await;
    for series in ["outrigger_requests_total", "outrigger_attempts_total"] {
        assert_eq!(metrics.sum(series, &[("backend", "v1")]), 3.0, "{series}");
        assert_eq!(metrics.sum(series, &[("backend", "v2")]), 0.0, "{series}");
    }
}

#[tokio::test]
async fn a_request_by_http2_is_copied_to_backends_that_speak_either() {
    let (real, mirror, sidecar) = two(ALL).await;
    let mut caller = Caller::open(sidecar.outbound()).await.unwrap();
    let stream = caller.post("reviews", "/x", b"hello").await.unwrap();
    assert_eq!(
        within("an answer", caller.reply(stream)).await.unwrap().status(),
        200
    );
    counted(&sidecar, "2xx", 1.0).await;
    assert_eq!(mirror.last().body.bytes, b"hello");
    assert_eq!((real.requests(), mirror.requests()), (1, 1));

    let real = Http2Upstream::answering(Answers::default()).await;
    let mirror = Http2Upstream::answering(Answers::default()).await;
    let file = ServiceFile::new("reviews")
        .field("protocol: http2")
        .backend("v1", &[real.address()])
        .backend("v2", &[mirror.address()])
        .route("default", &[("v1", 1)], ALL);
    let sidecar = Sidecar::of(file).await;
    let mut caller = Caller::open(sidecar.outbound()).await.unwrap();
    for _ in 0..3 {
        for stream in [
            caller.get("reviews", "/").await.unwrap(),
            caller.post("reviews", "/", b"x").await.unwrap(),
        ] {
            let reply = within("an answer", caller.reply(stream)).await.unwrap();
            assert_eq!(reply.status(), 200);
        }
    }
    counted(&sidecar, "2xx", 6.0).await;
    assert_eq!((real.requests(), mirror.requests()), (6, 6));
}

#[tokio::test]
async fn a_copy_of_a_call_counts_by_what_grpc_says_of_it() {
    let (real, mirror) = (
        GrpcUpstream::start("real").await,
        GrpcUpstream::start("mirror").await,
    );
    let file = ServiceFile::new("reviews")
        .field("protocol: grpc")
        .backend("v1", &[real.address()])
        .backend("v2", &[mirror.address()])
        .route("default", &[("v1", 1)], ALL);
    let sidecar = Sidecar::of(file).await;
    mirror.next([
        Call::Message(0),
        Call::Message(14),
        Call::TrailersOnly(13, Vec::new()),
    ]);
    for (well, failed) in [(1.0, 0.0), (1.0, 1.0), (1.0, 2.0)] {
        let ask = Ask::post("/shop.Reviews/Get", b"\0\0\0\0\x01x")
            .host("reviews")
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        let reply = sidecar.client().send(ask).await;
        assert_eq!(reply.body.bytes, b"\0\0\0\0\x02hi");
        counted(&sidecar, "2xx", well).await;
        counted(&sidecar, "5xx", failed).await;
    }
    assert_eq!((real.calls(), mirror.calls()), (3, 3));
}

#[tokio::test]
async fn a_mirror_that_is_dead_or_breaks_changes_no_request_and_is_not_ejected() {
    let real = Upstream::start("real").await;
    let dead = Upstream::dead("dead");
    let broken = [Upstream::start("broken").await, Upstream::start("broken").await];
    for upstream in &broken {
        upstream.behave(Behaviour::CloseBeforeAnswer);
    }
    let file = ServiceFile::new("reviews")
        .field("ejection: { consecutive_failures: 1 }")
        .backend("v1", &[real.address()])
        .backend("dead", &[dead.address()])
        .backend("broken", &broken.each_ref().map(Upstream::address))
        .route(
            "default",
            &[("v1", 1)],
            "mirror: [{ backend: dead }, { backend: broken }]",
        );
    let sidecar = Sidecar::of(file).await;
    for number in 0..20 {
        let ask = if number % 2 == 0 {
            Ask::get("/").host("reviews")
        } else {
            Ask::post("/", "order").host("reviews")
        };
        let reply = sidecar.client().send(ask).await;
        assert_eq!((reply.status(), reply.upstream()), (200, "real"));
    }
    let metrics = sidecar
        .metrics_when("all copies to have failed", |metrics| {
            metrics.sum(MIRRORED, &[("result", "failed")]) >= 40.0
        })
        .await;
    assert_eq!(metrics.sum(MIRRORED, &[]), 40.0);
    assert_eq!(metrics.sum("outrigger_ejections_total", &[]), 0.0);
    assert_eq!(metrics.sum("outrigger_retries_total", &[("result", "made")]), 0.0);
    let sent: u64 = broken.iter().map(Upstream::requests).sum();
    assert_eq!((real.requests(), sent), (20, 20), "each is tried once");
}

#[tokio::test]
async fn a_mirror_that_never_answers_holds_no_more_than_its_bounds_and_no_request_notices() {
    const MEMORY_MAX: f64 = 96.0 * 1024.0 * 1024.0;
    let (real, mirror, sidecar) = two(ALL).await;
    mirror.behave(Behaviour::Hang);
    let load = Load::start(LoadSpec {
        asks: vec![
            Ask::get("/").host("reviews"),
            Ask::post("/", vec![7; 60 * 1024]).host("reviews"),
        ],
        ..LoadSpec::new(sidecar.outbound(), "reviews", 8)
    });
    load.has_done(2_000).await;
    let metrics = sidecar.metrics().await;
    let held = mirror.open_connections();
    load.stop().await.assert_clean();
    assert!((1..=COPIES_MAX).contains(&held), "{held} copies under way");
    assert!(results(&metrics, "full") > 1_000.0, "most copies are dropped");
    let memory = metrics.sum("process_resident_memory_bytes", &[]);
    assert!(memory < MEMORY_MAX, "{memory} bytes");
    assert!(real.requests() >= 2_000);
}

#[tokio::test]
async fn places_that_ended_copies_leave_are_taken_again() {
    let (_real, mirror, sidecar) = two("timeout: { request: 500ms }\nmirror: [{ backend: v2 }]").await;
    mirror.behave(Behaviour::Hang);
    for number in 0..COPIES_MAX + 20 {
        let reply = sidecar.client().get("reviews", &format!("/{number}")).await;
        assert_eq!(reply.status(), 200);
    }
    sidecar
        .metrics_when("the copies to end when their time is over", |metrics| {
            results(metrics, "timeout") + results(metrics, "full") >= (COPIES_MAX + 20) as f64
        })
        .await;
    mirror.behave(Behaviour::Answer(Answer::ok()));
    assert_eq!(sidecar.client().get("reviews", "/").await.status(), 200);
    counted(&sidecar, "2xx", 1.0).await;
}

#[tokio::test]
async fn a_body_that_is_too_large_to_be_kept_goes_to_its_backend_alone() {
    let (real, mirror, sidecar) = two(ALL).await;
    real.behave(Behaviour::Echo);
    let body: Vec<u8> = (0..1024 * 1024_u32).map(|number| (number % 251) as u8).collect();
    let ask = Ask::post("/", body.clone()).host("reviews");
    for (count, ask) in [(1.0, ask.clone()), (2.0, ask.chunked())] {
        let reply = sidecar.client().send(ask).await;
        assert!(
            reply.status() == 200 && reply.body.bytes == body,
            "the echo differs"
        );
        counted(&sidecar, "too-large", count).await;
    }
    let small = Ask::post("/", "x").host("reviews");
    assert_eq!(sidecar.client().send(small).await.status(), 200);
    counted(&sidecar, "2xx", 1.0).await;
    assert_eq!((real.requests(), mirror.requests()), (3, 1));
}

#[tokio::test]
async fn a_request_that_its_caller_breaks_off_is_not_copied() {
    let (real, mirror, sidecar) = two(ALL).await;
    let mut connection = sidecar.client().connect().await;
    let half = b"POST / HTTP/1.1\r\nhost: reviews\r\ncontent-length: 10\r\n\r\n01234";
    connection.wire().send(half).await.unwrap();
    eventually("the request to be on its way", async || {
        (real.connections() > 0).then_some(())
    })
    .await;
    drop(connection);
    counted(&sidecar, "cut", 1.0).await;
    assert_eq!(mirror.requests(), 0);
}

#[tokio::test]
async fn the_share_that_is_said_is_copied() {
    let (real, mirror, sidecar) = two("mirror: [{ backend: v2, percent: 10% }]").await;
    let load = Load::start(LoadSpec {
        requests: Some(2_000),
        ..LoadSpec::new(sidecar.outbound(), "reviews", 4)
    });
    load.finish().await.assert_clean();
    assert_eq!(real.requests(), 2_000);
    // A chance of one in many millions to be further off.
    let metrics = sidecar
        .metrics_when("all copies to have ended", |metrics| {
            metrics.sum(MIRRORED, &[]) > 120.0 && results(metrics, "2xx") == mirror.requests() as f64
        })
        .await;
    let copied = metrics.sum(MIRRORED, &[]);
    assert!((120.0..280.0).contains(&copied), "{copied} of 2,000");
}

#[tokio::test]
async fn a_copy_is_not_copied_again() {
    let (real, mirror, sidecar) = two(ALL).await;
    let ask = Ask::get("/").host("reviews").header("x-outrigger-mirror", "1");
    assert_eq!(sidecar.client().send(ask).await.status(), 200);
    assert_eq!(sidecar.client().get("reviews", "/").await.status(), 200);
    counted(&sidecar, "2xx", 1.0).await;
    assert_eq!((real.requests(), mirror.requests()), (2, 1));
}

#[tokio::test]
async fn copies_under_way_do_not_hold_a_drain() {
    let (real, mirror) = (Upstream::start("real").await, Upstream::start("mirror").await);
    mirror.behave(Behaviour::Hang);
    let text = file(
        &real,
        &mirror,
        "timeout: { request: 0s }\nmirror: [{ backend: v2 }]",
    )
    .to_string();
    let mut sidecar = Sidecar::start(SidecarSpec::text("a", &text).with("--drain", "10m")).await;
    let began = Instant::now();
    assert_eq!(sidecar.client().get("reviews", "/").await.status(), 200);
    mirror.has_requests(1).await;
    sidecar.program().terminate();
    assert_eq!(sidecar.program().exited().await.code(), Some(0));
    // A drain that waited for the copy would have ended when the copy's time was over.
    assert!(began.elapsed() < COPY_TIME, "{:?}", began.elapsed());
    eventually("the copy to be given up", async || {
        (mirror.given_up() == 1).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_mirror_leaves_half_of_what_its_backend_bears_to_requests() {
    let (real, mirror) = (Upstream::start("real").await, Upstream::start("mirror").await);
    mirror.behave(Behaviour::Hang);
    let text = file(&real, &mirror, ALL).field("limits: { requests: 8 }");
    let sidecar = Sidecar::of(text).await;
    for _ in 0..20 {
        assert_eq!(sidecar.client().get("reviews", "/").await.status(), 200);
    }
    let metrics = counted(&sidecar, "full", 16.0).await;
    mirror.has_requests(4).await;
    assert_eq!(mirror.requests(), 4);
    assert_eq!(metrics.sum("outrigger_limited_total", &[]), 0.0);
}
