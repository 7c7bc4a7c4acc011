//! TLS to servers outside of the mesh: Debian's nginx and HAProxy, openssl, and gRPC's own library.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use outrigger_tests::ends::{Endpoint, Http};
use outrigger_tests::metrics::Metrics;
use outrigger_tests::pki::Issued;
use outrigger_tests::program::Program;
use outrigger_tests::tls_servers::{TlsServer, free};
use outrigger_tests::wait::{eventually, within};
use outrigger_tests::{Ask, Leaf, Pki, Sidecar, SidecarSpec, Upstream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::mtls::HANDSHAKES;

const BOTH: &str = "TLSv1.2 TLSv1.3";
const OK: &[(&str, &str)] = &[("side", "outbound"), ("result", "ok")];

/// A service `payments` at this server outside, spoken to with these words.
fn payments(server: SocketAddr, tls: &str, fields: &str) -> String {
    format!(
        "kind: Service\nname: payments\n{fields}\nbackends:\n  - name: v1\n    discover: {{ static: [{server}] }}\n    tls: {tls}\n"
    )
}

/// A file with roots.
fn roots(pem: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), pem).unwrap();
    file
}

/// Puts other roots in the place of a file, as an update does.
fn exchange(path: &Path, pem: &str) {
    let fresh = path.with_extension("new");
    std::fs::write(&fresh, pem).unwrap();
    std::fs::rename(&fresh, path).unwrap();
}

fn named(name: &str, roots: &Path) -> String {
    format!("{{ server_name: {name}, roots: {} }}", roots.display())
}

async fn asked(sidecar: &Sidecar) -> (u16, String) {
    let reply = sidecar.client().get("payments", "/").await;
    let said = reply.reason().map(str::to_owned);
    (reply.status(), said.unwrap_or_else(|| reply.text()))
}

#[tokio::test]
async fn a_server_outside_sees_its_name_and_no_certificate_and_its_connection_is_kept() {
    let pki = Pki::new();
    let issued = pki.issue(&Leaf::host(&["api.example.com", "127.0.0.1"]));
    let server = TlsServer::nginx(&[&issued], BOTH).await;
    let file = roots(pki.root());
    // The mode of the service and the identity are for the mesh alone.
    let identity = pki.files("productpage");
    let text = |name: &str, fields: &str| {
        let fields = format!("tls: {{ mode: strict }}\n{fields}");
        payments(server.address(), &named(name, file.path()), &fields)
    };
    let sidecar = Sidecar::start(
        SidecarSpec::text("a", &text("api.example.com", ""))
            .identity(&identity)
            .with("--workers", "1"),
    )
    .await;
    for _ in 0..3 {
        assert_eq!(
            asked(&sidecar).await,
            (200, "api.example.com payments HTTP/1.1 TLSv1.3 NONE .".to_owned())
        );
    }
    assert_eq!(sidecar.metrics().await.sum(HANDSHAKES, OK), 1.0);
    sidecar.apply(&text("api.example.com", "protocol: http2")).await;
    assert_eq!(
        asked(&sidecar).await,
        (200, "api.example.com payments HTTP/2.0 TLSv1.3 NONE .".to_owned())
    );
    // An address has no SNI (RFC 6066 section 3), and the certificate is good for it.
    sidecar.apply(&text("127.0.0.1", "")).await;
    assert_eq!(
        asked(&sidecar).await,
        (200, " payments HTTP/1.1 TLSv1.3 NONE .".to_owned())
    );
    // No connection is kept across other words.
    sidecar.apply(&text("other.example.com", "")).await;
    assert_eq!(asked(&sidecar).await, (503, "peer-wrong-identity".to_owned()));
}

#[tokio::test]
async fn the_name_that_dns_finds_a_server_by_is_its_name_unless_another_is_said() {
    let pki = Pki::new();
    let server = TlsServer::nginx(&[&pki.issue(&Leaf::host(&["api.shop.internal"]))], BOTH).await;
    let dns = outrigger_tests::dns::DnsServer::start("shop.internal").await;
    dns.set("api.shop.internal", &[server.address().ip()], 60).await;
    let file = roots(pki.root());
    let text = format!(
        "kind: Service\nname: payments\nbackends:\n  - name: v1\n    discover: {{ dns: api.shop.internal., port: {} }}\n    \
         tls: {{ roots: {} }}\n",
        server.address().port(),
        file.path().display()
    );
    let sidecar = Sidecar::start(SidecarSpec::text("a", &text).dns(dns.address())).await;
    let (status, saw) = asked(&sidecar).await;
    assert_eq!((status, saw.split(' ').next()), (200, Some("api.shop.internal")));
}

