//! What an operator can see: metrics, admin pages, the access log.

use std::collections::BTreeSet;

use outrigger_tests::{Answer, Ask, Behaviour, Client, Sidecar, SidecarSpec, Upstream, simple};
use serde_json::Value;

const REQUESTS: &str = "outrigger_requests_total";
const ATTEMPTS: &str = "outrigger_attempts_total";

#[tokio::test]
async fn requests_and_attempts_are_counted_apart() {
    let upstream = Upstream::start("a").await;
    let sidecar = Sidecar::of(simple("reviews", &[&upstream], "")).await;
    upstream.next([
        Behaviour::Answer(Answer::status(503)),
        Behaviour::CloseBeforeAnswer,
    ]);
    assert_eq!(sidecar.client().get("reviews", "/").await.status(), 200);
    let metrics = sidecar
        .metrics_when("the request", |metrics| metrics.sum(REQUESTS, &[]) == 1.0)
        .await;
    let whole = [
        ("listener", "outbound"),
        ("service", "reviews"),
        ("route", "default"),
        ("backend", "v1"),
        ("status_class", "2xx"),
        ("reason", ""),
    ];
    assert_eq!(metrics.sum(REQUESTS, &whole), 1.0);
    let of = |class, reason| {
        let labels = [
            ("service", "reviews"),
            ("backend", "v1"),
            ("status_class", class),
            ("reason", reason),
        ];
        metrics.sum(ATTEMPTS, &labels)
    };
    assert_eq!(
        (of("5xx", ""), of("none", "upstream-reset"), of("2xx", "")),
        (1.0, 1.0, 1.0)
    );
    assert_eq!(metrics.sum(ATTEMPTS, &[]), 3.0);
    let made = [("service", "reviews"), ("route", "default"), ("result", "made")];
    assert_eq!(metrics.sum("outrigger_retries_total", &made), 2.0);
    assert_eq!(
        metrics.sum("http_server_request_duration_seconds_count", &whole[..4]),
        1.0
    );
    let cluster = [("service", "reviews"), ("backend", "v1")];
    assert_eq!(
        metrics.sum("http_client_request_duration_seconds_count", &cluster),
        3.0
    );
    assert!(metrics.sum("http_server_request_duration_seconds_sum", &[]) > 0.0);
}

#[tokio::test]
async fn a_failure_is_counted_under_the_same_word_as_its_header() {
    let upstream = Upstream::dead("a");
    let sidecar = Sidecar::of(simple(
        "reviews",
        &[&upstream],
        "match: [{ path: { prefix: /x } }]",
    ))
    .await;
    for (ask, reason, class, service) in [
        (Ask::get("/").host("nobody"), "no-service", "4xx", ""),
        (Ask::get("/").host("reviews"), "no-route", "4xx", "reviews"),
        (Ask::get("/x").host("reviews"), "connect-failed", "5xx", "reviews"),
    ] {
        let reply = sidecar.client().send(ask).await;
        assert_eq!(reply.reason(), Some(reason));
        let labels = [("reason", reason), ("status_class", class), ("service", service)];
        sidecar
            .metrics_when(reason, |metrics| metrics.sum(REQUESTS, &labels) == 1.0)
            .await;
    }
}

#[tokio::test]
async fn the_state_of_the_sidecar_is_in_its_metrics() {
    let (one, two) = (Upstream::start("one").await, Upstream::start("two").await);
    let sidecar = Sidecar::of(simple("reviews", &[&one, &two], "")).await;
    let mut connection = sidecar.client().connect().await;
    connection.send(&Ask::get("/").host("reviews")).await.unwrap();
    let metrics = sidecar.metrics().await;
    let cluster = [("service", "reviews"), ("backend", "v1")];
    assert_eq!(metrics.sum("outrigger_endpoints", &cluster), 2.0);
    assert_eq!(
        metrics.sum("outrigger_connections_open", &[("listener", "outbound")]),
        1.0
    );
    assert_eq!(metrics.sum("outrigger_config_info", &[("source", "file")]), 1.0);
    assert_eq!(
        metrics.sum("outrigger_config_pushes_total", &[("result", "applied")]),
        1.0
    );
    for name in [
        "process_resident_memory_bytes",
        "process_cpu_seconds_total",
        "process_open_fds",
    ] {
        assert!(metrics.has(name), "{name}");
    }
    let version = sidecar.config().await["version"].clone();
    let info: Vec<_> = metrics.matching("outrigger_config_info", &[]).collect();
    assert_eq!(info.len(), 1, "one configuration serves: {info:?}");
    assert_eq!(version, info[0].labels["version"].as_str());
    drop(connection);
    sidecar
        .metrics_when("the connection closed", |metrics| {
            metrics.sum("outrigger_connections_open", &[("listener", "outbound")]) == 0.0
        })
        .await;
}

