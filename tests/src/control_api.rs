//! The control API: the real `outrigger serve`, and a scripted one that says what no real one would.

use std::net::SocketAddr;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::client::{Ask, Client, Reply};
use crate::program::Program;
use crate::upstream::{Answer, Behaviour, Received, Upstream};
use crate::wait::eventually;

/// A running control API.
#[derive(Debug)]
pub struct ControlApi {
    program: Program,
    address: SocketAddr,
    data: TempDir,
}

impl ControlApi {
    /// Starts one with an empty store.
    pub async fn start() -> Self {
        let data = tempfile::tempdir().expect("a temporary folder");
        let (program, address) = serve("127.0.0.1:0", data.path()).await;
        Self {
            program,
            address,
            data,
        }
    }

    /// Its address as `--api` and `--control` take it.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The process.
    pub fn program(&mut self) -> &mut Program {
        &mut self.program
    }

    /// A client of it.
    pub fn client(&self) -> Client {
        Client::new(self.address)
    }

    /// Ends it without a word.
    pub fn kill(&mut self) {
        self.program.kill();
    }

    /// Starts it again on the same port and the same store.
    pub async fn restart(&mut self) {
        self.program.kill();
        let (program, _) = serve(&self.address.to_string(), self.data.path()).await;
        self.program = program;
    }

    /// Starts it again on the same port with a new, empty store.
    pub async fn restart_empty(&mut self) {
        self.program.kill();
        self.data = tempfile::tempdir().expect("a temporary folder");
        self.restart().await;
    }

    /// Pushes a stream of documents in one transaction; the answer may be a refusal.
    pub async fn push(&self, yaml: &str) -> Reply {
        let ask = Ask::new("PUT", "/v1/config?file=test.yaml")
            .header("content-type", "application/yaml")
            .body(yaml);
        self.client().send(ask).await
    }

    /// Pushes a stream of documents, which must be accepted, and gives the version.
    pub async fn pushed(&self, yaml: &str) -> String {
        let reply = self.push(yaml).await;
        assert_eq!(reply.status(), 200, "{}", reply.text());
        let version = reply.json()["version"].as_str().map(str::to_owned);
        version.unwrap_or_else(|| panic!("a push without a version: {}", reply.text()))
    }

    /// A GET.
    pub async fn get(&self, path: &str) -> Reply {
        self.client().get("localhost", path).await
    }

    /// What `GET /v1/nodes` says.
    pub async fn nodes(&self) -> Value {
        let reply = self.get("/v1/nodes").await;
        assert_eq!(reply.status(), 200, "{reply:?}");
        reply.json()
    }

    /// What `GET /v1/nodes` says, once it passes the test.
    pub async fn nodes_when(&self, what: &str, passes: impl Fn(&Value) -> bool) -> Value {
        eventually(&format!("/v1/nodes to show {what}"), async || {
            Some(self.nodes().await).filter(&passes)
        })
        .await
    }
}

async fn serve(listen: &str, data: &Path) -> (Program, SocketAddr) {
    let arguments = [
        "serve".into(),
        "--listen".into(),
        listen.into(),
        "--data".into(),
        data.into(),
    ];
    let program = Program::start("control API", "outrigger", &arguments);
    let address = program.listening("api").await;
    (program, address)
}

/// A control API that answers the polls of a sidecar with these sets of documents, in turn, whatever they are, and
/// every later poll with nothing. What the sidecar answered is in [`polls`].
pub async fn scripted(responses: &[Value]) -> Upstream {
    let api = Upstream::start("scripted control API").await;
    for (index, documents) in responses.iter().enumerate() {
        api.next([told(index + 1, documents, &json!([]))]);
    }
    // Nothing changes any more: a poll is held until it is given up.
    api.behave(Behaviour::Hang);
    api
}

/// An answer to a poll: version and nonce of this number, these documents changed, these keys gone.
pub fn told(number: usize, changed: &Value, removed: &Value) -> Behaviour {
    let body = json!({
        "version": number.to_string(),
        "nonce": format!("n{number}"),
        "changed": changed,
        "removed": removed,
    });
    let answer = Answer::ok().header("content-type", "application/json");
    Behaviour::Answer(answer.body(body.to_string()))
}

/// A document as the control API sends it.
pub fn document(name: &str, file: &str, text: &str) -> Value {
    json!({ "version": "1", "kind": "Service", "name": name, "file": file, "line": 1, "text": text })
}

/// The polls that a scripted control API has received.
pub fn polls(api: &Upstream) -> Vec<Value> {
    let body = |received: &Received| serde_json::from_slice(&received.body.bytes).ok();
    api.received().iter().filter_map(body).collect()
}
