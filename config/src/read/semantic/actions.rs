//! The checks of what a route does with its requests: that it says one thing, and that what it writes into messages may
//! stand there.

use std::collections::HashMap;

use super::super::node::{Fault, Node, shown};
use super::names::{host, is_token};
use super::{At, exactly_one};
use crate::actions::{Redirect, RegexRewrite, Respond, Rewrite};
use crate::pattern::{self, Replacement};
use crate::service::{Protocol, Route, Service};

/// The statuses that send a caller elsewhere with a `Location` (RFC 9110 section 15.4).
const REDIRECTS: [u16; 5] = [301, 302, 303, 307, 308];

/// The largest body of an answer of the sidecar's own: a page for people, or a small document. Every sidecar of the mesh
/// holds it in memory.
const BODY_BYTES_MAX: usize = 64 * 1024;

/// The statuses whose answers have no body (RFC 9110 sections 15.3.5, 15.3.6 and 15.4.5).
const BODILESS: [u16; 3] = [204, 205, 304];

/// As many headers as may be written by one rule: a fifth of what servers take in a whole message.
const HEADERS_MAX: usize = 20;

/// The longest value of a header: half of what most servers take in a whole head.
const VALUE_BYTES_MAX: usize = 4096;

/// The headers of whoever passes the message on, and why nobody else writes them.
const OURS: [(&str, &str); 10] = [
    (
        "host",
        "a request's is said with `rewrite: { host: … }`, and an answer has none",
    ),
    (
        "content-length",
        "it says how long the body is, and the sidecar writes it",
    ),
    (
        "transfer-encoding",
        "it says how the body is sent, and the sidecar writes it",
    ),
    ("connection", CONNECTION),
    ("keep-alive", CONNECTION),
    ("proxy-connection", CONNECTION),
    ("te", CONNECTION),
    ("upgrade", CONNECTION),
    (
        "trailer",
        "it speaks of the trailers behind the body, which are not edited",
    ),
    (
        "expect",
        "the sidecar has answered it before the request is passed on",
    ),
];

const CONNECTION: &str = "it is about one connection, and the sidecar writes it for each by itself";

/// Where headers are written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Of {
    Requests,
    Answers,
}

/// Checks what a route does with its requests.
pub(super) fn actions(at: &At<'_>, service: &Service, route: &Route, faults: &mut Vec<Fault>) {
    one_thing(at, faults);
    if let (Some(field), Some(redirect)) = (at.field("redirect"), &route.redirect) {
        if service.protocol == Protocol::Grpc {
            faults.push(field.fault(
                "no client of gRPC follows a redirect; lead the calls on with `to`, or tell them why not with `respond`",
            ));
        }
        self::redirect((at, &field), route, redirect, faults);
    }
    if let (Some(field), Some(respond)) = (at.field("respond"), &route.respond) {
        self::respond(&field, service.protocol, respond, faults);
    }
    if let (Some(field), Some(rewrite)) = (at.field("rewrite"), &route.rewrite) {
        self::rewrite((at, &field), route, rewrite, faults);
    }
    both_edits(at, faults);
    for at in at.items_of("to") {
        both_edits(&at, faults);
    }
}

/// One thing becomes of a request, and what is said beside it goes with that.
fn one_thing(at: &At<'_>, faults: &mut Vec<Fault>) {
    const THINGS: [&str; 3] = ["to", "redirect", "respond"];
    const WITH_TO: [&str; 8] = [
        "rewrite",
        "request_headers",
        "timeout",
        "retry",
        "hedge",
        "rate_limit",
        "fault",
        "mirror",
    ];
    if at.given(&THINGS) == 0 && !at.is_damaged() {
        faults.push(at.fault("nothing says what becomes of the requests; give one of to, redirect, respond"));
        return;
    }
    exactly_one(at, &THINGS, faults);
    if at.given(&["to"]) > 0 {
        return;
    }
    for word in WITH_TO {
        if let Some(at) = at.field(word).filter(|_| at.given(&[word]) == 1) {
            faults.push(at.fault(format!(
                "`{word}` is about requests that are passed on, and this route answers them itself; take it out"
            )));
        }
    }
}

