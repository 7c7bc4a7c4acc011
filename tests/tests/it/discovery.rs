//! The conversation of a sidecar with its control API, seen from the control API's end.

use std::time::Duration;

use outrigger_tests::control_api::{document, polls, scripted, told};
use outrigger_tests::wait::eventually;
use outrigger_tests::{Answer, Behaviour, Sidecar, SidecarSpec, Upstream, simple};
use serde_json::{Value, json};

/// A sidecar of this scripted control API.
async fn sidecar_of(api: &Upstream) -> Sidecar {
    let url = format!("http://{}", api.address());
    Sidecar::launch(SidecarSpec::control("a", &url)).await
}

/// The polls, once there are so many.
async fn polls_when(api: &Upstream, count: usize) -> Vec<Value> {
    eventually(&format!("{count} polls"), async || {
        Some(polls(api)).filter(|polls| polls.len() >= count)
    })
    .await
}

fn reviews(upstream: &Upstream) -> Value {
    document(
        "reviews",
        "reviews.yaml",
        &simple("reviews", &[upstream], "").to_string(),
    )
}

#[tokio::test]
async fn a_poll_waits_for_as_long_as_it_is_held_and_every_answer_is_used() {
    let upstream = Upstream::start("a").await;
    let api = scripted(&[json!([reviews(&upstream)])]).await;
    // Far longer than anything that a sidecar does now and then.
    api.behave(Behaviour::Answer(
        Answer::status(204).after(Duration::from_secs(3)),
    ));
    let sidecar = sidecar_of(&api).await;
    sidecar.is_ready().await;
    let polls = polls_when(&api, 4).await;
    assert_eq!(
        api.given_up(),
        0,
        "a poll was given up before its answer: {polls:#?}"
    );
    assert_eq!(api.connections(), 1, "one connection carries them all");
    assert_eq!((&polls[0]["nonce"], &polls[0]["have"]), (&json!(""), &json!({})));
    assert_eq!(
        (&polls[1]["nonce"], &polls[1]["version"]),
        (&json!("n1"), &json!("1"))
    );
    for poll in &polls[2..4] {
        assert_eq!(poll["version"], "1");
        assert_eq!(poll["error"], Value::Null);
    }
}

#[tokio::test]
async fn after_a_break_the_sidecar_says_what_it_holds() {
    let upstream = Upstream::start("a").await;
    let api = scripted(&[json!([reviews(&upstream)])]).await;
    api.next([Behaviour::CloseBeforeAnswer]);
    let sidecar = sidecar_of(&api).await;
    let polls = polls_when(&api, 3).await;
    let after = &polls[2];
    assert_eq!(after["have"], json!({ "reviews": "1" }), "{after:#}");
    assert_eq!((&after["version"], &after["nonce"]), (&json!("1"), &json!("")));
    assert_eq!(sidecar.client().get("reviews", "/").await.upstream(), "a");
}

#[tokio::test]
async fn a_document_that_is_removed_is_gone_and_the_others_stay() {
    let (a, b) = (Upstream::start("a").await, Upstream::start("b").await);
    let ratings = document(
        "ratings",
        "ratings.yaml",
        &simple("ratings", &[&b], "").to_string(),
    );
    let api = scripted(&[json!([reviews(&a), ratings])]).await;
    api.next([told(2, &json!([]), &json!(["reviews"]))]);
    let sidecar = sidecar_of(&api).await;
    sidecar
        .config_when("version 2", |config| config["version"] == "2")
        .await;
    assert_eq!(
        sidecar.client().get("reviews", "/").await.reason(),
        Some("no-service")
    );
    assert_eq!(sidecar.client().get("ratings", "/").await.upstream(), "b");
    let polls = polls_when(&api, 3).await;
    assert_eq!(
        (&polls[2]["nonce"], &polls[2]["version"]),
        (&json!("n2"), &json!("2"))
    );
}

#[tokio::test]
async fn a_refusal_is_forgotten_when_something_good_comes() {
    let upstream = Upstream::start("a").await;
    let bad = document(
        "reviews",
        "bad.yaml",
        "kind: Service\nname: reviews\nbackends: 7\n",
    );
    let api = scripted(&[json!([bad]), json!([reviews(&upstream)])]).await;
    let sidecar = sidecar_of(&api).await;
    sidecar.is_ready().await;
    let polls = polls_when(&api, 3).await;
    assert_eq!(polls[1]["nonce"], "n1");
    assert!(polls[1]["error"]["problems"].is_array(), "{:#}", polls[1]);
    assert_eq!(
        (&polls[2]["nonce"], &polls[2]["version"]),
        (&json!("n2"), &json!("2"))
    );
    assert_eq!(polls[2]["error"], Value::Null);
    assert_eq!(sidecar.config().await["refused"], Value::Null);
}

