//! What a sidecar makes of what an agent says: one of gRPC's own library, made from the published protobuf.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use outrigger_tests::program::Program;
use outrigger_tests::{Leaf, Load, LoadSpec, Pki, Sidecar, SidecarSpec, Upstream, eventually};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::bootstrap;
use crate::mtls::{ASKED, HANDSHAKES, STRICT, beside, file};

const LOADS: &str = "outrigger_identity_loads_total";
const LOADED: &[(&str, &str)] = &[("result", "loaded")];
const REFUSED: &[(&str, &str)] = &[("result", "refused")];

/// A running agent, and what it says.
struct Agent {
    folder: TempDir,
    program: Option<Program>,
}

impl Agent {
    async fn start(state: &Value) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut agent = Self {
            folder,
            program: None,
        };
        agent.say(state);
        agent.start_again().await;
        agent
    }

    /// One that gives these identities.
    async fn giving(svids: &[Value]) -> Self {
        Self::start(&json!({ "svids": svids })).await
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("agent.sock")
    }

    /// Says this from now on, on streams that are open too.
    fn say(&self, state: &Value) {
        let fresh = self.folder.path().join(".new");
        std::fs::write(&fresh, state.to_string()).unwrap();
        std::fs::rename(&fresh, self.folder.path().join("state.json")).unwrap();
    }

    fn give(&self, svids: &[Value]) {
        self.say(&json!({ "svids": svids }));
    }

    fn deny(&self) {
        self.say(&denied());
    }

    async fn start_again(&mut self) {
        let python = std::env::var("OUTRIGGER_TEST_PYTHON").unwrap_or_else(|_| "python3".into());
        let script = format!("{}/tests/it/workload_api/agent.py", env!("CARGO_MANIFEST_DIR"));
        let mut command = Command::new(python);
        command.arg(script).arg(self.socket());
        command.arg(self.folder.path().join("state.json"));
        let program = Program::spawn("agent", command);
        program
            .printed("that it listens", |line| line == "listening")
            .await;
        self.program = Some(program);
    }

    /// Kills it. Its socket stays behind, as after a crash.
    fn stop(&mut self) {
        self.program = None;
    }
}

fn denied() -> Value {
    json!({ "status": "PERMISSION_DENIED", "words": "no identity issued" })
}

/// The SVID with this name, of a new certificate.
fn svid(pki: &Pki, id: &str) -> Value {
    trusting(pki, id, pki.root())
}

/// The same, with these roots.
fn trusting(pki: &Pki, id: &str, roots: &str) -> Value {
    let issued = pki.issue(&Leaf::of(&[id]));
    json!({ "spiffe_id": id, "certificate": issued.certificate, "key": issued.key, "roots": roots })
}

const REVIEWS: &str = "spiffe://shop/reviews";
const PRODUCTPAGE: &str = "spiffe://shop/productpage";

fn server_spec(app: SocketAddr, socket: &Path) -> SidecarSpec {
    SidecarSpec::text("server", &beside(app, STRICT))
        .beside("reviews")
        .bootstrap(&bootstrap(socket))
        .with("--workers", "1")
}

fn caller_spec(server: &Sidecar, socket: &Path) -> SidecarSpec {
    SidecarSpec::text("caller", &file(server.inbound(), STRICT).to_string())
        .bootstrap(&bootstrap(socket))
        .with("--workers", "1")
}

/// Two sidecars with an agent each.
async fn pair(app: SocketAddr, pki: &Pki) -> ([Sidecar; 2], [Agent; 2]) {
    let agents = [
        Agent::giving(&[svid(pki, REVIEWS)]).await,
        Agent::giving(&[svid(pki, PRODUCTPAGE)]).await,
    ];
    let server = Sidecar::start(server_spec(app, &agents[0].socket())).await;
    let caller = Sidecar::start(caller_spec(&server, &agents[1].socket())).await;
    ([server, caller], agents)
}

async fn has_loaded(sidecar: &Sidecar, count: f64) {
    sidecar
        .metrics_when("an identity loaded", |metrics| {
            metrics.sum(LOADS, LOADED) == count
        })
        .await;
}

/// Waits until `/certs` says that what there is cannot be used, in these words.
async fn is_refused(sidecar: &Sidecar, words: &str) -> Value {
    let what = format!("`{words}` on /certs of {}", sidecar.id());
    eventually(&what, async || {
        let certs = sidecar.page("/certs").await.json();
        let said = certs["refused"].as_str().is_some_and(|said| said.contains(words));
        said.then_some(certs)
    })
    .await
}

async fn status(caller: &Sidecar) -> u16 {
    caller.client().get("reviews", "/").await.status()
}

