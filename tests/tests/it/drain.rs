//! Stopping: what is under way is finished, what is new is sent elsewhere.

use std::time::{Duration, Instant};

use outrigger_tests::wait::{PATIENCE, eventually, within};
use outrigger_tests::{
    Answer, Ask, Behaviour, Load, LoadSpec, ServiceFile, Sidecar, SidecarSpec, Upstream, simple,
};

/// Short, so that a drain that waits for nothing is told from one that ends.
const DRAIN: &str = "10s";

/// Requests of the two kinds: those that may be repeated and those that may not.
fn gets_and_posts() -> Vec<Ask> {
    let post = || Ask::post("/", "x").host("reviews");
    let get = || Ask::get("/").host("reviews");
    vec![get(), post(), get(), get()]
}

#[tokio::test]
async fn a_server_s_sidecar_stops_under_load_and_no_request_fails() {
    let app = Upstream::start("app").await;
    let file = ServiceFile::new("reviews")
        .app(app.address())
        .backend("v1", &[app.address()]);
    let server = |id: &str| {
        let spec = SidecarSpec::text(id, &file.to_string()).beside("reviews");
        Sidecar::start(spec.with("--drain", DRAIN))
    };
    let (mut first, second) = (server("first").await, server("second").await);
    let called = ServiceFile::new("reviews").backend("v1", &[first.inbound(), second.inbound()]);
    let client = Sidecar::start(SidecarSpec::text("client", &called.to_string())).await;
    let load = Load::start(LoadSpec {
        asks: gets_and_posts(),
        ..LoadSpec::new(client.outbound(), "reviews", 8)
    });
    load.has_done(1_000).await;
    first.program().terminate();
    load.has_done_more(1_000).await;
    let status = first.program().exited().await;
    load.has_done_more(500).await;
    load.stop().await.assert_clean();
    assert_eq!(status.code(), Some(0));
}

#[tokio::test]
async fn a_caller_s_sidecar_stops_under_load_and_no_request_fails() {
    let upstream = Upstream::start("a").await;
    let file = simple("reviews", &[&upstream], "").to_string();
    let mut sidecar = Sidecar::start(SidecarSpec::text("a", &file).with("--drain", DRAIN)).await;
    let load = Load::start(LoadSpec {
        asks: gets_and_posts(),
        until_closed: true,
        ..LoadSpec::new(sidecar.outbound(), "reviews", 8)
    });
    load.has_done(1_000).await;
    sidecar.program().terminate();
    let report = load.finish().await;
    report.assert_clean();
    assert_eq!(sidecar.program().exited().await.code(), Some(0));
}

#[tokio::test]
async fn a_long_request_is_finished_and_the_sidecar_says_that_it_is_not_ready() {
    let upstream = Upstream::start("a").await;
    upstream.behave(Behaviour::Answer(Answer::ok().after(Duration::from_secs(3))));
    let file = simple("reviews", &[&upstream], "").to_string();
    let mut sidecar = Sidecar::start(SidecarSpec::text("a", &file).with("--drain", DRAIN)).await;
    let mut connection = sidecar.client().connect().await;
    connection
        .wire()
        .send(&Ask::get("/").host("reviews").to_bytes())
        .await
        .unwrap();
    upstream.has_requests(1).await;
    sidecar.program().terminate();
    let page = eventually("/ready to be 503", async || {
        Some(sidecar.page("/ready").await).filter(|page| page.status() == 503)
    })
    .await;
    assert!(
        page.text().contains("drain") || page.text().contains("stop"),
        "{}",
        page.text()
    );
    assert_eq!(sidecar.page("/live").await.status(), 200, "it is still alive");
    let reply = within("the long answer", connection.reply_to("GET"))
        .await
        .unwrap();
    assert_eq!((reply.status(), reply.reason()), (200, None));
    assert!(
        reply.head.connection_says("close"),
        "the caller is told to go elsewhere: {reply:?}"
    );
    assert_eq!(sidecar.program().exited().await.code(), Some(0));
}

#[tokio::test]
async fn a_body_under_way_is_finished_while_stopping() {
    let upstream = Upstream::start("a").await;
    let pause = Duration::from_millis(100);
    upstream.behave(Behaviour::Drip { pieces: 20, pause });
    let file = simple("reviews", &[&upstream], "").to_string();
    let mut sidecar = Sidecar::start(SidecarSpec::text("a", &file).with("--drain", DRAIN)).await;
    let mut connection = sidecar.client().connect().await;
    connection
        .wire()
        .send(&Ask::get("/").host("reviews").to_bytes())
        .await
        .unwrap();
    let head = within("the head", connection.wire().head())
        .await
        .unwrap()
        .unwrap();
    sidecar.program().terminate();
    let framing = head.answer_framing("GET").unwrap();
    let body = within("the body", connection.wire().body(framing, 10_000)).await;
    assert_eq!(body.cut, None);
    assert_eq!(String::from_utf8_lossy(&body.bytes).lines().count(), 20);
    assert_eq!(sidecar.program().exited().await.code(), Some(0));
}

#[tokio::test]
async fn a_request_without_an_end_does_not_hold_the_sidecar_beyond_its_drain_time() {
    let upstream = Upstream::start("a").await;
    upstream.behave(Behaviour::Hang);
    let file = simple("reviews", &[&upstream], "timeout: { request: 0s }").to_string();
    let mut sidecar = Sidecar::start(SidecarSpec::text("a", &file).with("--drain", "1s")).await;
    let mut connection = sidecar.client().connect().await;
    connection
        .wire()
        .send(&Ask::get("/").host("reviews").to_bytes())
        .await
        .unwrap();
    upstream.has_requests(1).await;
    let began = Instant::now();
    sidecar.program().terminate();
    sidecar.program().exited().await;
    // The bound is one second; the rest is for a machine that is busy with other tests.
    assert!(began.elapsed() < PATIENCE / 2, "{:?}", began.elapsed());
}

#[tokio::test]
async fn an_idle_sidecar_stops_without_waiting_for_its_drain_time() {
    let upstream = Upstream::start("a").await;
    let file = simple("reviews", &[&upstream], "").to_string();
    let mut sidecar = Sidecar::start(SidecarSpec::text("a", &file).with("--drain", "15s")).await;
    // A connection that is kept and silent on both sides must not count as work.
    let mut connection = sidecar.client().connect().await;
    connection.send(&Ask::get("/").host("reviews")).await.unwrap();
    let began = Instant::now();
    sidecar.program().terminate();
    assert_eq!(sidecar.program().exited().await.code(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(12), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_sidecar_that_is_told_to_stop_as_soon_as_it_listens_stops_in_peace() {
    let upstream = Upstream::start("a").await;
    let file = simple("reviews", &[&upstream], "").to_string();
    for round in 0..10 {
        let mut sidecar = Sidecar::launch(SidecarSpec::text("a", &file)).await;
        sidecar.program().terminate();
        let status = sidecar.program().exited().await;
        assert_eq!(status.code(), Some(0), "round {round}: {status}");
    }
}