#[tokio::test]
async fn the_metrics_are_in_the_format_that_prometheus_reads() {
    let upstream = Upstream::start("a").await;
    let sidecar = Sidecar::of(simple("reviews", &[&upstream], "")).await;
    sidecar.client().get("reviews", "/").await;
    let page = sidecar.page("/metrics").await;
    let kind = page.head.header("content-type").unwrap_or_default();
    assert!(
        kind.starts_with("text/plain") && kind.contains("version=0.0.4"),
        "{kind}"
    );
    let text = page.text();
    let declared: BTreeSet<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
        .filter_map(|line| line.split(' ').next())
        .collect();
    let metrics = sidecar.metrics().await;
    assert!(!metrics.samples().is_empty());
    for sample in metrics.samples() {
        let family = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|end| {
                sample
                    .name
                    .strip_suffix(end)
                    .filter(|name| declared.contains(name))
            })
            .unwrap_or(&sample.name);
        assert!(declared.contains(family), "{} has no # TYPE", sample.name);
    }
    assert_eq!(sidecar.page("/stats/prometheus").await.status(), 200);
}

#[tokio::test]
async fn the_scrape_address_serves_what_scrapers_need_and_nothing_else() {
    let upstream = Upstream::start("a").await;
    let sidecar = Sidecar::of(simple("reviews", &[&upstream], "")).await;
    let (scrape, admin) = (Client::new(sidecar.scrape()), Client::new(sidecar.admin()));
    for path in ["/metrics", "/stats/prometheus", "/ready", "/live"] {
        assert_eq!(scrape.get("x", path).await.status(), 200, "{path}");
        assert_eq!(admin.get("x", path).await.status(), 200, "{path}");
        assert_eq!(
            scrape.send(Ask::new("HEAD", path)).await.status(),
            200,
            "HEAD {path}"
        );
    }
    for path in ["/config", "/", "/metrics/x", "/nothing"] {
        assert_eq!(scrape.get("x", path).await.status(), 404, "{path}");
    }
    assert_eq!(admin.get("localhost", "/nothing").await.status(), 404);
    let config = sidecar.config().await;
    assert_eq!(config["source"], "file");
    assert_eq!(config["refused"], Value::Null);
    assert_eq!(config["documents"].as_array().map(Vec::len), Some(1), "{config}");
    assert_eq!(config["documents"][0]["name"], "reviews");
}

/// The lines of the access log until now.
fn lines(sidecar: &mut Sidecar) -> Vec<Value> {
    let output = sidecar.program().output();
    let parse = |line: &String| serde_json::from_str(line).unwrap_or_else(|_| panic!("not JSON: {line}"));
    output.iter().map(parse).collect()
}

#[tokio::test]
async fn the_access_log_has_one_json_line_for_each_request_that_it_is_asked_to_keep() {
    let upstream = Upstream::start("a").await;
    let file = simple("reviews", &[&upstream], "").to_string();
    for (which, expected) in [
        ("failures", vec!["/bad"]),
        ("all", vec!["/good", "/bad"]),
        ("off", vec![]),
    ] {
        let mut sidecar = Sidecar::start(SidecarSpec::text("a", &file).with("--access-log", which)).await;
        assert_eq!(
            sidecar.client().get("reviews", "/good?q=secret").await.status(),
            200
        );
        assert_eq!(sidecar.client().get("nobody", "/bad").await.status(), 404);
        if let Some(last) = expected.last() {
            sidecar.program().printed(last, |line| line.contains(last)).await;
        }
        // After the end nothing more is written, so nothing can have been missed.
        sidecar.program().terminate();
        sidecar.program().exited().await;
        sidecar.program().written().await;
        let lines = lines(&mut sidecar);
        assert_eq!(lines.len(), expected.len(), "{which}: {lines:?}");
        for (line, path) in lines.iter().zip(expected) {
            let text = line.to_string();
            assert!(text.contains(path) && text.contains("GET"), "{which}: {line}");
            let reason = if path == "/bad" { "no-service" } else { "" };
            assert!(text.contains(reason), "{which}: {line}");
            assert!(!line["timestamp"].is_null(), "{which}: {line}");
        }
    }
}

#[tokio::test]
async fn the_application_is_told_what_exactly_happened_and_others_are_not() {
    let upstream = Upstream::dead("a");
    let address = upstream.address().to_string();
    let file = simple("reviews", &[&upstream], "").app(upstream.address());
    let sidecar = Sidecar::start(SidecarSpec::text("reviews-1", &file.to_string()).beside("reviews")).await;
    let own = sidecar.client().get("reviews", "/").await;
    assert_eq!(own.reason(), Some("connect-failed"));
    let lines: Vec<String> = own.text().lines().map(str::to_owned).collect();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines[0].starts_with("outrigger: connect-failed: "), "{lines:?}");
    assert!(
        lines[1].contains(&address) && lines[1].contains("refused"),
        "{lines:?}"
    );
    let other = Client::new(sidecar.inbound()).get("reviews", "/").await;
    assert_eq!(other.reason(), Some("connect-failed"));
    assert_eq!(other.text().lines().count(), 1);
    assert!(!other.text().contains(&address), "{}", other.text());
}
