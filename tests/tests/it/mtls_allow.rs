//! Who may call a service, and for what.

use outrigger_tests::grpc::GrpcUpstream;
use outrigger_tests::{Ask, Client, Pki, Sidecar, SidecarSpec, Upstream};
use tokio::io::AsyncReadExt;

use crate::mtls::{ASKED, STRICT, beside, caller, file, server};

const ALLOW: &str = "tls: { mode: permissive }
allow: [{ from: [\"spiffe://shop/productpage\"], methods: [GET], paths: [{ prefix: /reviews }] }, { from: [\"spiffe://shop/ops/*\"] }]";

#[tokio::test]
async fn what_no_rule_allows_is_refused_by_the_service_s_own_sidecar() {
    let app = Upstream::start("a").await;
    let pki = Pki::new();
    let mut server = server(app.address(), ALLOW, &pki.files("reviews")).await;
    let files = ["productpage", "ratings", "ops/mary"].map(|name| pki.files(name));
    let mut callers = Vec::new();
    for files in &files {
        callers.push(caller(&server, "tls: { mode: permissive }", files).await);
    }
    for (place, method, path, status) in [
        (0, "GET", "/reviews/1", 200),
        (0, "GET", "/reviews", 200),
        (0, "GET", "/x/../reviews/1", 200),
        (0, "POST", "/reviews/1", 403),
        (0, "GET", "/admin", 403),
        (0, "GET", "/reviews/../admin", 403),
        (0, "GET", "/reviews/%2e%2e/admin", 403),
        (0, "GET", "//admin", 403),
        (1, "GET", "/reviews/1", 403),
        (2, "POST", "/anything", 200),
    ] {
        let reply = callers[place]
            .client()
            .send(Ask::new(method, path).host("reviews"))
            .await;
        assert_eq!(reply.status(), status, "{place} {method} {path} {reply:?}");
        if status == 403 {
            assert_eq!(reply.reason(), Some("forbidden"), "{method} {path}");
        }
    }
    assert_eq!(app.requests(), 4);
    let plain = Client::new(server.inbound()).get("reviews", "/reviews").await;
    assert_eq!((plain.status(), plain.reason()), (403, Some("forbidden")));
    let metrics = server.metrics().await;
    let refused = |source| metrics.sum(ASKED, &[("source", source), ("result", "refused")]);
    assert_eq!(refused("spiffe://shop/productpage"), 5.0);
    assert_eq!(
        (refused("spiffe://shop/ratings"), refused("_plaintext")),
        (1.0, 1.0)
    );
    server
        .program()
        .printed("who was refused", |line| {
            line.contains("\"source\":\"spiffe://shop/ratings\"") && line.contains("\"reason\":\"forbidden\"")
        })
        .await;
}

#[tokio::test]
async fn a_service_that_keeps_paths_as_they_come_is_not_gone_around_by_another_form_of_them() {
    let app = Upstream::start("a").await;
    let pki = Pki::new();
    let keeps = format!("{ALLOW}\nnormalize_paths: false");
    let server = server(app.address(), &keeps, &pki.files("reviews")).await;
    let fields = "tls: { mode: permissive }\nnormalize_paths: false";
    let caller = caller(&server, fields, &pki.files("productpage")).await;
    for (path, status) in [
        ("/reviews/http://a//b", 200),
        ("/reviews/a%2Db", 200),
        ("/reviews/../admin", 403),
        ("/reviews/%2e%2e/admin", 403),
        ("/reviews/../../admin", 403),
        ("/reviews\\..\\admin", 403),
        ("/admin/../reviews", 403),
        ("//reviews", 403),
        ("/reviews/a%2Fb;c", 200),
        ("/reviews/..%2fadmin", 403),
    ] {
        let reply = caller.client().send(Ask::new("GET", path).host("reviews")).await;
        assert_eq!(reply.status(), status, "{path} {reply:?}");
    }
    assert_eq!(app.requests(), 3);
}

#[tokio::test]
async fn a_rule_is_not_gone_around_by_what_a_server_may_take_for_a_slash_or_for_parameters() {
    let app = Upstream::start("a").await;
    let pki = Pki::new();
    let paths = "[{ prefix: /reviews }, { exact: \"/a%2Fb\" }, { regex: \"/books/[^/]+\" }]";
    let fields = format!("tls: {{ mode: strict }}\nallow: [{{ paths: {paths} }}]");
    let server = server(app.address(), &fields, &pki.files("reviews")).await;
    let caller = caller(&server, STRICT, &pki.files("productpage")).await;
    for (path, status) in [
        ("/reviews/1;v=2", 200),
        ("/reviews/a%2Fb", 200),
        ("/reviews/..;/admin", 403),
        ("/reviews/..%2Fadmin", 403),
        ("/reviews/..%5cadmin", 403),
        ("/reviews/..%3b/admin", 403),
        ("/reviews;/../admin", 403),
        ("/reviews/%2e%2e;x=y/admin", 403),
        // Nobody knows here that it would be refused, but the one who wrote it out.
        ("/a%2Fb", 200),
        ("/a%2Fb%2Fc", 403),
        ("/books/1", 200),
        ("/books/1%2Fsecrets", 403),
    ] {
        let reply = caller.client().send(Ask::get(path).host("reviews")).await;
        assert_eq!(reply.status(), status, "{path} {reply:?}");
    }
    assert_eq!(app.requests(), 4);
}

#[tokio::test]
async fn audit_serves_what_would_be_refused_and_says_so() {
    let app = Upstream::start("a").await;
    let pki = Pki::new();
    let mut server = server(
        app.address(),
        &format!("{ALLOW}\naudit: true"),
        &pki.files("reviews"),
    )
    .await;
    let caller = caller(&server, "tls: { mode: permissive }", &pki.files("ratings")).await;
    assert_eq!(caller.client().get("reviews", "/x").await.status(), 200);
    let labels = [("source", "spiffe://shop/ratings"), ("result", "audited")];
    assert_eq!(server.metrics().await.sum(ASKED, &labels), 1.0);
    server
        .program()
        .logged("the audit", |line| {
            line["source"] == "spiffe://shop/ratings" && line["asked"] == "GET /x"
        })
        .await;
}

#[tokio::test]
async fn a_mesh_that_denies_by_default_lets_in_whom_a_service_names() {
    let app = Upstream::start("a").await;
    let pki = Pki::new();
    let deny = |text: String| {
        format!("kind: Mesh\ndefault_policy: deny\ndefaults: {{ tls: {{ mode: strict }} }}\n---\n{text}")
    };
    let files = pki.files("reviews");
    let text = deny(beside(app.address(), ""));
    let mut server = Sidecar::start(
        SidecarSpec::text("server", &text)
            .beside("reviews")
            .identity(&files),
    )
    .await;
    let files = pki.files("productpage");
    let text = deny(file(server.inbound(), "").to_string());
    let caller = Sidecar::start(SidecarSpec::text("caller", &text).identity(&files)).await;
    let reply = caller.client().get("reviews", "/").await;
    assert_eq!((reply.status(), reply.reason()), (403, Some("forbidden")));
    let why = "the mesh's `default_policy` is deny and reviews says no `allow`";
    server
        .program()
        .printed("by what it was refused", |line| line.contains(why))
        .await;
    server.apply(&deny(beside(app.address(), "allow: [{}]"))).await;
    assert_eq!(caller.client().get("reviews", "/").await.status(), 200);
}

#[tokio::test]
async fn a_tcp_connection_is_allowed_by_who_it_is() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let app = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, b"hello").await;
        }
    });
    let pki = Pki::new();
    let fields = format!("protocol: tcp\n{STRICT}");
    let allow = format!("{fields}\nallow: [{{ from: [\"spiffe://shop/productpage\"] }}]");
    let server = server(app, &allow, &pki.files("reviews")).await;
    for (name, expected) in [("productpage", "hello"), ("ratings", "")] {
        let caller = caller(&server, &fields, &pki.files(name)).await;
        let mut stream = tokio::net::TcpStream::connect(caller.local("reviews"))
            .await
            .unwrap();
        let mut said = Vec::new();
        let _ = outrigger_tests::within("all that is said", stream.read_to_end(&mut said)).await;
        assert_eq!(String::from_utf8_lossy(&said), expected, "{name}");
    }
    server
        .metrics_when("a refusal", |metrics| {
            metrics.sum("outrigger_tcp_connections_total", &[("reason", "forbidden")]) == 1.0
        })
        .await;
}

