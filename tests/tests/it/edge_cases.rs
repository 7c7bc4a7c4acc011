//! What a proxy meets seldom and must get right: rows of docs/edge-cases.md that no other module is about.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use outrigger_tests::background::Background;
use outrigger_tests::dns::DnsServer;
use outrigger_tests::grpc::{Call, GrpcUpstream};
use outrigger_tests::http2::frame::{self, flag, kind};
use outrigger_tests::http2::{Caller, Counts, Http2Upstream, Raw, Reply, request};
use outrigger_tests::wait::{eventually, within};
use outrigger_tests::wire::Wire;
use outrigger_tests::{Answer, Ask, Behaviour, ServiceFile, Sidecar, SidecarSpec, Upstream, simple};
use tokio::net::{TcpListener, TcpStream};

/// A sidecar with one worker, so that a connection that is kept is kept for whoever comes next.
async fn one_worker(file: &ServiceFile) -> Sidecar {
    Sidecar::start(SidecarSpec::text("a", &file.to_string()).with("--workers", "1")).await
}

#[tokio::test]
async fn a_connection_whose_upload_was_not_finished_carries_no_other_request() {
    let upstream = Upstream::start("a").await;
    let sidecar = one_worker(&simple("reviews", &[&upstream], "")).await;
    let early = || upstream.next([Behaviour::AnswerEarly(Answer::status(413).body("too much"))]);

    early();
    let mut caller = sidecar.client().connect().await;
    let head = b"POST / HTTP/1.1\r\nhost: reviews\r\ncontent-length: 100000\r\n\r\nthe beginning";
    caller.wire().send(head).await.unwrap();
    let reply = within("the early answer", caller.reply_to("POST")).await.unwrap();
    assert_eq!((reply.status(), reply.text().as_str()), (413, "too much"));
    let next = sidecar.client().get("reviews", "/").await;
    assert_eq!((next.status(), next.text().as_str()), (200, "status 200\n"));

    early();
    let mut caller = Caller::open(sidecar.outbound()).await.unwrap();
    let stream = caller.stream();
    let head = frame::headers(stream, 0, &request("POST", "reviews", "/"));
    let data = frame::data(stream, 0, b"the beginning");
    caller.raw.send(&[head, data].concat()).await.unwrap();
    let reply = within("the early answer", caller.reply(stream)).await.unwrap();
    assert_eq!((reply.status(), &reply.body[..]), (413, &b"too much"[..]));
    let next = sidecar.client().get("reviews", "/").await;
    assert_eq!((next.status(), next.text().as_str()), (200, "status 200\n"));

    // The second POST came by the connection of the first GET, which was clean.
    assert_eq!(upstream.connections(), 3);
    assert_eq!(upstream.unreadable(), 0, "the next request was read as a body");
}

#[tokio::test]
async fn an_answer_is_the_callers_even_if_its_endpoint_reads_no_further() {
    let upstream = Upstream::start("a").await;
    let sidecar = one_worker(&simple("reviews", &[&upstream], "")).await;
    // More than any socket takes without a reader, so that the sidecar is in the middle of it when the endpoint closes.
    let body = vec![b'x'; 16 * 1024 * 1024];
    for _ in 0..10 {
        upstream.next([Behaviour::AnswerUnread(Answer::status(413).body("too much"))]);
        let ask = Ask::post("/", body.clone()).header("host", "reviews");
        let reply = within("the answer", sidecar.client().send(ask)).await;
        assert_eq!((reply.status(), reply.text().as_str()), (413, "too much"));
    }
}

/// What comes back for a request by HTTP/2 without a body.
async fn by_http2(sidecar: &Sidecar, method: &str) -> Reply {
    let mut caller = Caller::open(sidecar.outbound()).await.unwrap();
    let stream = caller.stream();
    let head = request(method, "reviews", "/");
    let bytes = frame::headers(stream, flag::END_STREAM, &head);
    caller.raw.send(&bytes).await.unwrap();
    within("an answer by HTTP/2", caller.reply(stream)).await.unwrap()
}

