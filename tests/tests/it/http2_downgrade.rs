//! From HTTP/2 to HTTP/1.1: a request leaves as exactly one well-formed request, or not at all.
//!
//! The upstream reads what leaves strictly (`wire.rs`): a bare line feed, a body with two meanings, a name that is none
//! would end its connection and be seen here. Each row says what is sent and what must become of it.

use outrigger_tests::http2::frame::{self, code, flag};
use outrigger_tests::http2::{Caller, Reply, request};
use outrigger_tests::upstream::Received;
use outrigger_tests::wait::within;
use outrigger_tests::{Behaviour, Sidecar, Upstream, simple};

type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

/// What must become of a request.
enum Becomes {
    /// Reset for being malformed, or answered 400 by the sidecar; nothing reaches the upstream.
    Refused,
    /// One request with this first line and these fields, none of the name where the value is empty.
    One(&'static str, &'static [(&'static str, &'static str)]),
    /// Either of the two, as long as what arrives is one request with this first line.
    Either(&'static str),
}

use Becomes::{Either, One, Refused};

struct Row {
    what: String,
    fields: Pairs,
    body: Option<&'static [u8]>,
    trailers: Pairs,
    becomes: Becomes,
}

fn pairs(list: &[(&str, &str)]) -> Pairs {
    list.iter()
        .map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec()))
        .collect()
}

/// A GET with more fields.
fn get(more: &[(&str, &str)], becomes: Becomes) -> Row {
    let standard = pairs(&[
        (":method", "GET"),
        (":scheme", "http"),
        (":authority", "reviews"),
        (":path", "/a"),
    ]);
    Row {
        what: format!("GET with {more:?}"),
        fields: [standard, pairs(more)].concat(),
        body: None,
        trailers: Vec::new(),
        becomes,
    }
}

/// A request with these pseudo-headers in the place of the usual.
fn pseudo(changed: &[(&str, &str)], becomes: Becomes) -> Row {
    let mut row = get(&[], becomes);
    for (name, value) in changed {
        row.fields.retain(|(held, _)| held != name.as_bytes());
        // Pseudo-headers come first, `host` last.
        let place = if name.starts_with(':') {
            0
        } else {
            row.fields.len()
        };
        row.fields
            .insert(place, (name.as_bytes().to_vec(), value.as_bytes().to_vec()));
    }
    row.what = format!("{changed:?}");
    row
}

fn post(more: &[(&str, &str)], body: &'static [u8], becomes: Becomes) -> Row {
    let mut row = pseudo(&[(":method", "POST")], becomes);
    row.fields.extend(pairs(more));
    row.body = Some(body);
    row.what = format!("POST of {body:?} with {more:?}");
    row
}

const PLAIN: Becomes = One(
    "GET /a HTTP/1.1",
    &[
        ("host", "reviews"),
        ("transfer-encoding", ""),
        ("content-length", ""),
    ],
);
const POSTED: &str = "POST /a HTTP/1.1";

// A table is read by its rows.
#[rustfmt::skip]
fn names_and_values() -> Vec<Row> {
    let mut rows = vec![
        get(&[("x-a", "1"), ("x-b", "a: b; c=\"d\"")], One("GET /a HTTP/1.1", &[("x-a", "1"), ("x-b", "a: b; c=\"d\"")])),
        get(&[("x-empty", "")], PLAIN),
        get(&[("x-colon", ":")], PLAIN),
        get(&[("x-tab", "a\tb")], PLAIN),
    ];
    for name in ["", " ", "x y", " x", "x ", "x:", ":", "x:y", "x\r", "x\n", "x\r\nx-forged", "x\0", "X", "x-A", "x\u{e4}", "x\u{7f}", "(x)", "x,y", "x/y", "x\"", "host ", "content-length ", "transfer-encoding\t"] {
        rows.push(get(&[(name, "1")], Refused));
    }
    for value in ["\r", "\n", "\0", "a\rb", "a\nb", "a\r\n", "a\r\n\r\nGET /forged HTTP/1.1\r\nhost: reviews", "a\nx-forged: 1", "\u{0}a", " a", "a ", "\ta", "a\t", "\u{7f}"] {
        rows.push(get(&[("x", value)], Refused));
    }
    for name in ["cookie", "user-agent", "x-forwarded-for", "content-type"] {
        rows.push(get(&[(name, "a\r\nx-forged: 1")], Refused));
    }
    rows
}

