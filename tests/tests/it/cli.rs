//! The operator's tool: its exit codes and its JSON, which scripts hang on.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use outrigger_tests::cli::Ended;
use outrigger_tests::program::Program;
use outrigger_tests::{ControlApi, Sidecar, SidecarSpec, Upstream, outrigger, simple};
use serde_json::{Value, json};

/// A control API, an upstream and a folder with files.
struct Desk {
    api: ControlApi,
    upstream: Upstream,
    folder: tempfile::TempDir,
}

impl Desk {
    async fn new() -> Self {
        Self {
            api: ControlApi::start().await,
            upstream: Upstream::start("a").await,
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Writes a service file for the upstream.
    fn service(&self, name: &str, fields: &str) -> PathBuf {
        self.write(
            &format!("{name}.yaml"),
            &simple(name, &[&self.upstream], fields).to_string(),
        )
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    /// Runs the tool against the control API.
    async fn run(&self, arguments: &[&str]) -> Ended {
        let mut all: Vec<OsString> = arguments.iter().map(OsString::from).collect();
        all.extend(["--api".into(), self.api.url().into()]);
        outrigger(&all).await
    }
}

/// A path as an argument.
fn arg(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[tokio::test]
async fn check_needs_no_control_api_and_ends_with_1_if_anything_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let (good, bad) = (folder.path().join("good.yaml"), folder.path().join("bad.yaml"));
    std::fs::write(
        &good,
        "kind: Service\nname: a\nbackends: [{ name: v1, discover: { static: [127.0.0.1:1] } }]\n",
    )
    .unwrap();
    std::fs::write(&bad, "kind: Service\nname: b\nbackends: 7\n").unwrap();
    let nobody = "http://127.0.0.1:1";
    let ended = outrigger(&["check", arg(&good), "--api", nobody]).await;
    assert_eq!(ended.code, 0, "{ended:?}");
    let ended = outrigger(&["check", arg(&good), arg(&bad)]).await;
    assert_eq!(ended.code, 1);
    assert!(
        ended
            .stdout
            .contains(&format!("{}:3:11: backends: ", bad.display())),
        "{}",
        ended.stdout
    );

    let report = outrigger(&["check", "--json", arg(&good)]).await.ok().json();
    assert_eq!(report["problems"], json!([]));
    let report = outrigger(&["check", "--json", arg(&bad)]).await.json();
    let problem = &report["problems"][0];
    assert_eq!(
        (&problem["line"], &problem["column"], &problem["path"]),
        (&json!(3), &json!(11), &json!("backends"))
    );
    assert_eq!(problem["file"], arg(&bad));

    // What is wrong with the command itself is told from what is wrong with a file.
    assert_eq!(outrigger(&["check"]).await.code, 2);
    assert_eq!(outrigger(&["no-such-command"]).await.code, 2);
    let missing = outrigger(&["check", "/no/such/file.yaml"]).await;
    assert_ne!(missing.code, 0);
    assert!(
        missing.stderr.contains("/no/such/file.yaml"),
        "{}",
        missing.stderr
    );
}

#[tokio::test]
async fn push_shows_what_each_sidecar_said_and_ends_with_0_when_all_have_applied() {
    let desk = Desk::new().await;
    let reviews = desk.service("reviews", "");
    let ended = desk.run(&["push", arg(&reviews)]).await.ok();
    assert!(ended.stdout.contains("reviews"), "{}", ended.stdout);
    let one = Sidecar::start(SidecarSpec::control("one", &desk.api.url())).await;
    let two = Sidecar::start(SidecarSpec::control("two", &desk.api.url())).await;
    desk.api
        .nodes_when("both in sync", |list| {
            let nodes = list["nodes"].as_array().unwrap();
            nodes.len() == 2 && nodes.iter().all(|node| node["state"] == "in-sync")
        })
        .await;

    let reviews = desk.service("reviews", "timeout: { request: 1s }");
    let ratings = desk.service("ratings", "");
    let ended = desk.run(&["push", arg(&reviews), arg(&ratings)]).await.ok();
    for word in ["reviews", "ratings", "one", "two"] {
        assert!(ended.stdout.contains(word), "{word} is not in\n{}", ended.stdout);
    }
    assert_eq!(
        two.client().get("ratings", "/").await.status(),
        200,
        "it was applied before push ended"
    );

    let report = desk.run(&["push", "--json", arg(&reviews)]).await.ok().json();
    assert_eq!(
        (&report["changed"], &report["unchanged"]),
        (&json!([]), &json!(["reviews"]))
    );
    let reviews = desk.service("reviews", "timeout: { request: 2s }");
    let report = desk.run(&["push", "--json", arg(&reviews)]).await.ok().json();
    assert_eq!(report["changed"], json!(["reviews"]));
    let mut sidecars: Vec<_> = report["sidecars"]
        .as_array()
        .unwrap()
        .iter()
        .map(|sidecar| (sidecar["id"].clone(), sidecar["answer"].clone()))
        .collect();
    sidecars.sort_by_key(|(id, _)| id.to_string());
    assert_eq!(
        sidecars,
        [(json!("one"), json!("applied")), (json!("two"), json!("applied"))]
    );
    assert_eq!(one.config().await["version"], report["version"]);
}

#[tokio::test]
async fn push_of_a_folder_takes_its_files_as_one() {
    let desk = Desk::new().await;
    desk.service("reviews", "");
    desk.service("ratings", "");
    desk.write("notes.txt", "not a service");
    desk.run(&["push", arg(desk.path())]).await.ok();
    for name in ["reviews", "ratings"] {
        assert_eq!(
            desk.api.get(&format!("/v1/services/{name}")).await.status(),
            200,
            "{name}"
        );
    }
}

#[tokio::test]
async fn push_ends_with_1_when_refused_and_nothing_is_stored() {
    let desk = Desk::new().await;
    let good = desk.service("reviews", "");
    let bad = desk.write("bad.yaml", "kind: Service\nname: b\nbackends: 7\n");
    let ended = desk.run(&["push", arg(&good), arg(&bad)]).await;
    assert_eq!(ended.code, 1, "{ended:?}");
    assert!(
        ended
            .stdout
            .contains(&format!("{}:3:11: backends: ", bad.display())),
        "{}",
        ended.stdout
    );
    assert_eq!(desk.api.get("/v1/services/reviews").await.status(), 404);
    let report = desk.run(&["push", "--json", arg(&bad)]).await;
    assert_eq!(
        (report.code, &report.json()["problems"][0]["line"]),
        (1, &json!(3))
    );
    // A mistake that only the whole shows: a host that another service has.
    desk.run(&["push", arg(&good)]).await.ok();
    let thief = simple("thief", &[&desk.upstream], "").field("hosts: [reviews]");
    let thief = desk.write("thief.yaml", &thief.to_string());
    let ended = desk.run(&["push", arg(&thief)]).await;
    assert_eq!(ended.code, 1, "{ended:?}");
    assert!(ended.stdout.contains("reviews"), "{}", ended.stdout);
    assert_eq!(desk.api.get("/v1/services/thief").await.status(), 404);
}

#[tokio::test]
async fn push_dry_run_stores_nothing_and_if_match_keeps_two_operators_apart() {
    let desk = Desk::new().await;
    let reviews = desk.service("reviews", "");
    desk.run(&["push", "--dry-run", arg(&reviews)]).await.ok();
    assert_eq!(desk.api.get("/v1/services/reviews").await.status(), 404);
    let version = desk.run(&["push", "--json", arg(&reviews)]).await.ok().json()["version"].clone();
    let version = version.as_str().unwrap();
    let reviews = desk.service("reviews", "timeout: { request: 1s }");
    desk.run(&["push", "--if-match", version, arg(&reviews)])
        .await
        .ok();
    let reviews = desk.service("reviews", "timeout: { request: 2s }");
    let late = desk.run(&["push", "--if-match", version, arg(&reviews)]).await;
    assert_eq!(late.code, 1, "{late:?}");
    assert!(
        late.stderr.contains(version),
        "it says what it expected: {}",
        late.stderr
    );
    let stored = desk.api.get("/v1/services/reviews").await.text();
    assert!(stored.contains("request: 1s"), "{stored}");
}

#[tokio::test]
async fn push_ends_with_3_when_a_sidecar_refuses_and_with_4_when_one_is_silent() {
    use outrigger_tests::Ask;
    let desk = Desk::new().await;
    let reviews = desk.service("reviews", "");
    desk.run(&["push", arg(&reviews)]).await.ok();
    let client = desk.api.client();
    let poll =
        |body: Value| Ask::post("/v1/discovery", body.to_string()).header("content-type", "application/json");
    let node = json!({ "id": "odd", "service": "reviews" });
    let body = json!({ "node": node, "want": ["*"] });
    let first = client.send(poll(body)).await.json();
    // It acknowledges, is told of the next version, and then says nothing.
    let body = json!({
        "node": node, "want": ["*"], "version": first["version"], "nonce": first["nonce"], "hold": "20s",
    });
    let mut connection = client.connect().await;
    connection.wire().send(&poll(body).to_bytes()).await.unwrap();
    desk.api
        .nodes_when("it in sync", |list| list["nodes"][0]["state"] == "in-sync")
        .await;
    let reviews = desk.service("reviews", "timeout: { request: 1s }");
    let ended = desk.run(&["push", "--timeout", "1s", arg(&reviews)]).await;
    assert_eq!(ended.code, 4, "{ended:?}");
    assert!(ended.stdout.contains("odd"), "{}", ended.stdout);
    let told = outrigger_tests::within("the news", connection.reply_to("POST"))
        .await
        .unwrap()
        .json();

    // Now it answers, and refuses what comes next.
    let body = json!({
        "node": node, "want": ["*"], "version": told["version"], "nonce": told["nonce"], "hold": "20s",
    });
    connection.wire().send(&poll(body).to_bytes()).await.unwrap();
    desk.api
        .nodes_when("it in sync", |list| list["nodes"][0]["state"] == "in-sync")
        .await;
    let reviews = desk.service("reviews", "timeout: { request: 2s }");
    let url = desk.api.url();
    let arguments: Vec<OsString> = ["push", arg(&reviews), "--api", &url]
        .iter()
        .map(Into::into)
        .collect();
    let push = Program::start("push", "outrigger", &arguments);
    let news = outrigger_tests::within("the news", connection.reply_to("POST"))
        .await
        .unwrap()
        .json();
    let problem = json!({ "file": "", "line": 1, "column": 1, "path": "", "message": "not with me" });
    let body = json!({
        "node": node, "want": ["*"], "version": told["version"], "nonce": news["nonce"], "hold": "1ms",
        "error": { "problems": [problem] },
    });
    connection.send(&poll(body)).await.unwrap();
    let ended = outrigger_tests::cli::finish(push).await;
    assert_eq!(ended.code, 3, "{ended:?}");
    assert!(ended.stdout.contains("not with me"), "{}", ended.stdout);
}

#[tokio::test]
async fn get_gives_back_what_was_pushed_to_the_letter() {
    let desk = Desk::new().await;
    let text = format!("# Ours.\n{}", simple("reviews", &[&desk.upstream], ""));
    let reviews = desk.write("reviews.yaml", &text);
    let ratings = desk.service("ratings", "");
    desk.run(&["push", arg(&reviews), arg(&ratings)]).await.ok();
    assert_eq!(desk.run(&["get", "reviews"]).await.ok().stdout, text);
    let one = desk.run(&["get", "reviews", "--json"]).await.ok().json();
    assert_eq!((&one["text"], &one["kind"]), (&json!(text), &json!("Service")));
    // All of it is a stream that push takes back, changing nothing.
    let all = desk.run(&["get"]).await.ok().stdout;
    let all = desk.write("all.yaml", &all);
    let report = desk.run(&["push", "--json", arg(&all)]).await.ok().json();
    assert_eq!(report["unchanged"].as_array().map(Vec::len), Some(2), "{report}");
    let nobody = desk.run(&["get", "nobody"]).await;
    assert_eq!(nobody.code, 1);
    assert!(nobody.stderr.contains("nobody"), "{}", nobody.stderr);
}

#[tokio::test]
async fn diff_ends_like_diff() {
    let desk = Desk::new().await;
    let reviews = desk.service("reviews", "timeout: { request: 1s }");
    let new = desk.run(&["diff", arg(&reviews)]).await;
    assert_eq!(new.code, 1);
    desk.run(&["push", arg(&reviews)]).await.ok();
    let same = desk.run(&["diff", arg(&reviews)]).await;
    assert_eq!((same.code, same.stdout.as_str()), (0, ""));
    let reviews = desk.service("reviews", "timeout: { request: 2s }");
    let changed = desk.run(&["diff", arg(&reviews)]).await;
    assert_eq!(changed.code, 1);
    assert!(
        changed.stdout.contains("-    timeout: { request: 1s }"),
        "{}",
        changed.stdout
    );
    assert!(
        changed.stdout.contains("+    timeout: { request: 2s }"),
        "{}",
        changed.stdout
    );
    let report = desk.run(&["diff", "--json", arg(&reviews)]).await.json();
    assert_eq!(report["documents"][0]["state"], "different", "{report}");
    let bad = desk.write("bad.yaml", "kind: [");
    assert_eq!(desk.run(&["diff", arg(&bad)]).await.code, 2);
    let gone = outrigger(&["diff", arg(&reviews), "--api", "http://127.0.0.1:1"]).await;
    assert_eq!(gone.code, 2, "{gone:?}");
}

#[tokio::test]
async fn status_lists_every_sidecar_and_who_has_gone() {
    let desk = Desk::new().await;
    let reviews = desk.service("reviews", "");
    let version = desk.run(&["push", "--json", arg(&reviews)]).await.ok().json()["version"].clone();
    let sidecar = Sidecar::start(SidecarSpec::control("one", &desk.api.url()).beside("reviews")).await;
    desk.api
        .nodes_when("it in sync", |list| list["nodes"][0]["state"] == "in-sync")
        .await;
    let shown = desk.run(&["status"]).await.ok();
    for word in ["one", "reviews", "in-sync", version.as_str().unwrap()] {
        assert!(shown.stdout.contains(word), "{word} is not in\n{}", shown.stdout);
    }
    let report = desk.run(&["status", "--json"]).await.ok().json();
    let node = &report["nodes"][0];
    assert_eq!(
        (&node["id"], &node["service"], &node["holds"]),
        (&json!("one"), &json!("reviews"), &version)
    );
    drop(sidecar);
    desk.api
        .nodes_when("that it has gone", |list| list["nodes"][0]["state"] == "gone")
        .await;
    assert!(desk.run(&["status"]).await.ok().stdout.contains("gone"));
}

#[tokio::test]
async fn delete_takes_a_service_away() {
    let desk = Desk::new().await;
    let reviews = desk.service("reviews", "");
    desk.run(&["push", arg(&reviews)]).await.ok();
    let sidecar = Sidecar::start(SidecarSpec::control("one", &desk.api.url())).await;
    desk.run(&["delete", "reviews"]).await.ok();
    assert_eq!(
        sidecar.client().get("reviews", "/").await.reason(),
        Some("no-service")
    );
    assert_eq!(desk.run(&["delete", "reviews"]).await.code, 1);
}

#[tokio::test]
async fn without_a_control_api_every_command_says_where_it_looked() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.yaml");
    std::fs::write(
        &path,
        "kind: Service\nname: a\nbackends: [{ name: v1, discover: { static: [127.0.0.1:1] } }]\n",
    )
    .unwrap();
    for arguments in [
        vec!["push", arg(&path)],
        vec!["get"],
        vec!["status"],
        vec!["delete", "a"],
    ] {
        let mut all = arguments.clone();
        all.extend(["--api", "http://127.0.0.1:1"]);
        let ended = outrigger(&all).await;
        assert_eq!(ended.code, 1, "{arguments:?}: {ended:?}");
        assert!(
            ended.stderr.contains("127.0.0.1:1"),
            "{arguments:?}: {}",
            ended.stderr
        );
    }
}

#[tokio::test]
async fn a_file_that_cannot_be_meant_is_told_so() {
    let desk = Desk::new().await;
    let empty = desk.write("empty.yaml", "# nothing yet\n");
    let checked = desk.run(&["check", arg(&empty)]).await;
    assert_eq!(checked.code, 1, "{checked:?}");
    assert!(
        format!("{checked:?}").contains("there is no document here"),
        "{checked:?}"
    );
    let bootstrap = desk.write("proxy.yaml", "kind: Proxy\nnode: { id: a }\n");
    let pushed = desk.run(&["push", arg(&bootstrap)]).await;
    assert_eq!(pushed.code, 1, "{pushed:?}");
    assert!(
        format!("{pushed:?}").contains("is the bootstrap of one sidecar"),
        "{pushed:?}"
    );
    assert!(
        format!("{pushed:?}").contains("outrigger-proxy --config"),
        "{pushed:?}"
    );
    let by_name = desk.write(
        "name.yaml",
        "kind: Service\nname: a\nbackends: [{ name: v1, discover: { static: [\"localhost:8080\"] } }]\n",
    );
    let checked = desk.run(&["check", arg(&by_name)]).await;
    assert!(
        format!("{checked:?}").contains("for a name: { dns: localhost, port: 8080 }"),
        "{checked:?}"
    );
}
