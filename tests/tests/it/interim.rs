//! Interim answers (1xx): what an endpoint says before its answer reaches the caller at once, in every pair of versions.

use std::net::SocketAddr;

use outrigger_tests::ends::{Asking, Endpoint, Http, PAIRS};
use outrigger_tests::wait::within;
use outrigger_tests::{Ask, Behaviour, ServiceFile, Sidecar, SidecarSpec, Upstream, simple};

async fn get(caller: Http, sidecar: &Sidecar) -> Asking {
    Asking::begin(caller, sidecar.outbound(), ("GET", "reviews"), &[], true).await
}

#[tokio::test]
async fn early_hints_reach_the_caller_before_the_answer_from_each_version_to_each() {
    for (caller, endpoint) in PAIRS {
        let endpoint = Endpoint::start(endpoint).await;
        let sidecar = Sidecar::of(endpoint.service("reviews", "")).await;
        let mut asking = get(caller, &sidecar).await;
        let mut taken = endpoint.take().await;
        let hints = [
            ("link", "</a.css>; rel=preload"),
            ("link", "</b.js>"),
            ("x-kept", "1"),
        ];
        taken.inform(103, &hints).await;
        let interim = asking.interim().await;
        assert_eq!(interim.status, 103);
        let links: Vec<_> = interim.fields.iter().filter(|(name, _)| name == "link").collect();
        assert_eq!(links.len(), 2, "{interim:?}");
        assert_eq!(interim.header("x-kept"), Some("1"));
        taken.inform(102, &[]).await;
        assert_eq!(asking.interim().await.status, 102);
        taken.answer(200, &[("x-last", "1")], b"hello", &[]).await;
        let reply = asking.reply().await;
        assert_eq!((reply.status, reply.body.as_slice()), (200, &b"hello"[..]));
        assert_eq!(
            (reply.header("x-last"), reply.header("x-kept")),
            (Some("1"), None)
        );
    }
}

#[tokio::test]
async fn early_hints_pass_two_sidecars() {
    let endpoint = Endpoint::start(Http::One).await;
    let yaml = ServiceFile::new("reviews").app(endpoint.address());
    let yaml = yaml.discover("v1", "static: [127.0.0.1:1]");
    let inner = Sidecar::start(SidecarSpec::text("b", &yaml.to_string()).beside("reviews")).await;
    for protocol in ["http", "http2"] {
        let outer = ServiceFile::new("reviews")
            .field(&format!("protocol: {protocol}"))
            .backend("v1", &[inner.inbound()]);
        let outer = Sidecar::of(outer).await;
        let mut asking = get(Http::Two, &outer).await;
        let mut taken = endpoint.take().await;
        taken.inform(103, &[("link", "</a.css>")]).await;
        assert_eq!(asking.interim().await.header("link"), Some("</a.css>"));
        taken.answer(200, &[("connection", "close")], b"hello", &[]).await;
        assert_eq!(asking.reply().await.status, 200);
    }
}

