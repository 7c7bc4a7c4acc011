//! What a sidecar is worried about is seen from afar: by the control API, and with `outrigger status`.

use hickory_proto::op::ResponseCode;
use outrigger_tests::dns_scripted::{Script, ScriptedDns};
use outrigger_tests::{ControlApi, ServiceFile, Sidecar, SidecarSpec, outrigger};
use serde_json::Value;

use crate::dns_hostile::{NAME, ONE, TWO, has_endpoints};

/// The notices of the only node.
fn notices(nodes: &Value) -> Vec<&str> {
    let notices = nodes["nodes"][0]["notices"].as_array();
    notices.into_iter().flatten().filter_map(Value::as_str).collect()
}

#[tokio::test]
async fn a_name_that_fails_is_told_to_the_control_api_at_once_and_shown_by_status_until_it_is_found() {
    let dns = ScriptedDns::start(&[ONE, TWO], 1).await;
    let api = ControlApi::start().await;
    let often = format!("dns: {NAME}, port: 9, refresh: {{ floor: 100ms, ceiling: 200ms }}");
    api.pushed(&ServiceFile::new("reviews").discover("v1", &often).to_string())
        .await;
    let url = api.url();
    let sidecar = Sidecar::start(SidecarSpec::control("a", &url).dns(dns.address())).await;
    has_endpoints(&sidecar, 2.0).await;
    for _ in 0..2 {
        // A poll is held for longer than this test waits: only one that is cut short tells it in time.
        dns.play(Script::Code(ResponseCode::ServFail));
        let nodes = api
            .nodes_when("the notice", |nodes| !notices(nodes).is_empty())
            .await;
        let told = notices(&nodes)[0].to_owned();
        let begins = format!("DNS for {NAME}: SERVFAIL since ");
        assert!(
            told.starts_with(&begins) && told.contains(", 2 addresses kept until "),
            "{told}"
        );
        assert_eq!(nodes["nodes"][0]["state"], "in-sync");
        let shown = outrigger(&["status", "--api", &url]).await.ok();
        assert!(
            shown.stdout.contains(&format!("\na says:\n  {told}\n")),
            "{}",
            shown.stdout
        );
        let json = outrigger(&["status", "--json", "--api", &url]).await.ok().json();
        assert_eq!(notices(&json), [told]);
        dns.play(Script::Whole);
        api.nodes_when("that it is over", |nodes| {
            notices(nodes).is_empty() && nodes["nodes"][0]["connected"] == true
        })
        .await;
    }
    let shown = outrigger(&["status", "--api", &url]).await.ok();
    assert!(!shown.stdout.contains("says"), "{}", shown.stdout);
}
