//! What upstreams answer, and what must become of it.

use outrigger_tests::wait::{eventually, within};
use outrigger_tests::{Ask, Behaviour, Sidecar, SidecarSpec, Upstream, simple};

/// What must become of what an upstream answers.
enum Becomes {
    /// The caller gets one answer with this status, these fields (an empty value: none of that name) and this body.
    Whole(u16, Vec<(&'static str, &'static str)>, Vec<u8>),
    /// The caller gets 502 with the reason `upstream-protocol`.
    Bad,
    /// The fault is in the body, and shows when the head may be on its way: the caller gets no whole answer.
    Broken,
}

use Becomes::{Bad, Broken, Whole};

pub(super) struct Row {
    /// The rule that judges it.
    rule: &'static str,
    method: &'static str,
    bytes: Vec<u8>,
    becomes: Becomes,
    /// Whether the upstream closes after it.
    closes: bool,
    /// Whether its connection takes another request.
    kept: bool,
}

impl Row {
    fn to(mut self, method: &'static str) -> Self {
        self.method = method;
        self
    }

    fn closed(mut self) -> Self {
        self.closes = true;
        self.kept = false;
        self
    }

    fn forsaken(mut self) -> Self {
        self.kept = false;
        self
    }
}

fn raw(rule: &'static str, bytes: impl AsRef<[u8]>, becomes: Becomes) -> Row {
    let kept = matches!(becomes, Whole(..));
    Row {
        rule,
        method: "GET",
        bytes: bytes.as_ref().to_vec(),
        becomes,
        closes: false,
        kept,
    }
}

/// A 200 with these lines, each with its end, and this body.
fn ok(rule: &'static str, lines: impl AsRef<[u8]>, body: &str, becomes: Becomes) -> Row {
    let bytes = [b"HTTP/1.1 200 OK\r\n", lines.as_ref(), b"\r\n", body.as_bytes()].concat();
    raw(rule, bytes, becomes)
}

/// The same with a body of five bytes behind these lines.
fn five(rule: &'static str, lines: impl AsRef<[u8]>, becomes: Becomes) -> Row {
    ok(
        rule,
        [b"Content-Length: 5\r\n", lines.as_ref()].concat(),
        "hello",
        becomes,
    )
}

/// An empty answer with this first line.
fn line(rule: &'static str, line: impl AsRef<[u8]>, becomes: Becomes) -> Row {
    raw(
        rule,
        [line.as_ref(), b"\r\nContent-Length: 0\r\n\r\n"].concat(),
        becomes,
    )
}

fn chunked(rule: &'static str, body: &str, becomes: Becomes) -> Row {
    ok(rule, "Transfer-Encoding: chunked\r\n", body, becomes)
}

fn hello(fields: &[(&'static str, &'static str)]) -> Becomes {
    Whole(200, fields.to_vec(), b"hello".to_vec())
}

fn empty(status: u16) -> Becomes {
    Whole(status, Vec::new(), Vec::new())
}

/// Every row.
pub(super) fn all() -> Vec<Row> {
    [heads(), lengths(), chunks(), bodiless()]
        .into_iter()
        .flatten()
        .collect()
}

