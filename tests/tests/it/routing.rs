//! Which request goes where.

use outrigger_tests::Answer;
use outrigger_tests::client::Reply;
use outrigger_tests::{
    Ask, Behaviour, Client, Load, LoadSpec, ServiceFile, Sidecar, SidecarSpec, Upstream, simple,
};
use std::time::Duration;

#[tokio::test]
async fn a_service_is_reached_by_host_by_full_url_and_by_its_local_port() {
    let (reviews, ratings) = (Upstream::start("reviews").await, Upstream::start("ratings").await);
    let yaml = format!(
        "{}---\n{}",
        simple("reviews", &[&reviews], "").field("hosts: [reviews, reviews.shop.internal]"),
        simple("ratings", &[&ratings], "")
    );
    let sidecar = Sidecar::start(SidecarSpec::text("a", &yaml).local("reviews").local("ratings")).await;
    let outbound = sidecar.client();
    for (ask, expected) in [
        (Ask::get("/x").host("reviews"), "reviews"),
        (Ask::get("/x").host("REVIEWS"), "reviews"),
        (Ask::get("/x").host("reviews:8080"), "reviews"),
        (Ask::get("/x").host("reviews.shop.internal"), "reviews"),
        (Ask::get("/x").host("ratings"), "ratings"),
        (Ask::get("http://reviews/x"), "reviews"),
        (Ask::get("http://reviews.shop.internal:80/x"), "reviews"),
        // RFC 9112 section 3.2.2: with a full URL, Host does not count.
        (Ask::get("http://ratings/x").host("reviews"), "ratings"),
    ] {
        let asked = ask.clone();
        let reply = outbound.send(ask).await;
        assert_eq!((reply.status(), reply.upstream()), (200, expected), "{asked:?}");
    }
    for (service, upstream) in [("reviews", &reviews), ("ratings", &ratings)] {
        let local = Client::new(sidecar.local(service));
        for host in ["localhost:9001", "127.0.0.1", "something.else"] {
            let reply = local.get(host, "/local").await;
            assert_eq!((reply.status(), reply.upstream()), (200, service), "{host}");
        }
        assert_eq!(upstream.last().target(), "/local");
    }
}

