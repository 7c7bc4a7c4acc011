//! A retry leaves a backend that fails, and the metrics say which one it was.

use outrigger_tests::{Answer, Behaviour, ServiceFile, Sidecar, Upstream};

/// A service whose `stable` works and whose `canary` answers every request with 503.
async fn release(weights: [u32; 2], fields: &str) -> (Upstream, Upstream, Sidecar) {
    let (stable, canary) = (Upstream::start("stable").await, Upstream::start("canary").await);
    canary.behave(Behaviour::Answer(Answer::status(503)));
    let file = ServiceFile::new("reviews")
        .backend("stable", &[stable.address()])
        .backend("canary", &[canary.address()])
        .route(
            "default",
            &[("stable", weights[0]), ("canary", weights[1])],
            fields,
        );
    let sidecar = Sidecar::of(file).await;
    (stable, canary, sidecar)
}

#[tokio::test]
async fn a_release_that_fails_costs_no_caller_anything_and_is_still_seen_to_fail() {
    const REQUESTS: u64 = 200;
    let (stable, canary) = (Upstream::start("stable").await, Upstream::start("canary").await);
    let another = Upstream::start("another").await;
    for failing in [&canary, &another] {
        failing.behave(Behaviour::Answer(Answer::status(503)));
    }
    let file = ServiceFile::new("reviews")
        .backend("stable", &[stable.address()])
        .backend("canary", &[canary.address(), another.address()])
        .route(
            "default",
            &[("stable", 60), ("canary", 40)],
            "retry: { budget: { ratio: 100% } }",
        );
    let sidecar = Sidecar::of(file).await;
    for _ in 0..REQUESTS {
        let reply = sidecar.client().get("reviews", "/").await;
        assert_eq!((reply.status(), reply.upstream()), (200, "stable"));
    }
    // Each of its share once: no retry stays there, though it has an endpoint that was not tried.
    let tried = canary.requests() + another.requests();
    assert!((75..=85).contains(&tried), "{tried}");
    let metrics = sidecar.metrics().await;
    let failed = [("backend", "canary"), ("status_class", "5xx")];
    assert_eq!(metrics.sum("outrigger_attempts_total", &failed), tried as f64);
    let answered = |backend| metrics.sum("outrigger_requests_total", &[("backend", backend)]);
    assert_eq!((answered("stable"), answered("canary")), (REQUESTS as f64, 0.0));
}

#[tokio::test]
async fn a_connection_that_a_release_refuses_is_made_elsewhere_for_any_method() {
    let stable = Upstream::start("stable").await;
    let canary = Upstream::dead("canary");
    let file = ServiceFile::new("reviews")
        .backend("stable", &[stable.address()])
        .backend("canary", &[canary.address()])
        .route("default", &[("stable", 1), ("canary", 1)], "");
    let sidecar = Sidecar::of(file).await;
    for _ in 0..20 {
        let ask = outrigger_tests::Ask::post("/", "x").host("reviews");
        let reply = sidecar.client().send(ask).await;
        assert_eq!((reply.status(), reply.upstream()), (200, "stable"));
    }
}

#[tokio::test]
async fn a_retry_stays_with_its_backend_where_the_policy_says_so() {
    let fields = "retry: { same_backend: true, attempts: 2, budget: { ratio: 100% } }";
    let (stable, canary, sidecar) = release([50, 50], fields).await;
    let mut failed = 0;
    for _ in 0..20 {
        failed += u64::from(sidecar.client().get("reviews", "/").await.status() == 503);
    }
    assert!((9..=11).contains(&failed), "{failed}");
    assert_eq!((canary.requests(), stable.requests()), (2 * failed, 20 - failed));
    let metrics = sidecar.metrics().await;
    let answered = [("backend", "canary"), ("status_class", "5xx")];
    assert_eq!(metrics.sum("outrigger_requests_total", &answered), failed as f64);
}

#[tokio::test]
async fn a_backend_of_weight_zero_is_sent_no_retry() {
    let (stable, canary, sidecar) = release([0, 1], "retry: { attempts: 3 }").await;
    assert_eq!(sidecar.client().get("reviews", "/").await.status(), 503);
    assert_eq!((stable.requests(), canary.requests()), (0, 3));
}
