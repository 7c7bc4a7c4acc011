//! Whom mTLS keeps out: each with a reason of its own, on the side that found it.

use outrigger_tests::pki::Issued;
use outrigger_tests::pki::KeyUsagePurpose::{CrlSign, DigitalSignature, KeyCertSign};
use outrigger_tests::{IdentityFiles, Leaf, Pki, Sidecar, SidecarSpec, Upstream};
use tokio::process::Command;

use crate::mtls::{HANDSHAKES, STRICT, beside, caller, file, server};

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

#[tokio::test]
async fn a_caller_with_a_bad_certificate_is_refused_by_the_server_s_sidecar_each_by_its_reason() {
    let app = Upstream::start("a").await;
    let pki = Pki::new();
    let good = pki.files("reviews");
    let server = server(app.address(), STRICT, &good).await;
    let mut before = std::collections::HashMap::new();
    let mut cases = bad(&pki, "spiffe://shop/productpage");
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
        curl.args(["-sS", "--insecure"]);
        if !issued.key.is_empty() {
            curl.args(["--cert", &path("certificate.pem"), "--key", &path("key.pem")]);
        }
        let url = format!("https://{}/", server.inbound());
        let said = curl.args(["-H", "Host: reviews", &url]).output().await.unwrap();
        assert!(!said.status.success(), "{what}: {said:?}");
        // The alert arrives: the connection is not reset over it.
        let words = String::from_utf8_lossy(&said.stderr).into_owned();
        assert!(words.contains("alert"), "{what}: {words}");
        let count = before.entry(reason).or_insert(0.0);
        *count += 1.0;
        let expected = *count;
        server
            .metrics_when(&format!("{reason} for a certificate that is {what}"), |metrics| {
                metrics.sum(HANDSHAKES, &[("side", "inbound"), ("result", reason)]) == expected
            })
            .await;
    }
    assert_eq!(app.requests(), 0);
}

#[tokio::test]
async fn an_endpoint_with_a_bad_certificate_is_refused_by_the_caller_s_sidecar_each_by_its_reason() {
    let pki = Pki::new();
    let files = pki.files("productpage");
    let mut cases = bad(&pki, "spiffe://shop/reviews");
    cases.push((
        "another service's",
        pki.issue(&Leaf::service("ratings")),
        "peer-wrong-identity",
    ));
    for (what, issued, reason) in cases {
        let shown = IdentityFiles::new(&issued, pki.root());
        let endpoint = TlsServer::start(&shown).await;
        let text = file(endpoint.address, STRICT).to_string();
        let mut caller = Sidecar::start(SidecarSpec::text("caller", &text).identity(&files)).await;
        let reply = caller.client().get("reviews", "/").await;
        assert_eq!(
            (reply.status(), reply.reason()),
            (503, Some(reason)),
            "{what}: {reply:?}"
        );
        let metrics = caller.metrics().await;
        assert!(
            metrics.sum(HANDSHAKES, &[("side", "outbound"), ("result", reason)]) >= 1.0,
            "{what}"
        );
        assert_eq!(metrics.sum(HANDSHAKES, &[("result", "ok")]), 0.0, "{what}");
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
        command
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::null());
        let process = command
            .stderr(std::process::Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        outrigger_tests::eventually("openssl to listen", async || {
            tokio::net::TcpStream::connect(address).await.ok()
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