#[tokio::test]
async fn a_request_without_a_body_is_given_none_on_its_way_to_http1() {
    let upstream = Upstream::start("a").await;
    let sidecar = Sidecar::of(simple("reviews", &[&upstream], "")).await;
    let framing = || {
        let head = upstream.last().head;
        ["transfer-encoding", "content-length"].map(|name| head.header(name).map(str::to_owned))
    };
    for method in ["GET", "HEAD", "DELETE"] {
        assert_eq!(
            sidecar
                .client()
                .send(Ask::new(method, "/").host("reviews"))
                .await
                .status(),
            200
        );
        assert_eq!(framing(), [None, None], "{method} by HTTP/1.1");
        assert_eq!(by_http2(&sidecar, method).await.status(), 200);
        assert_eq!(framing(), [None, None], "{method} by HTTP/2");
    }
    // A length of nothing is kept: without it a POST would wait for a body with some servers.
    let ask = Ask::post("/", "").host("reviews");
    assert_eq!(sidecar.client().send(ask).await.status(), 200);
    assert_eq!(framing(), [None, Some("0".into())]);
}

/// An HTTP/2 server that answers what it saw of a request's framing in `x-seen`.
async fn looks_at_framing() -> Http2Upstream {
    let script = |stream: TcpStream, _number: u64, counts: Arc<Counts>| async move {
        let mut raw = Raw::accept(stream, &[]).await?;
        while let Some(frame) = raw.frame().await? {
            if frame.kind == kind::HEADERS {
                let fields = raw.fields(&frame).await?;
                counts.requests.fetch_add(1, Ordering::SeqCst);
                let length = fields.iter().find(|(name, _)| name == "content-length");
                let length = length.map_or("none", |(_, value)| value.as_str());
                let seen = format!("ended={} length={length}", frame.has(flag::END_STREAM));
                let answer = [(":status", "200"), ("x-seen", seen.as_str())];
                raw.send(&frame::headers(frame.stream, flag::END_STREAM, &answer))
                    .await?;
            }
        }
        Ok(())
    };
    Http2Upstream::start(script).await
}

#[tokio::test]
async fn a_request_without_a_body_ends_with_its_head_on_its_way_to_http2() {
    let upstream = looks_at_framing().await;
    let file = ServiceFile::new("reviews")
        .field("protocol: http2")
        .backend("v1", &[upstream.address()]);
    let sidecar = Sidecar::of(file).await;
    for method in ["GET", "HEAD", "DELETE"] {
        let reply = sidecar.client().send(Ask::new(method, "/").host("reviews")).await;
        assert_eq!(
            reply.head.header("x-seen"),
            Some("ended=true length=none"),
            "{method}"
        );
        let reply = by_http2(&sidecar, method).await;
        assert_eq!(
            reply.header("x-seen"),
            Some("ended=true length=none"),
            "{method} by HTTP/2"
        );
    }
    let reply = sidecar.client().send(Ask::post("/", "").host("reviews")).await;
    assert_eq!(reply.head.header("x-seen"), Some("ended=true length=0"));
}

#[tokio::test]
async fn an_answer_without_a_body_has_none_by_http2_and_keeps_its_length() {
    let upstream = Upstream::start("a").await;
    let sidecar = Sidecar::of(simple("reviews", &[&upstream], "")).await;
    for (method, answer, status, length) in [
        ("HEAD", Answer::ok().body("0123456789"), 200, Some("10")),
        ("HEAD", Answer::ok().body("0123456789").chunked(), 200, None),
        ("GET", Answer::status(204), 204, None),
        ("GET", Answer::status(304).body("0123456789"), 304, Some("10")),
        ("GET", Answer::ok().body(""), 200, Some("0")),
    ] {
        upstream.behave(Behaviour::Answer(answer));
        let reply = by_http2(&sidecar, method).await;
        assert_eq!(reply.status(), status, "{reply:?}");
        assert!(
            reply.ended && reply.body.is_empty() && reply.reset.is_none(),
            "{method}: {reply:?}"
        );
        assert_eq!(reply.header("content-length"), length, "{method}: {reply:?}");
    }
}