/// A service with a backend for each route, named like it, so that the answer tells which route was taken.
const MATCHES: &[(&str, &str)] = &[
    ("exact", "match: [{ path: { exact: /exact } }]"),
    ("prefix", "match: [{ path: { prefix: /prefix } }]"),
    ("regex", r#"match: [{ path: { regex: "/v[0-9]+/items" } }]"#),
    (
        "header",
        r#"match: [{ headers: [{ name: x-beta, exact: "1" }] }]"#,
    ),
    (
        "header-prefix",
        "match: [{ headers: [{ name: x-agent, prefix: shop/ }] }]",
    ),
    (
        "header-suffix",
        "match: [{ headers: [{ name: x-region, suffix: -west }] }]",
    ),
    (
        "header-regex",
        r#"match: [{ headers: [{ name: x-kind, regex: "a+b" }] }]"#,
    ),
    (
        "header-range",
        "match: [{ headers: [{ name: x-build, range: { start: 100, end: 200 } }] }]",
    ),
    (
        "header-there",
        "match: [{ headers: [{ name: x-there, present: true }] }]",
    ),
    (
        "query",
        r#"match: [{ query: [{ name: version, exact: "1 a" }] }]"#,
    ),
    (
        "query-regex",
        r#"match: [{ query: [{ name: page, regex: "[0-9]+" }] }]"#,
    ),
    (
        "query-there",
        "match: [{ query: [{ name: debug, present: true }] }]",
    ),
    ("method", "match: [{ methods: [DELETE, PATCH] }]"),
    (
        "both",
        r#"match: [{ path: { prefix: /both }, headers: [{ name: x-one, exact: "1" }, { name: x-not, present: true, invert: true }] }]"#,
    ),
    (
        "either",
        "match: [{ path: { exact: /either } }, { path: { exact: /or } }]",
    ),
    ("rest", "match: [{ path: { prefix: /rest } }]"),
];

fn expectations() -> Vec<(Ask, &'static str)> {
    let with = |name: &str, value: &str| Ask::get("/").header(name, value);
    vec![
        (Ask::get("/exact"), "exact"),
        (Ask::get("/exact?with=query"), "exact"),
        (Ask::get("/exact/"), ""),
        (Ask::get("/Exact"), ""),
        (Ask::get("/prefix"), "prefix"),
        (Ask::get("/prefix/"), "prefix"),
        (Ask::get("/prefix/a/b?c"), "prefix"),
        (Ask::get("/prefixed"), ""),
        (Ask::get("/v12/items"), "regex"),
        (Ask::get("/v12/items/7"), ""),
        (Ask::get("/x/v12/items"), ""),
        (with("X-Beta", "1"), "header"),
        (with("x-beta", "11"), ""),
        (with("x-agent", "shop/1.2"), "header-prefix"),
        (with("x-agent", "a shop/1.2"), ""),
        (with("x-region", "us-west"), "header-suffix"),
        (with("x-region", "us-west-2"), ""),
        (with("x-kind", "aaab"), "header-regex"),
        (with("x-kind", "aaabc"), ""),
        (with("x-build", "100"), "header-range"),
        (with("x-build", "199"), "header-range"),
        (with("x-build", "200"), ""),
        (with("x-build", "99"), ""),
        (with("x-build", "many"), ""),
        (with("x-there", ""), "header-there"),
        (Ask::get("/?version=1%20a"), "query"),
        (Ask::get("/?a=b&version=1+a"), "query"),
        (Ask::get("/?version=1"), ""),
        (Ask::get("/?page=17"), "query-regex"),
        (Ask::get("/?page=17a"), ""),
        (Ask::get("/?debug"), "query-there"),
        (Ask::get("/?debug=no"), "query-there"),
        (Ask::get("/?debugger=1"), ""),
        (Ask::new("DELETE", "/"), "method"),
        (Ask::new("PATCH", "/"), "method"),
        (Ask::new("PUT", "/"), ""),
        (Ask::get("/both").header("x-one", "1"), "both"),
        (Ask::get("/both"), ""),
        (Ask::get("/both").header("x-one", "1").header("x-not", "here"), ""),
        (with("x-one", "1"), ""),
        (Ask::get("/either"), "either"),
        (Ask::get("/or"), "either"),
        // The first that matches, in the order written.
        (Ask::get("/exact").header("x-beta", "1"), "exact"),
        (Ask::get("/rest").header("x-beta", "1"), "header"),
        (Ask::get("/rest"), "rest"),
    ]
}

#[tokio::test]
async fn the_first_route_that_matches_is_taken_and_every_comparison_means_what_it_says() {
    let mut upstreams = Vec::new();
    for (name, _) in MATCHES {
        upstreams.push(Upstream::start(name).await);
    }
    let file = ServiceFile::new("reviews").backend_each(&upstreams);
    let add = |file: ServiceFile, (name, fields): &(&str, &str)| file.route(name, &[(name, 1)], fields);
    let sidecar = Sidecar::of(MATCHES.iter().fold(file, add)).await;
    let mut wrong = Vec::new();
    for (ask, expected) in expectations() {
        let asked = ask.clone();
        let reply = sidecar.client().send(ask.host("reviews")).await;
        let right = match expected {
            "" => (reply.status(), reply.reason()) == (404, Some("no-route")),
            name => (reply.status(), reply.upstream()) == (200, name),
        };
        if !right {
            let got = (
                reply.status(),
                reply.reason().map(str::to_owned),
                reply.upstream().to_owned(),
            );
            wrong.push(format!("{asked:?}: expected {expected:?}, got {got:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn a_host_that_nobody_has_is_a_404_that_says_so() {
    let upstream = Upstream::start("reviews").await;
    let sidecar = Sidecar::of(simple("reviews", &[&upstream], "")).await;
    let says_so = |reply: &Reply| {
        assert_eq!((reply.status(), reply.reason()), (404, Some("no-service")));
        assert!(!reply.body.bytes.is_empty(), "a person gets a sentence");
    };
    says_so(&sidecar.client().get("nobody", "/").await);
    says_so(&sidecar.client().send(Ask::get("http://nobody/")).await);
    says_so(&sidecar.client().get("reviewsx", "/").await);
    says_so(&sidecar.client().get("127.0.0.1", "/").await);
    assert_eq!(upstream.requests(), 0);
}

#[tokio::test]
async fn weights_are_kept_within_two_percent() {
    let upstreams = [
        Upstream::start("a").await,
        Upstream::start("b").await,
        Upstream::start("c").await,
    ];
    let none = Upstream::start("none").await;
    let to = [("a", 70), ("b", 20), ("c", 10), ("none", 0)];
    let file = ServiceFile::new("reviews")
        .backend_each(&upstreams)
        .backend("none", &[none.address()])
        .route("default", &to, "");
    let sidecar = Sidecar::of(file).await;
    let report = Load::start(LoadSpec {
        requests: Some(10_000),
        ..LoadSpec::new(sidecar.outbound(), "reviews", 8)
    })
    .finish()
    .await;
    report.assert_clean();
    for (name, weight) in to {
        let off = report.share(name) - f64::from(weight) / 100.0;
        // 10,000 draws at random stay within four times their standard deviation of 0.5 %.
        assert!(off.abs() <= 0.02, "{name}: {weight} %\n{report}");
    }
    assert_eq!(none.requests(), 0, "a weight of 0 takes no request");
}

#[tokio::test]
async fn round_robin_takes_each_in_turn() {
    let upstreams = [
        Upstream::start("a").await,
        Upstream::start("b").await,
        Upstream::start("c").await,
    ];
    let endpoints: Vec<&Upstream> = upstreams.iter().collect();
    let file = simple("reviews", &endpoints, "").field("balance: round_robin");
    let sidecar = Sidecar::start(SidecarSpec::text("a", &file.to_string()).with("--workers", "1")).await;
    for _ in 0..300 {
        assert_eq!(sidecar.client().get("reviews", "/").await.status(), 200);
    }
    assert_eq!(upstreams.each_ref().map(Upstream::requests), [100, 100, 100]);
}

#[tokio::test]
async fn least_request_turns_away_from_a_slow_endpoint() {
    let (slow, fast) = (Upstream::start("slow").await, Upstream::start("fast").await);
    slow.behave(Behaviour::Answer(Answer::ok().after(Duration::from_millis(100))));
    fast.behave(Behaviour::Answer(Answer::ok().after(Duration::from_millis(2))));
    let sidecar = Sidecar::of(simple("reviews", &[&slow, &fast], "")).await;
    let report = Load::start(LoadSpec {
        requests: Some(1_000),
        ..LoadSpec::new(sidecar.outbound(), "reviews", 16)
    })
    .finish()
    .await;
    report.assert_clean();
    // Each in turn would give each a half; knowing who is busy gives the slow one a few.
    assert!(report.share("fast") > 0.75, "{report}");
}

#[tokio::test]
async fn the_inbound_side_hands_every_request_to_the_application() {
    let app = Upstream::start("app").await;
    let elsewhere = Upstream::start("elsewhere").await;
    let file = simple("reviews", &[&elsewhere], "").app(app.address());
    let sidecar = Sidecar::start(SidecarSpec::text("a", &file.to_string()).beside("reviews")).await;
    let inbound = Client::new(sidecar.inbound());
    for ask in [
        Ask::get("/x?y=1").host("reviews"),
        Ask::post("/x?y=1", "hello").host("reviews:15000"),
    ] {
        let reply = inbound.send(ask).await;
        assert_eq!((reply.status(), reply.upstream()), (200, "app"));
        assert_eq!(app.last().target(), "/x?y=1");
    }
    assert_eq!(app.last().body.bytes, b"hello");
    assert_eq!(elsewhere.requests(), 0);
}

#[tokio::test]
async fn a_request_through_two_sidecars_arrives_as_it_was_sent() {
    let app = Upstream::start("app").await;
    app.behave(Behaviour::Echo);
    let file = simple("reviews", &[], "").app(app.address());
    let file = file.to_string().replace("static: []", "static: [127.0.0.1:1]");
    let server = Sidecar::start(SidecarSpec::text("server", &file).beside("reviews")).await;
    let called = ServiceFile::new("reviews").backend("v1", &[server.inbound()]);
    let client = Sidecar::start(SidecarSpec::text("client", &called.to_string())).await;
    let reply = client
        .client()
        .send(Ask::post("/a?b", "hello").host("reviews").header("x-mine", "1"))
        .await;
    assert_eq!((reply.status(), reply.text().as_str()), (200, "hello"));
    let received = app.last();
    assert_eq!((received.method(), received.target()), ("POST", "/a?b"));
    assert_eq!(received.head.header("host"), Some("reviews"));
    assert_eq!(received.head.header("x-mine"), Some("1"));
}