fn redirect((route_at, at): (&At<'_>, &At<'_>), route: &Route, redirect: &Redirect, faults: &mut Vec<Fault>) {
    const CHANGES: [&str; 6] = ["scheme", "host", "port", "path", "prefix", "strip_query"];
    if at.given(&CHANGES) == 0 && !at.is_damaged() {
        faults.push(at.fault(format!(
            "the caller would be sent to the URL that it came with; give one of {}",
            CHANGES.join(", ")
        )));
    }
    if let (Some(at), Some(name)) = (at.field("host"), &redirect.host) {
        faults.extend(host(name).map(|why| at.fault(why)));
    }
    if let Some(at) = at.field("port")
        && redirect.port == Some(0)
    {
        faults.push(at.fault("port 0 cannot be reached; expected 1 to 65535"));
    }
    if let Some(at) = at.field("status")
        && !REDIRECTS.contains(&redirect.status)
    {
        faults.push(at.fault(format!(
            "{} does not send anybody elsewhere; expected one of 301, 302, 303, 307, 308",
            redirect.status
        )));
    }
    at_most_one(at, &["path", "prefix"], faults);
    if let (Some(at), Some(text)) = (at.field("path"), &redirect.path) {
        let (path, query) = text.split_once('?').unwrap_or((text, ""));
        faults.extend(
            path_fault(path)
                .or_else(|| piece_fault(query, b"/?"))
                .map(|why| at.fault(why)),
        );
    }
    prefix((route_at, at), route, redirect.prefix.as_deref(), faults);
}

fn respond(at: &At<'_>, protocol: Protocol, respond: &Respond, faults: &mut Vec<Fault>) {
    let status = respond.status;
    let known = at.field("status");
    if let Some(at) = &known {
        if !(200..=599).contains(&status) {
            faults.push(at.fault(format!(
                "{status} is not the status of an answer; expected 200 to 599"
            )));
        } else if protocol == Protocol::Grpc && status < 400 {
            faults.push(at.fault(format!(
                "{status} would be no answer to a call of gRPC, which has either messages or a failure; expected 400 to 599"
            )));
        }
    }
    if let (Some(at), Some(body)) = (at.field("body"), &respond.body) {
        if known.is_some() && BODILESS.contains(&status) && !body.is_empty() {
            faults.push(at.fault(format!(
                "an answer with the status {status} has no body; take it out"
            )));
        }
        if body.len() > BODY_BYTES_MAX {
            faults.push(at.fault(format!(
                "the body is {} bytes long; at most {BODY_BYTES_MAX} are allowed",
                body.len()
            )));
        }
    }
    let mut seen = HashMap::new();
    written(at, ("headers", Of::Answers), &mut seen, faults);
    too_many(at, seen.len(), faults);
}

fn rewrite((route_at, at): (&At<'_>, &At<'_>), route: &Route, rewrite: &Rewrite, faults: &mut Vec<Fault>) {
    const CHANGES: [&str; 4] = ["host", "path", "prefix", "regex"];
    if at.given(&CHANGES) == 0 && !at.is_damaged() {
        faults.push(at.fault(format!(
            "nothing is said here; give one of {}",
            CHANGES.join(", ")
        )));
    }
    at_most_one(at, &CHANGES[1..], faults);
    if let (Some(at), Some(authority)) = (at.field("host"), &rewrite.host) {
        faults.extend(authority_fault(authority).map(|why| at.fault(why)));
    }
    if let (Some(at), Some(path)) = (at.field("path"), &rewrite.path) {
        faults.extend(path_fault(path).map(|why| at.fault(why)));
    }
    prefix((route_at, at), route, rewrite.prefix.as_deref(), faults);
    if let (Some(at), Some(regex)) = (at.field("regex"), &rewrite.regex) {
        self::regex(&at, regex, faults);
    }
}