#[tokio::test]
async fn a_body_that_ends_with_its_connection_is_whole_for_both_kinds_of_callers() {
    let upstream = Upstream::start("a").await;
    let sidecar = Sidecar::of(simple("reviews", &[&upstream], "")).await;
    for version in ["1.1", "1.0"] {
        let answer = format!("HTTP/{version} 200 OK\r\nx-upstream: a\r\n\r\nall of it");
        upstream.behave(Behaviour::Raw(answer.into_bytes()));
        let reply = sidecar.client().get("reviews", "/").await;
        assert_eq!((reply.status(), reply.body.cut.as_deref()), (200, None));
        assert_eq!(reply.text(), "all of it", "{version}");
        let reply = by_http2(&sidecar, "GET").await;
        assert_eq!(
            (reply.status(), reply.ended, &reply.body[..]),
            (200, true, &b"all of it"[..]),
            "{version}"
        );
    }
}

#[tokio::test]
async fn a_request_that_names_no_host_goes_where_its_port_leads_or_is_told_that_it_must() {
    let upstream = Upstream::start("a").await;
    let file = simple("reviews", &[&upstream], "").to_string();
    let sidecar = Sidecar::start(SidecarSpec::text("a", &file).local("reviews")).await;
    let local = sidecar.local("reviews");
    for (address, bytes, status, reason) in [
        (
            sidecar.outbound(),
            "GET / HTTP/1.1\r\n\r\n",
            400,
            Some("bad-request"),
        ),
        (local, "GET / HTTP/1.1\r\n\r\n", 400, Some("bad-request")),
        (
            sidecar.outbound(),
            "GET / HTTP/1.0\r\n\r\n",
            404,
            Some("no-service"),
        ),
        (local, "GET / HTTP/1.0\r\n\r\n", 200, None),
        (
            sidecar.outbound(),
            "GET http://reviews/ HTTP/1.0\r\n\r\n",
            200,
            None,
        ),
    ] {
        let mut connection = outrigger_tests::Client::new(address).connect().await;
        connection.wire().send(bytes.as_bytes()).await.unwrap();
        let reply = within("an answer", connection.reply_to("GET")).await.unwrap();
        assert_eq!((reply.status(), reply.reason()), (status, reason), "{bytes:?}");
    }
    let hosts: Vec<_> = upstream
        .received()
        .into_iter()
        .map(|received| received.head.header("host").map(str::to_owned))
        .collect();
    assert_eq!(hosts, [Some("reviews".into()), Some("reviews".into())]);
}

/// Switches to a protocol of its own, speaks first and at once, repeats what it hears, and says goodbye when the other
/// side has ended.
async fn switches(background: &Background) -> std::net::SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    background.spawn(async move {
        let listener = TcpListener::from_std(listener).unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let mut wire = Wire::new(stream);
        wire.head().await.unwrap();
        let switched =
            b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: parrot\r\n\r\nhello\r\n";
        wire.send(switched).await.unwrap();
        while let Ok(line) = wire.line().await {
            wire.send(format!("{line}\r\n").as_bytes()).await.unwrap();
        }
        wire.send(b"goodbye\r\n").await.unwrap();
        wire.finish().await.unwrap();
    });
    address
}

