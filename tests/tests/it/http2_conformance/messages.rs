//! Requests: their fields, their bodies, what makes them malformed (RFC 9113 section 8).

use outrigger_tests::http2::frame::{self, flag};
use outrigger_tests::http2::hpack::Field;
use outrigger_tests::http2::request;

use super::{Case, Expect, NEVER, case};

type Bytes = &'static [u8];

pub(super) fn cases() -> Vec<Case> {
    [pseudo(), fields(), connection(), lengths(), trailers()]
        .into_iter()
        .flatten()
        .collect()
}

fn whole<N: AsRef<[u8]>, V: AsRef<[u8]>>(fields: &[(N, V)]) -> Vec<u8> {
    frame::headers(1, flag::END_STREAM, fields)
}

/// A GET with one more field.
fn with(name: &[u8], value: &[u8]) -> Vec<u8> {
    let known = |(name, value): Field| (name.into_bytes(), value.into_bytes());
    let mut fields: Vec<_> = request("GET", "reviews", NEVER).into_iter().map(known).collect();
    fields.push((name.to_vec(), value.to_vec()));
    whole(&fields)
}

/// RFC 9113 section 8.3.
// A table is read by its rows.
#[rustfmt::skip]
fn pseudo() -> Vec<Case> {
    let (method, scheme, authority, path) = (
        (":method", "GET"),
        (":scheme", "http"),
        (":authority", "reviews"),
        (":path", NEVER),
    );
    let malformed =
        |name: &str, list: &[(&str, &str)]| case("9113 8.3", name, &[whole(list)], Expect::Malformed(1));
    let mut list = vec![
        malformed("without :method", &[scheme, authority, path]),
        malformed("without :scheme", &[method, authority, path]),
        malformed("without :path", &[method, scheme, authority]),
        malformed("without :path, the host in Host", &[method, scheme, ("host", "reviews")]),
        malformed("with an empty :path", &[method, scheme, authority, (":path", "")]),
        malformed("with an empty :method", &[(":method", ""), scheme, authority, path]),
        malformed("with an empty :scheme", &[method, (":scheme", ""), authority, path]),
        malformed("with nothing at all", &[]),
        malformed("with an unknown pseudo-header", &[method, scheme, authority, path, (":outrigger", "x")]),
        malformed("with the answer's pseudo-header", &[method, scheme, authority, path, (":status", "200")]),
        malformed("with the answer's pseudo-header alone", &[(":status", "200")]),
        malformed("with :protocol and no CONNECT", &[method, scheme, authority, path, (":protocol", "websocket")]),
        malformed("CONNECT with :scheme", &[(":method", "CONNECT"), scheme, authority]),
        malformed("CONNECT with :path", &[(":method", "CONNECT"), authority, path]),
        malformed("a :path that does not begin with a slash", &[method, scheme, authority, (":path", "never")]),
        malformed("a * for another method than OPTIONS", &[method, scheme, authority, (":path", "*")]),
        malformed("a user in :authority", &[method, scheme, (":authority", "user@reviews"), path]),
        malformed("a :authority with a path", &[method, scheme, (":authority", "reviews/x"), path]),
        malformed("a space in :path", &[method, scheme, authority, (":path", "/ne ver")]),
        malformed("a space in :method", &[(":method", "GE T"), scheme, authority, path]),
        case("9113 8.3", "Host in the place of :authority", &[whole(&[method, scheme, (":path", "/"), ("host", "reviews")])], Expect::Answer(1, 200)),
        case("9113 8.3.1", "Host that says the same as :authority", &[whole(&[method, scheme, authority, (":path", "/"), ("host", "reviews")])], Expect::Answer(1, 200)),
        case("9113 8.3.1", "Host that says another than :authority", &[whole(&[method, scheme, authority, path, ("host", "ratings")])], Expect::Malformed(1)),
        case("9113 8.3.1", "OPTIONS for the server itself", &[whole(&[(":method", "OPTIONS"), scheme, authority, (":path", "*")])], Expect::Answer(1, 200)),
        case("9113 8.3.1", "https on a plain connection", &[whole(&[method, (":scheme", "https"), authority, (":path", "/")])], Expect::Answer(1, 200)),
    ];
    for twice in [method, scheme, authority, path] {
        list.push(malformed(&format!("with {} twice", twice.0), &[method, scheme, authority, path, twice]));
    }
    for last in [method, scheme, authority, path] {
        let mut fields: Vec<_> = [method, scheme, authority, path]
            .into_iter()
            .filter(|field| *field != last)
            .collect();
        fields.extend([("x", "y"), last]);
        list.push(malformed(&format!("with {} after a field", last.0), &fields));
    }
    list
}

