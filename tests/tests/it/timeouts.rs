//! How long a request may take.

use std::time::{Duration, Instant};

use outrigger_tests::wait::{PATIENCE, eventually, within};
use outrigger_tests::wire::{Framing, Wire};
use outrigger_tests::{Answer, Ask, Behaviour, ServiceFile, Sidecar, Upstream, simple};
use tokio::net::TcpListener;

#[tokio::test]
async fn a_request_that_takes_too_long_is_a_504_and_the_upstream_is_let_go() {
    let upstream = Upstream::start("a").await;
    upstream.behave(Behaviour::Hang);
    let sidecar = Sidecar::of(simple("reviews", &[&upstream], "timeout: { request: 300ms }")).await;
    for method in ["GET", "POST"] {
        let began = Instant::now();
        let reply = sidecar.client().send(Ask::new(method, "/").host("reviews")).await;
        assert_eq!(
            (reply.status(), reply.reason()),
            (504, Some("request-timeout")),
            "{method}"
        );
        assert!(
            began.elapsed() >= Duration::from_millis(290),
            "{:?}",
            began.elapsed()
        );
    }
    eventually("the upstream to be let go", async || {
        (upstream.given_up() == 2).then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_time_of_a_request_counts_all_its_attempts() {
    let upstream = Upstream::start("a").await;
    upstream.behave(Behaviour::Hang);
    let fields = "timeout: { request: 500ms, attempt: 200ms }\nretry: { attempts: 10 }";
    let sidecar = Sidecar::of(simple("reviews", &[&upstream], fields)).await;
    let reply = sidecar.client().get("reviews", "/").await;
    assert_eq!((reply.status(), reply.reason()), (504, Some("request-timeout")));
    assert!((2..=3).contains(&upstream.requests()), "{}", upstream.requests());
}

#[tokio::test]
async fn an_attempt_that_takes_too_long_is_made_again_elsewhere() {
    let (slow, quick) = (Upstream::start("slow").await, Upstream::start("quick").await);
    slow.behave(Behaviour::Hang);
    let fields = "timeout: { request: 15s, attempt: 200ms }";
    let file = simple("reviews", &[&slow, &quick], fields).field("balance: round_robin");
    let sidecar = Sidecar::of(file).await;
    for _ in 0..6 {
        let reply = sidecar.client().get("reviews", "/").await;
        assert_eq!((reply.status(), reply.upstream()), (200, "quick"));
    }
    assert!(slow.requests() > 0);
    let timed_out = [("reason", "attempt-timeout")];
    assert!(
        sidecar
            .metrics()
            .await
            .sum("outrigger_attempts_total", &timed_out)
            > 0.0
    );
}

#[tokio::test]
async fn an_attempt_of_a_post_that_takes_too_long_is_not_made_again() {
    let upstream = Upstream::start("a").await;
    upstream.behave(Behaviour::Hang);
    let fields = "timeout: { request: 15s, attempt: 200ms }";
    let sidecar = Sidecar::of(simple("reviews", &[&upstream], fields)).await;
    let reply = sidecar.client().send(Ask::post("/", "x").host("reviews")).await;
    assert_eq!((reply.status(), reply.reason()), (504, Some("attempt-timeout")));
    assert_eq!(upstream.requests(), 1);
}

#[tokio::test]
async fn a_slow_body_arrives_whole() {
    let upstream = Upstream::start("a").await;
    let pause = Duration::from_millis(100);
    upstream.behave(Behaviour::Drip { pieces: 8, pause });
    // The attempt's time ends with the head, and no silence is longer than the idle time.
    let fields = "timeout: { request: 0s, attempt: 300ms, idle: 700ms }";
    let sidecar = Sidecar::of(simple("reviews", &[&upstream], fields)).await;
    let reply = sidecar.client().get("reviews", "/").await;
    assert_eq!((reply.status(), reply.body.cut.as_deref()), (200, None));
    assert_eq!(reply.text().lines().count(), 8);
}

#[tokio::test]
async fn a_body_that_falls_silent_is_cut_where_it_can_be_seen() {
    for (fields, reason) in [
        ("timeout: { request: 0s, idle: 300ms }", "idle-timeout"),
        ("timeout: { request: 300ms, idle: 0s }", "request-timeout"),
    ] {
        for answer in [
            Answer::ok().body("0123456789"),
            Answer::ok().body("0123456789").chunked(),
        ] {
            let upstream = Upstream::start("a").await;
            upstream.behave(Behaviour::StallBody(answer));
            let sidecar = Sidecar::of(simple("reviews", &[&upstream], fields)).await;
            let reply = sidecar.client().get("reviews", "/").await;
            assert_eq!(reply.status(), 200);
            assert!(
                reply.body.cut.is_some(),
                "{fields}: the body looks whole: {reply:?}"
            );
            eventually("the upstream to be let go", async || {
                (upstream.given_up() == 1).then_some(())
            })
            .await;
            let counted = [("reason", reason)];
            sidecar
                .metrics_when(reason, |metrics| {
                    metrics.sum("outrigger_requests_total", &counted) == 1.0
                })
                .await;
        }
    }
}

#[tokio::test]
async fn an_upload_that_falls_silent_is_given_up() {
    let upstream = Upstream::start("a").await;
    let fields = "timeout: { request: 0s, idle: 300ms }";
    let sidecar = Sidecar::of(simple("reviews", &[&upstream], fields)).await;
    let mut connection = sidecar.client().connect().await;
    let half = b"POST / HTTP/1.1\r\nhost: reviews\r\ncontent-length: 10\r\n\r\n01234";
    connection.wire().send(half).await.unwrap();
    let reply = within("the end of the upload", connection.reply_to("POST")).await;
    let reply = reply.expect("an answer that says why, not a closed connection");
    assert_eq!(reply.reason(), Some("idle-timeout"), "{reply:?}");
}

#[tokio::test]
async fn an_upload_that_moves_is_not_cut_because_its_answer_has_only_begun() {
    const IDLE: Duration = Duration::from_secs(1);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let file = ServiceFile::new("reviews").backend("v1", &[listener.local_addr().unwrap()]);
    let file = file.route("default", &[("v1", 1)], "timeout: { request: 0s, idle: 1s }");
    let sidecar = Sidecar::of(file).await;
    let endpoint = tokio::spawn(async move {
        let mut wire = Wire::new(listener.accept().await.unwrap().0);
        wire.head().await.unwrap().unwrap();
        let head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
        wire.send(head).await.unwrap();
        let upload = wire.body(Framing::Chunked, 100).await;
        wire.send(b"2\r\nok\r\n0\r\n\r\n").await.unwrap();
        upload
    });
    let mut caller = sidecar.client().connect().await;
    let head = b"POST / HTTP/1.1\r\nhost: reviews\r\ntransfer-encoding: chunked\r\n\r\n";
    caller.wire().send(head).await.unwrap();
    for _ in 0..15 {
        caller.wire().send(b"1\r\nx\r\n").await.unwrap();
        tokio::time::sleep(IDLE / 5).await;
    }
    caller.wire().send(b"0\r\n\r\n").await.unwrap();
    let reply = within("the answer", caller.reply_to("POST")).await.unwrap();
    assert_eq!(
        (reply.status(), reply.text().as_str(), reply.body.cut),
        (200, "ok", None)
    );
    assert_eq!(within("the upload", endpoint).await.unwrap().bytes.len(), 15);
}

#[tokio::test]
async fn what_a_route_does_not_say_falls_to_the_mesh() {
    let upstream = Upstream::start("a").await;
    upstream.behave(Behaviour::Hang);
    let file = simple("reviews", &[&upstream], "");
    let mesh = "kind: Mesh\ndefaults:\n  timeout: { request: 200ms }\n";
    let sidecar = Sidecar::of(format!("{mesh}---\n{file}")).await;
    let began = Instant::now();
    let reply = sidecar.client().get("reviews", "/").await;
    assert_eq!((reply.status(), reply.reason()), (504, Some("request-timeout")));
    // The built-in default would be 15 s.
    assert!(began.elapsed() < Duration::from_secs(12).min(PATIENCE));
}
