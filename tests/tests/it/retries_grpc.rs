//! Calls of gRPC are tried again by how they ended, wherever that was said before the first message.

use std::time::{Duration, Instant};

use outrigger_tests::client::Reply;
use outrigger_tests::grpc::{Call, GrpcUpstream};
use outrigger_tests::{Ask, ServiceFile, Sidecar, SidecarSpec, Upstream, eventually, within};

async fn sidecar(upstreams: &[&GrpcUpstream], fields: &str) -> Sidecar {
    let addresses: Vec<_> = upstreams.iter().map(|upstream| upstream.address()).collect();
    let file = ServiceFile::new("reviews")
        .field("protocol: grpc")
        .backend("v1", &addresses)
        .route("default", &[("v1", 1)], fields);
    Sidecar::of(file).await
}

/// A call with a message of its own. The caller speaks HTTP/1.1, which shows heads and bodies as well as HTTP/2 does.
async fn call(sidecar: &Sidecar) -> Reply {
    let ask = Ask::post("/shop.Reviews/Get", b"\0\0\0\0\x01x")
        .host("reviews")
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    sidecar.client().send(ask).await
}

fn is_answered(reply: &Reply) -> bool {
    reply.status() == 200 && reply.body.bytes == b"\0\0\0\0\x02hi"
}

/// The conditions and the codes of gRPC that they stand for.
const CONDITIONS: [(&str, u16); 5] = [
    ("cancelled", 1),
    ("deadline-exceeded", 4),
    ("internal", 13),
    ("resource-exhausted", 8),
    ("unavailable", 14),
];

#[tokio::test]
async fn each_condition_takes_its_own_status_in_the_head_and_in_the_trailers() {
    for (on, own) in CONDITIONS {
        let upstream = GrpcUpstream::start("a").await;
        let sidecar = sidecar(&[&upstream], &format!("retry: {{ on: [{on}] }}")).await;
        for (_, status) in CONDITIONS {
            for failing in [
                Call::TrailersOnly(status, Vec::new()),
                Call::Trailers(status, Vec::new()),
            ] {
                let before = upstream.calls();
                upstream.next([failing.clone()]);
                let reply = call(&sidecar).await;
                let attempts = if status == own { 2 } else { 1 };
                assert_eq!(upstream.calls() - before, attempts, "{on}, {failing:?}");
                assert_eq!(is_answered(&reply), status == own, "{on}, {failing:?}: {reply:?}");
            }
        }
    }
}

#[tokio::test]
async fn a_status_that_no_policy_names_is_handed_on() {
    let upstream = GrpcUpstream::start("a").await;
    let sidecar = sidecar(&[&upstream], "").await;
    upstream.next([Call::TrailersOnly(14, Vec::new())]);
    let reply = call(&sidecar).await;
    assert_eq!(reply.head.header("grpc-status"), Some("14"));
    assert_eq!(upstream.calls(), 1);
}

#[tokio::test]
async fn a_call_that_fails_after_its_first_message_is_not_made_again() {
    let upstream = GrpcUpstream::start("a").await;
    let sidecar = sidecar(&[&upstream], "retry: { on: [unavailable] }").await;
    upstream.next([Call::Message(14)]);
    assert!(is_answered(&call(&sidecar).await), "the message is handed on");
    assert_eq!(upstream.calls(), 1);
}

#[tokio::test]
async fn unavailable_takes_in_what_grpc_itself_calls_so() {
    const INTERNAL_ERROR: u32 = 2;
    let upstream = GrpcUpstream::start("a").await;
    let sidecar = sidecar(&[&upstream], "retry: { on: [unavailable] }").await;
    for failing in [
        Call::Reset(INTERNAL_ERROR),
        Call::HeadThenReset(INTERNAL_ERROR),
        Call::Http("503"),
        Call::Http("429"),
    ] {
        let before = upstream.calls();
        upstream.next([failing.clone()]);
        let reply = call(&sidecar).await;
        assert!(is_answered(&reply), "{failing:?}: {reply:?}");
        assert_eq!(upstream.calls() - before, 2, "{failing:?}");
    }
    upstream.next([Call::Http("404")]);
    assert_eq!(call(&sidecar).await.status(), 404);
}