#[tokio::test]
async fn a_grpc_service_or_one_method_of_it_is_allowed_and_nothing_beside_it() {
    let app = GrpcUpstream::start("a").await;
    let pki = Pki::new();
    let fields = format!("protocol: grpc\n{STRICT}");
    let files = [pki.files("reviews"), pki.files("productpage")];
    let of = |names: &str| format!("{fields}\nallow: [{{ grpc: [{names}] }}]");
    let server = server(app.address(), &of(""), &files[0]).await;
    let caller = caller(&server, &fields, &files[1]).await;
    let asks = |names: &'static str, asks: &[(&'static str, &'static str, bool)]| {
        asks.iter().map(|ask| (names, *ask)).collect::<Vec<_>>()
    };
    let all = asks(
        "shop.Reviews",
        &[
            ("POST", "/shop.Reviews/List", true),
            ("POST", "/shop.Reviews/Get", true),
            ("POST", "/shop.ReviewsAdmin/List", false),
            ("POST", "/shop.Ratings/List", false),
            ("POST", "/shop.Reviews/..%2Fshop.Ratings/List", false),
            ("GET", "/shop.Reviews/List", false),
        ],
    );
    let one = asks(
        "shop.Ratings, shop.Reviews/List",
        &[
            ("POST", "/shop.Reviews/List", true),
            ("POST", "/shop.Ratings/Get", true),
            ("POST", "/shop.Reviews/Get", false),
            ("POST", "/shop.Reviews/ListAll", false),
            ("POST", "/shop.Reviews/List/x", false),
        ],
    );
    for rules in [all, one] {
        server.apply(&beside(app.address(), &of(rules[0].0))).await;
        for (names, (method, path, is_allowed)) in rules {
            let ask = Ask::new(method, path)
                .host("reviews")
                .header("content-type", "application/grpc")
                .header("te", "trailers");
            let reply = caller.client().send(ask).await;
            let is_refused = reply.reason() == Some("forbidden");
            assert_eq!(is_refused, !is_allowed, "{names} {method} {path} {reply:?}");
            // PERMISSION_DENIED.
            let status = reply.head.header("grpc-status");
            assert_eq!(status == Some("7"), is_refused, "{reply:?}");
        }
    }
}
