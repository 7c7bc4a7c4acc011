//! What is wrong with a push is said whole, in the same words everywhere, and changes nothing.

use outrigger_tests::control_api::{document, polls, scripted};
use outrigger_tests::wait::eventually;
use outrigger_tests::{Ask, ControlApi, Sidecar, SidecarSpec, Upstream, outrigger, simple};
use serde_json::{Value, json};

/// A service with three mistakes, and where they are: line and column, counted from 1.
const THREE_MISTAKES: &str = "\
kind: Service
name: reviews
backends:
  - name: v1
    discover: { static: [127.0.0.1:1] }
routes:
  - name: default
    to: [{ backend: v2 }]
    timeout: { request: 10 seconds }
    retires: { attempts: 2 }
";
const PLACES: [(u64, u64); 3] = [(8, 21), (9, 25), (10, 5)];

/// The places of some problems, in order.
fn places(problems: &Value) -> Vec<(u64, u64)> {
    let problems = problems
        .as_array()
        .unwrap_or_else(|| panic!("no list of problems: {problems}"));
    let place = |problem: &Value| {
        (
            problem["line"].as_u64().unwrap(),
            problem["column"].as_u64().unwrap(),
        )
    };
    let mut places: Vec<_> = problems.iter().map(place).collect();
    places.sort_unstable();
    places
}

/// The problems that `outrigger check` finds in a file with this name and text.
async fn checked(name: &str, text: &str) -> Value {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, text).unwrap();
    let ended = outrigger(&["check".as_ref(), path.as_os_str(), "--json".as_ref()]).await;
    assert_eq!(ended.code, 1, "{ended:?}");
    let mut problems = ended.json()["problems"].take();
    for problem in problems.as_array_mut().unwrap() {
        problem["file"] = Value::from(name);
    }
    problems
}

#[tokio::test]
async fn a_push_with_three_mistakes_is_refused_with_all_three_and_the_old_table_serves() {
    let upstream = Upstream::start("a").await;
    let api = ControlApi::start().await;
    let good = simple("reviews", &[&upstream], "").to_string();
    let version = api.pushed(&good).await;
    let sidecar = Sidecar::start(SidecarSpec::control("a", &api.url())).await;
    assert_eq!(sidecar.client().get("reviews", "/").await.upstream(), "a");

    let reply = api.push(THREE_MISTAKES).await;
    assert_eq!(reply.status(), 400, "{}", reply.text());
    let problems = reply.json()["problems"].take();
    assert_eq!(places(&problems), PLACES, "{problems:#}");
    for problem in problems.as_array().unwrap() {
        assert_eq!(problem["file"], "test.yaml");
        assert!(!problem["message"].as_str().unwrap().is_empty());
    }
    let text = problems.to_string();
    assert!(
        text.contains("did you mean `retry`"),
        "a near miss gets a suggestion: {text}"
    );
    assert_eq!(
        problems,
        checked("test.yaml", THREE_MISTAKES).await,
        "push and check speak alike"
    );

    // One bad document of two: the good one is not stored either.
    let other = simple("ratings", &[&upstream], "");
    assert_eq!(
        api.push(&format!("{other}---\n{THREE_MISTAKES}")).await.status(),
        400
    );
    assert_eq!(api.get("/v1/services/ratings").await.status(), 404);
    let stored = api.get("/v1/services/reviews").await;
    assert_eq!(stored.text(), good, "to the letter");
    assert_eq!(api.nodes().await["version"], version.as_str());
    assert_eq!(sidecar.client().get("reviews", "/").await.upstream(), "a");
    assert_eq!(sidecar.config().await["version"], version.as_str());
}