#[tokio::test]
async fn a_refused_stream_is_tried_again_and_enhance_your_calm_is_not() {
    const REFUSED_STREAM: u32 = 7;
    const ENHANCE_YOUR_CALM: u32 = 11;
    for on in ["refused-stream", "stream-error"] {
        let upstream = GrpcUpstream::start("a").await;
        let sidecar = sidecar(&[&upstream], &format!("retry: {{ on: [{on}] }}")).await;
        upstream.next([Call::Reset(REFUSED_STREAM)]);
        assert!(is_answered(&call(&sidecar).await), "{on}");
        assert_eq!(upstream.calls(), 2);
        upstream.next([Call::Reset(ENHANCE_YOUR_CALM)]);
        assert!(!is_answered(&call(&sidecar).await), "{on}");
        assert_eq!(upstream.calls(), 3);
    }
    // Not even where every failure is worth another attempt: more of the same is what it asked not to be sent.
    let upstream = GrpcUpstream::start("a").await;
    let sidecar = sidecar(&[&upstream], "retry: { on: [5xx, reset, unavailable] }").await;
    upstream.next([Call::Reset(ENHANCE_YOUR_CALM)]);
    let reply = sidecar.client().get("reviews", "/").await;
    assert_eq!((reply.status(), reply.reason()), (502, Some("enhance-your-calm")));
    assert_eq!(upstream.calls(), 1);
}

#[tokio::test]
async fn a_call_waits_as_long_as_it_is_told_and_stops_when_it_is_told() {
    const PUSHBACK: &str = "grpc-retry-pushback-ms";
    let upstream = GrpcUpstream::start("a").await;
    let sidecar = sidecar(&[&upstream], "retry: { on: [unavailable] }").await;
    for (failing, waits) in [
        (Call::TrailersOnly(14, vec![(PUSHBACK, "700")]), true),
        (Call::Trailers(14, vec![(PUSHBACK, "700")]), true),
        (Call::TrailersOnly(14, vec![(PUSHBACK, "-1")]), false),
        (Call::Trailers(14, vec![(PUSHBACK, "never")]), false),
        (Call::TrailersOnly(14, vec![(PUSHBACK, "3600000")]), false),
    ] {
        let before = upstream.calls();
        upstream.next([failing.clone()]);
        let began = Instant::now();
        let reply = call(&sidecar).await;
        assert_eq!(is_answered(&reply), waits, "{failing:?}: {reply:?}");
        assert_eq!(
            upstream.calls() - before,
            if waits { 2 } else { 1 },
            "{failing:?}"
        );
        if waits {
            assert!(
                began.elapsed() >= Duration::from_millis(700),
                "{:?}",
                began.elapsed()
            );
        }
    }
    let metrics = sidecar.metrics().await;
    assert_eq!(
        metrics.sum("outrigger_retries_total", &[("result", "pushback")]),
        3.0
    );
}

#[tokio::test]
async fn a_caller_that_waits_for_the_head_before_it_says_more_is_not_kept_waiting() {
    let upstream = GrpcUpstream::start("a").await;
    upstream.behave(Call::HeadFirst);
    let sidecar = sidecar(&[&upstream], "retry: { on: [unavailable] }").await;
    let mut connection = sidecar.client().connect().await;
    let wire = connection.wire();
    let head = "POST /shop.Reviews/Talk HTTP/1.1\r\nhost: reviews\r\ncontent-type: application/grpc\r\n\
                transfer-encoding: chunked\r\n\r\n6\r\n\0\0\0\0\x01x\r\n";
    wire.send(head.as_bytes()).await.unwrap();
    let head = within("the head", wire.head()).await.unwrap().unwrap();
    assert_eq!(head.status(), 200);
    wire.send(b"0\r\n\r\n").await.unwrap();
    let framing = head.answer_framing("POST").unwrap();
    let body = within("the message", wire.body(framing, 1024)).await;
    assert_eq!(body.bytes, b"\0\0\0\0\x02hi");
}