/// RFC 9113 section 8.2.1.
// A table is read by its rows.
#[rustfmt::skip]
fn fields() -> Vec<Case> {
    let mut list = Vec::new();
    let names: [(&str, Bytes); 12] = [
        ("a name with an upper case letter", b"X-up"),
        ("a name all in upper case", b"HOST"),
        ("a name with a space", b"x y"),
        ("a name that ends with a space", b"x "),
        ("a name with a colon", b"x:y"),
        ("a name with CR", b"x\ry"),
        ("a name with LF", b"x\ny"),
        ("a name with NUL", b"x\0y"),
        ("a name with DEL", b"x\x7f"),
        ("a name with a byte over ASCII", b"x\xe4"),
        ("an empty name", b""),
        ("a name with a parenthesis", b"x(y)"),
    ];
    for (name, bytes) in names {
        list.push(case("9113 8.2.1", name, &[with(bytes, b"1")], Expect::Malformed(1)));
    }
    let values: [(&str, Bytes); 7] = [
        ("a value with CR", b"a\rb"),
        ("a value with LF", b"a\nb"),
        ("a value with CR and LF and a field", b"a\r\nx-forged: 1"),
        ("a value with NUL", b"a\0b"),
        ("a value that begins with a space", b" a"),
        ("a value that ends with a space", b"a "),
        ("a value that begins with a tab", b"\ta"),
    ];
    for (name, bytes) in values {
        list.push(case("9113 8.2.1", name, &[with(b"x", bytes)], Expect::Malformed(1)));
    }
    let plain = [
        request("GET", "reviews", "/"),
        vec![("x".into(), String::new()), ("y".into(), "a \t b".into())],
    ]
    .concat();
    list.push(case("9113 8.2.1", "an empty value, and one with spaces inside", &[whole(&plain)], Expect::Answer(1, 200)));
    list
}

/// RFC 9113 section 8.2.2.
// A table is read by its rows.
#[rustfmt::skip]
fn connection() -> Vec<Case> {
    let mut list = Vec::new();
    for (name, value) in [
        ("connection", "close"),
        ("connection", "x"),
        ("keep-alive", "timeout=5"),
        ("proxy-connection", "keep-alive"),
        ("transfer-encoding", "chunked"),
        ("transfer-encoding", "identity"),
        ("upgrade", "h2c"),
        ("te", "gzip"),
        ("te", "trailers, deflate"),
    ] {
        let row = format!("{name}: {value}");
        list.push(case("9113 8.2.2", &row, &[with(name.as_bytes(), value.as_bytes())], Expect::Malformed(1)));
    }
    let trailers = [
        request("GET", "reviews", "/"),
        vec![("te".into(), "trailers".into())],
    ]
    .concat();
    list.push(case("9113 8.2.2", "te: trailers", &[whole(&trailers)], Expect::Answer(1, 200)));
    list
}

fn post(length: &str) -> Vec<u8> {
    let fields = [
        request("POST", "reviews", NEVER),
        vec![("content-length".into(), length.into())],
    ]
    .concat();
    frame::headers(1, 0, &fields)
}

