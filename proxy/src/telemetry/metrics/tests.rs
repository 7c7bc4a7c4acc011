//! The page about metrics, and what is counted.

use std::fmt::Write;

use super::*;

/// What docs/metrics.md must say.
fn page() -> String {
    let mut page = String::from(
        "# Metrics of the sidecar\n\nMade from the definitions in the code (`UPDATE=1 cargo test -p outrigger-proxy`). Served as \
         Prometheus text on `/metrics` and `/stats/prometheus` of the scrape port (9901) and the admin port (9902).\n\n\
         Labels come from names in the configuration and from closed sets, never from a request. `status_class` is \
         `1xx` to `5xx`, or `none` where the caller saw no status. `reason` is empty where an application answered, or a route by itself, else one \
         of the words below. `backend` and `route` are empty for requests that chose none. Durations are in seconds.\n\n\
         | name | labels | meaning |\n|---|---|---|\n",
    );
    for Definition { name, help, labels } in ALL {
        let labels: Vec<String> = labels.iter().map(|label| format!("`{label}`")).collect();
        writeln!(page, "| `{name}` | {} | {help} |", labels.join(", ")).unwrap();
    }
    page.push_str("| `process_*` | | CPU, memory, descriptors and start time of the process. |\n\n");
    page.push_str(
        "# Reasons\n\nThe same word stands in the `x-outrigger-reason` header of an answer that the sidecar made itself, in \
         the access log and in the metrics. What exactly happened, and at which address, is `detail` of the access log, whose lines \
         go to standard output, and the second line of the answer where the application calls its own sidecar; `/clusters` of the admin port shows each endpoint.\n\n| reason | status | may the upstream have seen the request | look first |\n|---|---|---|---|\n",
    );
    for reason in Reason::ALL {
        let seen = match reason.reached() {
            crate::error::Reached::No => "no",
            crate::error::Reached::Maybe => "maybe",
        };
        let (word, status, advice) = (reason.word(), reason.status().as_u16(), reason.advice());
        writeln!(page, "| `{word}` | {status} | {seen} | {advice} |").unwrap();
    }
    page
}

#[test]
fn the_page_about_metrics_says_what_is_served() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(path, page()).unwrap();
    }
    let written = std::fs::read_to_string(path).unwrap();
    assert_eq!(
        written,
        page(),
        "docs/metrics.md is stale: UPDATE=1 cargo test -p outrigger-proxy renews it"
    );
}

#[test]
fn a_request_is_counted_once_by_how_it_ended_and_its_time_is_kept_apart() {
    let metrics = Arc::new(Metrics::new().unwrap());
    let labels = RouteLabels {
        listener: "outbound",
        service: "reviews".into(),
        route: "default".into(),
        backend: "v1".into(),
    };
    let series = metrics.route(labels);
    series.request(Ending::answered(http::StatusCode::OK), Duration::from_millis(3));
    series.request(Ending::answered(http::StatusCode::OK), Duration::from_millis(3));
    series.request(Ending::failed(None, Reason::ClientGone), Duration::from_secs(3));
    let text = String::from_utf8(metrics.encode().unwrap()).unwrap();
    let named = "backend=\"v1\",listener=\"outbound\"";
    let rest = "route=\"default\",service=\"reviews\"";
    for line in [
        format!("outrigger_requests_total{{{named},reason=\"\",{rest},status_class=\"2xx\"}} 2"),
        format!("outrigger_requests_total{{{named},reason=\"client-gone\",{rest},status_class=\"none\"}} 1"),
        format!("http_server_request_duration_seconds_bucket{{{named},{rest},le=\"0.004\"}} 2"),
        format!("http_server_request_duration_seconds_count{{{named},{rest}}} 3"),
    ] {
        assert!(text.contains(&line), "{line} is not in\n{text}");
    }
}