// A table is read by its rows.
#[rustfmt::skip]
fn heads() -> Vec<Row> {
    let mut rows = vec![
        five("9112 4", "", hello(&[])),
        line("9112 4", "HTTP/1.1 200 ", empty(200)),
        line("9112 4", "HTTP/1.1 200", empty(200)),
        line("9112 4", "HTTP/1.1 200 All is well", empty(200)),
        line("9112 4", b"HTTP/1.1 200 \xe4", empty(200)),
        line("9110 15", "HTTP/1.1 299 x", empty(299)),
        line("9110 15", "HTTP/1.1 999 x", empty(999)),
        line("9112 2.3", "HTTP/1.0 200 OK", empty(200)).forsaken(),
        line("9112 9.3", "HTTP/1.0 200 OK\r\nConnection: keep-alive", empty(200)),
        line("9112 9.6", "HTTP/1.1 200 OK\r\nConnection: close", empty(200)).forsaken(),
        raw("9112 2.2", "HTTP/1.1 200 OK\nContent-Length: 5\n\nhello", hello(&[])),
        // Fields.
        five("9110 5.5", "x-a: \t 1 \t\r\n", hello(&[("x-a", "1")])),
        five("9110 5.5", b"x-a: \xe4\r\n", hello(&[("x-a", "\u{e4}")])),
        five("9110 5.1", "Transfer_Encoding: chunked\r\n", hello(&[("transfer-encoding", "")])),
        five("9110 7.6.1", "Connection: x-a\r\nx-a: 1\r\nx-b: 2\r\n", hello(&[("x-a", ""), ("x-b", "2")])),
        five("9110 7.6.1", b"Connection: x-a, \xff\r\nx-a: 1\r\n", hello(&[("x-a", "")])),
        five("9110 7.6.1", "Connection: set-cookie\r\nSet-Cookie: a=b\r\n", hello(&[("set-cookie", "")])),
        five("9110 7.6.1", "Connection: content-length\r\n", hello(&[("content-length", "5"), ("connection", "")])),
        five("9110 7.6.1", "Keep-Alive: timeout=5\r\nProxy-Connection: close\r\nUpgrade: h2c\r\n", hello(&[("keep-alive", ""), ("proxy-connection", ""), ("upgrade", "")])),
        five("9112 2.2", "x-a: 1\nx-b: 2\r\n", hello(&[("x-a", "1"), ("x-b", "2")])),
        five("9112 5.2", "x-a: 1\r\n 2\r\n", Bad),
        five("9112 5.2", "x-a: 1\r\n\t2\r\n", Bad),
        five("9112 2.2", "x-a: 1\rx-b: 2\r\n", Bad),
        five("9112 2.2", "x-a: 1\r\r\n", Bad),
        five("9110 5.5", "x-a: 1\0\r\n", Bad),
        five("9112 5.1", "x-a : 1\r\n", Bad),
        five("9112 5.1", "x a: 1\r\n", Bad),
        five("9112 5", "x-a\r\n", Bad),
        five("9112 5", ": 1\r\n", Bad),
        five("9112 5.1", "Transfer-Encoding : chunked\r\n", Bad),
        five("9110 5.4", "x: 1\r\n".repeat(200), Bad),
        five("9110 5.4", format!("x: {}\r\n", "x".repeat(70_000)), Bad),
        raw("9112 2.2", "HTTP/1.1 200 OK\r\n Content-Length: 5\r\n\r\nhello", Bad),
        // No answers.
        raw("9112 4", "hello\r\n\r\n", Bad),
        raw("9112 4", "SSH-2.0-OpenSSH_9.2\r\n\r\n", Bad),
        raw("9112 4", "GET / HTTP/1.1\r\nHost: reviews\r\n\r\n", Bad),
        raw("9112 4", b"\x15\x03\x01\x00\x02\x02\x0a", Bad),
        raw("9110 15.2.2", "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n", Bad),
    ];
    for version in ["HTTP/2.0", "HTTP/0.9", "HTTP/1.2", "HTTP/1", "http/1.1", "ICY", "HTTP/1.1\t", "HTTP/11"] {
        rows.push(line("9112 2.3", format!("{version} 200 OK"), Bad));
    }
    for status in ["", "20", "2000", "20x", "-20", "+200", "0x8", "099", "000", " 200", "2 0"] {
        rows.push(line("9112 4", format!("HTTP/1.1 {status} OK"), Bad));
    }
    for reason in ["a\rb", "a\0b", "a\u{7f}"] {
        rows.push(line("9112 4", format!("HTTP/1.1 200 {reason}"), Bad));
    }
    rows
}

