//! Answers with records that nobody asked for.

use std::time::{Duration, Instant};

use outrigger_tests::dns_scripted::{Script, ScriptedDns};

use crate::dns_hostile::{NAME, ONE, TWO, asks, has_endpoints, upstreams};

#[tokio::test]
async fn records_of_other_names_and_types_make_no_endpoint_and_no_ttl() {
    let dns = ScriptedDns::start(&[ONE, TWO], 2).await;
    let (_upstreams, port) = upstreams(&[ONE, TWO]).await;
    dns.play(Script::Strangers);
    let fields = "refresh: { floor: 100ms, ceiling: 10s }";
    let sidecar = asks(&[dns.address()], &format!("dns: {NAME}, port: {port}, {fields}")).await;
    has_endpoints(&sidecar, 2.0).await;
    let (began, before) = (Instant::now(), dns.asked());
    dns.is_asked_more(4).await;
    let took = began.elapsed();
    // The second pair of questions comes a TTL after the first; the strangers' would be over at once.
    assert!(
        took >= Duration::from_secs(2),
        "four questions more than {before} within {took:?}"
    );
    let clusters = sidecar.page("/clusters").await.text();
    assert!(!clusters.contains("192.0.2.66"), "{clusters}");
    has_endpoints(&sidecar, 2.0).await;
}