fn regex(at: &At<'_>, regex: &RegexRewrite, faults: &mut Vec<Fault>) {
    let Some(pattern) = at.field("pattern") else {
        return;
    };
    let compiled = match pattern::anywhere(&regex.pattern) {
        Ok(compiled) => compiled,
        Err(why) => return faults.push(pattern.fault(why)),
    };
    let Some(at) = at.field("substitution") else {
        return;
    };
    match Replacement::new(compiled, &regex.substitution) {
        Ok(replacement) => {
            let why = replacement.texts().find_map(|text| piece_fault(text, b"/"));
            faults.extend(why.map(|why| at.fault(why)));
        }
        Err(why) => faults.push(at.fault(why)),
    }
}

/// What takes the place of a prefix needs one that it can take the place of.
fn prefix((route_at, at): (&At<'_>, &At<'_>), route: &Route, prefix: Option<&str>, faults: &mut Vec<Fault>) {
    let (Some(at), Some(prefix)) = (at.field("prefix"), prefix) else {
        return;
    };
    faults.extend(path_fault(prefix).map(|why| at.fault(why)));
    if route_at.given(&["match"]) == 1 && !route_at.field("match").is_some_and(|at| at.is_whole()) {
        return;
    }
    let has_prefix = |of: &crate::service::Match| of.path.as_ref().is_some_and(|path| path.prefix.is_some());
    let without = route.matches.iter().position(|of| !has_prefix(of));
    let line = without.and_then(|place| Some(route_at.items_of("match").get(place)?.mark().line));
    let which = match line {
        Some(line) => format!("that on line {line} has none"),
        None if route.matches.is_empty() => "this route has no `match`".to_owned(),
        None => return,
    };
    faults.push(at.fault(format!(
        "`prefix` takes the place of the prefix that matched, so every `match` needs `path: {{ prefix: … }}`, and {which}"
    )));
}

fn at_most_one(at: &At<'_>, keys: &[&str], faults: &mut Vec<Fault>) {
    if at.given(keys) > 1 {
        exactly_one(at, keys, faults);
    }
}

/// The edits of requests and of answers, of a route or of one of its backends.
fn both_edits(at: &At<'_>, faults: &mut Vec<Fault>) {
    for (field, of) in [
        ("request_headers", Of::Requests),
        ("response_headers", Of::Answers),
    ] {
        if let Some(at) = at.field(field) {
            edits(&at, of, faults);
        }
    }
}

fn edits(at: &At<'_>, of: Of, faults: &mut Vec<Fault>) {
    const EDITS: [&str; 3] = ["set", "add", "remove"];
    if at.given(&EDITS) == 0 && !at.is_damaged() {
        faults.push(at.fault(format!("nothing is said here; give one of {}", EDITS.join(", "))));
    }
    let mut seen = HashMap::new();
    written(at, ("set", of), &mut seen, faults);
    written(at, ("add", of), &mut seen, faults);
    for at in at.items_of("remove") {
        if let Some(name) = at.node.text() {
            self::name(&at, name, of, &mut seen, faults);
        }
    }
    too_many(at, seen.len(), faults);
}

fn too_many(at: &At<'_>, count: usize, faults: &mut Vec<Fault>) {
    if count > HEADERS_MAX {
        faults.push(at.fault(format!(
            "{count} headers are named here; at most {HEADERS_MAX} are allowed"
        )));
    }
}

/// Headers with their values.
fn written(at: &At<'_>, (field, of): (&str, Of), seen: &mut HashMap<String, usize>, faults: &mut Vec<Fault>) {
    let Some(at) = at.field(field) else { return };
    for entry in at.node.entries() {
        let Some(at) = at.field(&entry.key) else { continue };
        name(&at, &entry.key, of, seen, faults);
        if let Some(why) = at.node.text().and_then(value_fault) {
            faults.push(at.fault(why));
        }
    }
}

/// The name of a header that is edited, which is edited once.
fn name(at: &At<'_>, name: &str, of: Of, seen: &mut HashMap<String, usize>, faults: &mut Vec<Fault>) {
    let lower = name.to_ascii_lowercase();
    if let Some(why) = name_fault(name, &lower, of) {
        faults.push(at.fault(why));
    } else if let Some(line) = seen.insert(lower, line_of(at.node)) {
        faults.push(at.fault(format!(
            "`{}` stands here already, on line {line}; a header is edited once, and several values are one with commas",
            shown(name)
        )));
    }
}