#[tokio::test]
async fn what_belongs_to_one_connection_or_to_a_body_is_not_in_what_is_passed_on() {
    for caller in [Http::One, Http::Two] {
        let endpoint = Endpoint::start(Http::One).await;
        let sidecar = Sidecar::of(endpoint.service("reviews", "")).await;
        let mut asking = get(caller, &sidecar).await;
        let mut taken = endpoint.take().await;
        let fields = [
            ("connection", "x-inner, keep-alive"),
            ("keep-alive", "timeout=5"),
            ("x-inner", "1"),
            ("content-length", "7"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("x-kept", "2"),
        ];
        taken.inform(103, &fields).await;
        let interim = asking.interim().await;
        let names: Vec<_> = interim.fields.iter().map(|(name, _)| name.as_str()).collect();
        let names: Vec<_> = names.into_iter().filter(|name| *name != ":status").collect();
        assert_eq!(names, ["x-kept"]);
        taken.answer(200, &[], b"hello", &[]).await;
        assert_eq!(asking.reply().await.body, b"hello");
    }
}

/// An endpoint that says these bytes to each request.
async fn saying(bytes: &str) -> (Upstream, Sidecar) {
    let upstream = Upstream::start("a").await;
    upstream.behave(Behaviour::RawKept(bytes.as_bytes().to_vec()));
    let sidecar = Sidecar::of(simple("reviews", &[&upstream], "")).await;
    (upstream, sidecar)
}

const HINTS: &str = "HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\n\r\n";
const ANSWER: &str = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello";

#[tokio::test]
async fn a_connection_stays_in_step_whatever_is_said_before_the_answers() {
    let (upstream, sidecar) = saying(&format!("{HINTS}{ANSWER}")).await;
    let mut connection = sidecar.client().connect().await;
    // Two are sent at once, so that the second waits in the sidecar while the first is answered.
    let two = [Ask::get("/1"), Ask::get("/2")].map(|ask| ask.host("reviews").to_bytes());
    for _ in 0..3 {
        connection.wire().send(&two.concat()).await.unwrap();
        for _ in 0..2 {
            let head = within("early hints", connection.wire().head()).await;
            let head = head.unwrap().unwrap();
            assert_eq!(head.first_line, "HTTP/1.1 103 Early Hints");
            assert_eq!(head.header("link"), Some("</a.css>"));
            let reply = within("the answer", connection.reply_to("GET")).await.unwrap();
            assert_eq!((reply.status(), reply.text().as_str()), (200, "hello"));
        }
    }
    assert_eq!((upstream.requests(), upstream.connections()), (6, 1));
}

#[tokio::test]
async fn a_caller_of_http_1_0_sees_the_answer_alone() {
    let (_upstream, sidecar) = saying(&format!("{HINTS}{HINTS}{ANSWER}")).await;
    let mut connection = sidecar.client().connect().await;
    let ask = b"GET / HTTP/1.0\r\nHost: reviews\r\n\r\n";
    connection.wire().send(ask).await.unwrap();
    let (bytes, _) = within("the end", connection.wire().until_end()).await;
    let text = String::from_utf8(bytes).unwrap();
    assert!(
        text.starts_with("HTTP/1.0 200") && text.ends_with("hello"),
        "{text}"
    );
}

#[tokio::test]
async fn a_flood_of_interim_answers_is_a_502_that_says_so() {
    for (count, expected) in [(100, (200, None)), (101, (502, Some("upstream-protocol")))] {
        let (_upstream, sidecar) = saying(&format!("{}{ANSWER}", HINTS.repeat(count))).await;
        let reply = sidecar.client().send(Ask::post("/", "x").host("reviews")).await;
        assert_eq!((reply.status(), reply.reason()), expected, "{count}");
    }
    let large = format!("HTTP/1.1 103 Early Hints\r\nlink: {}\r\n\r\n", "x".repeat(7_000));
    for (count, expected) in [(9, (200, None)), (10, (502, Some("upstream-protocol")))] {
        let (_upstream, sidecar) = saying(&format!("{}{ANSWER}", large.repeat(count))).await;
        let reply = sidecar.client().send(Ask::post("/", "x").host("reviews")).await;
        assert_eq!((reply.status(), reply.reason()), expected, "{count} large ones");
    }
    for (count, expected) in [(100, 200), (101, 502)] {
        let endpoint = Endpoint::start(Http::Two).await;
        let sidecar = Sidecar::of(endpoint.service("reviews", "")).await;
        let fields = [("content-length", "0")];
        let asking = Asking::begin(Http::One, sidecar.outbound(), ("POST", "reviews"), &fields, true);
        let mut asking = asking.await;
        let mut taken = endpoint.take().await;
        for number in 0..count {
            taken.inform(103, &[]).await;
            if number < 100 {
                asking.interim().await;
            }
        }
        if expected == 200 {
            taken.answer(200, &[], b"", &[]).await;
        }
        assert_eq!(asking.reply().await.status, expected);
    }
}

#[tokio::test]
async fn an_endpoint_that_dies_after_early_hints_has_not_answered() {
    let dying = Upstream::start("dying").await;
    dying.behave(Behaviour::Raw(HINTS.as_bytes().to_vec()));
    let sidecar = Sidecar::of(simple("reviews", &[&dying], "")).await;
    let mut connection = sidecar.client().connect().await;
    let ask = Ask::post("/", "x").host("reviews");
    connection.wire().send(&ask.to_bytes()).await.unwrap();
    let head = within("early hints", connection.wire().head())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(head.status(), 103);
    let reply = within("the answer", connection.reply_to("POST")).await.unwrap();
    assert_eq!((reply.status(), reply.reason()), (502, Some("upstream-reset")));
}

#[tokio::test]
async fn early_hints_do_not_stand_in_the_way_of_a_retry() {
    let (dying, sound) = (Upstream::start("dying").await, Upstream::start("sound").await);
    dying.behave(Behaviour::Raw(HINTS.as_bytes().to_vec()));
    sound.behave(Behaviour::RawKept(format!("{HINTS}{ANSWER}").into_bytes()));
    let endpoints: Vec<SocketAddr> = vec![dying.address(), sound.address()];
    let service = ServiceFile::new("reviews")
        .field("balance: round_robin")
        .field("ejection: { at_most: 0% }")
        .backend("v1", &endpoints)
        .route("default", &[("v1", 1)], "");
    let sidecar = Sidecar::of(service).await;
    for _ in 0..4 {
        let reply = sidecar.client().send(Ask::get("/").host("reviews")).await;
        assert_eq!((reply.status(), reply.text().as_str()), (200, "hello"));
    }
    assert!(dying.requests() > 0);
}
