//! What a route does with its requests: each slip is refused once, and what looks like one and is none is not.

use super::*;

/// A route with these lines, below a match by prefix.
fn acting(lines: &[&str]) -> String {
    let lines: String = lines.iter().map(|line| format!("    {line}\n")).collect();
    route(&format!("    match: [{{ path: {{ prefix: /a }} }}]\n{lines}"))
}

/// The lines of a route, and a part of what they are refused with.
type Slip<'a> = (&'a [&'a str], &'a str);

const TO: &str = "to: [{ backend: v1 }]";

/// Slips of routes that answer by themselves.
const ANSWERS: &[Slip<'_>] = &[
    (
        &["redirect: { host: 'a:80' }"],
        "`a:80` is not a host name: leave the port out",
    ),
    (&["redirect: { port: 0 }"], "port 0 cannot be reached"),
    (&["redirect: { path: 'a' }"], "a path begins with `/`; write `/a`"),
    (
        &["redirect: { path: /a, prefix: /b }"],
        "`path` and `prefix` are given together",
    ),
    (&["redirect: { path: '/a?b=#' }"], "`#` ends a path"),
    (&["redirect: { path: '/%zz' }"], "a `%` is followed by two digits"),
    (
        &["redirect: { path: '/é' }"],
        "'é' cannot stand in a URL; write %C3%A9",
    ),
    (
        &["redirect: { path: /b }", TO],
        "`to` and `redirect` are given together",
    ),
    (
        &["redirect: { scheme: ftp }"],
        "`ftp` is not known here (allowed: http, https)",
    ),
    (
        &["redirect: { path: /b }", "timeout: { request: 1s }"],
        "`timeout` is about requests that are passed on",
    ),
    (
        &["redirect: { path: /b }", "hedge: { after: 1s }"],
        "`hedge` is about requests that are passed on",
    ),
    (
        &["respond: { status: 101 }"],
        "101 is not the status of an answer; expected 200 to 599",
    ),
    (&["respond: { body: a }"], "the field `status` is missing"),
    (
        &["respond: { status: 200, headers: { Connection: close } }"],
        "`Connection` cannot be edited",
    ),
    (
        &["respond: { status: 200 }", "request_headers: { remove: [a] }"],
        "`request_headers` is about requests",
    ),
    (
        &["retry: { attempts: 2 }"],
        "nothing says what becomes of the requests; give one of to, redirect, respond",
    ),
];

/// Slips of routes that change what they pass on.
const CHANGES: &[Slip<'_>] = &[
    (
        &["rewrite: {}", TO],
        "nothing is said here; give one of host, path, prefix, regex",
    ),
    (
        &["rewrite: { path: /a, prefix: /b }", TO],
        "`path` and `prefix` are given together",
    ),
    (
        &["rewrite: { path: '/a b' }", TO],
        "' ' cannot stand in a URL; write %20",
    ),
    (&["rewrite: { host: 'a:0' }", TO], "`a:0` does not end in a port"),
    (
        &["rewrite: { host: 'a/b' }", TO],
        "`a/b` is not a host name: leave the path out",
    ),
    (
        &["rewrite: { regex: { pattern: '(', substitution: a } }", TO],
        "the regular expression cannot be read",
    ),
    (
        &["rewrite: { regex: { pattern: a, substitution: '/?' } }", TO],
        "`?` ends a path",
    ),
    (
        &["rewrite: { regex: { pattern: a, substitution: '%' } }", TO],
        "a `%` is followed by two digits",
    ),
    (
        &["rewrite: { regex: { pattern: a } }", TO],
        "the field `substitution` is missing",
    ),
    (
        &["request_headers: { set: { a: \"b\\n\" } }", TO],
        "'\\n' cannot stand in the value of a header",
    ),
    (&["request_headers: { set: { a: 1 } }", TO], "put it in quotes"),
    (
        &["response_headers: { add: { ':status': \"200\" } }", TO],
        "`:status` is no header",
    ),
];

#[test]
fn an_action_that_makes_no_sense_is_refused_once() {
    let long = format!(
        "respond: {{ status: 200, body: \"{}\" }}",
        "a".repeat(64 * 1024 + 1)
    );
    let many: Vec<String> = (0..21).map(|number| format!("x-{number}")).collect();
    let many = format!("request_headers: {{ remove: [{}] }}", many.join(", "));
    let wide = format!("request_headers: {{ set: {{ x: \"{}\" }} }}", "a".repeat(4097));
    let large: [Slip<'_>; 3] = [
        (
            &[&long],
            "the body is 65537 bytes long; at most 65536 are allowed",
        ),
        (&[&many, TO], "21 headers are named here; at most 20 are allowed"),
        (
            &[&wide, TO],
            "the value is 4097 bytes long; at most 4096 are allowed",
        ),
    ];
    for (lines, expected) in [ANSWERS, CHANGES, &large].concat() {
        let refused = refusal(&acting(lines));
        assert_eq!(refused.lines().count(), 1, "{lines:?}: {refused}");
        assert!(refused.contains(expected), "{lines:?}: {refused}");
    }
}

#[test]
fn an_action_that_makes_sense_is_read() {
    let to = "to: [{ backend: v1, response_headers: { set: { a: b } } }]";
    for lines in [
        &["redirect: { prefix: /, port: 8443, scheme: https }"][..],
        &[
            "redirect: { path: '/a%20b?c=/d?e' }",
            "response_headers: { set: { a: b } }",
        ],
        &["redirect: { host: 10.0.0.1, status: 308, strip_query: true }"],
        &["respond: { status: 204 }"],
        &["respond: { status: 200, body: \"\" }"],
        &["respond: { status: 404, body: 'not: here', headers: { Content-Type: text/html } }"],
        &["rewrite: { host: 'a_b.example:8080', prefix: /b/ }", to],
        &["rewrite: { regex: { pattern: '^/a', substitution: '' } }", to],
        &[
            "request_headers: { set: { A: \"\" }, add: { b: 'a, b' }, remove: [C] }",
            to,
        ],
    ] {
        assert_eq!(refusal(&acting(lines)), "", "{lines:?}");
    }
}
