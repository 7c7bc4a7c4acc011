//! The door of operators, from outside: what is shut without the operator token and what is open to sidecars, where
//! loopback has to bring it too. Which peers have to is tested beside the deciding code.

#![expect(
    clippy::unwrap_used,
    reason = "a test stops at the first thing that is not as it should be"
)]

use std::path::{Path, PathBuf};
use std::process::Output;

use http::StatusCode;
use outrigger_config::discovery::{DiscoveryRequest, Node};
use outrigger_config::join::fingerprint_text;
use outrigger_control::ca::tokens::MadeToken;
use outrigger_control::client::{Api, Ask, ClientError};
use outrigger_control::server::{Config, Handle, TlsOptions, start};
use outrigger_proxy::control::join::Asker;
use outrigger_proxy::tls::pin::Trust;
use outrigger_proxy::upstream::discovery::Resolver;
use serde_json::{Value, json};

const SERVICE: &str =
    "kind: Service\nname: reviews\nbackends:\n  - name: v1\n    discover: { static: [\"127.0.0.1:9080\"] }\n";

/// An operator token of some other control API.
const OTHER: &str = "oro1.AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

/// A control API over TLS that asks everybody for the operator token.
struct Desk {
    handle: Handle,
    folder: tempfile::TempDir,
}

impl Desk {
    async fn on(folder: tempfile::TempDir) -> Self {
        let config = Config {
            listen: "127.0.0.1:0".parse().unwrap(),
            data: folder.path().to_owned(),
            names: Vec::new(),
            ca: outrigger_control::ca::Options::default(),
            tls: Some(TlsOptions::default()),
            require_operator_token: true,
            connections_per_source: None,
        };
        let handle = start(config).await.unwrap();
        Self { handle, folder }
    }

    fn url(&self) -> String {
        format!("https://{}", self.handle.address)
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("operator.token")
    }

    fn token(&self) -> String {
        std::fs::read_to_string(self.file()).unwrap().trim().to_owned()
    }

    /// The way of somebody who shows nothing.
    fn stranger(&self) -> Api {
        Api::trusting(&self.url(), Some(Trust::Fingerprint(self.handle.root))).unwrap()
    }

    fn operator(&self) -> Api {
        self.stranger().with_operator_token(&self.token()).unwrap()
    }

    /// Runs the tool, with a token in its environment if there is one.
    async fn run(&self, token: Option<&str>, arguments: &[&str]) -> Output {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_outrigger"));
        command
            .args(["--api", &self.url(), "--ca-fingerprint"])
            .arg(fingerprint_text(&self.handle.root))
            .args(arguments);
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("OUTRIGGER_")) {
            command.env_remove(name);
        }
        if let Some(token) = token {
            command.env("OUTRIGGER_OPERATOR_TOKEN", token);
        }
        let output = tokio::task::spawn_blocking(move || command.output()).await;
        output.unwrap().unwrap()
    }
}

fn words(output: &Output) -> String {
    let out = String::from_utf8(output.stdout.clone()).unwrap();
    out + std::str::from_utf8(&output.stderr).unwrap()
}

async fn status(api: &Api, ask: Ask) -> (StatusCode, Value) {
    let (status, body) = api.exchange(ask, "application/json").await.unwrap();
    (status, serde_json::from_slice(&body).unwrap_or_default())
}

/// Everything that operators ask, so that a right token leads somewhere.
fn asks() -> Vec<(&'static str, Ask)> {
    let yaml = |path: &str, text: &str| Ask::put(path, "application/yaml", text.into());
    let token = json!({"service": "reviews"});
    vec![
        ("push", yaml("/v1/services/reviews?file=reviews.yaml", SERVICE)),
        (
            "push of the mesh",
            yaml("/v1/services/@mesh?file=mesh.yaml", "kind: Mesh\n"),
        ),
        ("push of all", yaml("/v1/config?file=all.yaml", SERVICE)),
        ("list", Ask::get("/v1/services")),
        ("show", Ask::get("/v1/services/reviews")),
        ("show all", Ask::get("/v1/config")),
        ("nodes", Ask::get("/v1/nodes")),
        ("token create", Ask::post_json("/v1/tokens", &token)),
        ("token list", Ask::get("/v1/tokens")),
        ("token revoke", Ask::delete("/v1/tokens/0123456789abcdef")),
        ("certificates", Ask::get("/v1/certificates")),
        ("audit", Ask::get("/v1/audit")),
        ("ca status", Ask::get("/v1/ca")),
        // Before there is a rotation: afterwards another root would vouch for the API.
        ("rotate finish", Ask::delete("/v1/ca/rotation")),
        (
            "rotate start",
            Ask::post("/v1/ca/rotation", "application/json", Vec::new()),
        ),
        ("delete", Ask::delete("/v1/services/reviews")),
    ]
}

