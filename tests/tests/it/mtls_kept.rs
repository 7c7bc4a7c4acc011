//! Connections are kept by whose they are: one that was made as somebody else, or in another way than is said now, takes
//! no new request.

use std::net::SocketAddr;
use std::time::Duration;

use outrigger_tests::client::Connection;
use outrigger_tests::http2::{Raw, frame, frame::code, frame::flag, frame::kind, request};
use outrigger_tests::tls::{ALERT, Hello};
use outrigger_tests::{
    Answer, Ask, Behaviour, Client, IdentityFiles, Leaf, Pki, Sidecar, SidecarSpec, TlsRelay, Upstream,
    eventually, within,
};

use crate::mtls::{HANDSHAKES, STRICT, beside, caller, server};

const PLAINTEXT: &str = "outrigger_plaintext_connections_total";
const LOADS: &str = "outrigger_identity_loads_total";

/// By HTTP/1.1 and by HTTP/2 between the sidecars.
const VERSIONS: [&str; 2] = ["", "\nprotocol: http2"];

/// A service with one application, its sidecar, and the sidecar of a caller with this identity; and what is said of it.
struct Mesh {
    app: Upstream,
    server: Sidecar,
    caller: Sidecar,
    version: &'static str,
}

impl Mesh {
    async fn new(files: [&IdentityFiles; 2], version: &'static str) -> Self {
        let app = Upstream::start("a").await;
        let fields = format!("{STRICT}{version}");
        let server = server(app.address(), STRICT, files[0]).await;
        let caller = caller(&server, &fields, files[1]).await;
        Self {
            app,
            server,
            caller,
            version,
        }
    }

    /// Asks, is answered, and says whom the application saw.
    async fn asks(&self) -> String {
        let reply = self.caller.client().get("reviews", "/").await;
        assert_eq!(reply.status(), 200, "{}: {reply:?}", self.version);
        let last = self.app.last();
        let said = last.head.header("x-forwarded-client-cert").unwrap_or_default();
        let uri = said.rsplit_once(";URI=spiffe://shop/");
        uri.map_or_else(String::new, |(_, name)| name.to_owned())
    }

    /// Asks until the caller's sidecar has taken so many identities, so that there is a kept connection just then.
    async fn asks_until_loaded(&self, count: f64) {
        eventually("an identity taken", async || {
            self.asks().await;
            let loads = self.caller.metrics().await.sum(LOADS, &[("result", "loaded")]);
            (loads == count).then_some(())
        })
        .await;
    }

    /// The connections that the service's sidecar has taken: by TLS and in plaintext.
    async fn taken(&self) -> (f64, f64) {
        let metrics = self.server.metrics().await;
        (
            metrics.sum(HANDSHAKES, &[("result", "ok")]),
            metrics.sum(PLAINTEXT, &[]),
        )
    }
}

/// Puts another certificate in the place of one, key first.
fn exchange(files: &IdentityFiles, pki: &Pki, name: &str) {
    let issued = pki.issue(&Leaf::service(name));
    files.write("key.pem", &issued.key);
    files.write("certificate.pem", &issued.certificate);
}

#[tokio::test]
async fn a_kept_connection_outlives_a_renewed_certificate_and_not_an_exchange_to_another_name() {
    for version in VERSIONS {
        let pki = Pki::new();
        let files = [pki.files("reviews"), pki.files("productpage")];
        let mesh = Mesh::new([&files[0], &files[1]], version).await;
        assert_eq!(mesh.asks().await, "productpage");
        exchange(&files[1], &pki, "productpage");
        mesh.asks_until_loaded(2.0).await;
        assert_eq!(mesh.asks().await, "productpage");
        assert_eq!(mesh.taken().await, (1.0, 0.0), "{version}");

        exchange(&files[1], &pki, "ratings");
        mesh.asks_until_loaded(3.0).await;
        for _ in 0..3 {
            assert_eq!(mesh.asks().await, "ratings", "{version}");
        }
        assert_eq!(mesh.taken().await, (2.0, 0.0), "{version}");
    }
}

