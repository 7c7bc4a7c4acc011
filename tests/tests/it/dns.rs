//! Endpoints that DNS finds.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use outrigger_tests::dns::{DnsServer, Manner};
use outrigger_tests::wait::eventually;
use outrigger_tests::{ServiceFile, Sidecar, SidecarSpec, Upstream};

const ONE: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 1));
const TWO: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
const NAME: &str = "reviews.mesh.test";

/// A sidecar whose service is found under [`NAME`] at this port.
async fn sidecar(dns: &DnsServer, port: u16) -> Sidecar {
    let file = ServiceFile::new("reviews").discover("v1", &format!("dns: {NAME}, port: {port}"));
    Sidecar::start(SidecarSpec::text("a", &file.to_string()).dns(dns.address())).await
}

/// Two upstreams with one port on two addresses of this machine.
async fn two_upstreams() -> (Upstream, Upstream) {
    let one = Upstream::start("one").await;
    let two = Upstream::start_at("two", SocketAddr::new(TWO, one.address().port())).await;
    (one, two)
}

#[tokio::test]
async fn every_record_is_an_endpoint_and_a_new_one_is_found_when_the_time_is_over() {
    let dns = DnsServer::start("mesh.test").await;
    let (one, mut two) = two_upstreams().await;
    dns.set(NAME, &[ONE], 1).await;
    let sidecar = sidecar(&dns, one.address().port()).await;
    for _ in 0..5 {
        assert_eq!(sidecar.client().get("reviews", "/").await.upstream(), "one");
    }
    dns.set(NAME, &[ONE, TWO], 1).await;
    eventually("the new record to be used", async || {
        (sidecar.client().get("reviews", "/").await.upstream() == "two").then_some(())
    })
    .await;
    let cluster = [("service", "reviews"), ("backend", "v1")];
    assert_eq!(sidecar.metrics().await.sum("outrigger_endpoints", &cluster), 2.0);

    dns.set(NAME, &[ONE], 1).await;
    sidecar
        .metrics_when("one endpoint", |metrics| {
            metrics.sum("outrigger_endpoints", &cluster) == 1.0
        })
        .await;
    two.kill();
    for _ in 0..5 {
        assert_eq!(sidecar.client().get("reviews", "/").await.upstream(), "one");
    }
}

#[tokio::test]
async fn a_name_that_does_not_exist_yet_is_a_503_that_says_so_and_then_is_found() {
    let dns = DnsServer::start("mesh.test").await;
    let one = Upstream::start("one").await;
    let sidecar = sidecar(&dns, one.address().port()).await;
    let reply = sidecar.client().get("reviews", "/").await;
    assert_eq!((reply.status(), reply.reason()), (503, Some("no-endpoint")));
    dns.set(NAME, &[ONE], 1).await;
    eventually("the name to be found", async || {
        (sidecar.client().get("reviews", "/").await.status() == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_name_that_goes_away_is_remembered() {
    let dns = DnsServer::start("mesh.test").await;
    let one = Upstream::start("one").await;
    dns.set(NAME, &[ONE], 1).await;
    let mut sidecar = sidecar(&dns, one.address().port()).await;
    assert_eq!(sidecar.client().get("reviews", "/").await.status(), 200);
    dns.set(NAME, &[], 1).await;
    // The sidecar says in its log that the question failed; from then on only its memory serves.
    sidecar
        .program()
        .logged("that the name is gone", |line| line.to_string().contains(NAME))
        .await;
    for _ in 0..5 {
        assert_eq!(sidecar.client().get("reviews", "/").await.upstream(), "one");
    }
}

#[tokio::test]
async fn a_push_keeps_what_dns_has_found() {
    let dns = DnsServer::start("mesh.test").await;
    let one = Upstream::start("one").await;
    dns.set(NAME, &[ONE], 1).await;
    let sidecar = sidecar(&dns, one.address().port()).await;
    assert_eq!(sidecar.client().get("reviews", "/").await.status(), 200);
    dns.set(NAME, &[], 1).await;
    let file = ServiceFile::new("reviews")
        .discover("v1", &format!("dns: {NAME}, port: {}", one.address().port()))
        .route("renamed", &[("v1", 1)], "");
    sidecar.apply(&file.to_string()).await;
    assert_eq!(sidecar.client().get("reviews", "/").await.upstream(), "one");
}

#[tokio::test]
async fn a_name_server_that_fails_or_falls_silent_takes_no_endpoint_away() {
    let dns = DnsServer::start("mesh.test").await;
    let (one, _two) = two_upstreams().await;
    dns.set(NAME, &[ONE], 1).await;
    let sidecar = sidecar(&dns, one.address().port()).await;
    for (manner, now, then, address) in [
        (Manner::Fails, "one", "two", TWO),
        (Manner::Silent, "two", "one", ONE),
    ] {
        let before = dns.refused();
        dns.behave(manner);
        eventually("a question in vain", async || {
            (dns.refused() > before + 1).then_some(())
        })
        .await;
        for _ in 0..5 {
            let reply = sidecar.client().get("reviews", "/").await;
            assert_eq!(reply.upstream(), now, "{manner:?}: {reply:?}");
        }
        assert_eq!(sidecar.metrics().await.sum("outrigger_endpoints", &[]), 1.0);
        // What it says when it is back counts.
        dns.set(NAME, &[address], 1).await;
        dns.behave(Manner::Answers);
        eventually("the new address to be used", async || {
            (sidecar.client().get("reviews", "/").await.upstream() == then).then_some(())
        })
        .await;
    }
}
