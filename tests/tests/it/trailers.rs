//! Trailers: what stands behind a body passes in every pair of versions, both ways.

use outrigger_tests::Sidecar;
use outrigger_tests::ends::{Asking, Endpoint, Http, PAIRS};

/// What no trailer may be (RFC 9110 section 6.5.1), between two that may.
const MIXED: [(&str, &str); 6] = [
    ("x-sum", "abc"),
    ("content-length", "7"),
    ("host", "ratings"),
    ("set-cookie", "a=1"),
    ("authorization", "Basic x"),
    ("x-more", "def"),
];

fn names(fields: &[(String, String)]) -> Vec<&str> {
    fields.iter().map(|(name, _)| name.as_str()).collect()
}

#[tokio::test]
async fn trailers_that_were_announced_pass_both_ways_from_each_version_to_each() {
    for (caller, endpoint) in PAIRS {
        let endpoint = Endpoint::start(endpoint).await;
        let sidecar = Sidecar::of(endpoint.service("reviews", "")).await;
        let fields = [("te", "trailers"), ("trailer", "x-sum, x-more")];
        let mut asking = Asking::begin(caller, sidecar.outbound(), ("POST", "reviews"), &fields, false).await;
        asking.send(b"hello").await;
        asking.end(&[("x-sum", "abc"), ("x-more", "def")]).await;
        let mut taken = endpoint.take().await;
        assert_eq!(taken.request.header("trailer"), Some("x-sum, x-more"));
        assert_eq!(taken.request.header("te"), Some("trailers"));
        let request = taken.body().await;
        assert_eq!(request.body, b"hello");
        assert_eq!(
            (request.trailer("x-sum"), request.trailer("x-more")),
            (Some("abc"), Some("def"))
        );
        let announced = [("trailer", "x-sum"), ("trailer", "x-more")];
        let trailers = [("x-sum", "123"), ("x-more", "456")];
        taken.answer(200, &announced, b"thanks", &trailers).await;
        let reply = asking.reply().await;
        assert_eq!(reply.body, b"thanks");
        assert_eq!(
            (reply.trailer("x-sum"), reply.trailer("x-more")),
            (Some("123"), Some("456")),
            "{caller:?}: {reply:?}"
        );
    }
}

#[tokio::test]
async fn trailers_that_were_not_announced_pass_by_http2_and_leave_http1_in_step() {
    for (caller, endpoint) in PAIRS {
        let to = endpoint;
        let endpoint = Endpoint::start(endpoint).await;
        let sidecar = Sidecar::of(endpoint.service("reviews", "")).await;
        let mut asking = Asking::begin(
            caller,
            sidecar.outbound(),
            ("POST", "reviews"),
            &[("te", "trailers")],
            false,
        )
        .await;
        asking.send(b"hello").await;
        asking.end(&[("x-sum", "abc")]).await;
        let mut taken = endpoint.take().await;
        let request = taken.body().await;
        assert_eq!(request.body, b"hello");
        let expected = (to == Http::Two).then_some("abc");
        assert_eq!(request.trailer("x-sum"), expected, "{caller:?} to {to:?}");
        taken.answer(200, &[], b"thanks", &[("x-sum", "123")]).await;
        let reply = asking.reply().await;
        assert_eq!(reply.body, b"thanks");
        let expected = (caller == Http::Two).then_some("123");
        assert_eq!(reply.trailer("x-sum"), expected, "{caller:?} from {to:?}");
    }
}

#[tokio::test]
async fn a_caller_by_http1_that_does_not_say_te_gets_the_answer_without_them() {
    for endpoint in [Http::One, Http::Two] {
        let endpoint = Endpoint::start(endpoint).await;
        let sidecar = Sidecar::of(endpoint.service("reviews", "")).await;
        let address = sidecar.outbound();
        let mut asking = Asking::begin(Http::One, address, ("GET", "reviews"), &[], true).await;
        let mut taken = endpoint.take().await;
        assert_eq!(taken.request.header("te"), None);
        taken
            .answer(200, &[("trailer", "x-sum")], b"thanks", &[("x-sum", "123")])
            .await;
        let reply = asking.reply().await;
        assert_eq!((reply.body.as_slice(), reply.trailers.len()), (&b"thanks"[..], 0));
    }
}

#[tokio::test]
async fn what_may_not_be_a_trailer_is_left_out_and_the_rest_passes() {
    let announced = "x-sum, x-more, content-length, host, set-cookie, authorization";
    for (caller, endpoint) in PAIRS {
        let endpoint = Endpoint::start(endpoint).await;
        let sidecar = Sidecar::of(endpoint.service("reviews", "")).await;
        let fields = [("te", "trailers"), ("trailer", announced)];
        let mut asking = Asking::begin(caller, sidecar.outbound(), ("POST", "reviews"), &fields, false).await;
        asking.send(b"hello").await;
        asking.end(&MIXED).await;
        let mut taken = endpoint.take().await;
        assert_eq!(
            names(&taken.body().await.trailers),
            ["x-sum", "x-more"],
            "{caller:?}"
        );
        taken
            .answer(200, &[("trailer", announced)], b"thanks", &MIXED)
            .await;
        assert_eq!(
            names(&asking.reply().await.trailers),
            ["x-sum", "x-more"],
            "{caller:?}"
        );
    }
}

#[tokio::test]
async fn trailers_of_one_connection_do_not_break_a_stream_of_http2() {
    // By HTTP/2 they would be malformed (RFC 9113 section 8.2.2).
    let trailers = [
        ("connection", "close"),
        ("transfer-encoding", "chunked"),
        ("x-sum", "123"),
    ];
    let endpoint = Endpoint::start(Http::One).await;
    let sidecar = Sidecar::of(endpoint.service("reviews", "")).await;
    let mut asking = Asking::begin(Http::Two, sidecar.outbound(), ("GET", "reviews"), &[], true).await;
    endpoint.take().await.answer(200, &[], b"thanks", &trailers).await;
    let reply = asking.reply().await;
    assert_eq!(
        (reply.body.as_slice(), names(&reply.trailers)),
        (&b"thanks"[..], vec!["x-sum"])
    );
    let endpoint = Endpoint::start(Http::Two).await;
    let sidecar = Sidecar::of(endpoint.service("reviews", "")).await;
    let mut asking = Asking::begin(Http::One, sidecar.outbound(), ("POST", "reviews"), &[], false).await;
    asking.send(b"hello").await;
    asking.end(&trailers).await;
    let mut taken = endpoint.take().await;
    assert_eq!(names(&taken.body().await.trailers), ["x-sum"]);
    taken.answer(200, &[], b"thanks", &[]).await;
    assert_eq!(asking.reply().await.status, 200);
}
