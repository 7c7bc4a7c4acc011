//! Two sidecars that were given one id: both are served, both are awaited, and it is said.

use outrigger_tests::{ControlApi, Sidecar, SidecarSpec, Upstream, outrigger, simple};
use serde_json::Value;

#[tokio::test]
async fn two_sidecars_with_one_id_both_answer_a_push_and_the_mistake_is_said() {
    let upstream = Upstream::start("a").await;
    let mut api = ControlApi::start().await;
    let url = api.url();
    api.pushed(&simple("reviews", &[&upstream], "").to_string()).await;
    let spec = || SidecarSpec::control("same", &url);
    let (one, other) = (Sidecar::start(spec()).await, Sidecar::start(spec()).await);
    let nodes = api
        .nodes_when("both", |nodes| {
            let nodes = nodes["nodes"].as_array().unwrap();
            nodes.len() == 2 && nodes.iter().all(|node| node["state"] == "in-sync")
        })
        .await;
    assert_ne!(nodes["nodes"][0]["instance"], nodes["nodes"][1]["instance"]);
    assert!(nodes["nodes"][0]["note"].is_string(), "{nodes:#}");
    let says = "two sidecars call themselves same";
    let warned = |line: &Value| {
        line["message"]
            .as_str()
            .is_some_and(|message| message.contains(says))
    };
    api.program().logged("the warning", warned).await;
    let shown = outrigger(&["status", "--api", &url]).await.ok();
    assert!(shown.stdout.contains(says), "{}", shown.stdout);

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ratings.yaml");
    std::fs::write(&file, simple("ratings", &[&upstream], "").to_string()).unwrap();
    let pushed = outrigger(&["push", file.to_str().unwrap(), "--api", &url])
        .await
        .ok();
    assert!(pushed.stdout.contains("2 applied"), "{}", pushed.stdout);
    for sidecar in [&one, &other] {
        assert_eq!(sidecar.client().get("ratings", "/").await.upstream(), "a");
    }
    let log = api.program().log();
    assert_eq!(
        log.iter().filter(|line| line.contains(says)).count(),
        1,
        "{log:#?}"
    );
}
