//! A request that cannot be served gets its answer within its time, with a word that an operator can act on: every way
//! to fail that can be made here, by HTTP/1.1, by HTTP/2 and by gRPC.
//!
//! Each way has a sidecar of its own that is asked three times. What is asked about is the same for all: the answer, its
//! reason in the header, one line in the log, one count in the metric, words of advice.

use std::fmt;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use outrigger_tests::client::Connection;
use outrigger_tests::dns::DnsServer;
use outrigger_tests::http2::frame::{self, code, flag};
use outrigger_tests::http2::{Answers, Caller, Http2Upstream, Raw, request};
use outrigger_tests::upstream::Deaf;
use outrigger_tests::wait::{eventually, within};
use outrigger_tests::{Answer, Behaviour, ServiceFile, Sidecar, SidecarSpec, Upstream};
use serde_json::Value;

/// A time that ends a request in these tests.
const SHORT: Duration = Duration::from_millis(300);

/// Clocks of two processes: what may be missing from a time that was waited for.
const GRAIN: Duration = Duration::from_millis(20);

/// The three kinds of callers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Speaks {
    Http1,
    Http2,
    Grpc,
}

const CALLERS: [Speaks; 3] = [Speaks::Http1, Speaks::Http2, Speaks::Grpc];

/// What becomes of the caller's request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    /// An answer of the sidecar's own, with the reason.
    Answer,
    /// The head was there already: the body is cut where it shows.
    Cut,
}

/// One way to fail.
struct Way {
    name: &'static str,
    reason: &'static str,
    status: u16,
    grpc: &'static str,
    /// Not before this, because it is the time that ends it.
    after: Duration,
    seen: Seen,
    path: &'static str,
    host: &'static str,
    /// The caller begins a body and falls silent.
    half_upload: bool,
}

fn way(name: &'static str, reason: &'static str, status: u16, grpc: &'static str) -> Way {
    Way {
        name,
        reason,
        status,
        grpc,
        after: Duration::ZERO,
        seen: Seen::Answer,
        path: "/",
        host: "reviews",
        half_upload: false,
    }
}

impl Way {
    fn after(self, after: Duration) -> Self {
        Self { after, ..self }
    }

    fn path(self, path: &'static str) -> Self {
        Self { path, ..self }
    }

    fn host(self, host: &'static str) -> Self {
        Self { host, ..self }
    }

    fn cut(self) -> Self {
        Self {
            seen: Seen::Cut,
            ..self
        }
    }

    fn half_upload(self) -> Self {
        Self {
            half_upload: true,
            ..self
        }
    }

    /// Asks a sidecar in all three ways and complains of what is not as it should be.
    async fn judge(&self, sidecar: &mut Sidecar) {
        for (count, speaks) in (1..).zip(CALLERS) {
            let began = Instant::now();
            let what = format!("{}: an answer by {speaks:?}", self.name);
            let told = within(&what, self.ask(sidecar.outbound(), speaks)).await;
            let took = began.elapsed();
            self.judge_told(speaks, &told);
            assert!(took + GRAIN >= self.after, "{what} came after {took:?} already");
            self.is_told_to_operators(sidecar, count).await;
        }
    }

    fn judge_told(&self, speaks: Speaks, told: &Told) {
        let what = format!("{} by {speaks:?}: {told}", self.name);
        match (self.seen, speaks) {
            (Seen::Answer, Speaks::Grpc) => {
                assert_eq!((told.status, told.grpc.as_str()), (200, self.grpc), "{what}");
                assert!(told.text.starts_with("outrigger: "), "{what}");
            }
            (Seen::Answer, _) => assert_eq!(told.status, self.status, "{what}"),
            (Seen::Cut, Speaks::Grpc) => assert_eq!(told.grpc, self.grpc, "{what}"),
            (Seen::Cut, _) => assert!(told.status == 200 && told.cut, "{what}"),
        }
        if self.seen == Seen::Answer {
            assert!(!told.cut, "{what}");
            assert_eq!(told.reason, self.reason, "{what}");
            let advice = format!("outrigger: {}: ", self.reason);
            let words = told.text.strip_prefix(&advice).unwrap_or_default().trim();
            assert!(words.len() > 20, "no advice for {what}");
        }
    }

