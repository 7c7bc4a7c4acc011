//! mTLS between sidecars: what goes over it, and what each mode takes.

use std::net::SocketAddr;

use outrigger_tests::grpc::GrpcUpstream;
use outrigger_tests::http2::Caller as Http2;
use outrigger_tests::wait::within;
use outrigger_tests::{Ask, Client, IdentityFiles, Leaf, Pki, ServiceFile, Sidecar, SidecarSpec, Upstream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;

pub(crate) const HANDSHAKES: &str = "outrigger_tls_handshakes_total";
const PLAINTEXT: &str = "outrigger_plaintext_connections_total";
pub(crate) const ASKED: &str = "outrigger_inbound_requests_total";

/// `reviews` as its own sidecar has it: the application and these fields.
pub(crate) fn beside(app: SocketAddr, fields: &str) -> String {
    file(app, fields).app(app).to_string()
}

/// `reviews` at this endpoint, with these fields.
pub(crate) fn file(endpoint: SocketAddr, fields: &str) -> ServiceFile {
    let file = ServiceFile::new("reviews").backend("v1", &[endpoint]);
    fields.lines().fold(file, |file, line| file.field(line))
}

/// The sidecar of `reviews` with this identity.
pub(crate) async fn server(app: SocketAddr, fields: &str, identity: &IdentityFiles) -> Sidecar {
    Sidecar::start(
        SidecarSpec::text("server", &beside(app, fields))
            .beside("reviews")
            .identity(identity)
            .with("--workers", "1"),
    )
    .await
}

/// The sidecar of a caller with this identity.
pub(crate) async fn caller(server: &Sidecar, fields: &str, identity: &IdentityFiles) -> Sidecar {
    let file = file(server.inbound(), fields).to_string();
    Sidecar::start(
        SidecarSpec::text("caller", &file)
            .local("reviews")
            .identity(identity)
            .with("--workers", "1"),
    )
    .await
}

/// Both, with good identities, the caller's being `productpage`.
async fn pair(app: SocketAddr, fields: &str) -> (Sidecar, Sidecar, [IdentityFiles; 2]) {
    let pki = Pki::new();
    let files = [pki.files("reviews"), pki.files("productpage")];
    let server = server(app, fields, &files[0]).await;
    let caller = caller(&server, fields, &files[1]).await;
    (server, caller, files)
}

pub(crate) const STRICT: &str = "tls: { mode: strict }";
const PERMISSIVE: &str = "tls: { mode: permissive }";

#[tokio::test]
async fn requests_go_by_mtls_on_one_kept_connection_and_the_application_learns_who_asked() {
    let app = Upstream::start("a").await;
    let (server, caller, files) = pair(app.address(), STRICT).await;
    for _ in 0..3 {
        let forged = Ask::post("/", "a body")
            .host("reviews")
            .header(
                "x-forwarded-client-cert",
                "By=spiffe://shop/reviews;URI=spiffe://shop/admin",
            )
            .header("x-outrigger-source", "spiffe://shop/admin")
            .header("X-Kept", "Kept");
        let reply = caller.client().send(forged).await;
        assert_eq!((reply.status(), reply.upstream()), (200, "a"), "{reply:?}");
    }
    let received = app.last();
    let certificate = std::fs::read(files[1].path("certificate.pem")).unwrap();
    let hash = openssl(&["x509", "-noout", "-fingerprint", "-sha256"], &certificate).await;
    let hash = hash
        .trim()
        .rsplit('=')
        .next()
        .unwrap()
        .replace(':', "")
        .to_lowercase();
    let expected = format!("By=spiffe://shop/reviews;Hash={hash};URI=spiffe://shop/productpage");
    let said: Vec<_> = received.head.all("x-forwarded-client-cert").collect();
    assert_eq!(said, [expected.as_str()]);
    assert_eq!(received.head.header("x-outrigger-source"), None);
    assert_eq!(received.head.header("x-kept"), Some("Kept"));

    for (sidecar, side) in [(&server, "inbound"), (&caller, "outbound")] {
        let metrics = sidecar.metrics().await;
        assert_eq!(
            metrics.sum(HANDSHAKES, &[("side", side), ("result", "ok")]),
            1.0,
            "{side}"
        );
        assert_eq!(metrics.sum(HANDSHAKES, &[]), 1.0, "{side}");
    }
    let source = [("source", "spiffe://shop/productpage"), ("result", "allowed")];
    assert_eq!(server.metrics().await.sum(ASKED, &source), 3.0);
    let certs = server.page("/certs").await.json();
    assert_eq!(certs["identity"]["spiffe_id"], "spiffe://shop/reviews");
}

/// What openssl says to this input.
async fn openssl(arguments: &[&str], input: &[u8]) -> String {
    let mut command = Command::new("openssl");
    command.args(arguments).kill_on_drop(true);
    command
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped());
    let mut child = command.stderr(std::process::Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    stdin.write_all(input).await.unwrap();
    // A client must not end before its answer; whoever reads a file waits for the end of it.
    let held = (arguments[0] == "s_client").then_some(stdin);
    let mut said = Vec::new();
    within("openssl to be done", stdout.read_to_end(&mut said))
        .await
        .unwrap();
    drop(held);
    String::from_utf8_lossy(&said).into_owned()
}

#[tokio::test]
async fn grpc_and_tcp_go_by_mtls_too() {
    let app = GrpcUpstream::start("a").await;
    let (server, caller, _files) = pair(app.address(), &format!("protocol: grpc\n{STRICT}")).await;
    let mut client = Http2::open(caller.outbound()).await.unwrap();
    let stream = client.post("reviews", "/a.B/C", b"\0\0\0\0\0").await.unwrap();
    let reply = within("an answer", client.reply(stream)).await.unwrap();
    assert_eq!(reply.status(), 200, "{reply:?}");
    app.has_calls(1).await;
    assert_eq!(server.metrics().await.sum(HANDSHAKES, &[("result", "ok")]), 1.0);

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let app = listener.local_addr().unwrap();
    let echo = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let (mut from, mut to) = stream.split();
        tokio::io::copy(&mut from, &mut to).await.unwrap();
        to.write_all(b"!").await.unwrap();
        to.shutdown().await.unwrap();
    });
    let (server, caller, _files) = pair(app, &format!("protocol: tcp\n{STRICT}")).await;
    let mut stream = TcpStream::connect(caller.local("reviews")).await.unwrap();
    stream.write_all(&[b'x'; 100_000]).await.unwrap();
    // One half ends by itself; the other goes on until it ends too.
    stream.shutdown().await.unwrap();
    let mut echoed = Vec::new();
    within("the echo", stream.read_to_end(&mut echoed)).await.unwrap();
    assert_eq!((echoed.len(), echoed.last()), (100_001, Some(&b'!')));
    echo.await.unwrap();
    let metrics = server.metrics_when("the connection to be over", |metrics| {
        metrics.sum("outrigger_tcp_connections_total", &[("reason", "")]) == 1.0
    });
    assert_eq!(metrics.await.sum(HANDSHAKES, &[("result", "ok")]), 1.0);
}

