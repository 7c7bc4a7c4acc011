//! How many requests a route lets through, and a service.

use std::net::SocketAddr;

use outrigger_tests::client::Reply;
use outrigger_tests::grpc::GrpcUpstream;
use outrigger_tests::http2::Caller;
use outrigger_tests::wait::within;
use outrigger_tests::wire::Wire;
use outrigger_tests::{
    Ask, Behaviour, Load, LoadSpec, ServiceFile, Sidecar, SidecarSpec, Upstream, eventually, simple,
};
use tokio::net::TcpSocket;

/// Three at once, and then none for as long as a test may take.
const THREE: &str = "rate_limit: { requests: 1/h, burst: 3 }";

async fn behind(fields: &str) -> (Upstream, Sidecar) {
    let upstream = Upstream::start("a").await;
    let sidecar = Sidecar::of(simple("reviews", &[&upstream], fields)).await;
    (upstream, sidecar)
}

/// After how many seconds a refused request may come again.
fn retry_after(reply: &Reply) -> u64 {
    let text = reply.head.header("retry-after");
    text.and_then(|text| text.parse().ok())
        .unwrap_or_else(|| panic!("no Retry-After in seconds: {text:?}"))
}

fn call() -> Ask {
    Ask::post("/shop.Reviews/Get", b"\0\0\0\0\x01x")
        .host("reviews")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
}

#[tokio::test]
async fn what_is_over_the_limit_is_answered_429_and_told_when_to_come_again() {
    let (upstream, mut sidecar) = behind(THREE).await;
    for _ in 0..3 {
        assert_eq!(sidecar.client().get("reviews", "/").await.status(), 200);
    }
    for ask in [Ask::get("/").host("reviews"), Ask::post("/", "x").host("reviews")] {
        let reply = sidecar.client().send(ask).await;
        assert_eq!((reply.status(), reply.reason()), (429, Some("rate-limited")));
        // A request costs an hour, of which the test has used some seconds.
        let seconds = retry_after(&reply);
        assert!((3_500..=3_600).contains(&seconds), "{seconds}");
    }
    let mut caller = Caller::open(sidecar.outbound()).await.unwrap();
    let stream = caller.get("reviews", "/").await.unwrap();
    let reply = within("an answer", caller.reply(stream)).await.unwrap();
    assert_eq!(reply.status(), 429);
    assert!(reply.header("retry-after").is_some());
    let metrics = sidecar.metrics().await;
    let labels = [
        ("reason", "rate-limited"),
        ("status_class", "4xx"),
        ("route", "default"),
    ];
    assert_eq!(metrics.sum("outrigger_requests_total", &labels), 3.0);
    assert_eq!(upstream.requests(), 3);
    sidecar
        .program()
        .printed("the limit", |line| line.contains("is over the limit of 1/h"))
        .await;
}