#[tokio::test]
async fn answers_that_make_no_sense_change_nothing_and_are_asked_again() {
    let upstream = Upstream::start("a").await;
    let api = scripted(&[json!([reviews(&upstream)])]).await;
    let nonsense = |status, body: &str| Behaviour::Answer(Answer::status(status).body(body));
    api.next([
        nonsense(200, "not JSON"),
        nonsense(200, "{}"),
        nonsense(500, "{\"error\":\"I am ill\"}"),
        nonsense(404, ""),
        Behaviour::Raw(b"\x00\x01\x02".to_vec()),
        Behaviour::HalfBody(Answer::ok().body("{\"version\":\"9\"}")),
        told(
            2,
            &json!([document(
                "ratings",
                "r.yaml",
                &simple("ratings", &[&upstream], "").to_string()
            )]),
            &json!([]),
        ),
    ]);
    let sidecar = sidecar_of(&api).await;
    sidecar.is_ready().await;
    sidecar
        .config_when("version 2", |config| config["version"] == "2")
        .await;
    for service in ["reviews", "ratings"] {
        assert_eq!(
            sidecar.client().get(service, "/").await.upstream(),
            "a",
            "{service}"
        );
    }
}

#[tokio::test]
async fn a_mesh_document_comes_along_and_is_used() {
    let upstream = Upstream::start("a").await;
    upstream.behave(Behaviour::Hang);
    let mesh = json!({
        "version": "1", "kind": "Mesh", "name": "mesh", "file": "mesh.yaml", "line": 1,
        "text": "kind: Mesh\ndefaults:\n  timeout: { request: 200ms }\n",
    });
    let api = scripted(&[json!([reviews(&upstream), mesh])]).await;
    let sidecar = sidecar_of(&api).await;
    sidecar.is_ready().await;
    let reply = sidecar.client().get("reviews", "/").await;
    assert_eq!((reply.status(), reply.reason()), (504, Some("request-timeout")));
}

#[tokio::test]
async fn a_refusal_with_thousands_of_problems_is_cut_and_does_not_lock_the_sidecar_out() {
    let upstream = Upstream::start("a").await;
    let name = "x".repeat(3_000);
    let mut bad = "kind: Service\nname: reviews\n".to_owned();
    for number in 0..5_000 {
        bad.push_str(&format!("{name}{number}: 1\n"));
    }
    let bad = document("reviews", "bad.yaml", &bad);
    let bads: Vec<Value> = (0..300)
        .map(|number| {
            let mut bad = document(&format!("s{number}"), "bad.yaml", "");
            bad["text"] = format!("kind: Service\n{name}: 1\nname: s{number}\n").into();
            bad
        })
        .chain([bad])
        .collect();
    let api = scripted(&[json!(bads), json!([reviews(&upstream)])]).await;
    let _sidecar = sidecar_of(&api).await;
    let polls = polls_when(&api, 2).await;
    let problems = polls[1]["error"]["problems"].as_array().unwrap();
    assert_eq!(problems.len(), 101, "{:#}", polls[1]);
    let last = problems[100]["message"].as_str().unwrap();
    assert!(last.contains("more"), "{last}");
    for problem in problems {
        let message = problem["message"].as_str().unwrap();
        assert!(message.chars().count() <= 1_000, "{message}");
    }
    assert!(polls[1].to_string().len() < 1024 * 1024);
}

#[tokio::test]
async fn a_refusal_is_not_said_again_after_a_break() {
    let bad = document(
        "reviews",
        "bad.yaml",
        "kind: Service\nname: reviews\nbackends: 7\n",
    );
    let api = scripted(&[json!([bad])]).await;
    api.next([Behaviour::Answer(Answer::status(413))]);
    let _sidecar = sidecar_of(&api).await;
    let polls = polls_when(&api, 3).await;
    assert!(polls[1]["error"]["problems"].is_array(), "{:#}", polls[1]);
    assert_eq!(
        (&polls[2]["nonce"], &polls[2]["error"]),
        (&json!(""), &Value::Null),
        "it is told again and refuses again: {:#}",
        polls[2]
    );
}