/// RFC 9113 section 8.1.1. What has already gone to the upstream by then is a request that is never completed.
// A table is read by its rows.
#[rustfmt::skip]
fn lengths() -> Vec<Case> {
    let row = |name: &str, list: &[Vec<u8>]| case("9113 8.1.1", name, list, Expect::Malformed(1));
    let ends = |bytes: &str| frame::data(1, flag::END_STREAM, bytes);
    let good = [
        request("POST", "reviews", "/"),
        vec![("content-length".into(), "2".into())],
    ]
    .concat();
    // Its head alone is a whole request to HTTP/1.1, and has left before the fault is seen.
    let empty = [
        request("POST", "reviews", "/"),
        vec![("content-length".into(), "0".into())],
    ]
    .concat();
    let empty = frame::headers(1, 0, &empty);
    let twice = |one: &str, two: &str| {
        let lengths = vec![
            ("content-length".into(), one.into()),
            ("content-length".into(), two.into()),
        ];
        frame::headers(1, 0, &[request("POST", "reviews", NEVER), lengths].concat())
    };
    vec![
        row("less body than its length", &[post("5"), ends("1234")]),
        row("more body than its length", &[post("5"), ends("123456")]),
        row("more body than its length in two", &[post("5"), frame::data(1, 0, "123"), ends("456")]),
        row("a length and no body", &[frame::headers(1, flag::END_STREAM, &[request("POST", "reviews", NEVER), vec![("content-length".into(), "5".into())]] .concat())]),
        row("a length of 0 and a body", &[empty, ends("x")]),
        row("a length that is no number", &[post("abc"), ends("abc")]),
        row("a length with a sign", &[post("+5"), ends("12345")]),
        row("a length below nothing", &[post("-5"), ends("12345")]),
        row("a length that is a list", &[post("5, 5"), ends("12345")]),
        row("an empty length", &[post(""), ends("12345")]),
        row("a length too long for any number", &[post("99999999999999999999999999"), ends("12345")]),
        row("two lengths that differ", &[twice("5", "6"), ends("12345")]),
        row("less body than its length, then trailers", &[post("5"), frame::data(1, 0, "123"), frame::headers(1, flag::END_STREAM, &[("x", "y")])]),
        case("9113 8.1.1", "padding is not body", &[frame::headers(1, 0, &good), frame::data(1, flag::PADDED | flag::END_STREAM, b"\x02hi\0\0")], Expect::Answer(1, 200)),
        case("9113 8.1.1", "a length and its body in pieces", &[frame::headers(1, 0, &good), frame::data(1, 0, "h"), frame::data(1, 0, ""), frame::data(1, 0, "i"), ends("")], Expect::Answer(1, 200)),
    ]
}

/// RFC 9113 section 8.1.
// A table is read by its rows.
#[rustfmt::skip]
fn trailers() -> Vec<Case> {
    let head = |path: &str| frame::headers(1, 0, &request("POST", "reviews", path));
    let ends = |list: &[(&str, &str)]| frame::headers(1, flag::END_STREAM, list);
    let data = || frame::data(1, 0, "x");
    vec![
        case("9113 8.1", "trailers", &[head("/"), data(), ends(&[("x-sum", "1")])], Expect::Answer(1, 200)),
        case("9113 8.1", "trailers without a body", &[head("/"), ends(&[("x-sum", "1")])], Expect::Answer(1, 200)),
        case("9113 8.1", "trailers that do not end", &[head(NEVER), data(), frame::headers(1, 0, &[("x-sum", "1")])], Expect::Malformed(1)),
        case("9113 8.1", "trailers with a pseudo-header", &[head(NEVER), data(), ends(&[(":method", "GET")])], Expect::Malformed(1)),
        case("9113 8.1", "trailers with the answer's pseudo-header", &[head(NEVER), data(), ends(&[(":status", "200")])], Expect::Malformed(1)),
        case("9113 8.1", "trailers with a pseudo-header and no body", &[head(NEVER), ends(&[(":path", "/")])], Expect::Malformed(1)),
        case("9113 8.1", "trailers with a pseudo-header end no sibling", &[head(NEVER), data(), ends(&[(":method", "GET")]), super::get(3)], Expect::Answer(3, 200)),
        case("9113 8.1", "trailers with an unknown pseudo-header", &[head(NEVER), data(), ends(&[(":x", "y")])], Expect::Malformed(1)),
        case("9113 8.1", "trailers with an upper case letter", &[head(NEVER), data(), ends(&[("X-Sum", "1")])], Expect::Malformed(1)),
        case("9113 8.2.2", "trailers with a field of the connection", &[head(NEVER), data(), ends(&[("connection", "close")])], Expect::Malformed(1)),
        case("9113 8.2.1", "trailers with LF in a value", &[head(NEVER), data(), ends(&[("x", "a\nb")])], Expect::Malformed(1)),
        case("9113 8.1", "DATA after trailers", &[frame::headers(1, 0, &request("POST", "reviews", "/slow")), ends(&[("x", "y")]), frame::data(1, flag::END_STREAM, "x")], Expect::Reset(1, &[frame::code::STREAM_CLOSED])),
    ]
}