#[tokio::test]
async fn what_operators_do_takes_the_operator_token_and_a_wrong_one_is_audited() {
    let desk = Desk::on(tempfile::tempdir().unwrap()).await;
    for (what, ask) in asks() {
        let (status, body) = status(&desk.stranger(), ask).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED, "{what}: {body}");
        let sentence = body["error"].as_str().unwrap();
        for part in [
            "brings no operator token",
            "operator.token",
            "OUTRIGGER_OPERATOR_TOKEN",
            "--operator-token-file",
        ] {
            assert!(sentence.contains(part), "{what}: {sentence}");
        }
    }
    let wrong = desk.stranger().with_operator_token(OTHER).unwrap();
    for (what, ask) in asks() {
        let (status, body) = status(&wrong, ask).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED, "{what}: {body}");
        assert!(body["error"].as_str().unwrap().contains("is wrong"), "{body}");
    }
    for (what, ask) in asks() {
        let (status, body) = status(&desk.operator(), ask).await;
        // The token that is to be revoked is not there, nor a rotation to finish; whoever is told so was let in.
        let expected = match what {
            "token revoke" => status == StatusCode::NOT_FOUND,
            "rotate finish" => status == StatusCode::CONFLICT,
            _ => status.is_success(),
        };
        assert!(expected, "{what}: {status} {body}");
    }
    let audit: Value = desk.operator().json(Ask::get("/v1/audit")).await.unwrap();
    let rows = audit["rows"].as_array().unwrap();
    let refused = rows.iter().filter(|row| row["deed"] == "operator-refused");
    assert_eq!(refused.count(), asks().len());
    assert!(!audit.to_string().contains("oro1."), "{audit}");
    desk.handle.shutdown().await;
}

#[tokio::test]
async fn wrong_tokens_are_limited_and_the_right_one_is_heard_all_the_same() {
    let desk = Desk::on(tempfile::tempdir().unwrap()).await;
    let wrong = desk.stranger().with_operator_token(OTHER).unwrap();
    let mut limited = None;
    // A source may fail 20 times, and once more in 3 s: no machine is so slow that it never comes to that.
    for _ in 0..2_000 {
        let (status, body) = status(&wrong, Ask::get("/v1/ca")).await;
        if status == StatusCode::TOO_MANY_REQUESTS {
            limited = Some(body);
            break;
        }
        assert_eq!(status, StatusCode::UNAUTHORIZED, "{body}");
    }
    assert!(
        limited.unwrap()["error"]
            .as_str()
            .unwrap()
            .contains("try again in")
    );
    let (status, body) = status(&desk.operator(), Ask::get("/v1/ca")).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    desk.handle.shutdown().await;
}

#[tokio::test]
async fn sidecars_join_renew_and_poll_without_the_operator_token() {
    let desk = Desk::on(tempfile::tempdir().unwrap()).await;
    let push = Ask::put("/v1/config?file=all.yaml", "application/yaml", SERVICE.into());
    desk.operator().json::<Value>(push).await.unwrap();
    let wanted = json!({"service": "reviews"});
    let ask = Ask::post_json("/v1/tokens", &wanted);
    let made: MadeToken = desk.operator().json(ask).await.unwrap();
    let asker = Asker::new(&desk.url(), "reviews", Resolver::new(&[]).unwrap()).unwrap();
    let joined = asker.join(&made.token.parse().unwrap()).await.unwrap();
    assert_eq!(joined.spiffe_id, "spiffe://mesh.local/reviews");
    assert_eq!(asker.renew(&joined).await.unwrap().spiffe_id, joined.spiffe_id);
    let poll = DiscoveryRequest {
        node: Node {
            id: "a".into(),
            service: "reviews".into(),
            ..Node::default()
        },
        want: vec!["*".into()],
        ..DiscoveryRequest::default()
    };
    let (polled, body) = status(&desk.stranger(), Ask::post_json("/v1/discovery", &poll)).await;
    assert_eq!(
        (polled, &body["version"]),
        (StatusCode::OK, &json!("1")),
        "{body}"
    );
    for path in ["/live", "/ready"] {
        assert_eq!(status(&desk.stranger(), Ask::get(path)).await.0, StatusCode::OK);
    }
    desk.handle.shutdown().await;
}

