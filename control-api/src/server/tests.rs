//! The routes, over real sockets.

use http::StatusCode;
use outrigger_config::Problem;
use outrigger_config::discovery::{DiscoveryRequest, DiscoveryResponse, Node, Refusal};
use outrigger_config::units;
use serde_json::{Value, json};

use super::*;
use crate::client::{Api, Ask};
use crate::nodes::{NodeList, NodeState};
use crate::push::Outcome;

const YAML: &str = "application/yaml";
const JSON: &str = "application/json";

/// A hold that no test waits to the end of.
const LONG: units::Duration = units::Duration::from_secs(50);

struct Running {
    api: Api,
    handle: Handle,
    folder: tempfile::TempDir,
}

impl Running {
    async fn new() -> Self {
        Self::on(tempfile::tempdir().unwrap()).await
    }

    async fn on(folder: tempfile::TempDir) -> Self {
        let config = Config {
            listen: "127.0.0.1:0".parse().unwrap(),
            data: folder.path().to_owned(),
            names: Vec::new(),
            ca: ca::Options::default(),
            tls: None,
            require_operator_token: false,
            connections_per_source: None,
        };
        let handle = start(config).await.unwrap();
        let api = Api::new(&format!("http://{}", handle.address)).unwrap();
        Self { api, handle, folder }
    }

    /// Asks, and gives the status and the body as JSON; null if there is none.
    async fn ask(&self, ask: Ask) -> (StatusCode, Value) {
        let (status, body) = self.api.exchange(ask, JSON).await.unwrap();
        let body = if body.is_empty() {
            Value::Null
        } else {
            serde_json::from_slice(&body).unwrap()
        };
        (status, body)
    }

    async fn put(&self, name: &str, text: &str) -> Outcome {
        let ask = Ask::put(format!("/v1/services/{name}?file={name}.yaml"), YAML, text.into());
        self.api.json(ask).await.unwrap()
    }

    async fn poll(&self, request: &DiscoveryRequest) -> (StatusCode, Value) {
        poll(&self.api, request).await
    }

    /// Polls, and expects to be told something.
    async fn told(&self, request: &DiscoveryRequest) -> DiscoveryResponse {
        let (status, body) = self.poll(request).await;
        assert_eq!(status, StatusCode::OK, "{body}");
        serde_json::from_value(body).unwrap()
    }

    async fn nodes(&self, query: &str) -> NodeList {
        let ask = Ask::get(format!("/v1/nodes{query}"));
        self.api.json(ask).await.unwrap()
    }
}

async fn poll(api: &Api, request: &DiscoveryRequest) -> (StatusCode, Value) {
    let body = serde_json::to_vec(request).unwrap();
    let ask = Ask::post("/v1/discovery", JSON, body);
    let (status, body) = api.exchange(ask, JSON).await.unwrap();
    (status, serde_json::from_slice(&body).unwrap_or_default())
}

fn service(name: &str, port: u16) -> String {
    format!(
        "# {name}\nkind: Service\nname: {name}\nbackends:\n  - name: v1\n    discover: {{ static: [\"127.0.0.1:{port}\"] }}\n"
    )
}

fn first(id: &str) -> DiscoveryRequest {
    DiscoveryRequest {
        node: Node {
            id: id.into(),
            service: "reviews".into(),
            ..Node::default()
        },
        want: vec!["*".into()],
        hold: Some(LONG),
        ..DiscoveryRequest::default()
    }
}

fn ack(id: &str, response: &DiscoveryResponse) -> DiscoveryRequest {
    DiscoveryRequest {
        version: response.version.clone(),
        nonce: response.nonce.clone(),
        ..first(id)
    }
}

fn problem() -> Problem {
    Problem {
        file: "reviews.yaml".into(),
        line: 3,
        column: 1,
        path: "routes[0]".into(),
        message: "this sidecar cannot".into(),
    }
}

#[tokio::test]
async fn what_is_put_is_given_back_to_the_letter() {
    let running = Running::new().await;
    let text = service("reviews", 1);
    let outcome = running.put("reviews", &text).await;
    assert_eq!(
        (outcome.version.as_str(), outcome.changed),
        ("1", vec!["reviews".to_owned()])
    );
    assert_eq!(
        running.api.text(Ask::get("/v1/services/reviews")).await.unwrap(),
        text
    );
    let (_, body) = running.ask(Ask::get("/v1/services/reviews")).await;
    assert_eq!(
        (&body["version"], &body["file"]),
        (&json!("1"), &json!("reviews.yaml"))
    );
    let other = service("ratings", 2);
    running.put("ratings", &other).await;
    let whole = running.api.text(Ask::get("/v1/config")).await.unwrap();
    assert_eq!(whole, format!("{other}---\n{text}"));
    let again = Ask::put("/v1/config", YAML, whole.into());
    let again: Outcome = running.api.json(again).await.unwrap();
    assert_eq!((again.version.as_str(), again.unchanged.len()), ("2", 2));
    running.handle.shutdown().await;
}

