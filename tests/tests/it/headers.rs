//! What a hop may change in a message and what it may not, and bodies of every shape.

use std::time::Duration;

use outrigger_tests::wait::{eventually, within};
use outrigger_tests::wire::Framing;
use outrigger_tests::{Answer, Ask, Behaviour, Sidecar, Upstream, simple};

/// An upstream and a sidecar with a route to it.
async fn pair() -> (Upstream, Sidecar) {
    let upstream = Upstream::start("a").await;
    let sidecar = Sidecar::of(simple("reviews", &[&upstream], "")).await;
    (upstream, sidecar)
}

#[tokio::test]
async fn what_belongs_to_one_connection_ends_at_the_sidecar_both_ways() {
    let (upstream, sidecar) = pair().await;
    let answer = Answer::ok()
        .header("connection", "x-inner, keep-alive")
        .header("keep-alive", "timeout=5")
        .header("x-inner", "1")
        .header("x-kept", "2");
    upstream.behave(Behaviour::Answer(answer));
    let ask = Ask::get("/")
        .host("reviews")
        .header("connection", "keep-alive, X-Outer")
        .header("keep-alive", "timeout=5")
        .header("proxy-connection", "keep-alive")
        .header("upgrade", "h2c")
        .header("te", "gzip, trailers")
        .header("x-outer", "1")
        .header("x-kept", "2");
    let reply = sidecar.client().send(ask).await;
    let received = upstream.last().head;
    for name in [
        "connection",
        "keep-alive",
        "proxy-connection",
        "upgrade",
        "x-outer",
    ] {
        let value = received.header(name);
        assert!(value.is_none(), "the upstream has received {name}: {value:?}");
    }
    // RFC 9110 section 10.1.4: a proxy may ask for trailers itself, and for nothing that the caller alone can read.
    assert!(matches!(received.header("te"), None | Some("trailers")));
    assert_eq!(received.header("x-kept"), Some("2"));
    for name in ["keep-alive", "x-inner"] {
        assert_eq!(reply.head.header(name), None, "{:?}", reply.head);
    }
    assert!(!reply.head.connection_says("x-inner"));
    assert_eq!(reply.head.header("x-kept"), Some("2"));
}

#[tokio::test]
async fn the_host_is_preserved_and_a_full_url_becomes_a_path() {
    let (upstream, sidecar) = pair().await;
    for (ask, target, host) in [
        (Ask::get("/a?b=c").host("reviews"), "/a?b=c", "reviews"),
        (Ask::get("/").host("Reviews:8080"), "/", "Reviews:8080"),
        (
            Ask::get("http://reviews/a?b=c").host("other"),
            "/a?b=c",
            "reviews",
        ),
        (Ask::get("http://reviews:8080"), "/", "reviews:8080"),
        (Ask::get("http://reviews?b=c"), "/?b=c", "reviews"),
    ] {
        let asked = ask.clone();
        assert_eq!(sidecar.client().send(ask).await.status(), 200, "{asked:?}");
        let received = upstream.last();
        assert_eq!(received.target(), target, "{asked:?}");
        let hosts: Vec<_> = received.head.all("host").collect();
        assert_eq!(hosts, [host], "{asked:?}");
    }
}

#[tokio::test]
async fn the_target_and_repeated_headers_pass_byte_for_byte() {
    let upstream = Upstream::start("a").await;
    let sidecar = Sidecar::of(simple("reviews", &[&upstream], "").field("normalize_paths: false")).await;
    let answer = Answer::ok()
        .header("set-cookie", "a=1; Path=/")
        .header("set-cookie", "b=2")
        .header("x-empty", "");
    upstream.behave(Behaviour::Answer(answer));
    for target in [
        "/a%2Fb//c;d=e?x=%20&y=a+b&&z",
        "/%zz?%",
        "/../a/./b",
        "/?q=http://x/y?z#".trim_end_matches('#'),
        "/~[]@!$&'()*+,",
    ] {
        let ask = Ask::get(target)
            .host("reviews")
            .header("cookie", "a=1")
            .header("cookie", "b=2");
        let reply = sidecar.client().send(ask).await;
        assert_eq!(reply.status(), 200, "{target}");
        let received = upstream.last();
        assert_eq!(received.target(), target);
        assert_eq!(received.head.all("cookie").collect::<Vec<_>>(), ["a=1", "b=2"]);
        let set: Vec<_> = reply.head.all("set-cookie").collect();
        assert_eq!(set, ["a=1; Path=/", "b=2"]);
        assert_eq!(reply.head.header("x-empty"), Some(""));
    }
}

