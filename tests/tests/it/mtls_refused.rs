//! Whom mTLS keeps out: each with a reason of its own, on the side that found it.

use std::process::Stdio;

use outrigger_tests::pki::Issued;
use outrigger_tests::pki::KeyUsagePurpose::{CrlSign, DigitalSignature, KeyCertSign};
use outrigger_tests::pki::serial;
use outrigger_tests::wait::within;
use outrigger_tests::{IdentityFiles, Leaf, Pki, Sidecar, SidecarSpec, Upstream};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::process::Command;

use crate::mtls::{HANDSHAKES, STRICT, beside, caller, file, server};
use crate::mtls_revoked::{by_serial, is_over, revoking};

/// One that shows a bad certificate, and what it is called by who finds it.
fn bad(pki: &Pki, id: &str) -> Vec<(&'static str, Issued, &'static str)> {
    let good = || Leaf::of(&[id]);
    vec![
        ("expired", pki.issue(&good().expired()), "peer-expired"),
        ("not yet valid", pki.issue(&good().early()), "peer-not-yet-valid"),
        ("of another root", Pki::new().issue(&good()), "peer-untrusted"),
        ("signed by itself", Pki::self_signed(&good()), "peer-untrusted"),
        ("a CA used as leaf", pki.as_leaf(), "peer-untrusted"),
        (
            "of another trust domain",
            pki.issue(&Leaf::of(&["spiffe://other/reviews"])),
            "peer-wrong-identity",
        ),
        (
            "two names",
            pki.issue(&Leaf::of(&[id, "spiffe://shop/other"])),
            "peer-wrong-identity",
        ),
        ("no name", pki.issue(&Leaf::of(&[])), "peer-wrong-identity"),
        (
            "a name that is no SPIFFE ID",
            pki.issue(&Leaf::of(&["https://shop/reviews"])),
            "peer-wrong-identity",
        ),
        (
            "a trust domain's name",
            pki.issue(&Leaf::of(&["spiffe://shop"])),
            "peer-wrong-identity",
        ),
        (
            "that may sign certificates",
            pki.issue(&good().used_for(&[DigitalSignature, KeyCertSign])),
            "peer-wrong-identity",
        ),
        (
            "that may sign revocation lists",
            pki.issue(&good().used_for(&[DigitalSignature, CrlSign])),
            "peer-wrong-identity",
        ),
    ]
}

/// A good one, and the entry of a mesh that revokes it.
fn revoked(pki: &Pki, id: &str) -> (Issued, String) {
    let issued = pki.issue(&Leaf::of(&[id]));
    let entry = by_serial(&serial(&issued.certificate));
    (issued, entry)
}

/// The ways in which a service is spoken to: its fields, and what curl is told beside.
const WAYS: [(&str, &str); 3] = [
    ("protocol: http", "--http1.1"),
    ("protocol: http2", "--http2"),
    ("protocol: tcp", "--http1.1"),
];

async fn callers_are_refused((protocol, version): (&str, &str)) {
    let app = Upstream::start("a").await;
    let pki = Pki::new();
    let good = pki.files("reviews");
    let (withdrawn, entry) = revoked(&pki, "spiffe://shop/productpage");
    let text = revoking(&entry, &beside(app.address(), &format!("{protocol}\n{STRICT}")));
    let spec = SidecarSpec::text("server", &text).beside("reviews");
    let mut server = Sidecar::start(spec.identity(&good)).await;
    let mut before = std::collections::HashMap::new();
    let mut cases = bad(&pki, "spiffe://shop/productpage");
    cases.push(("revoked", withdrawn, "peer-revoked"));
    cases.push((
        "none",
        Issued {
            certificate: String::new(),
            key: String::new(),
        },
        "peer-no-certificate",
    ));
    for (what, issued, reason) in cases {
        let files = IdentityFiles::new(&issued, pki.root());
        let path = |name: &str| files.path(name).to_string_lossy().into_owned();
        let mut curl = Command::new("curl");
        curl.args(["-sS", "--insecure", version]);
        if !issued.key.is_empty() {
            curl.args(["--cert", &path("certificate.pem"), "--key", &path("key.pem")]);
        }
        let url = format!("https://{}/", server.inbound());
        let said = curl.args(["-H", "Host: reviews", &url]).output().await.unwrap();
        assert!(!said.status.success(), "{protocol} {what}: {said:?}");
        // The alert arrives: the connection is not reset over it.
        let words = String::from_utf8_lossy(&said.stderr).into_owned();
        assert!(words.contains("alert"), "{protocol} {what}: {words}");
        let count = before.entry(reason).or_insert(0.0);
        *count += 1.0;
        let expected = *count;
        server
            .metrics_when(&format!("{reason} for a certificate that is {what}"), |metrics| {
                metrics.sum(HANDSHAKES, &[("side", "inbound"), ("result", reason)]) == expected
            })
            .await;
        // Each reason is told, if not each time.
        let told = |line: &Value| line["message"] == "a TLS handshake failed" && line["reason"] == reason;
        server.program().logged(reason, told).await;
    }
    assert_eq!(app.connections(), 0, "{protocol}");
}