#[tokio::test]
async fn what_cannot_be_verified_is_not_spoken_to_and_says_why() {
    let (pki, other) = (Pki::new(), Pki::new());
    let host = || Leaf::host(&["api.example.com"]);
    let cases: [(Issued, &str); 6] = [
        (
            pki.issue(&Leaf::host(&["www.example.com"])),
            "peer-wrong-identity",
        ),
        // A name of the mesh is none of the web.
        (pki.issue(&Leaf::service("payments")), "peer-wrong-identity"),
        (other.issue(&host()), "peer-untrusted"),
        (Pki::self_signed(&host()), "peer-untrusted"),
        (pki.issue(&host().expired()), "peer-expired"),
        (pki.issue(&host().early()), "peer-not-yet-valid"),
    ];
    let issued: Vec<_> = cases.iter().map(|(issued, _)| issued).collect();
    let server = TlsServer::nginx(&issued, BOTH).await;
    let file = roots(pki.root());
    let words = named("api.example.com", file.path());
    // Not TLS at all: what answers a hello as a malformed request.
    let plain = Sidecar::of(payments(server.address(), "none", "")).await;
    let sidecar = Sidecar::of(payments(plain.scrape(), &words, "")).await;
    assert_eq!(asked(&sidecar).await, (503, "tls-handshake".to_owned()));
    for (place, (_, reason)) in cases.iter().enumerate() {
        sidecar.apply(&payments(server.at(place), &words, "")).await;
        assert_eq!(asked(&sidecar).await, (503, (*reason).to_owned()), "case {place}");
        let metrics = sidecar.metrics().await;
        assert!(metrics.sum(HANDSHAKES, &[("side", "outbound"), ("result", reason)]) >= 1.0);
    }
}

/// openssl's own server, which answers any request with a page about the session.
async fn openssl(folder: &Path, issued: &Issued, options: &[&str]) -> (Program, SocketAddr) {
    let both = folder.join("both.pem");
    std::fs::write(&both, format!("{}{}", issued.certificate, issued.key)).unwrap();
    let address = free();
    let mut command = Command::new("openssl");
    command.args(["s_server", "-www", "-accept", &address.to_string(), "-cert"]);
    command.arg(&both).args(options);
    let program = Program::spawn("openssl s_server", command);
    eventually("openssl to listen", async || {
        std::net::TcpStream::connect(address).is_ok().then_some(())
    })
    .await;
    (program, address)
}

#[tokio::test]
async fn tls_1_2_is_spoken_only_where_the_file_says_so_and_the_log_says_what_to_write() {
    let (pki, folder) = (Pki::new(), tempfile::tempdir().unwrap());
    let issued = pki.issue(&Leaf::host(&["old.example.com"]));
    let (_program, address) = openssl(folder.path(), &issued, &["-tls1_2"]).await;
    let file = roots(pki.root());
    let words = |min: &str| {
        let roots = file.path().display();
        format!("{{ server_name: old.example.com, roots: {roots}{min} }}")
    };
    let mut sidecar = Sidecar::of(payments(address, &words(""), "")).await;
    assert_eq!(asked(&sidecar).await, (503, "tls-handshake".to_owned()));
    sidecar
        .program()
        .logged("what to write", |line| {
            let detail = line["detail"].as_str().unwrap_or_default();
            detail.contains("old.example.com")
                && detail.contains("`min_version: \"1.2\"` would speak 1.2 to it")
        })
        .await;
    sidecar
        .apply(&payments(address, &words(", min_version: 1.2"), ""))
        .await;
    let (status, page) = asked(&sidecar).await;
    assert_eq!(status, 200);
    assert!(page.contains("TLSv1.2"), "{page}");
    // Where both can, the newer one is spoken.
    let server = TlsServer::nginx(&[&issued], BOTH).await;
    sidecar
        .apply(&payments(server.address(), &words(", min_version: 1.2"), ""))
        .await;
    assert_eq!(asked(&sidecar).await.1.split(' ').nth(3), Some("TLSv1.3"));
}

fn loads(metrics: &Metrics, result: &str) -> f64 {
    metrics.sum(
        "outrigger_tls_file_loads_total",
        &[("what", "roots"), ("result", result)],
    )
}