// A table is read by its rows.
#[rustfmt::skip]
fn lengths() -> Vec<Row> {
    let mut rows = vec![
        ok("9112 6.3", "Content-Length: 5\r\nContent-Length: 5\r\n", "hello", hello(&[("content-length", "5")])),
        ok("9112 6.3", "Content-Length: 5, 5\r\n", "hello", hello(&[("content-length", "5")])),
        ok("9112 6.3", "Content-Length: 5,5,5\r\n", "hello", hello(&[("content-length", "5")])),
        ok("9110 8.6", "Content-Length: 005\r\n", "hello", hello(&[])),
        ok("9112 6.3", "Content-Length: 5\r\nContent-Length: 05\r\n", "hello", hello(&[("content-length", "5")])),
        ok("9112 6.3", "Content-Length: 5\r\nContent-Length: 6\r\n", "hello!", Bad),
        ok("9112 6.3", "Content-Length: 5, 6\r\n", "hello!", Bad),
        ok("9112 6.3", "Content-Length: 5\r\nContent-Length: five\r\n", "hello", Bad),
        ok("9112 6.3", "Content-Length: 5\r\nContent-Length:\r\n", "hello", Bad),
        // Nothing tells the length: it is the connection's end, and the caller gets it told.
        ok("9112 6.3", "", "hello", hello(&[])).closed(),
        ok("9112 6.3", "x-a: 1\r\n", "", empty(200)).closed(),
        raw("9112 6.3", "HTTP/1.0 200 OK\r\n\r\nhello", hello(&[("connection", "")])).closed(),
        raw("9112 6.3", "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n\r\nhello", hello(&[])).closed(),
        raw("9112 6.3", "HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello", hello(&[("content-length", "5")])).forsaken(),
        // Cut.
        ok("9112 8", "Content-Length: 5\r\n", "hell", Broken).closed(),
        ok("9112 8", "Content-Length: 5\r\n", "", Broken).closed(),
        // Bytes behind the end are nobody's: the connection takes no other request.
        five("9112 6.3", "", hello(&[])).with("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nother").forsaken(),
        five("9112 6.3", "", hello(&[])).with("noise").forsaken(),
        five("9112 6.3", "", hello(&[])).with("\r\n").forsaken(),
        five("9112 6.3", "", hello(&[])).with("\0").forsaken(),
    ];
    for length in ["-5", "+5", "0x5", "5h", "5 5", "5;", "\"5\"", "", ",", "five", "5.0", "18446744073709551616", "99999999999999999999999999"] {
        rows.push(ok("9110 8.6", format!("Content-Length: {length}\r\n"), "hello", Bad));
    }
    rows
}

