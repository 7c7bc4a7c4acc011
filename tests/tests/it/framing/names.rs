//! Names keep their case and their order from HTTP/1.1 to HTTP/1.1, both ways. HTTP asks for neither (RFC 9110 section
//! 5.1), and yet there are callers and servers that were only ever met by the one spelling. The order is always kept, the
//! case where the service asks for it.

use outrigger_tests::wait::within;
use outrigger_tests::wire::Head;
use outrigger_tests::{Behaviour, ServiceFile, Sidecar, SidecarSpec, Upstream, simple};

fn lines(head: &Head) -> Vec<String> {
    head.headers
        .iter()
        .map(|(name, value)| format!("{name}: {value}"))
        .collect()
}

/// What the upstream receives and the caller gets for these bytes, answered by those.
async fn through(
    sidecar: &Sidecar,
    upstream: &Upstream,
    ask: &str,
    answer: &str,
) -> (Vec<String>, Vec<String>) {
    upstream.next([Behaviour::RawKept(answer.as_bytes().to_vec())]);
    let mut connection = sidecar.client().connect().await;
    connection.wire().send(ask.as_bytes()).await.unwrap();
    let reply = within("an answer", connection.reply_to("GET")).await.unwrap();
    assert_eq!(reply.body.cut, None);
    (lines(&upstream.last().head), lines(&reply.head))
}

const KEEP: &str = "header_case: keep";

const ASK: &str = "POST /a HTTP/1.1\r\nX-B: 1\r\nHost: reviews\r\nUSER-AGENT: old\r\nSOAPAction: \"x\"\r\nx-lower: 2\r\n\
                   X-b: 3\r\nCONTENT-length: 5\r\nx-Last: 4\r\n\r\nhello";

/// Fields of one name stand together, in their order; between names the order is the caller's.
const ASKED: [&str; 7] = [
    "X-B: 1",
    "X-b: 3",
    "Host: reviews",
    "USER-AGENT: old",
    "SOAPAction: \"x\"",
    "x-lower: 2",
    "CONTENT-length: 5",
];

const ANSWER: &str = "HTTP/1.1 200 OK\r\nServer: old\r\nContent-Type: text/plain\r\nETag: \"x\"\r\nContent-Length: 2\r\n\
                      X-XSS-Protection: 0\r\nx-lower: 1\r\nWWW-Authenticate: Basic\r\n\r\nok";

const ANSWERED: [&str; 7] = [
    "Server: old",
    "Content-Type: text/plain",
    "ETag: \"x\"",
    "Content-Length: 2",
    "X-XSS-Protection: 0",
    "x-lower: 1",
    "WWW-Authenticate: Basic",
];

#[tokio::test]
async fn names_keep_their_case_and_their_order_both_ways() {
    let upstream = Upstream::start("a").await;
    let sidecar = Sidecar::of(simple("reviews", &[&upstream], "").field(KEEP)).await;
    // The second goes by connections that are kept.
    for _ in 0..2 {
        let (asked, answered) = through(&sidecar, &upstream, ASK, ANSWER).await;
        assert_eq!(asked, [&ASKED[..], &["x-Last: 4"]].concat());
        assert_eq!(answered, ANSWERED);
    }
}

#[tokio::test]
async fn names_keep_their_case_and_their_order_through_two_sidecars() {
    let upstream = Upstream::start("a").await;
    let beside = ServiceFile::new("reviews")
        .field(KEEP)
        .app(upstream.address())
        .backend("v1", &[upstream.address()]);
    let far = Sidecar::start(SidecarSpec::text("far", &beside.to_string()).beside("reviews")).await;
    let near = Sidecar::of(
        ServiceFile::new("reviews")
            .field(KEEP)
            .backend("v1", &[far.inbound()]),
    )
    .await;
    let (asked, answered) = through(&near, &upstream, ASK, ANSWER).await;
    assert_eq!(asked, [&ASKED[..], &["x-Last: 4"]].concat());
    assert_eq!(answered, ANSWERED);
}