#[tokio::test]
async fn other_requests_are_not_looked_into() {
    let upstream = GrpcUpstream::start("a").await;
    let sidecar = sidecar(&[&upstream], "retry: { on: [unavailable] }").await;
    upstream.next([Call::Trailers(14, Vec::new())]);
    let ask = Ask::post("/plain", "x")
        .host("reviews")
        .header("content-type", "text/plain");
    assert_eq!(sidecar.client().send(ask).await.status(), 200);
    assert_eq!(upstream.calls(), 1);
}

#[tokio::test]
async fn a_call_that_the_endpoints_own_sidecar_could_not_deliver_is_made_elsewhere() {
    let (app, alive) = (Upstream::dead("app"), GrpcUpstream::start("alive").await);
    let file = ServiceFile::new("reviews")
        .field("protocol: grpc")
        .app(app.address())
        .backend("v1", &[app.address()]);
    let theirs = Sidecar::start(SidecarSpec::text("theirs", &file.to_string()).beside("reviews")).await;
    let file = ServiceFile::new("reviews")
        .field("protocol: grpc")
        .field("balance: round_robin")
        .backend("v1", &[theirs.inbound(), alive.address()])
        .route("default", &[("v1", 1)], "");
    let ours = Sidecar::of(file).await;
    for _ in 0..6 {
        let reply = call(&ours).await;
        assert!(is_answered(&reply), "{reply:?}");
    }
    let metrics = ours.metrics().await;
    let undelivered = [("reason", "connect-failed"), ("status_class", "2xx")];
    assert!(
        metrics.sum("outrigger_attempts_total", &undelivered) >= 1.0,
        "gRPC fails with 200"
    );
}

#[tokio::test]
async fn a_slow_call_is_made_a_second_time_and_the_slow_stream_is_reset() {
    let (slow, quick) = (
        GrpcUpstream::start("slow").await,
        GrpcUpstream::start("quick").await,
    );
    slow.behave(Call::Silence);
    let file = ServiceFile::new("reviews")
        .field("protocol: grpc")
        .field("balance: round_robin")
        .backend("v1", &[slow.address(), quick.address()]);
    let hedge = "hedge: { after: 50ms }\nretry: { treat_as_idempotent: [POST], on: [unavailable] }";
    let sidecar = Sidecar::of(file.route("default", &[("v1", 1)], hedge)).await;
    for _ in 0..4 {
        let reply = call(&sidecar).await;
        assert!(is_answered(&reply), "{reply:?}");
    }
    let hedged = slow.calls();
    assert!(hedged >= 2, "{hedged}");
    eventually("the slow streams to be reset", async || {
        (slow.given_up() == hedged).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_hedge_that_is_told_unavailable_does_not_end_a_call_whose_first_attempt_goes_on() {
    let (first, bad) = (
        GrpcUpstream::start("first").await,
        GrpcUpstream::start("bad").await,
    );
    first.behave(Call::Silence);
    bad.behave(Call::Trailers(14, Vec::new()));
    let file = ServiceFile::new("reviews")
        .field("protocol: grpc")
        .field("balance: round_robin")
        .backend("v1", &[first.address(), bad.address()]);
    let fields = "timeout: { request: 900ms }\nhedge: { after: 50ms }\n\
                  retry: { treat_as_idempotent: [POST], on: [unavailable] }";
    let sidecar = Sidecar::of(file.route("default", &[("v1", 1)], fields)).await;
    let reply = call(&sidecar).await;
    assert_eq!(reply.head.header("grpc-status"), Some("4"), "{reply:?}");
    assert_eq!((first.calls(), bad.calls()), (1, 1));
}