#[tokio::test]
async fn two_sidecars_speak_mtls_by_the_certificates_that_their_agents_give() {
    let app = Upstream::start("a").await;
    let pki = Pki::new();
    // Of several that of the service is taken; a caller that is beside none takes the first.
    let several = [svid(&pki, "spiffe://shop/ops"), svid(&pki, REVIEWS)];
    let agent = Agent::giving(&several).await;
    let server = Sidecar::start(server_spec(app.address(), &agent.socket())).await;
    let agent = Agent::giving(&[svid(&pki, PRODUCTPAGE), svid(&pki, "spiffe://shop/ops")]).await;
    // The standard's variable names the socket where the bootstrap does not.
    let variable = format!("unix://{}", agent.socket().display());
    let spec = caller_spec(&server, "/nowhere".as_ref())
        .bootstrap("identity: { workload_api: {} }\n")
        .environment("SPIFFE_ENDPOINT_SOCKET", &variable);
    let caller = Sidecar::start(spec).await;
    for _ in 0..3 {
        let reply = caller.client().get("reviews", "/").await;
        assert_eq!((reply.status(), reply.upstream()), (200, "a"), "{reply:?}");
    }
    let received = app.last();
    let said = received.head.header("x-forwarded-client-cert").unwrap();
    assert!(
        said.starts_with("By=spiffe://shop/reviews;") && said.ends_with(";URI=spiffe://shop/productpage"),
        "{said}"
    );
    let source = [("source", PRODUCTPAGE), ("result", "allowed")];
    assert_eq!(server.metrics().await.sum(ASKED, &source), 3.0);
    assert_eq!(caller.metrics().await.sum(HANDSHAKES, &[("result", "ok")]), 1.0);
    let certs = server.page("/certs").await.json();
    assert_eq!(certs["identity"]["spiffe_id"], REVIEWS);
    assert!(certs["refused"].is_null(), "{certs}");
}

#[tokio::test]
async fn certificates_and_the_root_are_exchanged_on_the_stream_without_a_failed_request() {
    let app = Upstream::start("a").await;
    let (old, new) = (Pki::new(), Pki::new());
    let ([server, caller], agents) = pair(app.address(), &old).await;
    let load = Load::start(LoadSpec::new(caller.outbound(), "reviews", 4));
    load.has_done(100).await;
    let both = format!("{}{}", old.root(), new.root());
    let steps = [(&old, both.as_str()), (&new, both.as_str()), (&new, new.root())];
    let mut loads = 1.0;
    for (pki, roots) in steps {
        loads += 1.0;
        for (agent, sidecar, id) in [(&agents[0], &server, REVIEWS), (&agents[1], &caller, PRODUCTPAGE)] {
            agent.give(&[trusting(pki, id, roots)]);
            has_loaded(sidecar, loads).await;
            load.has_done_more(100).await;
        }
    }
    load.stop().await.assert_clean();
    for sidecar in [&server, &caller] {
        let metrics = sidecar.metrics().await;
        assert_eq!(metrics.sum(LOADS, REFUSED), 0.0, "{}", sidecar.id());
        assert_eq!(
            metrics.sum(HANDSHAKES, &[]),
            metrics.sum(HANDSHAKES, &[("result", "ok")])
        );
    }
}

#[tokio::test]
async fn while_the_agent_is_away_what_is_held_serves_on_and_one_that_is_back_is_found() {
    let app = Upstream::start("a").await;
    let pki = Pki::new();
    let ([_server, mut caller], [other, mut agent]) = pair(app.address(), &pki).await;
    assert_eq!(status(&caller).await, 200);
    agent.stop();
    caller
        .program()
        .logged("the end of the stream", |line| {
            line["message"]
                .as_str()
                .is_some_and(|text| text.contains("stream of the SPIFFE Workload API ended"))
        })
        .await;
    let certs = is_refused(&caller, "does the agent run").await;
    assert_eq!(certs["identity"]["spiffe_id"], PRODUCTPAGE);
    // New handshakes too are made with what is held.
    let second = Sidecar::start(server_spec(app.address(), &other.socket())).await;
    caller.apply(&file(second.inbound(), STRICT).to_string()).await;
    assert_eq!(status(&caller).await, 200);
    agent.give(&[svid(&pki, PRODUCTPAGE)]);
    agent.start_again().await;
    has_loaded(&caller, 2.0).await;
    assert!(caller.page("/certs").await.json()["refused"].is_null());
    assert_eq!(status(&caller).await, 200);
}