    /// One line in the log and one count in the metric for each request, under the same word.
    async fn is_told_to_operators(&self, sidecar: &mut Sidecar, count: usize) {
        let name = format!("{count} × {} for {}", self.reason, self.name);
        let own = [("reason", self.reason)];
        let metrics = sidecar
            .metrics_when(&name, |metrics| {
                metrics.sum("outrigger_requests_total", &own) >= 1.0 * f64::from(count as u32)
            })
            .await;
        let (all, own) = (
            metrics.sum("outrigger_requests_total", &[("listener", "outbound")]),
            metrics.sum("outrigger_requests_total", &own),
        );
        assert_eq!(
            (all, own),
            (f64::from(count as u32), f64::from(count as u32)),
            "{name}"
        );
        let program = sidecar.program();
        eventually(&format!("{name} in the log"), async || {
            (program.output().len() >= count).then_some(())
        })
        .await;
        let lines = program.output();
        assert_eq!(lines.len(), count, "{name}: {lines:?}");
        let line: Value = serde_json::from_str(&lines[count - 1]).unwrap();
        assert_eq!(line["reason"], self.reason, "{name}: {line}");
        assert!(
            line["detail"].as_str().is_some_and(|detail| !detail.is_empty()),
            "{line}"
        );
    }

    async fn ask(&self, address: SocketAddr, speaks: Speaks) -> Told {
        match speaks {
            Speaks::Http1 => self.ask_http1(address).await,
            Speaks::Http2 | Speaks::Grpc => self.ask_http2(address, speaks).await,
        }
    }

    async fn ask_http1(&self, address: SocketAddr) -> Told {
        let mut connection = Connection::open(address).await.unwrap();
        let Self { path, host, .. } = self;
        let length = if self.half_upload { 10 } else { 5 };
        let ask = format!("POST {path} HTTP/1.1\r\nhost: {host}\r\ncontent-length: {length}\r\n\r\nhello");
        connection.wire().send(ask.as_bytes()).await.unwrap();
        let reply = connection.reply_to("POST").await;
        let reply = reply.unwrap_or_else(|error| panic!("{}: {error}", self.name));
        Told {
            status: reply.status(),
            reason: reply.reason().unwrap_or_default().to_owned(),
            text: reply.text(),
            cut: reply.body.cut.is_some(),
            grpc: String::new(),
        }
    }

    async fn ask_http2(&self, address: SocketAddr, speaks: Speaks) -> Told {
        let mut caller = Caller::open(address).await.unwrap();
        let stream = caller.stream();
        let mut head = request("POST", self.host, self.path);
        if speaks == Speaks::Grpc {
            head.push(("content-type".into(), "application/grpc".into()));
            head.push(("te".into(), "trailers".into()));
        }
        let ends = if self.half_upload { 0 } else { flag::END_STREAM };
        let bytes = [
            frame::headers(stream, 0, &head),
            frame::data(stream, ends, b"\0\0\0\0\x01x"),
        ];
        caller.raw.send(&bytes.concat()).await.unwrap();
        let reply = caller.reply(stream).await;
        let reply = reply.unwrap_or_else(|error| panic!("{} by {speaks:?}: {error}", self.name));
        let trailer = |name: &str| {
            let found = reply.trailers.iter().find(|(held, _)| held == name);
            found.map(|(_, value)| value.as_str())
        };
        let field = |name: &str| {
            let value = reply.header(name).or_else(|| trailer(name));
            value.unwrap_or_default().to_owned()
        };
        Told {
            status: reply.status(),
            reason: field("x-outrigger-reason"),
            text: match speaks {
                Speaks::Grpc => field("grpc-message"),
                _ => String::from_utf8_lossy(&reply.body).into_owned(),
            },
            cut: reply.reset.is_some(),
            grpc: field("grpc-status"),
        }
    }
}