#[tokio::test]
async fn a_client_of_http_1_0_gets_an_answer_that_it_can_read() {
    let (upstream, sidecar) = pair().await;
    let body = "x".repeat(5_000);
    for answer in [
        Answer::ok().body(body.clone()),
        Answer::ok().body(body.clone()).chunked(),
    ] {
        upstream.behave(Behaviour::Answer(answer));
        let mut connection = sidecar.client().connect().await;
        connection
            .wire()
            .send(b"GET /x HTTP/1.0\r\nHost: reviews\r\n\r\n")
            .await
            .unwrap();
        let head = within("an answer", connection.wire().head())
            .await
            .unwrap()
            .unwrap();
        assert_eq!(head.status(), 200);
        assert_ne!(
            head.answer_framing("GET").unwrap(),
            Framing::Chunked,
            "1.0 knows no chunks"
        );
        let (rest, error) = within("the end of the connection", connection.wire().until_end()).await;
        assert_eq!(
            (rest.len(), error.map(|error| error.to_string())),
            (body.len(), None)
        );
        assert_eq!(upstream.last().head.word(2), "HTTP/1.1");
    }
}

#[tokio::test]
async fn answers_without_a_body_keep_the_connection_in_step() {
    let (upstream, sidecar) = pair().await;
    let mut connection = sidecar.client().connect().await;
    for (method, answer, length) in [
        ("HEAD", Answer::ok().body("0123456789"), Some("10")),
        ("HEAD", Answer::ok().body("0123456789").chunked(), None),
        ("GET", Answer::status(204), None),
        ("GET", Answer::status(304).body("0123456789"), None),
        ("GET", Answer::ok().body(""), Some("0")),
    ] {
        upstream.behave(Behaviour::Answer(answer));
        let reply = connection
            .send(&Ask::new(method, "/").host("reviews"))
            .await
            .unwrap();
        assert!(reply.body.bytes.is_empty(), "{method}: {reply:?}");
        // RFC 9110 section 15.4.5 leaves it open whether a 304 has a length; a wrong one would be read as a body.
        let said = reply
            .head
            .header("content-length")
            .filter(|_| reply.status() != 304);
        assert_eq!(said, length, "{method}: {:?}", reply.head);
        // The next answer on the same connection is read from its very beginning.
        upstream.behave(Behaviour::Answer(Answer::ok().body("next")));
        let reply = connection.send(&Ask::get("/").host("reviews")).await.unwrap();
        assert_eq!((reply.status(), reply.text().as_str()), (200, "next"));
    }
}

#[tokio::test]
async fn bodies_pass_whole_in_both_framings_both_ways() {
    let (upstream, sidecar) = pair().await;
    let body: Vec<u8> = (0..300_000_u32).map(|number| (number % 253) as u8).collect();
    upstream.behave(Behaviour::Echo);
    for ask in [
        Ask::post("/", body.clone()),
        Ask::post("/", body.clone()).chunked(),
    ] {
        let reply = sidecar.client().send(ask.host("reviews")).await;
        assert_eq!((reply.status(), reply.body.cut.as_deref()), (200, None));
        assert!(reply.body.bytes == body, "the echo is what was sent");
    }
    upstream.behave(Behaviour::Answer(Answer::ok().body(body.clone()).chunked()));
    let reply = sidecar.client().get("reviews", "/").await;
    assert_eq!(reply.body.cut, None);
    assert!(reply.body.bytes == body);
    let reply = sidecar.client().send(Ask::post("/", "").host("reviews")).await;
    assert_eq!(reply.status(), 200, "a POST without a byte");
    assert_eq!(upstream.last().head.header("content-length"), Some("0"));
}

