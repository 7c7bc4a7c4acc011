//! The control API comes back with another store: sidecars go on with what they hold until that store has its say.

use outrigger_tests::control_api::{document, polls, scripted};
use outrigger_tests::wait::eventually;
use outrigger_tests::{Answer, Behaviour, ControlApi, Sidecar, SidecarSpec, Upstream, simple};
use serde_json::json;

#[tokio::test]
async fn a_control_api_that_comes_back_with_an_empty_store_takes_nothing_away() {
    let upstream = Upstream::start("a").await;
    let mut api = ControlApi::start().await;
    let version = api.pushed(&simple("reviews", &[&upstream], "").to_string()).await;
    let sidecar = Sidecar::start(SidecarSpec::control("a", &api.url())).await;
    api.restart_empty().await;
    let nodes = api
        .nodes_when("the sidecar", |nodes| nodes["nodes"][0]["connected"] == true)
        .await;
    let node = &nodes["nodes"][0];
    assert_eq!(
        (nodes["version"].as_str(), node["holds"].as_str()),
        (Some("0"), Some(version.as_str()))
    );
    assert_eq!(node["state"], "behind", "{nodes:#}");
    assert!(node["holds_store"].is_string(), "{nodes:#}");
    assert_eq!(sidecar.client().get("reviews", "/").await.upstream(), "a");

    // What the new store is given is told to it, and takes the place of all that it held.
    api.pushed(&simple("ratings", &[&upstream], "").to_string()).await;
    eventually("the new store to be told", async || {
        let reply = sidecar.client().get("reviews", "/").await;
        (reply.reason() == Some("no-service")).then_some(())
    })
    .await;
    assert_eq!(sidecar.client().get("ratings", "/").await.upstream(), "a");
    let nodes = api
        .nodes_when("the sidecar in sync", |nodes| {
            nodes["nodes"][0]["state"] == "in-sync"
        })
        .await;
    assert!(nodes["nodes"][0]["holds_store"].is_null(), "{nodes:#}");
}

#[tokio::test]
async fn another_text_under_the_same_number_of_another_store_is_told() {
    let (a, b) = (Upstream::start("a").await, Upstream::start("b").await);
    let mut api = ControlApi::start().await;
    let first = api.pushed(&simple("reviews", &[&a], "").to_string()).await;
    let disk = tempfile::tempdir().unwrap();
    let spec = SidecarSpec::control("a", &api.url()).last_good(&disk.path().join("last-good"));
    let sidecar = Sidecar::start(spec.clone()).await;
    drop(sidecar);
    // The new store is there, and filled, before the sidecar asks: it comes with what its disk says.
    api.restart_empty().await;
    let second = api.pushed(&simple("reviews", &[&b], "").to_string()).await;
    assert_eq!(first, second);
    let moved = Sidecar::start(spec).await;
    api.nodes_when("the sidecar in sync", |nodes| {
        nodes["nodes"][0]["state"] == "in-sync"
    })
    .await;
    assert_eq!(moved.client().get("reviews", "/").await.upstream(), "b");

    // And the same to one that runs on, through the break.
    api.restart_empty().await;
    let third = api.pushed(&simple("reviews", &[&a], "").to_string()).await;
    assert_eq!(first, third);
    eventually("the third store's text", async || {
        (moved.client().get("reviews", "/").await.upstream() == "a").then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_sidecar_does_not_give_up_all_it_holds_at_the_word_of_another_store() {
    let upstream = Upstream::start("a").await;
    let text = simple("reviews", &[&upstream], "").to_string();
    let api = scripted(&[json!([document("reviews", "reviews.yaml", &text)])]).await;
    let emptied = json!({
        "version": "2", "nonce": "n2", "store": "another", "changed": [], "removed": ["reviews"],
    });
    api.next([Behaviour::Answer(Answer::ok().body(emptied.to_string()))]);
    let url = format!("http://{}", api.address());
    let sidecar = Sidecar::start(SidecarSpec::control("a", &url)).await;
    let refusal = eventually("the refusal", async || {
        let polls = polls(&api).into_iter();
        polls
            .map(|poll| poll["error"].clone())
            .find(|error| !error.is_null())
    })
    .await;
    let message = refusal["problems"][0]["message"].as_str().unwrap();
    assert!(message.contains("another store"), "{message}");
    assert_eq!(sidecar.client().get("reviews", "/").await.upstream(), "a");
}