#[tokio::test]
async fn what_goes_leaves_the_order_of_what_stays() {
    let upstream = Upstream::start("a").await;
    let sidecar = Sidecar::of(simple("reviews", &[&upstream], "").field(KEEP)).await;
    let ask = "GET /a HTTP/1.1\r\nConnection: keep-alive, X-Mine\r\nHost: reviews\r\nX-A: 1\r\nTE: trailers, gzip\r\n\
               x-mine: 2\r\nX-B: 3\r\nKeep-Alive: 5\r\nX-C: 4\r\nX-A: 5\r\nExpect: 100-continue\r\nX-D: 6\r\n\r\n";
    let answer = "HTTP/1.1 200 OK\r\nX-A: 1\r\nConnection: keep-alive\r\nX-B: 2\r\nKeep-Alive: timeout=5\r\nX-C: 3\r\n\
                  Transfer-Encoding: chunked\r\nX-D: 4\r\nX-B: 5\r\n\r\n2\r\nok\r\n0\r\n\r\n";
    let (asked, answered) = through(&sidecar, &upstream, ask, answer).await;
    assert_eq!(
        asked,
        [
            "Host: reviews",
            "X-A: 1",
            "X-A: 5",
            "TE: trailers",
            "X-B: 3",
            "X-C: 4",
            "X-D: 6"
        ]
    );
    // How the body is framed is said anew by each hop.
    let (framing, fields) = answered.split_last().unwrap();
    assert_eq!(fields, ["X-A: 1", "X-B: 2", "X-B: 5", "X-C: 3", "X-D: 4"]);
    assert!(
        framing.eq_ignore_ascii_case("transfer-encoding: chunked"),
        "{framing}"
    );
}

#[tokio::test]
async fn what_the_sidecar_says_itself_is_in_lower_case() {
    let upstream = Upstream::start("a").await;
    let sidecar = Sidecar::of(simple("reviews", &[&upstream], "").field(KEEP)).await;
    let answer = "HTTP/1.0 200 OK\r\nServer: old\r\nContent-Length: 0\r\n\r\n";
    let ask = "GET http://reviews/ HTTP/1.0\r\nAccept: */*\r\n\r\n";
    let (asked, _) = through(&sidecar, &upstream, ask, answer).await;
    assert_eq!(asked, ["Accept: */*", "host: reviews"]);
    let reply = sidecar.client().get("nobody", "/").await;
    assert!(
        reply
            .head
            .headers
            .iter()
            .all(|(name, _)| !name.contains(char::is_uppercase)),
        "{reply:?}"
    );
}

#[tokio::test]
async fn a_request_that_is_sent_again_is_spelled_as_the_first_time() {
    let upstream = Upstream::start("a").await;
    let sidecar = Sidecar::of(simple("reviews", &[&upstream], "").field(KEEP)).await;
    upstream.next([Behaviour::CloseAfterHead]);
    let ask = "GET /a HTTP/1.1\r\nX-B: 1\r\nHost: reviews\r\nX-A: 2\r\n\r\n";
    let (asked, _) = through(&sidecar, &upstream, ask, ANSWER).await;
    assert_eq!(upstream.requests(), 2);
    assert_eq!(asked, ["X-B: 1", "Host: reviews", "X-A: 2"]);
}

#[tokio::test]
async fn names_are_in_lower_case_where_the_service_does_not_keep_them_and_their_order_stays() {
    let (upstream, other) = (Upstream::start("a").await, Upstream::start("b").await);
    let keeping = simple("ratings", &[&other], "").field(KEEP);
    let both = format!("{}---\n{keeping}", simple("reviews", &[&upstream], ""));
    let sidecar = Sidecar::of(both).await;
    let lower = |lines: &[&str]| -> Vec<String> {
        let line = |line: &&str| {
            line.split_once(':')
                .map(|(name, value)| format!("{}:{value}", name.to_lowercase()))
        };
        lines.iter().filter_map(line).collect()
    };
    let (asked, answered) = through(&sidecar, &upstream, ASK, ANSWER).await;
    assert_eq!(asked, lower(&[&ASKED[..], &["x-Last: 4"]].concat()));
    assert_eq!(answered, lower(&ANSWERED));
    let (asked, answered) = through(&sidecar, &other, &ASK.replace("reviews", "ratings"), ANSWER).await;
    assert_eq!((asked.len(), asked[0].as_str()), (8, "X-B: 1"));
    assert_eq!(answered, ANSWERED);
}

#[tokio::test]
async fn a_changed_case_is_that_of_the_connections_made_after_it() {
    let upstream = Upstream::start("a").await;
    let sidecar = Sidecar::of(simple("reviews", &[&upstream], "")).await;
    let (asked, _) = through(&sidecar, &upstream, ASK, ANSWER).await;
    assert_eq!(asked[0], "x-b: 1");
    sidecar.rewrite(&simple("reviews", &[&upstream], "").field(KEEP).to_string());
    outrigger_tests::eventually("the new configuration", async || {
        let (asked, answered) = through(&sidecar, &upstream, ASK, ANSWER).await;
        (asked[0] == "X-B: 1" && answered == ANSWERED).then_some(())
    })
    .await;
}
