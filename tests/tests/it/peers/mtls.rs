//! Clients of others at a strict service: each shows a certificate and gets the protocol that it asked for.

use outrigger_tests::http2::Caller as Http2;
use outrigger_tests::tls::client;
use outrigger_tests::wait::within;
use outrigger_tests::{
    Ask, Client, IdentityFiles, Leaf, Pki, ServiceFile, Sidecar, SidecarSpec, TlsRelay, Upstream,
};

use super::*;

const STRICT: &str = "tls: { mode: strict }";
const HANDSHAKES: &str = "outrigger_tls_handshakes_total";
const PRODUCTPAGE: &str = "spiffe://shop/productpage";

/// The sidecar of a service beside this application, strict; its files and those of a caller.
async fn strict(service: &str, protocol: &str, app: SocketAddr) -> (Sidecar, IdentityFiles, IdentityFiles) {
    let pki = Pki::new();
    let (own, files) = (pki.files(service), pki.files("productpage"));
    let file = ServiceFile::new(service)
        .field(&format!("protocol: {protocol}"))
        .field(STRICT)
        .app(app)
        .backend("v1", &[app]);
    let spec = SidecarSpec::text("server", &file.to_string()).beside(service);
    (Sidecar::start(spec.identity(&own)).await, own, files)
}

async fn is_counted(server: &Sidecar, result: &str, count: f64) {
    let what = format!("{count} {result}");
    let counted = server.metrics_when(&what, |metrics| {
        metrics.sum(HANDSHAKES, &[("side", "inbound"), ("result", result)]) == count
    });
    counted.await;
}

#[tokio::test]
async fn a_caller_gets_the_protocol_of_its_choice_and_one_that_offers_none_of_ours_an_alert() {
    let app = Upstream::start("web").await;
    let (server, _own, files) = strict("web", "http", app.address()).await;
    let relay = async |alpn| TlsRelay::start(server.inbound(), Some(&files), alpn).await;
    for alpn in [None, Some("http/1.1"), Some("http/1.1,spdy/3")] {
        let relay = relay(alpn).await;
        let reply = Client::new(relay.address()).get("web", "/").await;
        assert_eq!((reply.status(), reply.upstream()), (200, "web"), "{alpn:?}");
    }
    // Without a word of RFC 7301 the preface tells.
    for alpn in [None, Some("h2"), Some("http/1.1,h2")] {
        let relay = relay(alpn).await;
        let mut caller = Http2::open(relay.address()).await.unwrap();
        let stream = caller.get("web", "/").await.unwrap();
        let reply = within("an answer", caller.reply(stream)).await.unwrap();
        assert_eq!(reply.status(), 200, "{alpn:?}");
    }
    is_counted(&server, "ok", 6.0).await;
    let mut command = Command::new("openssl");
    command.args(client(server.inbound(), Some(&files), Some("spdy/3,foo")));
    let ended = finish(Program::spawn("openssl", command)).await;
    let told = ended.stderr.contains("alert no application protocol");
    assert!(told, "{}", ended.stderr);
    is_counted(&server, "tls-handshake", 1.0).await;
    // Who has agreed on one protocol and speaks another gets no answer that could be taken for one of its own.
    let relay = relay(Some("h2")).await;
    let asked = app.requests();
    let answered = Client::new(relay.address())
        .try_send(&Ask::get("/").host("web"))
        .await;
    assert!(answered.is_err(), "{answered:?}");
    assert_eq!(app.requests(), asked);
}

#[tokio::test]
async fn nghttp_with_a_certificate_speaks_http2() {
    let app = Upstream::start("web").await;
    let (server, _own, files) = strict("web", "http", app.address()).await;
    let option = |name: &str, file: &str| format!("--{name}={}", files.path(file).display());
    let (certificate, key) = (option("cert", "certificate.pem"), option("key", "key.pem"));
    let url = format!("https://{}/x", server.inbound());
    let mut command = Command::new("nghttp");
    command.args([
        "-nvy",
        &certificate,
        &key,
        "-m",
        "20",
        "-H",
        ":authority: web",
        &url,
    ]);
    let out = finish(Program::spawn("nghttp", command)).await.ok();
    let count = |text: &str| out.stdout.lines().filter(|line| line.contains(text)).count();
    assert!(
        out.stdout.contains("The negotiated protocol: h2"),
        "{}",
        out.stdout
    );
    assert_eq!(count(":status: 200"), 20, "{}", out.stdout);
    is_counted(&server, "ok", 1.0).await;
}