#[tokio::test]
async fn a_switched_connection_loses_no_byte_ends_by_halves_and_outlives_the_times_of_requests() {
    let background = Background::start("parrot");
    let address = switches(&background).await;
    let file = ServiceFile::new("reviews").backend("v1", &[address]).route(
        "default",
        &[("v1", 1)],
        "timeout: { request: 300ms, attempt: 300ms, idle: 300ms }",
    );
    let sidecar = Sidecar::of(file).await;
    let mut caller = sidecar.client().connect().await;
    // The first words come right behind the head, before the switch is known of.
    let ask = "GET / HTTP/1.1\r\nhost: reviews\r\nconnection: upgrade\r\nupgrade: parrot\r\n\r\n";
    caller.wire().send(ask.as_bytes()).await.unwrap();
    let reply = within("the switch", caller.wire().head()).await.unwrap().unwrap();
    assert_eq!(reply.status(), 101);
    assert_eq!(within("hello", caller.wire().line()).await.unwrap(), "hello");
    // Longer than any of the times that requests have here; it is no hung request.
    tokio::time::sleep(Duration::from_secs(1)).await;
    caller.wire().send(b"still there?\r\n").await.unwrap();
    assert_eq!(
        within("an echo", caller.wire().line()).await.unwrap(),
        "still there?"
    );
    caller.wire().finish().await.unwrap();
    assert_eq!(within("goodbye", caller.wire().line()).await.unwrap(), "goodbye");
    let (rest, error) = within("the end", caller.wire().until_end()).await;
    assert!(rest.is_empty() && error.is_none(), "{rest:?} {error:?}");
    let timed_out = sidecar.metrics().await;
    for reason in ["request-timeout", "attempt-timeout", "idle-timeout"] {
        let labels = [("reason", reason)];
        assert_eq!(
            timed_out.sum("outrigger_requests_total", &labels),
            0.0,
            "{reason}"
        );
    }
}

#[tokio::test]
async fn a_call_that_fails_in_its_trailers_counts_as_failed_though_http_says_200() {
    let upstream = GrpcUpstream::start("a").await;
    let file = ServiceFile::new("reviews")
        .field("protocol: grpc")
        .backend("v1", &[upstream.address()])
        .route("default", &[("v1", 1)], "");
    let sidecar = Sidecar::of(&file).await;
    let mut caller = Caller::open(sidecar.outbound()).await.unwrap();
    for failing in [Call::Message(14), Call::Trailers(13, Vec::new())] {
        upstream.next([failing]);
        let stream = caller.stream();
        let mut head = request("POST", "reviews", "/shop.Reviews/Get");
        head.push(("content-type".into(), "application/grpc".into()));
        head.push(("te".into(), "trailers".into()));
        let bytes = frame::headers(stream, flag::END_STREAM, &head);
        caller.raw.send(&bytes).await.unwrap();
        let reply = within("the end of a call", caller.reply(stream)).await.unwrap();
        assert_eq!(reply.status(), 200, "{reply:?}");
    }
    sidecar
        .metrics_when("both calls by their status", |metrics| {
            let calls = |status: &str| {
                let labels = [("grpc_status", status)];
                metrics.sum("outrigger_grpc_calls_total", &labels)
            };
            (calls("UNAVAILABLE"), calls("INTERNAL"), calls("OK")) == (1.0, 1.0, 0.0)
        })
        .await;
}

#[tokio::test]
async fn a_target_of_weight_zero_gets_nothing_and_one_without_endpoints_gives_its_share_away() {
    let dns = DnsServer::start("mesh.test").await;
    let (zero, all) = (Upstream::start("zero").await, Upstream::start("all").await);
    let file = ServiceFile::new("reviews")
        .backend("zero", &[zero.address()])
        .backend("all", &[all.address()])
        .discover("nobody", "dns: nobody.mesh.test, port: 80")
        .route("alone", &[("nobody", 1)], "match: [{ path: { exact: /alone } }]")
        .route("default", &[("zero", 0), ("all", 1), ("nobody", 3)], "");
    let spec = SidecarSpec::text("a", &file.to_string()).dns(dns.address());
    let sidecar = Sidecar::start(spec).await;
    for _ in 0..100 {
        let reply = sidecar.client().get("reviews", "/").await;
        assert_eq!((reply.status(), reply.upstream()), (200, "all"), "{reply:?}");
    }
    assert_eq!(zero.requests(), 0);
    let reply = sidecar.client().get("reviews", "/alone").await;
    assert_eq!((reply.status(), reply.reason()), (503, Some("no-endpoint")));
    eventually("the share that was given away to be counted", async || {
        let metrics = sidecar.metrics().await;
        let skipped = metrics.sum("outrigger_backend_skipped_total", &[("backend", "nobody")]);
        (skipped >= 70.0).then_some(())
    })
    .await;
}
