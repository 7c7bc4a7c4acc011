//! Certificates that end: who is told what, and what was made with them.

use std::time::Duration;

use outrigger_tests::{IdentityFiles, Leaf, Pki, Sidecar, Upstream, eventually};
use tokio::process::Command;

use crate::mtls::{HANDSHAKES, STRICT, caller, server};

/// Long enough for a sidecar to start with it and to be asked, on a machine with much to do.
const SHORT: Duration = Duration::from_secs(5);

const NOT_AFTER: &str = "outrigger_certificate_not_after_seconds";

/// By HTTP/1.1 and by HTTP/2 between the sidecars.
const VERSIONS: [&str; 2] = ["", "\nprotocol: http2"];

fn short(pki: &Pki, name: &str) -> IdentityFiles {
    IdentityFiles::new(&pki.issue(&Leaf::service(name).lasting(SHORT)), pki.root())
}

/// The first answer that is not 200: its reason, and its words.
async fn refused(caller: &Sidecar) -> (String, String) {
    let reply = eventually("a request to be refused", async || {
        let reply = caller.client().get("reviews", "/").await;
        (reply.status() != 200).then_some(reply)
    })
    .await;
    assert_eq!(reply.status(), 503, "{reply:?}");
    (reply.reason().unwrap_or_default().to_owned(), reply.text())
}

#[tokio::test]
async fn a_caller_is_told_that_the_endpoint_s_certificate_has_expired_and_so_does_that_one_s_own_sidecar() {
    for version in VERSIONS {
        let app = Upstream::start("a").await;
        let pki = Pki::new();
        let good = pki.files("productpage");
        let fields = format!("{STRICT}{version}");
        let soon_over = short(&pki, "reviews");
        let mut server = server(app.address(), STRICT, &soon_over).await;
        let caller = caller(&server, &fields, &good).await;
        let (reason, words) = refused(&caller).await;
        assert_eq!(reason, "peer-expired", "{version} {words}");
        assert!(words.contains("its certificate expired at"), "{version} {words}");
        let told = server.program().logged("why", |line| {
            line["message"] == "a TLS handshake failed" && line["reason"] == "identity-expired"
        });
        told.await;
        let served = app.requests();

        // One that does not look at certificates is not served either, and hears an end of TLS and no reset.
        let path = |name: &str| good.path(name).to_string_lossy().into_owned();
        let mut curl = Command::new("curl");
        curl.args(["-sS", "--insecure", "--cert", &path("certificate.pem")]);
        curl.args(["--key", &path("key.pem"), "-H", "Host: reviews"]);
        let said = curl.arg(format!("https://{}/", server.inbound())).output().await;
        let said = said.unwrap();
        let words = String::from_utf8_lossy(&said.stderr).into_owned();
        let was_reset = words.to_lowercase().contains("reset");
        assert!(!said.status.success() && !was_reset, "{version} {words}");
        assert_eq!(app.requests(), served);
        let inbound = |result| [("side", "inbound"), ("result", result)];
        server
            .metrics_when("both refused for our own certificate", |metrics| {
                metrics.sum(HANDSHAKES, &inbound("identity-expired")) >= 2.0
                    && metrics.sum(HANDSHAKES, &inbound("identity-refused")) == 0.0
            })
            .await;
    }
}

#[tokio::test]
async fn a_caller_whose_own_certificate_has_expired_is_told_that_it_is_its_own() {
    for version in VERSIONS {
        let app = Upstream::start("a").await;
        let pki = Pki::new();
        let fields = format!("{STRICT}{version}");
        let files = [pki.files("reviews"), short(&pki, "productpage")];
        let server = server(app.address(), STRICT, &files[0]).await;
        let caller = caller(&server, &fields, &files[1]).await;
        let (reason, words) = refused(&caller).await;
        assert_eq!(reason, "identity-expired", "{version} {words}");
        assert!(
            words.contains("spiffe://shop/productpage has expired"),
            "{version} {words}"
        );
    }
}

#[tokio::test]
async fn a_kept_connection_ends_with_the_intermediate_that_vouched_for_either_end() {
    for (version, short) in [
        (VERSIONS[0], 0),
        (VERSIONS[0], 1),
        (VERSIONS[1], 0),
        (VERSIONS[1], 1),
    ] {
        let app = Upstream::start("a").await;
        let pki = Pki::new();
        // The certificate itself is good for a day.
        let below = pki.below_for(SHORT);
        let ends = clock() + SHORT.as_secs_f64();
        let files = ["reviews", "productpage"].map(|name| match (name, short) {
            ("reviews", 0) | ("productpage", 1) => below.files(name),
            _ => pki.files(name),
        });
        let server = server(app.address(), STRICT, &files[0]).await;
        let caller = caller(&server, &format!("{STRICT}{version}"), &files[1]).await;
        let sidecar = [&server, &caller][short];
        let end = (ends - 1.0)..=ends;
        let metrics = sidecar.metrics().await;
        let said = metrics.sum(NOT_AFTER, &[("what", "certificate")]);
        assert!(end.contains(&said), "{said}, and {end:?} was meant");
        let certs = sidecar.page("/certs").await.json();
        assert_eq!(certs["identity"]["not_after"].as_f64(), Some(said));

        let (reason, words) = refused(&caller).await;
        assert!(clock() >= said, "{version} {words}");
        let expected = ["peer-expired", "identity-expired"][short];
        assert_eq!(reason, expected, "{version} {words}");
    }
}

/// Seconds since 1970.
fn clock() -> f64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.unwrap().as_secs_f64()
}