#[tokio::test]
async fn a_caller_with_a_bad_certificate_is_refused_by_the_server_s_sidecar_each_by_its_reason() {
    callers_are_refused(WAYS[0]).await;
}

#[tokio::test]
async fn a_caller_by_http2_with_a_bad_certificate_is_refused_each_by_its_reason() {
    callers_are_refused(WAYS[1]).await;
}

#[tokio::test]
async fn a_caller_of_a_tcp_service_with_a_bad_certificate_is_refused_each_by_its_reason() {
    callers_are_refused(WAYS[2]).await;
}

async fn endpoints_are_refused((protocol, _): (&str, &str)) {
    let pki = Pki::new();
    let files = pki.files("productpage");
    let mut cases: Vec<_> = bad(&pki, "spiffe://shop/reviews")
        .into_iter()
        .map(|(what, issued, reason)| (what, issued, reason, String::new()))
        .collect();
    cases.push((
        "another service's",
        pki.issue(&Leaf::service("ratings")),
        "peer-wrong-identity",
        String::new(),
    ));
    let (withdrawn, entry) = revoked(&pki, "spiffe://shop/reviews");
    cases.push(("revoked", withdrawn, "peer-revoked", entry));
    for (what, issued, reason, entry) in cases {
        let shown = IdentityFiles::new(&issued, pki.root());
        let endpoint = TlsServer::start(&shown).await;
        let text = file(endpoint.address, &format!("{protocol}\n{STRICT}")).to_string();
        let text = revoking(&entry, &text);
        let spec = SidecarSpec::text("caller", &text).local("reviews");
        let mut caller = Sidecar::start(spec.identity(&files)).await;
        if protocol == "protocol: tcp" {
            // It is reset at once, which may show as early as in connecting.
            if let Ok(mut stream) = TcpStream::connect(caller.local("reviews")).await {
                is_over(&mut stream).await;
            }
            caller
                .metrics_when("why", |metrics| {
                    metrics.sum("outrigger_tcp_connections_total", &[("reason", reason)]) == 1.0
                })
                .await;
        } else {
            let reply = caller.client().get("reviews", "/").await;
            assert_eq!(
                (reply.status(), reply.reason()),
                (503, Some(reason)),
                "{protocol} {what}: {reply:?}"
            );
        }
        let metrics = caller.metrics().await;
        assert!(
            metrics.sum(HANDSHAKES, &[("side", "outbound"), ("result", reason)]) >= 1.0,
            "{protocol} {what}"
        );
        assert_eq!(
            metrics.sum(HANDSHAKES, &[("result", "ok")]),
            0.0,
            "{protocol} {what}"
        );
        let line = caller
            .program()
            .printed("the access log to say why", |line| {
                line.contains(&format!("\"reason\":\"{reason}\""))
            })
            .await;
        // In words for people: no name of the library's stands in them.
        let inside = [
            "Other(",
            "Error",
            "Context",
            "UnknownIssuer",
            "InvalidCertificate",
            "(UNIX)",
        ];
        assert!(!inside.iter().any(|name| line.contains(name)), "{what}: {line}");
    }
}

#[tokio::test]
async fn an_endpoint_with_a_bad_certificate_is_refused_by_the_caller_s_sidecar_each_by_its_reason() {
    endpoints_are_refused(WAYS[0]).await;
}

#[tokio::test]
async fn an_endpoint_by_http2_with_a_bad_certificate_is_refused_each_by_its_reason() {
    endpoints_are_refused(WAYS[1]).await;
}

#[tokio::test]
async fn an_endpoint_of_a_tcp_service_with_a_bad_certificate_is_refused_each_by_its_reason() {
    endpoints_are_refused(WAYS[2]).await;
}

/// What openssl says of a second connection to a server, with the session that the first was given.
async fn second_of_openssl(server: &TlsServer, folder: &std::path::Path) -> String {
    let session = folder.join("session").display().to_string();
    let mut said = String::new();
    for flag in ["-sess_out", "-sess_in"] {
        let mut command = Command::new("openssl");
        command.args([
            "s_client",
            "-connect",
            &server.address.to_string(),
            flag,
            &session,
        ]);
        // It reads on until the server has answered and closed.
        command.arg("-ign_eof").kill_on_drop(true);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut client = command.spawn().unwrap();
        let mut stdin = client.stdin.take().unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut stdin, b"GET / HTTP/1.0\r\n\r\n")
            .await
            .unwrap();
        let ended = within("openssl to be done", client.wait_with_output())
            .await
            .unwrap();
        drop(stdin);
        said = String::from_utf8_lossy(&ended.stdout).into_owned();
    }
    said
}

