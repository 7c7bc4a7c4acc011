//! Certificates come and go while requests run.

use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use outrigger_tests::metrics::Metrics;
use outrigger_tests::{IdentityFiles, Leaf, Load, LoadSpec, Pki, Sidecar, SidecarSpec, Upstream, eventually};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::mtls::{HANDSHAKES, STRICT, caller, file, server};

const ENDED: &str = "outrigger_tcp_connections_total";
const LOADS: &str = "outrigger_identity_loads_total";
const NOT_AFTER: &str = "outrigger_certificate_not_after_seconds";

/// By HTTP/1.1 and by HTTP/2 between the sidecars.
const VERSIONS: [&str; 2] = ["", "\nprotocol: http2"];

const LOADED: &[(&str, &str)] = &[("result", "loaded")];
const REFUSED: &[(&str, &str)] = &[("result", "refused")];

async fn has_loaded(sidecar: &Sidecar, count: f64) {
    sidecar
        .metrics_when("an identity loaded", |metrics| {
            metrics.sum(LOADS, LOADED) == count
        })
        .await;
}

/// A service and a caller under load, whose certificates are exchanged.
struct Rotating {
    _app: Upstream,
    files: [IdentityFiles; 2],
    sidecars: [Sidecar; 2],
    load: Load,
    loads: f64,
}

impl Rotating {
    async fn new(old: &Pki, version: &str) -> Self {
        let app = Upstream::start("a").await;
        let files = NAMES.map(|name| old.files(name));
        let server = server(app.address(), STRICT, &files[0]).await;
        let caller = caller(&server, &format!("{STRICT}{version}"), &files[1]).await;
        let load = Load::start(LoadSpec::new(caller.outbound(), "reviews", 4));
        load.has_done(100).await;
        Self {
            _app: app,
            files,
            sidecars: [server, caller],
            load,
            loads: 1.0,
        }
    }

    /// Changes the files of one side after the other, and waits until each is used and has been under load.
    async fn exchange(&mut self, change: impl AsyncFn(&IdentityFiles, &Sidecar, &str)) {
        for (place, name) in NAMES.into_iter().enumerate() {
            change(&self.files[place], &self.sidecars[place], name).await;
            has_loaded(&self.sidecars[place], self.loads + 1.0).await;
            self.load.has_done_more(100).await;
        }
        self.loads += 1.0;
    }

    /// Another certificate of this root, key first.
    async fn renew(&mut self, pki: &Pki) {
        let renew = async |files: &IdentityFiles, _: &Sidecar, name: &str| {
            let issued = pki.issue(&Leaf::service(name));
            files.write("key.pem", &issued.key);
            files.write("certificate.pem", &issued.certificate);
        };
        self.exchange(renew).await;
    }

    /// Another root in the place of the old: both roots first, then certificates of the new one, then the new root alone.
    async fn replace_root(&mut self, old: &Pki, new: &Pki) {
        let both = format!("{}{}", old.root(), new.root());
        let all = async |files: &IdentityFiles, _: &Sidecar, _: &str| files.write("roots.pem", &both);
        self.exchange(all).await;
        let reissue = async |files: &IdentityFiles, sidecar: &Sidecar, name: &str| {
            let issued = new.issue(&Leaf::service(name));
            let refused = sidecar.metrics().await.sum(LOADS, REFUSED);
            // The key comes first, and is no key of the certificate that is there.
            files.write("key.pem", &issued.key);
            sidecar
                .metrics_when("half of a change refused", |metrics| {
                    metrics.sum(LOADS, REFUSED) > refused
                })
                .await;
            files.write("certificate.pem", &issued.certificate);
        };
        self.exchange(reissue).await;
        let made = self.made().await;
        let one = async |files: &IdentityFiles, _: &Sidecar, _: &str| files.write("roots.pem", new.root());
        self.exchange(one).await;
        // Once the old root is gone nothing goes by connections that were made while it was trusted.
        assert!(self.made().await > made, "{made} connections, and no new one");
    }

    async fn made(&self) -> f64 {
        self.sidecars[1]
            .metrics()
            .await
            .sum(HANDSHAKES, &[("result", "ok")])
    }
}

/// Whose certificates are exchanged: the service's, the caller's.
const NAMES: [&str; 2] = ["reviews", "productpage"];

