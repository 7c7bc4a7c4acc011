//! What callers send, and what must become of it.

/// What must become of what a caller sends.
#[derive(Clone)]
pub(super) enum Becomes {
    /// Answered 4xx, 501 or 505, and the connection is closed. Nothing reaches the upstream.
    Refused,
    /// The body has a fault that shows once the head is on its way: answered 400 and closed; if the upstream sees it at
    /// all, it sees it break off.
    Malformed,
    /// It ends before its end. Nothing need be answered; if the upstream sees it at all, it sees it break off.
    CutShort,
    /// One request with this first line, these fields (an empty value: none of that name) and this body.
    One(&'static str, Vec<(&'static str, &'static str)>, Vec<u8>),
}

use Becomes::{CutShort, Malformed, Refused};

pub(super) struct Row {
    /// The rule that judges it.
    pub(super) rule: &'static str,
    pub(super) bytes: Vec<u8>,
    pub(super) becomes: Becomes,
    /// Whether the connection ends after it.
    pub(super) last: bool,
    /// Whether what would follow would be a part of it.
    pub(super) alone: bool,
}

impl Row {
    fn last(mut self) -> Self {
        self.last = true;
        self
    }

    fn alone(mut self) -> Self {
        self.alone = true;
        self
    }
}

fn raw(rule: &'static str, bytes: impl AsRef<[u8]>, becomes: Becomes) -> Row {
    Row {
        rule,
        bytes: bytes.as_ref().to_vec(),
        becomes,
        last: false,
        alone: false,
    }
}

/// A request with this first line and a good `Host`.
fn line(rule: &'static str, line: impl AsRef<[u8]>, becomes: Becomes) -> Row {
    raw(
        rule,
        [line.as_ref(), b"\r\nHost: reviews\r\n\r\n"].concat(),
        becomes,
    )
}

/// A GET with these lines behind its `Host`, each with its end.
fn get(rule: &'static str, lines: impl AsRef<[u8]>, becomes: Becomes) -> Row {
    host(rule, [b"Host: reviews\r\n", lines.as_ref()].concat(), becomes)
}

/// A GET with these lines, each with its end.
fn host(rule: &'static str, lines: impl AsRef<[u8]>, becomes: Becomes) -> Row {
    raw(
        rule,
        [b"GET /a HTTP/1.1\r\n", lines.as_ref(), b"\r\n"].concat(),
        becomes,
    )
}

/// A POST with these lines, each with its end, and this body.
fn post(rule: &'static str, lines: impl AsRef<[u8]>, body: impl AsRef<[u8]>, becomes: Becomes) -> Row {
    let head = [b"POST /a HTTP/1.1\r\nHost: reviews\r\n", lines.as_ref(), b"\r\n"].concat();
    raw(rule, [&head, body.as_ref()].concat(), becomes)
}

/// A POST with a body in chunks.
fn chunked(rule: &'static str, body: impl AsRef<[u8]>, becomes: Becomes) -> Row {
    post(rule, "Transfer-Encoding: chunked\r\n", body, becomes)
}

/// One GET without a body, with these fields.
fn one(fields: &[(&'static str, &'static str)]) -> Becomes {
    let bodiless = [
        ("host", "reviews"),
        ("content-length", ""),
        ("transfer-encoding", ""),
    ];
    let named = |name: &str| fields.iter().any(|(other, _)| *other == name);
    let fields = [
        bodiless.into_iter().filter(|(name, _)| !named(name)).collect(),
        fields.to_vec(),
    ]
    .concat();
    Becomes::One("GET /a HTTP/1.1", fields, Vec::new())
}

/// One request with this first line and no body.
fn as_line(line: &'static str) -> Becomes {
    Becomes::One(
        line,
        vec![("host", "reviews"), ("transfer-encoding", "")],
        Vec::new(),
    )
}

/// One POST with this length and body.
fn long(length: &'static str, body: &str) -> Becomes {
    let fields = vec![("content-length", length), ("transfer-encoding", "")];
    Becomes::One("POST /a HTTP/1.1", fields, body.into())
}

/// One POST in chunks with this body.
fn in_chunks(body: impl AsRef<[u8]>) -> Becomes {
    let fields = vec![("transfer-encoding", "chunked"), ("content-length", "")];
    Becomes::One("POST /a HTTP/1.1", fields, body.as_ref().to_vec())
}

/// Every row.
pub(super) fn all() -> Vec<Row> {
    [
        first_lines(),
        fields(),
        hosts(),
        lengths(),
        codings(),
        chunks(),
        trailers(),
        connections(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

const HOST_LINE: &str = "Host: reviews\r\n\r\n";

// A table is read by its rows.
#[rustfmt::skip]
pub(super) fn first_lines() -> Vec<Row> {
    let mut rows = vec![
        line("9112 3", "GET /a HTTP/1.1", as_line("GET /a HTTP/1.1")),
        // Versions.
        line("9112 2.3", "GET /a HTTP/1.0", as_line("GET /a HTTP/1.1")).last(),
        line("9112 9.3", "GET /a HTTP/1.0\r\nConnection: keep-alive", as_line("GET /a HTTP/1.1")),
        line("9110 9.1", "get /a HTTP/1.1", as_line("get /a HTTP/1.1")),
        line("9110 9.1", "BREW /a HTTP/1.1", as_line("BREW /a HTTP/1.1")),
        line("9110 5.6.2", "A!#$%&'*+-.^_`|~9 /a HTTP/1.1", as_line("A!#$%&'*+-.^_`|~9 /a HTTP/1.1")),
        line("9110 9.3.2", "HEAD /a HTTP/1.1", as_line("HEAD /a HTTP/1.1")),
        line("9110 9.3.8", "TRACE /a HTTP/1.1", as_line("TRACE /a HTTP/1.1")),
        line("9110 9.3.5", "DELETE /a HTTP/1.1", as_line("DELETE /a HTTP/1.1")),
        // Blank lines before it (section 2.2: at least one is to be ignored).
        raw("9112 2.2", format!("\r\nGET /a HTTP/1.1\r\n{HOST_LINE}"), as_line("GET /a HTTP/1.1")),
        raw("9112 2.2", format!("\r\n\r\n\r\nGET /a HTTP/1.1\r\n{HOST_LINE}"), as_line("GET /a HTTP/1.1")),
        raw("9112 2.2", format!("\n\nGET /a HTTP/1.1\r\n{HOST_LINE}"), as_line("GET /a HTTP/1.1")),
        // A bare line feed may end a line (section 2.2); what leaves has none.
        raw("9112 2.2", "GET /a HTTP/1.1\nHost: reviews\n\n", as_line("GET /a HTTP/1.1")),
        raw("9112 2.2", "GET /a HTTP/1.1\r\nHost: reviews\n\r\n", as_line("GET /a HTTP/1.1")),
        // Forms of the target (section 3.2).
        line("9112 3.2.1", "GET / HTTP/1.1", as_line("GET / HTTP/1.1")),
        line("9112 3.2.1", "GET /a?b=c&d HTTP/1.1", as_line("GET /a?b=c&d HTTP/1.1")),
        line("9112 3.2.1", "GET /a?b?c HTTP/1.1", as_line("GET /a?b?c HTTP/1.1")),
        line("9112 3.2.1", "GET /http://ratings/ HTTP/1.1", as_line("GET /http:/ratings/ HTTP/1.1")),
        line("9112 3.2.2", "GET http://reviews/x HTTP/1.1", as_line("GET /x HTTP/1.1")),
        line("9112 3.2.2", "GET http://reviews HTTP/1.1", as_line("GET / HTTP/1.1")),
        line("9112 3.2.2", "GET HTTP://reviews/x HTTP/1.1", as_line("GET /x HTTP/1.1")),
        line("9112 3.2.4", "OPTIONS * HTTP/1.1", as_line("OPTIONS * HTTP/1.1")),
        // The RFC has `*`; the http crate gives a URL without a path the path `/`: a known difference.
        line("9112 3.2.4", "OPTIONS http://reviews HTTP/1.1", as_line("OPTIONS / HTTP/1.1")),
        line("9112 3.2.4", "OPTIONS http://reviews/ HTTP/1.1", as_line("OPTIONS / HTTP/1.1")),
        line("9112 3.2.4", "OPTIONS http://reviews?a HTTP/1.1", as_line("OPTIONS /?a HTTP/1.1")),
        // hyper drops a fragment before anybody sees it: a known difference.
        line("9112 3.2", "GET /x#b HTTP/1.1", as_line("GET /x HTTP/1.1")),
    ];
    for version in ["HTTP/2.0", "HTTP/3.0", "HTTP/0.9", "HTTP/1.2", "HTTP/1.10", "HTTP/01.1", "HTTP/1", "HTTP/1.", "HTTP/1.1.1", "HTTP/11", "http/1.1", "Http/1.1", "HTTPS/1.1", "HTTP 1.1", "HTTP/1,1", "HTTP/+1.1", "HTTP/1.1 ", "HTTP/1.1\t", "ICY/1.1", "\u{ff28}TTP/1.1"] {
        rows.push(line("9112 2.3", format!("GET /a {version}"), Refused));
    }
    for method in ["", " ", "GE T", "GET:", "G(T", "G\"T", "G/T", "G,T", "G;T", "G[T", "G{T", "G@T", "G\0T", "G\rT", "G\u{b}T", "G\u{e4}T", "\u{feff}GET", "<GET>"] {
        rows.push(line("9110 5.6.2", format!("{method} /a HTTP/1.1"), Refused));
    }
    for target in ["", "a", "?a=b", "*", "reviews:80", "reviews", "reviews/a", "//", ":80", "@", "/a b", "/a\u{7f}", "/a\0", "/a\u{1}", "/a\t", "/a\rb", "/a\u{b}", "/\u{e4}", "\\a", "/a\\b", "http:/a", "http:///a", "http://", "http://reviews:port/", "http://user@reviews/", "http://user:secret@reviews/", "http://reviews@ratings/", "http://reviews,ratings/", "http://reviews ratings/", "http://reviews\\@ratings/", "http://[::1/", "ftp://reviews/", "file:///a", "ws://reviews/", "javascript:a", "urn:a", "http://reviews:80:80/", "http://:80/", "/%", "/%0", "/%zz", "/../a"] {
        // `//` is the root once it has its one form.
        let becomes = if target == "//" { as_line("GET / HTTP/1.1") } else { Refused };
        rows.push(line("9112 3.2", format!("GET {target} HTTP/1.1"), becomes));
    }
    rows.extend([
        line("9112 3.2", b"GET /\xff HTTP/1.1", Refused),
        line("9112 3.2", b"GET /\xc0\xaf HTTP/1.1", Refused),
        // Blanks: a parser that is lenient here reads another target than the one before it.
        line("9112 3", "GET  /a HTTP/1.1", Refused),
        line("9112 3", "GET /a  HTTP/1.1", Refused),
        line("9112 3", "GET\t/a\tHTTP/1.1", Refused),
        line("9112 3", " GET /a HTTP/1.1", Refused),
        line("9112 3", "GET /a", Refused),
        line("9112 3", "GET", Refused),
        line("9112 3", "GET /a HTTP/1.1 HTTP/1.1", Refused),
        line("9112 3", "GET /a HTTP/1.1\r", Refused),
        line("9112 3", "GET /a\u{a0}HTTP/1.1", Refused),
        raw("9112 3", format!("GET /a HTTP/1.1\r{HOST_LINE}"), Refused),
        // HTTP/0.9, TLS, HTTP/2 and others.
        raw("9112 2.3", "GET /a\r\n\r\n", Refused),
        raw("9112 2.3", "GET /a\r\n", Refused),
        raw("9112 2.3", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", Refused),
        raw("9113 3.4", "PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n", Refused),
        raw("9112 3", "SSH-2.0-OpenSSH_9.2\r\n\r\n", Refused),
        raw("9112 3", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", Refused),
        raw("9112 3", format!("PROXY TCP4 1.2.3.4 1.2.3.4 1 1\r\nGET /a HTTP/1.1\r\n{HOST_LINE}"), Refused),
        // CONNECT (section 3.2.3) to a service that speaks HTTP is not served.
        line("9110 9.3.6", "CONNECT reviews:80 HTTP/1.1", Refused),
        line("9110 9.3.6", "CONNECT reviews HTTP/1.1", Refused),
        line("9110 9.3.6", "CONNECT /a HTTP/1.1", Refused),
        line("9110 9.3.6", "CONNECT http://reviews/ HTTP/1.1", Refused),
        line("9110 9.3.6", "CONNECT * HTTP/1.1", Refused),
        line("9110 9.3.7", "OPTIONS reviews HTTP/1.1", Refused),
        line("9112 3.2.4", "HEAD * HTTP/1.1", Refused),
        line("9112 3.2.4", "OPTIONS ** HTTP/1.1", Refused),
    ]);
    rows
}

// A table is read by its rows.
#[rustfmt::skip]
pub(super) fn fields() -> Vec<Row> {
    let mut rows = vec![
        get("9110 5.5", "x-a: 1\r\n", one(&[("x-a", "1")])),
        get("9110 5.5", "x-a:1\r\n", one(&[("x-a", "1")])),
        get("9110 5.5", "x-a: \t 1 \t \r\n", one(&[("x-a", "1")])),
        get("9110 5.5", "x-a: 1\t2 \"3\" (4)\r\n", one(&[("x-a", "1\t2 \"3\" (4)")])),
        get("9110 5.5", "x-a:\r\n", one(&[])),
        get("9110 5.5", "x-a: :\r\n", one(&[("x-a", ":")])),
        get("9110 5.5", b"x-a: \xe4\r\n", one(&[("x-a", "\u{e4}")])),
        get("9110 5.6.2", "x!#$%&'*+-.^_`|~9: 1\r\n", one(&[("x!#$%&'*+-.^_`|~9", "1")])),
        get("9112 2.2", "x-a: 1\nx-b: 2\r\n", one(&[("x-a", "1"), ("x-b", "2")])),
        // A name that means nothing here keeps meaning nothing.
        get("9110 5.1", "Content_Length: 5\r\n", one(&[("content_length", "5")])),
        get("9110 5.1", "Transfer_Encoding: chunked\r\n", one(&[("transfer_encoding", "chunked")])),
        get("9110 5.1", "X-Transfer-Encoding: chunked\r\n", one(&[("x-transfer-encoding", "chunked")])),
        get("9110 5.1", "Content-Length5: 5\r\n", one(&[("content-length5", "5")])),
        // Field lines folded (section 5.2).
        get("9112 5.2", "x-a: 1\r\n 2\r\n", Refused),
        get("9112 5.2", "x-a: 1\r\n\t2\r\n", Refused),
        get("9112 5.2", "x-a: 1\n 2\r\n", Refused),
        get("9112 5.2", "x-a:\r\n 2\r\n", Refused),
        get("9112 5.2", " \r\n", Refused),
        get("9112 5.2", "\t\r\n", Refused),
        get("9112 5.2", "x-a: 1\r\n \r\n", Refused),
        host("9112 2.2", " Host: reviews\r\n", Refused),
        host("9112 2.2", "\tx: 1\r\nHost: reviews\r\n", Refused),
        host("9112 2.2", " \r\nHost: reviews\r\n", Refused),
        post("9112 5.2", "Transfer-Encoding:\r\n chunked\r\n", "0\r\n\r\n", Refused),
        post("9112 5.2", "Content-Length:\r\n 5\r\n", "hello", Refused),
        post("9112 5.2", "x-a: 1\r\n Transfer-Encoding: chunked\r\n", "", Refused),
        // Lines that are none.
        get("9112 5", "x-a\r\n", Refused),
        get("9112 5", ": 1\r\n", Refused),
        get("9112 5", ":\r\n", Refused),
        get("9112 5", "\u{feff}x-a: 1\r\n", Refused),
        get("9112 5", b"x-\xe4: 1\r\n", Refused),
        get("9112 2.2", "x-a: 1\rx-b: 2\r\n", Refused),
        get("9112 2.2", "x-a: 1\r\r\n", Refused),
        get("9112 2.2", "x-a\r: 1\r\n", Refused),
        get("9112 2.2", "\rx-a: 1\r\n", Refused),
        get("9112 2.2", "x-a: 1\r\n\r", Refused),
        get("9110 5.4", "x: 1\r\n".repeat(200), Refused),
        get("9110 5.4", format!("x: {}\r\n", "x".repeat(70_000)), Refused),
        get("9110 5.4", format!("{}: 1\r\n", "x".repeat(70_000)), Refused),
    ];
    for byte in ['\0', '\u{1}', '\u{8}', '\u{b}', '\u{c}', '\u{1b}', '\u{7f}'] {
        rows.push(get("9110 5.5", format!("x-a: 1{byte}2\r\n"), Refused));
    }
    for name in ["x y", "x ", "x\t", "x\u{b}", "x\0", "x(", "x)", "x,", "x/", "x;", "x<", "x=", "x>", "x?", "x@", "x[", "x\\", "x]", "x{", "x}", "x\"", "x\u{7f}", "Host ", "Content-Length ", "Transfer-Encoding\t"] {
        rows.push(get("9112 5.1", format!("{name}: 1\r\n"), Refused));
    }
    rows
}

// A table is read by its rows.
#[rustfmt::skip]
pub(super) fn hosts() -> Vec<Row> {
    let mut rows = vec![
        host("9112 3.2", "", Refused),
        host("9112 3.2", "Host: reviews\r\nHost: reviews\r\n", Refused),
        host("9112 3.2", "Host: reviews\r\nHost: ratings\r\n", Refused),
        host("9112 3.2", "Host: reviews\r\nHOST: ratings\r\n", Refused),
        host("9112 3.2", "Host: reviews\r\nx: 1\r\nhost:\r\n", Refused),
        host("9112 3.2", "Host:\r\nHost: reviews\r\n", Refused),
        host("9112 3.2", "Host: reviews\r\nHost : ratings\r\n", Refused),
        host("9112 3.2", "Host: reviews\r\n Host: ratings\r\n", Refused),
        host("9110 7.2", "host:reviews\r\n", one(&[])),
        host("9110 7.2", "HOST: \t reviews \t\r\n", one(&[])),
        host("9110 7.2", "Host: Reviews\r\n", one(&[("host", "Reviews")])),
        host("9110 7.2", "Host: reviews:80\r\n", one(&[("host", "reviews:80")])),
        host("9110 7.2", "Host: reviews.\r\n", one(&[("host", "reviews.")])),
        host("9110 7.2", "Host: reviews:\r\n", one(&[("host", "reviews:")])),
        // The target's host counts, and takes the field's place (section 3.2.2).
        raw("9112 3.2.2", "GET http://reviews/ HTTP/1.1\r\nHost: ratings\r\n\r\n", as_line("GET / HTTP/1.1")),
        raw("9112 3.2.2", "GET http://reviews/ HTTP/1.0\r\n\r\n", as_line("GET / HTTP/1.1")).last(),
        raw("9112 3.2", "GET http://reviews/ HTTP/1.1\r\n\r\n", Refused),
        raw("9112 3.2", "GET http://reviews/ HTTP/1.1\r\nHost: a b\r\n\r\n", Refused),
        raw("9112 3.2", "GET http://reviews/ HTTP/1.1\r\nHost: reviews\r\nHost: ratings\r\n\r\n", Refused),
        raw("9112 3.2", "OPTIONS * HTTP/1.1\r\n\r\n", Refused),
    ];
    for value in ["", " ", "reviews/", "reviews/a", "/reviews", "reviews,ratings", "reviews, ratings", "reviews ratings", "reviews\tratings", "user@reviews", "user:secret@reviews", "reviews@", "reviews:port", "reviews:80:80", "reviews:-80", "reviews:+80", "reviews:80a", "reviews:0x50", "reviews:123456", ":80", ":", "http://reviews", "reviews?a", "reviews#a", "reviews\\ratings", "reviews;a", "reviews%00", "reviews%2fa", "[::1", "::1]", "[]", "[reviews]", "[::1]a", "re\"views\"", "<reviews>", "reviews|ratings", "reviews{}", "reviews^", "reviews`id`", "*", "reviews\u{7f}", "reviews\0", "r\u{e4}views"] {
        rows.push(host("9112 3.2", format!("Host: {value}\r\n"), Refused));
    }
    rows.push(host("9112 3.2", b"Host: reviews\xff\r\n", Refused));
    rows
}

// A table is read by its rows.
#[rustfmt::skip]
pub(super) fn lengths() -> Vec<Row> {
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: reviews\r\n\r\n";
    let mut rows = vec![
        post("9112 6.3", "Content-Length: 5\r\n", "hello", long("5", "hello")),
        post("9112 6.3", "Content-Length: 0\r\n", "", long("0", "")),
        post("9112 6.3", "", "", Becomes::One("POST /a HTTP/1.1", vec![("transfer-encoding", "")], Vec::new())),
        post("9112 6.3", "content-length:5\r\n", "hello", long("5", "hello")),
        post("9112 6.3", "Content-Length: \t 5 \t\r\n", "hello", long("5", "hello")),
        post("9110 8.6", "Content-Length: 005\r\n", "hello", long("005", "hello")),
        post("9110 8.6", format!("Content-Length: {:0>40}\r\n", "5"), "hello", long("0000000000000000000000000000000000000005", "hello")),
        // A length said twice is one (section 6.3 lets it be refused as well).
        post("9112 6.3", "Content-Length: 5\r\nContent-Length: 5\r\n", "hello", long("5", "hello")),
        post("9112 6.3", "Content-Length: 5, 5\r\n", "hello", Refused),
        post("9112 6.3", "Content-Length: 5,6\r\n", "hello", Refused),
        post("9112 6.3", "Content-Length: 5\r\nContent-Length: 6\r\n", "hello!", Refused),
        post("9112 6.3", "Content-Length: 6\r\nContent-Length: 5\r\n", "hello!", Refused),
        post("9112 6.3", "Content-Length: 0\r\nContent-Length: 41\r\n", smuggled, Refused),
        post("9112 6.3", "Content-Length: 41\r\nContent-Length: 0\r\n", smuggled, Refused),
        post("9112 6.3", "Content-Length: 5\r\nContent-Length:\r\n", "hello", Refused),
        post("9112 6.3", "Content-Length: 5\r\nContent-Length : 6\r\n", "hello", Refused),
        post("9112 6.3", "Content-Length: 5\r\ncontent-length: 05\r\n", "hello", long("5", "hello")),
        // A body that looks like a request is a body.
        post("9112 11.2", "Content-Length: 41\r\n", smuggled, long("41", smuggled)),
        raw("9110 9.3.1", format!("GET /a HTTP/1.1\r\nHost: reviews\r\nContent-Length: 41\r\n\r\n{smuggled}"), Becomes::One("GET /a HTTP/1.1", vec![("content-length", "41")], smuggled.into())),
        raw("9110 9.3.2", format!("HEAD /a HTTP/1.1\r\nHost: reviews\r\nContent-Length: 41\r\n\r\n{smuggled}"), Becomes::One("HEAD /a HTTP/1.1", vec![("content-length", "41")], smuggled.into())),
        raw("9110 9.3.5", format!("DELETE /a HTTP/1.1\r\nHost: reviews\r\nContent-Length: 41\r\n\r\n{smuggled}"), Becomes::One("DELETE /a HTTP/1.1", vec![("content-length", "41")], smuggled.into())),
        raw("9110 9.3.7", format!("OPTIONS * HTTP/1.1\r\nHost: reviews\r\nContent-Length: 41\r\n\r\n{smuggled}"), Becomes::One("OPTIONS * HTTP/1.1", vec![("content-length", "41")], smuggled.into())),
        raw("9110 9.3.6", format!("CONNECT reviews:80 HTTP/1.1\r\nHost: reviews:80\r\nContent-Length: 41\r\n\r\n{smuggled}"), Refused),
        raw("9112 6.3", format!("POST /a HTTP/1.0\r\nHost: reviews\r\nContent-Length: 41\r\n\r\n{smuggled}"), long("41", smuggled)).last(),
        raw("9110 9.3.1", "GET /a HTTP/1.1\r\nHost: reviews\r\nContent-Length: 0\r\n\r\n", Becomes::One("GET /a HTTP/1.1", vec![("content-length", "0"), ("transfer-encoding", "")], Vec::new())),
        // An end that does not come.
        post("9112 8", "Content-Length: 5\r\n", "hell", CutShort).alone(),
        post("9112 8", "Content-Length: 9223372036854775807\r\n", "hello", CutShort),
        // Expectations (9110 section 10.1.1).
        post("9110 10.1.1", "Expect: 100-continue\r\nContent-Length: 5\r\n", "hello", long("5", "hello")),
        post("9110 10.1.1", "Expect: 100-Continue\r\nContent-Length: 5\r\n", "hello", long("5", "hello")),
        post("9110 10.1.1", "Expect: 100-continue\r\nContent-Length: 41\r\n", smuggled, long("41", smuggled)),
        post("9110 10.1.1", "Expect: 100-continue, 100-continue\r\nContent-Length: 5\r\n", "hello", long("5", "hello")),
        post("9110 10.1.1", "Expect: y 100-continue\r\nContent-Length: 5\r\n", "hello", long("5", "hello")),
        post("9110 10.1.1", "Expect: 200-ok\r\nContent-Length: 5\r\n", "hello", long("5", "hello")),
        post("9110 10.1.1", "Expect:\r\nContent-Length: 5\r\n", "hello", long("5", "hello")),
        raw("9110 10.1.1", "POST /a HTTP/1.0\r\nHost: reviews\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nhello", long("5", "hello")).last(),
        get("9110 10.1.1", "Expect: 100-continue\r\n", one(&[("expect", "")])),
    ];
    for length in ["-5", "+5", "0x5", "5h", "5 5", "5;", "5.0", "5e0", "\"5\"", "(5)", ",5", "5,", ",", "", "five", "\u{665}", "0b101", "--5", "1_0", "5\u{b}", "5\u{a0}", "0 ", "18446744073709551615", "18446744073709551616", "18446744073709551621", "99999999999999999999999999", "-0", "Infinity", "NaN"] {
        // A blank behind the number belongs to the field, not to the number.
        let becomes = if length == "0 " { long("0", "") } else { Refused };
        let body = if length == "0 " { "" } else { "hello" };
        rows.push(post("9110 8.6", format!("Content-Length: {length}\r\n"), body, becomes));
    }
    rows
}

// A table is read by its rows.
#[rustfmt::skip]
pub(super) fn codings() -> Vec<Row> {
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: reviews\r\n\r\n";
    let mut rows = vec![
        chunked("9112 7.1", "5\r\nhello\r\n0\r\n\r\n", in_chunks("hello")),
        post("9110 5.1", "transfer-encoding:chunked\r\n", "5\r\nhello\r\n0\r\n\r\n", in_chunks("hello")),
        post("9112 7", "Transfer-Encoding: CHUNKED\r\n", "5\r\nhello\r\n0\r\n\r\n", in_chunks("hello")),
        post("9112 7", "Transfer-Encoding: \t chunked \t \r\n", "5\r\nhello\r\n0\r\n\r\n", in_chunks("hello")),
        raw("9112 6.3", "GET /a HTTP/1.1\r\nHost: reviews\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", Becomes::One("GET /a HTTP/1.1", vec![("transfer-encoding", "chunked")], b"hello".to_vec())),
        raw("9112 6.3", "HEAD /a HTTP/1.1\r\nHost: reviews\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", Becomes::One("HEAD /a HTTP/1.1", vec![("transfer-encoding", "chunked")], b"hello".to_vec())),
        raw("9112 6.3", "DELETE /a HTTP/1.1\r\nHost: reviews\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", Becomes::One("DELETE /a HTTP/1.1", vec![("transfer-encoding", "chunked")], b"hello".to_vec())),
        raw("9110 9.3.6", "CONNECT reviews:80 HTTP/1.1\r\nHost: reviews:80\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", Refused),
        raw("9112 6.3", "GET /a HTTP/1.1\r\nHost: reviews\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", Becomes::One("GET /a HTTP/1.1", vec![("transfer-encoding", "chunked")], Vec::new())),
        post("9110 10.1.1", "Expect: 100-continue\r\nTransfer-Encoding: chunked\r\n", "5\r\nhello\r\n0\r\n\r\n", in_chunks("hello")),
        // Both framings (section 6.1): the coding counts, the length goes, the connection ends.
        post("9112 6.1", "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", "5\r\nhello\r\n0\r\n\r\n", in_chunks("hello")).last(),
        post("9112 6.1", "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", "5\r\nhello\r\n0\r\n\r\n", in_chunks("hello")).last(),
        post("9112 6.1", "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", format!("{:x}\r\n{smuggled}\r\n0\r\n\r\n", smuggled.len()), in_chunks(smuggled)).last(),
        post("9112 6.1", "Content-Length: 46\r\nTransfer-Encoding: chunked\r\n", format!("0\r\n\r\n{smuggled}"), in_chunks("")).last(),
        post("9112 6.1", "Transfer-Encoding: chunked\r\nContent-Length: 46\r\n", format!("0\r\n\r\n{smuggled}"), in_chunks("")).last(),
        post("9112 6.1", "Content-Length: 5\r\nTransfer-Encoding: chunked\r\nContent-Length: 6\r\n", "0\r\n\r\n", in_chunks("")).last(),
        post("9112 6.1", "Transfer-Encoding: chunked\r\nContent-Length: five\r\n", "0\r\n\r\n", in_chunks("")).last(),
        post("9112 6.3", "Content-Length: five\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n", Refused),
        post("9112 6.3", "Content-Length: 5\r\nTransfer-Encoding: identity\r\n", "hello", Refused),
        post("9112 6.3", "Content-Length: 5\r\nTransfer-Encoding:\r\n", "hello", Refused),
        post("9112 6.3", "Content-Length: 5\r\nTransfer-Encoding: xchunked\r\n", "hello", Refused),
        post("9112 5.1", "Content-Length: 5\r\nTransfer-Encoding : chunked\r\n", "hello", Refused),
        post("9112 5.2", "Content-Length: 5\r\n Transfer-Encoding: chunked\r\n", "hello", Refused),
        post("9112 2.2", "Content-Length: 5\r\nx: 1\rTransfer-Encoding: chunked\r\n", "hello", Refused),
        // A bare line feed ends a line: both framings again.
        post("9112 2.2", "Content-Length: 5\r\nx: 1\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n", in_chunks("")).last(),
        // Twice.
        post("9112 6.1", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n", Refused),
        post("9112 6.1", "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", "0\r\n\r\n", Refused),
        post("9112 6.1", "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n", Refused),
        post("9112 6.1", "Transfer-Encoding: chunked\r\nTransfer-encoding: cow\r\n", "0\r\n\r\n", Refused),
        post("9112 6.1", "Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n", Refused),
        post("9112 6.1", "Transfer-Encoding:\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n", Refused),
        // HTTP/1.0 has none.
        raw("9112 6.1", "POST /a HTTP/1.0\r\nHost: reviews\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", Refused),
        raw("9112 6.1", "POST /a HTTP/1.0\r\nHost: reviews\r\nConnection: keep-alive\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", Refused),
        raw("9112 6.1", "GET /a HTTP/1.0\r\nHost: reviews\r\nTransfer-Encoding: identity\r\n\r\n", Refused),
    ];
    for coding in ["identity", "gzip", "gzip, chunked", "chunked, gzip", "chunked, identity", "identity, chunked", "chunked, chunked", "chunked,", ",chunked", "chunked;", "chunked;q=1", "chunked; a=b", "x-chunked", "xchunked", "chunkedx", "chun ked", "chunked chunked", "\"chunked\"", "'chunked'", "[chunked]", "(chunked)", "chunked\u{b}", "\u{b}chunked", "\u{c}chunked", "chunked\u{a0}", "\u{a0}chunked", "chunked\0", "\0chunked", "chunked\u{7f}", "\u{131}chunked", "chun\u{212a}ed", "chunk", "cow", "", "=chunked", "chunked:", ":chunked", "1chunked", "trailers", "%63hunked"] {
        rows.push(post("9112 6.1", format!("Transfer-Encoding: {coding}\r\n"), "0\r\n\r\n", Refused));
    }
    for coding in [&b"chunked\xff"[..], b"\x85chunked", b"\xefchunked", b"chunked\xa0"] {
        let lines = [b"Transfer-Encoding: ", coding, b"\r\n"].concat();
        rows.push(post("9112 6.1", lines, "0\r\n\r\n", Refused));
    }
    rows
}

// A table is read by its rows.
#[rustfmt::skip]
pub(super) fn chunks() -> Vec<Row> {
    let mut rows = vec![
        chunked("9112 7.1", "0\r\n\r\n", in_chunks("")),
        chunked("9112 7.1", "1\r\nh\r\n4\r\nello\r\n0\r\n\r\n", in_chunks("hello")),
        chunked("9112 7.1", "A\r\n0123456789\r\n0\r\n\r\n", in_chunks("0123456789")),
        chunked("9112 7.1", "a\r\n0123456789\r\n0\r\n\r\n", in_chunks("0123456789")),
        chunked("9112 7.1", "005\r\nhello\r\n000\r\n\r\n", in_chunks("hello")),
        chunked("9112 7.1", format!("{:0>40}\r\nhello\r\n0\r\n\r\n", "5"), in_chunks("hello")),
        chunked("9112 7.1", "5\r\n\r\n0\r\n\r\n0\r\n\r\n", in_chunks("\r\n0\r\n")),
        // Extensions are read over (section 7.1.1), and do not leave.
        chunked("9112 7.1.1", "5;a\r\nhello\r\n0\r\n\r\n", in_chunks("hello")),
        chunked("9112 7.1.1", "5;a=b;c=\"d\"\r\nhello\r\n0;e\r\n\r\n", in_chunks("hello")),
        chunked("9112 7.1.1", "5 ; a = b\r\nhello\r\n0\r\n\r\n", in_chunks("hello")),
        chunked("9112 7.1.1", "5;\r\nhello\r\n0\r\n\r\n", in_chunks("hello")),
        chunked("9112 7.1.1", "5;a=\"GET /smuggled HTTP/1.1\"\r\nhello\r\n0\r\n\r\n", in_chunks("hello")),
        // Blanks behind the size: bad whitespace, which is read over.
        chunked("9112 7.1", "5 \r\nhello\r\n0\r\n\r\n", in_chunks("hello")),
        chunked("9112 7.1", "5\t\r\nhello\r\n0 \r\n\r\n", in_chunks("hello")),
        // Line feeds and returns by themselves: whoever forgives them finds another end than we do.
        chunked("9112 7.1.1", "5;\nhello\r\n0\r\n\r\n", Malformed),
        chunked("9112 7.1.1", "5;a\nb\r\nhello\r\n0\r\n\r\n", Malformed),
        chunked("9112 7.1.1", "5;a\rb\r\nhello\r\n0\r\n\r\n", Malformed),
        chunked("9112 7.1.1", "5;a\r\r\nhello\r\n0\r\n\r\n", Malformed),
        chunked("9112 7.1.1", "2;\nxx\r\n4c\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: reviews\r\n\r\n", Malformed),
        chunked("9112 7.1", "5\nhello\r\n0\r\n\r\n", Malformed),
        chunked("9112 7.1", "5\rhello\r\n0\r\n\r\n", Malformed),
        chunked("9112 7.1", "5\n\rhello\r\n0\r\n\r\n", Malformed),
        chunked("9112 7.1", "5\r\nhello\n0\r\n\r\n", Malformed),
        chunked("9112 7.1", "5\r\nhello\r0\r\n\r\n", Malformed),
        chunked("9112 7.1", "5\r\nhello0\r\n\r\n", Malformed),
        chunked("9112 7.1", "5\r\nhelloXX0\r\n\r\n", Malformed),
        chunked("9112 7.1", "5\r\nhello\r\n\r\n0\r\n\r\n", Malformed),
        chunked("9112 7.1", "0\n\r\n", Malformed),
        chunked("9112 7.1", "0\r\n\nGET /smuggled HTTP/1.1\r\nHost: reviews\r\n\r\n", Malformed),
        chunked("9112 7.1", "0\r\n\rX", Malformed),
        chunked("9112 7.1", "5\r\nhello\r\n0\r\n\nx: 1\r\n\r\n", Malformed),
        // Sizes that are not those of the data.
        chunked("9112 7.1", "4\r\nhello\r\n0\r\n\r\n", Malformed),
        chunked("9112 7.1", "6\r\nhello\r\n0\r\n\r\n", Malformed),
        // Ends that do not come.
        chunked("9112 8", "5\r\nhello\r\n0\r\n", CutShort),
        chunked("9112 8", "5\r\nhello\r\n0", CutShort),
        chunked("9112 8", "5\r\nhello\r\n", CutShort),
        chunked("9112 8", "5\r\nhello", CutShort),
        chunked("9112 8", "5\r\nhe", CutShort),
        chunked("9112 8", "5", CutShort),
        chunked("9112 8", "", CutShort),
        chunked("9112 8", "7fffffffffffffff\r\nhello", CutShort),
        chunked("9112 7.1.1", format!("5;{}\r\nhello\r\n0\r\n\r\n", "a".repeat(20_000)), Malformed),
    ];
    for size in ["-5", "+5", "0x5", "0X5", "5h", "h", "g", " 5", "\t5", "5 5", "5_0", "5,", "5.", "\"5\"", "", ";", ";a", "\u{665}", "5\0", "\x005", "5\u{b}", "10000000000000000", "10000000000000005", "ffffffffffffffff0", "f0000000000000005", "-0", "+0", "0x0", "--", "\u{a0}5"] {
        let becomes = Malformed;
        rows.push(chunked("9112 7.1", format!("{size}\r\nhello\r\n0\r\n\r\n"), becomes));
    }
    rows
}

// A table is read by its rows.
#[rustfmt::skip]
pub(super) fn trailers() -> Vec<Row> {
    let trailed = |lines: &str| format!("5\r\nhello\r\n0\r\n{lines}\r\n");
    let mut rows = vec![
        chunked("9110 6.5", trailed("x-sum: 1\r\n"), in_chunks("hello")),
        chunked("9110 6.5", trailed("x-sum: 1\r\nx-other: 2\r\n"), in_chunks("hello")),
        chunked("9110 6.5", trailed("x-sum:\r\n"), in_chunks("hello")),
        // What is no field.
        chunked("9112 7.1.2", trailed("x-sum\r\n"), Malformed),
        chunked("9112 7.1.2", trailed(": 1\r\n"), Malformed),
        chunked("9112 7.1.2", trailed("x sum: 1\r\n"), Malformed),
        chunked("9112 7.1.2", trailed("x-sum : 1\r\n"), Malformed),
        chunked("9112 7.1.2", trailed(" x-sum: 1\r\n"), Malformed),
        chunked("9112 7.1.2", trailed("x-sum: 1\r\n 2\r\n"), Malformed),
        chunked("9112 7.1.2", trailed("x-sum: \0\r\n"), Malformed),
        chunked("9112 7.1.2", trailed("x-sum: 1\rx-other: 2\r\n"), Malformed),
        chunked("9112 7.1.2", trailed("GET /smuggled HTTP/1.1\r\nHost: reviews\r\n"), Malformed),
        chunked("9112 7.1.2", trailed(&"x: 1\r\n".repeat(200)), Malformed),
        chunked("9112 7.1.2", trailed(&format!("x: {}\r\n", "x".repeat(70_000))), Malformed),
        post("9110 6.6.2", "Trailer: x-sum\r\nTransfer-Encoding: chunked\r\n", trailed("x-sum: 1\r\n"), in_chunks("hello")),
        post("9110 6.6.2", "Trailer: transfer-encoding\r\nTransfer-Encoding: chunked\r\n", trailed("transfer-encoding: gzip\r\n"), in_chunks("hello")),
    ];
    // Fields that frame, route, authenticate or describe are no trailers (9110 section 6.5.1): declared or not, they end here.
    for field in ["Transfer-Encoding: chunked", "Transfer-Encoding: identity", "Content-Length: 5", "Content-Length: 0", "Host: ratings", "Authorization: Basic eA==", "Content-Type: text/html", "Content-Encoding: gzip", "Set-Cookie: a=b", "Trailer: x", "TE: trailers", "Max-Forwards: 0", "Cache-Control: no-store"] {
        let name = field.split(':').next().unwrap_or_default();
        rows.push(chunked("9110 6.5.1", trailed(&format!("{field}\r\n")), in_chunks("hello")));
        let declared = format!("Trailer: {name}\r\nTransfer-Encoding: chunked\r\n");
        rows.push(post("9110 6.5.1", declared, trailed(&format!("{field}\r\n")), in_chunks("hello")));
    }
    rows
}

// A table is read by its rows.
#[rustfmt::skip]
pub(super) fn connections() -> Vec<Row> {
    let mut rows = vec![
        get("9112 9.6", "Connection: close\r\n", one(&[("connection", "")])).last(),
        get("9112 9.6", "Connection: Close\r\n", one(&[("connection", "")])).last(),
        get("9112 9.6", "Connection: keep-alive, close\r\n", one(&[("connection", "")])).last(),
        get("9112 9.6", "Connection: close\r\nConnection: keep-alive\r\n", one(&[("connection", "")])).last(),
        get("9112 9.3", "Connection: keep-alive\r\nKeep-Alive: timeout=5\r\n", one(&[("connection", ""), ("keep-alive", "")])),
        get("9110 7.6.1", "Connection:\r\n", one(&[("connection", "")])),
        get("9110 7.6.1", "Connection: ,,\r\n", one(&[("connection", "")])),
        get("9110 7.6.1", "Connection: (x)\r\n", one(&[("connection", "")])),
        // What it names ends here, wherever it stands and however it is written.
        get("9110 7.6.1", "Connection: x-a\r\nx-a: 1\r\n", one(&[("connection", ""), ("x-a", "")])),
        get("9110 7.6.1", "x-a: 1\r\nx-b: 2\r\nConnection: X-A\r\n", one(&[("connection", ""), ("x-a", ""), ("x-b", "2")])),
        get("9110 7.6.1", "x-a: 1\r\nConnection: keep-alive, \t x-a\t,close\r\n", one(&[("connection", ""), ("x-a", "")])).last(),
        get("9110 7.6.1", "x-a: 1\r\nx-b: 2\r\nConnection: x-a\r\nConnection: x-b\r\n", one(&[("x-a", ""), ("x-b", "")])),
        get("9110 7.6.1", "x-a: 1\r\nx-a: 2\r\nConnection: x-a\r\n", one(&[("x-a", "")])),
        get("9110 7.6.1", "x-a: 1\r\nConnection: x y, x-a\r\n", one(&[("x-a", "")])),
        get("9110 7.6.1", b"x-a: 1\r\nConnection: x-a, \xff\r\n", one(&[("x-a", "")])),
        get("9110 7.6.1", "Cookie: a=b\r\nConnection: cookie\r\n", one(&[("cookie", "")])),
        get("9110 7.6.1", "Authorization: Basic eA==\r\nConnection: authorization\r\n", one(&[("authorization", "")])),
        get("9110 7.6.1", "X-Forwarded-For: 1.2.3.4\r\nConnection: x-forwarded-for\r\n", one(&[("x-forwarded-for", "")])),
        get("9110 7.6.1", "Connection: connection\r\n", one(&[("connection", "")])),
        // What frames or routes it is not the connection's, whoever says so.
        get("9110 7.6.1", "Connection: host\r\n", one(&[("connection", "")])),
        post("9110 7.6.1", "Content-Length: 5\r\nConnection: content-length\r\n", "hello", long("5", "hello")),
        post("9110 7.6.1", "Transfer-Encoding: chunked\r\nConnection: transfer-encoding\r\n", "5\r\nhello\r\n0\r\n\r\n", in_chunks("hello")),
        post("9110 7.6.1", "Transfer-Encoding: chunked\r\nConnection: transfer-encoding, host, content-length, trailer\r\nTrailer: x\r\n", "0\r\n\r\n", in_chunks("")),
        post("9110 7.6.1", "Expect: 100-continue\r\nConnection: expect\r\nContent-Length: 5\r\n", "hello", long("5", "hello")),
        // Fields of one connection by custom.
        get("9110 7.6.1", "Proxy-Connection: keep-alive\r\n", one(&[("proxy-connection", "")])),
        get("9110 7.6.1", "Keep-Alive: 300\r\n", one(&[("keep-alive", "")])),
        get("9110 10.1.4", "TE: trailers\r\nConnection: TE\r\n", one(&[("te", "trailers"), ("connection", "")])),
        get("9110 10.1.4", "TE: gzip\r\n", one(&[("te", "")])),
        get("9110 10.1.4", "TE: chunked\r\n", one(&[("te", "")])),
        get("9110 10.1.4", "TE: gzip, trailers\r\n", one(&[("te", "trailers")])),
        get("9110 10.1.4", "TE: trailers;q=0.5\r\n", one(&[("te", "")])),
        // Upgrades (9110 section 7.8): to HTTP/2 and TLS nobody is switched, and without `Connection` it is no wish.
        get("9110 7.8", "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n", one(&[("upgrade", ""), ("connection", ""), ("http2-settings", "")])),
        get("9110 7.8", "Connection: upgrade\r\nUpgrade: H2C\r\n", one(&[("upgrade", ""), ("connection", "")])),
        get("9110 7.8", "Connection: upgrade\r\nUpgrade: TLS/1.0\r\n", one(&[("upgrade", ""), ("connection", "")])),
        get("9110 7.8", "Connection: upgrade\r\nUpgrade: HTTP/2.0\r\n", one(&[("upgrade", ""), ("connection", "")])),
        get("9110 7.8", "Connection: upgrade\r\nUpgrade: websocket, h2c\r\n", one(&[("upgrade", ""), ("connection", "")])),
        get("9110 7.8", "Connection: upgrade\r\nUpgrade:\r\n", one(&[("upgrade", ""), ("connection", "")])),
        get("9110 7.8", "Upgrade: websocket\r\n", one(&[("upgrade", ""), ("connection", "")])),
        get("9110 7.8", "Connection: upgrade\r\n", one(&[("upgrade", ""), ("connection", "")])),
        // The answer is no switch: what is behind is a request like any other.
        get("9110 7.8", "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: eA==\r\nSec-WebSocket-Version: 13\r\n", one(&[("upgrade", "websocket")])),
        raw("9110 7.8", "GET /a HTTP/1.0\r\nHost: reviews\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n", one(&[("upgrade", "")])).last(),
    ];
    for name in ["cookie", "x-real-ip", "content-type", "accept", "user-agent", "x-outrigger-reason", "via", "date"] {
        let lines = format!("{name}: 1\r\nx-kept: 2\r\nConnection: close, {name}\r\n");
        rows.push(get("9110 7.6.1", lines, one(&[(name, ""), ("x-kept", "2"), ("connection", "")])).last());
    }
    rows
}