#[tokio::test]
async fn a_kept_connection_is_not_used_once_a_root_is_no_longer_trusted() {
    for version in VERSIONS {
        let (old, new) = (Pki::new(), Pki::new());
        let both = format!("{}{}", old.root(), new.root());
        let of = |pki: &Pki, name| IdentityFiles::new(&pki.issue(&Leaf::service(name)), &both);
        // The service's certificate is of the old root, the caller's of the new one.
        let files = [of(&old, "reviews"), of(&new, "productpage")];
        let mesh = Mesh::new([&files[0], &files[1]], version).await;
        assert_eq!(mesh.asks().await, "productpage");
        // One more root makes nobody less trusted.
        let third = Pki::new();
        files[1].write("roots.pem", &format!("{both}{}", third.root()));
        mesh.asks_until_loaded(2.0).await;
        assert_eq!(mesh.asks().await, "productpage");
        assert_eq!(mesh.taken().await, (1.0, 0.0), "{version}");
        // Whether the endpoint is of the root that goes is seen by shaking hands again, here with success.
        files[1].write("roots.pem", &both);
        mesh.asks_until_loaded(3.0).await;
        assert_eq!(mesh.asks().await, "productpage");
        assert_eq!(mesh.taken().await, (2.0, 0.0), "{version}");
        // And here without.
        files[1].write("roots.pem", new.root());
        let refused = mesh.caller.metrics_when("the old root gone", |metrics| {
            metrics.sum(LOADS, &[("result", "loaded")]) == 4.0
        });
        refused.await;
        let asked = mesh.app.requests();
        let reply = mesh.caller.client().get("reviews", "/").await;
        let told = (reply.status(), reply.reason());
        assert_eq!(told, (503, Some("peer-untrusted")), "{version}: {reply:?}");
        assert_eq!(mesh.app.requests(), asked, "{version}");
    }
}

/// What the caller's sidecar knows of the service: this mode, and this of its one backend.
fn said(endpoint: SocketAddr, mode: &str, backend: &str, version: &str) -> String {
    format!(
        "kind: Service\nname: reviews\ntls: {{ mode: {mode} }}{version}\nbackends:\n  \
         - {{ name: v1, {backend}discover: {{ static: [{endpoint}] }} }}\n"
    )
}

#[tokio::test]
async fn a_kept_connection_is_not_used_once_its_service_or_backend_is_spoken_to_in_another_way() {
    for version in VERSIONS {
        let app = Upstream::start("a").await;
        let pki = Pki::new();
        let files = [pki.files("reviews"), pki.files("productpage")];
        let server = server(app.address(), "tls: { mode: permissive }", &files[0]).await;
        let caller = caller(
            &server,
            &format!("tls: {{ mode: permissive }}{version}"),
            &files[1],
        )
        .await;
        let mesh = Mesh {
            app,
            server,
            caller,
            version,
        };
        assert_eq!(mesh.asks().await, "productpage");
        assert_eq!(mesh.taken().await, (1.0, 0.0));
        let mut expected = (1.0, 0.0);
        for (mode, backend) in [
            ("permissive", "tls: none, "),
            ("permissive", ""),
            ("disabled", ""),
            ("strict", ""),
        ] {
            let text = said(mesh.server.inbound(), mode, backend, version);
            // So that there is a connection to be kept just then.
            mesh.asks().await;
            let before = mesh.taken().await;
            mesh.caller.apply(&text).await;
            let by_tls = mode != "disabled" && backend.is_empty();
            let (who, made) = match by_tls {
                true => ("productpage", (expected.0 + 1.0, expected.1)),
                false => ("", (expected.0, expected.1 + 1.0)),
            };
            expected = made;
            assert_eq!(mesh.asks().await, who, "{version} {mode} {backend}");
            assert_eq!(mesh.asks().await, who, "{version} {mode} {backend}");
            assert_eq!(
                mesh.taken().await,
                expected,
                "{version} {mode} {backend}, before it {before:?}"
            );
        }
    }
}

#[tokio::test]
async fn a_sidecar_that_has_no_certificate_yet_refuses_tls_and_never_answers_plaintext_instead() {
    for (mode, protocol) in [
        ("strict", "http"),
        ("permissive", "http"),
        ("strict", "tcp"),
        ("permissive", "tcp"),
    ] {
        let what = format!("{mode} {protocol}");
        let app = Upstream::start("a").await;
        let pki = Pki::new();
        let files = [pki.files("reviews"), pki.files("productpage")];
        let key = std::fs::read_to_string(files[0].path("key.pem")).unwrap();
        std::fs::remove_file(files[0].path("key.pem")).unwrap();
        let fields = format!("protocol: {protocol}\ntls: {{ mode: {mode} }}");
        let text = beside(app.address(), &fields);
        let spec = SidecarSpec::text("server", &text)
            .beside("reviews")
            .identity(&files[0]);
        let server = Sidecar::launch(spec).await;
        let applied = server.config_when("the configuration", |config| config["source"] == "file");
        applied.await;
        let relay = TlsRelay::start(server.inbound(), Some(&files[1]), None).await;
        // By openssl, and byte by byte: what comes back is nothing, or it is TLS.
        let ask = Ask::get("/").host("reviews");
        let answered = Client::new(relay.address()).try_send(&ask).await;
        assert!(answered.is_err(), "{what}: {answered:?}");
        let mut raw = Connection::open(server.inbound()).await.unwrap();
        let hello = Hello::default().records(1 << 14);
        raw.wire().send(&hello).await.unwrap();
        let (bytes, _) = within("an end", raw.wire().until_end()).await;
        let alert = bytes.is_empty() || bytes.first() == Some(&ALERT);
        assert!(alert, "{what}: {:?}", bytes.escape_ascii().to_string());
        assert_eq!(app.connections(), 0, "{what}");
        let counted = server.metrics_when("handshakes that failed", |metrics| {
            let missing = [("side", "inbound"), ("result", "identity-missing")];
            metrics.sum(HANDSHAKES, &missing) == 2.0
        });
        counted.await;

        files[0].write("key.pem", &key);
        server.is_ready().await;
        let reply = Client::new(relay.address()).send(ask).await;
        assert_eq!((reply.status(), reply.upstream()), (200, "a"), "{what}");
    }
}