#[tokio::test]
async fn grpc_s_own_library_calls_a_strict_service_with_the_credentials_of_a_channel() {
    let (_app, app) = server("grpc", &[]).await;
    let (sidecar, _own, files) = strict("greeter", "grpc", app).await;
    let target = sidecar.inbound().to_string();
    let folder = files.folder().display().to_string();
    let ended = finish(Program::spawn(
        "grpc",
        python("grpc", &["secure", &target, &folder, "workload"]),
    ))
    .await;
    let ended = ended.ok();
    assert_eq!(
        ended.json(),
        json!({ "unary": "hello you", "server_stream": 10_000, "failure": ["FAILED_PRECONDITION"] })
    );
    is_counted(&sidecar, "ok", 1.0).await;
}

#[tokio::test]
async fn websockets_pass_both_sidecars_by_mtls_over_http1_and_over_http2_between_them() {
    let (_app, app) = server("websocket", &[]).await;
    let (server, _own, files) = strict("chat", "http", app).await;
    for protocol in ["http", "http2"] {
        let file = ServiceFile::new("chat")
            .field(&format!("protocol: {protocol}"))
            .field(STRICT)
            .backend("v1", &[server.inbound()]);
        let spec = SidecarSpec::text(protocol, &file.to_string()).local("chat");
        let sidecar = Sidecar::start(spec.identity(&files)).await;
        let out = answers_of("websocket", &[&format!("ws://{}/chat", sidecar.local("chat"))]).await;
        assert_eq!(
            out,
            json!({ "first": "welcome", "text": "word", "large": true, "many": true, "closed": 1000 }),
            "{protocol}"
        );
    }
    is_counted(&server, "ok", 2.0).await;
    let metrics = server.metrics().await;
    assert_eq!(
        metrics.sum("outrigger_inbound_requests_total", &[("source", PRODUCTPAGE)]),
        2.0
    );
}

/// Says where each connection comes from, as a load balancer does, and hands its bytes on.
async fn load_balancer(to: SocketAddr, says: &'static str) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut onward = tokio::net::TcpStream::connect(to).await.unwrap();
                tokio::io::AsyncWriteExt::write_all(&mut onward, says.as_bytes())
                    .await
                    .unwrap();
                let _ = tokio::io::copy_bidirectional(&mut stream, &mut onward).await;
            });
        }
    });
    address
}

#[tokio::test]
async fn behind_the_proxy_protocol_a_caller_by_tls_is_known_by_its_certificate_and_by_its_address() {
    let app = Upstream::start("web").await;
    let pki = Pki::new();
    let (own, files) = (pki.files("web"), pki.files("productpage"));
    let folder = tempfile::tempdir().unwrap();
    let bootstrap = folder.path().join("proxy.yaml");
    let path = |name: &str| own.path(name).display().to_string();
    let text = format!(
        "kind: Proxy\naccess_log: all\nlisteners: {{ proxy_protocol: [inbound] }}\nidentity:\n  files: {{ certificate: {}, \
         key: {}, roots: {} }}\n",
        path("certificate.pem"),
        path("key.pem"),
        path("roots.pem")
    );
    std::fs::write(&bootstrap, text).unwrap();
    let file = ServiceFile::new("web")
        .field(STRICT)
        .app(app.address())
        .backend("v1", &[app.address()]);
    let spec = SidecarSpec::text("server", &file.to_string()).beside("web");
    let mut server = Sidecar::start(spec.with("--config", bootstrap.to_str().unwrap())).await;
    let balancer = load_balancer(server.inbound(), "PROXY TCP4 192.0.2.7 10.0.0.1 12345 443\r\n").await;

    let relay = TlsRelay::start(balancer, Some(&files), Some("http/1.1")).await;
    let reply = Client::new(relay.address()).get("web", "/").await;
    assert_eq!((reply.status(), reply.upstream()), (200, "web"));
    let last = app.last();
    let said = last.head.header("x-forwarded-client-cert").unwrap_or_default();
    assert!(said.ends_with(&format!(";URI={PRODUCTPAGE}")), "{said}");
    let line = server
        .program()
        .printed("the request", |line| line.contains("\"status\":200"))
        .await;
    let line: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(
        (&line["caller"], &line["source"]),
        (&json!("192.0.2.7:12345"), &json!(PRODUCTPAGE))
    );

    // So is one that shows what is not accepted.
    let other = IdentityFiles::new(&Pki::new().issue(&Leaf::service("productpage")), pki.root());
    let relay = TlsRelay::start(balancer, Some(&other), Some("http/1.1")).await;
    let answered = Client::new(relay.address())
        .try_send(&Ask::get("/").host("web"))
        .await;
    assert!(answered.is_err(), "{answered:?}");
    let line = server
        .program()
        .logged("the handshake", |line| {
            line["message"] == "a TLS handshake failed"
        })
        .await;
    assert_eq!(
        (&line["reason"], &line["address"]),
        (&json!("peer-untrusted"), &json!("192.0.2.7:12345"))
    );
}