#[tokio::test]
async fn a_client_that_waits_for_100_continue_gets_it() {
    let (upstream, sidecar) = pair().await;
    upstream.behave(Behaviour::Echo);
    let mut connection = sidecar.client().connect().await;
    let head = b"POST / HTTP/1.1\r\nhost: reviews\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n";
    connection.wire().send(head).await.unwrap();
    let interim = within("100 Continue", connection.wire().head())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(interim.status(), 100);
    connection.wire().send(b"hello").await.unwrap();
    let reply = within("the answer", connection.reply_to("POST")).await.unwrap();
    assert_eq!((reply.status(), reply.text().as_str()), (200, "hello"));
}

#[tokio::test]
async fn a_client_that_waits_for_100_continue_is_told_when_nobody_is_there() {
    let upstream = Upstream::dead("a");
    let sidecar = Sidecar::of(simple("reviews", &[&upstream], "")).await;
    let mut connection = sidecar.client().connect().await;
    let head = b"POST / HTTP/1.1\r\nhost: reviews\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n";
    connection.wire().send(head).await.unwrap();
    let reply = within("an answer without the body", connection.reply_to("POST"))
        .await
        .unwrap();
    assert_eq!((reply.status(), reply.reason()), (503, Some("connect-failed")));
}

#[tokio::test]
async fn an_answer_that_comes_before_the_upload_has_ended_is_handed_on() {
    let (upstream, sidecar) = pair().await;
    upstream.behave(Behaviour::AnswerEarly(Answer::status(413).body("too much")));
    let mut connection = sidecar.client().connect().await;
    let head = b"POST / HTTP/1.1\r\nhost: reviews\r\ncontent-length: 1000000\r\n\r\nthe beginning";
    connection.wire().send(head).await.unwrap();
    let reply = within("the early answer", connection.reply_to("POST"))
        .await
        .unwrap();
    assert_eq!((reply.status(), reply.reason()), (413, None));
    assert_eq!(reply.text(), "too much");
}

#[tokio::test]
async fn half_a_body_is_seen_as_half_a_body() {
    let (upstream, sidecar) = pair().await;
    for answer in [
        Answer::ok().body("0123456789"),
        Answer::ok().body("0123456789").chunked(),
        Answer::ok().body(vec![1; 500_000]),
        Answer::ok().body(vec![1; 500_000]).chunked(),
    ] {
        upstream.behave(Behaviour::HalfBody(answer));
        let (client, ask) = (sidecar.client(), Ask::get("/").host("reviews"));
        // A short half may still have waited to be sent when the break was seen: then there is no answer at all.
        if let Ok(reply) = within("an answer or an end", client.try_send(&ask)).await {
            assert_eq!(reply.status(), 200);
            let length = reply.body.bytes.len();
            assert!(reply.body.cut.is_some(), "it looks whole, with {length} bytes");
        }
    }
    let broken = [("reason", "upstream-reset")];
    sidecar
        .metrics_when("the broken bodies", |metrics| {
            metrics.sum("outrigger_requests_total", &broken) == 4.0
        })
        .await;
}

#[tokio::test]
async fn an_answer_that_is_not_http_is_a_502_that_says_so() {
    let (upstream, sidecar) = pair().await;
    upstream.behave(Behaviour::Raw(b"SSH-2.0-OpenSSH_9.2\r\n\r\n".to_vec()));
    let reply = sidecar.client().send(Ask::post("/", "x").host("reviews")).await;
    assert_eq!((reply.status(), reply.reason()), (502, Some("upstream-protocol")));
}