// A table is read by its rows.
#[rustfmt::skip]
fn chunks() -> Vec<Row> {
    let whole = "5\r\nhello\r\n0\r\n\r\n";
    let in_chunks = || hello(&[("transfer-encoding", "chunked"), ("content-length", "")]);
    let mut rows = vec![
        chunked("9112 7.1", whole, in_chunks()),
        chunked("9112 7.1", "5;a=\"b\"\r\nhello\r\n0;c\r\n\r\n", in_chunks()),
        chunked("9112 7.1", "0005\r\nhello\r\n000\r\n\r\n", in_chunks()),
        chunked("9112 7.1.2", "5\r\nhello\r\n0\r\nx-sum: 1\r\n\r\n", in_chunks()),
        chunked("9110 6.5.1", "5\r\nhello\r\n0\r\nContent-Length: 7\r\nTransfer-Encoding: gzip\r\nSet-Cookie: a=b\r\n\r\n", Whole(200, vec![("set-cookie", "")], b"hello".to_vec())),
        ok("9112 7", "Transfer-Encoding: Chunked\r\n", whole, in_chunks()),
        ok("9110 7.6.1", "Transfer-Encoding: chunked\r\nConnection: transfer-encoding\r\n", whole, in_chunks()),
        // Both framings (section 6.3): the coding counts, the length goes, and so does the connection.
        ok("9112 6.3", "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", whole, in_chunks()).forsaken(),
        ok("9112 6.3", "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", whole, in_chunks()).forsaken(),
        ok("9112 6.3", "Content-Length: 5\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n", whole, in_chunks()).forsaken(),
        ok("9112 6.3", "Content-Length: five\r\nTransfer-Encoding: chunked\r\n", whole, in_chunks()).forsaken(),
        ok("9112 6.1", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", whole, Bad),
        raw("9112 6.1", format!("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{whole}"), Bad),
        raw("9112 6.1", format!("HTTP/1.0 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n{whole}"), Bad),
        chunked("9112 7.1", whole, in_chunks()).with("noise").forsaken(),
    ];
    for coding in ["identity", "gzip", "gzip, chunked", "chunked, gzip", "chunked, chunked", "xchunked", "", "chunked;", "chunked,", "\u{b}chunked", "chunked\0"] {
        rows.push(ok("9112 6.1", format!("Transfer-Encoding: {coding}\r\n"), whole, Bad));
    }
    for body in ["-5\r\nhello\r\n0\r\n\r\n", "0x5\r\nhello\r\n0\r\n\r\n", " 5\r\nhello\r\n0\r\n\r\n", "5\nhello\r\n0\r\n\r\n", "5;\nhello\r\n0\r\n\r\n", "5;a\rb\r\nhello\r\n0\r\n\r\n", "5\r\nhello0\r\n\r\n", "5\r\nhello\n0\r\n\r\n", "4\r\nhello\r\n0\r\n\r\n", "6\r\nhello\r\n0\r\n\r\n", "5\r\nhello\r\n0\n\r\n", "5\r\nhello\r\n0\r\n\nHTTP/1.1 200 OK\r\n\r\n", "5\r\nhello\r\n0\r\nx sum: 1\r\n\r\n", "5\r\nhello\r\n0\r\nHTTP/1.1 200 OK\r\n\r\n", "10000000000000005\r\nhello\r\n0\r\n\r\n", "\r\nhello\r\n0\r\n\r\n"] {
        rows.push(chunked("9112 7.1", body, Broken));
    }
    for body in ["5\r\nhello\r\n0\r\n", "5\r\nhello\r\n", "5\r\nhe", "5", ""] {
        rows.push(chunked("9112 8", body, Broken).closed());
    }
    rows
}

// A table is read by its rows.
#[rustfmt::skip]
fn bodiless() -> Vec<Row> {
    let none = |fields: &[(&'static str, &'static str)]| Whole(200, fields.to_vec(), Vec::new());
    vec![
        // Answers to HEAD say what GET would bring, and bring nothing.
        ok("9110 9.3.2", "Content-Length: 5\r\n", "", none(&[("content-length", "5")])).to("HEAD"),
        ok("9110 9.3.2", "Transfer-Encoding: chunked\r\n", "", none(&[])).to("HEAD"),
        ok("9110 9.3.2", "", "", none(&[])).to("HEAD"),
        ok("9110 9.3.2", "Content-Length: 5, 5\r\n", "", none(&[("content-length", "5")])).to("HEAD"),
        ok("9110 9.3.2", "Content-Length: 5\r\nContent-Length: 5\r\n", "", none(&[("content-length", "5")])).to("HEAD"),
        ok("9110 9.3.2", "Content-Length: 5\r\nContent-Length: 6\r\n", "", Bad).to("HEAD"),
        ok("9110 9.3.2", "Content-Length: five\r\n", "", Bad).to("HEAD"),
        ok("9110 9.3.2", "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", "", none(&[("content-length", "")])).to("HEAD").forsaken(),
        five("9110 9.3.2", "", none(&[("content-length", "5")])).to("HEAD").forsaken(),
        ok("9110 9.3.2", "Transfer-Encoding: chunked\r\n", "5\r\nhello\r\n0\r\n\r\n", none(&[])).to("HEAD").forsaken(),
        // 204 and 304 have no body, whatever their heads say.
        raw("9110 15.3.5", "HTTP/1.1 204 No Content\r\n\r\n", empty(204)),
        raw("9110 8.6", "HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", Whole(204, vec![("content-length", "")], Vec::new())),
        raw("9110 8.6", "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nhello", Whole(204, vec![("content-length", "")], Vec::new())).forsaken(),
        raw("9112 6.1", "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n", Whole(204, vec![("transfer-encoding", "")], Vec::new())),
        raw("9112 6.1", "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", empty(204)).forsaken(),
        raw("9110 15.4.5", "HTTP/1.1 304 Not Modified\r\n\r\n", empty(304)),
        raw("9110 15.4.5", "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", empty(304)),
        raw("9110 15.4.5", "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\nhello", empty(304)).forsaken(),
        raw("9110 15.4.5", "HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n", empty(304)),
        raw("9110 15.3.6", "HTTP/1.1 205 Reset Content\r\nContent-Length: 0\r\n\r\n", empty(205)),
        // Interim answers, and a final one behind them.
        raw("9110 15.2", "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", hello(&[])),
        raw("9110 15.2", "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", hello(&[("link", "")])),
        raw("9110 15.2", "HTTP/1.1 103 Early Hints\r\nContent-Length: 5\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", hello(&[])),
        raw("9110 15.2", "HTTP/1.1 199 x\r\nx a: 1\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", Bad),
    ]
}

impl Row {
    /// The same with bytes behind its end.
    fn with(mut self, more: &str) -> Self {
        self.bytes.extend_from_slice(more.as_bytes());
        self
    }
}

/// What is wrong with what became of a row; nothing if it came as it must.
async fn judge(row: &Row, upstream: &Upstream, sidecar: &Sidecar) -> Option<String> {
    upstream.next([match row.closes {
        true => Behaviour::Raw(row.bytes.clone()),
        false => Behaviour::RawKept(row.bytes.clone()),
    }]);
    let mut connection = sidecar.client().connect().await;
    let ask = Ask::new(row.method, "/").host("reviews");
    let reply = within("an answer or an end", connection.send(&ask)).await;
    let met = upstream.last().connection;
    let problem = match (&row.becomes, reply) {
        (Broken, Err(_)) => None,
        (Broken, Ok(reply)) if reply.body.cut.is_some() || reply.reason() == Some("upstream-protocol") => {
            None
        }
        (Bad, Ok(reply)) if (reply.status(), reply.reason()) == (502, Some("upstream-protocol")) => None,
        (Whole(status, fields, body), Ok(reply)) if reply.status() == *status => {
            let cut = reply.body.bytes != *body || reply.body.cut.is_some();
            let problem = cut.then(|| format!("the body is {:?}", reply.body));
            problem.or_else(|| super::differs(&reply.head, fields))
        }
        (_, reply) => Some(format!("{reply:?}")),
    };
    if problem.is_some() {
        return problem;
    }
    // The next request of another caller gets its own answer, by this connection only if nothing is in doubt.
    let next = within(
        "the next answer",
        sidecar.client().try_send(&Ask::get("/next").host("reviews")),
    )
    .await;
    match next {
        Ok(next) if next.status() == 200 && next.text() == "status 200\n" => {}
        next => return Some(format!("the next answer is {next:?}")),
    }
    let kept = upstream.last().connection == met;
    (kept != row.kept).then(|| format!("its connection was {}used again", if kept { "" } else { "not " }))
}

#[tokio::test]
async fn answers_come_as_they_must() {
    let upstream = Upstream::start("a").await;
    let file = simple("reviews", &[&upstream], "retry: { attempts: 1 }").to_string();
    let mut sidecar = Sidecar::start(SidecarSpec::text("a", &file).with("--workers", "1")).await;
    let mut problems = Vec::new();
    for row in all() {
        if let Some(problem) = judge(&row, &upstream, &sidecar).await {
            let bytes: String = row.bytes.iter().take(300).copied().map(char::from).collect();
            problems.push(format!(
                "{} to {} by {}\n    {problem}",
                bytes.escape_debug(),
                row.method,
                row.rule
            ));
        }
    }
    assert!(
        problems.is_empty(),
        "{} problems:\n{}",
        problems.len(),
        problems.join("\n")
    );
    assert!(sidecar.program().is_running());
}

#[tokio::test]
async fn an_answer_that_goes_on_with_what_is_no_chunk_is_the_upstream_s_fault() {
    let upstream = Upstream::start("a").await;
    let sidecar = Sidecar::of(simple("reviews", &[&upstream], "retry: { attempts: 1 }")).await;
    let bytes = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nno chunk\r\n";
    upstream.behave(Behaviour::RawKept(bytes.to_vec()));
    let _ = within(
        "an end",
        sidecar.client().try_send(&Ask::get("/").host("reviews")),
    )
    .await;
    let counted = [("reason", "upstream-protocol")];
    eventually("the reason to be counted", async || {
        (sidecar.metrics().await.sum("outrigger_requests_total", &counted) >= 1.0).then_some(())
    })
    .await;
}