/// What a caller was told.
struct Told {
    status: u16,
    reason: String,
    text: String,
    cut: bool,
    grpc: String,
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            status,
            reason,
            text,
            cut,
            grpc,
        } = self;
        write!(f, "{status} {reason:?} grpc-status {grpc:?} {text:?} cut: {cut}")
    }
}

/// A sidecar for one backend that is tried once, with these fields of the route.
async fn before(protocol: &str, address: SocketAddr, fields: &str) -> Sidecar {
    let file = ServiceFile::new("reviews")
        .field(&format!("protocol: {protocol}"))
        .backend("v1", &[address])
        .route(
            "default",
            &[("v1", 1)],
            &format!("retry: {{ attempts: 1 }}\n{fields}"),
        );
    Sidecar::of(file).await
}

#[tokio::test]
async fn what_never_finds_an_endpoint_is_told_so_at_once() {
    let upstream = Upstream::start("a").await;
    let mut sidecar = before("http", upstream.address(), "match: [{ path: { prefix: /x } }]").await;
    let nobody = way("a host that nobody has", "no-service", 404, "12").host("nobody");
    nobody.judge(&mut sidecar).await;

    let mut sidecar = before("http", upstream.address(), "match: [{ path: { prefix: /x } }]").await;
    let nowhere = way("a path that no route has", "no-route", 404, "12").path("/y");
    nowhere.judge(&mut sidecar).await;

    let mut sidecar = before("http", upstream.address(), "").await;
    let bad = way("a path that encodes nothing", "bad-request", 400, "13").path("/%zz");
    bad.judge(&mut sidecar).await;

    let dns = DnsServer::start("mesh.test").await;
    let file = ServiceFile::new("reviews").discover("v1", "dns: nobody.mesh.test, port: 80");
    let spec = SidecarSpec::text("a", &file.to_string()).dns(dns.address());
    let mut sidecar = Sidecar::start(spec).await;
    let empty = way("a name that does not exist", "no-endpoint", 503, "14");
    empty.judge(&mut sidecar).await;

    let mut sidecar = before("http", upstream.address(), "").await;
    let round = ServiceFile::new("reviews").backend("v1", &[sidecar.outbound()]);
    sidecar.apply(&round.to_string()).await;
    let round = way("a backend that is the sidecar", "loop", 508, "13");
    round.judge(&mut sidecar).await;

    let mut sidecar = Sidecar::launch(SidecarSpec::control("a", "http://127.0.0.1:9")).await;
    let early = way("no configuration yet", "not-ready", 503, "14");
    early.judge(&mut sidecar).await;
}

#[tokio::test]
async fn where_no_connection_can_be_made_it_is_said_why() {
    let dead = Upstream::dead("a");
    for protocol in ["http", "http2", "grpc"] {
        let mut sidecar = before(protocol, dead.address(), "").await;
        let refused = way("a port that nobody listens on", "connect-failed", 503, "14");
        refused.judge(&mut sidecar).await;

        let deaf = Deaf::start();
        let mut sidecar = before(protocol, deaf.address(), "").await;
        let deafness = way("a port that does not answer", "connect-timeout", 503, "14");
        deafness.after(Duration::from_secs(1)).judge(&mut sidecar).await;

        // By HTTP/2 the three callers wait for one connection, whose own time of a second must not be over first.
        let deaf = Deaf::start();
        let mut sidecar = before(protocol, deaf.address(), "timeout: { request: 100ms }").await;
        let late = way(
            "a port that does not answer while there is time",
            "request-timeout",
            504,
            "4",
        );
        late.after(Duration::from_millis(100)).judge(&mut sidecar).await;
    }
}