const fn line_of(node: &Node) -> usize {
    node.mark.line
}

fn name_fault(name: &str, lower: &str, of: Of) -> Option<String> {
    if let Some(pseudo) = lower.strip_prefix(':') {
        let instead = match (of, pseudo) {
            (Of::Requests, "authority") => "; it is said with `rewrite: { host: … }`",
            (Of::Requests, "path") => "; it is said with `rewrite`",
            (Of::Requests, _) => ", and stays as it is",
            (Of::Answers, _) => "; a status of your own is said with `respond`",
        };
        return Some(format!(
            "`{}` is no header but HTTP/2's first line{instead}",
            shown(name)
        ));
    }
    if !is_token(name) {
        return Some(format!("`{}` is not the name of a header", shown(name)));
    }
    if lower.starts_with("x-outrigger-") {
        return Some(format!(
            "`{}` cannot be edited: the sidecars tell one another with it",
            shown(name)
        ));
    }
    let (_, why) = OURS.iter().find(|(ours, _)| *ours == lower)?;
    Some(format!("`{}` cannot be edited: {why}", shown(name)))
}

fn value_fault(value: &str) -> Option<String> {
    let blank = |byte: Option<u8>| matches!(byte, Some(b' ' | b'\t'));
    if value.len() > VALUE_BYTES_MAX {
        return Some(format!(
            "the value is {} bytes long; at most {VALUE_BYTES_MAX} are allowed",
            value.len()
        ));
    }
    if let Some(odd) = value.chars().find(|char| !matches!(char, ' '..='~' | '\t')) {
        return Some(format!(
            "{odd:?} cannot stand in the value of a header; only printable ASCII can"
        ));
    }
    (blank(value.bytes().next()) || blank(value.bytes().next_back()))
        .then(|| "the value of a header neither begins nor ends with a blank".to_owned())
}

/// Why a text is not a path, without a query.
fn path_fault(path: &str) -> Option<String> {
    if !path.starts_with('/') {
        return Some(format!("a path begins with `/`; write `/{}`", shown(path)));
    }
    piece_fault(path, b"/")
}

/// Why a text cannot stand in a path, or in a query (RFC 3986 section 3.3 and 3.4). `also`: what is allowed beside `pchar`.
fn piece_fault(text: &str, also: &[u8]) -> Option<String> {
    let is_plain = |byte: u8| {
        byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@".contains(&byte) || also.contains(&byte)
    };
    let mut rest = text;
    while let Some(char) = rest.chars().next() {
        let width = match char {
            '%' if rest
                .get(1..3)
                .is_some_and(|hex| hex.bytes().all(|byte| byte.is_ascii_hexdigit())) =>
            {
                3
            }
            '%' => {
                return Some(
                    "a `%` is followed by two digits that say what is encoded; itself it is `%25`".to_owned(),
                );
            }
            '?' | '#' if !also.contains(&(char as u8)) => {
                return Some(format!("`{char}` ends a path; only the path is said here"));
            }
            char if char.is_ascii() && is_plain(char as u8) => 1,
            char => {
                let mut bytes = [0; 4];
                let encoded: String = char
                    .encode_utf8(&mut bytes)
                    .bytes()
                    .map(|byte| format!("%{byte:02X}"))
                    .collect();
                return Some(format!("{char:?} cannot stand in a URL; write {encoded}"));
            }
        };
        rest = &rest[width..];
    }
    None
}

/// Why a text is not a host, with a port or without.
fn authority_fault(authority: &str) -> Option<String> {
    match authority.split_once(':') {
        None => host(authority),
        Some((_, port)) if !port.parse::<u16>().is_ok_and(|port| port > 0) || port.starts_with('+') => {
            Some(format!(
                "`{}` does not end in a port; expected 1 to 65535",
                shown(authority)
            ))
        }
        Some((name, _)) => host(name),
    }
}
