//! Certificates come and go while requests run.

use std::time::Duration;

use outrigger_tests::{IdentityFiles, Leaf, Load, LoadSpec, Pki, Sidecar, SidecarSpec, Upstream, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::mtls::{HANDSHAKES, STRICT, caller, file, server};

const ENDED: &str = "outrigger_tcp_connections_total";
const LOADS: &str = "outrigger_identity_loads_total";
const LOADED: &[(&str, &str)] = &[("result", "loaded")];
const REFUSED: &[(&str, &str)] = &[("result", "refused")];

async fn has_loaded(sidecar: &Sidecar, count: f64) {
    sidecar
        .metrics_when("an identity loaded", |metrics| {
            metrics.sum(LOADS, LOADED) == count
        })
        .await;
}

#[tokio::test]
async fn certificates_and_the_root_are_exchanged_under_load_without_a_failed_request() {
    let app = Upstream::start("a").await;
    let (old, new) = (Pki::new(), Pki::new());
    let files = [old.files("reviews"), old.files("productpage")];
    let server = server(app.address(), STRICT, &files[0]).await;
    let caller = caller(&server, STRICT, &files[1]).await;
    let load = Load::start(LoadSpec::new(caller.outbound(), "reviews", 4));
    load.has_done(100).await;
    let mut loads = 1.0;
    let both = format!("{}{}", old.root(), new.root());
    // Both roots first, then certificates of the new one, then the new root alone: one side after the other each time.
    let made = async || caller.metrics().await.sum(HANDSHAKES, &[("result", "ok")]);
    let mut made_before = 0.0;
    for step in 0..3 {
        made_before = if step == 2 { made().await } else { made_before };
        for (place, name) in [(0, "reviews"), (1, "productpage")] {
            let sidecar = [&server, &caller][place];
            match step {
                0 => files[place].write("roots.pem", &both),
                1 => {
                    let issued = new.issue(&Leaf::service(name));
                    // The key comes first, and is no key of the certificate that is there.
                    files[place].write("key.pem", &issued.key);
                    sidecar
                        .metrics_when("half of a change refused", |metrics| {
                            metrics.sum(LOADS, REFUSED) >= 1.0
                        })
                        .await;
                    files[place].write("certificate.pem", &issued.certificate);
                }
                _ => files[place].write("roots.pem", new.root()),
            }
            has_loaded(sidecar, loads + 1.0).await;
            load.has_done_more(100).await;
        }
        loads += 1.0;
    }
    load.stop().await.assert_clean();
    // Once the old root is gone nothing goes by connections that were made while it was trusted.
    assert!(
        made().await > made_before,
        "{made_before} connections, and no new one"
    );
    let metrics = caller.metrics().await;
    assert_eq!(
        metrics.sum(HANDSHAKES, &[]),
        metrics.sum(HANDSHAKES, &[("result", "ok")])
    );
    assert_eq!(
        server.page("/certs").await.json()["identity"]["roots"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
}

#[tokio::test]
async fn a_set_that_does_not_fit_together_keeps_the_old_one_and_says_so() {
    let app = Upstream::start("a").await;
    let pki = Pki::new();
    let files = [pki.files("reviews"), pki.files("productpage")];
    let mut server = server(app.address(), STRICT, &files[0]).await;
    let caller = caller(&server, STRICT, &files[1]).await;
    let issued = pki.issue(&Leaf::service("reviews"));
    let mut refused = 0.0;
    let other = Pki::new();
    let cases = [
        ("key.pem", issued.key.as_str(), "not that of the certificate: /"),
        ("key.pem", "half", "key.pem: there is none in it"),
        (
            "key.pem",
            "-----BEGIN PRIVATE KEY-----\nAAAA\n",
            "key.pem: it breaks off before its line -----END PRIVATE KEY-----",
        ),
        ("certificate.pem", "", "the certificate cannot be read: /"),
        ("roots.pem", other.root(), "does not lead to one of the roots"),
    ];
    for (name, text, words) in cases {
        let kept = std::fs::read_to_string(files[0].path(name)).unwrap();
        files[0].write(name, text);
        refused += 1.0;
        server
            .metrics_when("a refusal", |metrics| metrics.sum(LOADS, REFUSED) == refused)
            .await;
        let certs = server.page("/certs").await.json();
        let said = certs["refused"].as_str().unwrap().to_owned();
        assert!(said.contains(words), "{name}: {said}");
        assert_eq!(certs["identity"]["spiffe_id"], "spiffe://shop/reviews");
        let problem = said.clone();
        server
            .program()
            .logged("the problem", |line| line["problem"] == problem.as_str())
            .await;
        assert_eq!(caller.client().get("reviews", "/").await.status(), 200);
        let loaded = server.metrics().await.sum(LOADS, LOADED);
        files[0].write(name, &kept);
        has_loaded(&server, loaded + 1.0).await;
        assert!(server.page("/certs").await.json()["refused"].is_null());
    }
}

#[tokio::test]
async fn a_good_identity_is_not_given_up_for_that_of_another_service() {
    let app = Upstream::start("a").await;
    let pki = Pki::new();
    let files = [pki.files("reviews"), pki.files("productpage")];
    let server = server(app.address(), STRICT, &files[0]).await;
    let caller = caller(&server, STRICT, &files[1]).await;
    for name in ["key.pem", "certificate.pem"] {
        files[0].write(name, &std::fs::read_to_string(files[1].path(name)).unwrap());
    }
    let certs = eventually("the refusal", async || {
        let certs = server.page("/certs").await.json();
        let refused = certs["refused"].as_str().unwrap_or_default();
        refused.contains("the certificate is another's").then_some(certs)
    })
    .await;
    let why = "it is of spiffe://shop/productpage, and spiffe://shop/reviews is held";
    assert!(certs["refused"].as_str().unwrap().contains(why), "{certs:#}");
    assert_eq!(certs["identity"]["spiffe_id"], "spiffe://shop/reviews");
    let certificate = &certs["identity"]["certificate"];
    let expires = certificate["expires"].as_str().unwrap();
    assert!(expires.starts_with("20") && expires.ends_with('Z'), "{certs:#}");
    assert!(
        certificate["left"].as_str().unwrap().ends_with(['h', 'm']),
        "{certs:#}"
    );
    assert_eq!(caller.client().get("reviews", "/").await.status(), 200);
}

#[tokio::test]
async fn a_sidecar_whose_identity_is_to_come_is_not_ready_and_speaks_no_plaintext_instead() {
    let app = Upstream::start("a").await;
    let pki = Pki::new();
    let files = pki.files("productpage");
    let key = std::fs::read_to_string(files.path("key.pem")).unwrap();
    std::fs::remove_file(files.path("key.pem")).unwrap();
    let permissive = file(app.address(), "tls: { mode: permissive }").to_string();
    let sidecar = Sidecar::launch(SidecarSpec::text("caller", &permissive).identity(&files)).await;
    sidecar
        .metrics_when("a refusal", |metrics| metrics.sum(LOADS, REFUSED) == 1.0)
        .await;
    sidecar
        .config_when("the configuration", |config| config["source"] == "file")
        .await;
    let ready = sidecar.page("/ready").await;
    assert_eq!(ready.status(), 503);
    assert!(ready.text().contains("identity"), "{}", ready.text());
    let reply = sidecar.client().get("reviews", "/").await;
    assert_eq!((reply.status(), reply.reason()), (503, Some("identity-missing")));
    assert_eq!(app.connections(), 0);
    files.write("key.pem", &key);
    sidecar.is_ready().await;
}

#[tokio::test]
async fn a_certificate_that_runs_out_ends_what_was_made_with_it_and_says_so() {
    let echo = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let app = echo.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = echo.accept().await {
            tokio::spawn(async move {
                let (mut from, mut to) = stream.split();
                let _ = tokio::io::copy(&mut from, &mut to).await;
            });
        }
    });
    let pki = Pki::new();
    let fields = format!("protocol: tcp\n{STRICT}");
    let server = server(app, &fields, &pki.files("reviews")).await;
    let short = pki.issue(&Leaf::service("productpage").lasting(Duration::from_secs(8)));
    let files = IdentityFiles::new(&short, pki.root());
    let caller = caller(&server, &fields, &files).await;
    let mut stream = tokio::net::TcpStream::connect(caller.local("reviews"))
        .await
        .unwrap();
    stream.write_all(b"x").await.unwrap();
    assert_eq!(stream.read_u8().await.unwrap(), b'x');
    let mut rest = Vec::new();
    let _ = outrigger_tests::within("the certificate's end", stream.read_to_end(&mut rest)).await;
    // Both ends of it know when; the one that is first cuts the other.
    let mut found = 0.0;
    for sidecar in [&caller, &server] {
        let over = sidecar.metrics_when("the connection's end", |metrics| metrics.sum(ENDED, &[]) == 1.0);
        found += over.await.sum(ENDED, &[("reason", "peer-expired")]);
    }
    assert!(found >= 1.0);
    // What runs out without another in its place is not used any more.
    // It is reset at once, which may show as early as in connecting.
    if let Ok(mut stream) = tokio::net::TcpStream::connect(caller.local("reviews")).await {
        let _ = outrigger_tests::within("a refusal", stream.read_to_end(&mut rest)).await;
    }
    caller
        .metrics_when("a reason", |metrics| {
            metrics.sum(
                "outrigger_tcp_connections_total",
                &[("reason", "identity-expired")],
            ) == 1.0
        })
        .await;
}
