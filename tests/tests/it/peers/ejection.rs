//! A call of gRPC that has begun fails in its trailers: that counts against the endpoint, though HTTP says 200.

use outrigger_tests::cli::finish;
use outrigger_tests::program::Program;
use outrigger_tests::{ServiceFile, Sidecar, SidecarSpec};
use serde_json::Value;

use super::{python, server};

/// So many calls, one after the other, by gRPC's own client: how each ended.
async fn calls(target: &str, method: &str, count: usize) -> Vec<String> {
    let count = count.to_string();
    let client = Program::spawn("grpc calls", python("grpc", &["calls", target, method, &count]));
    let ended = finish(client).await;
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    serde_json::from_value(ended.json()).unwrap()
}

/// How an endpoint stands.
async fn health(sidecar: &Sidecar, address: &str) -> Value {
    let page = sidecar.page("/clusters").await.json();
    let endpoints = page["clusters"][0]["endpoints"].as_array().unwrap().clone();
    let found = endpoints.iter().find(|endpoint| endpoint["address"] == address);
    found.unwrap_or_else(|| panic!("{address} is not in {page}"))["health"].clone()
}

#[tokio::test]
async fn an_endpoint_whose_calls_fail_in_their_trailers_is_ejected_and_its_attempts_count_as_failed() {
    for (method, code) in [("Late", "UNAVAILABLE"), ("LateStream", "INTERNAL")] {
        let (_good, good) = server("grpc", &[]).await;
        let (_bad, bad) = server("grpc", &["", "", code]).await;
        let file = ServiceFile::new("greeter")
            .field("protocol: grpc")
            .field("balance: round_robin")
            .backend("v1", &[good, bad]);
        let spec = SidecarSpec::text("client", &file.to_string()).local("greeter");
        let sidecar = Sidecar::start(spec).await;
        let target = sidecar.local("greeter").to_string();
        let ended = calls(&target, method, 30).await;
        let failed = ended.iter().filter(|status| *status == code).count();
        assert_eq!(failed, 5, "{method}: {ended:?}");
        assert_eq!(health(&sidecar, &bad.to_string()).await, "ejected", "{method}");
        assert_eq!(health(&sidecar, &good.to_string()).await, "in", "{method}");
        let metrics = sidecar.metrics().await;
        let attempts =
            |class: &'static str| metrics.sum("outrigger_attempts_total", &[("status_class", class)]);
        assert_eq!((attempts("5xx"), attempts("2xx")), (5.0, 25.0), "{method}");
    }
}

#[tokio::test]
async fn a_status_in_the_trailers_that_blames_the_call_ejects_nobody() {
    let (_one, one) = server("grpc", &["", "", "NOT_FOUND"]).await;
    let (_other, other) = server("grpc", &["", "", "RESOURCE_EXHAUSTED"]).await;
    let file = ServiceFile::new("greeter")
        .field("protocol: grpc")
        .field("balance: round_robin")
        .backend("v1", &[one, other]);
    let spec = SidecarSpec::text("client", &file.to_string()).local("greeter");
    let sidecar = Sidecar::start(spec).await;
    let ended = calls(&sidecar.local("greeter").to_string(), "Late", 20).await;
    assert!(ended.iter().all(|status| status != "OK"), "{ended:?}");
    for endpoint in [one, other] {
        assert_eq!(health(&sidecar, &endpoint.to_string()).await, "in");
    }
    let metrics = sidecar.metrics().await;
    let attempts = metrics.sum("outrigger_attempts_total", &[("status_class", "2xx")]);
    assert_eq!(attempts, 20.0);
}