#[tokio::test]
async fn a_strict_service_answers_plaintext_with_its_reason_and_closes() {
    let app = Upstream::start("a").await;
    let (server, _caller, _files) = pair(app.address(), STRICT).await;
    let mut connection = Client::new(server.inbound()).connect().await;
    let reply = connection.send(&Ask::get("/").host("reviews")).await.unwrap();
    assert_eq!(
        (reply.status(), reply.reason()),
        (403, Some("tls-required")),
        "{reply:?}"
    );
    within("the end of the connection", connection.wire().gone()).await;
    assert_eq!(app.requests(), 0);
    let labels = [("source", "_plaintext"), ("result", "refused")];
    assert_eq!(server.metrics().await.sum(ASKED, &labels), 1.0);
    assert_eq!(server.metrics().await.sum(PLAINTEXT, &[]), 1.0);

    let mut connection = Http2::open(server.inbound()).await.unwrap();
    let stream = connection.get("reviews", "/").await.unwrap();
    let reply = within("an answer", connection.reply(stream)).await.unwrap();
    assert_eq!(
        (reply.status(), reply.header("x-outrigger-reason")),
        (403, Some("tls-required"))
    );
}

#[tokio::test]
async fn a_permissive_service_takes_both_and_counts_plaintext() {
    let app = Upstream::start("a").await;
    let (server, caller, _files) = pair(app.address(), PERMISSIVE).await;
    let plain = Client::new(server.inbound())
        .send(Ask::get("/").host("reviews"))
        .await;
    assert_eq!((plain.status(), plain.upstream()), (200, "a"));
    assert_eq!(app.last().head.header("x-forwarded-client-cert"), None);
    let reply = caller.client().get("reviews", "/").await;
    assert_eq!((reply.status(), reply.upstream()), (200, "a"));
    assert!(app.last().head.header("x-forwarded-client-cert").is_some());
    let metrics = server.metrics().await;
    assert_eq!(metrics.sum(PLAINTEXT, &[("service", "reviews")]), 1.0);
    assert_eq!(metrics.sum(HANDSHAKES, &[("result", "ok")]), 1.0);
}

