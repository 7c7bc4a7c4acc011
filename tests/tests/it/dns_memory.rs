//! What is remembered of names: while DNS fails, when it names some of many, across pushes, for several backends.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use outrigger_tests::dns::{DnsServer, Manner};
use outrigger_tests::wait::eventually;
use outrigger_tests::{Load, LoadSpec, ServiceFile, Sidecar, SidecarSpec, Upstream};
use serde_json::Value;

const ONE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const NAME: &str = "reviews.mesh.test";

/// Ten questions a second, whatever the TTL.
const OFTEN: &str = "refresh: { floor: 100ms, ceiling: 100ms }";

/// The service file whose one backend is found under [`NAME`].
fn file(port: u16, more: &str) -> ServiceFile {
    ServiceFile::new("reviews").discover("v1", &format!("dns: {NAME}, port: {port}, {more}"))
}

async fn sidecar(dns: &DnsServer, file: &ServiceFile) -> Sidecar {
    Sidecar::start(SidecarSpec::text("a", &file.to_string()).dns(dns.address())).await
}

/// What `/clusters` says of the only cluster.
async fn cluster(sidecar: &Sidecar) -> Value {
    let mut page: Value = sidecar.page("/clusters").await.json();
    page["clusters"][0].take()
}

/// So many addresses of this machine.
fn addresses(count: u8) -> Vec<IpAddr> {
    (1..=count)
        .map(|last| IpAddr::V4(Ipv4Addr::new(127, 0, 0, last)))
        .collect()
}

/// A server at every address of this machine, on one port.
async fn everywhere() -> Upstream {
    Upstream::start_at("everywhere", SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))).await
}

#[tokio::test]
async fn under_load_no_failure_of_dns_fails_a_request_and_each_is_seen() {
    let dns = DnsServer::start("mesh.test").await;
    let upstream = Upstream::start("one").await;
    dns.set(NAME, &[ONE], 0).await;
    let mut sidecar = sidecar(&dns, &file(upstream.address().port(), OFTEN)).await;
    let load = Load::start(LoadSpec::new(sidecar.outbound(), "reviews", 4));
    load.has_done(100).await;
    for (manner, result) in [
        (Some(Manner::Fails), "servfail"),
        (Some(Manner::Refuses), "refused"),
        (Some(Manner::Empty), "empty"),
        (Some(Manner::Silent), "timeout"),
        (None, "nxdomain"),
    ] {
        let mark = sidecar.program().log_mark();
        match manner {
            Some(manner) => dns.behave(manner),
            None => dns.set(NAME, &[], 0).await,
        }
        let labels = [("name", NAME), ("result", result)];
        sidecar
            .metrics_when(&format!("{result}, and what is kept"), |metrics| {
                let kept = metrics.sum("outrigger_dns_kept_records", &[("name", NAME)]);
                metrics.sum("outrigger_dns_lookups_total", &labels) >= 1.0 && kept == 1.0
            })
            .await;
        let shown = cluster(&sidecar).await;
        let name = &shown["names"][0];
        assert_eq!(
            (name["name"].as_str(), name["known"].as_u64()),
            (Some(NAME), Some(1))
        );
        assert!(
            name["failing"]["kept_for_ms"].as_u64() > Some(3_500_000),
            "{shown:#}"
        );
        load.has_done_more(100).await;
        dns.behave(Manner::Answers);
        dns.set(NAME, &[ONE], 0).await;
        sidecar
            .metrics_when("that DNS answers again", |metrics| {
                metrics.sum("outrigger_dns_kept_records", &[]) == 0.0
            })
            .await;
        let logged = |level: &'static str, words: &'static str| {
            move |line: &Value| line["level"] == level && line.to_string().contains(words)
        };
        let (begins, ends) = (
            logged("WARN", "DNS has no answer"),
            logged("INFO", "DNS answers again"),
        );
        sidecar
            .program()
            .logged_after(mark, "that DNS fails", begins)
            .await;
        sidecar
            .program()
            .logged_after(mark, "that it answers", ends)
            .await;
    }
    let report = load.stop().await;
    report.assert_clean();
    let shown = cluster(&sidecar).await;
    assert_eq!(shown["names"][0]["result"], "ok", "{shown:#}");
    let found = &shown["endpoints"][0]["found"];
    assert_eq!(found["answered_by"], dns.address().to_string(), "{shown:#}");
    assert_eq!(
        (found["name"].as_str(), found["lacked_by"].as_u64()),
        (Some(NAME), Some(0))
    );
}

