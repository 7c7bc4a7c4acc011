//! Faults that a route puts into its requests on purpose.

use std::time::{Duration, Instant};

use outrigger_tests::client::Reply;
use outrigger_tests::grpc::GrpcUpstream;
use outrigger_tests::http2::Caller;
use outrigger_tests::wait::within;
use outrigger_tests::{Answer, Ask, Behaviour, Load, LoadSpec, ServiceFile, Sidecar, Upstream, simple};

const FAULTS: &str = "outrigger_faults_total";
const ABORT: &str = "fault: { abort: { status: 418 } }";

async fn behind(fields: &str) -> (Upstream, Sidecar) {
    let upstream = Upstream::start("a").await;
    let sidecar = Sidecar::of(simple("reviews", &[&upstream], fields)).await;
    (upstream, sidecar)
}

/// A call of gRPC, and its sidecar, whose route has these fields.
async fn call(fields: &str, timeout: &str) -> (GrpcUpstream, Sidecar, Reply) {
    let upstream = GrpcUpstream::start("a").await;
    let file = ServiceFile::new("reviews")
        .field("protocol: grpc")
        .backend("v1", &[upstream.address()])
        .route("default", &[("v1", 1)], fields);
    let sidecar = Sidecar::of(file).await;
    let ask = Ask::post("/shop.Reviews/Get", b"\0\0\0\0\x01x")
        .host("reviews")
        .header("content-type", "application/grpc")
        .header("grpc-timeout", timeout)
        .header("te", "trailers");
    let reply = sidecar.client().send(ask).await;
    (upstream, sidecar, reply)
}

#[tokio::test]
async fn an_aborted_request_is_answered_as_its_route_says_and_goes_nowhere() {
    let (upstream, sidecar) = behind(ABORT).await;
    for ask in [Ask::get("/").host("reviews"), Ask::post("/", "x").host("reviews")] {
        let reply = sidecar.client().send(ask).await;
        assert_eq!((reply.status(), reply.reason()), (418, Some("fault-injected")));
        assert!(reply.text().contains("fault-injected"), "{}", reply.text());
    }
    let mut caller = Caller::open(sidecar.outbound()).await.unwrap();
    let stream = caller.get("reviews", "/").await.unwrap();
    let reply = within("an answer", caller.reply(stream)).await.unwrap();
    assert_eq!(
        (reply.status(), reply.header("x-outrigger-reason")),
        (418, Some("fault-injected"))
    );
    let metrics = sidecar.metrics().await;
    assert_eq!(metrics.sum(FAULTS, &[("kind", "abort")]), 3.0);
    let labels = [("reason", "fault-injected"), ("status_class", "4xx")];
    assert_eq!(metrics.sum("outrigger_requests_total", &labels), 3.0);
    assert_eq!(metrics.sum("outrigger_attempts_total", &[]), 0.0);
    assert_eq!(upstream.requests(), 0);
}

#[tokio::test]
async fn an_aborted_call_of_grpc_is_answered_as_grpc_answers() {
    for (fields, status) in [
        ("fault: { abort: { status: 500, grpc_status: 8 } }", "8"),
        ("fault: { abort: { status: 503 } }", "14"),
        ("fault: { abort: {} }", "14"),
    ] {
        let (upstream, _sidecar, reply) = call(fields, "10S").await;
        assert_eq!((reply.status(), reply.reason()), (200, Some("fault-injected")));
        assert_eq!(reply.head.header("grpc-status"), Some(status), "{fields}");
        assert_eq!(upstream.calls(), 0);
    }
}

#[tokio::test]
async fn the_share_that_is_said_is_aborted_and_the_rest_is_served() {
    let (upstream, sidecar) = behind("fault: { abort: { status: 503, percent: 20% } }").await;
    let load = Load::start(LoadSpec {
        requests: Some(2_000),
        ..LoadSpec::new(sidecar.outbound(), "reviews", 4)
    });
    let report = load.finish().await;
    let (served, aborted) = (report.status(200), report.status(503));
    assert_eq!(served + aborted, 2_000, "{report:?}");
    // A chance of one in many millions to be further off.
    assert!((290..510).contains(&aborted), "{aborted} of 2,000");
    assert_eq!(upstream.requests(), served);
}

#[tokio::test]
async fn a_delayed_request_waits_and_is_then_served() {
    let delay = Duration::from_millis(300);
    let (upstream, sidecar) = behind("fault: { delay: { for: 300ms } }").await;
    let began = Instant::now();
    let reply = sidecar.client().get("reviews", "/").await;
    assert!(began.elapsed() >= delay, "{:?}", began.elapsed());
    assert_eq!((reply.status(), reply.upstream()), (200, "a"));
    let metrics = sidecar.metrics().await;
    assert_eq!(metrics.sum(FAULTS, &[("kind", "delay")]), 1.0);
    // The wait is the request's and not the endpoint's.
    let sum = |name| metrics.sum(name, &[]);
    assert!(sum("http_server_request_duration_seconds_sum") >= delay.as_secs_f64());
    assert!(
        sum("http_client_request_duration_seconds_sum")
            <= sum("http_server_request_duration_seconds_sum") - delay.as_secs_f64()
    );
    assert_eq!(upstream.requests(), 1);
}

#[tokio::test]
async fn a_delay_is_part_of_the_time_that_a_request_has() {
    let (upstream, sidecar) =
        behind("timeout: { request: 300ms }\nfault: { delay: { for: 1h }, abort: {} }").await;
    let reply = sidecar.client().get("reviews", "/").await;
    assert_eq!((reply.status(), reply.reason()), (504, Some("request-timeout")));
    let (called, _sidecar, reply) = call("fault: { delay: { for: 1h } }", "300m").await;
    assert_eq!(reply.reason(), Some("request-timeout"));
    assert_eq!(reply.head.header("grpc-status"), Some("4"));
    assert_eq!((upstream.requests(), called.calls()), (0, 0));

    // What is left after it is all that the endpoint has.
    let (upstream, sidecar) = behind("timeout: { request: 1s }\nfault: { delay: { for: 500ms } }").await;
    upstream.behave(Behaviour::Answer(Answer::ok().after(Duration::from_millis(800))));
    let reply = sidecar.client().get("reviews", "/").await;
    assert_eq!((reply.status(), reply.reason()), (504, Some("request-timeout")));
    assert_eq!(upstream.requests(), 1);
}

#[tokio::test]
async fn an_aborted_request_is_not_copied_and_not_retried() {
    let (real, mirror) = (Upstream::start("real").await, Upstream::start("mirror").await);
    let fields = "retry: { attempts: 3, on: [5xx] }\nmirror: [{ backend: v2 }]\nfault: { abort: {} }";
    let file = ServiceFile::new("reviews")
        .backend("v1", &[real.address()])
        .backend("v2", &[mirror.address()])
        .route("default", &[("v1", 1)], fields);
    let sidecar = Sidecar::of(file).await;
    assert_eq!(sidecar.client().get("reviews", "/").await.status(), 503);
    let metrics = sidecar.metrics().await;
    assert_eq!(metrics.sum("outrigger_mirrored_requests_total", &[]), 0.0);
    assert_eq!(metrics.sum("outrigger_retries_total", &[]), 0.0);
    assert_eq!((real.requests(), mirror.requests()), (0, 0));
}