#[tokio::test]
async fn a_mesh_is_moved_to_mtls_step_by_step_without_a_failure() {
    let app = Upstream::start("a").await;
    let pki = Pki::new();
    let files = [pki.files("reviews"), pki.files("productpage")];
    // An identity alone changes nothing: what is not said to be spoken to by mTLS is spoken to in plaintext.
    let server = server(app.address(), "", &files[0]).await;
    let caller = caller(&server, "", &files[1]).await;
    let ok = async |what: &str, handshakes: f64| {
        let reply = caller.client().get("reviews", "/").await;
        assert_eq!(
            (reply.status(), reply.upstream()),
            (200, "a"),
            "{what}: {reply:?}"
        );
        assert_eq!(caller.metrics().await.sum(HANDSHAKES, &[]), handshakes, "{what}");
    };
    ok("nothing said", 0.0).await;
    caller
        .apply(&file(server.inbound(), PERMISSIVE).to_string())
        .await;
    ok("a caller that knows of mTLS before the service does", 1.0).await;
    server.apply(&beside(app.address(), STRICT)).await;
    ok("strict", 1.0).await;
    // And back: no kept connection is used for what is to go in another way.
    server
        .apply(&beside(app.address(), "tls: { mode: disabled }"))
        .await;
    caller
        .apply(&file(server.inbound(), "tls: { mode: disabled }").to_string())
        .await;
    ok("disabled", 1.0).await;
    assert_eq!(app.last().head.header("x-forwarded-client-cert"), None);
}

#[tokio::test]
async fn without_an_identity_a_permissive_service_is_as_before_and_a_strict_one_is_neither_called_nor_served()
{
    let app = Upstream::start("a").await;
    let server =
        Sidecar::start(SidecarSpec::text("server", &beside(app.address(), PERMISSIVE)).beside("reviews"))
            .await;
    let caller = Sidecar::of(file(server.inbound(), PERMISSIVE)).await;
    assert_eq!(caller.client().get("reviews", "/").await.status(), 200);
    server.apply(&beside(app.address(), STRICT)).await;
    let reply = Client::new(server.inbound()).get("reviews", "/").await;
    assert_eq!((reply.status(), reply.reason()), (503, Some("identity-missing")));
    caller.apply(&file(server.inbound(), STRICT).to_string()).await;
    let reply = caller.client().get("reviews", "/").await;
    assert_eq!((reply.status(), reply.reason()), (503, Some("identity-missing")));
    assert_eq!(app.requests(), 1);
}

#[tokio::test]
async fn a_backend_without_a_sidecar_is_spoken_to_in_plaintext() {
    let app = Upstream::start("a").await;
    let pki = Pki::new();
    let text = format!(
        "kind: Service\nname: reviews\n{STRICT}\nbackends:\n  - {{ name: v1, tls: none, discover: {{ static: [{}] }} }}\n",
        app.address()
    );
    let files = pki.files("productpage");
    let caller = Sidecar::start(SidecarSpec::text("caller", &text).identity(&files)).await;
    assert_eq!(caller.client().get("reviews", "/").await.upstream(), "a");
}