#[tokio::test]
async fn roots_are_exchanged_live_and_a_root_that_is_gone_is_trusted_no_longer() {
    let (old, new) = (Pki::new(), Pki::new());
    let server = TlsServer::nginx(&[&old.issue(&Leaf::host(&["api.example.com"]))], BOTH).await;
    let file = roots(old.root());
    for protocol in ["http", "http2"] {
        exchange(file.path(), old.root());
        let text = payments(
            server.address(),
            &named("api.example.com", file.path()),
            &format!("protocol: {protocol}\nejection: {{ at_most: 0% }}"),
        );
        let spec = SidecarSpec::text("a", &text).with("--workers", "1");
        let mut sidecar = Sidecar::start(spec).await;
        let loaded = async |sidecar: &Sidecar, count: f64| {
            let what = format!("{count} loads of roots");
            sidecar
                .metrics_when(&what, |metrics| loads(metrics, "loaded") == count)
                .await;
        };
        assert_eq!(asked(&sidecar).await.0, 200);
        // One more root: connections live on.
        exchange(file.path(), &format!("{}{}", old.root(), new.root()));
        loaded(&sidecar, 2.0).await;
        assert_eq!(asked(&sidecar).await.0, 200);
        assert_eq!(sidecar.metrics().await.sum(HANDSHAKES, OK), 1.0, "{protocol}");
        // What is none changes nothing.
        exchange(file.path(), "no roots");
        sidecar
            .metrics_when("a refused file", |metrics| loads(metrics, "refused") == 1.0)
            .await;
        assert_eq!(asked(&sidecar).await.0, 200);
        let path = file.path().display().to_string();
        sidecar
            .program()
            .logged("the file", |line| {
                line["problem"]
                    .as_str()
                    .is_some_and(|problem| problem.starts_with(&path))
            })
            .await;
        let certs = sidecar.page("/certs").await.json();
        assert_eq!(certs["outside"][0]["trusted"], 2, "{certs}");
        assert!(certs["outside"][0]["refused"].is_string(), "{certs}");
        // Without the root of the server, its kept connection is as little trusted as it.
        exchange(file.path(), new.root());
        loaded(&sidecar, 3.0).await;
        assert_eq!(
            asked(&sidecar).await,
            (503, "peer-untrusted".to_owned()),
            "{protocol}"
        );
        exchange(file.path(), old.root());
        loaded(&sidecar, 4.0).await;
        assert_eq!(asked(&sidecar).await.0, 200);
        assert_eq!(sidecar.metrics().await.sum(HANDSHAKES, OK), 2.0, "{protocol}");
    }
}

#[tokio::test]
async fn the_roots_of_the_system_are_those_that_openssl_would_find_and_none_is_said_with_what_to_do() {
    let pki = Pki::new();
    let server = TlsServer::nginx(&[&pki.issue(&Leaf::host(&["api.example.com"]))], BOTH).await;
    let file = roots(pki.root());
    let text = payments(server.address(), "{ server_name: api.example.com }", "");
    let bundle = file.path().to_str().unwrap();
    let spec = SidecarSpec::text("a", &text).environment("SSL_CERT_FILE", bundle);
    // A variable of whoever runs the tests must not decide this one.
    let spec = spec.environment("SSL_CERT_DIR", "");
    assert_eq!(asked(&Sidecar::start(spec).await).await.0, 200);
    // Those of this machine do not know the tests' own.
    let sidecar = Sidecar::of(&text).await;
    let (status, reason) = asked(&sidecar).await;
    assert_eq!(status, 503);
    assert!(
        reason == "peer-untrusted" || reason == "identity-missing",
        "{reason}"
    );
    let empty = tempfile::tempdir().unwrap();
    let spec = SidecarSpec::text("a", &text)
        .environment("SSL_CERT_FILE", "/nowhere/roots.pem")
        .environment("SSL_CERT_DIR", empty.path().to_str().unwrap());
    let mut sidecar = Sidecar::start(spec).await;
    assert_eq!(asked(&sidecar).await, (503, "identity-missing".to_owned()));
    sidecar
        .program()
        .logged("what to do", |line| {
            let problem = line["problem"].as_str().unwrap_or_default();
            [
                "ca-certificates",
                "SSL_CERT_FILE",
                "roots: /",
                "/nowhere/roots.pem",
            ]
            .iter()
            .all(|word| problem.contains(word))
        })
        .await;
}