// A table is read by its rows.
#[rustfmt::skip]
fn framing() -> Vec<Row> {
    let chunked = One(
        POSTED,
        &[("transfer-encoding", "chunked"), ("content-length", "")],
    );
    let long = One(POSTED, &[("content-length", "5"), ("transfer-encoding", "")]);
    let mut rows = vec![
        post(&[], b"hello", chunked),
        post(&[], b"0\r\n\r\nGET /forged HTTP/1.1\r\n\r\n", One(POSTED, &[("transfer-encoding", "chunked")])),
        post(&[("content-length", "5")], b"hello", long),
        post(&[("content-length", "5"), ("content-length", "5")], b"hello", Either(POSTED)),
        post(&[("content-length", "005")], b"hello", Either(POSTED)),
        post(&[("content-length", "0")], b"", One(POSTED, &[("content-length", "0")])),
        post(&[], b"", Either(POSTED)),
        get(&[("content-length", "0")], Either("GET /a HTTP/1.1")),
    ];
    let mut bodied = post(
        &[],
        b"hello",
        One("GET /a HTTP/1.1", &[("transfer-encoding", "chunked")]),
    );
    bodied.fields.retain(|(name, _)| name != b":method");
    bodied.fields.insert(0, (b":method".to_vec(), b"GET".to_vec()));
    bodied.what = "GET with a body".into();
    rows.push(bodied);
    for length in ["4", "6", "+5", "-5", "5 ", " 5", "5,5", "5, 5", "0x5", "5a", "", "five", "5.0", "18446744073709551621", "99999999999999999999999999"] {
        rows.push(post(&[("content-length", length)], b"hello", Refused));
    }
    for lengths in [["5", "6"], ["6", "5"], ["5", "0"], ["0", "5"], ["5", "+5"]] {
        rows.push(post(&[("content-length", lengths[0]), ("content-length", lengths[1])], b"hello", Refused));
    }
    for coding in ["chunked", "Chunked", "identity", "gzip, chunked", "xchunked", "chunked, chunked", ""] {
        rows.push(post(&[("transfer-encoding", coding)], b"0\r\n\r\n", Refused));
        rows.push(get(&[("transfer-encoding", coding)], Refused));
    }
    rows.push(post(&[("transfer-encoding", "chunked"), ("content-length", "5")], b"0\r\n\r\n", Refused));
    for (name, value) in [("connection", "close"), ("connection", "x-a"), ("connection", "transfer-encoding"), ("keep-alive", "timeout=5"), ("proxy-connection", "close"), ("upgrade", "websocket"), ("upgrade", "h2c"), ("te", "gzip"), ("te", "trailers, gzip"), ("te", "chunked")] {
        rows.push(get(&[(name, value)], Refused));
    }
    rows.push(get(&[("http2-settings", "AAMAAABkAAQCAAAAAAIAAAAA")], Either("GET /a HTTP/1.1")));
    rows.push(get(&[("expect", "100-continue")], Either("GET /a HTTP/1.1")));
    rows.push(get(&[("trailer", "x-sum")], One("GET /a HTTP/1.1", &[("trailer", "x-sum")])));
    rows.push(get(&[("te", "trailers")], One("GET /a HTTP/1.1", &[("te", "trailers")])));
    rows
}

