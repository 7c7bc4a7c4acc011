//! Answers that are but a part: for one family of addresses, or cut. What they say is used at once.

use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use outrigger_tests::dns_scripted::{Script, ScriptedDns};
use outrigger_tests::wait::eventually;
use outrigger_tests::{ServiceFile, Sidecar, SidecarSpec};
use serde_json::Value;

use crate::dns_hostile::{NAME, ONE, THREE, TWO, has_endpoints};

const SIX: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

/// A sidecar that asks this server often, and would wait for an answer for longer than a test does.
async fn sidecar(dns: &ScriptedDns) -> (Sidecar, tempfile::TempDir) {
    let folder = tempfile::tempdir().expect("a folder");
    let resolv_conf = folder.path().join("resolv.conf");
    std::fs::write(&resolv_conf, "options timeout:30\n").expect("a file");
    let discover = format!("dns: {NAME}, port: 9, refresh: {{ floor: 1s, ceiling: 1s }}");
    let file = ServiceFile::new("reviews").discover("v1", &discover);
    let spec = SidecarSpec::text("a", &file.to_string()).dns(dns.address());
    let spec = spec.with("--resolv-conf", &resolv_conf.display().to_string());
    (Sidecar::start(spec).await, folder)
}

/// What `/clusters` says of the only name.
async fn name(sidecar: &Sidecar) -> Value {
    let mut page: Value = sidecar.page("/clusters").await.json();
    page["clusters"][0]["names"][0].take()
}

/// Waits until so many records are kept of a name that is answered.
async fn keeps(sidecar: &Sidecar, count: f64) {
    sidecar
        .metrics_when(&format!("{count} kept records"), |metrics| {
            metrics.sum("outrigger_dns_kept_records", &[]) == count
        })
        .await;
}

#[tokio::test]
async fn nobody_waits_for_a_server_that_is_silent_to_questions_for_ipv6() {
    let dns = ScriptedDns::start(&[ONE], 1).await;
    dns.play(Script::SilentToSix);
    let (sidecar, _files) = sidecar(&dns).await;
    has_endpoints(&sidecar, 1.0).await;
    for (addresses, count) in [(&[ONE, TWO][..], 2.0), (&[ONE, TWO, THREE], 3.0), (&[TWO], 1.0)] {
        dns.set(addresses, 1);
        has_endpoints(&sidecar, count).await;
    }
    eventually("the silence to be told", async || {
        let name = name(&sidecar).await;
        let told = name["troubles"][0]["records"] == "AAAA" && name["result"] == "ok";
        (told && name["failing"].is_null()).then_some(())
    })
    .await;
    keeps(&sidecar, 0.0).await;
}

#[tokio::test]
async fn addresses_of_ipv6_that_come_late_are_taken_and_stay_while_they_cannot_be_asked_for() {
    let dns = ScriptedDns::start(&[ONE, SIX], 1).await;
    dns.play(Script::SixLate(Duration::from_millis(300)));
    let (sidecar, _files) = sidecar(&dns).await;
    has_endpoints(&sidecar, 2.0).await;
    dns.play(Script::SilentToSix);
    dns.set(&[ONE, TWO], 1);
    // Three: what A says is followed, and what AAAA said last is kept.
    has_endpoints(&sidecar, 3.0).await;
    keeps(&sidecar, 1.0).await;
    dns.play(Script::Whole);
    has_endpoints(&sidecar, 2.0).await;
    keeps(&sidecar, 0.0).await;
}

#[tokio::test]
async fn of_an_answer_that_is_cut_with_no_tcp_behind_it_what_came_is_used() {
    let dns = ScriptedDns::start(&[ONE, TWO], 1).await;
    dns.play(Script::Truncated { tcp: false });
    let (mut sidecar, _files) = sidecar(&dns).await;
    has_endpoints(&sidecar, 2.0).await;
    let truncated = [("name", NAME), ("result", "truncated")];
    sidecar
        .metrics_when("truncated answers", |metrics| {
            metrics.sum("outrigger_dns_lookups_total", &truncated) >= 1.0
        })
        .await;
    let shown = name(&sidecar).await;
    assert!(
        shown["result"]
            .as_str()
            .unwrap_or_default()
            .starts_with("truncated"),
        "{shown:#}"
    );
    let is_cut = |line: &Value| line["level"] == "WARN" && line["records"] == "A";
    sidecar.program().logged("the cut", is_cut).await;
    // What it names is added, and what it does not name is not taken away.
    dns.set(&[TWO, THREE], 1);
    has_endpoints(&sidecar, 3.0).await;
    dns.play(Script::Whole);
    has_endpoints(&sidecar, 2.0).await;
}