#[tokio::test]
async fn an_endpoint_that_does_not_answer_is_given_its_time_and_no_more() {
    let (request, attempt, idle) = (
        "timeout: { request: 300ms, idle: 0s }",
        "timeout: { request: 15s, attempt: 300ms }\nretry: { attempts: 3 }",
        "timeout: { request: 0s, idle: 300ms }",
    );
    let stalled = Answer::ok().body("0123456789");
    let half_a_head = b"HTTP/1.1 200 OK\r\nx-half".to_vec();
    for (behaviour, fields, way) in [
        (
            Behaviour::Hang,
            request,
            way("silence", "request-timeout", 504, "4"),
        ),
        (
            Behaviour::Hang,
            attempt,
            way("silence in an attempt", "attempt-timeout", 504, "4"),
        ),
        (
            Behaviour::RawKept(half_a_head),
            request,
            way("half a head", "request-timeout", 504, "4"),
        ),
        (
            Behaviour::StallBody(stalled.clone()),
            request,
            way("half a body", "request-timeout", 504, "4").cut(),
        ),
        (
            Behaviour::StallBody(stalled),
            idle,
            way("a silent body", "idle-timeout", 504, "4").cut(),
        ),
        (
            Behaviour::Answer(Answer::ok()),
            idle,
            way("half an upload", "idle-timeout", 504, "4").half_upload(),
        ),
        (
            Behaviour::Answer(Answer::ok()),
            request,
            way("half an upload until the end", "request-timeout", 504, "4").half_upload(),
        ),
    ] {
        let upstream = Upstream::start("a").await;
        upstream.behave(behaviour);
        let file = ServiceFile::new("reviews")
            .backend("v1", &[upstream.address()])
            .route("default", &[("v1", 1)], fields);
        way.after(SHORT).judge(&mut Sidecar::of(file).await).await;
    }
}

#[tokio::test]
async fn an_endpoint_that_breaks_off_or_makes_no_sense_is_named_so() {
    let half_a_head = b"HTTP/1.1 200 OK\r\nx-half".to_vec();
    let garbage = b"SSH-2.0-OpenSSH_9.2\r\n\r\n".to_vec();
    // An alert: handshake failure (RFC 8446 section 6).
    let tls = b"\x15\x03\x03\x00\x02\x02\x28".to_vec();
    let body = Answer::ok().body(vec![1; 100_000]);
    for (behaviour, way) in [
        (
            Behaviour::CloseBeforeAnswer,
            way("an end before the answer", "upstream-reset", 502, "14"),
        ),
        (Behaviour::Reset, way("a reset", "upstream-reset", 502, "14")),
        (
            Behaviour::Raw(half_a_head),
            way("half a head and the end", "upstream-reset", 502, "14"),
        ),
        (
            Behaviour::Raw(garbage),
            way("another protocol", "upstream-protocol", 502, "14"),
        ),
        (Behaviour::Raw(tls), way("TLS", "upstream-protocol", 502, "14")),
        (
            Behaviour::HalfBody(body),
            way("half a body and the end", "upstream-reset", 502, "14").cut(),
        ),
    ] {
        let upstream = Upstream::start("a").await;
        upstream.behave(behaviour);
        let mut sidecar = before("http", upstream.address(), "").await;
        way.judge(&mut sidecar).await;
    }
}

#[tokio::test]
async fn what_has_come_of_an_answer_that_breaks_off_reaches_its_caller() {
    let upstream = Upstream::start("a").await;
    let sidecar = before("http", upstream.address(), "").await;
    // Head, half a body and the end arrive together, so that the end is seen before anything has been passed on.
    for answer in [
        Answer::ok().body("0123456789"),
        Answer::ok().body("0123456789").chunked(),
    ] {
        upstream.behave(Behaviour::HalfBody(answer));
        for _ in 0..30 {
            let reply = sidecar.client().get("reviews", "/").await;
            assert_eq!((reply.status(), reply.upstream()), (200, "a"));
            assert!(reply.body.cut.is_some(), "{reply:?}");
        }
    }
    let broken = [("reason", "upstream-reset")];
    sidecar
        .metrics_when("the broken answers", |metrics| {
            metrics.sum("outrigger_requests_total", &broken) == 60.0
        })
        .await;
}