#[tokio::test]
async fn after_the_time_that_was_told_there_is_room_again() {
    let (_upstream, sidecar) = behind("rate_limit: { requests: 2/s, burst: 1 }").await;
    let refused = eventually("a request over the limit", async || {
        let reply = sidecar.client().get("reviews", "/").await;
        (reply.status() == 429).then_some(reply)
    })
    .await;
    assert_eq!(retry_after(&refused), 1, "rounded up, and at least one");
    eventually("room for a request", async || {
        (sidecar.client().get("reviews", "/").await.status() == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_call_of_grpc_over_the_limit_is_answered_resource_exhausted() {
    let upstream = GrpcUpstream::start("a").await;
    let file = ServiceFile::new("reviews")
        .field("protocol: grpc")
        .backend("v1", &[upstream.address()])
        .route("default", &[("v1", 1)], THREE);
    let sidecar = Sidecar::of(file).await;
    for _ in 0..3 {
        let reply = sidecar.client().send(call()).await;
        assert_eq!(reply.body.bytes, b"\0\0\0\0\x02hi");
    }
    let reply = sidecar.client().send(call()).await;
    assert_eq!((reply.status(), reply.reason()), (200, Some("rate-limited")));
    assert_eq!(reply.head.header("grpc-status"), Some("8"));
    assert!(retry_after(&reply) >= 1);
    assert_eq!(upstream.calls(), 3);
}

#[tokio::test]
async fn all_workers_share_a_limit() {
    let upstream = Upstream::start("a").await;
    let file = simple(
        "reviews",
        &[&upstream],
        "rate_limit: { requests: 1/h, burst: 100 }",
    );
    let spec = SidecarSpec::text("a", &file.to_string()).with("--workers", "4");
    let sidecar = Sidecar::start(spec).await;
    let load = Load::start(LoadSpec {
        requests: Some(1_000),
        ..LoadSpec::new(sidecar.outbound(), "reviews", 16)
    });
    let report = load.finish().await;
    assert_eq!((report.status(200), report.status(429)), (100, 900), "{report:?}");
    assert_eq!(upstream.requests(), 100);
}

#[tokio::test]
async fn a_limit_is_its_routes_alone_and_others_pay_nothing() {
    let upstream = Upstream::start("a").await;
    let file = ServiceFile::new("reviews")
        .backend("v1", &[upstream.address()])
        .route(
            "reports",
            &[("v1", 1)],
            &format!("match: [{{ path: {{ prefix: /reports }} }}]\n{THREE}"),
        )
        .route("default", &[("v1", 1)], "");
    let sidecar = Sidecar::of(file).await;
    let statuses = async |path: &str| {
        let mut statuses = Vec::new();
        for _ in 0..5 {
            statuses.push(sidecar.client().get("reviews", path).await.status());
        }
        statuses
    };
    assert_eq!(statuses("/reports").await, [200, 200, 200, 429, 429]);
    assert_eq!(statuses("/").await, [200; 5]);
}

#[tokio::test]
async fn a_push_forgets_a_limit_only_if_it_says_another() {
    let (upstream, sidecar) = behind(THREE).await;
    for _ in 0..3 {
        assert_eq!(sidecar.client().get("reviews", "/").await.status(), 200);
    }
    let other_words = format!("{THREE}\ntimeout: {{ request: 9s }}");
    sidecar
        .apply(&simple("reviews", &[&upstream], &other_words).to_string())
        .await;
    assert_eq!(sidecar.client().get("reviews", "/").await.status(), 429);
    let other_limit = "rate_limit: { requests: 1/h, burst: 4 }";
    sidecar
        .apply(&simple("reviews", &[&upstream], other_limit).to_string())
        .await;
    assert_eq!(sidecar.client().get("reviews", "/").await.status(), 200);
}

/// A sidecar beside an application, whose service says this.
async fn beside(app: SocketAddr, fields: &[&str]) -> Sidecar {
    let file = ServiceFile::new("reviews")
        .app(app)
        .backend("v1", &["127.0.0.1:1".parse().unwrap()]);
    let file = fields.iter().fold(file, |file, field| file.field(field));
    Sidecar::start(SidecarSpec::text("server", &file.to_string()).beside("reviews")).await
}

#[tokio::test]
async fn a_service_s_own_sidecar_keeps_the_limit_of_the_service_whoever_calls() {
    let app = Upstream::start("app").await;
    let server = beside(app.address(), &[THREE]).await;
    let called = ServiceFile::new("reviews").backend("v1", &[server.inbound()]);
    let callers = [Sidecar::of(&called).await, Sidecar::of(&called).await];
    let mut statuses = Vec::new();
    for number in 0..6 {
        let reply = callers[number % 2].client().get("reviews", "/").await;
        if reply.status() == 429 {
            assert_eq!(reply.reason(), Some("rate-limited"));
            assert!(retry_after(&reply) >= 1);
        }
        statuses.push(reply.status());
    }
    assert_eq!(statuses, [200, 200, 200, 429, 429, 429]);
    assert_eq!(app.requests(), 3);
    let metrics = server.metrics().await;
    let labels = [("listener", "inbound"), ("reason", "rate-limited")];
    assert_eq!(metrics.sum("outrigger_requests_total", &labels), 3.0);
}

#[tokio::test]
async fn an_instance_that_keeps_a_limit_is_not_ejected_for_it() {
    let app = GrpcUpstream::start("app").await;
    let fields = ["protocol: grpc", "rate_limit: { requests: 1/h, burst: 1 }"];
    let servers = [
        beside(app.address(), &fields).await,
        beside(app.address(), &fields).await,
    ];
    let called = ServiceFile::new("reviews")
        .field("protocol: grpc")
        .field("ejection: { consecutive_failures: 1 }")
        .field("balance: round_robin")
        .backend("v1", &servers.each_ref().map(Sidecar::inbound));
    let client = Sidecar::of(called).await;
    let mut refused = 0;
    for _ in 0..8 {
        let reply = client.client().send(call()).await;
        refused += u32::from(reply.head.header("grpc-status") == Some("8"));
    }
    assert_eq!((refused, app.calls()), (6, 2));
    assert_eq!(client.metrics().await.sum("outrigger_ejections_total", &[]), 0.0);
}

#[tokio::test]
async fn a_health_check_that_comes_over_the_limit_takes_no_instance_out() {
    for (protocol, check) in [("http", "path: /healthz"), ("grpc", "grpc: {}")] {
        let (app, calls) = (Upstream::start("app").await, GrpcUpstream::start("app").await);
        let protocol_field = format!("protocol: {protocol}");
        let address = if protocol == "grpc" {
            calls.address()
        } else {
            app.address()
        };
        let server = beside(
            address,
            &[&protocol_field, "rate_limit: { requests: 1/h, burst: 1 }"],
        )
        .await;
        // The one request that goes through is not a health check.
        let used = outrigger_tests::Client::new(server.inbound()).send(call()).await;
        assert_eq!(used.reason(), None, "{used:?}");
        let called = ServiceFile::new("reviews")
            .field(&protocol_field)
            .field(&format!(
                "health_check: {{ {check}, interval: 100ms, timeout: 1s, healthy: 1, unhealthy: 1 }}"
            ))
            .backend("v1", &[server.inbound()]);
        let client = Sidecar::of(called).await;
        let checked = |metrics: &outrigger_tests::metrics::Metrics, result| {
            metrics.sum("outrigger_health_checks_total", &[("result", result)])
        };
        let metrics = client
            .metrics_when("some health checks", |metrics| {
                checked(metrics, "well") + checked(metrics, "ill") >= 3.0
            })
            .await;
        assert_eq!(checked(&metrics, "ill"), 0.0, "{protocol}");
    }
}

#[tokio::test]
async fn each_caller_s_address_has_a_limit_of_its_own() {
    let app = Upstream::start("app").await;
    app.behave(Behaviour::Echo);
    let limit = "rate_limit: { requests: 1/h, burst: 2, per: caller }";
    let server = beside(app.address(), &[limit]).await;
    let ask = Ask::get("/").host("reviews");
    // Each on connections of its own, so that a new connection is seen to be no new caller.
    let from = async |address: &str| {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(address.parse().unwrap()).unwrap();
        let stream = socket.connect(server.inbound()).await.unwrap();
        let mut wire = Wire::new(stream);
        wire.send(&ask.to_bytes()).await.unwrap();
        within("an answer", wire.head()).await.unwrap().unwrap().status()
    };
    for address in ["127.0.0.2:0", "127.0.0.3:0"] {
        let statuses = [from(address).await, from(address).await, from(address).await];
        assert_eq!(statuses, [200, 200, 429], "{address}");
    }
}