#[tokio::test]
async fn a_key_that_everybody_can_read_is_used_and_said_once() {
    let files = Pki::new().files("reviews");
    let key = files.path("key.pem");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let text = file("127.0.0.1:9".parse().unwrap(), STRICT).to_string();
    let mut sidecar = Sidecar::launch(SidecarSpec::text("reviews-1", &text).identity(&files)).await;
    has_loaded(&sidecar, 1.0).await;
    let is_it = |line: &Value| {
        let path = line["path"].as_str().unwrap_or_default();
        path.ends_with("key.pem") && line["message"].as_str().unwrap_or_default().contains("chmod 600")
    };
    let said = sidecar
        .program()
        .logged("that everybody can read it", is_it)
        .await;
    assert_eq!(
        (&said["level"], &said["mode"]),
        (&json!("WARN"), &json!("644")),
        "{said}"
    );
}

#[tokio::test]
async fn certificates_and_the_root_are_exchanged_under_load_without_a_failed_request() {
    let (old, new) = (Pki::new(), Pki::new());
    let mut rotating = Rotating::new(&old, "").await;
    rotating.replace_root(&old, &new).await;
    let Rotating { sidecars, load, .. } = rotating;
    load.stop().await.assert_clean();
    let [server, caller] = sidecars;
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

async fn rotates(version: &str, rounds: usize, every: Duration) {
    let (old, new) = (Pki::new(), Pki::new());
    let mut rotating = Rotating::new(&old, version).await;
    let mut pace = tokio::time::interval(every);
    for _ in 0..rounds {
        pace.tick().await;
        rotating.renew(&old).await;
    }
    rotating.replace_root(&old, &new).await;
    // What the old root signed gets in no more.
    let Rotating { sidecars, load, .. } = rotating;
    let [server, caller] = sidecars;
    let stale = old.files("productpage");
    let path = |name: &str| stale.path(name).to_string_lossy().into_owned();
    let mut curl = tokio::process::Command::new("curl");
    curl.args(["-sS", "--insecure", "--cert", &path("certificate.pem")]);
    curl.args(["--key", &path("key.pem"), "-H", "Host: reviews"]);
    let said = curl.arg(format!("https://{}/", server.inbound())).output().await;
    let said = said.unwrap();
    assert!(!said.status.success(), "{version} {said:?}");
    load.stop().await.assert_clean();
    for (sidecar, side, failed) in [(&caller, "outbound", 0.0), (&server, "inbound", 1.0)] {
        let metrics = sidecar.metrics().await;
        let of = |result| metrics.sum(HANDSHAKES, &[("side", side), ("result", result)]);
        let all = metrics.sum(HANDSHAKES, &[("side", side)]);
        assert_eq!(all - of("ok"), failed, "{version} {side}");
        assert_eq!(of("peer-untrusted"), failed, "{version} {side}");
    }
}

#[tokio::test]
async fn certificates_are_renewed_again_and_again_under_load_and_then_the_root_and_no_request_fails() {
    // At length every 5 s for 2 minutes; else four times, as fast as they are taken.
    let (rounds, every) = match std::env::var_os("OUTRIGGER_TESTS_LONG") {
        Some(_) => (24, Duration::from_secs(5)),
        None => (4, Duration::from_millis(1)),
    };
    tokio::join!(
        rotates(VERSIONS[0], rounds, every),
        rotates(VERSIONS[1], rounds, every)
    );
}

#[tokio::test]
async fn the_metric_tells_when_the_certificate_and_the_first_of_the_roots_end_and_follows_an_exchange() {
    let app = Upstream::start("a").await;
    let (pki, other) = (Pki::new(), Pki::new());
    let lasting = |hours: u64| Leaf::service("reviews").lasting(Duration::from_secs(hours * 3600));
    let roots = format!("{}{}", pki.root(), other.root());
    let files = IdentityFiles::new(&pki.issue(&lasting(3)), &roots);
    let server = server(app.address(), STRICT, &files).await;
    for hours in [2, 1] {
        let leaf = lasting(hours);
        let issued = pki.issue(&leaf);
        files.write("key.pem", &issued.key);
        files.write("certificate.pem", &issued.certificate);
        let exact = leaf.not_after.unix_timestamp() as f64;
        let says = |metrics: &Metrics, what| metrics.sum(NOT_AFTER, &[("what", what)]);
        let metrics = server.metrics_when("the end of the new certificate", |metrics| {
            says(metrics, "certificate") == exact
        });
        let metrics = metrics.await;
        let certs = server.page("/certs").await.json();
        let identity = &certs["identity"];
        assert_eq!(identity["certificate"]["not_after"].as_f64(), Some(exact));
        let ends = identity["roots"].as_array().unwrap().iter();
        let first = ends
            .map(|root| root["not_after"].as_f64().unwrap())
            .fold(f64::MAX, f64::min);
        assert_eq!(says(&metrics, "roots"), first);
    }
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