#[tokio::test]
async fn a_server_that_hands_out_tickets_is_shaken_hands_with_anew_each_time() {
    let pki = Pki::new();
    let [shown, own] = ["reviews", "productpage"].map(|name| pki.files(name));
    let endpoint = TlsServer::start(&shown).await;
    // It would resume: openssl's own client does with what it is handed.
    let said = second_of_openssl(&endpoint, own.folder()).await;
    assert!(said.contains("Reused, TLSv1.3"), "{said}");
    let text = file(endpoint.address, STRICT).to_string();
    let caller = Sidecar::start(SidecarSpec::text("caller", &text).identity(&own)).await;
    for connections in [1.0, 2.0, 3.0] {
        let reply = caller.client().get("reviews", "/").await;
        // The page of openssl's server is about the connection that asks for it, which it closes.
        let page = reply.text();
        assert!(
            page.contains("New, TLSv1.3") && !page.contains("Reused"),
            "{page}"
        );
        let made = caller.metrics().await.sum(HANDSHAKES, &[("result", "ok")]);
        assert_eq!(made, connections);
    }
}

/// A server that speaks TLS and shows whatever certificate it is given: openssl's.
struct TlsServer {
    address: std::net::SocketAddr,
    _process: tokio::process::Child,
}

impl TlsServer {
    async fn start(files: &IdentityFiles) -> Self {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let mut command = Command::new("openssl");
        command.args(["s_server", "-accept", &address.to_string(), "-www", "-quiet"]);
        command
            .arg("-cert")
            .arg(files.path("certificate.pem"))
            .arg("-key")
            .arg(files.path("key.pem"));
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let process = command.stderr(Stdio::null()).kill_on_drop(true).spawn().unwrap();
        outrigger_tests::eventually("openssl to listen", async || {
            TcpStream::connect(address).await.ok()
        })
        .await;
        Self {
            address,
            _process: process,
        }
    }
}

#[tokio::test]
async fn a_caller_learns_that_its_certificate_is_not_accepted_by_h1_and_h2() {
    for protocol in ["", "\nprotocol: http2"] {
        let app = Upstream::start("a").await;
        let (pki, other) = (Pki::new(), Pki::new());
        let server = server(
            app.address(),
            &format!("{STRICT}{protocol}"),
            &pki.files("reviews"),
        )
        .await;
        // It trusts the server's root; the server does not trust its.
        let roots = format!("{}{}", pki.root(), other.root());
        let files = IdentityFiles::new(&other.issue(&Leaf::service("productpage")), &roots);
        let caller = caller(&server, &format!("{STRICT}{protocol}"), &files).await;
        let reply = caller.client().get("reviews", "/").await;
        assert_eq!(
            (reply.status(), reply.reason()),
            (503, Some("identity-refused")),
            "{protocol} {reply:?}"
        );
        let metrics = server.metrics().await;
        assert!(metrics.sum(HANDSHAKES, &[("result", "peer-untrusted")]) >= 1.0);
        assert_eq!(app.requests(), 0);
    }
}

#[tokio::test]
async fn an_endpoint_that_speaks_no_tls_is_a_handshake_that_failed() {
    let app = Upstream::start("a").await;
    let pki = Pki::new();
    let server =
        Sidecar::start(SidecarSpec::text("server", &beside(app.address(), "")).beside("reviews")).await;
    let caller = caller(&server, STRICT, &pki.files("productpage")).await;
    let reply = caller.client().get("reviews", "/").await;
    assert_eq!(
        (reply.status(), reply.reason()),
        (503, Some("tls-handshake")),
        "{reply:?}"
    );
}

#[tokio::test]
async fn one_instance_with_a_bad_certificate_costs_no_request() {
    let app = Upstream::start("a").await;
    let pki = Pki::new();
    let (good, bad) = (pki.files("reviews"), pki.files("ratings"));
    let servers = [
        server(app.address(), STRICT, &good).await,
        server(app.address(), STRICT, &bad).await,
    ];
    let endpoints = servers.each_ref().map(Sidecar::inbound);
    let text = outrigger_tests::ServiceFile::new("reviews")
        .field(STRICT)
        .backend("v1", &endpoints);
    let spec = SidecarSpec::text("caller", &text.to_string()).identity(&pki.files("productpage"));
    let files = pki.files("productpage");
    let caller = Sidecar::start(spec.identity(&files)).await;
    for _ in 0..20 {
        let reply = caller.client().get("reviews", "/").await;
        assert_eq!(reply.status(), 200, "{reply:?}");
    }
}

#[tokio::test]
async fn a_sidecar_whose_certificate_is_not_of_its_own_service_says_so_at_its_start() {
    let pki = Pki::new();
    let text = beside("127.0.0.1:9".parse().unwrap(), "");
    let spec = SidecarSpec::text("server", &text).beside("reviews");
    let mut sidecar = Sidecar::start(spec.identity(&pki.files("ratings"))).await;
    let told = sidecar.program().logged("a warning", |line| {
        line["level"] == "WARN"
            && line["spiffe_id"] == "spiffe://shop/ratings"
            && line["service"] == "reviews"
    });
    let told = told.await;
    assert!(told["message"].as_str().unwrap().contains("--service"), "{told}");
}
