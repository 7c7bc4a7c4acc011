//! A sidecar that is told to call itself says so instead of going round.

use outrigger_tests::{ServiceFile, Sidecar, SidecarSpec, Upstream, simple};

#[tokio::test]
async fn a_backend_that_is_the_sidecar_s_own_outbound_listener_is_refused_at_once() {
    let upstream = Upstream::start("a").await;
    let sidecar = Sidecar::of(simple("reviews", &[&upstream], "")).await;
    let round = ServiceFile::new("reviews").backend("v1", &[sidecar.outbound()]);
    sidecar.apply(&round.to_string()).await;
    let reply = sidecar.client().get("reviews", "/").await;
    assert_eq!((reply.status(), reply.reason()), (508, Some("loop")));
    let labels = [("service", "reviews"), ("reason", "loop")];
    let metrics = sidecar.metrics().await;
    assert_eq!(
        metrics.sum("outrigger_requests_total", &labels),
        1.0,
        "it came once"
    );
}

#[tokio::test]
async fn of_several_endpoints_the_one_that_is_the_sidecar_itself_is_left_out() {
    let upstream = Upstream::start("a").await;
    let spec = SidecarSpec::text("a", &simple("reviews", &[&upstream], "").to_string());
    let sidecar = Sidecar::start(spec.local("reviews")).await;
    let both = ServiceFile::new("reviews").backend("v1", &[sidecar.local("reviews"), upstream.address()]);
    sidecar.apply(&both.to_string()).await;
    for _ in 0..20 {
        let reply = sidecar.client().get("reviews", "/").await;
        assert_eq!((reply.status(), reply.upstream()), (200, "a"));
    }
    let metrics = sidecar.metrics().await;
    let labels = [("service", "reviews")];
    assert_eq!(
        metrics.sum("outrigger_requests_total", &labels),
        20.0,
        "none went round"
    );
}

#[tokio::test]
async fn an_application_that_is_said_to_listen_where_its_sidecar_does_is_a_loop() {
    let upstream = Upstream::start("a").await;
    let file = simple("reviews", &[&upstream], "").app(upstream.address());
    let sidecar = Sidecar::start(SidecarSpec::text("a", &file.to_string()).beside("reviews")).await;
    for door in [sidecar.inbound(), sidecar.outbound()] {
        sidecar
            .apply(&simple("reviews", &[&upstream], "").app(door).to_string())
            .await;
        let inbound = outrigger_tests::Client::new(sidecar.inbound());
        let reply = inbound.get("reviews", "/").await;
        assert_eq!((reply.status(), reply.reason()), (508, Some("loop")), "{door}");
    }
}

#[tokio::test]
async fn a_service_may_call_itself_through_its_own_sidecar() {
    let app = Upstream::start("app").await;
    let file = simple("reviews", &[&app], "").app(app.address());
    let sidecar = Sidecar::start(SidecarSpec::text("a", &file.to_string()).beside("reviews")).await;
    let own = ServiceFile::new("reviews")
        .app(app.address())
        .backend("v1", &[sidecar.inbound()]);
    sidecar.apply(&own.to_string()).await;
    let reply = sidecar.client().get("reviews", "/").await;
    assert_eq!((reply.status(), reply.upstream()), (200, "app"));
}