#[tokio::test]
async fn what_is_kept_goes_when_its_time_is_over_and_the_reason_names_dns() {
    let dns = DnsServer::start("mesh.test").await;
    let upstream = Upstream::start("one").await;
    dns.set(NAME, &[ONE], 0).await;
    let more = format!("{OFTEN}, keep: 2s");
    let mut sidecar = sidecar(&dns, &file(upstream.address().port(), &more)).await;
    assert_eq!(sidecar.client().get("reviews", "/").await.status(), 200);
    dns.set(NAME, &[], 0).await;
    let reply = eventually("what was kept to be let go of", async || {
        let reply = sidecar.client().get("reviews", "/").await;
        (reply.status() != 200).then_some(reply)
    })
    .await;
    assert_eq!((reply.status(), reply.reason()), (503, Some("no-endpoint")));
    let shown = cluster(&sidecar).await;
    let absence = shown["absence"].as_str().unwrap_or_default();
    let told = format!("DNS for {NAME}: NXDOMAIN since ");
    assert!(
        absence.starts_with(&told) && absence.ends_with(" (kept for 2s)"),
        "{absence}"
    );
    let in_the_log = |line: &str| line.contains(&told) && line.contains("(kept for 2s)");
    sidecar
        .program()
        .printed("the failure with its reason", in_the_log)
        .await;
    dns.set(NAME, &[ONE], 0).await;
    eventually("the name to be found again", async || {
        (sidecar.client().get("reviews", "/").await.status() == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_name_is_asked_for_once_however_many_backends_want_it_and_a_push_asks_nothing() {
    let dns = DnsServer::start("mesh.test").await;
    let upstream = Upstream::start("one").await;
    dns.set(NAME, &[ONE], 600).await;
    let port = upstream.address().port();
    let both = |balance: &str| {
        let one = file(port, "keep: 1h").field(&format!("balance: {balance}"));
        let two = ServiceFile::new("ratings").discover("v1", &format!("dns: {NAME}, port: {port}"));
        let three = ServiceFile::new("details").discover("v1", &format!("dns: {NAME}, port: {port}"));
        format!("{one}---\n{two}---\n{three}")
    };
    let spec = SidecarSpec::text("a", &both("round_robin")).dns(dns.address());
    let sidecar = Sidecar::start(spec).await;
    for service in ["reviews", "ratings", "details"] {
        assert_eq!(sidecar.client().get(service, "/").await.status(), 200);
    }
    // One for A, one for AAAA.
    assert_eq!(dns.asked(NAME), 2);

    // Every cluster of reviews is a new one, and what is known is handed to it though DNS is silent.
    dns.behave(Manner::Silent);
    sidecar.apply(&both("least_request")).await;
    for service in ["reviews", "ratings", "details"] {
        assert_eq!(sidecar.client().get(service, "/").await.status(), 200);
    }
    assert_eq!(dns.asked(NAME), 2);

    // Other times are another question, which begins with what the last one knew.
    let other = file(port, "keep: 30m").to_string();
    sidecar.apply(&other).await;
    assert_eq!(sidecar.client().get("reviews", "/").await.status(), 200);
}

#[tokio::test]
async fn a_name_that_no_backend_wants_any_more_is_not_asked_for_and_its_series_go() {
    let dns = DnsServer::start("mesh.test").await;
    let upstream = Upstream::start("one").await;
    dns.set(NAME, &[ONE], 0).await;
    let sidecar = sidecar(&dns, &file(upstream.address().port(), OFTEN)).await;
    sidecar
        .metrics_when("questions", |metrics| {
            metrics.sum("outrigger_dns_lookups_total", &[("name", NAME)]) >= 2.0
        })
        .await;
    sidecar
        .apply(
            &ServiceFile::new("reviews")
                .backend("v1", &[upstream.address()])
                .to_string(),
        )
        .await;
    sidecar
        .metrics_when("that the name is gone", |metrics| {
            !metrics.has("outrigger_dns_lookups_total") && !metrics.has("outrigger_dns_kept_records")
        })
        .await;
    let asked = dns.asked(NAME);
    for _ in 0..20 {
        assert_eq!(sidecar.client().get("reviews", "/").await.status(), 200);
    }
    assert_eq!(dns.asked(NAME), asked);
}

#[tokio::test]
async fn of_answers_that_name_8_of_30_at_random_all_30_are_used_and_stay() {
    let dns = DnsServer::start("mesh.test").await;
    let upstream = everywhere().await;
    dns.sample(NAME, &addresses(30), 8, 11);
    let more = format!("{OFTEN}, family: v4");
    let mut sidecar = sidecar(&dns, &file(upstream.address().port(), &more)).await;
    let load = Load::start(LoadSpec::new(sidecar.outbound(), "reviews", 2));
    let thirty = [("service", "reviews")];
    sidecar
        .metrics_when("30 endpoints", |metrics| {
            metrics.sum("outrigger_endpoints", &thirty) == 30.0
        })
        .await;
    let mark = sidecar.program().log_mark();
    let asked = dns.asked(NAME);
    eventually("forty answers more", async || {
        (dns.asked(NAME) > asked + 40).then_some(())
    })
    .await;
    let log = &sidecar.program().log()[mark..];
    let changes: Vec<&String> = log
        .iter()
        .filter(|line| line.contains("endpoints changed"))
        .collect();
    assert!(changes.is_empty(), "{changes:#?}");
    let shown = cluster(&sidecar).await;
    assert_eq!(shown["names"][0]["sampled"], true, "{shown:#}");

    // Fewer than a sample are all there are.
    dns.sample(NAME, &addresses(5), 5, 12);
    sidecar
        .metrics_when("5 endpoints", |metrics| {
            metrics.sum("outrigger_endpoints", &thirty) == 5.0
        })
        .await;
    load.stop().await.assert_clean();
}

#[tokio::test]
async fn an_endpoint_that_a_sampled_answer_lacks_goes_at_once_when_it_refuses_connections() {
    let dns = DnsServer::start("mesh.test").await;
    let one = Upstream::start("one").await;
    let port = one.address().port();
    let mut others = Vec::new();
    for address in &addresses(12)[1..] {
        others.push(Upstream::start_at("others", SocketAddr::new(*address, port)).await);
    }
    dns.sample(NAME, &addresses(12), 3, 5);
    let more = format!("{OFTEN}, family: v4");
    let sidecar = sidecar(&dns, &file(port, &more)).await;
    eventually("12 endpoints, known to be sampled", async || {
        let shown = cluster(&sidecar).await;
        let known = shown["endpoints"].as_array().map(Vec::len);
        (known == Some(12) && shown["names"][0]["sampled"] == true).then_some(())
    })
    .await;
    // Three of them end, as in a deployment, and DNS knows it. By chance alone it would take 49 answers to be sure.
    let asked = dns.asked(NAME);
    drop(others.split_off(8));
    dns.sample(NAME, &addresses(9), 3, 6);
    let load = Load::start(LoadSpec::new(sidecar.outbound(), "reviews", 2));
    sidecar
        .metrics_when("9 endpoints", |metrics| {
            metrics.sum("outrigger_endpoints", &[]) == 9.0
        })
        .await;
    let answers = dns.asked(NAME) - asked;
    assert!(answers < 40, "{answers} answers");
    load.stop().await;
}

#[tokio::test]
async fn an_answer_that_is_too_long_for_udp_is_asked_for_over_tcp() {
    let dns = DnsServer::start("mesh.test").await;
    let upstream = everywhere().await;
    dns.set(NAME, &addresses(200), 1).await;
    let sidecar = sidecar(&dns, &file(upstream.address().port(), "family: v4")).await;
    let metrics = sidecar.metrics().await;
    assert_eq!(metrics.sum("outrigger_endpoints", &[]), 200.0);
}

#[tokio::test]
async fn the_names_of_a_large_push_are_all_found_and_each_is_asked_for_once() {
    let dns = DnsServer::start("mesh.test").await;
    let upstream = Upstream::start("one").await;
    let port = upstream.address().port();
    let names: Vec<String> = (0..300).map(|number| format!("s{number}.mesh.test")).collect();
    let mut text = String::new();
    for (number, name) in names.iter().enumerate() {
        dns.set(name, &[ONE], 600).await;
        let service = ServiceFile::new(&format!("s{number}"))
            .discover("v1", &format!("dns: {name}, port: {port}, family: v4"));
        text += &format!("{service}---\n");
    }
    let sidecar = Sidecar::start(SidecarSpec::text("a", &text).dns(dns.address())).await;
    sidecar
        .metrics_when("300 endpoints", |metrics| {
            metrics.sum("outrigger_endpoints", &[]) == 300.0
        })
        .await;
    // A datagram may be lost on a busy machine, and its question repeated; a herd would be many more.
    let asked: u64 = names.iter().map(|name| dns.asked(name)).sum();
    assert!((300..330).contains(&asked), "{asked}");
}