// A table is read by its rows.
#[rustfmt::skip]
fn targets() -> Vec<Row> {
    let mut rows = vec![
        pseudo(&[(":path", "/")], One("GET / HTTP/1.1", &[("host", "reviews")])),
        pseudo(&[(":path", "/a?b=c&d=%20")], One("GET /a?b=c&d=%20 HTTP/1.1", &[])),
        pseudo(&[(":path", "//a")], One("GET /a HTTP/1.1", &[])),
        pseudo(&[(":path", "/a/../b")], One("GET /b HTTP/1.1", &[])),
        pseudo(&[(":path", "/http://ratings/")], One("GET /http:/ratings/ HTTP/1.1", &[])),
        // A fragment is none of the server's business: it goes, or the request does.
        pseudo(&[(":path", "/a#b")], Either("GET /a HTTP/1.1")),
        pseudo(&[(":method", "OPTIONS"), (":path", "*")], One("OPTIONS * HTTP/1.1", &[("host", "reviews")])),
        pseudo(&[(":scheme", "https")], PLAIN),
        pseudo(&[(":authority", "reviews:80")], Either("GET /a HTTP/1.1")),
        pseudo(&[(":authority", "REVIEWS")], Either("GET /a HTTP/1.1")),
        pseudo(&[("host", "reviews")], PLAIN),
        pseudo(&[("host", "Reviews")], One("GET /a HTTP/1.1", &[("host", "reviews")])),
    ];
    for path in ["", " ", "a", "*", "/a b", "/a HTTP/1.1\r\nx-forged: 1\r\n\r\n", "/a\r", "/a\n", "/a\0", "/a\t", "http://ratings/", "http://reviews/a", "//\r\n", "reviews:80", "\\a", "/a\u{7f}"] {
        rows.push(pseudo(&[(":path", path)], Refused));
    }
    // RFC 9113 section 8.3.1: a path of a query alone is none; what leaves must begin with a slash.
    rows.push(pseudo(&[(":path", "?a=b")], Either("GET /?a=b HTTP/1.1")));
    for authority in ["", " ", "user@reviews", "user:secret@reviews", "reviews,ratings", "reviews ratings", "reviews/", "reviews/a", "reviews?a", "reviews#a", "reviews\r\nx-forged: 1", "reviews\0", "http://reviews", "reviews:port", "reviews:80:80", "[::1", "@reviews", "reviews\\ratings"] {
        rows.push(pseudo(&[(":authority", authority)], Refused));
    }
    for host in ["ratings", "reviews ", "reviews:81", "reviews, ratings", "", "user@reviews"] {
        rows.push(pseudo(&[("host", host)], Refused));
    }
    for method in ["", " ", "GE T", "GET ", " GET", "GET /forged HTTP/1.1\r\n\r\nGET", "G\r\nET", "G\0T", "GET:", "G(T", "G\u{e4}T"] {
        rows.push(pseudo(&[(":method", method)], Refused));
    }
    for scheme in ["", " ", "ht tp", "http\r\nx: y", "http://", "http:", "\0"] {
        rows.push(pseudo(&[(":scheme", scheme)], Refused));
    }
    rows.push(pseudo(&[(":method", "get")], One("get /a HTTP/1.1", &[])));
    rows.push(pseudo(&[(":method", "BREW")], One("BREW /a HTTP/1.1", &[])));
    // No scheme begins with a digit, but HTTP/1.1 does not say it.
    rows.push(pseudo(&[(":scheme", "1http")], Either("GET /a HTTP/1.1")));
    let mut twice = pseudo(&[("host", "reviews")], Either("GET /a HTTP/1.1"));
    twice.fields.push((b"host".to_vec(), b"reviews".to_vec()));
    rows.push(twice);
    let mut twice = pseudo(&[("host", "reviews")], Refused);
    twice.fields.push((b"host".to_vec(), b"ratings".to_vec()));
    rows.push(twice);
    let mut without = pseudo(&[("host", "reviews")], PLAIN);
    without.fields.retain(|(name, _)| name != b":authority");
    rows.push(without);
    let mut without = pseudo(&[], Refused);
    without.fields.retain(|(name, _)| name != b":authority");
    without.what = "neither :authority nor Host".into();
    rows.push(without);
    rows
}