#[tokio::test]
async fn an_endpoint_of_http2_that_fails_is_named_as_one_of_http1_is() {
    for (code, way) in [
        (
            code::REFUSED_STREAM,
            way("a refused stream", "refused-stream", 503, "14"),
        ),
        (
            code::ENHANCE_YOUR_CALM,
            way("a plea for calm", "enhance-your-calm", 502, "8"),
        ),
        (
            code::INTERNAL_ERROR,
            way("a stream that is reset", "upstream-reset", 502, "14"),
        ),
    ] {
        let answers = Answers {
            reset_first: Some((u64::MAX, code)),
            ..Answers::default()
        };
        let upstream = Http2Upstream::answering(answers).await;
        let mut sidecar = before("http2", upstream.address(), "").await;
        way.judge(&mut sidecar).await;
    }
    // A server of HTTP/1.1, which a wrong `protocol` leads to.
    let script = |stream, _number, _counts| async move {
        let mut raw = Raw::new(stream);
        raw.preface().await?;
        raw.send(b"HTTP/1.1 400 Bad Request\r\n\r\n").await?;
        while raw.frame().await?.is_some() {}
        Ok(())
    };
    let upstream = Http2Upstream::start(script).await;
    let mut sidecar = before("http2", upstream.address(), "").await;
    let other = way("a server of HTTP/1.1", "upstream-protocol", 502, "14");
    other.judge(&mut sidecar).await;
    for (behaviour, fields, way) in [
        (
            Behaviour::Hang,
            "timeout: { request: 300ms }",
            way("a server that says nothing in time", "request-timeout", 504, "4").after(SHORT),
        ),
        (
            Behaviour::Hang,
            "",
            way("a server that says nothing", "connect-timeout", 503, "14").after(Duration::from_secs(1)),
        ),
        (
            Behaviour::CloseAfterHead,
            "",
            way("a server that hangs up", "connect-failed", 503, "14"),
        ),
    ] {
        let upstream = Upstream::start("a").await;
        upstream.behave(behaviour);
        let mut sidecar = before("http2", upstream.address(), fields).await;
        way.judge(&mut sidecar).await;
    }
}

#[tokio::test]
async fn what_is_too_much_is_told_so_at_once() {
    let upstream = Upstream::start("a").await;
    upstream.behave(Behaviour::Hang);
    let file = ServiceFile::new("reviews")
        .field("limits: { requests: 1 }")
        .backend("v1", &[upstream.address()])
        .route("default", &[("v1", 1)], "retry: { attempts: 1 }");
    let mut sidecar = Sidecar::of(file).await;
    let mut held = sidecar.client().connect().await;
    let ask = outrigger_tests::Ask::get("/").host("reviews");
    held.wire().send(&ask.to_bytes()).await.unwrap();
    upstream.has_requests(1).await;
    let much = way("one request too many", "overloaded", 503, "14");
    much.judge(&mut sidecar).await;
}

#[tokio::test]
async fn what_is_cut_at_the_end_of_a_drain_ends_then_and_is_told_as_that() {
    let upstream = Upstream::start("a").await;
    upstream.behave(Behaviour::Hang);
    let file = ServiceFile::new("reviews")
        .backend("v1", &[upstream.address()])
        .route("default", &[("v1", 1)], "timeout: { request: 0s }");
    let spec = SidecarSpec::text("a", &file.to_string()).with("--drain", "1s");
    let mut sidecar = Sidecar::start(spec).await;
    let mut http1 = sidecar.client().connect().await;
    let ask = outrigger_tests::Ask::get("/").host("reviews");
    http1.wire().send(&ask.to_bytes()).await.unwrap();
    let mut http2 = Caller::open(sidecar.outbound()).await.unwrap();
    let stream = http2.get("reviews", "/").await.unwrap();
    upstream.has_requests(2).await;
    sidecar.program().terminate();
    // Its time is over, and with it the process: there is nobody left to answer, but nobody is kept waiting either.
    let cut = within("the end by HTTP/1.1", http1.reply_to("GET")).await;
    assert!(cut.is_err(), "{cut:?}");
    let cut = within("the end by HTTP/2", http2.reply(stream)).await;
    assert!(cut.is_err() || cut.is_ok_and(|reply| reply.reset.is_some()));
    sidecar.program().exited().await;
    let (log, _) = sidecar.program().written().await;
    assert_eq!(log.lines().count(), 2, "{log}");
    for line in log.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        assert_eq!(line["reason"], "draining", "{line}");
    }
}
