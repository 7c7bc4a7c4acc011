//! Endpoints that die.

use std::time::{Duration, Instant};

use outrigger_tests::upstream::Deaf;
use outrigger_tests::wait::eventually;
use outrigger_tests::{Ask, Load, LoadSpec, ServiceFile, Sidecar, SidecarSpec, Upstream, simple};

#[tokio::test]
async fn one_of_three_dies_under_load_and_no_get_fails() {
    let mut upstreams = [
        Upstream::start("a").await,
        Upstream::start("b").await,
        Upstream::start("c").await,
    ];
    let endpoints: Vec<&Upstream> = upstreams.iter().collect();
    let sidecar = Sidecar::of(simple("reviews", &endpoints, "")).await;
    let load = Load::start(LoadSpec::new(sidecar.outbound(), "reviews", 16));
    load.has_done(1_000).await;
    upstreams[0].kill();
    load.has_done_more(2_000).await;
    let before = load.so_far();
    upstreams[0].revive().await;
    eventually("the one that came back to be asked again", async || {
        (load.so_far().since(&before).upstream("a") > 0).then_some(())
    })
    .await;
    load.stop().await.assert_clean();
}

#[tokio::test]
async fn with_every_endpoint_dead_there_is_a_503_at_once_that_says_so() {
    let mut upstreams = [
        Upstream::start("a").await,
        Upstream::start("b").await,
        Upstream::start("c").await,
    ];
    let endpoints: Vec<&Upstream> = upstreams.iter().collect();
    let sidecar = Sidecar::of(simple("reviews", &endpoints, "")).await;
    assert_eq!(sidecar.client().get("reviews", "/").await.status(), 200);
    for upstream in &mut upstreams {
        upstream.kill();
    }
    for round in 0..20 {
        let began = Instant::now();
        let method = if round % 2 == 0 { "GET" } else { "POST" };
        let reply = sidecar.client().send(Ask::new(method, "/").host("reviews")).await;
        let reason = reply.reason().unwrap_or_default();
        assert_eq!(reply.status(), 503, "round {round}: {reply:?}");
        assert!(
            ["connect-failed", "no-endpoint"].contains(&reason),
            "round {round}: {reason}"
        );
        // At once is milliseconds; the bound is for a machine that is busy with other tests.
        assert!(
            began.elapsed() < Duration::from_secs(3),
            "round {round}: {:?}",
            began.elapsed()
        );
    }
    upstreams[1].revive().await;
    eventually("the one that came back to answer", async || {
        (sidecar.client().get("reviews", "/").await.upstream() == "b").then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_dead_application_is_told_from_a_dead_sidecar_by_its_reason() {
    let mut app = Upstream::start("app").await;
    let file = ServiceFile::new("reviews")
        .app(app.address())
        .backend("v1", &[app.address()]);
    let mut server = Sidecar::start(SidecarSpec::text("server", &file.to_string()).beside("reviews")).await;
    let called = ServiceFile::new("reviews").backend("v1", &[server.inbound()]);
    let client = Sidecar::start(SidecarSpec::text("client", &called.to_string())).await;
    assert_eq!(client.client().get("reviews", "/").await.upstream(), "app");
    app.kill();
    let reply = client.client().send(Ask::post("/", "x").host("reviews")).await;
    assert_eq!((reply.status(), reply.reason()), (503, Some("connect-failed")));
    let seen = [("listener", "inbound"), ("reason", "connect-failed")];
    server
        .metrics_when("the dead application", |metrics| {
            metrics.sum("outrigger_requests_total", &seen) >= 1.0
        })
        .await;
    server.program().kill();
    let reply = client.client().send(Ask::post("/", "x").host("reviews")).await;
    assert_eq!(reply.status(), 503);
    assert!(["connect-failed", "no-endpoint"].contains(&reply.reason().unwrap_or_default()));
}

#[tokio::test]
async fn an_endpoint_that_neither_takes_nor_refuses_a_connection_is_left_for_another() {
    let (deaf, good) = (Deaf::start(), Upstream::start("good").await);
    let file = ServiceFile::new("reviews")
        .field("balance: round_robin")
        .backend("v1", &[deaf.address(), good.address()])
        .backend("deaf", &[deaf.address()])
        .route(
            "deaf",
            &[("deaf", 1)],
            "match: [{ path: { exact: /deaf } }]\nretry: { attempts: 1 }",
        )
        .route("default", &[("v1", 1)], "");
    let sidecar = Sidecar::of(file).await;
    for method in ["GET", "POST", "GET"] {
        let reply = sidecar.client().send(Ask::new(method, "/").host("reviews")).await;
        assert_eq!((reply.status(), reply.upstream()), (200, "good"), "{method}");
    }
    let reply = sidecar.client().get("reviews", "/deaf").await;
    assert_eq!((reply.status(), reply.reason()), (503, Some("connect-timeout")));
}