#[tokio::test]
async fn bad_input_is_answered_with_every_problem_and_stores_nothing() {
    let running = Running::new().await;
    let bad = service("reviews", 1).replace("backends", "backnds");
    let documents = json!({"documents": [
        {"file": "good.yaml", "line": 1, "text": service("ratings", 1)},
        {"file": "bad.yaml", "line": 11, "text": bad},
    ]});
    let ask = Ask::put("/v1/config", JSON, documents.to_string().into());
    let (status, body) = running.ask(ask).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    let problem = &body["problems"][0];
    assert_eq!(
        (&problem["file"], &problem["line"]),
        (&json!("bad.yaml"), &json!(14)),
        "{body}"
    );
    let (_, list) = running.ask(Ask::get("/v1/services")).await;
    assert_eq!(list, json!({"version": "0", "services": []}));
    running.handle.shutdown().await;
}

#[tokio::test]
async fn what_cannot_be_done_is_said_in_a_sentence() {
    let running = Running::new().await;
    let text = service("reviews", 1);
    running.put("reviews", &text).await;
    let put = |path: &str, body: &str| Ask::put(path, YAML, body.into());
    let two = format!("{text}---\n{}", service("ratings", 1));
    let long = "#".repeat(1024 * 1024 + 1);
    let table = [
        (put("/v1/services/ratings", &text), 400, "must be the same"),
        (put("/v1/services/reviews", &two), 400, "PUT /v1/config"),
        (put("/v1/services/reviews", &long), 413, "longer than"),
        (put("/v1/config", ""), 400, "no document"),
        (put("/v1/config?dry_run=yes", &text), 400, "dry_run"),
        (Ask::put("/v1/config", JSON, b"{".to_vec()), 400, "JSON"),
        (Ask::put("/v1/config", YAML, vec![0x80]), 400, "UTF-8"),
        (Ask::get("/v1/services/ratings"), 404, "ratings"),
        (Ask::delete("/v1/services/ratings"), 404, "ratings"),
        (Ask::get("/v1/nothing"), 404, "/v1/nothing"),
        (Ask::post("/v1/config", YAML, Vec::new()), 405, "POST"),
        (Ask::post("/v1/discovery", JSON, b"{}".to_vec()), 400, "poll"),
        (Ask::get("/v1/nodes?hold=5"), 400, "250ms"),
    ];
    for (ask, expected, words) in table {
        let case = format!("{ask:?}");
        let (status, body) = running.ask(ask).await;
        let sentence = body["error"].as_str().unwrap_or_default();
        assert_eq!(status, expected, "{case}: {body}");
        assert!(sentence.contains(words), "{case}: {body}");
    }
    assert_eq!(running.nodes("").await.version, "1");
    running.handle.shutdown().await;
}

#[tokio::test]
async fn a_dry_run_and_a_version_that_does_not_match_store_nothing() {
    let running = Running::new().await;
    let text = service("reviews", 1);
    let dry = Ask::put("/v1/services/reviews?dry_run=1", YAML, text.clone().into());
    let dry: Outcome = running.api.json(dry).await.unwrap();
    assert_eq!(
        (dry.version.as_str(), dry.changed.len(), dry.dry_run),
        ("1", 1, true)
    );
    assert_eq!(
        running.ask(Ask::get("/v1/services/reviews")).await.0,
        StatusCode::NOT_FOUND
    );

    running.put("reviews", &text).await;
    let other = || Ask::put("/v1/services/reviews", YAML, service("reviews", 2).into());
    let (status, body) = running.ask(other().if_match(Some("7".into()))).await;
    assert_eq!(status, StatusCode::PRECONDITION_FAILED, "{body}");
    let (status, _) = running.ask(other().if_match(Some("1".into()))).await;
    assert_eq!(status, StatusCode::OK);
    running.handle.shutdown().await;
}

#[tokio::test]
async fn a_held_poll_is_released_by_a_push_and_by_nothing_else() {
    let running = Running::new().await;
    running.put("reviews", &service("reviews", 1)).await;
    let told = running.told(&first("a")).await;
    assert_eq!((told.version.as_str(), told.changed.len()), ("1", 1));
    let (api, request) = (running.api.clone(), ack("a", &told));
    let before = running.nodes("").await;
    let held = tokio::spawn(async move { poll(&api, &request).await });
    let list = running.nodes(&format!("?after={}", before.seen)).await;
    assert_eq!(
        list.nodes[0].state,
        NodeState::InSync,
        "the ACK is seen while the poll is held"
    );
    running.put("reviews", &service("reviews", 1)).await;
    assert!(!held.is_finished(), "an identical document is no news");
    running.put("ratings", &service("ratings", 1)).await;
    let (status, body) = held.await.unwrap();
    assert_eq!(status, StatusCode::OK);
    assert_eq!(body["version"], "2");
    assert_eq!(body["changed"].as_array().unwrap().len(), 1);
    assert_eq!(body["changed"][0]["name"], "ratings");
    running.handle.shutdown().await;
}