// A table is read by its rows.
#[rustfmt::skip]
fn crumbs_and_trailers() -> Vec<Row> {
    let crumbs = [
        ("cookie", "a=1"),
        ("x", "y"),
        ("cookie", "b=2; c=3"),
        ("cookie", "d=4"),
    ];
    let mut summed = post(
        &[("trailer", "x-sum")],
        b"hello",
        One(POSTED, &[("transfer-encoding", "chunked")]),
    );
    summed.trailers = pairs(&[("x-sum", "5")]);
    let mut rows = vec![
        get(&crumbs, One("GET /a HTTP/1.1", &[("cookie", "a=1; b=2; c=3; d=4"), ("x", "y")])),
        get(&[("cookie", "a=1")], One("GET /a HTTP/1.1", &[("cookie", "a=1")])),
        summed,
    ];
    for (name, value) in [("X-Sum", "1"), ("x sum", "1"), ("x-sum", "1\r\nx-forged: 1"), ("x-sum\r\nx-forged", "1"), ("transfer-encoding", "chunked"), ("connection", "close")] {
        let mut row = post(&[], b"hello", Refused);
        row.trailers = pairs(&[(name, value)]);
        row.what = format!("trailers {name:?}: {value:?}");
        rows.push(row);
    }
    for (name, value) in [("content-length", "0"), ("host", "ratings"), ("content-length", "+5"), ("authorization", "x")] {
        // RFC 9110 section 6.5.1: what frames or routes has no meaning in trailers. It may be left out.
        let mut row = post(&[], b"hello", Either(POSTED));
        row.trailers = pairs(&[(name, value)]);
        row.what = format!("trailers {name:?}: {value:?}");
        rows.push(row);
    }
    rows
}

/// Sends a row on a connection of its own; the answer on its stream, or the code of the connection's end.
async fn send(sidecar: &Sidecar, row: &Row) -> Reply {
    let mut caller = Caller::open(sidecar.outbound()).await.unwrap();
    let ends = |is_last: bool| if is_last { flag::END_STREAM } else { 0 };
    let last = row.trailers.is_empty();
    let mut bytes = frame::headers(1, ends(row.body.is_none()), &row.fields);
    if let Some(body) = row.body {
        bytes.extend(frame::data(1, ends(last), body));
    }
    if !last {
        bytes.extend(frame::headers(1, flag::END_STREAM, &row.trailers));
    }
    caller.raw.send(&bytes).await.unwrap();
    match within(&row.what, caller.reply(1)).await {
        Ok(reply) => reply,
        Err(_) => Reply {
            reset: caller.goaway.map(|(_, code)| code),
            ..Reply::default()
        },
    }
}