#[tokio::test]
async fn the_operator_token_outlives_a_restart() {
    let desk = Desk::on(tempfile::tempdir().unwrap()).await;
    let token = desk.token();
    desk.handle.shutdown().await;
    let desk = Desk::on(desk.folder).await;
    assert_eq!(desk.token(), token);
    let api = desk.stranger().with_operator_token(&token).unwrap();
    assert_eq!(status(&api, Ask::get("/v1/ca")).await.0, StatusCode::OK);
    desk.handle.shutdown().await;
}

#[tokio::test]
async fn the_tool_shows_the_token_of_its_environment_or_of_a_file_and_prints_it_nowhere() {
    let desk = Desk::on(tempfile::tempdir().unwrap()).await;
    let (token, file) = (desk.token(), desk.file());
    let file = file.to_str().unwrap();
    let yaml = desk.folder.path().join("reviews.yaml");
    std::fs::write(&yaml, SERVICE).unwrap();
    let yaml = yaml.to_str().unwrap();
    let told = desk.run(None, &["push", yaml]).await;
    assert_eq!(told.status.code(), Some(1), "{}", words(&told));
    assert!(words(&told).contains("401 Unauthorized"), "{}", words(&told));
    assert!(
        words(&told).contains("OUTRIGGER_OPERATOR_TOKEN"),
        "{}",
        words(&told)
    );
    for arguments in [
        ["push", yaml].as_slice(),
        &["status"],
        &["token", "create", "--service", "reviews"],
        &["revoke", "--identity", "spiffe://mesh.local/other"],
        &["ca", "bundle"],
        &["ca", "rotate", "start"],
        &["audit"],
    ] {
        let by_file = [arguments, &["--operator-token-file", file]].concat();
        for told in [
            desk.run(Some(&token), arguments).await,
            // The file goes before the environment.
            desk.run(Some(OTHER), &by_file).await,
        ] {
            let words = words(&told);
            // In these words, for the digits alone stand in some fingerprints and numbers too.
            // What is said twice, as a rotation that goes on already, is answered by whoever has let us in.
            assert!(
                !words.contains("401 Unauthorized") && !words.contains("oro1."),
                "{arguments:?}: {words}"
            );
            let again = arguments == ["ca", "rotate", "start"];
            assert!(told.status.success() || again, "{arguments:?}: {words}");
        }
    }
    let wrong = words(&desk.run(Some("ort1.secret"), &["status"]).await);
    assert!(
        wrong.contains("OUTRIGGER_OPERATOR_TOKEN: it is not an operator token"),
        "{wrong}"
    );
    assert!(!wrong.contains("secret"), "{wrong}");
    let help = words(&desk.run(Some(&token), &["status", "--help"]).await);
    assert!(
        help.contains("--operator-token-file") && !help.contains(&token),
        "{help}"
    );
    assert!(!format!("{:?}", desk.operator()).contains(&token));
    assert_tls_or_loopback(&desk.file());
    desk.handle.shutdown().await;
}

/// The token leaves the machine over TLS alone.
fn assert_tls_or_loopback(file: &Path) {
    let token = std::fs::read_to_string(file).unwrap();
    let with = |url: &str| Api::new(url).unwrap().with_operator_token(token.trim());
    for url in [
        "http://10.0.0.1:9900",
        "http://control:9900",
        "http://[2001:db8::1]:9900",
    ] {
        let error = with(url).unwrap_err();
        assert!(matches!(&error, ClientError::Plaintext { .. }), "{error}");
        assert!(error.to_string().contains("https://"), "{error}");
    }
    for url in [
        "http://127.0.0.1:9900",
        "http://[::1]:9900",
        "http://localhost:9900",
    ] {
        with(url).unwrap();
    }
}