#[tokio::test]
async fn curl_and_openssl_are_callers_like_any_other() {
    let app = Upstream::start("a").await;
    let (server, _caller, files) = pair(app.address(), STRICT).await;
    let path = |name: &str| files[1].path(name).to_string_lossy().into_owned();
    let url = format!("https://{}/", server.inbound());
    for version in ["--http1.1", "--http2"] {
        let mut curl = Command::new("curl");
        // The name of the server is a SPIFFE ID, which curl does not compare.
        curl.args([
            "-sS",
            "--insecure",
            version,
            "--cert",
            &path("certificate.pem"),
            "--key",
            &path("key.pem"),
        ]);
        curl.args([
            "-H",
            "Host: reviews",
            "-w",
            "%{http_code} %{http_version}",
            "-o",
            "/dev/null",
            &url,
        ]);
        let said = within("curl", curl.kill_on_drop(true).output()).await.unwrap();
        let expected = if version == "--http2" { "200 2" } else { "200 1.1" };
        assert_eq!(String::from_utf8_lossy(&said.stdout), expected, "{said:?}");
    }
    let address = server.inbound().to_string();
    let (certificate, key, roots) = (path("certificate.pem"), path("key.pem"), path("roots.pem"));
    let arguments = [
        "s_client",
        "-connect",
        &address,
        "-cert",
        &certificate,
        "-key",
        &key,
        "-CAfile",
        &roots,
        "-tls1_3",
        "-verify_return_error",
        "-quiet",
    ];
    let said = openssl(
        &arguments,
        b"GET / HTTP/1.1\r\nHost: reviews\r\nConnection: close\r\n\r\n",
    )
    .await;
    assert!(said.starts_with("HTTP/1.1 200"), "{said}");
    let metrics = server.metrics().await;
    assert_eq!(
        metrics.sum(ASKED, &[("source", "spiffe://shop/productpage")]),
        3.0
    );
}

#[tokio::test]
async fn a_caller_that_offers_only_what_is_older_than_tls_1_3_is_refused() {
    let app = Upstream::start("a").await;
    let (server, _caller, files) = pair(app.address(), STRICT).await;
    let path = |name: &str| files[1].path(name).to_string_lossy().into_owned();
    let address = server.inbound().to_string();
    let (certificate, key) = (path("certificate.pem"), path("key.pem"));
    let arguments = [
        "s_client",
        "-connect",
        &address,
        "-cert",
        &certificate,
        "-key",
        &key,
        "-tls1_2",
    ];
    let said = openssl(&arguments, b"").await;
    assert!(said.contains("Cipher is (NONE)"), "{said}");
    server
        .metrics_when("a handshake that failed", |metrics| {
            metrics.sum(HANDSHAKES, &[("result", "tls-handshake")]) == 1.0
        })
        .await;
}

#[tokio::test]
async fn health_checks_go_the_way_that_requests_go() {
    let app = Upstream::start("a").await;
    let check = "health_check: { path: /, interval: 100ms, healthy: 1, unhealthy: 1 }";
    let pki = Pki::new();
    let files = [pki.files("reviews"), pki.files("productpage")];
    let server = server(app.address(), STRICT, &files[0]).await;
    let caller = caller(&server, &format!("{STRICT}\n{check}"), &files[1]).await;
    caller
        .metrics_when("checks that succeed", |metrics| {
            metrics.sum("outrigger_health_checks_total", &[("result", "well")]) >= 2.0
        })
        .await;
    let metrics = caller.metrics().await;
    assert_eq!(
        metrics.sum("outrigger_health_checks_total", &[("result", "ill")]),
        0.0
    );
}

#[tokio::test]
async fn a_caller_that_says_half_a_hello_is_let_go_of_and_others_are_served_meanwhile() {
    let app = Upstream::start("a").await;
    let (server, caller, _files) = pair(app.address(), STRICT).await;
    let mut slow = TcpStream::connect(server.inbound()).await.unwrap();
    slow.write_all(&[0x16, 0x03, 0x01, 0x02, 0x00]).await.unwrap();
    assert_eq!(caller.client().get("reviews", "/").await.status(), 200);
    let mut rest = Vec::new();
    // Reset or ended: it is over.
    let _ = within("the end of the slow connection", slow.read_to_end(&mut rest)).await;
    server
        .metrics_when("the handshake that failed", |metrics| {
            metrics.sum(HANDSHAKES, &[("result", "tls-handshake")]) == 1.0
        })
        .await;
}