#[tokio::test]
async fn a_sidecar_that_is_given_what_it_cannot_use_refuses_in_the_words_of_check() {
    let upstream = Upstream::start("a").await;
    let good = simple("reviews", &[&upstream], "").to_string();
    let api = scripted(&[
        json!([document("reviews", "good.yaml", &good)]),
        json!([document("reviews", "bad.yaml", THREE_MISTAKES)]),
    ])
    .await;
    let url = format!("http://{}", api.address());
    let sidecar = Sidecar::start(SidecarSpec::control("a", &url)).await;
    let answers = eventually("both answers of the sidecar", async || {
        Some(polls(&api)).filter(|polls| polls.len() >= 3)
    })
    .await;
    let (first, ack, nack) = (&answers[0], &answers[1], &answers[2]);
    assert_eq!(first["node"]["id"], "a");
    assert_eq!((&first["nonce"], &first["version"]), (&json!(""), &json!("")));
    assert_eq!(
        (&ack["nonce"], &ack["version"], &ack["error"]),
        (&json!("n1"), &json!("1"), &Value::Null)
    );
    assert_eq!(
        (&nack["nonce"], &nack["version"]),
        (&json!("n2"), &json!("1")),
        "{nack:#}"
    );
    let problems = nack["error"]["problems"].clone();
    assert_eq!(problems, checked("bad.yaml", THREE_MISTAKES).await);

    assert_eq!(
        sidecar.client().get("reviews", "/").await.upstream(),
        "a",
        "the old table serves"
    );
    let config = sidecar.config().await;
    assert_eq!(config["version"], "1");
    assert_eq!(config["refused"]["version"], "2", "{config:#}");
    assert_eq!(config["refused"]["problems"], problems);
    let metrics = sidecar.metrics().await;
    let pushes = |result| metrics.sum("outrigger_config_pushes_total", &[("result", result)]);
    assert_eq!((pushes("applied"), pushes("refused")), (1.0, 1.0));
    assert_eq!(
        metrics.sum(
            "outrigger_config_info",
            &[("version", "1"), ("source", "control")]
        ),
        1.0
    );
}

#[tokio::test]
async fn a_document_that_is_bad_from_the_start_leaves_the_sidecar_not_ready_and_says_why() {
    let api = scripted(&[json!([document("reviews", "bad.yaml", THREE_MISTAKES)])]).await;
    let url = format!("http://{}", api.address());
    let sidecar = Sidecar::launch(SidecarSpec::control("a", &url)).await;
    let config = sidecar
        .config_when("the refusal", |config| !config["refused"].is_null())
        .await;
    assert_eq!(places(&config["refused"]["problems"]), PLACES);
    let ready = sidecar.page("/ready").await;
    assert_eq!(ready.status(), 503, "{}", ready.text());
}

#[tokio::test]
async fn status_shows_who_refused_and_what_until_it_accepts() {
    let api = ControlApi::start().await;
    let upstream = Upstream::start("a").await;
    api.pushed(&simple("reviews", &[&upstream], "").to_string()).await;
    let poll = async |nonce: &str, version: &str, error: Option<Value>| {
        let mut body = json!({
            "node": { "id": "picky", "service": "reviews" },
            "want": ["*"], "version": version, "nonce": nonce, "hold": "1ms",
        });
        if let Some(error) = error {
            body["error"] = error;
        }
        let ask = Ask::post("/v1/discovery", body.to_string()).header("content-type", "application/json");
        api.client().send(ask).await
    };
    let first = poll("", "", None).await.json();
    let problem =
        json!({ "file": "x.yaml", "line": 3, "column": 7, "path": "routes[0].to", "message": "I will not" });
    poll(
        first["nonce"].as_str().unwrap(),
        "",
        Some(json!({ "problems": [problem] })),
    )
    .await;
    let nodes = api
        .nodes_when("the refusal", |nodes| nodes["nodes"][0]["state"] == "refused")
        .await;
    assert_eq!(nodes["nodes"][0]["refused"]["problems"][0], problem, "{nodes:#}");
    let shown = outrigger(&["status", "--api", &api.url()]).await.ok();
    assert!(
        shown.stdout.contains("picky") && shown.stdout.contains("refused"),
        "{}",
        shown.stdout
    );
    assert!(
        shown.stdout.contains("x.yaml:3:7: routes[0].to: I will not"),
        "{}",
        shown.stdout
    );

    // A later version that it accepts clears it.
    api.pushed(&simple("reviews", &[&upstream], "timeout: { request: 1s }").to_string())
        .await;
    let second = poll("", "", None).await.json();
    let (nonce, version) = (
        second["nonce"].as_str().unwrap(),
        second["version"].as_str().unwrap(),
    );
    poll(nonce, version, None).await;
    api.nodes_when("that it accepted", |nodes| {
        nodes["nodes"][0]["state"] == "in-sync" && nodes["nodes"][0]["refused"].is_null()
    })
    .await;
}