fn judge(row: &Row, reply: &Reply, arrived: &[Received], cut: u64) -> Result<(), String> {
    let refused = reply.reset == Some(code::PROTOCOL_ERROR) || reply.status() == 400 && reply.header("x-outrigger-reason") == Some("bad-request")
        // A host that is well-formed and nobody's.
        || reply.status() == 404 && reply.header("x-outrigger-reason") == Some("no-service");
    let told = || {
        format!(
            "status {}, reset {:?}, arrived {arrived:?}",
            reply.status(),
            reply.reset
        )
    };
    let whole: Vec<_> = arrived
        .iter()
        .filter(|received| received.body.cut.is_none())
        .collect();
    if cut > 0 {
        return Err(format!("the upstream could not read it; {}", told()));
    }
    let (first_line, fields): (_, &[(&str, &str)]) = match row.becomes {
        // A head may have left before the fault came behind it: it must not have become a whole request.
        Refused if refused && whole.is_empty() => return Ok(()),
        Refused => return Err(told()),
        Either(_) if refused && whole.is_empty() => return Ok(()),
        Either(first_line) => (first_line, &[]),
        One(first_line, fields) => (first_line, fields),
    };
    let [received] = arrived else { return Err(told()) };
    let body = row.body.unwrap_or_default();
    if reply.status() != 200 || received.head.first_line != first_line || received.body.bytes != body {
        return Err(told());
    }
    for (name, value) in fields {
        let values: Vec<_> = received.head.all(name).collect();
        let expected: &[&str] = if value.is_empty() { &[] } else { &[value] };
        if values != expected {
            return Err(format!("{name}: {values:?}"));
        }
    }
    let forged = received.head.header("x-forged").is_some() || received.head.all("host").count() != 1;
    match forged {
        true => Err(told()),
        false => Ok(()),
    }
}

#[tokio::test]
async fn what_comes_by_http2_leaves_as_one_http1_request_or_not_at_all() {
    let upstream = Upstream::start("a").await;
    upstream.behave(Behaviour::Answer(outrigger_tests::Answer::ok()));
    let sidecar = Sidecar::of(simple("reviews", &[&upstream], "timeout: { request: 5s }")).await;
    let rows: Vec<Row> = [names_and_values(), framing(), targets(), crumbs_and_trailers()]
        .into_iter()
        .flatten()
        .collect();
    let (total, mut complaints) = (rows.len(), Vec::new());
    for row in rows {
        let (before, unread) = (upstream.requests(), upstream.unreadable());
        let reply = send(&sidecar, &row).await;
        // What arrived since: the upstream has read it by now, because it is asked once more on purpose.
        let seal = sidecar.client().get("reviews", "/seal").await;
        assert_eq!(seal.status(), 200);
        let arrived: Vec<_> = upstream
            .received()
            .into_iter()
            .filter(|received| received.target() != "/seal")
            .collect();
        let new = usize::try_from(upstream.requests() - before - 1).unwrap();
        let arrived = &arrived[arrived.len() - new.min(arrived.len())..];
        if let Err(what) = judge(&row, &reply, arrived, upstream.unreadable() - unread) {
            complaints.push(format!("{}: {what}", row.what));
        }
    }
    assert!(
        complaints.is_empty(),
        "{} of {total} wrong:\n{}",
        complaints.len(),
        complaints.join("\n")
    );
    assert!(total > 150, "{total} rows");
}

#[tokio::test]
async fn trailers_cross_to_http1_and_back() {
    let upstream = Upstream::start("a").await;
    let sidecar = Sidecar::of(simple("reviews", &[&upstream], "")).await;
    let answer = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n5\r\nhello\r\n0\r\nx-sum: 5\r\n\r\n";
    upstream.behave(Behaviour::RawKept(answer.into()));
    let mut caller = Caller::open(sidecar.outbound()).await.unwrap();
    let stream = caller.stream();
    let fields = [
        request("POST", "reviews", "/"),
        vec![("te".into(), "trailers".into())],
    ]
    .concat();
    let bytes = [
        frame::headers(stream, 0, &fields),
        frame::data(stream, 0, "hello"),
        frame::headers(stream, flag::END_STREAM, &[("x-sent", "5")]),
    ];
    caller.raw.send(&bytes.concat()).await.unwrap();
    let reply = within("the answer", caller.reply(stream)).await.unwrap();
    assert_eq!((reply.status(), reply.body.as_slice()), (200, &b"hello"[..]));
    assert_eq!(reply.trailers, [("x-sum".to_owned(), "5".to_owned())]);
    assert_eq!(reply.header("transfer-encoding"), None);
    assert_eq!(reply.header("connection"), None);
    let received = upstream.last();
    assert_eq!(received.body.bytes, b"hello");
}