#[tokio::test]
async fn a_file_of_roots_that_comes_late_is_waited_for_without_holding_up_the_rest() {
    let pki = Pki::new();
    let server = TlsServer::nginx(&[&pki.issue(&Leaf::host(&["api.example.com"]))], BOTH).await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("roots.pem");
    let sidecar = Sidecar::of(payments(server.address(), &named("api.example.com", &path), "")).await;
    assert_eq!(asked(&sidecar).await, (503, "identity-missing".to_owned()));
    exchange(&path, pki.root());
    eventually("the server to be trusted", async || {
        (asked(&sidecar).await.0 == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_server_that_does_not_choose_http2_is_told_from_one_that_fails() {
    let (pki, folder) = (Pki::new(), tempfile::tempdir().unwrap());
    let issued = pki.issue(&Leaf::host(&["api.example.com"]));
    let file = roots(pki.root());
    let app = Endpoint::start(Http::Two).await;
    // One that says nothing of what it speaks, and one that speaks something else.
    let mute = TlsServer::in_front_of(app.address(), &[&issued], "").await;
    let (_program, other) = openssl(folder.path(), &issued, &["-alpn", "http/1.1"]).await;
    for address in [mute.address(), other] {
        let text = payments(address, &named("api.example.com", file.path()), "protocol: http2");
        let mut sidecar = Sidecar::of(text).await;
        assert_eq!(asked(&sidecar).await, (503, "tls-handshake".to_owned()));
        sidecar
            .program()
            .logged("why", |line| {
                let detail = line["detail"].as_str().unwrap_or_default();
                detail.contains("does not choose h2 by ALPN")
            })
            .await;
    }
}

#[tokio::test]
async fn a_request_by_http2_over_tls_has_the_scheme_https_and_the_authority_that_routing_decided() {
    let pki = Pki::new();
    let app = Endpoint::start(Http::Two).await;
    let issued = pki.issue(&Leaf::host(&["api.example.com"]));
    let server = TlsServer::in_front_of(app.address(), &[&issued], "alpn h2").await;
    let file = roots(pki.root());
    for (rewrite, authority) in [
        ("", "payments"),
        ("rewrite: { host: api.example.com }", "api.example.com"),
    ] {
        let text = payments(
            server.address(),
            &named("api.example.com", file.path()),
            "protocol: http2",
        );
        let text = format!("{text}routes:\n  - name: default\n    to: [{{ backend: v1 }}]\n    {rewrite}\n");
        let sidecar = Sidecar::of(text).await;
        let asking = tokio::spawn(async move { asked(&sidecar).await });
        let mut taken = app.take().await;
        assert_eq!(taken.request.header(":scheme"), Some("https"));
        assert_eq!(taken.request.header(":authority"), Some(authority));
        taken.answer(200, &[], b"ok", &[]).await;
        assert_eq!(asking.await.unwrap(), (200, "ok".to_owned()));
    }
}

#[tokio::test]
async fn a_service_of_tcp_is_spoken_to_by_tls() {
    let pki = Pki::new();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let behind = listener.local_addr().unwrap();
    let echo = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"hello ").await.unwrap();
        let (mut from, mut to) = stream.split();
        tokio::io::copy(&mut from, &mut to).await.unwrap();
    });
    let server = TlsServer::in_front_of(behind, &[&pki.issue(&Leaf::host(&["db.example.com"]))], "").await;
    let file = roots(pki.root());
    let text = payments(
        server.address(),
        &named("db.example.com", file.path()),
        "protocol: tcp",
    );
    let sidecar = Sidecar::start(SidecarSpec::text("a", &text).local("payments")).await;
    let mut stream = TcpStream::connect(sidecar.local("payments")).await.unwrap();
    stream.write_all(b"world").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut said = Vec::new();
    within("the echo", stream.read_to_end(&mut said)).await.unwrap();
    assert_eq!(said, b"hello world");
    echo.await.unwrap();
    assert_eq!(sidecar.metrics().await.sum(HANDSHAKES, OK), 1.0);
    // Nothing is said to a server that is another.
    sidecar
        .apply(&payments(
            server.address(),
            &named("x.example.com", file.path()),
            "protocol: tcp",
        ))
        .await;
    let mut stream = TcpStream::connect(sidecar.local("payments")).await.unwrap();
    let ended = within("the end", stream.read_to_end(&mut said)).await;
    assert!(ended.is_err(), "a reset, since an end would look like an answer");
}

#[tokio::test]
async fn health_checks_go_by_tls_and_ask_by_the_server_s_own_name() {
    let pki = Pki::new();
    let app = Upstream::start("a").await;
    let issued = pki.issue(&Leaf::host(&["api.example.com"]));
    let server = TlsServer::in_front_of(app.address(), &[&issued], "").await;
    let file = roots(pki.root());
    let check = "health_check: { path: /health, interval: 100ms, healthy: 1, unhealthy: 1 }";
    let text = |name: &str| payments(server.address(), &named(name, file.path()), check);
    let sidecar = Sidecar::of(text("api.example.com")).await;
    let checks =
        |metrics: &Metrics, result: &str| metrics.sum("outrigger_health_checks_total", &[("result", result)]);
    sidecar
        .metrics_when("checks that succeed", |metrics| checks(metrics, "well") >= 2.0)
        .await;
    assert_eq!(checks(&sidecar.metrics().await, "ill"), 0.0);
    assert_eq!(app.last().head.header("host"), Some("api.example.com"));
    sidecar.apply(&text("www.example.com")).await;
    sidecar
        .metrics_when("a check that fails", |metrics| checks(metrics, "ill") >= 1.0)
        .await;
    let clusters = sidecar.page("/clusters").await.text();
    assert!(clusters.contains("peer-wrong-identity"), "{clusters}");
}

#[tokio::test]
async fn a_grpc_server_outside_is_called_by_tls() {
    let (pki, folder) = (Pki::new(), tempfile::tempdir().unwrap());
    let issued = pki.issue(&Leaf::host(&["grpc.example.com"]));
    let paths = [("chain.pem", &issued.certificate), ("key.pem", &issued.key)].map(|(name, text)| {
        std::fs::write(folder.path().join(name), text).unwrap();
        folder.path().join(name).to_string_lossy().into_owned()
    });
    let (_server, address) = crate::peers::server("grpc", &[&paths[0], &paths[1]]).await;
    let file = roots(pki.root());
    let text = payments(address, &named("grpc.example.com", file.path()), "protocol: grpc");
    let sidecar = Sidecar::start(SidecarSpec::text("a", &text).local("payments")).await;
    let (target, nobody) = (
        sidecar.local("payments").to_string(),
        sidecar.outbound().to_string(),
    );
    let out = crate::peers::answers_of("grpc", &[&target, &nobody]).await;
    assert_eq!(out["parallel"], 200, "{out}");
    assert_eq!(out["unary"].as_array().map(Vec::len), Some(20));
    assert_eq!(out["conversation"][2], "echo three");
    assert!(sidecar.metrics().await.sum(HANDSHAKES, OK) >= 1.0);
}

/// The example, with servers of the tests in the place of those that it names.
#[tokio::test]
async fn the_example_of_tls_to_the_outside_works() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config-examples/tls-to-the-outside.yaml");
    let text = std::fs::read_to_string(path).unwrap();
    let (public, private) = (Pki::new(), Pki::new());
    let new = TlsServer::nginx(&[&public.issue(&Leaf::host(&["api.example.com"]))], "TLSv1.3").await;
    let old = TlsServer::nginx(
        &[&private.issue(&Leaf::host(&["standby.example.com"]))],
        "TLSv1.2",
    )
    .await;
    let (bundle, file) = (roots(public.root()), roots(private.root()));
    let text = text
        .replace("127.0.0.1:443", &new.address().to_string())
        .replace("127.0.0.1:8443", &old.address().to_string())
        .replace("/etc/ssl/standby-root.pem", file.path().to_str().unwrap());
    let start = async |text: &str| {
        let spec = SidecarSpec::text("a", text);
        Sidecar::start(spec.environment("SSL_CERT_FILE", bundle.path().to_str().unwrap())).await
    };
    let sidecar = start(&text).await;
    for host in ["payments", "api.example.com"] {
        let reply = sidecar.client().send(Ask::get("/").host(host)).await;
        assert_eq!(
            reply.text(),
            "api.example.com api.example.com HTTP/1.1 TLSv1.3 NONE ."
        );
    }
    let shifted = text.replace(
        "[{ backend: provider }, { backend: standby, weight: 0 }]",
        "[{ backend: standby }]",
    );
    sidecar.apply(&shifted).await;
    assert_eq!(
        asked(&sidecar).await.1,
        "standby.example.com api.example.com HTTP/1.1 TLSv1.2 NONE ."
    );
}