#[tokio::test]
async fn a_watched_file_that_is_edited_badly_is_refused_and_a_good_edit_is_applied() {
    let (a, b) = (Upstream::start("a").await, Upstream::start("b").await);
    let sidecar = Sidecar::of(simple("reviews", &[&a], "")).await;
    let version = sidecar.config().await["version"].clone();
    assert_eq!(sidecar.client().get("reviews", "/").await.upstream(), "a");

    sidecar.rewrite(THREE_MISTAKES);
    let config = sidecar
        .config_when("the refusal", |config| !config["refused"].is_null())
        .await;
    assert_eq!(places(&config["refused"]["problems"]), PLACES, "{config:#}");
    assert_eq!(
        (&config["version"], &config["source"]),
        (&version, &json!("file"))
    );
    assert_eq!(sidecar.client().get("reviews", "/").await.upstream(), "a");
    sidecar
        .metrics_when("the refusal", |metrics| {
            metrics.sum("outrigger_config_pushes_total", &[("result", "refused")]) == 1.0
        })
        .await;

    sidecar.rewrite("this: is: not: yaml");
    sidecar
        .metrics_when("the second refusal", |metrics| {
            metrics.sum("outrigger_config_pushes_total", &[("result", "refused")]) == 2.0
        })
        .await;
    assert_eq!(sidecar.client().get("reviews", "/").await.upstream(), "a");

    sidecar.apply(&simple("reviews", &[&b], "").to_string()).await;
    assert_eq!(sidecar.client().get("reviews", "/").await.upstream(), "b");
    let config = sidecar.config().await;
    assert_eq!(
        config["refused"],
        Value::Null,
        "what is mended is not shown any more"
    );
    assert_ne!(config["version"], version);
}

#[tokio::test]
async fn a_watched_folder_is_one_configuration_of_all_its_files() {
    let (a, b) = (Upstream::start("a").await, Upstream::start("b").await);
    let folder = tempfile::tempdir().unwrap();
    let put = |name: &str, text: String| std::fs::write(folder.path().join(name), text).unwrap();
    put("reviews.yaml", simple("reviews", &[&a], "").to_string());
    put("notes.txt", "this is no YAML: [".into());
    let source = outrigger_tests::sidecar::Source::Path(folder.path().to_owned());
    let sidecar = Sidecar::start(SidecarSpec::new("a", source)).await;
    assert_eq!(sidecar.client().get("reviews", "/").await.upstream(), "a");
    assert_eq!(sidecar.client().get("ratings", "/").await.status(), 404);

    put("ratings.yaml", simple("ratings", &[&b], "").to_string());
    eventually("the new file to be read", async || {
        (sidecar.client().get("ratings", "/").await.upstream() == "b").then_some(())
    })
    .await;
    assert_eq!(sidecar.client().get("reviews", "/").await.upstream(), "a");

    std::fs::remove_file(folder.path().join("reviews.yaml")).unwrap();
    eventually("the removed file to be forgotten", async || {
        (sidecar.client().get("reviews", "/").await.reason() == Some("no-service")).then_some(())
    })
    .await;

    // The same service twice: the whole is refused, and names both files.
    put("again.yaml", simple("ratings", &[&a], "").to_string());
    let config = sidecar
        .config_when("the refusal", |config| !config["refused"].is_null())
        .await;
    assert!(
        config["refused"].to_string().contains("again.yaml")
            || config["refused"].to_string().contains("ratings.yaml")
    );
    assert_eq!(sidecar.client().get("ratings", "/").await.upstream(), "b");
}