/// The next frame that tells what became of a stream; whatever else comes, PING among it, is left without an answer.
async fn told(raw: &mut Raw) -> (u32, Option<u32>) {
    loop {
        let frame = within("what becomes of a stream", raw.next()).await.unwrap();
        match frame.kind {
            kind::RST_STREAM => return (frame.stream, Some(frame.number(0))),
            kind::HEADERS => {
                raw.fields(&frame).await.unwrap();
                return (frame.stream, None);
            }
            _ => {}
        }
    }
}

#[tokio::test]
async fn a_caller_by_http2_that_does_not_leave_once_its_connection_is_over_is_served_nothing_new() {
    let app = Upstream::start("a").await;
    let pki = Pki::new();
    let files = [pki.files("reviews"), pki.files("productpage")];
    files[0].write("roots.pem", &format!("{}{}", pki.root(), Pki::new().root()));
    let server = server(app.address(), STRICT, &files[0]).await;
    let relay = TlsRelay::start(server.inbound(), Some(&files[1]), Some("h2")).await;
    let mut raw = Raw::open(relay.address(), &[]).await.unwrap();
    let get = |stream| frame::headers(stream, flag::END_STREAM, &request("GET", "reviews", "/"));
    // One is under way all the time, and is answered at last.
    app.next([Behaviour::Answer(Answer::ok().after(Duration::from_secs(6)))]);
    raw.send(&get(1)).await.unwrap();
    app.has_requests(1).await;
    raw.send(&get(3)).await.unwrap();
    assert_eq!(told(&mut raw).await, (3, None));
    files[0].write("roots.pem", pki.root());
    let mut stream = 5;
    let asked = eventually("a stream to be refused", async || {
        let asked = app.requests();
        raw.send(&get(stream)).await.unwrap();
        let told = told(&mut raw).await;
        stream += 2;
        match told {
            (at, Some(code::REFUSED_STREAM)) if at + 2 == stream => Some(asked),
            (at, None) if at + 2 == stream => None,
            other => panic!("{other:?} for stream {}", stream - 2),
        }
    })
    .await;
    assert_eq!(app.requests(), asked);
    assert_eq!(told(&mut raw).await, (1, None));
}

#[tokio::test]
async fn a_request_whose_connection_is_made_while_the_identity_changes_is_sent_by_one_that_is_good() {
    for version in VERSIONS {
        let pki = Pki::new();
        let files = [pki.files("reviews"), pki.files("productpage")];
        let mut mesh = Mesh::new([&files[0], &files[1]], version).await;
        // Its kernel takes the connection, and the handshake waits.
        mesh.server.program().freeze();
        let mut connection = mesh.caller.client().connect().await;
        let ask = Ask::get("/").host("reviews").to_bytes();
        connection.wire().send(&ask).await.unwrap();
        eventually("a connection to the endpoint", async || {
            let clusters = mesh.caller.page("/clusters").await.json();
            (clusters["clusters"][0]["connections"] == 1).then_some(())
        })
        .await;
        exchange(&files[1], &pki, "ratings");
        mesh.caller
            .metrics_when("an identity taken", |metrics| {
                metrics.sum(LOADS, &[("result", "loaded")]) == 2.0
            })
            .await;
        mesh.server.program().thaw();
        let reply = within("an answer", connection.reply_to("GET")).await.unwrap();
        // On a machine that is slow enough the handshake has run out of time.
        let told = (reply.status(), reply.reason());
        assert!(
            matches!(told, (200, None) | (503, Some("tls-handshake"))),
            "{version}: {reply:?}"
        );
        let failed = [("reason", "connect-failed")];
        let metrics = mesh.caller.metrics().await;
        assert_eq!(
            metrics.sum("outrigger_attempts_total", &failed),
            0.0,
            "{version}: {reply:?}"
        );
    }
}
