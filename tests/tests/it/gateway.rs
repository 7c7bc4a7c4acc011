//! A proxy at the edge of the mesh: certificates by SNI, exchanged live; hosts, and what requests learn there.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use outrigger_tests::pki::Issued;
use outrigger_tests::wait::{eventually, within};
use outrigger_tests::{
    Ask, Client, ControlApi, Leaf, Load, LoadSpec, Pki, Sidecar, SidecarSpec, Upstream, outrigger,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;

use crate::mtls::HANDSHAKES;

/// A folder with certificates, keys, and the root that signed them.
struct Files(tempfile::TempDir);

impl Files {
    fn new(root: &str) -> Self {
        let files = Self(tempfile::tempdir().unwrap());
        files.write("root.pem", root);
        files
    }

    /// Puts another text in the place of a file, as renewers do.
    fn write(&self, name: &str, text: &str) {
        let fresh = self.0.path().join(".new");
        std::fs::write(&fresh, text).unwrap();
        std::fs::rename(&fresh, self.path(name)).unwrap();
    }

    fn pair(&self, name: &str, issued: &Issued) {
        self.write(&format!("{name}.pem"), &issued.certificate);
        self.write(&format!("{name}.key"), &issued.key);
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The bootstrap of a port `edge` that shows these.
    fn bootstrap(&self, names: &[&str], more: &str) -> String {
        let root = self.0.path().display();
        let pairs: Vec<_> = names
            .iter()
            .map(|name| format!("{{ certificate: {root}/{name}.pem, key: {root}/{name}.key }}"))
            .collect();
        format!(
            "listeners:\n  gateways:\n    - name: edge\n      address: 127.0.0.1:0\n      tls: {{ certificates: [{}]{more} }}\n",
            pairs.join(", ")
        )
    }
}

/// The gateway `edge` to this service with these hosts, and the service with these fields.
fn edge(app: SocketAddr, hosts: &str, fields: &str) -> String {
    format!(
        "kind: Gateway\nname: edge\nservices:\n  - {{ service: shop, hosts: [{hosts}] }}\n---\nkind: Service\nname: shop\n\
         backends:\n  - {{ name: v1, discover: {{ static: [{app}] }} }}\n{fields}"
    )
}

/// What curl makes of a URL whose host is at this address: its exit code, and what it prints.
async fn curl(at: SocketAddr, root: &Path, host: &str, arguments: &[&str]) -> (i32, String) {
    let mut command = Command::new("curl");
    command.args(["-sS", "--noproxy", "*", "--cacert"]).arg(root);
    command.args(["--resolve", &format!("{host}:{}:{}", at.port(), at.ip())]);
    command
        .args(["-w", "\n%{http_code} %{http_version}"])
        .args(arguments);
    command.arg(format!("https://{host}:{}/a?b", at.port()));
    let ended = within("curl", command.kill_on_drop(true).output()).await.unwrap();
    let said = String::from_utf8_lossy(&ended.stdout).into_owned();
    let last = said.lines().last().unwrap_or_default().to_owned();
    (ended.status.code().unwrap_or(-1), last)
}

#[tokio::test]
async fn callers_of_two_names_are_shown_two_certificates_and_served_in_both_versions_of_http() {
    let (pki, app) = (Pki::new(), Upstream::start("a").await);
    let files = Files::new(pki.root());
    files.pair("shop", &pki.issue(&Leaf::host(&["shop.example.com"])));
    files.pair(
        "rest",
        &pki.issue(&Leaf::host(&["*.example.org", "reviews.example.com"])),
    );
    let hosts = "shop.example.com, reviews.example.com, '*.example.org', unnamed.example.com";
    let spec = SidecarSpec::text("edge", &edge(app.address(), hosts, ""));
    let sidecar = Sidecar::start(spec.bootstrap(&files.bootstrap(&["shop", "rest"], ""))).await;
    let (at, root) = (sidecar.gateway("edge").await, files.path("root.pem"));
    for host in ["shop.example.com", "reviews.example.com", "any.example.org"] {
        for (flag, version) in [("--http1.1", "1.1"), ("--http2", "2")] {
            let forged = ["-H", "x-forwarded-proto: http", "-H", "x-forwarded-for: 10.0.0.1"];
            let forged = [&forged[..], &["-H", "x-outrigger-mirror: 1"]].concat();
            let asked = curl(at, &root, host, &[&forged[..], &[flag]].concat()).await;
            assert_eq!(asked, (0, format!("200 {version}")), "{host}");
            let received = app.last();
            let header = |name: &str| received.head.header(name).map(str::to_owned);
            assert_eq!(header("host"), Some(format!("{host}:{}", at.port())));
            assert_eq!(received.target(), "/a?b");
            assert_eq!(header("x-forwarded-proto").as_deref(), Some("https"));
            assert_eq!(header("x-outrigger-mirror"), None, "nobody outside is a mirror");
            assert_eq!(header("x-forwarded-for").as_deref(), Some("10.0.0.1, 127.0.0.1"));
        }
    }
    // A name that no certificate bears: the first is shown, and the caller says what is wrong.
    assert_eq!(curl(at, &root, "unnamed.example.com", &[]).await.0, 60);
    // A host that the gateway does not have, by a name that its certificate has; and a service by its own name.
    for host in ["host: elsewhere.example.com", "host: shop"] {
        let asked = curl(at, &root, "shop.example.com", &["-H", host]).await;
        assert_eq!(asked, (0, "404 2".to_owned()), "{host}");
    }
    let metrics = sidecar.metrics().await;
    assert!(metrics.sum(HANDSHAKES, &[("side", "inbound"), ("result", "ok")]) >= 6.0);
    let not_after = metrics.sum(
        "outrigger_certificate_not_after_seconds",
        &[("what", "gateway:edge")],
    );
    assert!(not_after > 1.7e9, "{not_after}");
}

#[tokio::test]
async fn plaintext_on_a_port_that_speaks_tls_is_told_so_and_tls_1_2_is_spoken_only_where_the_bootstrap_says_so()
 {
    let (pki, app) = (Pki::new(), Upstream::start("a").await);
    let files = Files::new(pki.root());
    files.pair("shop", &pki.issue(&Leaf::host(&["shop.example.com"])));
    let root = files.path("root.pem");
    for (more, old) in [("", 35), (", min_version: 1.2", 0)] {
        let spec = SidecarSpec::text("edge", &edge(app.address(), "shop.example.com", ""));
        let sidecar = Sidecar::start(spec.bootstrap(&files.bootstrap(&["shop"], more))).await;
        let at = sidecar.gateway("edge").await;
        let reply = Client::new(at).get("shop.example.com", "/").await;
        assert_eq!((reply.status(), reply.reason()), (400, Some("bad-request")));
        assert!(reply.text().contains("TLS"), "{}", reply.text());
        let asked = curl(at, &root, "shop.example.com", &["--tls-max", "1.2"]).await;
        assert_eq!(asked.0, old, "{asked:?}");
        assert_eq!(curl(at, &root, "shop.example.com", &[]).await.0, 0);
    }
}

#[tokio::test]
async fn certificates_are_exchanged_under_load_without_a_failed_request_and_a_pair_that_does_not_fit_is_not_shown()
 {
    let (old, new, app) = (Pki::new(), Pki::new(), Upstream::start("a").await);
    let host = Leaf::host(&["shop.example.com"]);
    let files = Files::new(old.root());
    files.pair("shop", &old.issue(&host));
    let spec = SidecarSpec::text("edge", &edge(app.address(), "shop.example.com", ""));
    let mut gateway = Sidecar::start(spec.bootstrap(&files.bootstrap(&["shop"], ""))).await;
    let at = gateway.gateway("edge").await;
    // Another sidecar is the caller: it verifies, and makes new connections when its roots change.
    files.write("root.pem", &format!("{}{}", old.root(), new.root()));
    let roots = files.path("root.pem");
    let caller = Sidecar::of(format!(
        "kind: Service\nname: shop\nhosts: [shop.example.com]\nbackends:\n  - name: v1\n    discover: {{ static: [{at}] }}\n    \
         tls: {{ server_name: shop.example.com, roots: {} }}\n",
        roots.display()
    ))
    .await;
    let load = Load::start(LoadSpec {
        asks: vec![Ask::get("/").host("shop.example.com")],
        ..LoadSpec::new(caller.outbound(), "shop.example.com", 8)
    });
    load.has_done(200).await;
    let loads = async |result: &'static str, count: f64| {
        let labels = [("what", "gateway"), ("result", result)];
        gateway
            .metrics_when("loads", |metrics| {
                metrics.sum("outrigger_tls_file_loads_total", &labels) == count
            })
            .await;
    };
    loads("loaded", 1.0).await;
    let renewed = new.issue(&host);
    files.write("shop.pem", &renewed.certificate);
    loads("refused", 1.0).await;
    let certs = gateway.page("/certs").await.json();
    assert!(certs["gateways"][0]["refused"].is_string(), "{certs}");
    // The old pair is what new connections see.
    files.write("root.pem", old.root());
    load.has_done_more(200).await;
    files.write("root.pem", &format!("{}{}", old.root(), new.root()));
    load.has_done_more(200).await;
    files.write("shop.key", &renewed.key);
    loads("loaded", 2.0).await;
    let dialled = caller.metrics().await.sum(HANDSHAKES, &[]);
    files.write("root.pem", new.root());
    caller
        .metrics_when("handshakes with the new pair", |metrics| {
            metrics.sum(HANDSHAKES, &[]) > dialled
        })
        .await;
    load.has_done_more(200).await;
    load.stop().await.assert_clean();
    let metrics = caller.metrics().await;
    assert_eq!(
        metrics.sum(HANDSHAKES, &[]),
        metrics.sum(HANDSHAKES, &[("result", "ok")])
    );
    let key = files.path("shop.key").display().to_string();
    gateway
        .program()
        .logged("which pair does not fit", |line| {
            let problem = line["problem"].as_str().unwrap_or_default();
            problem.starts_with(&format!("{key} is not the key of"))
        })
        .await;
}

#[tokio::test]
async fn a_gateway_whose_certificates_come_late_is_ready_when_they_do() {
    let (pki, app) = (Pki::new(), Upstream::start("a").await);
    let files = Files::new(pki.root());
    let spec = SidecarSpec::text("edge", &edge(app.address(), "shop.example.com", ""));
    let sidecar = Sidecar::launch(spec.bootstrap(&files.bootstrap(&["shop"], ""))).await;
    let at = sidecar.gateway("edge").await;
    eventually("the sidecar to say what it waits for", async || {
        let page = sidecar.page("/ready").await;
        (page.status() == 503 && page.text().contains("certificate of a gateway")).then_some(())
    })
    .await;
    assert_eq!(
        curl(at, &files.path("root.pem"), "shop.example.com", &[]).await.0,
        35
    );
    files.pair("shop", &pki.issue(&Leaf::host(&["shop.example.com"])));
    sidecar.is_ready().await;
    assert_eq!(
        curl(at, &files.path("root.pem"), "shop.example.com", &[]).await.0,
        0
    );
}

#[tokio::test]
async fn behind_a_load_balancer_that_ends_tls_a_port_speaks_plaintext_and_believes_it() {
    let app = Upstream::start("a").await;
    let redirect = "routes:\n  - name: secure\n    match: [{ path: { exact: /old } }]\n    redirect: { path: /new }\n  \
                    - name: plain\n    match: [{ headers: [{ name: x-forwarded-proto, exact: http }] }]\n    \
                    redirect: { scheme: https }\n  - name: default\n    to: [{ backend: v1 }]\n";
    let text = edge(app.address(), "shop.example.com", redirect);
    let bootstrap =
        "listeners:\n  gateways:\n    - { name: edge, address: 127.0.0.1:0, proxy_protocol: true }\n";
    let sidecar = Sidecar::start(SidecarSpec::text("edge", &text).bootstrap(bootstrap)).await;
    let at = sidecar.gateway("edge").await;
    let asked = async |path: &str, more: &str| {
        let mut stream = TcpStream::connect(at).await.unwrap();
        let request = format!(
            "PROXY TCP4 203.0.113.9 10.0.0.1 4711 443\r\nGET {path} HTTP/1.1\r\nhost: shop.example.com\r\nconnection: close\r\n{more}\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut said = String::new();
        within("an answer", stream.read_to_string(&mut said))
            .await
            .unwrap();
        said.to_ascii_lowercase()
    };
    let secure = "x-forwarded-proto: https\r\n";
    assert!(asked("/", secure).await.starts_with("http/1.1 200"));
    let received = app.last();
    assert_eq!(received.head.header("x-forwarded-proto"), Some("https"));
    assert_eq!(received.head.header("x-forwarded-for"), Some("203.0.113.9"));
    assert_eq!(received.head.header("host"), Some("shop.example.com"));
    // What came by http is sent to https; what came by https stays there.
    let said = asked("/a", "").await;
    assert!(
        said.contains("location: https://shop.example.com/a\r\n"),
        "{said}"
    );
    let said = asked("/old", secure).await;
    assert!(
        said.contains("location: https://shop.example.com/new\r\n"),
        "{said}"
    );
}

#[tokio::test]
async fn a_gateway_is_pushed_shown_and_deleted_like_any_document() {
    let (api, app) = (ControlApi::start().await, Upstream::start("a").await);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("edge.yaml");
    std::fs::write(&path, edge(app.address(), "shop.example.com", "")).unwrap();
    let url = api.url();
    let run = async |arguments: &[&str]| outrigger(&[arguments, &["--api", &url]].concat()).await;
    run(&["push", path.to_str().unwrap()]).await.ok();
    let bootstrap = "listeners:\n  gateways:\n    - { name: edge, address: 127.0.0.1:0 }\n";
    let sidecar = Sidecar::start(SidecarSpec::control("edge", &url).bootstrap(bootstrap)).await;
    let at = Client::new(sidecar.gateway("edge").await);
    assert_eq!(at.get("shop.example.com", "/").await.upstream(), "a");
    let shown = run(&["get", "@edge"]).await.ok();
    assert!(shown.stdout.contains("kind: Gateway"), "{}", shown.stdout);
    // A service that a gateway names cannot go before it.
    let refused = run(&["delete", "shop"]).await;
    assert_ne!(refused.code, 0);
    assert!(
        refused.stdout.contains("there is no service `shop`"),
        "{refused:?}"
    );
    run(&["delete", "@edge"]).await.ok();
    let reply = at.get("shop.example.com", "/").await;
    assert_eq!((reply.status(), reply.reason()), (404, Some("no-service")));
}

/// The examples, with ports and files of the tests in the place of those that they name.
#[tokio::test]
async fn the_examples_of_a_gateway_work() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config-examples");
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    let (pki, page, reviews) = (
        Pki::new(),
        Upstream::start("page").await,
        Upstream::start("reviews").await,
    );
    let files = Files::new(pki.root());
    let shop = Leaf::host(&["shop.example.com", "*.shop.example.com"]);
    files.pair("shop", &pki.issue(&shop));
    files.pair("reviews", &pki.issue(&Leaf::host(&["reviews.example.com"])));
    let text = read("gateway.yaml")
        .replace("127.0.0.1:15000", &page.address().to_string())
        .replace("127.0.0.1:15002", &reviews.address().to_string());
    let bootstrap = read("proxy-gateway.yaml")
        .replace("kind: Proxy\n", "")
        .replace("config: { path: gateway.yaml }\n", "")
        .replace("0.0.0.0:8443", "127.0.0.1:0")
        // Each is found by its name.
        .replace(
            "    - name: edge\n      address: 0.0.0.0:8080",
            "    - name: other\n      address: 127.0.0.1:0",
        )
        .replace("/etc/tls", &files.0.path().display().to_string());
    let sidecar = Sidecar::start(SidecarSpec::text("edge-1", &text).bootstrap(&bootstrap)).await;
    let (at, root) = (sidecar.gateway("edge").await, files.path("root.pem"));
    for (host, upstream) in [
        ("shop.example.com", &page),
        ("www.shop.example.com", &page),
        ("reviews.example.com", &reviews),
    ] {
        let before = upstream.requests();
        for version in ["1.2", "1.3"] {
            let asked = curl(at, &root, host, &["--tls-max", version]).await;
            assert_eq!(asked, (0, "200 2".to_owned()), "{host}");
        }
        assert_eq!(upstream.requests(), before + 2, "{host}");
    }
    let plain = Client::new(sidecar.gateway("other").await);
    // No gateway of that name is pushed.
    assert_eq!(
        plain.get("shop.example.com", "/").await.reason(),
        Some("no-service")
    );
}