#[tokio::test]
async fn a_small_answer_is_one_record() {
    let app = Upstream::start("a").await;
    let (server, _caller, files) = pair(app.address(), STRICT).await;
    let path = |name: &str| files[1].path(name).to_string_lossy().into_owned();
    let (address, certificate, key) = (
        server.inbound().to_string(),
        path("certificate.pem"),
        path("key.pem"),
    );
    let arguments = [
        "s_client",
        "-connect",
        &address,
        "-cert",
        &certificate,
        "-key",
        &key,
        "-msg",
        "-ign_eof",
    ];
    let said = openssl(
        &arguments,
        b"GET / HTTP/1.1\r\nHost: reviews\r\nConnection: close\r\n\r\n",
    )
    .await;
    let answer = said.find("HTTP/1.1 200").unwrap();
    let records = |said: &str| said.matches("<<< TLS 1.3, InnerContent").count();
    assert!(records(&said[..answer]) > 0, "{said}");
    // Nothing by which this session could be resumed.
    assert!(!said.contains("NewSessionTicket"), "{said}");
    // What comes after the answer's first byte is the alert that ends it, and no body.
    assert_eq!(records(&said[answer..]), 1, "{said}");
}

#[tokio::test]
async fn a_certificate_of_another_trust_domain_than_the_mesh_s_is_as_good_as_none() {
    let app = Upstream::start("a").await;
    let pki = Pki::new();
    let files = IdentityFiles::new(&pki.issue(&Leaf::of(&["spiffe://other/productpage"])), pki.root());
    let text = format!(
        "kind: Mesh\ntrust_domain: shop\n---\n{}",
        file(app.address(), STRICT)
    );
    let mut caller = Sidecar::launch(SidecarSpec::text("caller", &text).identity(&files)).await;
    let line = caller
        .program()
        .logged("that it is of another mesh", |line| line["level"] == "ERROR")
        .await;
    let why = "this sidecar's certificate is of the trust domain `other`, the mesh's is `shop`";
    assert_eq!(line["why"], why, "{line}");
    caller
        .config_when("the configuration", |config| config["source"] == "file")
        .await;
    let ready = caller.page("/ready").await;
    assert_eq!(
        (ready.status(), ready.text()),
        (503, format!("not ready: {why}\n"))
    );
    let reply = caller.client().get("reviews", "/").await;
    assert_eq!((reply.status(), reply.reason()), (503, Some("identity-missing")));
    let issued = pki.issue(&Leaf::service("productpage"));
    files.write("key.pem", &issued.key);
    files.write("certificate.pem", &issued.certificate);
    caller.is_ready().await;
}

#[tokio::test]
async fn a_service_may_be_named_by_a_number() {
    for name in ["404", "0", "0x1f", &"7".repeat(63)] {
        for protocol in ["http", "http2"] {
            let app = Upstream::start("a").await;
            let pki = Pki::new();
            let files = [pki.files(name), pki.files("productpage")];
            let quoted = format!("\"{name}\"");
            let text = ServiceFile::new(&quoted).field(STRICT).app(app.address());
            let spec = SidecarSpec::text("server", &text.backend("v1", &[app.address()]).to_string());
            let server = Sidecar::start(spec.beside(name).identity(&files[0])).await;
            let text = ServiceFile::new(&quoted)
                .field(STRICT)
                .field(&format!("protocol: {protocol}"))
                .backend("v1", &[server.inbound()]);
            let spec = SidecarSpec::text("caller", &text.to_string());
            let caller = Sidecar::start(spec.identity(&files[1])).await;
            let reply = caller.client().get(name, "/").await;
            assert_eq!(reply.status(), 200, "{name} {protocol} {reply:?}");
            // Another's certificate is refused by this name too.
            let other = ServiceFile::new("\"405\"").field(STRICT);
            caller
                .apply(&other.backend("v1", &[server.inbound()]).to_string())
                .await;
            let reply = caller.client().get("405", "/").await;
            assert_eq!(reply.reason(), Some("peer-wrong-identity"), "{name} {reply:?}");
        }
    }
}