#[tokio::test]
async fn a_caller_that_goes_away_frees_the_upstream() {
    let (upstream, sidecar) = pair().await;
    for behaviour in [
        Behaviour::Hang,
        Behaviour::StallBody(Answer::ok().body("0123456789")),
        Behaviour::Drip {
            pieces: 1_000,
            pause: Duration::from_millis(50),
        },
    ] {
        let (requests, given_up) = (upstream.requests(), upstream.given_up());
        upstream.behave(behaviour.clone());
        let mut connection = sidecar.client().connect().await;
        connection
            .wire()
            .send(&Ask::get("/").host("reviews").to_bytes())
            .await
            .unwrap();
        upstream.has_requests(requests + 1).await;
        drop(connection);
        eventually(&format!("the upstream to be freed ({behaviour:?})"), async || {
            (upstream.given_up() > given_up).then_some(())
        })
        .await;
        assert_eq!(
            upstream.requests(),
            requests + 1,
            "nobody waits for another attempt"
        );
    }
    let gone = [("reason", "client-gone")];
    sidecar
        .metrics_when("the callers that went", |metrics| {
            metrics.sum("outrigger_requests_total", &gone) == 3.0
        })
        .await;
}

#[tokio::test]
async fn a_caller_that_goes_on_sending_after_the_answer_still_gets_to_read_it() {
    let (upstream, sidecar) = pair().await;
    for chunked in [false, true] {
        upstream.behave(Behaviour::AnswerEarly(Answer::status(413).body("too much")));
        // More than all buffers hold, and all of it is sent before a byte of the answer is read.
        let ask = Ask::post("/", vec![7; 12_000_000]).host("reviews");
        let ask = if chunked { ask.chunked() } else { ask };
        let reply = sidecar.client().send(ask).await;
        assert_eq!(
            (reply.status(), reply.text().as_str()),
            (413, "too much"),
            "chunked: {chunked}"
        );
    }
}

#[tokio::test]
async fn an_upload_that_breaks_off_is_not_taken_for_whole() {
    let (upstream, sidecar) = pair().await;
    for head in [
        "content-length: 10\r\n\r\n01234",
        "transfer-encoding: chunked\r\n\r\n5\r\n01234\r\n",
    ] {
        let (requests, given_up) = (upstream.requests(), upstream.given_up());
        let mut connection = sidecar.client().connect().await;
        let head = format!("POST / HTTP/1.1\r\nhost: reviews\r\n{head}");
        connection.wire().send(head.as_bytes()).await.unwrap();
        upstream.has_requests(requests + 1).await;
        drop(connection);
        eventually("the upstream to see it break off", async || {
            (upstream.given_up() > given_up).then_some(())
        })
        .await;
        assert!(upstream.last().body.cut.is_some(), "{:?}", upstream.last());
    }
}

#[tokio::test]
async fn requests_sent_ahead_are_answered_in_their_order() {
    let (upstream, sidecar) = pair().await;
    upstream.behave(Behaviour::Echo);
    let mut connection = sidecar.client().connect().await;
    let bytes: Vec<u8> = ["one", "two", "three"]
        .iter()
        .flat_map(|body| Ask::post("/", *body).host("reviews").to_bytes())
        .collect();
    connection.wire().send(&bytes).await.unwrap();
    for expected in ["one", "two", "three"] {
        let reply = within("an answer", connection.reply_to("POST")).await.unwrap();
        assert_eq!(reply.text(), expected);
    }
}

#[tokio::test]
async fn connections_are_kept_on_both_sides() {
    let upstream = Upstream::start("a").await;
    let sidecar = Sidecar::of(simple("reviews", &[&upstream], "")).await;
    let mut connection = sidecar.client().connect().await;
    for _ in 0..50 {
        let reply = connection.send(&Ask::get("/").host("reviews")).await.unwrap();
        assert_eq!(reply.status(), 200);
    }
    assert_eq!((upstream.requests(), upstream.connections()), (50, 1));
    let reply = connection
        .send(&Ask::get("/").host("reviews").header("connection", "close"))
        .await
        .unwrap();
    assert_eq!(reply.status(), 200);
    let closed = within("the end that was asked for", connection.wire().head()).await;
    assert!(matches!(closed, Ok(None)), "{closed:?}");
}