#[tokio::test]
async fn a_workload_that_the_agent_does_not_know_is_told_so_and_serves_when_it_is_registered() {
    let app = Upstream::start("a").await;
    let pki = Pki::new();
    let agents = [
        Agent::giving(&[svid(&pki, REVIEWS)]).await,
        Agent::start(&denied()).await,
    ];
    let server = Sidecar::start(server_spec(app.address(), &agents[0].socket())).await;
    let mut caller = Sidecar::launch(caller_spec(&server, &agents[1].socket())).await;
    let words = "no identity for this process (PermissionDenied: no identity issued)";
    is_refused(&caller, words).await;
    caller
        .program()
        .logged("the problem", |line| {
            line["problem"].as_str().is_some_and(|said| said.contains(words))
        })
        .await;
    caller
        .config_when("the configuration", |config| config["source"] == "file")
        .await;
    assert_eq!(caller.page("/ready").await.status(), 503);
    let reply = caller.client().get("reviews", "/").await;
    assert_eq!((reply.status(), reply.reason()), (503, Some("identity-missing")));
    // However often it asks, the same words are one refusal.
    let agent = agents[1].program.as_ref().unwrap();
    eventually("the agent asked three times", async || {
        let asked = agent.output().iter().filter(|line| *line == "asked").count();
        (asked >= 3).then_some(())
    })
    .await;
    assert_eq!(caller.metrics().await.sum(LOADS, REFUSED), 1.0);

    agents[1].give(&[svid(&pki, PRODUCTPAGE)]);
    caller.is_ready().await;
    assert_eq!(status(&caller).await, 200);
    // What is taken back serves to its end.
    agents[1].deny();
    let certs = is_refused(&caller, words).await;
    assert_eq!(certs["identity"]["spiffe_id"], PRODUCTPAGE);
    assert_eq!(status(&caller).await, 200);
}

#[tokio::test]
async fn a_message_that_is_no_identity_keeps_the_one_before_and_the_next_is_taken() {
    let app = Upstream::start("a").await;
    let pki = Pki::new();
    let ([_server, caller], [_agent, agent]) = pair(app.address(), &pki).await;
    let (mut swapped, mut renamed) = (svid(&pki, PRODUCTPAGE), svid(&pki, PRODUCTPAGE));
    swapped["key"] = svid(&pki, PRODUCTPAGE)["key"].take();
    renamed["spiffe_id"] = REVIEWS.into();
    let untrusted = trusting(&pki, PRODUCTPAGE, Pki::new().root());
    for (number, (bad, words)) in [
        (vec![swapped], "not that of the certificate"),
        (vec![renamed], "its message says"),
        (vec![untrusted], "does not lead to one of the roots"),
        (Vec::new(), "none in its message"),
    ]
    .into_iter()
    .enumerate()
    {
        agent.give(&bad);
        let certs = is_refused(&caller, words).await;
        assert_eq!(certs["identity"]["spiffe_id"], PRODUCTPAGE);
        assert_eq!(status(&caller).await, 200, "{words}");
        agent.give(&[svid(&pki, PRODUCTPAGE)]);
        has_loaded(&caller, number as f64 + 2.0).await;
        assert!(caller.page("/certs").await.json()["refused"].is_null());
    }
}

#[tokio::test]
async fn a_certificate_of_another_trust_domain_than_the_mesh_s_is_as_good_as_none() {
    let app = Upstream::start("a").await;
    let pki = Pki::new();
    let agents = [
        Agent::giving(&[svid(&pki, REVIEWS)]).await,
        Agent::giving(&[svid(&pki, "spiffe://other/productpage")]).await,
    ];
    let server = Sidecar::start(server_spec(app.address(), &agents[0].socket())).await;
    let service = file(server.inbound(), STRICT).to_string();
    let mut spec = caller_spec(&server, &agents[1].socket());
    spec.source =
        outrigger_tests::sidecar::Source::Text(format!("{service}---\nkind: Mesh\ntrust_domain: shop\n"));
    let caller = Sidecar::launch(spec).await;
    eventually("the mesh's trust domain to be known", async || {
        let ready = caller.page("/ready").await.text();
        ready
            .contains("certificate is of the trust domain `other`")
            .then_some(())
    })
    .await;
    let reply = caller.client().get("reviews", "/").await;
    assert_eq!((reply.status(), reply.reason()), (503, Some("identity-missing")));
    // Where the mesh names none, the server's own sidecar does not take it, though it trusts the root.
    caller.apply(&service).await;
    let reply = caller.client().get("reviews", "/").await;
    assert_eq!(reply.status(), 503, "{reply:?}");
    assert_eq!(app.requests(), 0);
    agents[1].give(&[svid(&pki, PRODUCTPAGE)]);
    has_loaded(&caller, 2.0).await;
    assert_eq!(status(&caller).await, 200);
}