#[tokio::test]
async fn every_one_of_many_held_polls_hears_of_a_push_with_a_nonce_of_its_own() {
    // Two sockets each, within the thousand files that many systems allow.
    const SIDECARS: usize = 300;
    let running = Running::new().await;
    let polls: Vec<_> = (0..SIDECARS)
        .map(|number| {
            let request = DiscoveryRequest {
                version: "0".into(),
                ..first(&number.to_string())
            };
            let api = running.api.clone();
            tokio::spawn(async move { poll(&api, &request).await })
        })
        .collect();
    let mut list = running.nodes("").await;
    while list.nodes.len() < SIDECARS {
        list = running.nodes(&format!("?after={}", list.seen)).await;
    }
    running.put("reviews", &service("reviews", 1)).await;
    let mut nonces = std::collections::BTreeSet::new();
    for held in polls {
        let (status, body) = held.await.unwrap();
        assert_eq!((status, &body["version"]), (StatusCode::OK, &json!("1")));
        assert_eq!(body["changed"][0]["name"], "reviews");
        nonces.insert(body["nonce"].as_str().unwrap().to_owned());
    }
    assert_eq!(nonces.len(), SIDECARS);
    running.handle.shutdown().await;
}

#[tokio::test]
async fn a_refusal_is_shown_and_the_same_version_is_not_sent_again() {
    let running = Running::new().await;
    running.put("reviews", &service("reviews", 1)).await;
    let told = running.told(&first("a")).await;
    let short = Some(units::Duration::from_millis(1));
    let nack = DiscoveryRequest {
        version: String::new(),
        hold: short,
        error: Some(Refusal {
            problems: vec![problem()],
        }),
        ..ack("a", &told)
    };
    assert_eq!(running.poll(&nack).await.0, StatusCode::NO_CONTENT);
    let node = running.nodes("").await.nodes.remove(0);
    assert_eq!((node.state, node.holds.as_str()), (NodeState::Refused, ""));
    assert_eq!(node.refused.unwrap().problems, [problem()]);
    running.put("reviews", &service("reviews", 2)).await;
    let told = running.told(&nack).await;
    assert_eq!((told.version.as_str(), told.changed.len()), ("2", 1));
    running.handle.shutdown().await;
}

#[tokio::test]
async fn a_version_of_another_store_is_asked_for_what_it_has() {
    let running = Running::new().await;
    let text = service("reviews", 1);
    running.put("reviews", &text).await;
    let lost = DiscoveryRequest {
        version: "77".into(),
        ..first("a")
    };
    let (status, body) = running.poll(&lost).await;
    assert_eq!(status, StatusCode::CONFLICT);
    assert!(body["error"].as_str().unwrap().contains("`have`"), "{body}");
    let have = [
        ("reviews".to_owned(), "77".to_owned()),
        ("gone".to_owned(), "5".to_owned()),
    ];
    let found = DiscoveryRequest {
        have: Some(have.into()),
        ..lost
    };
    let told = running.told(&found).await;
    assert_eq!(told.changed[0].document.text, text);
    assert_eq!(told.removed, ["gone"]);
    running.handle.shutdown().await;
}

#[tokio::test]
async fn a_sidecar_whose_connection_is_cut_is_gone_at_once() {
    let running = Running::new().await;
    let (api, request) = (
        running.api.clone(),
        DiscoveryRequest {
            version: "0".into(),
            ..first("a")
        },
    );
    let before = running.nodes("").await;
    let held = tokio::spawn(async move { poll(&api, &request).await });
    let here = running.nodes(&format!("?after={}", before.seen)).await;
    assert!(here.nodes[0].connected);
    held.abort();
    let gone = running.nodes(&format!("?after={}", here.seen)).await;
    assert_eq!(
        (gone.nodes[0].connected, gone.nodes[0].state),
        (false, NodeState::Gone)
    );
    running.handle.shutdown().await;
}

#[tokio::test]
async fn stopping_ends_held_polls_and_the_store_opens_again_with_everything() {
    let running = Running::new().await;
    running.put("reviews", &service("reviews", 1)).await;
    let (api, request) = (running.api.clone(), ack("a", &running.told(&first("a")).await));
    let before = running.nodes("").await;
    let held = tokio::spawn(async move { poll(&api, &request).await });
    running.nodes(&format!("?after={}", before.seen)).await;
    let Running { handle, folder, .. } = running;
    handle.shutdown().await;
    assert_eq!(held.await.unwrap().0, StatusCode::NO_CONTENT);

    let running = Running::on(folder).await;
    assert_eq!(running.nodes("").await.version, "1");
    assert_eq!(
        running.ask(Ask::get("/v1/services/reviews")).await.0,
        StatusCode::OK
    );
    running.handle.shutdown().await;
}

#[tokio::test]
async fn a_second_server_on_the_same_store_says_what_to_do() {
    let running = Running::new().await;
    let config = Config {
        listen: "127.0.0.1:0".parse().unwrap(),
        data: running.folder.path().to_owned(),
        names: Vec::new(),
        ca: ca::Options::default(),
        tls: None,
        require_operator_token: false,
        connections_per_source: None,
    };
    let problem = start(config).await.unwrap_err();
    assert!(
        problem.to_string().contains("another `outrigger serve`"),
        "{problem}"
    );
    running.handle.shutdown().await;
}
